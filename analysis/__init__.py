"""From MLflow runs to Parquet, tables and figures. Loads neither torch nor ray."""
