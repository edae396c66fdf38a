"""Search hyperparameters on validation data, then train the best configuration and look at the test split once.

    python sweeps/hpo.py --trials 40                       the demo's digits, SpRel + AbsPos; minutes on two cores
    python sweeps/hpo.py --per-cell table4 --trials 27     each of Table 4's 16 cells with the same budget and space
    python sweeps/hpo.py --recipe paper --data-root data --gpu-hours 50 --gpus 0.5

Run the same command again to resume, also after a kill: ended trials are kept, running ones continue from their
checkpoint, and a larger budget adds trials. The results are a recipe for `sweeps/ablation.py --recipe FILE`, a report
with pictures, and an MLflow run that summarizes the search, all under --storage in hpo/NAME. Watch it with
`optuna-dashboard sqlite:///results/optuna.db`. Exit status: 0 all done, 1 a search without a complete trial or a final
training that failed, 2 the request is wrong (nothing was started), 130 interrupted.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # runs from a checkout that is not installed

from relvit.cell import NONE, PROTOCOLS, TASKS
from relvit.files import folder
from sweeps.cli import options as shared
from sweeps.cli.console import exit_status, new_console
from sweeps.cli.options import Places
from sweeps.planning.studies import BEST, STUDIES


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = shared.new_parser("hpo.py", __doc__)
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
    shared.add_cell_options(
        what, "where the search starts from, and what it leaves alone", "the recipe's, or the study's"
    )
    what.add_argument("--space", type=folder, metavar="FILE", help="your own search space: see sweeps/search/space.py")
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
    shared.add_storage(where)
    where.add_argument(
        "--optuna-storage", metavar="URL", default=os.environ.get("OPTUNA_STORAGE"),
        help="the database of the search's state, on a cluster (default: $OPTUNA_STORAGE, else optuna.db under "
        "--storage)",
    )  # fmt: skip
    shared.add_tracking(where)
    shared.add_cluster(where)
    where.add_argument(
        "--gpus", type=float, metavar="N",
        help="GPUs a trial, a fraction to share one (default: 1 where the cluster has any, else 0)",
    )  # fmt: skip
    shared.add_compile(where)
    where.add_argument(
        "--checkpoint-every", type=int, default=1, metavar="EPOCHS", help="epochs between checkpoints (default: 1)"
    )
    where.add_argument("--plan", action="store_true", help="print the spaces and where they stand, and start nothing")
    options = parser.parse_args(arguments)
    options.seeds = () if options.seeds == NONE else shared.parse_seeds(parser, options.seeds, ", or none")
    above_zero = ("trials", "hours", "gpu_hours", "min_epochs", "population", "checkpoint_every")
    shared.require_above_zero(parser, options, above_zero)
    shared.require_shares(parser, options.cpus, options.gpus)
    return options


def main() -> int:
    options = parse_arguments()
    # Optuna, Ray's domains and SQLAlchemy take seconds to import: only now.
    from sweeps.search.request import SearchRequest
    from sweeps.search.session import search_and_test

    places = Places.of(options)
    names = [name for name in SearchRequest.__dataclass_fields__ if name != "places"]
    given = {name: getattr(options, name) for name in names}
    given |= {name: tuple(given[name]) for name in ("settings", "warm_start")}
    return search_and_test(SearchRequest(places, **given), new_console(), options.plan)


if __name__ == "__main__":
    sys.exit(exit_status(main))
