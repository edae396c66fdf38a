"""From MLflow runs to Parquet tables."""
