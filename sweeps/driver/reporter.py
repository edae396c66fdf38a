"""Records what trials report in the account and MLflow, tries again what failed, and stops what has fallen silent."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import ActorDiedError
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from sqlalchemy.exc import OperationalError

from relvit.cell import Cell
from relvit.vocabulary import DATA_FINGERPRINT, MOST_NOTE, NOTE
from sweeps.account.account import FAILED, FINISHED, RUNNING, Account
from sweeps.account.failures import (
    CRASH,
    GPU_OOM,
    HOST_OOM,
    NODE_LOST,
    NOT_STARTED,
    STALLED,
    STORAGE,
    DiedError,
    Setting,
    classify,
    pause,
)
from sweeps.account.leases import Hold
from sweeps.account.work import WorkItem
from sweeps.cli.progress import duration
from sweeps.cli.watch import markdown, stand
from sweeps.driver.options import Options
from sweeps.driver.queue import TrialQueue
from sweeps.driver.source import Ending, Source, Verdict
from sweeps.driver.trainable import FAILURE, FAILURE_CLASS, NOTES, ROW, USAGE, WORKER
from sweeps.driver.watchdog import Budget, Watchdog
from sweeps.tracking.outbox import Outbox
from sweeps.tracking.spool import Spool
from sweeps.tracking.tracker import Tracker, is_passing

# How long a sweep that has ended waits for what MLflow and the storage have not taken yet; and one that was
# interrupted: Ray kills a job that was stopped after RAY_JOB_STOP_WAIT_TIME_S, 120 s as docs/cluster.md sets it.
TRACKING_PATIENCE, STORAGE_PATIENCE = 300.0, 3600.0
HURRIED_PATIENCE = 40.0
# Seconds between two looks at the account for the studies' pages; and so many times as long as a look takes.
SHOWN_EVERY, _SHOWN_SHARE = 60.0, 50.0

_HOW = {
    CRASH: "died",
    HOST_OOM: "ran out of the node's memory",
    GPU_OOM: "ran out of GPU memory",
    NODE_LOST: "lost its node",
    STALLED: "was stuck",
    STORAGE: "could not write its checkpoint",
    NOT_STARTED: "could not start",
}


class Reporter(Callback):
    """Hears of every trial in the driver; the only writer of MLflow and of the cells' states, through outboxes.

    note: tells a person something; hold: on the cells; once another driver has taken them over nothing is written, and
    what trials still report is dropped.
    """

    def __init__(
        self,
        source: Source,
        account: Account,
        tracker: Tracker,
        options: Options,
        note: Callable[[str], None],
        hold: Hold,
    ):
        self._source, self._account, self._tracker = source, account, tracker
        self._note, self._hold = note, hold
        self._tracking = Outbox("MLflow", is_passing, note, hold.may_not_write, tracker.writers)
        self._accounting = Outbox("the storage", may_pass, note, hold.may_not_write)
        self._watch = Watchdog()
        self._budget = Budget(options.hours, options.gpu_hours)
        self._said_spent = False
        self._verdicts: dict[str, Verdict] = {}
        self._stuck: set[str] = set()  # trials that were ended here
        self._rows = Spool()  # by cell and twice the epoch, and one for the result's
        self._peak: dict[str, int] = {}
        self._workers: dict[str, Mapping[str, str]] = {}  # by cell, the tags of who reported last
        self._begun: dict[str, WorkItem] = {}  # by cell, what has a run that is RUNNING
        self._shown_next = 0.0
        self._results: dict[str, dict[Cell, float]] = {study: {} for study in source.studies}
        self.queue = TrialQueue(source, account, options, hold.name, lambda: self.is_out_of_budget() or hold.is_lost)
        self.stopper = _Stopper(self)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for Tuner.restore, which this driver does not use."""
        return {}

    def is_out_of_budget(self) -> bool:
        """Whether hours or GPU-hours are spent."""
        return self._budget.is_spent()

    def enter(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Have the storage changed, after all that was entered before, and again while it does not take writes."""
        self._accounting.put(call, *arguments)

    def judge(self, trial_id: str, row: dict[str, Any]) -> bool:
        """Ask the source what becomes of a trial after a row, before the row is entered. Returns whether it stops."""
        if not self.queue.is_live(trial_id):
            return False
        if self._hold.is_lost:
            return True
        verdict = self._source.heard(self.queue.assignment(trial_id).item, row)
        self._verdicts[trial_id] = verdict
        return verdict is not Verdict.CONTINUE

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        assigned = self.queue.assignment(trial.trial_id)
        item, setting = assigned.item, assigned.setting
        self._watch.started(trial.trial_id, item.cell)
        self._budget.started(trial.trial_id, setting.gpus)
        self._source.started(item)
        if item.cell.cell_id not in self._begun:  # else it is started again after a failure
            self._begin(item, setting)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        for note in result.get(NOTES, ()):
            self._note(note)
        if self._hold.is_lost:
            return
        assigned = self.queue.assignment(trial.trial_id)
        item, cell = assigned.item, assigned.item.cell
        if FAILURE in result:
            self._leave(trial)
            self._failed(item, result[FAILURE_CLASS], result[FAILURE])
            return
        row, usage = result[ROW], result[USAGE]
        self._watch.reported(trial.trial_id, cell, row)
        if row["phase"] != "pretrain" or row["epoch"] == cell.pretrain_epochs:
            self.queue.release(cell.cell_id)
        # A trial that continues yields its rows again; those that a trial before it reported since stay until then.
        self._rows.put(cell.cell_id, 2 * row["epoch"] + (row["phase"] == "test"), row)
        used = int(usage.get("gpu_memory_bytes", 0))
        self._peak[cell.cell_id] = max(self._peak.get(cell.cell_id, 0), used)
        self._workers[cell.cell_id] = result[WORKER]
        if not item.is_foreign:
            self._tracker.keep(cell.cell_id, row, result[WORKER], usage)
            self._tracking.put_once(self._tracker.write, cell.cell_id, self._hold.may_not_write, lane=cell.cell_id)
        verdict = self._verdicts.pop(trial.trial_id, Verdict.CONTINUE)
        if verdict is Verdict.CONTINUE:
            return
        self._leave(trial)
        self._end(item, self._source.waits(item) if verdict is Verdict.WAIT else self._source.ended(item, row))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        if self._hold.is_lost:
            return
        self._leave(trial)
        stuck = trial.trial_id in self._stuck
        assigned = self.queue.assignment(trial.trial_id)
        item = assigned.item
        if item.cell.cell_id not in self._begun:  # Tune never said that it started
            self._begin(item, assigned.setting)
        self._failed(item, STALLED if stuck else classify(_error(trial)), failure_reason(trial))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """End trials that have fallen silent, enter what ended without a trial, stop all where the budget is spent."""
        if self._hold.is_lost:
            return
        silent = self._watch.silent()
        for trial in [trial for trial in trials if trial.trial_id in silent] if silent else ():
            cell = self.queue.assignment(trial.trial_id).item.cell
            self._note(f"{cell.cell_id} has reported nothing for {duration(self._watch.limit(trial.trial_id))}")
            if trial.temporary_state.ray_actor is not None:  # Tune then reports its death
                self._stuck.add(trial.trial_id)
                self._watch.started(trial.trial_id, cell)
                ray.kill(trial.temporary_state.ray_actor)
        self.enter_endings()
        if time.monotonic() >= self._shown_next:
            self._shown_next = time.monotonic() + SHOWN_EVERY
            self._tracking.put_once(self._show, lane="studies")
        if self._budget.is_spent() and self._begun and not self._said_spent:
            self._said_spent = True
            self._note("the budget is spent: what runs is stopped at its newest checkpoint")
            os.kill(os.getpid(), signal.SIGINT)

    def enter_endings(self) -> None:
        """Enter what has ended without a trial of this driver."""
        for ending in self._source.take_endings():
            if ending.taken_up:
                cell_id = ending.cell.cell_id
                # Another driver trained it.
                item = WorkItem(ending.cell, studies=ending.taken_up)
                begin = partial(self._tracker.begin, item, origin={})
                self._tracking.put(begin, lane=cell_id)
                self._track(self._tracker.log, cell_id, ending.rows)
            self._enter(ending, list(ending.rows))

    def stop(self) -> list[Cell]:
        """Enter the cells that have not ended as what they are: to be continued. Returns them."""
        for cell_id, item in self._begun.items():
            if not item.is_foreign:
                self._track(self._tracker.interrupt, cell_id, self._source.stop_reason(item))
        return self._source.stopped()

    def _show(self) -> None:
        """Let the page of each study in MLflow show where it stands."""
        begun = time.monotonic()
        for study, results in self._results.items():
            try:
                standing = stand(self._account, [study], results)
            except OSError:  # the storage is away, which the other outbox says
                return
            asof = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
            text = f"{markdown(standing, MOST_NOTE - 200)}\n\nAs of {asof}."
            self._tracker.show_study(study, text)
        self._shown_next = max(self._shown_next, begun + _SHOWN_SHARE * (time.monotonic() - begun))

    def close(self, is_hurried: bool = False) -> int:
        """Wait for all writes, less long where the sweep was interrupted. Returns how many MLflow has not taken; the
        account has them."""
        if self._accounting.close(HURRIED_PATIENCE if is_hurried else STORAGE_PATIENCE):
            self._note("the storage did not accept every write; run the same command again")
        self._tracking.put(self._show, lane="studies")
        return self._tracking.close(HURRIED_PATIENCE if is_hurried else TRACKING_PATIENCE)

    def _begin(self, item: WorkItem, setting: Setting) -> None:
        self._begun[item.cell.cell_id] = item
        if not item.is_foreign:
            mark = partial(self._account.mark, item.cell, RUNNING, micro_batches=setting.micro_batches)
            self._accounting.put(mark)
            self._tracking.put(self._tracker.begin, item, setting.deviation, lane=item.cell.cell_id)
            if item.tags:
                self._track(self._tracker.tag, item.cell.cell_id, item.tags)

    def _track(self, call: Callable[..., Any], cell_id: str, *arguments: Any) -> None:
        """Have MLflow told of a cell, after all that it was told of it before."""
        self._tracking.put(call, cell_id, *arguments, lane=cell_id)

    def _leave(self, trial: Trial) -> None:
        self.queue.leave(trial.trial_id)
        self._watch.ended(trial.trial_id)
        self._budget.ended(trial.trial_id)

    def _failed(self, item: WorkItem, failure: str, reason: str) -> None:
        """Try again by the rule of the failure's class, or enter the cell as failed."""
        cell, attempts = item.cell, self.queue.attempts(item)
        before = attempts.setting
        times = attempts.failures[failure] + 1
        reported = self._rows.get(cell.cell_id)
        if not attempts.again(failure, cell.batch_size):
            reason = f"{reason} (for the {times}th time)" if times > 1 else reason
            last = reported[-1][1] if reported else {}
            self._end(item, self._source.ended(item, last, failure, reason))
            return
        setting = attempts.setting
        what = f" with {_differing(before, setting)}" if setting != before else ""
        self._note(f"{cell.cell_id} {_HOW[failure]} and is started again from its newest checkpoint{what}: {reason}")
        if setting.deviation != before.deviation:
            self._begin(item, setting)
        epoch = reported[-1][1]["epoch"] if reported else 0
        self.queue.again(item, time.monotonic() + pause(failure, times), epoch)

    def _end(self, item: WorkItem, ending: Ending) -> None:
        cell_id = item.cell.cell_id
        self._begun.pop(cell_id, None)
        rows = [row for _, row in self._rows.get(cell_id)]
        self._rows.drop(cell_id)
        if item.is_foreign:
            return
        worker = dict(self._workers.pop(cell_id, {}))
        images = worker.pop(DATA_FINGERPRINT, "")
        details: dict[str, Any] = {"micro_batches": self.queue.attempts(item).setting.micro_batches}
        if rows:
            details["origin"] = self._tracker.origin | worker | ({NOTE: item.note} if item.note else {})
        if ending.state == FINISHED:
            details |= {"peak_gpu_bytes": self._peak[cell_id], "data_fingerprint": images}
        self._enter(ending, rows, **details)

    def _enter(self, ending: Ending, rows: list[dict[str, Any]], **details: Any) -> None:
        """Tell the account, then MLflow. rows: empty where a cell failed before it reported: what is known of an
        earlier start stays."""
        cell, cell_id = ending.cell, ending.cell.cell_id
        if rows:
            self._accounting.put(self._account.keep_history, cell, rows)
        if ending.state:
            mark = partial(self._account.mark, cell, ending.state, ending.reason, failure=ending.failure, **details)
            self._accounting.put(mark)
        if ending.then:
            cells = [cell_id, cell.pretraining().cell_id] if cell.has_pretraining else [cell_id]
            self.queue.unsettle(*cells)
            for call in ending.then:
                self._accounting.put(call)
            self._accounting.put(self.queue.settle, *cells)
        if ending.state == FINISHED:
            self._track(self._tracker.finish, cell_id, self._account.folder(cell))
        elif ending.state == FAILED:
            self._track(self._tracker.fail, cell_id, ending.reason, ending.failure)
        else:
            self._track(self._tracker.interrupt, cell_id, ending.reason)
        if ending.tags:
            self._track(self._tracker.tag, cell_id, dict(ending.tags))


class _Stopper(Stopper):
    """Takes each row to the reporter before Tune's callbacks hear of it: only here can a trial be stopped with it."""

    def __init__(self, reporter: Reporter):
        self._reporter = reporter

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return ROW in result and self._reporter.judge(trial_id, result[ROW])

    def stop_all(self) -> bool:
        """Never: the queue is closed instead."""
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as the reporter."""
        return {}


def may_pass(error: Exception) -> bool:
    """Whether a write to the storage, or to a search's database in it, may succeed later. One that is denied will
    not."""
    causes = [each for each in (error, error.__cause__) if isinstance(each, (OSError, OperationalError))]
    return bool(causes) and not any(isinstance(each, PermissionError) for each in causes)


def failure_reason(trial: Trial) -> str:
    """The last failure of a trial in one line: a traceback ends with it. An actor's death begins with what says
    nothing, and goes on with what the actor was; then comes what became of it, and what might have been the cause."""
    text = Path(trial.error_file).read_text().rpartition("Failure # ")[2]
    lines = text.strip().splitlines()[1:] or [text]
    if any("Traceback" in line or line.startswith("  File ") for line in lines):
        return lines[-1]
    said = [line for line in lines if not line.startswith("\t") and ActorDiedError.BASE_ERROR_MSG not in line]
    return (said or lines)[0].partition(" Some common causes")[0]


def _error(trial: Trial) -> BaseException:
    """What ended the trial. Tune keeps what a trial raised and the death of its actor as objects, and others, among
    them the end by Ray's memory monitor, as text."""
    if trial.pickled_error_file is None:
        return DiedError(failure_reason(trial))
    return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())


def _differing(before: Setting, after: Setting) -> str:
    if after.micro_batches != before.micro_batches:
        return f"each batch in {after.micro_batches} parts"
    return f"{after.gpus:g} GPU for itself"
