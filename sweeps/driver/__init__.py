"""Trains a plan or a search as Ray Tune trials."""
