"""Rows of metrics on this machine's disk instead of in the driver's memory."""

import json
import sqlite3
import threading
from typing import Any


class Spool:
    """Values that JSON can hold, by cell and number. May be used by several threads.

    A database without a name is SQLite's private one: in $TMPDIR as soon as it outgrows a cache of 2 MB, and gone with
    the process.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(
            "CREATE TABLE kept (cell TEXT, number INTEGER, content TEXT, PRIMARY KEY (cell, number)) WITHOUT ROWID"
        )

    def put(self, cell_id: str, number: int, value: Any) -> None:
        """Keep a value, in place of one with the same number."""
        content = json.dumps(value)
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", (cell_id, number, content))

    def get(self, cell_id: str, after: int = -1, most: int = -1) -> list[tuple[int, Any]]:
        """The values of a cell with their numbers, in order, from above `after` on; at most so many, -1: all."""
        asked = "SELECT number, content FROM kept WHERE cell = ? AND number > ? ORDER BY number LIMIT ?"
        with self._lock:
            found = self._database.execute(asked, (cell_id, after, most)).fetchall()
        return [(number, json.loads(content)) for number, content in found]

    def drop(self, cell_id: str, number: int | None = None) -> None:
        """Forget one value of a cell, or all."""
        asked = "DELETE FROM kept WHERE cell = ? AND (? IS NULL OR number = ?)"
        with self._lock:
            self._database.execute(asked, (cell_id, number, number))
