"""Cells in their order, joined where they cannot be told apart: a critical-difference diagram (Demsar, JMLR 7, 2006)
by the error model of the tables instead of by ranks, so that it says of a pair what bold and the differences say."""

from itertools import combinations

import numpy as np
from matplotlib.figure import Figure

from analysis.output.typeset import Entry
from analysis.paper import drawing
from analysis.paper.entries import Drawing, Entries, NothingToDraw
from analysis.paper.numbers import ids_by
from analysis.stats.blocks import cell_means
from analysis.stats.seeds import ALPHA, compare


def critical_difference(entries: Entries) -> Drawing:
    """The cells of one group of a table, best first, along the axis of accuracy."""
    finished = drawing.finished_runs(entries.runs)
    wide = entries.wide().dropna(axis="columns", how="all")
    if len({entries.of.group(cell) for cell in wide.columns}) > 1:
        raise NothingToDraw("its cells are of several data sets or backbones, which have no common order")
    if wide.shape[1] < 3:
        raise NothingToDraw("an order takes three cells of the table with finished runs")
    compared = compare(wide, combinations(wide.columns, 2))["p_family"]
    if compared.isna().all():
        raise NothingToDraw("no cell has two seeds, so nothing is tested")
    means = cell_means(wide).sort_values(ascending=False, kind="stable")
    joined = not_told_apart(list(means.index), {frozenset(pair) for pair in compared.index[compared < ALPHA]})
    left = -(-len(means) // 2)
    depth = 0.32 * len(joined) + 0.6
    figure = Figure(figsize=(drawing.PAGE, 0.55 + 0.155 * (depth + left)))
    axes = figure.subplots()
    span = max(np.ptp(means), 0.1)
    ends = means.max() + 0.04 * span, means.min() - 0.04 * span
    for number, (cell, mean) in enumerate(means.items()):
        best = number < left
        height = depth + (number if best else len(means) - 1 - number) + 0.5
        axes.plot([mean, mean, ends[not best]], [0, height, height], color=drawing.GREY, linewidth=0.6, clip_on=False)
        text = f"{entries.of.label_name(cell)}  {mean:.2f}" if best else f"{mean:.2f}  {entries.of.label_name(cell)}"
        axes.text(
            ends[not best] + (0.01 if best else -0.01) * span, height, text, ha="right" if best else "left", va="center"
        )
    for number, (first, last) in enumerate(joined):
        around = 0.006 * span
        axes.plot(
            [means.iloc[first] + around, means.iloc[last] - around], [0.45 + 0.32 * number] * 2, color=drawing.BLACK,
            linewidth=2.2, solid_capstyle="butt",
        )  # fmt: skip
    axes.set_xlim(ends[0] + 0.45 * span, ends[1] - 0.45 * span)  # the best on the left, as in such diagrams
    axes.set_ylim(depth + left + 0.3, 0)
    axes.xaxis.tick_top()
    axes.set_xticks([tick for tick in axes.get_xticks() if ends[1] <= tick <= ends[0]])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.spines["top"].set_visible(True)
    axes.spines["top"].set_bounds(*ends[::-1])
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("Accuracy (%)")
    caption = (
        "The cells by their mean accuracy, seeds as blocks; a bar joins neighbours of which no two were shown to "
        f"differ, at 5 % for all pairs together, as bold in the table. {drawing.source_sentence(finished)}"
    )
    ids = ids_by(entries.finished, "label")
    numbers = {
        cell: {"accuracy": Entry(f"{mean:.2f}", numbers={"value": mean}, runs=ids[cell])}
        for cell, mean in means.items()
    }
    return Drawing(figure, caption, numbers)


def not_told_apart(ordered: list[str], different: set[frozenset[str]]) -> list[tuple[int, int]]:
    """The longest stretches, of two cells or more and none within another, in which no two cells differ: the places of
    the first and the last. different: the pairs that do."""
    found: list[tuple[int, int]] = []
    for first in range(len(ordered)):
        last = first
        while last + 1 < len(ordered) and not any(
            frozenset((ordered[last + 1], other)) in different for other in ordered[first : last + 1]
        ):
            last += 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found
