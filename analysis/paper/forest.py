"""Ours minus published, number by number, with the margin within which that does not matter."""

import numpy as np
from matplotlib.figure import Figure

from analysis.output.typeset import Entry
from analysis.paper import drawing
from analysis.paper.entries import Drawing, Entries, NothingToDraw
from analysis.paper.numbers import number_entry, reasons_in
from analysis.paper.verdicts import published_numbers


def forest(entries: Entries) -> Drawing:
    """A row for each published accuracy that has finished runs on its own data set and backbone."""
    paper = entries.of.paper_backbones()
    finished = drawing.finished_runs(entries.runs)
    there = [row["backbone"] in paper.get(row["dataset"], {}).values() for row in finished.to_dict("records")]
    entries = Entries(entries.of, finished[np.array(there, dtype=bool)])
    if entries.runs.empty:
        raise NothingToDraw("no finished run has a data set and backbone of the paper's table")
    judged = published_numbers(entries)
    judged = judged[judged["metric"] == "accuracy"] if len(judged) else judged
    if judged.empty:
        raise NothingToDraw("the paper prints no accuracy of its cells")
    judged = judged[judged["n"] > 0]
    if judged.empty:
        raise NothingToDraw("no finished run has an accuracy")
    off = judged[["mean", "low", "high"]].sub(judged["published"], axis=0)
    rows = np.arange(len(judged))
    wide = entries.wide().reindex(columns=judged["cell"])
    figure = Figure(figsize=(drawing.COLUMN, 0.75 + 0.15 * len(rows)))
    axes = figure.subplots()
    axes.barh(rows, 2 * judged["margin"], 1.0, -judged["margin"], color="#dfe9f2", linewidth=0, zorder=0)
    axes.axvline(0, color=drawing.BLACK, linewidth=0.6, zorder=1)
    drawing.draw_seeds(axes, wide - judged["published"].to_numpy(), rows + 0.3, drawing.LOOKS[0])
    apart = (judged["why"] != "").to_numpy()
    looks = (("comparable", ~apart, drawing.BLUE), ("not comparable", apart, "white"))
    for label, chosen, face in looks:
        if chosen.any():
            drawing.draw_points(axes, off[chosen], rows[chosen], drawing.LOOKS[0], label, face)
    axes.set_yticks(rows, [entries.of.label_name(cell) for cell in judged["cell"]])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("Ours − published (points)")
    if apart.any():
        figure.legend(loc="outside upper right", ncols=2, handletextpad=0.1)
    several = off["low"].notna().any()
    bars = (
        "bars are 95 % t intervals over seeds, faint dots the seeds" if several else "one seed: there are no intervals"
    )
    reasons = reasons_in(judged["why"])
    hollow = f" Hollow: not comparable, {'; '.join(reasons)}." if reasons else ""
    caption = (
        f"Our accuracy less the published one of {entries.of.title}; {bars}; the band is the margin of the verdicts, "
        f"which also know the error of the published number.{hollow} {drawing.source_sentence(entries.finished)}"
    )
    numbers = {
        row["cell"]: {
            "difference": number_entry({**row, **off.loc[place], "runs": tuple(sorted(row["runs"]))}),
            "margin": Entry(f"{row['margin']:.2f}", numbers={"value": row["margin"]}),
        }
        for place, row in judged.to_dict("index").items()
    }
    return Drawing(figure, caption, numbers)
