"""Accuracy against training time, for any study.

On a CPU it is the processor's time, which another load of the machine leaves as it is; on a GPU, and where a run of an
older version does not know that, the clock's.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from analysis.output.typeset import Entry
from analysis.paper import drawing
from analysis.paper.entries import Drawing, NothingToDraw
from analysis.paper.numbers import number_entry
from analysis.runs.splits import split_of
from relvit.cell import DRLOC
from relvit.paper import backbone_name, dataset_name
from relvit.vocabulary import DEVICE, PROCESSOR_SECONDS, TEST_ACCURACY, TRAINING_SECONDS


def cost(runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Test accuracy against training time, and which cells no other beats in both."""
    table = cost_table(runs)
    groups = list(table.groupby(level=["dataset", "backbone"], sort=False))
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    fronts = {place: _numbered_front(part) for place, part in groups}
    # Of one panel the front is named below it, of several in the caption, where there is room.
    key = fronts[groups[0][0]] if len(groups) == 1 else []
    key_columns = 1 if max(map(len, key), default=0) > 34 else 2
    height = 0.5 + (2.2 if columns == 1 else 1.9) * rows + 0.13 * -(-len(key) // key_columns)
    figure = Figure(figsize=(drawing.COLUMN if columns == 1 else drawing.PAGE, height))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    unit, length = _time_unit(table["minutes"].max())
    time = "Processor time" if table.attrs["seconds"] == PROCESSOR_SECONDS else "Training time"
    for axes, ((dataset, backbone), part) in zip(grid.flat, groups):
        _draw_cost(axes, part.droplevel(["dataset", "backbone"]), length)
        if len(groups) > 1:
            axes.set_title(f"{dataset_name(dataset)}, {backbone_name(backbone)}")
    if key:
        grid[0, 0].set(xlabel=f"{time} ({unit})", ylabel=f"{split_of(runs).capitalize()} accuracy (%)")
        handles = [Line2D([], [], linestyle="none") for _ in key]
        figure.legend(
            handles, key, loc="outside lower center", ncols=key_columns, fontsize=7, handlelength=0, handletextpad=0,
            labelspacing=0.25, columnspacing=1.5,
        )  # fmt: skip
    else:
        figure.supylabel(f"{split_of(runs).capitalize()} accuracy (%)", fontsize=8)
        figure.supxlabel(f"{time} ({unit})", fontsize=8)
    drawing.shared_legend(figure, grid)
    named = "; ".join(
        f"{dataset_name(dataset)}, {backbone_name(backbone)}: {', '.join(front)}"
        for (dataset, backbone), front in fronts.items()
        if not key
    )
    finished = drawing.finished_runs(runs)
    devices = sorted(finished.reindex(columns=["device"])["device"].dropna().unique())
    machine = f" Measured on {', '.join(map(str, devices))}." if devices else ""
    interval = " Bars are 95 % t intervals over seeds." if table["low"].notna().any() else ""
    caption = (
        f"{split_of(runs).capitalize()} accuracy against {time.lower()}, means over seeds, the faint dots; the line "
        f"joins the cells that no other beats in both, numbered from left to right{f' ({named})' * bool(named)}. "
        "The time includes the whole pre-training, also where cells share it"
        f"{', and depends on what else the machine did' * (time == 'Training time')}."
        f"{machine}{interval} {drawing.source_sentence(finished)}"
    )
    numbers = {
        ", ".join(place if len(groups) > 1 else place[-1:]): {
            "accuracy": number_entry(row),
            "minutes": Entry(f"{row['minutes']:.2f}", numbers={"value": row["minutes"]}, runs=row["runs"]),
        }
        for place, row in zip(table.index, table.to_dict("records"))
    }
    return Drawing(figure, caption, numbers)


def _time_unit(minutes: float) -> tuple[str, float]:
    """A unit in which the number is handy, and its length in minutes."""
    return ("s", 1 / 60) if minutes < 2 else ("min", 1.0) if minutes < 120 else ("h", 60.0)


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Index: dataset, backbone, kind. Columns: minutes (mean; the attribute "seconds" names the result that they come
    from), and of test accuracy in % mean, std, n, low and high (95 % interval); runs, their ids; each, the seconds and
    the accuracies of the single runs; front, whether no other of its data set and backbone is
    at least as good in both and better in one."""
    finished = drawing.finished_runs(runs)
    times = finished.reindex(columns=[TRAINING_SECONDS, PROCESSOR_SECONDS, TEST_ACCURACY])
    finished = finished.assign(**{name: times[name] for name in times})
    finished = drawing.where_true(finished, finished[[TRAINING_SECONDS, TEST_ACCURACY]].notna().all(axis=1))
    if finished.empty:
        raise NothingToDraw("no finished run has both training_seconds and test_accuracy")
    on_cpu = finished.reindex(columns=[DEVICE])[DEVICE].astype("string").str.startswith("cpu").fillna(False).all()
    seconds = PROCESSOR_SECONDS if on_cpu and finished[PROCESSOR_SECONDS].notna().all() else TRAINING_SECONDS
    parts = []
    for (dataset, backbone), group in finished.groupby(["dataset", "backbone"], sort=False):
        group = group.assign(kind=drawing.kinds(group))
        part = drawing.mean_points(group, "kind")
        part["minutes"] = group.groupby("kind")[seconds].mean().astype(float) / 60
        of_kind = group.groupby("kind")
        part["each"] = [
            tuple(of_kind.get_group(kind)[[seconds, TEST_ACCURACY]].T.to_numpy(float)) for kind in part.index
        ]
        part["front"] = [
            not (
                (part["minutes"] <= row.minutes)
                & (part["mean"] >= row.mean)
                & ((part["minutes"] < row.minutes) | (part["mean"] > row.mean))
            ).any()
            for row in part.itertuples()
        ]
        names = pd.MultiIndex.from_product([[dataset], [backbone], part.index], names=["dataset", "backbone", "kind"])
        parts.append(part.set_axis(names))
    table = pd.concat(parts)
    table.attrs["seconds"] = seconds
    return table


def _draw_cost(axes: Axes, table: pd.DataFrame, length: float) -> None:
    """length: of the axis' unit of time, in minutes."""
    times = table["minutes"] / length
    groups = (
        ("Supervised", table.index.str.startswith("Supervised"), drawing.BASELINE),
        ("RelViT", ~table.index.str.startswith(("Supervised", DRLOC)), drawing.LOOKS[0]),
        (DRLOC, table.index.str.startswith(DRLOC), drawing.LOOKS[2]),
    )
    front = table[table["front"]].sort_values("minutes")
    axes.plot(front["minutes"] / length, front["mean"], color=drawing.GREY, linewidth=0.7, zorder=1)
    for label, chosen, look in groups:
        part = table[chosen]
        if part.empty:
            continue
        for seconds, accuracies in part.loc[part["n"] > 1, "each"]:
            axes.plot(seconds / 60 / length, accuracies, "o", color=look.color, **drawing.SEED)
        errors = np.nan_to_num(np.stack([part["mean"] - part["low"], part["high"] - part["mean"]]))
        axes.errorbar(
            times[chosen], part["mean"], yerr=errors, fmt=look.marker, color=look.color, markersize=3.6,
            elinewidth=0.5, label=label, zorder=3,
        )  # fmt: skip
    _number_front(axes, table, length)
    axes.margins(x=0.1)
    axes.grid()
    axes.set_axisbelow(True)


def _numbered_front(table: pd.DataFrame) -> list[str]:
    """The cells on the front by time, each as "2 SpRel + Dist"."""
    cells = table[table["front"]].sort_values("minutes").index.get_level_values("kind")
    return [f"{number} {kind}" for number, kind in enumerate(cells, start=1)]


def _number_front(axes: Axes, table: pd.DataFrame, length: float) -> None:
    """Write the numbers of the front above the bars there. Neighbours too close for a number each share one: "2-4"."""
    front = table[table["front"]].sort_values("minutes")
    times = (front["minutes"] / length).to_numpy()
    near = 0.08 * np.ptp(table["minutes"]) / length  # of the axis' width: about two digits and a gap
    clusters = np.split(np.arange(len(times)), np.flatnonzero(np.diff(times) > near) + 1)
    tops = table["high"].fillna(table["mean"])
    for cluster in clusters:
        first, last = times[cluster[0]], times[cluster[-1]]
        middle = (first + last) / 2
        below = (table["minutes"] / length).between(min(first, middle - near / 2), max(last, middle + near / 2))
        numbers = dict.fromkeys((cluster[0] + 1, cluster[-1] + 1))
        axes.annotate(
            "–".join(map(str, numbers)), (middle, tops[below].max()), textcoords="offset points", xytext=(0, 2),
            fontsize=7, ha="center", va="bottom", zorder=5, path_effects=[withStroke(linewidth=2, foreground="white")],
        )  # fmt: skip
