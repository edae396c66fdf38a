"""The paper's ablation as a sweep: plan the cells, train those that are not finished, account for all.

    python sweeps/ablation.py                                  Table 4's experiment on the embedded digits,
                                                               16 cells, 5 to 10 minutes on two cores
    python sweeps/ablation.py --recipe paper --data-root data  Table 4 as published: CIFAR-10, ViT-S/4, on GPUs

Run the same command again to resume: finished cells are skipped, interrupted ones continue from their checkpoint,
new and failed ones are started. Exit status: 0 all finished, 1 some failed, 2 the request is wrong (nothing was
started), 3 the budget was spent before all was done, 4 the rest is left to another driver that is at work on it,
130 interrupted. Where $RELVIT_WEBHOOK, or the file that $RELVIT_WEBHOOK_FILE names, holds a URL, it is told how a
study ended.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # runs from a checkout that is not installed

from rich.console import Console

from relvit.cell import BACKBONES, TASKS, Cell
from relvit.data import DATASETS, DataError
from sweeps.account.account import FAILED, FINISHED, PLANNED, PRUNED, RUNNING, SEARCHED, Account, Status, count_states
from sweeps.account.failures import CRASH, GROUPS, RETRIES, Setting, parse_classes
from sweeps.cli.console import (
    BAD_REQUEST,
    INTERRUPTED,
    exit_status,
    open_tracker,
    ray_and_mlflow,
    refuse,
    say,
    stop_for_another,
    storage_place,
)
from sweeps.cli.progress import duration
from sweeps.cli.webhook import WebhookError, message, notify, webhook
from sweeps.planning.plan import PlanError, Request, by_row, datasets_of, plan, prepare_data, shared_pretrainings
from sweeps.planning.recipes import RECIPES
from sweeps.planning.studies import STUDIES

if TYPE_CHECKING:
    from sweeps.driver.driver import Outcome
    from sweeps.tracking.tracker import Tracker

AUTO = "auto"
SOME_FAILED, OUT_OF_BUDGET, LEFT_TO_ANOTHER = 1, 3, 4


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ablation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--study", default="table4", metavar="NAME",
        help=f"{', '.join(STUDIES)}, or a Python file that defines a list `cells` (default: %(default)s)",
    )  # fmt: skip
    what.add_argument(
        "--recipe", default="demo", metavar="NAME",
        help=f"how cells are trained: {', '.join(RECIPES)}, or a file that a search wrote, FILE.json (default: "
        "%(default)s)",
    )  # fmt: skip
    what.add_argument(
        "--dataset", metavar="NAME",
        help=f"{', '.join(DATASETS)}, or a folder DATA_ROOT/NAME with train/CLASS/ and test/CLASS/, in place of the "
        "one data set of a study (default: the study's)",
    )  # fmt: skip
    what.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR",
        help="where data sets are, or are downloaded to (default: %(default)s)",
    )  # fmt: skip
    what.add_argument("--backbone", metavar="NAME", help=f"{', '.join(BACKBONES)} (default: the study's)")
    what.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images (default: the data set's)")
    what.add_argument(
        "--tasks", metavar="A+B,C,...",
        help=f"combinations of {', '.join(TASKS)} to run, or none for the supervised cell, separated by commas "
        "(default: all that the study has)",
    )  # fmt: skip
    what.add_argument("--seeds", default="0", metavar="N,N,...", help="seeds to run each cell with (default: 0)")
    what.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
        help="change one field of the recipe, for instance epochs=50; may be repeated",
    )  # fmt: skip
    what.add_argument(
        "--only", action="append", default=[], metavar="FIELD=VALUE,...",
        help="of the study's cells, those with these values, for instance backbone=swin_t,dataset=cifar10",
    )  # fmt: skip
    how = parser.add_argument_group("where and with what")
    how.add_argument(
        "--storage", type=storage_place, default=Path("results"), metavar="DIR",
        help="where the account of cells and the checkpoints are kept: a folder that every node sees, or "
        "s3://BUCKET/FOLDER (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"), metavar="URI",
        help="MLflow's database or server (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )  # fmt: skip
    how.add_argument(
        "--experiment", default="relvit", metavar="NAME", help="MLflow's experiment (default: %(default)s)"
    )
    how.add_argument(
        "--address", default=os.environ.get("RAY_ADDRESS", "local"), metavar="ADDRESS",
        help="a Ray cluster, or 'local' to start one on this machine (default: $RAY_ADDRESS, else local)",
    )  # fmt: skip
    how.add_argument(
        "--cpus", type=float, default=1, metavar="N", help="CPUs a trial, a torch thread each (default: 1)"
    )
    how.add_argument(
        "--gpus", type=_gpus, metavar="N",
        help="GPUs a trial, a fraction to share one, or 'auto' for as many trials a GPU as its memory holds (default: "
        "1 where the cluster has any, else 0)",
    )  # fmt: skip
    how.add_argument(
        "--micro-batches", type=int, default=1, metavar="N",
        help="parts in which each batch goes through the model, where a GPU is too small; tables say so (default: 1)",
    )  # fmt: skip
    how.add_argument(
        "--checkpoint-every", type=int, metavar="EPOCHS",
        help="epochs between checkpoints (default: 1, or with --checkpoint-minutes as many as these last)",
    )  # fmt: skip
    how.add_argument("--checkpoint-minutes", type=float, metavar="MINUTES", help="minutes between checkpoints")
    how.add_argument(
        "--keep-checkpoints", type=int, default=2, metavar="N",
        help="checkpoints kept of a cell that is not finished (default: %(default)s); of a finished one, its weights",
    )  # fmt: skip
    how.add_argument(
        "--keep-pretrainings", action="store_true",
        help="keep the weights of pre-trainings when no planned cell needs them any more, for studies to come",
    )  # fmt: skip
    how.add_argument(
        "--retry", default="failed", metavar="CLASS,...",
        help=f"which cells that failed before are tried again: {', '.join((*GROUPS, *RETRIES))} (default: failed, "
        "that is all)",
    )  # fmt: skip
    how.add_argument("--hours", type=float, metavar="N", help="stop cleanly after so long; the same command goes on")
    how.add_argument(
        "--gpu-hours", type=float, metavar="N",
        help="stop cleanly when all trials together have held GPUs for so long",
    )  # fmt: skip
    how.add_argument("--plan", action="store_true", help="list the cells and which are done, and start nothing")
    options = parser.parse_args(arguments)
    try:
        options.seeds = tuple(int(seed) for seed in options.seeds.split(","))
    except ValueError:
        parser.error(f"--seeds takes whole numbers separated by commas, not {options.seeds!r}")
    _check_numbers(parser, options)
    options.combinations = tuple(options.tasks.split(",")) if options.tasks else None
    return options


def _gpus(text: str) -> float | str:
    return AUTO if text == AUTO else float(text)


def _check_numbers(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    above_zero = ("cpus", "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "hours", "gpu_hours")
    for name in (*above_zero, "micro_batches"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, not {value:g}")
    if options.gpus not in (None, AUTO):
        if options.gpus < 0:
            parser.error(f"--gpus must be at least 0, not {options.gpus:g}")
        if options.gpus > 1 and options.gpus % 1:
            parser.error(f"--gpus above 1 must be a whole number, not {options.gpus:g}: a trial shares at most one GPU")
    if options.checkpoint_every is None and options.checkpoint_minutes is None:
        options.checkpoint_every = 1
    try:
        options.retry = parse_classes(options.retry)
    except ValueError as error:
        parser.error(str(error))


def main() -> int:
    options = parse_arguments()
    console = Console()
    account = Account(options.storage)
    try:
        studies = plan(
            Request(
                study=options.study,
                recipe=options.recipe,
                data_root=options.data_root,
                dataset=options.dataset,
                backbone=options.backbone,
                image_size=options.image_size,
                combinations=options.combinations,
                seeds=options.seeds,
                settings=tuple(options.settings),
                only=tuple(condition for conditions in options.only for condition in conditions.split(",")),
            )
        )
        problems = []
    except PlanError as error:
        studies, problems = dict.fromkeys(error.cells, ""), error.problems
    cells = list(studies)
    if options.plan and not problems:
        return show_plan(options, console, account, cells)
    wrong = bool(problems)
    problems += lost_paths(options)
    problems += account.check()
    if not problems:
        say(console, summary(account.statuses(cells)))  # before the data, which may take long to come
    # A wrong request starts no download.
    problems += prepare_data(cells, options.data_root, download=not wrong)
    if problems:
        from sweeps.tracking.reachable import tracking_problems

        problems += tracking_problems(options.tracking_uri)
    try:
        url = webhook()
    except WebhookError as error:
        problems.append(str(error))
    if problems:
        # Starting Ray takes seconds: only where the request names something that Ray alone can judge.
        return refuse(problems + (cluster_problems(options, []) if options.gpus else []))
    started, status = time.monotonic(), SOME_FAILED  # what an exception amounts to
    try:
        status = hold_and_sweep(options, console, account, studies)
    except KeyboardInterrupt:
        status = INTERRUPTED
        raise
    finally:
        if url:
            tell(url, console, account, cells, options.study, status, time.monotonic() - started)
    return status


def tell(
    url: str, console: Console, account: Account, cells: list[Cell], study: str, status: int, seconds: float
) -> None:
    """Tell the webhook how the study ended; what fails here is said and changes nothing."""
    try:
        counts = count_states(account.statuses(cells).values())
    except OSError:  # the storage went away, which may be why the study ended
        counts = {}
    said = notify(url, message(study, counts, status, seconds))
    if said:
        say(console, f"note: {said}")


def hold_and_sweep(options: argparse.Namespace, console: Console, account: Account, studies: dict[Cell, str]) -> int:
    """Train the cells of the plan that no other driver is at work on."""
    cells = list(studies)
    account.plan(studies)
    statuses = account.statuses(cells)
    to_train = [cell for cell, status in statuses.items() if _is_to_train(status, options.retry)]
    if options.hours or options.gpu_hours:
        to_train = by_row(to_train)
    with account.hold(to_train, lost=lambda: stop_for_another(console)) as hold:
        for who in hold.replaced:
            say(console, f"note: took over from {who}, which is dead")
        to_train = [cell for cell in to_train if cell.cell_id in hold.held]
        status = sweep(options, console, account, studies, statuses, to_train, is_lost=lambda: hold.is_lost)
    if hold.others and status != BAD_REQUEST:
        names = ", ".join(sorted(set(hold.others.values())))
        say(console, f"{len(hold.others)} cells are left to {names}, which is at work on them")
        return status or LEFT_TO_ANOTHER
    return status


def _is_to_train(status: Status, retry: frozenset[str]) -> bool:
    if status.state == FAILED:
        return (status.failure or CRASH) in retry
    return status.state != FINISHED


def lost_paths(options: argparse.Namespace) -> list[str]:
    """Paths that would be lost with a submitted job's copy of the working directory, which Ray removes."""
    if "runtime_resources" not in Path.cwd().parts:
        return []
    relative = [
        (option, isinstance(path, Path) and not path.is_absolute())
        for option, path in (("--storage", options.storage), ("--data-root", options.data_root))
    ]
    uri = options.tracking_uri
    relative.append(("--tracking-uri", uri.startswith("sqlite:///") and not uri.startswith("sqlite:////")))
    return [
        f"{option} is a relative path, and this job runs in a copy of the working directory that Ray removes when it "
        f"is done: give an absolute path that every node sees{' or a server' if option == '--tracking-uri' else ''}"
        for option, is_relative in relative
        if is_relative
    ]


def cluster_problems(options: argparse.Namespace, cells: list[Cell]) -> list[str]:
    """What is wrong with the cluster or with what is asked of it, and what the cells would miss on its nodes."""
    from sweeps.cluster import connection as cluster

    try:
        with cluster.connected(options.address):
            return connected_problems(options, cells)
    except cluster.ClusterError as error:
        return [str(error)]


def connected_problems(options: argparse.Namespace, cells: list[Cell], gpus: float | None = None) -> list[str]:
    """The same where the cluster is connected already. gpus: a trial's, by --gpus if None."""
    from sweeps.cluster.connection import gpus_per_trial, resource_problems
    from sweeps.cluster.nodes import node_problems

    if gpus is None:
        gpus = gpus_per_trial(None if options.gpus == AUTO else options.gpus)
    found = resource_problems(options.cpus, gpus)
    if options.gpu_hours and not gpus:
        found.append("--gpu-hours is a budget of GPUs, and trials get none here: use --hours")
    if cells:
        names = [name for name, _ in datasets_of(cells)]
        found += node_problems(options.storage.absolute(), options.data_root, names)
    return found


def sweep(
    options: argparse.Namespace,
    console: Console,
    account: Account,
    studies: dict[Cell, str],
    statuses: dict[Cell, Status],
    to_train: list[Cell],
    is_lost: Callable[[], bool],
) -> int:
    """Train those cells of the plan. Ray and MLflow, which take seconds to import and start, come in here."""
    from sweeps.tracking.reachable import tracking_problems

    cells = list(studies)
    problems = tracking_problems(options.tracking_uri)
    if problems:
        return refuse(problems + (cluster_problems(options, to_train) if to_train else []))
    members = {cell.cell_id: names for cell, names in studies.items()}
    left = {cell: status for cell, status in statuses.items() if status.state == FAILED and cell not in to_train}
    if not to_train:
        tracker, problem = open_tracker(options, account.storage, members)
        if problem:
            return refuse([problem])
        bring_up_to_date(console, cells, account, tracker)
        if not options.keep_pretrainings:
            account.drop_unused_pretrainings()
        if all(status.state == FINISHED for status in statuses.values()):
            say(console, f"all {len(cells)} cells are finished; nothing to train")
        return report_left(console, left)

    try:
        with ray_and_mlflow(options, console, account.storage, members) as (tracker, problem):
            if problem:
                raise PlanError([problem, *connected_problems(options, to_train)])
            outcome = train_cells(options, console, account, tracker, cells, to_train, is_lost)
    except PlanError as error:
        return refuse(error.problems)
    say(
        console,
        f"{outcome.finished} cells finished in {duration(outcome.seconds)} "
        f"({duration(outcome.training_seconds)} of training)",
    )
    if outcome.untracked:
        say(
            console,
            f"MLflow did not take {outcome.untracked} writes; nothing is lost: the account under {account.storage} has "
            "them, and the same command, or sweeps/reconcile.py, enters them when MLflow is back",
        )
    if outcome.out_of_budget:
        say(
            console,
            f"the budget is spent with {len(outcome.interrupted)} cells to go; run the same command to continue",
        )
        return OUT_OF_BUDGET
    if outcome.failed:
        print_failures(console, outcome.failed)
        return SOME_FAILED
    if outcome.interrupted:
        say(console, f"interrupted with {len(outcome.interrupted)} cells to go; run the same command to continue")
        return INTERRUPTED
    return report_left(console, left)


def bring_up_to_date(
    console: Console, cells: list[Cell], account: Account, tracker: "Tracker", mine: Iterable[Cell] = ()
) -> None:
    """Let MLflow say what the account says. mine: the cells that this driver holds."""
    from sweeps.tracking.reconciliation import reconcile

    for change in reconcile(cells, account, tracker, alive=account.seem_held() - {cell.cell_id for cell in mine}):
        say(console, f"note: {change}")


def train_cells(
    options: argparse.Namespace,
    console: Console,
    account: Account,
    tracker: "Tracker",
    cells: list[Cell],
    to_train: list[Cell],
    is_lost: Callable[[], bool],
) -> "Outcome":
    """Train cells of the plan on the connected cluster. Raises PlanError where it is not fit for them."""
    from sweeps.cluster import connection as cluster
    from sweeps.driver.driver import Options, run
    from sweeps.driver.gpu_packing import measured_gpus
    from sweeps.driver.trainable import Checkpoints

    if options.gpus == AUTO:
        gpus = measured_gpus(to_train, account, options.micro_batches, lambda note: say(console, f"note: {note}"))
    else:
        gpus = cluster.gpus_per_trial(options.gpus)
    problems = connected_problems(options, to_train, gpus)
    if problems:
        raise PlanError(problems)
    if options.gpus == AUTO:
        say(console, f"{gpus:g} GPUs a trial, by the memory that such trials need")
    bring_up_to_date(console, cells, account, tracker, mine=to_train)
    how = Options(
        setting=Setting(options.cpus, gpus, options.micro_batches),
        data_root=options.data_root,
        checkpoints=Checkpoints(options.checkpoint_every, options.checkpoint_minutes, options.keep_checkpoints),
        hours=options.hours,
        gpu_hours=options.gpu_hours,
        keep_pretrainings=options.keep_pretrainings,
    )
    return run(to_train, account, tracker, console, how, is_lost)


def report_left(console: Console, left: dict[Cell, Status]) -> int:
    """The cells that failed before and that --retry does not name."""
    for cell, status in left.items():
        say(console, f"FAILED before, left alone: {cell.cell_id}: {status.failure or CRASH}: {status.reason}")
    return SOME_FAILED if left else 0


def summary(statuses: dict[Cell, Status]) -> str:
    """ "16 cells: 3 finished, 1 to continue, 12 to start"."""
    counts = count_states(statuses.values())
    resumable = sum(status.state != FINISHED and status.epoch > 0 for status in statuses.values())
    fresh = len(statuses) - counts[FINISHED] - resumable
    return f"{len(statuses)} cells: {counts[FINISHED]} finished, {resumable} to continue, {fresh} to start"


def show_plan(options: argparse.Namespace, console: Console, account: Account, cells: list[Cell]) -> int:
    """List the cells and what they will cost; nothing is written, started or downloaded."""
    try:
        problems = account.look()
        if problems:
            return refuse(problems)
        print_plan(console, account, cells)
        print_estimate(console, account, cells, options)
    except DataError as error:
        return refuse([str(error)])
    except OSError as error:
        return refuse([f"the storage path {account.storage} cannot be read: {error}"])
    return 0


def print_plan(console: Console, account: Account, cells: list[Cell]) -> None:
    """Every cell with its state, by the account; needs neither Ray nor MLflow."""
    busy = account.seem_held()
    statuses = account.statuses(cells)
    width = max(len(cell.cell_id) for cell in cells)
    for cell, status in statuses.items():
        progress = f"epoch {status.epoch} of {cell.total_epochs}"
        state = {
            FINISHED: "finished",
            FAILED: f"failed ({status.failure or CRASH}), {progress}: {status.reason}",
            RUNNING: f"{'running' if cell.cell_id in busy else 'interrupted'}, {progress}",
            PLANNED: "to start",
            PRUNED: f"pruned by a search, {progress}",
            SEARCHED: "trained by a search and not tested",
        }[status.state]
        say(console, f"{cell.cell_id:<{width}}  {state}")
    say(console, summary(statuses))


def print_estimate(console: Console, account: Account, cells: list[Cell], options: argparse.Namespace) -> None:
    """What is left to train, and what it will cost on this machine."""
    saved = shared_pretrainings(cells)
    if saved:
        trainings = len(set(saved.values()))
        say(
            console,
            f"{len(saved)} cells share {trainings} pre-trainings: that saves {len(saved) - trainings} trainings",
        )
    if all(status.state == FINISHED for status in account.statuses(cells).values()):
        return

    from sweeps.planning.cost import estimate

    gpus = None if options.gpus == AUTO else options.gpus
    cost = estimate(cells, account, options.data_root, options.cpus, gpus)

    def span(interval: tuple[float, float], unit: float) -> str:
        low, high = (value / unit for value in interval)
        return f"{low:,.2g} to {high:,.2g}" if high < 10 else f"{low:,.0f} to {high:,.0f}"

    say(
        console,
        f"on this machine, {cost.slots} trials at once: {duration(cost.seconds[0])} to {duration(cost.seconds[1])}; "
        f"{span(cost.trial_seconds, 3600)} trial-hours, {span(cost.gpu_hours, 1)} GPU-hours; a trial's peak memory "
        f"{span(cost.memory_bytes, 1e9)} GB; disk {span(cost.disk_bytes, 1e9)} GB, data sets aside",
    )
    say(
        console,
        f"judged by {cost.measured} kinds of phases from finished cells, {cost.calibrated} from calibration here",
    )


def print_failures(console: Console, failed: dict[Cell, str]) -> None:
    for cell, reason in failed.items():
        say(console, f"FAILED {cell.cell_id}: {reason}")
    combinations = ",".join(dict.fromkeys(cell.tasks for cell in failed))
    seeds = ",".join(dict.fromkeys(str(cell.seed) for cell in failed))
    console.print(
        "the same command runs the failed cells again; to run them alone, add: "
        f"--tasks {combinations} --seeds {seeds}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(exit_status(main))
