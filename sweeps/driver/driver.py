"""Trains what a source of work has as Ray Tune trials, on the connected cluster."""

import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial

from relvit.cell import Cell
from relvit.host import collect_as_usual
from sweeps.account.account import Account
from sweeps.account.leases import Hold
from sweeps.driver.options import Options, Outcome
from sweeps.driver.reporter import Reporter
from sweeps.driver.source import Source
from sweeps.driver.trainable import TRIAL, CellTrainable
from sweeps.tracking.tracker import Tracker
from sweeps.tracking.write_ahead import write_ahead

# Tune logs the traceback of each failure; the reporter says it in a line, and enters it with the cell.
logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def run(
    source: Source, account: Account, tracker: Tracker, options: Options, note: Callable[[str], None], hold: Hold
) -> Outcome:
    """Train until the source is done, the budget is spent or the user interrupts.

    note: tells a person something. hold: on the cells, or on the searches; once another driver has taken them over,
    their runs and states are left to it.
    """
    started = time.monotonic()
    with ready_to_write(tracker):
        reporter = Reporter(source, account, tracker, options, note, hold)
        source.begin(reporter.enter)
        reporter.enter_endings()
        try:
            tune_trials(reporter)
        finally:
            left = reporter.stop()
            out_of_budget = bool(left) and reporter.is_out_of_budget()
            untracked = reporter.close(is_hurried=bool(left) and not out_of_budget)
    return Outcome(left, time.monotonic() - started, out_of_budget, untracked)


@contextmanager
def ready_to_write(tracker: Tracker) -> Iterator[None]:
    """While the block runs, MLflow takes rows as fast as it can."""
    # A row is a hundred short-lived objects to MLflow; what was imported is a million that each collection would visit.
    collect_as_usual()
    with write_ahead(tracker.uri):
        yield


def tune_trials(reporter: Reporter) -> None:
    """Let Tune run what the reporter's queue hands out, to its end. Returns early where the user interrupts.

    Tune's own retries are off: it can only repeat a trial as it was.
    """
    # Tune wants a folder for its own files; nothing in it outlives the sweep.
    scratch = tempfile.mkdtemp(prefix="relvit-tune-")
    tuner = tune.Tuner(
        tune.with_resources(CellTrainable, _resources),
        tune_config=tune.TuneConfig(
            search_alg=reporter.queue,
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=str,
        ),
        run_config=tune.RunConfig(
            storage_path=scratch,
            name="tune",
            verbose=0,
            stop=reporter.stopper,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[reporter],
            failure_config=tune.FailureConfig(max_failures=0),
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


def _trial_name(trial: Trial) -> str:
    return Cell(**trial.config[TRIAL]["cell"]).cell_id


def _as_interrupt(signum: int, frame: FrameType | None) -> None:
    """A polite end is an interrupt: Tune stops its trials, and the cells are entered as interrupted."""
    os.kill(os.getpid(), signal.SIGINT)
