"""Runs searches as Ray Tune trials: the cells they ask for are trained without a look at the test split, and account,
MLflow, the Optuna storage and a person are told what became of each.

A trial that was stopped early or trained to its end is in no state that a table takes: the account says pruned or
searched, MLflow KILLED with the reason, and the run carries `search`, `trial` and `trial_state`.
"""

import math
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from optuna.trial import FrozenTrial, TrialState
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from rich.console import Console

from relvit.cell import Cell
from sweeps.account.account import FAILED, FINISHED, PRUNED, RUNNING, SEARCHED, Account
from sweeps.account.failures import CRASH, RETRIES, Setting
from sweeps.cli.progress import duration
from sweeps.driver.driver import TRACKING_PATIENCE, Options, failure_reason, tune_trials
from sweeps.driver.trainable import FAILURE, FAILURE_CLASS, NOTES, ROW, TRIAL, USAGE, WORKER, trial_config
from sweeps.search.search import Asked, Search, forked_epochs
from sweeps.tracking.outbox import Outbox
from sweeps.tracking.tracker import Tracker, is_passing

TRIAL_STATE = "trial_state"  # a tag of a trial's run: running, complete, pruned or fail


@dataclass
class SearchOutcome:
    """What became of the searches: trials that ended now, by Optuna's state; cells that were interrupted."""

    ended: dict[str, int] = field(default_factory=dict)
    interrupted: list[Cell] = field(default_factory=list)
    seconds: float = 0.0


def trials_tag(name: str) -> str:
    """The study that a search's trials are tagged with: one of their own, so that no table takes them for a study's."""
    return f"{name}-trials"


def run_searches(
    searches: list[Search],
    account: Account,
    tracker: Tracker,
    members: dict[str, str],
    console: Console,
    options: Options,
) -> SearchOutcome:
    """Search until every budget is spent or the user interrupts, on the connected Ray cluster.

    The searches share its slots, the first that has a trial to give goes first. members: the tracker's, to which each
    trial's cell is added.
    """
    queue = _SearchQueue(searches, account, options)
    reporter = _SearchReporter(queue, account, tracker, members, console)
    started = time.monotonic()
    reporter.enter_left_out()
    for search in searches:
        search.start_clock()
    try:
        tune_trials(queue, reporter, samples=-1, retries=RETRIES[CRASH], stop=_SearchStop(queue))
    finally:
        interrupted = reporter.interrupt_rest()
        reporter.close()
    return SearchOutcome(reporter.ended, interrupted, time.monotonic() - started)


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


class _SearchQueue(Searcher):
    """Asks the searches for trials, no more than can run: what is drawn early is drawn without what runs now."""

    def __init__(self, searches: list[Search], account: Account, options: Options):
        super().__init__()
        self.searches, self._account, self._options = searches, account, options
        self.live: dict[str, Asked] = {}  # by Tune's trial id
        self._pretraining: dict[Cell, Asked] = {}  # who trains it now
        self._slots, self._counted = 1, -1e9

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The configuration of the next trial, None while there is no room or all must wait, or Searcher.FINISHED."""
        if time.monotonic() - self._counted > 10:  # a cluster may grow
            self._slots, self._counted = slots(self._options.setting), time.monotonic()
        if len(self.live) >= self._slots:
            return None
        for search in self.searches:
            asked = search.next(self._may_start)
            if asked is not None:
                self.live[trial_id] = asked
                return {TRIAL: self._config(asked)}
        # Tune asks no more after it heard that a searcher has finished.
        return Searcher.FINISHED if all(search.finished() for search in self.searches) else None

    def _may_start(self, cell: Cell) -> bool:
        """Not while another trial trains what this one can take over, nor while another search trains this cell."""
        if any(asked.cell == cell for asked in self.live.values()):
            return False
        return not cell.has_pretraining or cell.pretraining() not in self._pretraining

    def _config(self, asked: Asked) -> dict[str, Any]:
        cell = asked.cell
        shared = cell.pretraining() if cell.has_pretraining else None
        if shared is not None and not self._account.is_published(shared):
            self._pretraining[shared] = asked
        options = self._options
        return trial_config(
            cell,
            self._account.folder(cell),
            self._account.folder(shared) if shared is not None else None,
            options.data_root.absolute(),
            options.setting,
            options.checkpoints,
            test=False,
            stop_after=asked.stop_after,
            forked=self._account.folder(asked.forked) if asked.forked else None,
        )

    def release(self, asked: Asked) -> None:
        """Its first phase is published, or will not be."""
        self._pretraining = {shared: by for shared, by in self._pretraining.items() if by is not asked}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing: the reporter settles a trial when it hears of its end."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the database holds the searches."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as `save`: Tune pickles its searcher when it is set up."""
        return {}


class _SearchStop(Stopper):
    """Takes each epoch to its search and ends the trial if the search says so."""

    def __init__(self, queue: _SearchQueue):
        self._queue = queue

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        asked = self._queue.live.get(trial_id)
        if asked is None or ROW not in result or asked.state is not None:
            return False
        return asked.search.report(asked, result[ROW])

    def stop_all(self) -> bool:
        """Never: an exhausted budget lets running trials end."""
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as the queue."""
        return {}


class _SearchReporter(Callback):
    """Hears of every trial in the driver, after the stopper did; writes MLflow, the account and the searches' ends."""

    def __init__(
        self, queue: _SearchQueue, account: Account, tracker: Tracker, members: dict[str, str], console: Console
    ):
        self._queue, self._account, self._tracker = queue, account, tracker
        self._members, self._console = members, console
        self._tracking = Outbox("MLflow", is_passing, lambda text: self._say(f"note: {text}"))
        # Cells that an ablation has finished: the search reads their rows, and leaves their account and runs alone.
        self._foreign: set[str] = set()
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self.ended: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as the queue."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        asked = self._queue.live[trial.trial_id]
        asked.again()
        cell_id = asked.cell.cell_id
        self._rows[cell_id] = []
        if self._account.status(asked.cell).state == FINISHED:
            self._foreign.add(cell_id)
            return
        self._account.mark(asked.cell, RUNNING)
        self._members[cell_id] = trials_tag(asked.search.name)
        self._tracking.put(self._tracker.begin, asked.cell)
        self._tag(asked.search, asked.number, cell_id, "running")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        number = self._queue.live[trial.trial_id].number
        self._say(f"note: trial {number} died and is started again from its newest checkpoint: {failure_reason(trial)}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        asked = self._queue.live[trial.trial_id]
        for note in result.get(NOTES, ()):
            self._say(f"note: {note}")
        if FAILURE in result:
            self._end(trial, result[FAILURE], result[FAILURE_CLASS])
            return
        row = result[ROW]
        self._rows[asked.cell.cell_id].append(row)
        if row["phase"] != "pretrain" or row["epoch"] == asked.cell.pretrain_epochs:
            self._queue.release(asked)
        if asked.cell.cell_id not in self._foreign:
            now = int(time.time() * 1000)
            self._tracking.put(self._tracker.log, asked.cell.cell_id, row, result[WORKER], result[USAGE], now)
        if asked.state is not None:
            self._end(trial)
        elif asked.waits:
            self._wait(trial)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Enter the members of a population that were replaced."""
        for search in self._queue.searches:
            for trial in search.take_outcomes():
                self._enter(search, trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(trial, f"died {RETRIES[CRASH] + 1} times; the last time: {failure_reason(trial)}", CRASH)

    def interrupt_rest(self) -> list[Cell]:
        """Enter the trials that have not ended as what they are: to be continued. Returns their cells."""
        cells = [asked.cell for asked in self._queue.live.values()]
        for asked in self._queue.live.values():
            asked.search.keep_time()
            if asked.cell.cell_id not in self._foreign:
                reason = f"search {asked.search.name} was stopped"
                self._tracking.put(self._tracker.interrupt, asked.cell.cell_id, reason)
        return cells

    def close(self) -> None:
        """Wait for MLflow to take what it has not taken yet."""
        left = self._tracking.close(TRACKING_PATIENCE)
        if left:
            self._say(f"note: MLflow did not take {left} writes about trials; the Optuna storage has them all")

    def _tag(self, search: Search, number: int, cell_id: str, state: str, **more: str) -> None:
        tags = {"search": search.name, "trial": str(number), TRIAL_STATE: state, **more}
        self._tracking.put(self._tracker.tag, cell_id, tags)

    def enter_left_out(self) -> None:
        """Enter trials that an earlier driver decided and was killed before account or MLflow had heard of it all."""
        held = self._account.seem_held()  # by an ablation that is at work
        for search in self._queue.searches:
            ended = {search.cell_of(trial): trial for trial in search.trials if _has_own_outcome(trial)}
            for cell, status in self._account.statuses(ended).items():
                told = self._tracker.tag_of(cell.cell_id, TRIAL_STATE) == ended[cell].state.name.lower()
                if status.state == FINISHED or cell.cell_id in held or (told and status.state != RUNNING):
                    continue
                self._members[cell.cell_id] = trials_tag(search.name)
                self._tracking.put(self._tracker.begin, cell)
                for row in self._account.history(cell):
                    self._tracking.put(self._tracker.log, cell.cell_id, row)
                self._enter(search, ended[cell], said=False)

    def _release(self, trial: Trial) -> Asked:
        """Take a trial out of the queue and keep its rows, before the search decides what becomes of it."""
        asked = self._queue.live.pop(trial.trial_id)
        self._queue.release(asked)
        rows = self._rows.pop(asked.cell.cell_id)
        if asked.cell.cell_id not in self._foreign:
            self._account.keep_history(asked.cell, rows)
        return asked

    def _wait(self, trial: Trial) -> None:
        """A member of a population has reached the end of its generation."""
        asked = self._release(trial)
        asked.search.wait(asked)
        if asked.cell.cell_id not in self._foreign:
            reason = f"waits after epoch {asked.epoch} for the others of search {asked.search.name}"
            self._tracking.put(self._tracker.interrupt, asked.cell.cell_id, reason)

    def _end(self, trial: Trial, failure: str = "", failure_class: str = "") -> None:
        asked = self._release(trial)
        asked.search.settle(asked, failure)
        self._enter(asked.search, asked.search.trials[asked.number], failure, failure_class)

    def _enter(
        self, search: Search, trial: FrozenTrial, failure: str = "", failure_class: str = "", said: bool = True
    ) -> None:
        """Tell account, MLflow and the person what became of a trial."""
        cell, state = search.cell_of(trial), trial.state
        failure = failure or trial.user_attrs.get("reason", "")
        epoch = trial.user_attrs["epochs"] + forked_epochs(trial, cell)
        done = f"epoch {epoch} of {cell.total_epochs}"
        reason, account_state = {
            TrialState.COMPLETE: (f"trained for search {search.name}, not tested", SEARCHED),
            TrialState.PRUNED: (f"pruned after {done} by search {search.name}", PRUNED),
            TrialState.FAIL: (failure, FAILED),
        }[state]
        if cell.cell_id not in self._foreign:
            self._account.mark(cell, account_state, reason, failure=failure_class)
            end = partial(self._tracker.fail, failure=failure_class) if failure else self._tracker.interrupt
            self._tracking.put(end, cell.cell_id, reason)
            self._tag(search, trial.number, cell.cell_id, state.name.lower(), stopped_epoch=str(epoch))
            if not failure:  # what was decided is not trained on
                for checkpoint in list(self._account.folder(cell).glob("*-*.pt")):
                    checkpoint.unlink(missing_ok=True)
                if cell.has_pretraining and search.has_own_pretrainings:
                    self._account.drop_pretraining(cell.pretraining())
        if not said:
            return
        self.ended[state.name.lower()] = self.ended.get(state.name.lower(), 0) + 1
        best = search.best()
        standing = f"   best {best.values[0]:.2f} %, trial {best.number}" if best else ""
        value = trial.values[0] if trial.values else max(trial.intermediate_values.values(), default=math.nan)
        outcome = {
            TrialState.COMPLETE: f"validation accuracy {value:5.2f} %",
            TrialState.PRUNED: f"validation accuracy {value:5.2f} %, pruned after {done}",
            TrialState.FAIL: f"FAILED: {failure}",
        }[state]
        ended = sum(trial.state.is_finished() for trial in search.trials)
        total = f"/{search.budget.trials}" if search.budget.trials else ""
        seconds = duration(trial.user_attrs["training_seconds"])
        self._say(f"{search.name} [{ended}{total}] trial {trial.number}  {outcome}  {seconds}{standing}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _has_own_outcome(trial: FrozenTrial) -> bool:
    """Whether a trial has ended with a training of its own."""
    return trial.state.is_finished() and "epochs" in trial.user_attrs
