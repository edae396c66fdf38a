"""Which trials have fallen silent, and what the budget allows."""

import statistics
import time
from collections import deque
from itertools import takewhile
from typing import Any

from relvit.cell import Cell

# A trial that reports nothing for so many times the median epoch of its kind, and for at least so many seconds, counts
# as stuck. The first report of a trial waits for its process, its data and torch as well. Until an epoch of the kind
# was seen, nothing is known of how long one takes; hours then tell a slow trial from one that never ends.
STALL_FACTOR, STALL_SECONDS, FIRST_REPORT_SECONDS, UNKNOWN_SECONDS = 20.0, 120.0, 900.0, 6 * 3600.0


class Watchdog:
    """Knows when each trial last reported, and how long epochs of a kind usually take."""

    def __init__(self) -> None:
        # With the epoch of its last row, 0 before its first. The one that was silent longest comes first.
        self._last: dict[str, tuple[Cell, float, int]] = {}
        self._seconds: dict[tuple, deque[float]] = {}

    def started(self, trial_id: str, cell: Cell) -> None:
        """A trial has started, or was ended and is given time to be reported dead."""
        *_, epoch = self._last.pop(trial_id, (0,))
        self._last[trial_id] = (cell, time.monotonic(), epoch)

    def reported(self, trial_id: str, cell: Cell, row: dict[str, Any]) -> None:
        """Take a row. Rows of a checkpoint, which a trial that continues yields first, tell how long an epoch takes as
        others do."""
        self._last.pop(trial_id, None)
        self._last[trial_id] = (cell, time.monotonic(), row["epoch"])
        if row["phase"] != "test":
            self._seconds.setdefault(epoch_kind(cell, row["epoch"]), deque(maxlen=1000)).append(row["epoch_seconds"])

    def ended(self, trial_id: str) -> None:
        """Watch a trial no longer."""
        self._last.pop(trial_id, None)

    def limit(self, trial_id: str) -> float:
        """Seconds of silence after which the trial counts as stuck."""
        cell, _, epoch = self._last[trial_id]
        seconds = self._seconds.get(epoch_kind(cell, min(epoch + 1, cell.total_epochs)))
        if not seconds:
            return UNKNOWN_SECONDS
        return max(STALL_SECONDS if epoch else FIRST_REPORT_SECONDS, STALL_FACTOR * statistics.median(seconds))

    def silent(self) -> list[str]:
        """The trials that count as stuck."""
        now = time.monotonic()
        # Asked after each row of a thousand trials; no limit is shorter than this.
        quiet = takewhile(lambda each: now - each[1][1] > STALL_SECONDS, self._last.items())
        return [trial_id for trial_id, (_, since, _) in quiet if now - since > self.limit(trial_id)]


def epoch_kind(cell: Cell, epoch: int) -> tuple:
    """What epochs have in common that take about equally long."""
    phase = cell.phase_of(epoch)
    is_first = phase == "pretrain"
    on_tasks = bool(cell.task_list) and (is_first or phase == "joint")
    images = (cell.pretrain_dataset, cell.image_size) if is_first else (cell.dataset, cell.last_image_size)
    labels = () if is_first and on_tasks else (cell.labels_per_class, cell.label_share)
    return (phase, on_tasks, *images, *labels, cell.train_images, cell.backbone, cell.precision)


class Budget:
    """Hours since the start and GPU-hours of all trials so far, against what may be spent; None: no limit."""

    def __init__(self, hours: float | None, gpu_hours: float | None):
        self._hours, self._gpu_hours = hours, gpu_hours
        self._started = time.monotonic()
        self._spent = 0.0  # GPU-seconds of trials that have ended
        self._running: dict[str, tuple[float, float]] = {}

    def started(self, trial_id: str, gpus: float) -> None:
        """A trial holds so many GPUs from now on."""
        self._running[trial_id] = (gpus, time.monotonic())

    def ended(self, trial_id: str) -> None:
        """The trial holds none any more."""
        gpus, since = self._running.pop(trial_id, (0.0, 0.0))
        self._spent += gpus * (time.monotonic() - since)

    def is_spent(self) -> bool:
        """Whether there is nothing left of it."""
        now = time.monotonic()
        if self._hours is not None and now - self._started >= 3600 * self._hours:
            return True
        if self._gpu_hours is None:
            return False
        gpu_seconds = self._spent + sum(gpus * (now - since) for gpus, since in self._running.values())
        return gpu_seconds >= 3600 * self._gpu_hours
