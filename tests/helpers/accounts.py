"""What a driver enters in an account, and what its files then say."""

import json
from typing import Any

from relvit.cell import Cell
from sweeps.account.account import FINISHED, Account


def finish(account: Account, cell: Cell, rows: list[dict[str, Any]], **details: Any) -> None:
    """Enter a finished cell with its rows of metrics, the last of which is the result."""
    account.keep_history(cell, rows)
    account.mark(cell, FINISHED, **details)


def events(account: Account, cell: Cell) -> list[tuple[str, str]]:
    """What happened to the cell: state and reason, oldest first."""
    content = json.loads((account.folder(cell) / "state.json").read_text())
    return [(state, reason) for _, state, reason, _ in content["events"]]
