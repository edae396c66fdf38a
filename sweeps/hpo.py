"""Search hyperparameters on validation data, then train the best configuration and look at the test split once.

    python sweeps/hpo.py --trials 40                       the demo's digits, SpRel + AbsPos; minutes on two cores
    python sweeps/hpo.py --per-cell table4 --trials 27     each of Table 4's 16 cells with the same budget and space
    python sweeps/hpo.py --recipe paper --data-root data --gpu-hours 50 --gpus 0.5

Run the same command again to resume, also after a kill: ended trials are kept, running ones continue from their
checkpoint, and a larger budget adds trials. Out come a recipe for `sweeps/ablation.py --recipe FILE`, a report with
pictures, and an MLflow run that stands for the search, all under --storage in hpo/NAME. Watch it with
`optuna-dashboard sqlite:///results/optuna.db`. Exit status: 0 all done, 1 a search without a complete trial or a final
training that failed, 2 the request is wrong (nothing was started), 130 interrupted.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # runs from a checkout that is not installed

from rich.console import Console

from relvit.cell import BACKBONES, NONE, PROTOCOLS, TASKS, Cell
from relvit.data import DATASETS
from sweeps.account import leases
from sweeps.account.account import Account
from sweeps.cli.console import INTERRUPTED, exit_status, ray_and_mlflow, refuse, say, stop_for_another, storage_place
from sweeps.planning.plan import PlanError, Request, datasets_of, plan, prepare_data
from sweeps.planning.recipes import RECIPES
from sweeps.planning.studies import BEST, STUDIES

if TYPE_CHECKING:
    from sweeps.tracking.tracker import Tracker


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="hpo.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what to tune")
    what.add_argument(
        "--per-cell", metavar="STUDY",
        help=f"tune every cell of a study alike ({', '.join(STUDIES)}, or a Python file), then train each winner",
    )  # fmt: skip
    what.add_argument(
        "--tasks", metavar="A+B", help=f"tasks to train on, of {', '.join(TASKS)}, or none (default: {BEST}); with "
        "--per-cell the combinations of the study to tune, separated by commas",
    )  # fmt: skip
    what.add_argument(
        "--protocol", metavar="NAME", help=f"one of {', '.join(PROTOCOLS[:3])} (default: pretrain_finetune)"
    )
    what.add_argument(
        "--dataset", metavar="NAME",
        help=f"{', '.join(DATASETS)}, or a folder DATA_ROOT/NAME with train/CLASS/ and test/CLASS/ (default: the "
        "recipe's, or the study's)",
    )  # fmt: skip
    what.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="DIR",
        help="where data sets are, or are downloaded to (default: %(default)s)",
    )  # fmt: skip
    what.add_argument("--backbone", metavar="NAME", help=f"{', '.join(BACKBONES)} (default: the recipe's or study's)")
    what.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images (default: the data set's)")
    what.add_argument(
        "--recipe", default="demo", metavar="NAME",
        help=f"where the search starts from, and what it leaves alone: {', '.join(RECIPES)}, or a recipe file "
        "(default: %(default)s)",
    )  # fmt: skip
    what.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
        help="change one field of the recipe, for instance epochs=50; may be repeated",
    )  # fmt: skip
    what.add_argument("--space", type=Path, metavar="FILE", help="your own search space: see sweeps/search/space.py")
    what.add_argument(
        "--tune", metavar="FIELD,FIELD,...", help="search these parameters alone, the rest as the recipe has them"
    )
    how = parser.add_argument_group("how to search")
    how.add_argument("--trials", type=int, metavar="N", help="trials, for each cell with --per-cell")
    how.add_argument("--hours", type=float, metavar="N", help="hours in which to start trials, for each cell")
    how.add_argument("--gpu-hours", type=float, metavar="N", help="hours of GPUs to spend, for each cell")
    how.add_argument(
        "--searcher", default="tpe", metavar="NAME",
        help="tpe, random, cmaes, gp, or for two objectives, accuracy and seconds of training, nsga2, nsga3, motpe "
        "(default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--scheduler", metavar="NAME",
        help="what stops trials early: asha, hyperband, median, none; or pbt, population-based training, which changes "
        "hyperparameters while it trains (default: asha; none for two objectives)",
    )  # fmt: skip
    how.add_argument(
        "--population", type=int, metavar="N",
        help="trials that pbt trains side by side; each that it replaces is one more of --trials (default: 8)",
    )  # fmt: skip
    how.add_argument(
        "--min-epochs", type=int, metavar="N",
        help="epochs of the last phase before a trial may be stopped, and with pbt between two comparisons (default: a "
        "ninth of them)",
    )  # fmt: skip
    how.add_argument(
        "--search-seed", type=int, default=1000, metavar="N",
        help="seed of the search's draws and of its trials, not one of --seeds (default: %(default)s)",
    )  # fmt: skip
    how.add_argument(
        "--warm-start", action="append", default=[], metavar="FROM",
        help="begin with the configuration of a recipe file, with points of a JSON list of {field: value}, or, for "
        "'mlflow', with the five best earlier runs of the same data set and tasks; may be repeated. The recipe's own "
        "configuration always is the first trial",
    )  # fmt: skip
    how.add_argument(
        "--seeds", default="0", metavar="N,N,...",
        help="seeds to train the best configuration with and to test it, or none (default: 0)",
    )  # fmt: skip
    where = parser.add_argument_group("where and with what")
    where.add_argument("--name", help="the search's name (default: made of what is tuned, or the study's)")
    where.add_argument(
        "--storage", type=storage_place, default=Path("results"), metavar="DIR",
        help="where the account of cells and the checkpoints are kept (default: %(default)s)",
    )  # fmt: skip
    where.add_argument(
        "--optuna-storage", metavar="URL", default=os.environ.get("OPTUNA_STORAGE"),
        help="the database of the search's state, on a cluster (default: $OPTUNA_STORAGE, else optuna.db under "
        "--storage)",
    )  # fmt: skip
    where.add_argument(
        "--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"), metavar="URI",
        help="MLflow's database or server (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )  # fmt: skip
    where.add_argument(
        "--experiment", default="relvit", metavar="NAME", help="MLflow's experiment (default: %(default)s)"
    )
    where.add_argument(
        "--address", default=os.environ.get("RAY_ADDRESS", "local"), metavar="ADDRESS",
        help="a Ray cluster, or 'local' to start one on this machine (default: $RAY_ADDRESS, else local)",
    )  # fmt: skip
    where.add_argument("--cpus", type=float, default=1, metavar="N", help="CPUs a trial (default: 1)")
    where.add_argument(
        "--gpus", type=float, metavar="N",
        help="GPUs a trial, a fraction to share one (default: 1 where the cluster has any, else 0)",
    )  # fmt: skip
    where.add_argument(
        "--checkpoint-every", type=int, default=1, metavar="EPOCHS", help="epochs between checkpoints (default: 1)"
    )
    where.add_argument("--plan", action="store_true", help="print the spaces and where they stand, and start nothing")
    options = parser.parse_args(arguments)
    try:
        options.seeds = () if options.seeds == NONE else tuple(int(seed) for seed in options.seeds.split(","))
    except ValueError:
        parser.error(f"--seeds takes whole numbers separated by commas, or none, not {options.seeds!r}")
    if options.cpus <= 0 or (options.gpus or 0) < 0 or options.checkpoint_every < 1:
        parser.error("--cpus must be above 0, --gpus at least 0 and --checkpoint-every at least 1")
    for name in ("trials", "hours", "gpu_hours", "min_epochs", "population"):
        amount = getattr(options, name)
        if amount is not None and amount <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, not {amount}")
    return options


def base_cells(options: argparse.Namespace) -> list[Cell]:
    """The recipe's cell for each search, with the search's seed. Raises PlanError."""
    combinations, specs = None, ()
    if options.per_cell:
        combinations = tuple(options.tasks.split(",")) if options.tasks else None
    else:
        tasks = options.tasks or BEST
        protocol = options.protocol or "pretrain_finetune"
        # As in the paper, a supervised baseline keeps its position embedding.
        embedding = {"pretrain_position_embedding": True} if tasks == NONE and protocol != "joint" else {}
        spec = {"dataset": "cifar10", "backbone": "vit_s4", "protocol": protocol, "tasks": tasks, **embedding}
        specs = (spec,)
    try:
        cells = list(
            plan(
                Request(
                    study=options.per_cell or "--tasks",
                    recipe=options.recipe,
                    data_root=options.data_root,
                    dataset=options.dataset,
                    backbone=options.backbone,
                    image_size=options.image_size,
                    combinations=combinations,
                    seeds=(options.search_seed,),
                    settings=tuple(options.settings),
                    specs=specs,
                )
            )
        )
    except PlanError as error:
        raise PlanError([*error.problems, *_contradictions(options)]) from error
    problems = _contradictions(options)
    problems += [f"--protocol {cell.protocol} has no phase that classifies" for cell in cells if not cell.epochs]
    if problems:
        raise PlanError(problems)
    return cells


def _contradictions(options: argparse.Namespace) -> list[str]:
    problems = []
    if options.per_cell and options.protocol:
        problems.append("--protocol and --per-cell contradict each other: a study says its cells' protocols")
    if options.search_seed in options.seeds:
        problems.append(
            f"--seeds {options.search_seed} is the search's own seed: its winner was chosen by its luck there, and a "
            "test with it would flatter; train with others, or change --search-seed"
        )
    if len(set(options.seeds)) < len(options.seeds):
        problems.append(f"--seeds names a seed twice: {', '.join(map(str, options.seeds))}")
    return problems


def main() -> int:
    options = parse_arguments()
    console = Console()
    account = Account(options.storage)
    try:
        cells, problems = base_cells(options), []
    except PlanError as error:
        cells, problems = [], error.problems
    # Optuna, Ray's domains and SQLAlchemy take seconds to import: only now.
    from sweeps.search import request as tuning

    try:
        searches = tuning.prepare(options, cells, account)
    except PlanError as error:
        return refuse(problems + error.problems)
    if problems:
        return refuse(problems)
    if options.plan:
        for line in tuning.describe(searches):
            say(console, line)
        return 0
    problems += account.check()
    problems += prepare_data(cells, options.data_root)
    if problems:
        return refuse(problems)
    names = [f"search {search.name}" for search in searches]
    with leases.hold(account.storage / "drivers", names, lost=lambda: stop_for_another(console)) as hold:
        if hold.others:
            return refuse([f"{name} is in the hands of {who}; wait for it" for name, who in hold.others.items()])
        return tune(options, console, account, searches)


def tune(options: argparse.Namespace, console: Console, account: Account, searches: list) -> int:
    """Search, report, train the winners. Ray and MLflow, which take seconds to start, come in here."""
    from sweeps.tracking.reachable import tracking_problems

    members: dict[str, str] = {}
    away = tracking_problems(options.tracking_uri)
    if away:
        return refuse(away)
    try:
        with ray_and_mlflow(options, console, account.storage, members) as (tracker, problem):
            if problem:
                return refuse([problem])
            return search_and_train(options, console, account, searches, tracker, members)
    except PlanError as error:
        return refuse(error.problems)


def search_and_train(
    options: argparse.Namespace,
    console: Console,
    account: Account,
    searches: list,
    tracker: "Tracker",
    members: dict[str, str],
) -> int:
    """The same on the connected cluster. members: by cell id, the studies that the tracker tags its runs with."""
    from sweeps.account.failures import Setting
    from sweeps.cluster import connection as cluster
    from sweeps.cluster.nodes import node_problems
    from sweeps.driver.driver import Options, run
    from sweeps.driver.trainable import Checkpoints
    from sweeps.search import request as tuning
    from sweeps.search.queue import run_searches
    from sweeps.tracking.reconciliation import reconcile

    gpus = cluster.gpus_per_trial(options.gpus)
    problems = cluster.resource_problems(options.cpus, gpus)
    names = [name for name, _ in datasets_of([search.base for search in searches])]
    problems += node_problems(account.storage, options.data_root, names)
    if options.gpu_hours and not gpus:
        problems.append("--gpu-hours is a budget of GPUs, and trials get none here: use --trials or --hours")
    opened = tuning.open_searches(options, searches, account, gpus) if not problems else []
    if problems:
        return refuse(problems)
    for change in reconcile([], account, tracker, alive=account.seem_held()):
        say(console, f"note: {change}")
    how = Options(Setting(options.cpus, gpus), options.data_root, Checkpoints(options.checkpoint_every))
    say(console, tuning.standing(opened))
    if not all(search.finished() for search in opened):
        outcome = run_searches(opened, account, tracker, members, console, how)
        if outcome.interrupted:
            say(console, f"interrupted with {len(outcome.interrupted)} trials to continue; run the same command")
            return INTERRUPTED
    without = [search.name for search in opened if search.best() is None]
    for name in without:
        say(console, f"FAILED {name}: no trial was trained to its end, so there is no best configuration")
    finals = tuning.finals(options, opened, account)
    cells = [cell for each in finals.values() for cell in each]
    members.update(dict.fromkeys((cell.cell_id for cell in cells), tuning.finals_study(options, opened)))
    failed = []
    account.plan({cell: members[cell.cell_id] for cell in cells})
    to_train = tuning.unfinished(cells, account)
    if to_train:
        say(console, f"training {len(to_train)} cells of the best configurations, to be tested")
        result = run(to_train, account, tracker, console, how)
        if result.interrupted:
            say(console, f"interrupted with {len(result.interrupted)} cells to go; run the same command")
            return INTERRUPTED
        failed = list(result.failed)
    reconcile(cells, account, tracker, alive=account.seem_held())
    for line in tuning.report(options, opened, finals, account, tracker):
        say(console, line)
    return 1 if failed or without else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
