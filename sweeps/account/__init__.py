"""What is done, who holds what, and why it failed: plain files, read without torch, Ray or MLflow."""
