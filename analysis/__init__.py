"""From MLflow runs to Parquet, tables and figures. Loads neither torch nor ray."""

import sys

from relvit.host import ensure_home, report_to_nobody, spare_loopback, start_quickly

spare_loopback()
start_quickly()
report_to_nobody()
# Before matplotlib and MLflow are imported, which ask for a home.
_note = ensure_home()
if _note:
    print(f"note: {_note}", file=sys.stderr)
