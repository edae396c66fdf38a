"""How a driver writes an MLflow database that is a SQLite file."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, Engine, event

from relvit.files import sqlite_file

_PATIENCE = 1.0  # seconds to wait for others to let the mode be changed


@contextmanager
def write_ahead(uri: str) -> Iterator[None]:
    """While the block runs, commits to the file are appended to a log beside it: whoever reads need not wait, nor does
    a writer for readers or for the disk. A killed process loses nothing by it; a power cut may lose the last commits,
    which the next start enters again from the account.

    Afterwards it is one file again, unless another program still has it open. Does nothing for other URIs, and where
    the file cannot be written in this way.
    """
    database = sqlite_file(uri)
    if database is None or _set_mode(database, "wal") != "wal":
        yield
        return
    engines: set[Engine] = set()

    def begin(connection: Connection) -> None:
        if sqlite_file(str(connection.engine.url)) == database:
            engines.add(connection.engine)
            connection.connection.cursor().execute("PRAGMA synchronous = NORMAL")

    event.listen(Engine, "engine_connect", begin)
    try:
        yield
    finally:
        event.remove(Engine, "engine_connect", begin)
        for engine in engines:
            engine.dispose()
        _set_mode(database, "delete")


def _set_mode(database: Path, mode: str) -> str:
    """Returns the mode that the file is in afterwards; empty where another program kept it from being changed."""
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(database, timeout=_PATIENCE)) as connection:
        return str(connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()[0])
    return ""
