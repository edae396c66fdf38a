"""The paper's ablation as a sweep: plan the cells, train those that are not finished, account for all.

    python sweeps/ablation.py                                  Table 4's experiment on the embedded digits,
                                                               16 cells, 5 to 10 minutes on two cores
    python sweeps/ablation.py --recipe paper --data-root data  Table 4 as published: CIFAR-10, ViT-S/4, on GPUs

Run the same command again to resume: finished cells are skipped, interrupted ones continue from their checkpoint,
new and failed ones are started. Exit status: 0 all finished, 1 some failed, 2 the request is wrong (nothing was
started), 3 the budget was spent before all was done, 4 the rest is left to another driver that is training it,
130 interrupted. Where $RELVIT_WEBHOOK, or the file that $RELVIT_WEBHOOK_FILE names, holds a URL, it hears how a
study ended.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # runs from a checkout that is not installed

from rich.console import Console

from relvit.cell import TASKS, Cell
from relvit.task_files import add_tasks_file
from sweeps.account.account import Account, count_states
from sweeps.account.failures import GROUPS, RETRIES, parse_classes
from sweeps.cli import options as shared
from sweeps.cli.console import BAD_REQUEST, INTERRUPTED, SOME_FAILED, begin, exit_status, new_console, refuse, say
from sweeps.cli.options import AUTO, Places
from sweeps.cli.plan_view import show_plan
from sweeps.cli.watch import NOTHING, watch
from sweeps.cli.webhook import WebhookError, message, notify, webhook
from sweeps.driver.options import Checkpoints
from sweeps.driver.session import Sweep, hold_and_sweep, reach_problems
from sweeps.planning.plan import EVALUATED, PlanError, Request, plan, prepare_data, study_name
from sweeps.planning.studies import STUDIES


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = shared.new_parser("ablation.py", __doc__)
    what = parser.add_argument_group("what to train")
    what.add_argument(
        "--study", default="table4", metavar="NAME",
        help=f"{', '.join(STUDIES)}, or a Python file that defines a list `cells` (default: %(default)s)",
    )  # fmt: skip
    shared.add_cell_options(what, "how cells are trained", "the study's")
    what.add_argument(
        "--tasks", metavar="A+B,C,...",
        help=f"combinations of {', '.join(TASKS)} to run, or none for the supervised cell, separated by commas "
        "(default: all that the study has)",
    )  # fmt: skip
    what.add_argument(
        "--evaluate", metavar="NAME,NAME,...",
        help="how each pre-training of the study is evaluated, trained once for all: knn, probe (logistic regression), "
        "finetune, each also with settings of its own, as finetune:labels_per_class=10, finetune:dataset=cifar100 or "
        "finetune:finetune_image_size=64 (default: as the study says)",
    )  # fmt: skip
    what.add_argument("--seeds", default="0", metavar="N,N,...", help="seeds to run each cell with (default: 0)")
    what.add_argument(
        "--only", action="append", default=[], metavar="FIELD=VALUE,...",
        help="of the study's cells, those with these values, for instance backbone=swin_t,dataset=cifar10",
    )  # fmt: skip
    how = parser.add_argument_group("where and with what")
    shared.add_storage(how)
    shared.add_tracking(how)
    shared.add_cluster(how)
    how.add_argument(
        "--gpus", type=lambda text: text if text == AUTO else float(text), metavar="N",
        help="GPUs a trial, a fraction to share one, or 'auto' for as many trials a GPU as its memory holds (default: "
        "1 where the cluster has any, else 0)",
    )  # fmt: skip
    how.add_argument(
        "--micro-batches", type=int, default=1, metavar="N",
        help="parts in which each batch goes through the model, where a GPU is too small; tables say so (default: 1)",
    )  # fmt: skip
    shared.add_compile(how)
    how.add_argument(
        "--checkpoint-every", type=int, metavar="EPOCHS",
        help="epochs between checkpoints (default: as many as let writing cost at most 2 %% of the time, and no more "
        "than ten minutes' worth)",
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
    how.add_argument(
        "--watch", type=float, nargs="?", const=5.0, metavar="SECONDS",
        help="show what runs, what is done and the table so far, from any machine that sees the storage, again every "
        "so many seconds (5); starts and writes nothing",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    options.seeds = shared.parse_seeds(parser, options.seeds)
    above_zero = ("checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "hours", "gpu_hours", "watch")
    shared.require_above_zero(parser, options, (*above_zero, "micro_batches"))
    shared.require_shares(parser, options.cpus, options.gpus)
    try:
        options.retry = parse_classes(options.retry)
    except ValueError as error:
        parser.error(str(error))
    return options


def request_of(options: argparse.Namespace) -> Request:
    """What the plan is made of."""
    return shared.request_of(
        options,
        options.study,
        options.seeds,
        evaluate=tuple(options.evaluate.split(",")) if options.evaluate else (),
        combinations=tuple(options.tasks.split(",")) if options.tasks else None,
        only=tuple(condition for conditions in options.only for condition in conditions.split(",")),
    )


def watched(options: argparse.Namespace) -> list[str]:
    """The names of the studies whose cells these options plan, as the account has them."""
    return [study_name(name) + EVALUATED * bool(options.evaluate) for name in options.study.split(",")]


def sweep_of(options: argparse.Namespace) -> Sweep:
    """How the plan is trained."""
    names = ("cpus", "gpus", "micro_batches", "compile", "retry", "hours", "gpu_hours", "keep_pretrainings")
    return Sweep(
        Places.of(options),
        checkpoints=Checkpoints(options.checkpoint_every, options.checkpoint_minutes, options.keep_checkpoints),
        **{name: getattr(options, name) for name in names},
    )


def main() -> int:
    options = parse_arguments()
    console, account, sweep = new_console(), Account(options.storage), sweep_of(options)
    if options.watch:
        try:
            if options.tasks_file:
                add_tasks_file(options.tasks_file)
        except ValueError as error:
            return refuse([str(error)], NOTHING)
        return watch(console, account, watched(options), options.watch)
    try:
        studies, problems = plan(request_of(options)), []
    except PlanError as error:
        studies, problems = dict.fromkeys(error.cells, ()), error.problems
    cells = list(studies)
    if options.plan and not problems:
        gpus = None if options.gpus == AUTO else options.gpus
        return show_plan(console, account, cells, options.data_root, options.cpus, gpus)
    begin(sweep.places, console)
    problems += shared.lost_paths(sweep.places)
    problems += account.look() if options.plan else account.check()  # a plan makes nothing
    try:
        url = webhook()
    except WebhookError as error:
        problems.append(str(error))
    if problems:  # a wrong request starts no download, and leaves nothing behind
        account.discard_if_empty()
        return refuse(problems + prepare_data(cells, options.data_root, download=False) + reach_problems(sweep))
    started, status = time.monotonic(), SOME_FAILED  # what an exception amounts to
    try:
        status = hold_and_sweep(sweep, console, account, studies)
    except KeyboardInterrupt:
        status = INTERRUPTED
        raise
    finally:
        if status == BAD_REQUEST:
            account.discard_if_empty()
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


if __name__ == "__main__":
    sys.exit(exit_status(main))
