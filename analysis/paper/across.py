"""Methods over several data sets: interquartile mean and probability of improvement."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.output.typeset import Entry
from analysis.paper import drawing
from analysis.paper.entries import Drawing, Entries, NothingToDraw
from analysis.paper.numbers import ids_by
from analysis.stats.aggregates import Scores, bootstrap, interquartile_mean, probability_of_improvement
from relvit.paper import METHODS

_OURS = "relvit"


def across_datasets(entries: Entries) -> Drawing:
    """The methods of a table that has several data sets or backbones, over all places that they share."""
    finished = drawing.finished_runs(entries.runs)
    wide = entries.wide().dropna(axis="columns", how="all")
    scores: dict[str, dict[str, np.ndarray]] = {}
    for label in wide.columns:
        place, _, method = label.rpartition(" ")
        if place and place == entries.of.group(label):
            scores.setdefault(method, {})[place] = wide[label].dropna().to_numpy()
    methods = [method for method in METHODS if method in scores]
    shared = [place for place in scores.get(_OURS, {}) if all(place in scores[method] for method in methods)]
    if len(methods) < 2 or len(shared) < 2:
        raise NothingToDraw("it takes two methods on two data sets or backbones that both have finished")
    values = {method: bootstrap(interquartile_mean, _of(scores[method], shared)) for method in methods}
    chances, numbers_of = {}, {}
    for rival in (method for method in methods if method != _OURS):
        places = [place for place in scores[_OURS] if place in scores[rival]]
        numbers_of[rival] = len(places)
        chances[rival] = bootstrap(probability_of_improvement, _of(scores[_OURS], places), _of(scores[rival], places))
    figure = Figure(figsize=(drawing.COLUMN, 0.75 + 0.22 * len(methods)))
    left, right = figure.subplots(1, 2, width_ratios=[1.4, 1])
    for axes, found in ((left, values), (right, {method: 100 * np.array(each) for method, each in chances.items()})):
        rows = np.arange(len(found))
        table = pd.DataFrame(found, index=["mean", "low", "high"]).T
        drawing.draw_points(axes, table, rows, drawing.LOOKS[0], "")
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(rows, [f"over {METHODS[name]}" if axes is right else METHODS[name] for name in found])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
    left.margins(x=0.15)
    left.set_xlabel("Interquartile mean (%)")
    right.axvline(50, color=drawing.BLACK, linewidth=0.6, zorder=1)
    right.set_xlim(-4, 104)
    right.set_xlabel("Better (%)")
    seeds = wide.notna().sum()
    interval = (
        f"Bars are 95 % intervals of a bootstrap over the {seeds.min()} to {seeds.max()} seeds within each; of fewer "
        "than five they are too narrow."
        if seeds.max() > 1
        else "One seed: there are no intervals."
    )
    caption = (
        f"Accuracy over {len(shared)} places (data set and backbone) that all methods share: the interquartile mean, "
        "and how often a run of RelViT beats one of another method in the same place (over "
        f"{', '.join(f'{number} places for {METHODS[name]}' for name, number in numbers_of.items())}). "
        f"{interval} {drawing.source_sentence(finished)}"
    )
    tested = entries.finished.assign(method=[label.rpartition(" ")[2] for label in entries.finished["label"]])
    runs = ids_by(tested, "method")
    numbers = {
        method: {
            "interquartile_mean": _entry(values[method], runs[method]),
            **({"improvement": _entry(chances[method], runs[method] + runs[_OURS])} if method in chances else {}),
        }
        for method in methods
    }
    return Drawing(figure, caption, numbers)


def _of(scores: dict[str, np.ndarray], places: list[str]) -> Scores:
    return [scores[place] for place in places]


def _entry(found: tuple[float, float, float], runs: tuple[str, ...]) -> Entry:
    value, low, high = found
    return Entry(f"{value:.2f}", numbers={"value": value, "low": low, "high": high}, runs=runs)
