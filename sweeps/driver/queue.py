"""The order in which cells become trials: the plan's, save that no two trials pre-train the same thing at once."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from ray.tune.search import Searcher

_PAUSE = 10.0  # seconds until a storage that did not answer is asked again


@dataclass(frozen=True)
class Entry:
    """A cell in the queue. pretraining: what its first phase trains, None where it has none or takes none over;
    not_before: the time, by time.monotonic, until which it is left in the queue."""

    config: dict[str, Any]
    pretraining: Hashable | None
    not_before: float = 0.0


class CellQueue(Searcher):
    """Hands out the entries as Tune asks for trials; answers "nothing now" while the rest has to wait.

    An entry waits while another trains the same pre-training, and takes that over once it is `published`. Whoever
    trains one calls `release` when it is published or has failed; after a failure the next in line trains it itself.
    Where `published` raises OSError, because the storage is away, nothing is handed out for a while.
    A trial that ended before its cell did is put in again with `again`. `is_closed` is asked before each trial: while
    it answers True, for instance because the budget is spent, no more are handed out.
    """

    def __init__(
        self,
        entries: list[Entry],
        published: Callable[[Hashable], bool],
        is_closed: Callable[[], bool] = lambda: False,
    ):
        super().__init__()
        self._waiting, self._published, self._is_closed = list(entries), published, is_closed
        self._busy: set[Hashable] = set()
        self._out: set[str] = set()
        self._not_before = 0.0

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The configuration of the next trial, None while all that is left must wait, or Searcher.FINISHED."""
        if not self._waiting or self._is_closed():
            # A trial that is out may still be put in again.
            return None if self._out and not self._is_closed() else Searcher.FINISHED
        now = time.monotonic()
        if now < self._not_before:
            return None
        for entry in self._waiting:
            if entry.pretraining not in self._busy and entry.not_before <= now:
                break
        else:
            return None
        try:
            trains_it = entry.pretraining is not None and not self._published(entry.pretraining)
        except OSError:
            self._not_before = time.monotonic() + _PAUSE
            return None
        self._waiting.remove(entry)
        self._out.add(trial_id)
        if trains_it:
            self._busy.add(entry.pretraining)
        return entry.config

    def again(self, entry: Entry) -> None:
        """Put a cell in again, before all that were never begun."""
        self._waiting.insert(0, entry)

    def release(self, pretraining: Hashable) -> None:
        """Nobody trains this any more."""
        self._busy.discard(pretraining)

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The trial has ended, well or not."""
        self._out.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune saves its searcher for Tuner.restore, which this engine does not use."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as `save`: Tune pickles its searcher when it is set up."""
        return {}
