"""The engine: studies, their plan, the Ray Tune trainable, the account of cells and MLflow tracking."""

from relvit.host import report_to_nobody, spare_loopback, start_quickly

spare_loopback()
start_quickly()
report_to_nobody()
