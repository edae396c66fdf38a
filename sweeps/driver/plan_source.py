"""A plan as a source of work: each item once, in the plan's order."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from relvit.cell import Cell
from sweeps.account.account import FAILED, FINISHED, Account, Status
from sweeps.account.work import WorkItem
from sweeps.cli.progress import SweepProgress, duration
from sweeps.driver.source import Ending, Source, Verdict
from sweeps.driver.watchdog import epoch_kind


class PlanSource(Source):
    """The items of a plan that are to be trained. finished, failed and training_seconds: what came of them so far."""

    def __init__(
        self,
        items: list[WorkItem],
        account: Account,
        keep_pretrainings: bool = False,
        known: Mapping[Cell, Status] | None = None,
    ):
        """known: statuses of the plan's other cells, which need not be read again."""
        self._waiting, self._account, self._keep_pretrainings = list(items), account, keep_pretrainings
        self._known = {**(known or {}), **{item.cell: item.status for item in items}}
        self._pending = {item.cell: None for item in items}
        self.studies = frozenset(name for item in items for name in item.studies)
        self._users = {} if keep_pretrainings else account.pretraining_users()
        self._left = _epochs_left(items, account)
        self.epochs = Counter(self._left.values())
        self.progress: SweepProgress | None = None
        self.finished = 0
        self.failed: dict[Cell, str] = {}
        self.training_seconds = 0.0

    def begin(self, write: Callable[..., None]) -> None:
        self._write = write
        write(self._tidy)

    def next(self, may_start: Callable[[WorkItem], bool]) -> WorkItem | None:
        item = next((item for item in self._waiting if may_start(item)), None)
        if item is not None:
            self._waiting.remove(item)
        return item

    def is_done(self) -> bool:
        return not self._waiting

    def started(self, item: WorkItem) -> None:
        if self.progress:
            self.progress.running(item.cell)

    def heard(self, item: WorkItem, row: dict[str, Any]) -> Verdict:
        if row["phase"] == "test":
            return Verdict.STOP
        key = _epoch_key(item.cell, row["epoch"])
        kind = self._left.pop(key, None)
        if kind:  # an epoch counts once, also if cells share it or it is trained again
            self.training_seconds += row["epoch_seconds"]
            if self.progress:
                self.progress.epoch(kind, row["epoch_seconds"])
        return Verdict.CONTINUE

    def ended(self, item: WorkItem, row: dict[str, Any], failure: str = "", reason: str = "") -> Ending:
        cell = item.cell
        del self._pending[cell]
        if failure:
            self.failed[cell] = reason
        else:
            self.finished += 1
        if self.progress:
            said = f"FAILED: {reason}" if failure else f"{_tested(row)}  {duration(row['training_seconds'])}"
            self.progress.ended(cell, said, failed=bool(failure))
        then: tuple[Callable[[], None], ...] = ()
        users = self._users.get(cell.pretraining()) if cell.has_pretraining else None
        if users and self._pending.keys().isdisjoint(users):
            then = (partial(self._drop_if_unused, cell.pretraining()),)
        return Ending(cell, FAILED if failure else FINISHED, reason, failure, then=then)

    def stopped(self) -> list[Cell]:
        self._write(self._tidy)
        return list(self._pending)

    def _tidy(self) -> None:
        """Drop pre-trainings that this driver leaves behind, and those that others left: one that was killed before it
        came to this, or two that each saw the other's cells at work."""
        if not self._keep_pretrainings:
            done = {cell for cell, status in self._known.items() if status.state == FINISHED}
            known = {cell: self._known[cell] for cell in (*done, *self._pending)}
            self._account.drop_unused_pretrainings(known)

    def _drop_if_unused(self, shared: Cell) -> None:
        """Cells that failed, or are another driver's, may still need it."""
        if self._account.are_finished(self._users[shared]):
            self._account.drop_pretraining(shared)


def _epochs_left(items: list[WorkItem], account: Account) -> dict[tuple[str, int], tuple]:
    """Which epochs are there to train, each with its kind: those after each cell's checkpoint, and each shared first
    phase once."""
    left = {
        _epoch_key(item.cell, epoch): epoch_kind(item.cell, epoch)
        for item in items
        for epoch in range(1, item.cell.total_epochs + 1)
    }
    published: dict[str, bool] = {}
    for item in items:
        cell, done = item.cell, item.status.epoch
        if cell.has_pretraining and done < cell.pretrain_epochs:
            shared = cell.pretraining()
            if shared.cell_id not in published:
                published[shared.cell_id] = account.is_published(shared)
            done = cell.pretrain_epochs if published[shared.cell_id] else done
        for epoch in range(1, done + 1):
            left.pop(_epoch_key(cell, epoch), None)
    return left


def _epoch_key(cell: Cell, epoch: int) -> tuple[str, int]:
    return (cell.pretraining() if cell.phase_of(epoch) == "pretrain" else cell).cell_id, epoch


def _tested(row: dict[str, Any]) -> str:
    """A cell's result for a person; of a pre-training alone what its tasks came to."""
    if "test_accuracy" in row:
        return f"test accuracy {row['test_accuracy']:5.2f} %"
    tested = (f"{name.removeprefix('test_')} {value:.2f}" for name, value in row.items() if name.startswith("test_"))
    return ", ".join(tested) or "pre-trained"
