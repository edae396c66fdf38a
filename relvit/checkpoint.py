"""Checkpoints that are whole or not there: written atomically, with their checksum in the file's name.

A file `000012-3f9a....pt` holds the state after epoch 12 and the first 16 digits of the SHA-256 of its bytes, so
that one rename (in an object store, one upload) publishes both. They are plain `torch.save` files and are loaded
with `weights_only=True`.
"""

import hashlib
import io
from collections.abc import Callable
from typing import Any

import torch

from relvit.files import Location, write_atomic

FINAL = "final"
_DIGITS = 16


def save(state: dict[str, Any], folder: Location, epoch: int | None, keep: int) -> Location:
    """Write the state after `epoch`, or with epoch None the final one, then drop all but the newest `keep`.

    A final checkpoint replaces every other.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getbuffer()
    name = FINAL if epoch is None else f"{epoch:06d}"
    path = folder / f"{name}-{_checksum(payload)}.pt"
    write_atomic(path, payload)
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
        path.rename(path.with_suffix(".damaged"))
        note(f"checkpoint {path} is damaged (its bytes do not match the checksum in its name); using the one before")
    return None


def _newest_first(folder: Location) -> list[Location]:
    # "final" sorts after every epoch's digits.
    return sorted(folder.glob("*-*.pt"), key=lambda path: path.name, reverse=True)


def _checksum(payload: bytes | memoryview) -> str:
    return hashlib.sha256(payload).hexdigest()[:_DIGITS]
