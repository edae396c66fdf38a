"""Runs the cells of a plan as Ray Tune trials and keeps account, MLflow and a person informed."""

import logging
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune import Callback, PlacementGroupFactory, Stopper
from ray.tune.experiment import Trial
from ray.tune.search import Searcher
from rich.console import Console

from relvit.cell import Cell
from sweeps.account.account import FAILED, RUNNING, Account, Status
from sweeps.account.failures import (
    CRASH,
    GPU_OOM,
    HOST_OOM,
    NODE_LOST,
    STALLED,
    STORAGE,
    Attempts,
    DiedError,
    Setting,
    classify,
    pause,
)
from sweeps.cli.progress import SweepProgress, duration
from sweeps.driver.queue import CellQueue, Entry
from sweeps.driver.trainable import (
    FAILURE,
    FAILURE_CLASS,
    NOTES,
    ROW,
    TRIAL,
    USAGE,
    WORKER,
    CellTrainable,
    Checkpoints,
    trial_config,
)
from sweeps.tracking.outbox import Outbox
from sweeps.tracking.tracker import Tracker, is_passing

# Tune logs the traceback of each failure; the reporter below says it in a line, and enters it with the cell.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

# A trial that reports nothing for so many times the median epoch of its kind, and for at least so many seconds, is
# taken for stuck. The first report of a trial waits for its process, its data and torch as well. Until an epoch of the
# kind was seen, nothing is known of how long one takes; hours then tell a slow one from one that never ends.
STALL_FACTOR, STALL_SECONDS, FIRST_REPORT_SECONDS, UNKNOWN_SECONDS = 20.0, 120.0, 900.0, 6 * 3600.0

# How long a finished sweep waits for MLflow to take what it has not taken yet. The account holds it in any case.
TRACKING_PATIENCE, STORAGE_PATIENCE = 300.0, 3600.0


@dataclass(frozen=True)
class Options:
    """How cells are run. retry: classes of failure (account/failures.py); hours, gpu_hours: the budget, None for no
    end; keep_pretrainings: whether the weights of a pre-training stay when no cell of the plan needs them any more."""

    setting: Setting
    data_root: Path
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    hours: float | None = None
    gpu_hours: float | None = None
    keep_pretrainings: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a sweep: cells finished now, reasons by failed cell, cells that were interrupted; whether the
    budget stopped it; how many writes MLflow did not take."""

    finished: int
    failed: dict[Cell, str]
    interrupted: list[Cell]
    seconds: float
    training_seconds: float
    out_of_budget: bool = False
    untracked: int = 0


def run(
    cells: list[Cell],
    account: Account,
    tracker: Tracker,
    console: Console,
    options: Options,
    is_lost: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Train the cells on the connected Ray cluster. Returns when all have ended or the user has interrupted.

    is_lost: whether another driver has taken the cells over; their runs and states are then left to it.
    """
    entries = [_entry(cell, account, options, _setting(account.status(cell), options)) for cell in cells]
    started = time.monotonic()
    work = _Work(cells, account)
    with SweepProgress(console, cells, work.epochs) as progress:
        reporter = _Reporter(account, tracker, progress, cells, work, options, is_lost)
        queue = CellQueue(entries, published=account_has, is_closed=reporter.is_out_of_budget)
        reporter.queue = queue
        reporter.drop_unused_pretrainings()
        try:
            tune_trials(queue, reporter, samples=-1, retries=0)
        finally:
            interrupted = reporter.interrupt_rest()
            reporter.drop_unused_pretrainings()
            untracked = reporter.close()
    return Outcome(
        finished=reporter.finished,
        failed=reporter.failed,
        interrupted=interrupted,
        seconds=time.monotonic() - started,
        training_seconds=reporter.training_seconds,
        out_of_budget=bool(interrupted) and reporter.is_out_of_budget(),
        untracked=untracked,
    )


def tune_trials(
    searcher: Searcher, reporter: Callback, *, samples: int, retries: int, stop: Stopper | None = None
) -> None:
    """Let Tune run what the searcher suggests, at most `samples` trials (-1: until it has no more), to their end.

    retries: how often Tune itself starts a trial that died again; stop: asked after each report whether the trial is
    to end with it. Returns early where the user interrupts.
    """
    # Tune wants a folder for its own files; nothing in it outlives the sweep.
    scratch = tempfile.mkdtemp(prefix="relvit-tune-")
    tuner = tune.Tuner(
        tune.with_resources(CellTrainable, _resources),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=samples,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=str,
        ),
        run_config=tune.RunConfig(
            storage_path=scratch,
            name="tune",
            verbose=0,
            stop=stop,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[reporter],
            failure_config=tune.FailureConfig(max_failures=retries),
        ),
    )
    previous = signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        tuner.fit()
    finally:
        signal.signal(signal.SIGTERM, previous)
        shutil.rmtree(scratch, ignore_errors=True)


def _resources(config: dict[str, Any]) -> PlacementGroupFactory:
    """What a trial occupies: a cell that ran out of GPU memory gets more than the others."""
    return PlacementGroupFactory([{"CPU": config[TRIAL]["cpus"], "GPU": config[TRIAL]["gpus"]}])


def _setting(status: Status, options: Options) -> Setting:
    """As asked for; a cell that was begun in micro-batches goes on in them."""
    given = options.setting
    return Setting(given.cpus, given.gpus, max(given.micro_batches, status.micro_batches))


def _entry(cell: Cell, account: Account, options: Options, setting: Setting, not_before: float = 0.0) -> Entry:
    folder = account.folder(cell.pretraining()) if cell.has_pretraining else None
    alone = cell.protocol == "pretrain"
    # A deviation stays with the cell that has it: its pre-training is neither taken over nor left to others.
    shared = None if alone or setting.deviation else folder
    config = trial_config(
        cell, account.folder(cell), shared, options.data_root.absolute(), setting, options.checkpoints
    )
    # A cell that is past its first phase, or has none, neither waits for a pre-training nor is waited for.
    idle = not alone and (shared is None or _is_past_first_phase(cell, account))
    return Entry({TRIAL: config}, None if idle else folder, not_before)


def _is_past_first_phase(cell: Cell, account: Account) -> bool:
    """By the cell's checkpoints; False while the storage cannot say, which costs no more than some waiting."""
    try:
        return account.status(cell).epoch >= cell.pretrain_epochs
    except OSError:
        return False


def account_has(pretrained: Any) -> bool:
    """Whether a folder holds a finished pre-training."""
    return any(True for _ in pretrained.glob("final-*.pt"))


class _Work:
    """Which epochs are there to train: those after each cell's checkpoint, and each shared first phase once."""

    def __init__(self, cells: list[Cell], account: Account):
        self._left = {key for cell in cells for key in map(partial(self._key, cell), range(1, cell.total_epochs + 1))}
        for cell in cells:
            done = account.status(cell).epoch
            if cell.has_pretraining and account.is_published(cell.pretraining()):
                done = max(done, cell.pretrain_epochs)
            self._left -= {self._key(cell, epoch) for epoch in range(1, done + 1)}
        self.epochs = len(self._left)

    def done(self, cell: Cell, epoch: int) -> bool:
        """Strike an epoch off; False if it is not new: trained before, or by another cell that shares it."""
        key = self._key(cell, epoch)
        new = key in self._left
        self._left.discard(key)
        return new

    def _key(self, cell: Cell, epoch: int) -> tuple[str, int]:
        in_first_phase = cell.has_pretraining and epoch <= cell.pretrain_epochs
        return (cell.pretraining() if in_first_phase else cell).cell_id, epoch


def _as_interrupt(signum: int, frame: FrameType | None) -> None:
    """A polite end is an interrupt: Tune stops its trials, and the cells are entered as interrupted."""
    os.kill(os.getpid(), signal.SIGINT)


def _cell(trial: Trial) -> Cell:
    return Cell(**trial.config[TRIAL]["cell"])


def _kind(cell: Cell, epoch: int) -> tuple:
    """What epochs have in common that take about equally long."""
    first = cell.has_pretraining and epoch <= cell.pretrain_epochs
    dataset = cell.pretrain_dataset if first else cell.dataset
    return (dataset, cell.train_images, cell.backbone, cell.image_size, cell.precision, first)


def _trial_name(trial: Trial) -> str:
    return _cell(trial).cell_id


def failure_reason(trial: Trial) -> str:
    """The last failure of a trial in one line: a traceback ends with it, an actor's death begins with it."""
    text = Path(trial.error_file).read_text().rpartition("Failure # ")[2]
    lines = text.strip().splitlines()[1:] or [text]
    return lines[-1] if any("Traceback" in line or line.startswith("  File ") for line in lines) else lines[0]


def _error(trial: Trial) -> BaseException:
    """What ended the trial. Tune keeps what a trial raised and the death of its actor as objects, and others, among
    them the end by Ray's memory monitor, as text."""
    if trial.pickled_error_file is None:
        return DiedError(failure_reason(trial))
    return cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())


class _Reporter(Callback):
    """Hears of every trial in the driver; the only writer of MLflow and of the cells' states, through outboxes."""

    def __init__(
        self,
        account: Account,
        tracker: Tracker,
        progress: SweepProgress,
        cells: list[Cell],
        work: _Work,
        options: Options,
        is_lost: Callable[[], bool],
    ):
        self._work, self._options = work, options
        self._account, self._tracker, self._progress = account, tracker, progress
        self._tracking = Outbox("MLflow", is_passing, progress.note, is_lost)
        self._accounting = Outbox("the storage", lambda error: isinstance(error, OSError), progress.note, is_lost)
        self._pending = dict.fromkeys(cells)
        self._statuses = account.statuses(cells)
        self._attempts = {cell: Attempts(_setting(status, options)) for cell, status in self._statuses.items()}
        self._users = account.pretraining_users()
        self._watch = _Watchdog()
        self._budget = _Budget(options)
        self._history: dict[Cell, dict[tuple[int, bool], dict[str, Any]]] = {}  # rows by epoch, and whether of test
        self._peak: dict[Cell, int] = {}
        self._running: set[Cell] = set()
        self.queue: CellQueue
        self.finished = 0
        self.failed: dict[Cell, str] = {}
        self.training_seconds = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for Tuner.restore, which this engine does not use."""
        return {}

    def is_out_of_budget(self) -> bool:
        """Whether hours or GPU-hours are spent."""
        return self._budget.is_spent()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        cell = _cell(trial)
        setting = self._attempts[cell].setting
        self._watch.started(trial)
        self._budget.started(trial, setting.gpus)
        if cell in self._running:  # started again after its process died
            return
        self._running.add(cell)
        self._accounting.put(partial(self._account.mark, cell, RUNNING, micro_batches=setting.micro_batches))
        self._tracking.put(self._tracker.begin, cell, setting.deviation)
        self._progress.running(cell)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        cell = _cell(trial)
        for note in result.get(NOTES, ()):
            self._progress.note(note)
        if FAILURE in result:
            self._ended(trial)
            self._failed(trial, cell, result[FAILURE_CLASS], result[FAILURE])
            return
        row = result[ROW]
        self._watch.reported(trial, row)
        if row["phase"] != "pretrain" or row["epoch"] == cell.pretrain_epochs:
            self._release(trial)
        # A trial that continues yields its rows again; those that a trial before it reported since stay until then.
        self._history.setdefault(cell, {})[row["epoch"], row["phase"] == "test"] = row
        usage = result[USAGE]
        self._peak[cell] = max(self._peak.get(cell, 0), int(usage.get("gpu_memory_bytes", 0)))
        now = int(time.time() * 1000)
        self._tracking.put(self._tracker.log, cell.cell_id, row, result[WORKER], usage, now)
        if row["phase"] == "test":
            self._ended(trial)
            self._finish(cell, row)
        elif self._work.done(cell, row["epoch"]):
            self.training_seconds += row["epoch_seconds"]
            self._progress.epoch()

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._ended(trial)
        failure = STALLED if self._watch.was_ended(trial) else classify(_error(trial))
        self._failed(trial, _cell(trial), failure, failure_reason(trial))

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Look after those that have fallen silent, and stop all where the budget is spent."""
        for trial in self._watch.silent():
            self._progress.note(f"{_cell(trial).cell_id} has reported nothing for {duration(self._watch.limit(trial))}")
            self._watch.end(trial)
        if self._budget.is_spent() and self._running and not self._budget.said:
            self._budget.said = True
            self._progress.note("the budget is spent: what runs is stopped at its newest checkpoint")
            os.kill(os.getpid(), signal.SIGINT)

    def interrupt_rest(self) -> list[Cell]:
        """Enter the cells that have not ended as what they are: to be continued. Returns them."""
        for cell in self._running:
            self._tracking.put(self._tracker.interrupt, cell.cell_id, "the sweep was stopped")
        return list(self._pending)

    def drop_unused_pretrainings(self) -> None:
        """Those that this driver leaves behind, and those that others left: one that was killed before it came to this,
        or two that each saw the other's cells at work."""
        if not self._options.keep_pretrainings:
            self._accounting.put(self._account.drop_unused_pretrainings)

    def close(self) -> int:
        """Wait for all writes. Returns how many MLflow has not taken; the account has them."""
        if self._accounting.close(STORAGE_PATIENCE):
            self._progress.note("the storage did not take all that was entered; run the same command again")
        return self._tracking.close(TRACKING_PATIENCE)

    def _failed(self, trial: Trial, cell: Cell, failure: str, reason: str) -> None:
        """Try again by the rule of the failure's class, or enter the cell as failed."""
        attempts = self._attempts[cell]
        before = attempts.setting
        if not attempts.again(failure, cell.batch_size):
            times = attempts.failures[failure]
            self._fail(cell, failure, f"{reason} (for the {times}th time)" if times > 1 else reason)
            return
        changed = attempts.setting != before
        what = f" with {_differing(before, attempts.setting)}" if changed else ""
        self._progress.note(
            f"{cell.cell_id} {_HOW[failure]} and is started again from its newest checkpoint{what}: {reason}"
        )
        if changed and attempts.setting.deviation != before.deviation:
            setting = attempts.setting
            self._accounting.put(partial(self._account.mark, cell, RUNNING, micro_batches=setting.micro_batches))
            self._tracking.put(self._tracker.begin, cell, setting.deviation)
        wait = time.monotonic() + pause(failure, attempts.failures[failure])
        self.queue.again(_entry(cell, self._account, self._options, attempts.setting, wait))

    def _ended(self, trial: Trial) -> None:
        self._release(trial)
        self._watch.ended(trial)
        self._budget.ended(trial)

    def _release(self, trial: Trial) -> None:
        """The trial has published its pre-training, or will not: let those that wait for it go on."""
        cell = _cell(trial)
        if cell.has_pretraining:
            self.queue.release(self._account.folder(cell.pretraining()))

    def _finish(self, cell: Cell, row: dict[str, Any]) -> None:
        details = {"micro_batches": self._attempts[cell].setting.micro_batches, "peak_gpu_bytes": self._peak[cell]}
        self._accounting.put(partial(self._account.finish, cell, self._rows(cell), **details))
        self._tracking.put(self._tracker.finish, cell.cell_id)
        self._gone(cell)
        self.finished += 1
        self._progress.ended(
            cell,
            f"{_tested(row)}  {duration(row['training_seconds'])}",
            failed=False,
        )

    def _rows(self, cell: Cell) -> list[dict[str, Any]]:
        """What a cell that has ended reported, each epoch once, in order."""
        return [row for _, row in sorted(self._history.pop(cell, {}).items(), key=lambda item: item[0])]

    def _fail(self, cell: Cell, failure: str, reason: str) -> None:
        micro_batches = self._attempts[cell].setting.micro_batches
        rows = self._rows(cell)
        if rows:  # else it failed before it reported, and what is known of an earlier start stays
            self._accounting.put(self._account.keep_history, cell, rows)
        self._accounting.put(
            partial(self._account.mark, cell, FAILED, reason, failure=failure, micro_batches=micro_batches)
        )
        self._tracking.put(self._tracker.fail, cell.cell_id, reason, failure)
        self.failed[cell] = reason
        self._gone(cell)
        self._progress.ended(cell, f"FAILED: {reason}", failed=True)

    def _gone(self, cell: Cell) -> None:
        self._running.discard(cell)
        del self._pending[cell]
        shared = cell.pretraining() if cell.has_pretraining else None
        users = self._users.get(shared, [])
        if users and not self._options.keep_pretrainings and self._pending.keys().isdisjoint(users):
            self._accounting.put(self._drop_if_unused, shared)

    def _drop_if_unused(self, shared: Cell) -> None:
        """After what this driver entered before; cells that failed or are another driver's may still need it."""
        if self._account.are_finished(self._users[shared]):
            self._account.drop_pretraining(shared)


def _tested(row: dict[str, Any]) -> str:
    """A cell's result for a person; of a pre-training alone what its tasks came to."""
    if "test_accuracy" in row:
        return f"test accuracy {row['test_accuracy']:5.2f} %"
    tested = (f"{name.removeprefix('test_')} {value:.2f}" for name, value in row.items() if name.startswith("test_"))
    return ", ".join(tested) or "pre-trained"


_HOW = {
    CRASH: "died",
    HOST_OOM: "ran out of the node's memory",
    GPU_OOM: "ran out of GPU memory",
    NODE_LOST: "lost its node",
    STALLED: "was stuck",
    STORAGE: "could not write its checkpoint",
}


def _differing(before: Setting, after: Setting) -> str:
    if after.micro_batches != before.micro_batches:
        return f"each batch in {after.micro_batches} parts"
    return f"{after.gpus:g} GPU for itself"


class _Watchdog:
    """Knows when each trial gave its last sign of life, and how long epochs of a kind usually take."""

    def __init__(self):
        self._last: dict[str, tuple[Trial, float, int]] = {}  # with the epoch of its last row, 0 before its first
        self._seconds: dict[tuple, deque[float]] = {}
        self._ended_here: set[str] = set()

    def started(self, trial: Trial) -> None:
        self._last[trial.trial_id] = (trial, time.monotonic(), 0)

    def reported(self, trial: Trial, row: dict[str, Any]) -> None:
        """Take a row for a sign of life, and an epoch's for how long one takes, also if it was trained before: a trial
        that continues yields those first, and is judged by them."""
        self._last[trial.trial_id] = (trial, time.monotonic(), row["epoch"])
        if row["phase"] != "test":
            kind = _kind(_cell(trial), row["epoch"])
            self._seconds.setdefault(kind, deque(maxlen=1000)).append(row["epoch_seconds"])

    def ended(self, trial: Trial) -> None:
        self._last.pop(trial.trial_id, None)

    def limit(self, trial: Trial) -> float:
        """Seconds of silence after which the trial counts as stuck."""
        cell, epoch = _cell(trial), self._last[trial.trial_id][2]
        seconds = self._seconds.get(_kind(cell, min(epoch + 1, cell.total_epochs)))
        if not seconds:
            return UNKNOWN_SECONDS
        return max(STALL_SECONDS if epoch else FIRST_REPORT_SECONDS, STALL_FACTOR * statistics.median(seconds))

    def silent(self) -> list[Trial]:
        now = time.monotonic()
        return [trial for trial, since, _ in list(self._last.values()) if now - since > self.limit(trial)]

    def end(self, trial: Trial) -> None:
        """End the trial's process; Tune then reports its death."""
        actor = trial.temporary_state.ray_actor
        if actor is not None:
            self._ended_here.add(trial.trial_id)
            self._last[trial.trial_id] = (trial, time.monotonic(), self._last[trial.trial_id][2])
            ray.kill(actor)

    def was_ended(self, trial: Trial) -> bool:
        return trial.trial_id in self._ended_here


class _Budget:
    """Hours since the start and GPU-hours of all trials so far, against what may be spent."""

    def __init__(self, options: Options):
        self._hours, self._gpu_hours = options.hours, options.gpu_hours
        self._started = time.monotonic()
        self._spent = 0.0  # GPU-seconds of trials that have ended
        self._running: dict[str, tuple[float, float]] = {}
        self.said = False

    def started(self, trial: Trial, gpus: float) -> None:
        self._running[trial.trial_id] = (gpus, time.monotonic())

    def ended(self, trial: Trial) -> None:
        gpus, since = self._running.pop(trial.trial_id, (0.0, 0.0))
        self._spent += gpus * (time.monotonic() - since)

    def is_spent(self) -> bool:
        now = time.monotonic()
        if self._hours is not None and now - self._started >= 3600 * self._hours:
            return True
        gpu_seconds = self._spent + sum(gpus * (now - since) for gpus, since in self._running.values())
        return self._gpu_hours is not None and gpu_seconds >= 3600 * self._gpu_hours
