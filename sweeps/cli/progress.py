"""What a person sees while a sweep runs: cells done, running, failed, time left."""

import time
from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from relvit.cell import LATER_FIELDS, Cell
from sweeps.cli.console import say


def duration(seconds: float) -> str:
    """ "45 s", "12 min", "3 h 20 min", "5 days"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes / 60 / 24:.0f} days"


# What evaluations of one pre-training have beside their protocols.
_OF_EVALUATIONS = ("labels_per_class", "label_share", "finetune_image_size")


def labels(cells: list[Cell]) -> dict[Cell, str]:
    """A short name for each cell: the fields that tell cells apart, and part of the digest where those do not."""
    names = ["dataset", "backbone", "protocol", "tasks"]
    told = [name for name in names if len({getattr(cell, name) for cell in cells}) > 1] or ["tasks"]
    own = [name for name in _OF_EVALUATIONS if len({getattr(cell, name) for cell in cells}) > 1]
    short = {cell: " ".join([*(getattr(cell, name) for name in told), *_own(cell, own)]) for cell in cells}
    twice = Counter((label, cell.seed) for cell, label in short.items())
    digest = {cell: f" {cell.cell_id[-10:-4]}" if twice[label, cell.seed] > 1 else "" for cell, label in short.items()}
    return {cell: label + digest[cell] for cell, label in short.items()}


def _own(cell: Cell, names: list[str]) -> list[str]:
    values = {name: getattr(cell, name) for name in names}
    return [f"{name}={value:g}" for name, value in values.items() if value != LATER_FIELDS[name]]


class SweepProgress:
    """Counts cells and prints a line for each that ends; on a terminal, a bar below shows what runs now.

    Time left is judged by the epochs trained since the start. epochs: how many are to be trained of each kind; those of
    a kind take about as long as each other.
    """

    def __init__(self, console: Console, cells: list[Cell], epochs: Mapping[Any, int]):
        self._console = console
        self._total = len(cells)
        self._labels = labels(cells)
        self._width = max(map(len, self._labels.values()))
        self._epochs = sum(epochs.values())
        self._epochs_left = dict(epochs)
        self._trained: dict[Any, tuple[int, float]] = {}  # by kind, how many epochs in how many seconds
        self._running: dict[str, str] = {}
        self._finished = self._failed = 0
        self._started = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=self._epochs)

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def running(self, cell: Cell) -> None:
        """A cell has started."""
        self._running[cell.cell_id] = self._labels[cell]
        self._update()

    def epoch(self, kind: Any, seconds: float) -> None:
        """One more epoch of some cell is trained, in so many seconds."""
        self._epochs_left[kind] -= 1
        count, sofar = self._trained.get(kind, (0, 0.0))
        self._trained[kind] = (count + 1, sofar + seconds)
        self._update()

    def seconds_left(self) -> float | None:
        """Until all epochs are trained, side by side as those until now; None before the first. A kind of which none
        was trained yet is taken to need what the others need on average."""
        if not self._trained:
            return None
        means = {kind: seconds / count for kind, (count, seconds) in self._trained.items()}
        usual = fmean(means.values())
        left = sum(count * means.get(kind, usual) for kind, count in self._epochs_left.items())
        return left * (time.monotonic() - self._started) / sum(seconds for _, seconds in self._trained.values())

    def note(self, text: str) -> None:
        """Something a person should know."""
        say(self._console, f"note: {text}")

    def ended(self, cell: Cell, outcome: str, failed: bool) -> None:
        """A cell has ended with this outcome."""
        self._running.pop(cell.cell_id, None)
        self._failed += failed
        self._finished += not failed
        done = self._finished + self._failed
        left = "" if done == self._total else f"   {self._state()}"
        count = f"[{done:>{len(str(self._total))}}/{self._total}]"
        line = f"{count} {self._labels[cell]:<{self._width}}  seed {cell.seed}  {outcome}{left}"
        say(self._console, line)
        self._update()

    def _state(self) -> str:
        seconds = self.seconds_left()
        left = "" if seconds is None else f", about {duration(seconds)} left"
        return f"{len(self._running)} running, {self._failed} failed{left}"

    def _update(self) -> None:
        names = ", ".join(sorted(self._running.values())[:4])
        self._bar.update(
            self._task,
            completed=self._epochs - sum(self._epochs_left.values()),
            description=f"{self._finished}/{self._total} cells done, {self._state()}   {names}",
        )
