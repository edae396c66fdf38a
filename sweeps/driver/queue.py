"""Tune's searcher: hands out what a source of work has, so that no two trials pre-train the same thing at once."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.tune.search import Searcher

from relvit.cell import Cell
from sweeps.account.account import Account, Status
from sweeps.account.failures import Attempts, Setting
from sweeps.account.work import WorkItem
from sweeps.driver.options import Options
from sweeps.driver.source import Source
from sweeps.driver.trainable import TRIAL, trial_config

PAUSE = 10.0  # seconds until a storage that did not answer is asked again, and until free slots are counted again


@dataclass(frozen=True)
class Assignment:
    """What a trial trains, and with what."""

    item: WorkItem
    setting: Setting


class TrialQueue(Searcher):
    """Hands out items as Tune asks for trials; answers "nothing now" while the rest has to wait.

    A trial waits while another trains the same pre-training, and takes that over once it is published. Whoever trains
    one calls `release` when it is published or has failed; after a failure the next in line trains it itself. An item
    is put in again with `again`, and then goes before all that were never begun. While the storage is away nothing is
    handed out, and nothing is lost. `is_closed` is asked before each trial: while it answers True, for instance because
    the budget is spent, no more are handed out. lease: the name of the driver's.
    """

    def __init__(
        self,
        source: Source,
        account: Account,
        options: Options,
        lease: str,
        is_closed: Callable[[], bool] = lambda: False,
    ):
        super().__init__()
        self._source, self._account, self._options = source, account, options
        self._lease, self._is_closed = lease, is_closed
        self._assigned: dict[str, Assignment] = {}
        self._live: dict[str, str] = {}  # by trial, its cell
        self._busy: dict[str, str] = {}  # by pre-training, the cell whose trial trains it
        self._again: list[tuple[WorkItem, float]] = []
        self._attempts: dict[str, Attempts] = {}
        self._unsettled: set[str] = set()
        self._not_before = 0.0
        self._slots, self._counted = 1, -1e9

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray leaves out FINISHED
        """The configuration of the next trial, None while all that is left must wait, or Searcher.FINISHED."""
        if self._is_closed():
            return Searcher.FINISHED
        now = time.monotonic()
        if now < self._not_before or (self._source.draws_late and len(self._live) >= self._room(now)):
            return None
        item = None
        try:
            item = self._retried(now) or self._source.next(self._may_start)
            if item is None:
                # A trial that is running may still be put in again, and Tune asks no more once it has heard FINISHED.
                done = not self._live and not self._again and self._source.is_done()
                return Searcher.FINISHED if done else None
            pretraining = self._pretraining(item)
            if pretraining is not None and not self._account.is_published(pretraining):
                self._busy[pretraining.cell_id] = item.cell.cell_id
        except OSError:
            self._not_before = time.monotonic() + PAUSE
            if item is not None:
                self.again(item)
            return None
        setting = self.attempts(item).setting
        self._live[trial_id] = item.cell.cell_id
        self._assigned[trial_id] = Assignment(item, setting)
        return {TRIAL: trial_config(item, self._account, setting, self._options, self._lease)}

    def assignment(self, trial_id: str) -> Assignment:
        """What this trial trains."""
        return self._assigned[trial_id]

    def is_live(self, trial_id: str) -> bool:
        """Whether the trial is still counted as running: until `leave`."""
        return trial_id in self._live

    def leave(self, trial_id: str) -> None:
        """The trial has ended, whatever becomes of its cell."""
        cell_id = self._live.pop(trial_id, None)
        if cell_id is not None:
            self.release(cell_id)

    def release(self, cell_id: str) -> None:
        """The cell's trial has published its pre-training, or will not."""
        self._busy = {pretraining: by for pretraining, by in self._busy.items() if by != cell_id}

    def again(self, item: WorkItem, not_before: float = 0.0, epoch: int = 0) -> None:
        """Put an item in again. not_before: by time.monotonic; epoch: up to which it has reported."""
        known: Status = replace(item.status, epoch=max(item.status.epoch, epoch))
        self._again.insert(0, (replace(item, status=known), not_before))

    def attempts(self, item: WorkItem) -> Attempts:
        """What the cell has failed by in this sweep. One that was begun in micro-batches goes on in them."""
        given = self._options.setting
        parts = max(given.micro_batches, item.status.micro_batches)
        return self._attempts.setdefault(item.cell.cell_id, Attempts(replace(given, micro_batches=parts)))

    def unsettle(self, *cell_ids: str) -> None:
        """Files of these cells are about to be removed: they must not be trained until then."""
        self._unsettled.update(cell_ids)

    def settle(self, *cell_ids: str) -> None:
        """They are removed."""
        self._unsettled.difference_update(cell_ids)

    def _retried(self, now: float) -> WorkItem | None:
        for entry in self._again:
            item, not_before = entry
            if not_before <= now and self._may_start(item):
                self._again.remove(entry)
                return item
        return None

    def _may_start(self, item: WorkItem) -> bool:
        """Not while another trial trains the same cell or what this one can take over."""
        cell = item.cell
        involved = {cell.cell_id, cell.pretraining().cell_id} if cell.has_pretraining else {cell.cell_id}
        if cell.cell_id in self._live.values() or self._unsettled & involved:
            return False
        pretraining = self._pretraining(item)
        return pretraining is None or pretraining.cell_id not in self._busy

    def _pretraining(self, item: WorkItem) -> Cell | None:
        """The cell of the pre-training that a trial trains or takes over; None where it has none, or is past it, or its
        setting changes the result: a deviation stays with the cell that has it."""
        cell = item.cell
        if not cell.has_pretraining:
            return None
        needs_it = not item.is_past_first_phase and not self.attempts(item).setting.deviation
        return cell.pretraining() if needs_it or cell.protocol == "pretrain" else None

    def _room(self, now: float) -> int:
        if now - self._counted > PAUSE:  # a cluster may grow
            self._slots, self._counted = slots(self._options.setting), now
        return self._slots

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune saves its searcher for Tuner.restore, which this driver does not use."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing: the reporter says when a trial leaves."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as `save`: Tune pickles its searcher when it is set up."""
        return {}


def slots(setting: Setting) -> int:
    """Trials that the cluster can run at once, at least one."""
    count = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            fits = [has.get("CPU", 0) / setting.cpus]
            fits += [has.get("GPU", 0) / setting.gpus] if setting.gpus else []
            count += int(min(fits) + 1e-9)
    return max(1, count)
