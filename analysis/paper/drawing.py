"""The figures of a study: vector PDF for a paper, and PNG for a page, at the width of the paper's columns.

runs     what `runs.gather.gather` returns, of one setting (but several data sets and backbones where a study has
         them); only runs with status FINISHED are drawn.
metrics  one row a run, metric and step, from the same place.

Every function from frames to a figure raises NothingToDraw, with the reason, where the frames lack what it shows.
Colours are those of Okabe and Ito, which the colour-blind tell apart; line styles and markers differ too, so that
nothing is lost in grey. The same frames give the same bytes: files hold no dates. Each file's metadata (Title and
Subject in PDF, Title and Description in PNG) has the figure's caption.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.output.typeset import Entry
from analysis.paper.entries import NothingToDraw
from analysis.paper.numbers import ids_by, listed, plus_minus
from analysis.runs.comparability import chosen_fields, commits
from analysis.stats.seeds import by_seed, describe
from relvit.cell import DRLOC, NONE
from relvit.paper import backbone_name, dataset_name, named_value, telling_fields
from relvit.tasks import TASKS
from relvit.vocabulary import LAST_PHASE, val_accuracy

COLUMN, PAGE = 3.25, 6.875  # inches: one column of the paper, and both
STYLE: Mapping[str, Any] = {
    "font.family": "STIXGeneral",  # comes with matplotlib and goes with a paper set in Times
    "mathtext.fontset": "stix",
    "text.parse_math": False,  # a "$" in a name is a "$"
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "pdf.fonttype": 42,  # TrueType: text stays text, which publishers ask for
    "savefig.dpi": 300,
    "figure.constrained_layout.use": True,
}
BLACK, GREY, FAINT = "#000000", "#666666", "#bbbbbb"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#E69F00", "#56B4E9"


class Look(NamedTuple):
    """How a line or point is told from others: by colour, by dashes and by marker, each of which suffices."""

    color: str
    linestyle: Any
    marker: str


LOOKS = (
    Look(BLUE, "-", "o"),
    Look(VERMILLION, (0, (5, 1.5)), "s"),
    Look(GREEN, (0, (5, 1.5, 1, 1.5)), "^"),
    Look(PURPLE, (0, (1, 1)), "D"),
    Look(ORANGE, (0, (3, 1, 1, 1, 1, 1)), "v"),
    Look(SKY, (0, (8, 2)), "P"),
    Look(BLACK, (0, (2, 2)), "X"),
)
SEED: Mapping[str, Any] = {"markersize": 1.8, "markeredgewidth": 0, "alpha": 0.35, "zorder": 2}  # behind a mean
BASELINE = Look(VERMILLION, (0, (4, 1.5)), "s")  # the paper's red dashed line
PHASE_NAMES = {"finetune": "fine-tuning", "joint": "joint training", "probe": "linear probing"}  # those that classify


def metrics_read() -> list[str]:
    """All that any figure reads of the metrics, which may have a hundred times as many points."""
    return [*map(val_accuracy, PHASE_NAMES), *(f"pretrain_val_{task.metric_name}" for task in TASKS.values())]


# What runs are called, and their curves


def combination_name(tasks: str | None) -> str:
    """ "sprel+abspos" as the paper writes it: "SpRel + AbsPos"; "none" is "Supervised"; None is not known."""
    whole = {None: "unknown tasks", NONE: "Supervised", DRLOC: DRLOC}
    if tasks in whole:
        return whole[tasks]
    return " + ".join(TASKS[task].title if task in TASKS else task for task in tasks.split("+"))


def kinds(runs: pd.DataFrame) -> pd.Series:
    """What each run is a seed of: a label that tells apart runs which differ in anything but the seed.

    The tasks come first, then as few of the fields that act in a run as tell them apart.
    """
    tasks = [None if pd.isna(each) else each for each in runs["tasks"]]
    rows = [chosen_fields(row) | {"tasks": each} for row, each in zip(runs.to_dict("records"), tasks)]
    told = telling_fields(rows)
    labels = [
        ", ".join([combination_name(row["tasks"]), *(named_value(name, row[name]) for name in told if name in row)])
        for row in rows
    ]
    return pd.Series(labels, index=runs.index, name="kind", dtype=object)


def curve(metrics: pd.DataFrame, runs: pd.DataFrame, metric: str, first_step: int = 0) -> pd.DataFrame:
    """A metric over the epochs of runs that differ in the seed alone.

    first_step: steps before the phase. Index: epoch of the phase, from 1. Columns: mean, std (of the sample; null for
    a single run), n, in the metric's unit. Its attribute "runs": the ids of those that have logged it.
    """
    points = metrics[(metrics["metric"] == metric).to_numpy() & metrics["run_id"].isin(set(runs["run_id"])).to_numpy()]
    points = points.drop_duplicates(["run_id", "step"], keep="last").astype({"value": float, "step": int})
    table = points.groupby("step")["value"].agg(mean="mean", std="std", n="size").sort_index()
    table = table.set_axis((table.index - first_step).rename("epoch"))
    table.attrs["runs"] = tuple(sorted(points["run_id"].astype(str).unique()))
    return table


def result_curve(metrics: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The validation accuracy of the phase that classifies, over its epochs."""
    runs = runs[runs["pretrain_epochs"].notna()]  # else nobody knows where its phase begins
    if runs.empty:
        return curve(metrics, runs, "")
    first = runs.iloc[0]
    return curve(metrics, runs, val_accuracy(LAST_PHASE[first["protocol"]]), int(first["pretrain_epochs"]))


def curve_entry(table: pd.DataFrame) -> Entry:
    """A line as a number: where it ends, and its mean at every epoch."""
    last = table.iloc[-1]
    means = {f"epoch {epoch}": mean for epoch, mean in table["mean"].items()}
    return Entry(
        plus_minus(last["mean"], last["std"]),
        numbers={"value": last["mean"], "std": last["std"], "n": last["n"], **means},
        runs=table.attrs["runs"],
    )


def mean_points(runs: pd.DataFrame, by: str = "tasks") -> pd.DataFrame:
    """`describe` of the test accuracy of finished runs, with the ids of those that each mean rests on."""
    table = describe(by_seed(runs, by))
    ids = ids_by(runs[runs["test_accuracy"].notna().to_numpy(dtype=bool)], by)
    return table.assign(runs=[ids.get(cell, ()) for cell in table.index])


def draw_curve(axes: Axes, table: pd.DataFrame, look: Look, label: str | None, *, width: float = 1.2) -> None:
    """A line of means with a band of one standard deviation to either side."""
    epochs = table.index.to_numpy()
    # A marker on every epoch would hide the line. A few tell the lines apart, each line's at other epochs.
    every = max(1, round(len(epochs) / 6))
    first = [each.marker for each in LOOKS].index(look.marker) * every // len(LOOKS)
    axes.plot(
        epochs,
        table["mean"].to_numpy(),
        color=look.color,
        linestyle=look.linestyle,
        marker=look.marker,
        markevery=(first, every),
        markersize=3,
        linewidth=width,
        label=label,
    )
    if table["std"].notna().any():
        low, high = (table["mean"] + sign * table["std"] for sign in (-1, 1))
        axes.fill_between(epochs, low.to_numpy(), high.to_numpy(), color=look.color, alpha=0.18, linewidth=0)


def draw_points(
    axes: Axes, table: pd.DataFrame, rows: np.ndarray, look: Look, label: str, face: str | None = None
) -> None:
    """Means with their intervals, where there are any, along the horizontal axis. face: of the marker, if another."""
    mean, low, high = (table[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
    errors = np.nan_to_num(np.stack([mean - low, high - mean]))
    axes.errorbar(
        mean, rows, xerr=errors, fmt=look.marker, color=look.color, markersize=3.6, elinewidth=1.1, capthick=0.8,
        capsize=2.8 if errors.any() else 0, label=label, zorder=4,
        markerfacecolor=face or look.color,  # the caps are taller than the dot, which hides a short bar
    )  # fmt: skip


def draw_seeds(axes: Axes, wide: pd.DataFrame, rows: np.ndarray, look: Look) -> None:
    """Every seed as a faint dot along the horizontal axis: a row a column of `wide` that has several."""
    for row, (_, values) in zip(rows, wide.items()):
        values = values.dropna()
        if len(values) > 1:
            axes.plot(values, [row] * len(values), "o", color=look.color, **SEED)


def where_true(runs: pd.DataFrame, mask: pd.Series) -> pd.DataFrame:
    """The rows where the mask is true; what a run does not know (null) is not true."""
    return runs[mask.astype("boolean").fillna(False).to_numpy(dtype=bool)]


def finished_runs(runs: pd.DataFrame) -> pd.DataFrame:
    finished = where_true(runs, runs["status"] == "FINISHED")
    if finished.empty:
        raise NothingToDraw("no run is finished")
    return finished


def epochs_axis(axes: Axes, label: str | None) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if label:
        axes.set_xlabel(label)


def shared_legend(figure: Figure, grid: np.ndarray, ncols: int = 3) -> None:
    handles = {label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=ncols)


def source_sentence(runs: pd.DataFrame) -> str:
    """Data, model, epochs, seeds and code in a sentence."""

    def values(name: str) -> list[str]:
        return [str(value) for value in sorted(runs[name].dropna().unique())]

    # A joint cell has no first phase: its 0 epochs of it are not a choice.
    phases = runs[["pretrain_epochs", "epochs"]].fillna(0).to_numpy()
    epochs = sorted({" + ".join(str(n) for n in row if n) or "unknown" for row in phases})
    seeds = runs["seed"].dropna().astype(int).unique()
    return (
        f"Runs on {', '.join(map(dataset_name, values('dataset')))} with "
        f"{', '.join(map(backbone_name, values('backbone')))}; {' or '.join(epochs)} epochs; "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}; commit {', '.join(commits(runs))}."
    )


def zoom(axes: Axes, lines: Iterable[pd.DataFrame]) -> str:
    """Let the axis show what lines do after the first quarter of their epochs: where they rise from (an error: fall
    from) would flatten what tells them apart. Returns the sentence for the caption, empty where none is cut off."""
    lines = list(lines)
    whole = [(each["mean"] - sign * each["std"].fillna(0.0)) for each in lines for sign in (1, -1)]
    late = [each[each.index * 4 > each.index.max()] for each in whole]
    rising = sum(each["mean"].iloc[-1] - each["mean"].iloc[0] for each in lines) >= 0
    low = min(each.min() for each in (late if rising else whole))
    high = max(each.max() for each in (whole if rising else late))
    pad = 0.05 * max(high - low, 0.1)
    axes.set_ylim(low - pad, high + pad)
    cut = any(each.min() < low or each.max() > high for each in whole)
    return " The axis is that of the epochs after the first quarter; lines begin outside it." * cut


def bands_sentence(n: Iterable[int]) -> str:
    if max(n, default=0) < 2:
        return "A single seed: there are no bands."
    return "Lines are means over seeds, bands one standard deviation to either side."
