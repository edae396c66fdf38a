"""RelViT (Camporese, Izzo, Ballan, BMVC 2022) as a plain PyTorch library; it knows neither Ray nor MLflow."""
