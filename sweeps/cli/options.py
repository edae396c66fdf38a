"""The options that entries share, each defined once, and what they are below the entries: plain records."""

import argparse
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relvit.cell import BACKBONES, COMPILE
from relvit.data import DATASETS
from relvit.files import Location, folder, location, sqlite_file
from sweeps.planning.plan import Request
from sweeps.planning.recipes import RECIPES

AUTO = "auto"  # of --gpus
_LEAST = 0.0001  # Ray counts CPUs and GPUs in ten-thousandths


@dataclass(frozen=True)
class Places:
    """Where a sweep keeps, reads and tracks things, and the cluster that it runs on."""

    storage: Location
    data_root: Path
    tracking_uri: str
    experiment: str
    address: str

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Places":
        """As the user named them."""
        return cls(**{name: getattr(arguments, name) for name in cls.__dataclass_fields__})


def new_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows an entry's docstring as it is written."""
    return argparse.ArgumentParser(prog=name, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def storage_place(text: str) -> Location:
    """The type of --storage: `relvit.files.location`, with argparse saying what is wrong with it."""
    try:
        return location(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class _Once(argparse.Action):
    """Keeps an option's value, and refuses a second one instead of forgetting the first."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any, *_: Any) -> None:
        if getattr(namespace, self.dest) is not None:
            parser.error(f"{self.option_strings[0]} is given twice, and takes one file: put all in it")
        setattr(namespace, self.dest, value)


def add_storage(group: Any, what: str = "where the account of cells and the checkpoints are kept") -> None:
    """--storage."""
    group.add_argument(
        "--storage", type=storage_place, default=os.environ.get("RELVIT_STORAGE", "results"), metavar="DIR",
        help=f"{what}: a folder that every node sees, or s3://BUCKET/FOLDER (default: $RELVIT_STORAGE, else results)",
    )  # fmt: skip


def add_data_root(group: Any) -> None:
    """--data-root."""
    group.add_argument(
        "--data-root", type=folder, default=os.environ.get("RELVIT_DATA_ROOT", "data"), metavar="DIR",
        help="where data sets are, or are downloaded to (default: $RELVIT_DATA_ROOT, else data)",
    )  # fmt: skip


def add_tracking(group: Any) -> None:
    """--tracking-uri and --experiment."""
    group.add_argument(
        "--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db"), metavar="URI",
        help="MLflow's database or server (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )  # fmt: skip
    group.add_argument(
        "--experiment", default="relvit", metavar="NAME", help="MLflow's experiment (default: %(default)s)"
    )


def add_cluster(group: Any) -> None:
    """--address and --cpus."""
    group.add_argument(
        "--address", default=os.environ.get("RAY_ADDRESS", "local"), metavar="ADDRESS",
        help="a Ray cluster, or 'local' to start one on this machine (default: $RAY_ADDRESS, else local)",
    )  # fmt: skip
    group.add_argument(
        "--cpus", type=float, default=1, metavar="N", help="CPUs a trial, a torch thread each (default: 1)"
    )


def add_cell_options(group: Any, recipe: str, default: str) -> None:
    """What both a plan and a search take about cells. recipe: what --recipe is for; default: whose value holds where
    nothing is given."""
    group.add_argument(
        "--recipe", default="demo", metavar="NAME",
        help=f"{recipe}: {', '.join(RECIPES)}, or a file that a search wrote, FILE.json (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--dataset", metavar="NAME",
        help=f"{', '.join(DATASETS)}, or a folder DATA_ROOT/NAME with train/CLASS/ and test/CLASS/, in place of the "
        f"one data set of a study (default: {default})",
    )  # fmt: skip
    add_data_root(group)
    group.add_argument(
        "--backbone",
        metavar="NAME",
        help=f"{', '.join(BACKBONES)}, or timm/NAME for a model of timm (default: {default})",
    )
    group.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the images (default: the data set's)")
    group.add_argument(
        "--tasks-file", type=folder, metavar="FILE", action=_Once,
        help="a Python file of further tasks, which cells may then name: see relvit/task_files.py",
    )  # fmt: skip
    group.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="settings",
        help="change one field of the recipe, for instance epochs=50; may be repeated",
    )  # fmt: skip


def request_of(arguments: argparse.Namespace, study: str, seeds: tuple[int, ...], **more: Any) -> Request:
    """The plan's request, of `add_cell_options` and more."""
    names = ("recipe", "data_root", "dataset", "backbone", "image_size", "tasks_file")
    given = {name: getattr(arguments, name) for name in names}
    return Request(study=study, seeds=seeds, settings=tuple(arguments.settings), **given, **more)


def parse_seeds(parser: argparse.ArgumentParser, text: str, or_none: str = "") -> tuple[int, ...]:
    """Whole numbers separated by commas. or_none: what else the option takes, for the message."""
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        parser.error(f"--seeds takes whole numbers separated by commas{or_none}, not {text!r}")


def require_above_zero(parser: argparse.ArgumentParser, arguments: argparse.Namespace, names: Iterable[str]) -> None:
    """End with a message where one of these options is given and not above 0."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0, not {value:g}")


def add_compile(group: Any) -> None:
    """--compile."""
    group.add_argument(
        "--compile", choices=COMPILE, default=COMPILE[0],
        help="compile training steps with torch.compile: auto does on a GPU, and goes on without where that fails; "
        "results are the same but for rounding (default: %(default)s)",
    )  # fmt: skip


def require_shares(parser: argparse.ArgumentParser, cpus: float, gpus: float | str | None) -> None:
    """End with a message where no trial can have so many CPUs or GPUs."""
    if not _LEAST <= cpus < math.inf:
        parser.error(f"--cpus must be at least {_LEAST:g}, not {cpus:g}")
    if gpus is None or isinstance(gpus, str):
        return
    if not (gpus == 0 or gpus >= _LEAST):
        parser.error(f"--gpus must be 0, or at least {_LEAST:g}, not {gpus:g}")
    if gpus > 1:
        parser.error(
            f"--gpus must be at most 1, not {gpus:g}: a trial trains on one GPU or a share of one, and would leave the "
            "others idle; several GPUs train several trials at once"
        )


def lost_paths(places: Places) -> list[str]:
    """Paths that would be lost with a submitted job's copy of the working directory, which Ray removes."""
    if "runtime_resources" not in Path.cwd().parts:
        return []
    given = {
        "--storage": (places.storage, "RELVIT_STORAGE", "/shared/results"),
        "--data-root": (places.data_root, "RELVIT_DATA_ROOT", "/data"),
        "--tracking-uri": (sqlite_file(places.tracking_uri), "MLFLOW_TRACKING_URI", "http://127.0.0.1:5000"),
    }
    return [
        f"{option} is a relative path, and this job runs in a copy of the working directory that Ray removes when it "
        f"is done: give what every node sees, for instance {option} {example}, or set it once for all jobs where the "
        f"cluster is started: export {variable}={example}"
        for option, (path, variable, example) in given.items()
        if isinstance(path, Path) and not path.is_absolute()
    ]
