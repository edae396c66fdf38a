"""Checkpoints that are whole or not there: written atomically, with their checksum in the file's name.

A file `000012-3f9a....pt` holds the state after epoch 12 and the first 16 digits of the SHA-256 of its bytes, so
that one rename (in an object store, one upload) publishes both. They are plain `torch.save` files and are loaded
with `weights_only=True`.
"""

import hashlib
import io
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from relvit.files import Location, write_atomic

FINAL = "final"
_DIGITS = 16


Permit = Callable[[], object]  # asked before a checkpoint is published; raises where it must not be


def _anybody() -> None:
    """Whoever trains alone may write."""


def save(state: dict[str, Any], folder: Location, epoch: int | None, keep: int, permit: Permit = _anybody) -> Location:
    """Write the state after `epoch`, or with epoch None the final one, then drop all but the newest `keep`.

    A final checkpoint replaces every other. Raises what `permit` raises, and then nothing has changed.
    """
    return _publish(_bytes_of(state), folder, epoch, keep, permit)


class Writer:
    """Writes the checkpoints of a run one after the other, while it trains on: the disk is not waited for.

    A state is taken as it is when it is given. A checkpoint is whole before the next one is begun, so that of a run
    that dies the newest but one is there at the latest. Used as a context: at its end all is written.

    took: seconds that taking and writing the last whole one took; None before the first.
    """

    def __init__(self, folder: Location, keep: int, permit: Permit = _anybody):
        self._folder, self._keep, self._permit = folder, keep, permit
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future | None = None
        self.took: float | None = None

    def save(self, state: dict[str, Any], epoch: int) -> None:
        """Begin to write the state after `epoch`. Raises what kept the one before from being written."""
        started = time.perf_counter()
        payload = _bytes_of(state)
        taken = time.perf_counter() - started
        self.wait()
        self._pending = self._pool.submit(self._write, payload, epoch, taken)

    def _write(self, payload: memoryview, epoch: int, taken: float) -> None:
        started = time.perf_counter()
        _publish(payload, self._folder, epoch, self._keep, self._permit)
        self.took = taken + time.perf_counter() - started

    def wait(self) -> None:
        """Until all is written. Raises what kept it from that."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()
        if kind is None:  # else the original exception is what matters
            self.wait()


def _bytes_of(state: dict[str, Any]) -> memoryview:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def _publish(payload: memoryview, folder: Location, epoch: int | None, keep: int, permit: Permit) -> Location:
    name = FINAL if epoch is None else f"{epoch:06d}"
    path = folder / f"{name}-{_checksum(payload)}.pt"
    write_atomic(path, payload, permit)
    # Another state of the same name is older, whatever its checksum sorts as.
    others = [other for other in _newest_first(folder) if other.name != path.name]
    older = [other for other in others if other.name.split("-")[0] != name]
    kept = [] if epoch is None else older[: keep - 1]
    for stale in others:
        if stale not in kept:
            stale.unlink(missing_ok=True)
    return path


def load_newest(folder: Location, device: str, note: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest state that is whole, or None where there is none.

    A damaged file is reported through `note`, set aside under the suffix .damaged, and the one before it is tried.
    """
    for path in _newest_first(folder):
        payload = path.read_bytes()
        if _checksum(payload) == path.stem.split("-")[1]:
            return torch.load(io.BytesIO(payload), map_location=device, weights_only=True)
        path.rename(path.with_suffix(".damaged"))  # type: ignore[arg-type]  # both are of one kind
        note(f"checkpoint {path} is damaged (its bytes do not match the checksum in its name); using the one before")
    return None


def _newest_first(folder: Location) -> list[Location]:
    # "final" sorts after every epoch's digits.
    return sorted(folder.glob("*-*.pt"), key=lambda path: path.name, reverse=True)


def _checksum(payload: bytes | memoryview) -> str:
    return hashlib.sha256(payload).hexdigest()[:_DIGITS]
