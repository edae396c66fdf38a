"""A plan from the lease on its cells to the exit status: hold, read, check, train, say what came of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console

from relvit.cell import Cell
from relvit.messages import counted
from sweeps.account.account import FAILED, FINISHED, Account
from sweeps.account.failures import CRASH, Setting
from sweeps.account.leases import Hold
from sweeps.account.work import WorkItem, work_items
from sweeps.cli.console import (
    BAD_REQUEST,
    INTERRUPTED,
    LEFT_TO_ANOTHER,
    OUT_OF_BUDGET,
    SOME_FAILED,
    left_to,
    open_tracker,
    ray_and_mlflow,
    refuse,
    say,
    stop_for_another,
)
from sweeps.cli.options import AUTO, Places
from sweeps.cli.plan_view import summary
from sweeps.cli.progress import SweepProgress, duration
from sweeps.driver.options import Checkpoints, Options, Outcome
from sweeps.planning.plan import PlanError, by_row, datasets_of, other_images, prepare_data
from sweeps.tracking.naming import named

if TYPE_CHECKING:
    from sweeps.driver.plan_source import PlanSource
    from sweeps.tracking.tracker import Tracker


@dataclass(frozen=True)
class Sweep:
    """How a plan is trained. cpus, gpus: of a trial; None: one GPU where the cluster has any, AUTO: what its memory
    needs. retry: classes of failure that are tried again; hours, gpu_hours: the budget, None for no limit."""

    places: Places
    cpus: float = 1.0
    gpus: float | str | None = None
    micro_batches: int = 1
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    compile: str = "auto"
    retry: frozenset[str] = frozenset()
    hours: float | None = None
    gpu_hours: float | None = None
    keep_pretrainings: bool = False

    def is_to_train(self, item: WorkItem) -> bool:
        """Whether the cell is not done, and did not fail in a way that is left alone."""
        if item.status.state == FAILED:
            return (item.status.failure or CRASH) in self.retry
        return item.status.state != FINISHED


def hold_and_sweep(sweep: Sweep, console: Console, account: Account, studies: Mapping[Cell, tuple[str, ...]]) -> int:
    """Train the cells of the plan that no other driver is training. Each cell's status is read once, when it is held.

    studies: by cell, the names of its studies. Returns the exit status.
    """
    with account.hold(studies, lost=lambda: stop_for_another(console)) as hold:
        for who in hold.replaced:
            say(console, f"note: took over from {who}, which is dead")
        items = named(work_items(account, studies))
        wanted = [item for item in items if sweep.is_to_train(item)]
        to_train = [item for item in wanted if item.cell.cell_id in hold.held]
        hold.narrow(item.cell.cell_id for item in to_train)
        say(console, summary(item.status for item in items))  # before the data, which may take long to come
        problems = prepare_data(list(studies), sweep.places.data_root)
        problems += reach_problems(sweep) if problems else []
        if problems:
            return refuse(problems)
        for note in other_images({item.cell: item.status for item in items}, sweep.places.data_root):
            say(console, f"note: {note}")
        account.plan(studies)
        status = _sweep(sweep, console, account, items, to_train, hold)
    names = [driver for item in wanted if (driver := hold.others.get(item.cell.cell_id))]
    if names and status != BAD_REQUEST:
        say(console, left_to(len(names), names))
        return status or LEFT_TO_ANOTHER
    return status


def reach_problems(sweep: Sweep) -> list[str]:
    """What is wrong with the tracking server and, where the request names something that Ray alone can judge, with the
    cluster: starting Ray takes seconds."""
    from sweeps.tracking.reachable import tracking_problems

    return tracking_problems(sweep.places.tracking_uri) + (_cluster_problems(sweep, []) if sweep.gpus else [])


def _cluster_problems(sweep: Sweep, cells: list[Cell]) -> list[str]:
    from sweeps.cluster import connection as cluster

    try:
        with cluster.connected(sweep.places.address):
            return connected_problems(sweep, cells)
    except cluster.ClusterError as error:
        return [str(error)]


def connected_problems(
    sweep: Sweep, cells: list[Cell], gpus: float | None = None, instead: str = "--hours"
) -> list[str]:
    """What is wrong with the connected cluster, or with what is asked of it, and what the cells would miss on its
    nodes. gpus: a trial's, as the sweep says if None; instead: of --gpu-hours, where there are none."""
    from sweeps.cluster.connection import gpus_per_trial, resource_problems
    from sweeps.cluster.nodes import node_problems

    if gpus is None:
        gpus = gpus_per_trial(None if isinstance(sweep.gpus, str) else sweep.gpus)
    found = resource_problems(sweep.cpus, gpus)
    if sweep.gpu_hours and not gpus:
        found.append(f"--gpu-hours is a budget of GPUs, and trials get none here: use {instead}")
    precisions = {cell.precision for cell in cells}
    if "tf32" in precisions and not gpus:
        found.append("precision=tf32 is of GPUs, and trials get none here: use precision=fp32")
    if cells:
        names = [name for name, *_ in datasets_of(cells)]
        places = (sweep.places.storage.absolute(), sweep.places.data_root)
        found += node_problems(*places, names, gpus=gpus, precisions=precisions)
    return found


def _sweep(
    sweep: Sweep, console: Console, account: Account, items: list[WorkItem], to_train: list[WorkItem], hold: Hold
) -> int:
    """Ray and MLflow, which take seconds to import and start, come in here."""
    from sweeps.tracking.reachable import tracking_problems

    cells = [item.cell for item in to_train]
    problems = tracking_problems(sweep.places.tracking_uri)
    if problems:
        return refuse(problems + (_cluster_problems(sweep, cells) if cells else []))
    left = [item for item in items if item.status.state == FAILED and not sweep.is_to_train(item)]
    try:
        if not to_train:
            update_tracking(console, items, account, open_tracker(sweep.places))
            if not sweep.keep_pretrainings:
                account.drop_unused_pretrainings({item.cell: item.status for item in items})
            if all(item.status.state == FINISHED for item in items):
                finished = f"all {len(items)} cells are finished" if len(items) > 1 else "the cell is finished"
                say(console, f"{finished}; nothing to train")
            return _say_left(console, left)
        with ray_and_mlflow(sweep.places, console, lambda: connected_problems(sweep, cells)) as tracker:
            source, outcome = _train(sweep, console, account, tracker, items, to_train, hold)
    except PlanError as error:
        return refuse(error.problems)
    return _say_outcome(console, account, source, outcome) or _say_left(console, left)


def _train(
    sweep: Sweep,
    console: Console,
    account: Account,
    tracker: "Tracker",
    items: list[WorkItem],
    to_train: list[WorkItem],
    hold: Hold,
) -> tuple["PlanSource", Outcome]:
    """Train on the connected cluster. Raises PlanError where it is not fit for the cells."""
    from sweeps.cluster import connection as cluster

    if isinstance(sweep.gpus, str):
        from sweeps.driver.gpu_packing import measured_gpus

        note = lambda text: say(console, f"note: {text}")  # noqa: E731
        gpus = measured_gpus(to_train, account, sweep.micro_batches, note, sweep.compile)
    else:
        gpus = cluster.gpus_per_trial(sweep.gpus)
    problems = connected_problems(sweep, [item.cell for item in to_train], gpus)
    if problems:
        raise PlanError(problems)
    if sweep.gpus == AUTO:
        say(console, f"{gpus:g} GPUs a trial, by the memory that such trials need and by what they gain")
    update_tracking(console, items, account, tracker, mine=to_train)
    setting = Setting(sweep.cpus, gpus, sweep.micro_batches)
    what = (setting, sweep.places.data_root, sweep.checkpoints, sweep.compile)
    options = Options(*what, sweep.hours, sweep.gpu_hours, sweep.keep_pretrainings)
    if sweep.hours or sweep.gpu_hours:
        place = {cell: number for number, cell in enumerate(by_row(item.cell for item in to_train))}
        to_train = sorted(to_train, key=lambda item: place[item.cell])
    return train_items(items, to_train, console, account, tracker, options, hold)


def train_items(
    items: list[WorkItem],
    to_train: list[WorkItem],
    console: Console,
    account: Account,
    tracker: "Tracker",
    options: Options,
    hold: Hold,
) -> tuple["PlanSource", Outcome]:
    """Train some of a plan's items on the connected cluster, which is fit for them."""
    from sweeps.driver.driver import run
    from sweeps.driver.plan_source import PlanSource

    known = {item.cell: item.status for item in items}
    source = PlanSource(to_train, account, options.keep_pretrainings, known)
    with SweepProgress(console, [item.cell for item in to_train], source.epochs) as source.progress:
        outcome = run(source, account, tracker, options, source.progress.note, hold)
    return source, outcome


def update_tracking(
    console: Console, items: list[WorkItem], account: Account, tracker: "Tracker", mine: Iterable[WorkItem] = ()
) -> None:
    """Let MLflow say what the account says, where it takes writes now. mine: what this driver holds."""
    from sweeps.tracking.reconciliation import reconcile
    from sweeps.tracking.tracker import TrackingError

    held = account.apparently_held() - {item.cell.cell_id for item in mine}
    try:
        changes = reconcile(items, account, tracker, alive=held)
    except TrackingError as error:
        changes = [f"{error}; the next start enters it"]
    for change in changes:
        say(console, f"note: {change}")


def _say_outcome(console: Console, account: Account, source: "PlanSource", outcome: Outcome) -> int:
    say(
        console,
        f"{counted(source.finished, 'cell')} finished in {duration(outcome.seconds)} "
        f"({duration(source.training_seconds)} of training)",
    )
    if outcome.untracked:
        say(
            console,
            f"MLflow did not accept {counted(outcome.untracked, 'write')}; nothing is lost: the account "
            f"under {account.storage} has them, and the same command, or sweeps/reconcile.py, logs them later",
        )
    to_go = f"with {counted(len(outcome.interrupted), 'cell')} to go; run the same command to continue"
    if outcome.out_of_budget:
        say(console, f"the budget is spent {to_go}")
        return OUT_OF_BUDGET
    if source.failed:
        _say_failures(console, source.failed)
        return SOME_FAILED
    if outcome.interrupted:
        say(console, f"interrupted {to_go}")
        return INTERRUPTED
    return 0


def _say_failures(console: Console, failed: Mapping[Cell, str]) -> None:
    for cell, reason in failed.items():
        say(console, f"FAILED {cell.cell_id}: {reason}")
    combinations = ",".join(dict.fromkeys(cell.tasks for cell in failed))
    seeds = ",".join(dict.fromkeys(str(cell.seed) for cell in failed))
    say(
        console,
        f"the same command runs the failed cells again; to run them alone, add: --tasks {combinations} --seeds {seeds}",
    )


def _say_left(console: Console, left: list[WorkItem]) -> int:
    """The cells that failed before and that --retry does not name."""
    for item in left:
        failure = f"{item.status.failure or CRASH}: {item.status.reason}"
        say(console, f"FAILED before, left alone: {item.cell.cell_id}: {failure}")
    return SOME_FAILED if left else 0
