"""Pictures of what finished ViTs have learned, as artifacts of their MLflow runs, under "pictures".

    python sweeps/pictures.py --study table4

For each finished run: the similarity of its learned position embeddings, the principal components of its patch
filters, the attention of the class token over a few test images, the same for all runs of a data set, and the
confusion matrix of the test split. Drawn after the sweep from the weights in its storage, about a second a run, so that
no training waits for a picture; a run that has all its pictures (tag "pictures") is left alone, because finished
weights do not change. A Swin Transformer has only the matrix, T2T-ViT that and attention. Exit status: 0, 1 where a run
did not get its pictures, for instance because its weights are missing, 2 where there is nothing to draw.
"""

import argparse
import io
import json
import os
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # runs from a checkout that is not installed
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # here MLflow is imported before the package that says so

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError
from torch import Tensor

from relvit import data
from relvit.augment import Augmentation
from relvit.backbones import Backbone
from relvit.cell import FIELDS, LATER_FIELDS, NONE, Cell, add_described, parse_value
from relvit.evaluation import EVALUATION
from relvit.files import Location, sqlite_file
from relvit.messages import unknown
from relvit.pictures import NoPicture, attention, patch_filters, position_similarity, trained_backbone
from relvit.vocabulary import CELL_ID, PICTURES, PICTURES_DRAWN, STUDY, TASK_ROWS
from sweeps.account.account import Account
from sweeps.cli import options as shared
from sweeps.cli.console import SOME_FAILED, exit_status, refuse
from sweeps.tracking.history import follow_move
from sweeps.tracking.reachable import tracking_problems
from sweeps.tracking.tracker import search_runs

NOTHING = "nothing was drawn"
_STYLE: Any = {"font.size": 8, "axes.titlesize": 8, "image.interpolation": "nearest"}
_STYLE["figure.constrained_layout.use"] = True
_STYLE["text.parse_math"] = False  # a "$" in the name of a class is a "$"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = shared.new_parser("pictures.py", __doc__)
    parser.add_argument("--study", metavar="NAME", help="only runs of this study (default: all finished runs)")
    shared.add_storage(parser, "where the sweep kept its weights")
    shared.add_data_root(parser)
    shared.add_tracking(parser)
    parser.add_argument("--images", type=int, default=6, metavar="N", help="test images (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="also for runs that have their pictures")
    options = parser.parse_args(arguments)
    if options.images < 1:
        parser.error(f"--images must be at least 1, not {options.images}")
    return options


def main() -> int:
    options = parse_arguments()
    problems = tracking_problems(options.tracking_uri)
    if problems:
        return refuse(problems, NOTHING)
    try:
        client = MlflowClient(_existing(options.tracking_uri))
        runs = finished_runs(client, options.experiment, options.study)
    except (ValueError, MlflowException, SQLAlchemyError, ImportError) as error:
        return refuse([str(error)], NOTHING)
    if not runs:
        of = f" of study {options.study!r}" if options.study else ""
        return refuse([f"experiment {options.experiment!r} has no finished runs{of}"], NOTHING)
    follow_move(options.tracking_uri, options.experiment)
    account = Account(options.storage)
    missing = 0
    for number, run in enumerate(runs, start=1):
        name = f"[{number}/{len(runs)}] {run.data.tags[CELL_ID]}"
        if not options.again and PICTURES_DRAWN in run.data.tags:
            print(f"{name}: has its pictures")
            continue
        try:
            outcome = picture(client, run, account, options.data_root, options.images)
        except (OSError, ValueError, MlflowException) as error:
            why = "MLflow did not take its pictures" if isinstance(error, MlflowException) else "not drawn"
            print(f"{name}: {why}: {error}", file=sys.stderr)
            missing += 1
            continue
        print(f"{name}: {outcome}")
    return SOME_FAILED if missing else 0


def _existing(uri: str) -> str:
    """MLflow would make an empty database where there is none."""
    path = sqlite_file(uri)
    if path and not path.exists():
        raise ValueError(f"there is no tracking database at {path.absolute()}: name another with --tracking-uri")
    return uri


def finished_runs(client: MlflowClient, experiment: str, study: str | None) -> list[Run]:
    """The finished runs of cells, of one study or of all. Raises ValueError where there is no such experiment."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise ValueError(unknown("experiment", experiment, (each.name for each in client.search_experiments())))
    runs = search_runs(client, found.experiment_id, f"tags.{CELL_ID} != '' and attributes.status = 'FINISHED'")
    return [run for run in runs if study is None or study in run.data.tags.get(STUDY, "").split(",")]


def picture(client: MlflowClient, run: Run, account: Account, data_root: Path, images: int) -> str:
    """Draw a run's pictures, and log them once all are drawn. Returns what was logged and what there is none of, as a
    sentence.

    Raises FileNotFoundError where its weights are not in the account; relvit.data.DataError for its data set;
    ValueError where the run lacks what makes a cell; MlflowException where they cannot be logged.
    """
    add_described(run.data.tags.get(TASK_ROWS, "[]"))
    lacking = [name for name in FIELDS if name not in run.data.params and name not in LATER_FIELDS]
    if lacking:
        raise ValueError(f"its run lacks parameters, without which its weights cannot be found: {', '.join(lacking)}")
    params = {name: parse_value(name, run.data.params[name]) for name in FIELDS if name in run.data.params}
    folder = account.folder(Cell(**params))
    cell, backbone = trained_backbone(folder)
    drawn, absent = {}, []
    for name, draw in (
        ("position_similarity", lambda: draw_position_similarity(position_similarity(backbone))),
        ("patch_filters", lambda: draw_patch_filters(*patch_filters(backbone))),
        ("attention", lambda: _attention(cell, backbone, data_root, images)),
        ("confusion", lambda: draw_confusion(_evaluation(folder))),
    ):
        try:
            with matplotlib.rc_context(_STYLE):
                drawn[name] = _png(draw())
        except NoPicture as reason:
            absent.append(f"no {name}: {reason}")
    with TemporaryDirectory() as scratch:
        for name, content in drawn.items():
            path = Path(scratch, f"{name}.png")
            path.write_bytes(content)
            client.log_artifact(run.info.run_id, str(path), PICTURES)
    client.set_tag(run.info.run_id, PICTURES_DRAWN, ", ".join(drawn) or NONE)
    return "; ".join([f"logged {', '.join(drawn)}" if drawn else "nothing logged", *absent])


def _attention(cell: Cell, backbone: Backbone, data_root: Path, count: int) -> Figure:
    if cell.tasks != NONE and cell.protocol in ("pretrain", "pretrain_probe"):
        raise NoPicture("pre-training on tasks alone gives the class token no loss, so its attention means nothing")
    dataset, pixels, labels = first_test_images(cell.dataset, data_root, cell.last_image_size, count)
    plain = Augmentation(patch_size=cell.patch_size, mean=dataset.mean, std=dataset.std)
    inputs, _ = plain(torch.from_numpy(pixels), torch.Generator())
    return draw_attention(pixels, [dataset.classes[label] for label in labels], attention(backbone, inputs))


def _evaluation(folder: Location) -> dict[str, Any]:
    if not (folder / EVALUATION).exists():
        raise NoPicture("nothing is classified, or an older version did not keep how each class came out")
    return json.loads((folder / EVALUATION).read_text())


@cache
def first_test_images(name: str, data_root: Path, image_size: int, count: int) -> tuple[data.Dataset, Any, Any]:
    """The first test image of each of the first `count` classes: the same for every run, and no one's choice."""
    dataset = data.load(name, data_root, image_size)
    _, first = np.unique(dataset.test.labels, return_index=True)
    return dataset, *dataset.test.read(first[:count])


# From tensors to figures


def draw_position_similarity(similarity: Tensor) -> Figure:
    """similarity: [R, C, R, C]. A map for each patch, at the patch's place."""
    rows, columns = similarity.shape[:2]
    figure = Figure(figsize=(4.2, 3.8 * rows / columns))
    axes = figure.subplots()
    shown = axes.imshow(tiled(similarity.flatten(0, 1), columns), cmap="RdBu_r", vmin=-1, vmax=1)
    step = similarity.shape[3] + 1
    axes.set_xticks(
        [step * column + (step - 2) / 2 for column in range(columns)], [str(number) for number in range(1, columns + 1)]
    )
    axes.set_yticks(
        [step * row + (step - 2) / 2 for row in range(rows)], [str(number) for number in range(1, rows + 1)]
    )
    axes.tick_params(length=0)
    axes.set_xlabel("Patch column")
    axes.set_ylabel("Patch row")
    axes.set_title("Similarity of position embeddings")
    _bare(axes)
    figure.colorbar(shown, label="Cosine similarity", shrink=0.85)
    return figure


def draw_patch_filters(components: Tensor, explained: Tensor) -> Figure:
    """components: [K, P, P, 3]; explained: [K]. Zero is grey; each component is stretched to its own range."""
    columns = min(7, len(components))
    figure = Figure(figsize=(3.6, 0.4 + 3.5 / columns * -(-len(components) // columns)))
    axes = figure.subplots()
    largest = components.abs().amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    axes.imshow(tiled(0.5 + 0.5 * components / largest, columns))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(
        f"{len(components)} principal components of the patch filters ({100 * explained.sum():.0f} % of variance)"
    )
    _bare(axes)
    return figure


def draw_attention(pixels: np.ndarray, names: list[str], weights: Tensor) -> Figure:
    """pixels: uint8 [B, S, S, 3]; names: their classes; weights: [B, H, R, C], laid over the image in colour. One scale
    for all, of which the highest hundredth is beyond the end: a head that looks at one patch would leave all else dark.
    """
    side, most = pixels.shape[1], float(weights.quantile(0.99))
    heads = weights.shape[1]
    columns = ["image", "mean", *(f"head {head + 1}" for head in range(heads))]
    figure = Figure(figsize=(1.2 + 0.85 * len(columns), 0.5 + 0.85 * len(pixels)))
    grid = figure.subplots(len(pixels), len(columns), squeeze=False)
    for row, (image, name, by_head) in enumerate(zip(pixels, names, weights)):
        grid[row, 0].imshow(image)
        grid[row, 0].set_ylabel(name)
        for axes, weight in zip(grid[row, 1:], [by_head.mean(0), *by_head]):
            axes.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=255)
            shown = axes.imshow(
                weight.numpy(),
                cmap="inferno",
                vmin=0,
                vmax=most,
                alpha=0.6,
                extent=(-0.5, side - 0.5, side - 0.5, -0.5),
            )
    for axes, title in zip(grid[0], columns):
        axes.set_title(title)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
        _bare(axes)
    figure.colorbar(shown, ax=grid, label="Share of the attention", shrink=0.6, extend="max")
    figure.suptitle("Attention of the class token to the patches, last block; the rest is to itself", fontsize=8)
    return figure


def draw_confusion(evaluation: dict[str, Any]) -> Figure:
    """`relvit.evaluation`'s content. A row a true class, in per cent of its images."""
    names, counts = evaluation["classes"], np.array(evaluation["confusion"], dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few = len(names) <= 20
    side = 1.6 + 0.24 * len(names) if few else 6.4
    figure = Figure(figsize=(side + 0.7, side))
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    if few:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for row, column in zip(*np.nonzero(counts)):
            colour = "white" if shares[row, column] > 60 else "black"
            text = f"{shares[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=colour)
    axes.tick_params(length=0)
    axes.set_xlabel("Answered")
    axes.set_ylabel("True class")
    axes.set_title(f"Test split: {100 * counts.trace() / counts.sum():.2f} % right")
    _bare(axes)
    figure.colorbar(shown, label="Images of the class (%)", shrink=0.7)
    return figure


def tiled(pictures: Tensor, columns: int) -> np.ndarray:
    """Pictures [K, h, w] or [K, h, w, 3] in rows of `columns`, one empty pixel between them: float, empty is NaN.

    With colours, empty is 1 (white).
    """
    count, height, width, *colours = pictures.shape
    rows = -(-count // columns)
    empty = 1.0 if colours else np.nan
    canvas = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, *colours), empty)
    for number, each in enumerate(pictures.numpy()):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        canvas[top : top + height, left : left + width] = each
    return canvas


def _bare(axes: Axes) -> None:
    for spine in axes.spines.values():
        spine.set_visible(False)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(exit_status(main))
