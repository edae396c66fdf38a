"""Searches as a source of work: their trials are trained without a look at the test split.

A trial that was stopped early or trained to its end is in no state that a table takes: the account says pruned or
searched, MLflow KILLED with the reason, and the run carries `search`, `trial` and `trial_state`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from relvit.cell import Cell
from relvit.files import Location
from relvit.vocabulary import SEARCH, STOPPED_EPOCH, TRIAL, TRIAL_STATE
from sweeps.account.account import FAILED, FINISHED, PRUNED, RUNNING, SEARCHED, Account
from sweeps.account.work import WorkItem
from sweeps.cli.progress import duration
from sweeps.driver.source import Ending, Source, Verdict
from sweeps.search.search import ActiveTrial, Search, forked_epochs
from sweeps.tracking.naming import note, repeat_command
from sweeps.tracking.tracker import Tracker


class SearchSource(Source):
    """The trials of several searches; the first that has one to give goes first. say: prints a line."""

    draws_late = True  # what is drawn early is drawn without what runs now

    def __init__(self, searches: list[Search], account: Account, say: Callable[[str], None]):
        self._searches, self._account, self._say = searches, account, say
        self._active: dict[str, ActiveTrial] = {}  # by cell
        self._foreign: set[str] = set()
        self._endings: list[Ending] = []

    def begin(self, write: Callable[..., None]) -> None:
        for search in self._searches:
            search.start(write)

    def next(self, may_start: Callable[[WorkItem], bool]) -> WorkItem | None:
        for search in self._searches:
            items: dict[str, WorkItem] = {}

            def may(cell: Cell, items: dict[str, WorkItem] = items) -> bool:
                items[cell.cell_id] = WorkItem(cell, self._account.status(cell), test=False)
                return may_start(items[cell.cell_id])

            active = search.next(may)
            if active is None:
                continue
            cell_id = active.cell.cell_id
            self._active[cell_id] = active
            if items[cell_id].is_foreign:
                self._foreign.add(cell_id)
            else:
                self._foreign.discard(cell_id)
            return replace(
                items[cell_id],
                studies=(trials_study(search.name),),
                stop_after=active.stop_after,
                forked=active.forked,
                tags=_tags(search, active.number, "running"),
                name=f"trial {active.number} · {search.name}",
                note=note(active.cell, repeat_command()),
            )
        return None

    def is_done(self) -> bool:
        return all(search.finished() for search in self._searches)

    def started(self, item: WorkItem) -> None:
        self._active[item.cell.cell_id].restart()

    def heard(self, item: WorkItem, row: dict[str, Any]) -> Verdict:
        active = self._active[item.cell.cell_id]
        if not active.search.report(active, row):
            return Verdict.CONTINUE
        return Verdict.WAIT if active.waits else Verdict.STOP

    def waits(self, item: WorkItem) -> Ending:
        """A member of a population has reached the end of its generation."""
        active = self._active.pop(item.cell.cell_id)
        search = active.search
        search.wait(active)
        return Ending(item.cell, reason=f"waits after epoch {active.epoch} for the others of search {search.name}")

    def ended(self, item: WorkItem, row: dict[str, Any], failure: str = "", reason: str = "") -> Ending:
        active = self._active.pop(item.cell.cell_id)
        search = active.search
        search.settle(active, reason)
        trial = search.trials[active.number]
        self._say(_line(search, trial))
        return self._ending(search, trial, failure)

    def take_endings(self) -> Iterable[Ending]:
        """Members of a population that were replaced, and what `enter_left_out` found."""
        endings, self._endings = self._endings, []
        for search in self._searches:
            for trial in search.take_outcomes():
                self._say(_line(search, trial))
                ending = self._ending(search, trial)
                if ending.cell.cell_id not in self._foreign:
                    endings.append(ending)
        return endings

    def stopped(self) -> list[Cell]:
        for search in self._searches:
            search.keep_time()
        return [active.cell for active in self._active.values()]

    def stop_reason(self, item: WorkItem) -> str:
        return f"search {self._active[item.cell.cell_id].search.name} was stopped"

    def enter_left_out(self, tracker: Tracker) -> None:
        """Enter trials that an earlier driver decided and was killed before account or MLflow had heard of it all."""
        held = self._account.apparently_held()  # by an ablation that is running
        for search in self._searches:
            decided = {search.cell_of(trial): trial for trial in search.trials if _has_own_outcome(trial)}
            for cell, status in self._account.statuses(decided).items():
                known = tracker.tag_of(cell.cell_id, TRIAL_STATE) == decided[cell].state.name.lower()
                if status.state == FINISHED or cell.cell_id in held or (known and status.state != RUNNING):
                    continue
                rows = tuple(self._rows(cell))
                self._endings.append(self._ending(search, decided[cell], taken_up=trials_study(search.name), rows=rows))

    def _rows(self, cell: Cell) -> Iterable[dict[str, Any]]:
        """What the cell has reported: a checkpoint that is still there knows more than the account does."""
        folder = self._account.folder(cell)
        if any(True for _ in folder.glob("*-*.pt")):
            from relvit import checkpoint

            state = checkpoint.load_newest(folder, "cpu", self._say)
            if state is not None:
                return state["history"]
        return self._account.history(cell)

    def _ending(
        self,
        search: Search,
        trial: FrozenTrial,
        failure: str = "",
        taken_up: str = "",
        rows: tuple[dict[str, Any], ...] = (),
    ) -> Ending:
        """What account and MLflow are told of a trial. What was decided is not trained on: its checkpoints go."""
        cell = search.cell_of(trial)
        epoch = _last_epoch(trial, cell)
        reason, state = {
            TrialState.COMPLETE: (f"trained for search {search.name}, not tested", SEARCHED),
            TrialState.PRUNED: (f"pruned after epoch {epoch} of {cell.total_epochs} by search {search.name}", PRUNED),
            TrialState.FAIL: (trial.user_attrs.get("reason", ""), FAILED),
        }[trial.state]
        then: list[Callable[[], Any]] = []
        if state != FAILED:
            then.append(partial(self._remove_checkpoints, cell))
            if cell.has_pretraining and search.has_own_pretrainings:
                then.append(partial(self._account.drop_pretraining, cell.pretraining()))
        tags = {**_tags(search, trial.number, trial.state.name.lower()), STOPPED_EPOCH: str(epoch)}
        studies = (taken_up,) if taken_up else ()
        return Ending(cell, state, reason, failure, tuple(tags.items()), tuple(then), studies, rows)

    def _remove_checkpoints(self, cell: Cell) -> None:
        checkpoints: list[Location] = [*self._account.folder(cell).glob("*-*.pt")]
        for path in checkpoints:
            path.unlink(missing_ok=True)


def trials_study(name: str) -> str:
    """The study that a search's trials are tagged with: one of their own, so that no table takes them for a study's."""
    return f"{name}-trials"


def _tags(search: Search, number: int, state: str) -> dict[str, str]:
    return {SEARCH: search.name, TRIAL: str(number), TRIAL_STATE: state}


def _last_epoch(trial: FrozenTrial, cell: Cell) -> int:
    """The epoch over all phases that the trial ended with."""
    return trial.user_attrs["epochs"] + forked_epochs(trial, cell)


def _line(search: Search, trial: FrozenTrial) -> str:
    """What became of a trial, for a person."""
    best, cell = search.best(), search.cell_of(trial)
    standing = f"   best {best.values[0]:.2f} %, trial {best.number}" if best else ""
    value = trial.values[0] if trial.values else max(trial.intermediate_values.values(), default=math.nan)
    outcome = {
        TrialState.COMPLETE: f"validation accuracy {value:5.2f} %",
        TrialState.PRUNED: f"validation accuracy {value:5.2f} %, pruned after epoch {_last_epoch(trial, cell)} of "
        f"{cell.total_epochs}",
        TrialState.FAIL: f"FAILED: {trial.user_attrs.get('reason', '')}",
    }[trial.state]
    ended = sum(trial.state.is_finished() for trial in search.trials)
    total = f"/{search.budget.trials}" if search.budget.trials else ""
    seconds = duration(trial.user_attrs["training_seconds"])
    return f"{search.name} [{ended}{total}] trial {trial.number}  {outcome}  {seconds}{standing}"


def _has_own_outcome(trial: FrozenTrial) -> bool:
    """Whether a trial has ended with a training of its own."""
    return trial.state.is_finished() and "epochs" in trial.user_attrs
