"""Table 4: the combinations of tasks, as a table, as figures, and what each task adds."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.output.typeset import CROSS, DASH, UP, Column, Entry, Row, Table
from analysis.paper import drawing
from analysis.paper.cost import cost
from analysis.paper.curves import COMBINED, curves_by_tasks
from analysis.paper.entries import Claim, Drawing, Entries, NothingToDraw, PaperTable, departures
from analysis.paper.numbers import (
    OURS,
    PAPER,
    how_to_read,
    interval_text,
    is_best,
    measured,
    number_entry,
    published_entry,
    recipe_sentence,
    task_column,
)
from analysis.paper.published import published, published_runs
from analysis.paper.rules import SIMILAR, all_above, all_similar, fixed, stated_gains
from analysis.paper.settings import settings
from analysis.paper.task_effects import task_effects
from analysis.runs.splits import split_of
from analysis.stats import effects
from analysis.stats.seeds import by_seed
from relvit.cell import NONE, PAPER_TASKS, TASKS, parse_tasks, task_combinations
from relvit.paper import BACKBONE_NAMES, BEST, DATASET_NAMES

# Table 4's columns from left to right.
_COLUMNS = [TASKS[task] for task in reversed(PAPER_TASKS)]


def layout_table4(entries: Entries, name: str) -> Table:
    """Table 4: the combinations of tasks, each task's own metric or a cross, and accuracy after fine-tuning."""
    runs, seeds = entries.runs, entries.seeds
    paper = published("table4").pivot(index="tasks", columns="metric", values="value")
    rated = {task.metric_name: task.metric.higher_is_better for task in _COLUMNS} | {"accuracy": True}
    ours = {
        metric: measured(runs, "tasks", f"test_{metric}", larger).reindex(COMBINED).to_dict("index")
        for metric, larger in rated.items()
    }
    best = {metric: is_best(paper[metric], larger) for metric, larger in rated.items()}
    several = any(not np.isnan(row["low"]) for row in ours["accuracy"].values())
    columns = [Column("method", "Method", align="l")]
    columns += [task_column(task.name, OURS) for task in _COLUMNS]
    columns += [Column("accuracy", "Finetuning", f"(Acc {UP})", OURS)]
    columns += [Column("interval", "95 %", "interval", OURS)] * several
    columns += [Column("n", "n", "", OURS)]
    columns += [task_column(task.name, PAPER, "paper_") for task in _COLUMNS]
    columns += [Column("paper_accuracy", "Finetuning", f"(Acc {UP})", PAPER)]
    rows = []
    told: dict[str, list[Entry]] = {column.heading: [] for column in columns if column.key in rated}
    for tasks in COMBINED:
        trained = {TASKS[task].metric_name for task in parse_tasks(tasks)} | {"accuracy"}
        mine = [number_entry(ours[metric][tasks]) if metric in trained else Entry(CROSS) for metric in rated]
        theirs = [
            published_entry(paper.loc[tasks, metric], best[metric][tasks]) if metric in trained else Entry(CROSS)
            for metric in rated
        ]
        for group, entry in zip(told.values(), mine):
            group.append(entry)
        accuracy = ours["accuracy"][tasks]
        rests_on = mine[-1].runs
        interval = interval_text(accuracy["low"], accuracy["high"])
        beside = [Entry(interval, runs=rests_on if interval != DASH else ())] * several
        beside.append(Entry(f"{len(rests_on)}/{len(seeds)}", runs=rests_on))
        plain = [replace(entry, underline=False) for entry in mine]
        rows.append(Row(tasks, (Entry("RelViT" if len(trained) > 1 else "Supervised"), *plain, *beside, *theirs)))
    places = runs[["dataset", "backbone"]].drop_duplicates().itertuples(index=False, name=None)
    dataset, backbone = next(places, ("?", "?"))
    shown = f"{DATASET_NAMES.get(dataset, dataset)} with {BACKBONE_NAMES.get(backbone, backbone)}"
    caption = (
        f"The combinations of tasks (the paper's Table 4) on {shown}. {recipe_sentence(runs)} "
        f"Accuracies in %, mean squared errors times 100. "
        f"{how_to_read('and its', told)} Paper: Table 4, CIFAR-10 with ViT-S/4, 100 + 100 epochs."
    )
    return entries.footnoted(Table(name, f"Table 4: tasks on {shown}", tuple(columns), tuple(rows), caption))


def entry_label(run: Mapping[str, Any]) -> str | None:
    """The tasks of a run that is pre-trained on some of the paper's, or none, and fine-tuned."""
    return run["tasks"] if run["protocol"] == "pretrain_finetune" and run["tasks"] in COMBINED else None


# Figures


def table4_accuracy(runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Table 4 as points: mean and 95 % interval of each combination of tasks beside the published value.

    Where runs cannot be held against the paper's (`verdicts.departures`) the paper's have an axis of their own.
    """
    finished = drawing.finished_runs(runs)
    table = drawing.mean_points(finished).reindex(task_combinations())
    published = by_seed(_published_runs()).iloc[0]
    reasons = departures(finished, TABLE)
    rows = np.arange(len(table))
    figure = Figure(figsize=(drawing.COLUMN, 3.5))
    ratios = [1.15, 2.3] if not reasons else [1.15, 1.75, 1.15]
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
        ours.axvline(table.loc[NONE, "mean"], color=drawing.BLUE, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
    theirs.axvline(published[NONE], color=drawing.VERMILLION, linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=1)
    # On one axis the two are set a little apart, so that neither hides the other.
    shift = 0 if rest else 0.16
    drawing.draw_seeds(ours, by_seed(finished).reindex(columns=table.index), rows - shift - 0.22, drawing.LOOKS[0])
    drawing.draw_points(ours, table, rows - shift, drawing.LOOKS[0], "ours")
    theirs.plot(
        published.reindex(table.index).to_numpy(dtype=float), rows + shift, "D", color=drawing.VERMILLION,
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
    several = table["low"].notna().any()
    interval = (
        "Bars are 95 % t intervals over seeds, which are the faint dots." if several else "Too few seeds for intervals."
    )
    caption = (
        "Fine-tuning accuracy by pre-training tasks (Table 4): dots mark the tasks, ours is the mean over seeds on the "
        f"{split_of(runs)} split, hollow the published value, the vertical lines the supervised cells. "
        f"{interval}{_apart(reasons)} {drawing.source_sentence(finished)}"
    )
    numbers = {
        tasks: {"ours": number_entry(row), "paper": published_entry(published[tasks])}
        for tasks, row in zip(table.index, table.to_dict("records"))
    }
    return Drawing(figure, caption, numbers)


def _apart(reasons: list[str]) -> str:
    return f" Not comparable with the paper, which has an axis of its own: {'; '.join(reasons)}." if reasons else ""


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
        axes.plot(on, [row] * len(on), "o-", color=drawing.BLACK, markersize=3.8, linewidth=0.9, zorder=3)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_xticks(range(len(columns)), [TASKS[task].title for task in columns], rotation=60, ha="left")
    axes.tick_params(axis="x", top=True, bottom=False, labeltop=True, labelbottom=False, length=0, pad=1)
    axes.tick_params(axis="y", length=0, labelleft=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def table4_effects(runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """What each task adds: main effects, interactions, left out of all four, Shapley shares; ours beside the paper's.

    The paper's are worked out from its Table 4 in the same way; it has one number a cell, hence no intervals. They
    have an axis of their own where runs cannot be held against the paper's.
    """
    finished = drawing.finished_runs(runs)
    groups = [(*names, *(of(each) for each in (finished, _published_runs()))) for *names, of in _EFFECTS]
    groups = [(kind, heading, mine, paper) for kind, heading, mine, paper in groups if mine["n"].any()]
    if not groups:
        lacking = effects.missing(finished)
        raise NothingToDraw(f"no seed has all cells that an effect needs; {len(lacking)} have no result")
    reasons = departures(finished, TABLE)
    figure = Figure(figsize=(drawing.COLUMN, 0.75 + 0.145 * sum(len(mine) + 1.3 for *_, mine, _ in groups)))
    axes, *rest = figure.subplots(
        1, 1 + bool(reasons), sharey=True, squeeze=False, width_ratios=[2, 1][: 1 + bool(reasons)]
    )[0]
    theirs = rest[0] if rest else axes
    shift = 0 if rest else 0.14
    top, ticks, labels, numbers = 0.0, [], [], {}
    for number, (kind, heading, mine, paper) in enumerate(groups):
        axes.text(
            0.0, top, heading, transform=axes.get_yaxis_transform(), va="center", ha="left", style="italic", zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},  # the line at zero stops there
        )  # fmt: skip
        rows = top + 1 + np.arange(len(mine))
        drawing.draw_points(axes, mine, rows - shift, drawing.LOOKS[0], "" if number else "ours")
        theirs.plot(
            paper["mean"].reindex(mine.index).to_numpy(dtype=float), rows + shift, "D", color=drawing.VERMILLION,
            markerfacecolor="white", markersize=3.6, markeredgewidth=0.9, label="" if number else "paper", zorder=3,
        )  # fmt: skip
        for effect, row in mine.iterrows():
            cells = effects.with_and_without(effect) if kind == "added" else task_combinations()
            ours = number_entry({**row, "runs": effects.behind(finished, cells) if row["n"] else ()})
            numbers[f"{kind}-{effect}"] = {"ours": ours, "paper": published_entry(paper.loc[effect, "mean"])}
        ticks += list(rows)
        labels += [" × ".join(TASKS[task].title for task in effect.split(":")) for effect in mine.index]
        top = rows[-1] + 1.4
    for each in (axes, *rest):
        each.axvline(0, color=drawing.BLACK, linewidth=0.6, zorder=1)
        each.tick_params(axis="y", length=0)
        each.grid(axis="x")
        each.set_axisbelow(True)
        each.spines["left"].set_visible(False)
    theirs.margins(x=0.12)
    axes.set_yticks(ticks, labels)
    axes.set_ylim(top - 0.6, -0.7)
    figure.supxlabel("Effect on fine-tuning accuracy (percentage points)", fontsize=8)
    handles = {name: handle for each in (*rest, axes) for handle, name in zip(*each.get_legend_handles_labels())}
    figure.legend([handles[name] for name in ("ours", "paper")], ["ours", "paper"], loc="outside upper right", ncols=2)
    seeds = sorted({int(mine["n"].max()) for *_, mine, _ in groups})
    interval = (
        "Bars are 95 % intervals with seeds as blocks." if seeds[-1] > 1 else "A single seed: there are no intervals."
    )
    caption = (
        "Effects of the four tasks on fine-tuning accuracy within the 15 pre-trained cells of Table 4, seeds as blocks "
        f"({' or '.join(map(str, seeds))}); hollow: the same from the paper's numbers. "
        f"{interval}{_apart(reasons)} {drawing.source_sentence(finished)}"
    )
    return Drawing(figure, caption, numbers)


def _published_runs() -> pd.DataFrame:
    runs = published_runs()
    return runs[runs["study"] == "table4"]


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


def table4_pretraining(runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Each task's metric over pre-training: the task alone, all four together, and the other combinations behind."""
    finished = drawing.finished_runs(runs)
    by_seed(finished)
    figure = Figure(figsize=(drawing.PAGE, 1.75))
    panels = figure.subplots(1, len(PAPER_TASKS))
    sizes, everything, cut = [], "+".join(PAPER_TASKS), ""
    numbers: dict[str, dict[str, Entry]] = {}
    for axes, task in zip(panels, PAPER_TASKS):
        metric, heading = TASKS[task].metric_name, f"{TASKS[task].title} {TASKS[task].metric.axis}"
        lines = []
        for tasks in sorted(COMBINED, key=lambda tasks: 2 * (tasks == task) + (tasks == everything)):
            if task not in parse_tasks(tasks):
                continue
            table = drawing.curve(
                metrics, drawing.where_true(finished, finished["tasks"] == tasks), f"pretrain_val_{metric}"
            )
            if table.empty:
                continue
            sizes += list(table["n"])
            lines.append(table)
            numbers.setdefault(tasks, {})[metric] = drawing.curve_entry(table)
            if tasks == task:
                drawing.draw_curve(axes, table, drawing.LOOKS[0], "the task alone")
            elif tasks == everything:
                drawing.draw_curve(axes, table, drawing.LOOKS[1], "all four tasks")
            else:
                axes.plot(table.index, table["mean"], color=drawing.FAINT, linewidth=0.6, label="other combinations")
        axes.set_title(heading, fontsize=8)
        cut = (drawing.zoom(axes, lines) if lines else "") or cut
        drawing.epochs_axis(axes, None)
    if not sizes:
        raise NothingToDraw("no finished run has logged a task's metric in pre-training")
    figure.supxlabel("Pre-training epoch", fontsize=8)
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels())}
    figure.legend([*handles.values()][::-1], [*handles][::-1], loc="outside upper right", ncols=3)
    caption = (
        "Each task's metric on the validation split over pre-training: the task alone, all four together, and in grey "
        f"the means of the combinations between. {drawing.bands_sentence(sizes)}{cut} "
        f"{drawing.source_sentence(finished)}"
    )
    return Drawing(figure, caption, numbers)


CLAIMS = (
    Claim(
        "best-single-task",
        "Among SSL tasks, the SpRel one is the most performing",
        "section 3.3",
        all_above(fixed(*(("sprel", task) for task in PAPER_TASKS if task != "sprel"))),
    ),
    Claim(
        "best-combination",
        "the optimal combination of tasks is obtained by learning the SpRel and the AbsPos of the patches",
        "section 3.3",
        all_above(fixed(*((BEST, tasks) for tasks in COMBINED if tasks not in (NONE, BEST)))),
    ),
    Claim(
        "single-tasks-similar",
        "solving, individually, each SSL task leads to similar fine-tuning accuracy",
        "section 3.3",
        all_similar(PAPER_TASKS, SIMILAR),
    ),
    Claim(
        "single-tasks-improve",
        "solving, individually, each SSL task [improves] the performance w.r.t the supervised baseline",
        "section 3.3",
        all_above(fixed(*((task, NONE) for task in PAPER_TASKS))),
    ),
    Claim(
        "single-tasks-gain",
        "solving, individually, each SSL task [improves] the supervised baseline of +3.00% on average",
        "section 3.3",
        stated_gains({"mean of the single tasks": (PAPER_TASKS, NONE, 3.00)}),
    ),
)
TABLE = PaperTable(
    name="table4",
    title="Table 4",
    layout=layout_table4,
    split=lambda runs: [setting.runs for setting in reversed(settings(runs))] or [runs.head(0)],
    label=entry_label,
    label_name=drawing.combination_name,
    pairs=lambda labels: [(tasks, NONE) for tasks in COMBINED if tasks != NONE],
    combinations=COMBINED,
    figures={
        "-accuracy": table4_accuracy,
        "-effects": table4_effects,
        "-curves": curves_by_tasks,
        "-pretraining": table4_pretraining,
        "-cost": cost,
    },
    comparisons=("forest", "order"),
    behind=lambda entries, name: [task_effects(entries, f"{name}-effects")],
    claims=CLAIMS,
    in_full=True,
)
