"""The figures of a study: vector PDF for a paper, and PNG for a page, at the width of the paper's columns.

runs     what `runs.gather.gather` returns, of one setting (but several data sets and backbones where a study has
         them); only runs with status FINISHED are drawn.
metrics  one row a run, metric and step, from the same place.

Every function from frames to a figure raises NothingToDraw, with the reason, where the frames lack what it shows.
Colours are those of Okabe and Ito, which the colour-blind tell apart; line styles and markers differ too, so that
nothing is lost in grey. The same frames give the same bytes: files hold no dates. Each file's metadata (Title and
Subject in PDF, Title and Description in PNG) has the figure's caption.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from analysis.output import typeset
from analysis.output.typeset import Column, Entry, Row, Table
from analysis.paper import numbers as tables
from analysis.paper import verdicts as claims
from analysis.stats import effects
from analysis.stats.seeds import SeveralRuns, by_seed, describe
from relvit.cell import DRLOC, FIELDS, NONE, PAPER_TASKS, neutral_fields, parse_tasks, task_combinations

logger = logging.getLogger(__name__)

COLUMN, PAGE = 3.25, 6.875  # inches: one column of the paper, and both
_STYLE: Mapping[str, Any] = {
    "font.family": "STIXGeneral",  # comes with matplotlib and goes with a paper set in Times
    "mathtext.fontset": "stix",
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
_BASELINE = Look(VERMILLION, (0, (4, 1.5)), "s")  # the paper's red dashed line

TASK_NAMES = {"sprel": "SpRel", "dist": "Dist", "ang": "Ang", "abspos": "AbsPos"}
_TASK_METRICS = {
    "sprel": ("sprel_accuracy", "SpRel accuracy (%)"),
    "dist": ("dist_mse_x100", "Dist MSE × 100"),
    "ang": ("ang_mse_x100", "Ang MSE × 100"),
    "abspos": ("abspos_accuracy", "AbsPos accuracy (%)"),
}
# The phase whose accuracy is the result, by protocol.
_LAST_PHASE = {"pretrain_finetune": "finetune", "joint": "joint", "pretrain_probe": "probe"}
# All that any figure reads of the metrics, which may have a hundred times as many points.
METRICS = (
    *(f"{phase}_val_accuracy" for phase in _LAST_PHASE.values()),
    *(f"pretrain_val_{metric}" for metric, _ in _TASK_METRICS.values()),
)
_PHASE_NAMES = {"finetune": "fine-tuning", "joint": "joint training", "probe": "linear probing"}


class NothingToDraw(ValueError):
    """What a figure lacks, as a sentence without a full stop."""


class Drawing(NamedTuple):
    """A figure, the caption that a reader needs with it, and the numbers that it shows, by row and column."""

    figure: Figure
    caption: str
    numbers: Mapping[str, Mapping[str, Entry]]


class Drawn(NamedTuple):
    """paths: a PDF and a PNG for each figure, in the order to be read. numbers: what each shows, as a table of the
    figure's name, for provenance."""

    paths: list[Path]
    numbers: list[Table]


def draw(
    study: str,
    runs: pd.DataFrame,
    metrics: pd.DataFrame,
    out: Path,
    note: Callable[[str], None] = logger.warning,
    kind: str | None = None,
) -> Drawn:
    """Draw the figures of a study into the folder `out`.

    study: its name as runs are tagged, with which the files' names begin. kind: the table or figure of the paper that
    these runs feed, where that is not the study itself. A figure for which runs or metrics are missing is left out,
    and `note` is told why; a file that an earlier call left is not touched then.
    """
    out.mkdir(parents=True, exist_ok=True)
    metrics = metrics[(metrics["metric"].isin(METRICS) & metrics["run_id"].isin(set(runs["run_id"]))).to_numpy()]
    drawn = Drawn([], [])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # what the user's matplotlibrc says does not change a paper's figures
        matplotlib.rcParams.update(_STYLE)
        for suffix, build in _FIGURES.get(kind or study, _OTHER_FIGURES).items():
            name = typeset.label(study) + suffix
            try:
                drawing = build(study, runs, metrics)
            except (NothingToDraw, SeveralRuns) as reason:
                note(f"{name} is not drawn: {reason}")
                continue
            drawn.paths.extend(_save(drawing, out / name))
            drawn.numbers.append(_as_table(name, drawing))
    return drawn


def _as_table(name: str, drawing: Drawing) -> Table:
    columns = list(dict.fromkeys(column for row in drawing.numbers.values() for column in row))
    rows = [Row(key, tuple(row.get(each, Entry()) for each in columns)) for key, row in drawing.numbers.items()]
    return Table(name, name, tuple(Column(each, each) for each in columns), tuple(rows), drawing.caption)


def _save(drawing: Drawing, stem: Path) -> list[Path]:
    figure, caption, _ = drawing
    FigureCanvasAgg(figure)
    # The layout is worked out once for both files.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    title = stem.name
    metadata = {
        ".pdf": {"Title": title, "Subject": caption, "CreationDate": None},
        ".png": {"Title": title, "Description": caption, "Software": None},
    }
    paths = []
    for suffix, fields in metadata.items():
        path = stem.with_name(stem.name + suffix)
        scratch = path.with_name(f".{path.name}.tmp")
        figure.savefig(scratch, format=suffix[1:], metadata=fields)
        scratch.replace(path)
        paths.append(path)
    return paths


# What runs are called, and their curves


def task_label(tasks: str | None) -> str:
    """ "sprel+abspos" as the paper writes it: "SpRel + AbsPos"; "none" is "Supervised"; None is not known."""
    if tasks is None:
        return "unknown tasks"
    if tasks == NONE:
        return "Supervised"
    return DRLOC if tasks == DRLOC else " + ".join(TASK_NAMES[task] for task in parse_tasks(tasks))


def kinds(runs: pd.DataFrame) -> pd.Series:
    """What each run is a seed of: a label that tells apart runs which differ in anything but the seed.

    The tasks come first, then as few of the fields that act in a run as tell them apart.
    """
    acting = [acting_fields(row) for row in runs[list(FIELDS)].to_dict("records")]
    for row in acting:
        if row.get("tasks") == NONE:  # the supervised cell always has its embedding (section 3.2): not a choice
            row.pop("pretrain_position_embedding", None)
    values = {name: {row[name] for row in acting if name in row} for name in FIELDS if name != "tasks"}
    named = [name for name, found in values.items() if len(found) > 1]

    def told_apart(by: list[str]) -> int:
        return len({(row.get("tasks"), *(row.get(name) for name in by)) for row in acting})

    wanted = told_apart(named)
    for name in reversed(list(named)):
        fewer = [other for other in named if other != name]
        named = fewer if told_apart(fewer) == wanted else named
    labels = [", ".join([task_label(row.get("tasks")), *_named_values(row, named)]) for row in acting]
    return pd.Series(labels, index=runs.index, name="kind", dtype=object)


_SHORT = {  # as the paper's Figure 2 names them
    ("pretrain_position_embedding", True): "PE",
    ("pretrain_position_embedding", False): "no PE",
    ("permute_patches", True): "Perm",
    ("permute_patches", False): "no Perm",
}


def _named_values(row: Mapping[str, Any], names: list[str]) -> list[str]:
    return [_SHORT.get((name, row[name]), f"{name}={row[name]}") for name in names if name in row]


def acting_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a cell that act in it, the seed aside."""
    known = {name: None if pd.isna(fields.get(name)) else fields[name] for name in FIELDS}
    idle = {"seed", *neutral_fields(known)}
    return {name: value for name, value in known.items() if name not in idle and value is not None}


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


def _curve_entry(table: pd.DataFrame) -> Entry:
    """A line as a number: where it ends, and its mean at every epoch."""
    last = table.iloc[-1]
    means = {f"epoch {epoch}": mean for epoch, mean in table["mean"].items()}
    return Entry(
        tables.spread(last["mean"], last["std"]),
        numbers={"value": last["mean"], "std": last["std"], "n": last["n"], **means},
        runs=table.attrs["runs"],
    )


def _points(runs: pd.DataFrame, by: str = "tasks") -> pd.DataFrame:
    """`describe` of the test accuracy of finished runs, with the ids of those that each mean rests on."""
    table = describe(by_seed(runs, by))
    tested = runs[runs["test_accuracy"].notna().to_numpy(dtype=bool)]
    ids = tested.groupby(by)["run_id"].agg(lambda names: tuple(sorted(names)))
    return table.assign(runs=[ids.get(cell, ()) for cell in table.index])


def _draw_curve(axes: Axes, table: pd.DataFrame, look: Look, label: str | None, *, width: float = 1.2) -> None:
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


def _those(runs: pd.DataFrame, mask: pd.Series) -> pd.DataFrame:
    """The rows where the mask is true; what a run does not know (null) is not true."""
    return runs[mask.astype("boolean").fillna(False).to_numpy(dtype=bool)]


def _finished(runs: pd.DataFrame) -> pd.DataFrame:
    finished = _those(runs, runs["status"] == "FINISHED")
    if finished.empty:
        raise NothingToDraw("no run is finished")
    return finished


def _epochs_axis(axes: Axes, label: str | None) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    if label:
        axes.set_xlabel(label)


def _source(runs: pd.DataFrame) -> str:
    """Data, model, epochs, seeds and code in a sentence."""

    def values(name: str) -> list[str]:
        return [str(value) for value in sorted(runs[name].dropna().unique())]

    # A joint cell has no first phase: its 0 epochs of it are not a choice.
    epochs = sorted({" + ".join(str(n) for n in row if n) for row in runs[["pretrain_epochs", "epochs"]].to_numpy()})
    commits = sorted(
        {
            str(commit)[:10] + ("+changes" if dirty == "true" else "")
            for commit, dirty in runs.reindex(columns=["git_commit", "git_dirty"]).fillna("unknown").to_numpy()
        }
    )
    seeds = values("seed")
    return (
        f"Runs on {', '.join(values('dataset'))} with {', '.join(values('backbone'))}; {' or '.join(epochs)} epochs; "
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)}; commit {', '.join(commits)}."
    )


def _bands(n: Iterable[int]) -> str:
    if max(n, default=0) < 2:
        return "A single seed: there are no bands."
    return "Lines are means over seeds, bands one standard deviation to either side."


# Figure 2


_FIGURE2 = (  # position embedding, permuted; as the paper's legend names them
    ((True, False), "PE", LOOKS[0]),
    ((True, True), "PE + Perm", LOOKS[2]),
    ((False, False), "no PE", LOOKS[3]),
    ((False, True), "no PE + Perm", LOOKS[4]),
)


def figure2a(study: str, runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Figure 2a: SpRel accuracy over pre-training, with and without position embeddings and permutation."""
    pretrained = _sprel_pretrained(runs)
    figure = Figure(figsize=(COLUMN, 2.3))
    axes = figure.subplots()
    sizes, numbers = [], {}
    for label, look, chosen in _figure2_settings(pretrained):
        table = curve(metrics, chosen, "pretrain_val_sprel_accuracy")
        if len(table):
            _draw_curve(axes, table, look, label)
            sizes += list(table["n"])
            numbers[label] = {"sprel_accuracy": _curve_entry(table)}
    if not sizes:
        raise NothingToDraw("no run has logged pretrain_val_sprel_accuracy")
    axes.set_ylabel("SpRel accuracy (%)")
    axes.set_ylim(0, 103)
    axes.set_xlim(left=0)
    _epochs_axis(axes, "Pre-training epoch")
    figure.legend(loc="outside upper center", ncols=4, columnspacing=1.0)
    caption = (
        "Figure 2a: validation accuracy of SpRel while it alone is pre-trained, with and without position embeddings "
        f"(PE) and random permutations of the patches (Perm). {_bands(sizes)} {_source(pretrained)}"
    )
    return Drawing(figure, caption, numbers)


def figure2b(study: str, runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Figure 2b: accuracy over fine-tuning after each of these pre-trainings, and from random initialisation."""
    pretrained = _sprel_pretrained(runs)
    figure = Figure(figsize=(COLUMN, 2.3))
    axes = figure.subplots()
    sizes, shown, numbers = [], [pretrained], {}
    for label, look, chosen in _figure2_settings(pretrained):
        table = _result_curve(metrics, chosen)
        if len(table):
            _draw_curve(axes, table, look, label)
            sizes += list(table["n"])
            numbers[label] = {"accuracy": _curve_entry(table)}
    if not sizes:
        raise NothingToDraw("no run has logged finetune_val_accuracy")
    finished = _finished(runs)
    random = _those(finished, (finished["tasks"] == NONE) & (finished["protocol"] == "joint"))
    without = ""
    if len(random):
        by_seed(random)  # one run a seed
        table = _result_curve(metrics, random)
        _draw_curve(axes, table, _BASELINE, "random initialisation")
        shown.append(random)
        if len(table):
            numbers["random initialisation"] = {"accuracy": _curve_entry(table)}
    else:
        without = " The line of random initialisation is missing: no such run is finished."
    axes.set_ylabel("Accuracy (%)")
    axes.set_xlim(left=0)
    _epochs_axis(axes, "Fine-tuning epoch")
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1.0)
    caption = (
        "Figure 2b: validation accuracy while fine-tuning after SpRel pre-training with and without position "
        "embeddings (PE) and random permutations of the patches (Perm), and training from a random initialisation "
        f"(dashed).{without} {_bands(sizes)} {_source(pd.concat(shown))}"
    )
    return Drawing(figure, caption, numbers)


def _sprel_pretrained(runs: pd.DataFrame) -> pd.DataFrame:
    finished = _finished(runs)
    chosen = _those(finished, (finished["tasks"] == "sprel") & (finished["protocol"] == "pretrain_finetune"))
    if chosen.empty:
        raise NothingToDraw("no cell that is pre-trained on SpRel alone is finished")
    return chosen


def _figure2_settings(runs: pd.DataFrame) -> Iterable[tuple[str, Look, pd.DataFrame]]:
    for (embedding, permuted), label, look in _FIGURE2:
        fits = (runs["pretrain_position_embedding"] == embedding) & (runs["permute_patches"] == permuted)
        chosen = _those(runs, fits)
        by_seed(chosen)  # one run a seed
        yield label, look, chosen


def _result_curve(metrics: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The validation accuracy of the phase that classifies, over its epochs."""
    if runs.empty:
        return curve(metrics, runs, "")
    first = runs.iloc[0]
    return curve(metrics, runs, f"{_LAST_PHASE[first['protocol']]}_val_accuracy", int(first["pretrain_epochs"]))


# Table 4


def table4_accuracy(study: str, runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Table 4 as points: mean and 95 % interval of each combination of tasks beside the published value.

    Where runs cannot be held against the paper's (`verdicts.departures`) the paper's have an axis of their own.
    """
    finished = _finished(runs)
    table = _points(finished).reindex(task_combinations())
    published = _published_table4().iloc[0]
    departures = claims.departures(finished, "table4")
    rows = np.arange(len(table))
    figure = Figure(figsize=(COLUMN, 3.5))
    ratios = [1.15, 2.3] if not departures else [1.15, 1.75, 1.15]
    matrix, ours, *rest = figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios)
    theirs = rest[0] if rest else ours
    _draw_matrix(matrix, list(table.index))
    for axes in {ours, theirs}:
        for row in rows[::2]:
            axes.axhspan(row - 0.5, row + 0.5, color="#f2f2f2", linewidth=0, zorder=0)
        axes.tick_params(axis="y", length=0, labelleft=False)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4 if axes is ours else 2))
    if not np.isnan(table.loc[NONE, "mean"]):
        ours.axvline(table.loc[NONE, "mean"], color=BLUE, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
    theirs.axvline(published[NONE], color=VERMILLION, linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=1)
    # On one axis the two are set a little apart, so that neither hides the other.
    shift = 0 if rest else 0.16
    _draw_points(ours, table, rows - shift, LOOKS[0], "ours")
    theirs.plot(
        published.reindex(table.index).to_numpy(dtype=float), rows + shift, "D", color=VERMILLION,
        markerfacecolor="white", markersize=3.6, markeredgewidth=0.9, label="paper", zorder=3,
    )  # fmt: skip
    ours.set_ylim(len(rows) - 0.5, -0.5)
    ours.set_xlabel("Fine-tuning accuracy (%)" if not rest else "Ours (%)")
    if rest:
        theirs.set_xlabel("Paper (%)")
        theirs.margins(x=0.12)
    handles = [handle for axes in (ours, *rest) for handle in axes.get_legend_handles_labels()[0]]
    ours.legend(
        handles=handles[::-1] if not rest else handles,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=2,
        handletextpad=0.1,
        columnspacing=0.6,
    )
    interval = "Bars are 95 % t intervals over seeds." if table["low"].notna().any() else "Too few seeds for intervals."
    apart = f" Not comparable with the paper, which has an axis of its own: {'; '.join(departures)}." if rest else ""
    caption = (
        "Fine-tuning accuracy by pre-training tasks (Table 4): dots mark the tasks, ours is the mean over seeds on the "
        f"test split, hollow the published value, the vertical lines the supervised cells. {interval}{apart} "
        f"{_source(finished)}"
    )
    numbers = {
        tasks: {"ours": tables.number(row), "paper": tables.paper_number(published[tasks])}
        for tasks, row in zip(table.index, table.to_dict("records"))
    }
    return Drawing(figure, caption, numbers)


def _published_table4() -> pd.DataFrame:
    """As `analysis.stats.seeds.by_seed`: the paper's accuracies, one seed."""
    return by_seed(claims.of_study(claims.published_runs(), "table4"))


def _draw_matrix(axes: Axes, combinations: list[str]) -> None:
    """Which tasks a row has: a dot for each, joined by a line. Columns from left to right as in Table 4."""
    columns = PAPER_TASKS[::-1]
    for row, tasks in enumerate(combinations):
        if row % 2 == 0:
            axes.axhspan(row - 0.5, row + 0.5, color="#f2f2f2", linewidth=0, zorder=0)
        if tasks == NONE:
            axes.text(1.5, row, "Supervised", ha="center", va="center", fontsize=7.5)
            continue
        on = [column for column, task in enumerate(columns) if task in parse_tasks(tasks)]
        off = [column for column in range(len(columns)) if column not in on]
        axes.plot(off, [row] * len(off), "o", color="#d0d0d0", markersize=2.2, zorder=2)
        axes.plot(on, [row] * len(on), "o-", color=BLACK, markersize=3.8, linewidth=0.9, zorder=3)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_xticks(range(len(columns)), [TASK_NAMES[task] for task in columns], rotation=60, ha="left")
    axes.tick_params(axis="x", top=True, bottom=False, labeltop=True, labelbottom=False, length=0, pad=1)
    axes.tick_params(axis="y", length=0, labelleft=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _draw_points(axes: Axes, table: pd.DataFrame, rows: np.ndarray, look: Look, label: str) -> None:
    """Means with their intervals, where there are any, along the horizontal axis."""
    mean, low, high = (table[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
    errors = np.nan_to_num(np.stack([mean - low, high - mean]))
    axes.errorbar(
        mean, rows, xerr=errors, fmt=look.marker, color=look.color, markersize=3.6, elinewidth=1.1, capthick=0.8,
        capsize=2.8 if errors.any() else 0, label=label, zorder=4,  # taller than the dot, which hides a short bar
    )  # fmt: skip


def table4_effects(study: str, runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """What each task adds: main effects, interactions, left out of all four, Shapley shares; ours beside the paper's.

    The paper's are worked out from its Table 4 in the same way; it has one number a cell, hence no intervals.
    """
    finished = _finished(runs)
    groups = [(*names, *(of(each) for each in (finished, _published_runs()))) for *names, of in _EFFECTS]
    groups = [(kind, heading, mine, paper) for kind, heading, mine, paper in groups if mine["n"].any()]
    if not groups:
        lacking = effects.missing(finished)
        raise NothingToDraw(f"no seed has all cells that an effect needs; {len(lacking)} are not finished")
    figure = Figure(figsize=(COLUMN, 0.75 + 0.145 * sum(len(mine) + 1.3 for *_, mine, _ in groups)))
    axes = figure.subplots()
    top, ticks, labels, numbers = 0.0, [], [], {}
    for number, (kind, heading, mine, paper) in enumerate(groups):
        axes.text(
            0.0, top, heading, transform=axes.get_yaxis_transform(), va="center", ha="left", style="italic", zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},  # the line at zero stops there
        )  # fmt: skip
        rows = top + 1 + np.arange(len(mine))
        _draw_points(axes, mine, rows - 0.14, LOOKS[0], "" if number else "ours")
        axes.plot(
            paper["mean"].reindex(mine.index).to_numpy(dtype=float), rows + 0.14, "D", color=VERMILLION,
            markerfacecolor="white", markersize=3.6, markeredgewidth=0.9, label="" if number else "paper", zorder=3,
        )  # fmt: skip
        for effect, row in mine.iterrows():
            cells = effects.with_and_without(effect) if kind == "added" else task_combinations()
            ours = tables.number({**row, "runs": effects.complete(finished, cells) if row["n"] else ()})
            numbers[f"{kind}-{effect}"] = {"ours": ours, "paper": tables.paper_number(paper.loc[effect, "mean"])}
        ticks += list(rows)
        labels += [" × ".join(TASK_NAMES[task] for task in effect.split(":")) for effect in mine.index]
        top = rows[-1] + 1.4
    axes.axvline(0, color=BLACK, linewidth=0.6, zorder=1)
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(top - 0.6, -0.7)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("Effect on fine-tuning accuracy (percentage points)")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], names[::-1], loc="outside upper right", ncols=2)  # ours first
    seeds = sorted({int(mine["n"].max()) for *_, mine, _ in groups})
    interval = "Bars are 95 % t intervals over seeds." if seeds[-1] > 1 else "A single seed: there are no intervals."
    caption = (
        "Effects of the four tasks on fine-tuning accuracy from the full factorial of Table 4, each within seeds that "
        f"have all its cells ({' or '.join(map(str, seeds))}); hollow: the same from the paper's numbers. "
        f"{interval} {_source(finished)}"
    )
    return Drawing(figure, caption, numbers)


def _published_runs() -> pd.DataFrame:
    return claims.of_study(claims.published_runs(), "table4")


def _main_effects(runs: pd.DataFrame) -> pd.DataFrame:
    return effects.main_effects_and_interactions(runs).loc[list(PAPER_TASKS)]


def _interactions(runs: pd.DataFrame) -> pd.DataFrame:
    return effects.main_effects_and_interactions(runs).drop(index=list(PAPER_TASKS))


_EFFECTS = (  # kind as in the table of effects, heading, and what gives them
    ("main", "Main effect", _main_effects),
    ("main", "Interaction", _interactions),
    ("added", "Added to the three others", effects.leave_one_out),
    ("shapley", "Shapley value", effects.shapley),
)


def table4_curves(study: str, runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Accuracy over the phase that classifies: a panel for each combination of tasks, the supervised cell in each."""
    finished = _finished(runs)
    finished = _those(finished, finished["protocol"].isin(list(_LAST_PHASE)))
    by_seed(finished)  # one run a cell and seed
    lines = {tasks: _result_curve(metrics, _those(finished, finished["tasks"] == tasks)) for tasks in _COMBINED}
    present = [tasks for tasks in _COMBINED if tasks != NONE and len(lines[tasks])]
    if not present:
        raise NothingToDraw("no finished run of a combination of tasks has logged its validation accuracy")
    figure = Figure(figsize=(PAGE, 0.5 + 1.05 * -(-len(present) // 5)))
    grid = figure.subplots(-(-len(present) // 5), min(5, len(present)), sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(present) :]:
        axes.set_visible(False)
    for number, (axes, tasks) in enumerate(zip(grid.flat, present)):
        if len(lines[NONE]):
            _draw_curve(axes, lines[NONE], _BASELINE, "" if number else "Supervised", width=0.9)
        _draw_curve(axes, lines[tasks], LOOKS[0], "" if number else "RelViT with the tasks named")
        axes.set_title(task_label(tasks) if len(parse_tasks(tasks)) < 4 else "All four", fontsize=7.5, pad=2)
        _epochs_axis(axes, None)
        axes.tick_params(labelbottom=number + grid.shape[1] >= len(present))
    phase = _PHASE_NAMES[_LAST_PHASE[finished["protocol"].iloc[0]]]
    figure.supxlabel(f"{phase.capitalize()} epoch", fontsize=8)
    figure.supylabel("Validation accuracy (%)", fontsize=8)
    figure.legend(loc="outside upper right", ncols=2)
    sizes = [n for tasks in present for n in lines[tasks]["n"]]
    caption = (
        f"Validation accuracy over {phase} with the tasks named, and of the supervised cell "
        f"(dashed, the same in all panels). {_bands(sizes)} {_source(finished)}"
    )
    numbers = {tasks: {"accuracy": _curve_entry(table)} for tasks, table in lines.items() if len(table)}
    return Drawing(figure, caption, numbers)


_COMBINED = task_combinations()


def table4_pretraining(study: str, runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Each task's metric over pre-training: the task alone, all four together, and the other combinations behind."""
    finished = _finished(runs)
    by_seed(finished)
    figure = Figure(figsize=(PAGE, 1.75))
    panels = figure.subplots(1, len(PAPER_TASKS))
    sizes, everything = [], "+".join(PAPER_TASKS)
    numbers: dict[str, dict[str, Entry]] = {}
    for axes, task in zip(panels, PAPER_TASKS):
        metric, heading = _TASK_METRICS[task]
        for tasks in sorted(_COMBINED, key=lambda tasks: 2 * (tasks == task) + (tasks == everything)):
            if task not in parse_tasks(tasks):
                continue
            table = curve(metrics, _those(finished, finished["tasks"] == tasks), f"pretrain_val_{metric}")
            if table.empty:
                continue
            sizes += list(table["n"])
            numbers.setdefault(tasks, {})[metric] = _curve_entry(table)
            if tasks == task:
                _draw_curve(axes, table, LOOKS[0], "the task alone")
            elif tasks == everything:
                _draw_curve(axes, table, LOOKS[1], "all four tasks")
            else:
                axes.plot(table.index, table["mean"], color=FAINT, linewidth=0.6, label="other combinations")
        axes.set_title(heading, fontsize=8)
        _epochs_axis(axes, None)
    if not sizes:
        raise NothingToDraw("no finished run has logged a task's metric in pre-training")
    figure.supxlabel("Pre-training epoch", fontsize=8)
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend([*handles.values()][::-1], [*handles][::-1], loc="outside upper right", ncols=3)
    caption = (
        "Each task's metric on the validation split over pre-training: the task alone, all four together, and in grey "
        f"the means of the combinations between. {_bands(sizes)} {_source(finished)}"
    )
    return Drawing(figure, caption, numbers)


# Any study


def cost(study: str, runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
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
    figure = Figure(figsize=(COLUMN if columns == 1 else PAGE, height))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    unit, length = _time_unit(table["minutes"].max())
    for axes, ((dataset, backbone), part) in zip(grid.flat, groups):
        _draw_cost(axes, part.droplevel(["dataset", "backbone"]), length)
        if len(groups) > 1:
            axes.set_title(f"{dataset}, {backbone}")
    if key:
        grid[0, 0].set(xlabel=f"Training time ({unit})", ylabel="Test accuracy (%)")
        handles = [Line2D([], [], linestyle="none") for _ in key]
        figure.legend(
            handles, key, loc="outside lower center", ncols=key_columns, fontsize=7, handlelength=0, handletextpad=0,
            labelspacing=0.25, columnspacing=1.5,
        )  # fmt: skip
    else:
        figure.supylabel("Test accuracy (%)", fontsize=8)
        figure.supxlabel(f"Training time ({unit})", fontsize=8)
    _shared_legend(figure, grid)
    named = "; ".join(f"{', '.join(place)}: {', '.join(front)}" for place, front in fronts.items() if not key)
    finished = _finished(runs)
    devices = sorted(finished.reindex(columns=["device"])["device"].dropna().unique())
    machine = f" Measured on {', '.join(map(str, devices))}." if devices else ""
    interval = " Bars are 95 % t intervals over seeds." if table["low"].notna().any() else ""
    caption = (
        "Test accuracy against training time, means over seeds; the line joins the cells that no other beats in both, "
        f"numbered from left to right{f' ({named})' * bool(named)}. "
        "The time includes the whole pre-training, also where cells share it, and depends on what else the machine did."
        f"{machine}{interval} {_source(finished)}"
    )
    numbers = {
        ", ".join(place if len(groups) > 1 else place[-1:]): {
            "accuracy": tables.number(row),
            "minutes": Entry(f"{row['minutes']:.2f}", numbers={"value": row["minutes"]}, runs=row["runs"]),
        }
        for place, row in zip(table.index, table.to_dict("records"))
    }
    return Drawing(figure, caption, numbers)


def _time_unit(minutes: float) -> tuple[str, float]:
    """A unit in which the number is handy, and its length in minutes."""
    return ("s", 1 / 60) if minutes < 2 else ("min", 1.0) if minutes < 120 else ("h", 60.0)


def _shared_legend(figure: Figure, grid: np.ndarray, ncols: int = 3) -> None:
    handles = {label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=ncols)


def cost_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Index: dataset, backbone, kind. Columns: minutes (mean of training_seconds / 60), and of test accuracy in %
    mean, std, n, low and high (95 % interval); runs, their ids; front, whether no other of its data set and backbone is
    at least as good in both and better in one."""
    finished = _finished(runs).reindex(columns=[*runs.columns.difference(["training_seconds"]), "training_seconds"])
    finished = _those(finished, finished.reindex(columns=["training_seconds", "test_accuracy"]).notna().all(axis=1))
    if finished.empty:
        raise NothingToDraw("no finished run has both training_seconds and test_accuracy")
    parts = []
    for (dataset, backbone), group in finished.groupby(["dataset", "backbone"], sort=False):
        group = group.assign(kind=kinds(group))
        part = _points(group, "kind")
        part["minutes"] = group.groupby("kind")["training_seconds"].mean().astype(float) / 60
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
    return pd.concat(parts)


def _draw_cost(axes: Axes, table: pd.DataFrame, length: float) -> None:
    """length: of the axis' unit of time, in minutes."""
    times = table["minutes"] / length
    groups = (
        ("Supervised", table.index.str.startswith("Supervised"), _BASELINE),
        ("RelViT", ~table.index.str.startswith(("Supervised", DRLOC)), LOOKS[0]),
        (DRLOC, table.index.str.startswith(DRLOC), LOOKS[2]),
    )
    front = table[table["front"]].sort_values("minutes")
    axes.plot(front["minutes"] / length, front["mean"], color=GREY, linewidth=0.7, zorder=1)
    for label, chosen, look in groups:
        part = table[chosen]
        if part.empty:
            continue
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
    kinds = table[table["front"]].sort_values("minutes").index.get_level_values("kind")
    return [f"{number} {kind}" for number, kind in enumerate(kinds, start=1)]


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


def curves(study: str, runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Validation accuracy over the phase that classifies: a panel for each data set and backbone, a line a kind."""
    finished = _finished(runs)
    finished = _those(finished, finished["protocol"].isin(list(_LAST_PHASE)))
    panels = []
    for (dataset, backbone), group in finished.groupby(["dataset", "backbone"], sort=False):
        group = group.assign(kind=kinds(group))
        by_seed(group, "kind")
        lines = {kind: _result_curve(metrics, part) for kind, part in group.groupby("kind", sort=False)}
        lines = {kind: table for kind, table in lines.items() if len(table)}
        if len(lines) > len(LOOKS) and len(finished) == len(group) and _by_tasks_alone(group):
            return table4_curves(study, group, metrics)
        if len(lines) > len(LOOKS):
            raise NothingToDraw(
                f"{dataset} with {backbone} has {len(lines)} kinds of cells, more than the {len(LOOKS)} lines that "
                "can be told apart; pick some with --where FIELD=VALUE"
            )
        if lines:
            panels.append((f"{dataset}, {backbone}", lines, set(group["protocol"])))
    if not panels:
        raise NothingToDraw("no finished run has logged the validation accuracy of a phase that classifies")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(COLUMN if len(panels) == 1 else PAGE, 0.4 + 1.9 * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    order = list(dict.fromkeys(kind for _, lines, _ in panels for kind in lines))
    looks = dict(zip(order, LOOKS)) if len(order) <= len(LOOKS) else {}
    sizes, numbers = [], {}
    for axes, (title, lines, _) in zip(grid.flat, panels):
        for number, (kind, table) in enumerate(lines.items()):
            _draw_curve(axes, table, looks.get(kind, LOOKS[number]), kind)
            sizes += list(table["n"])
            numbers[f"{title}, {kind}" if len(panels) > 1 else kind] = {"accuracy": _curve_entry(table)}
        if len(panels) > 1:
            axes.set_title(title)
        if not looks:
            axes.legend(fontsize=6.5)
        _epochs_axis(axes, None)
    protocols = sorted(set().union(*(found for *_, found in panels)))
    phases = " or ".join(_PHASE_NAMES[_LAST_PHASE[protocol]] for protocol in protocols)
    figure.supxlabel(f"Epoch of {phases}", fontsize=8)
    figure.supylabel("Validation accuracy (%)", fontsize=8)
    if looks:
        _shared_legend(figure, grid, ncols=2 if len(panels) == 1 else 3)
    return Drawing(figure, f"Validation accuracy over {phases}. {_bands(sizes)} {_source(finished)}", numbers)


def _by_tasks_alone(runs: pd.DataFrame) -> bool:
    """Whether the kinds of runs are combinations of the four tasks, each in one setting and protocol."""
    pairs = runs[["kind", "tasks", "protocol"]].drop_duplicates()
    return pairs["tasks"].is_unique and pairs["tasks"].isin(_COMBINED).all() and pairs["protocol"].nunique() == 1


Build = Callable[[str, pd.DataFrame, pd.DataFrame], Drawing]
# By kind of study: how the name of each figure's file ends and what draws it, in the order to be read.
_FIGURES: Mapping[str, Mapping[str, Build]] = {
    "table4": {
        "-accuracy": table4_accuracy,
        "-effects": table4_effects,
        "-curves": table4_curves,
        "-pretraining": table4_pretraining,
        "-cost": cost,
    },
    "figure2": {"a": figure2a, "b": figure2b, "-cost": cost},
}
_OTHER_FIGURES: Mapping[str, Build] = {"-curves": curves, "-cost": cost}
