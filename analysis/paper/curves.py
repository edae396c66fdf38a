"""Accuracy over the epochs of the phase that classifies, for any study."""

import pandas as pd
from matplotlib.figure import Figure

from analysis.paper import drawing
from analysis.paper.entries import Drawing, NothingToDraw
from analysis.stats.seeds import by_seed
from relvit.cell import NONE, parse_tasks, task_combinations
from relvit.paper import backbone_name, dataset_name
from relvit.vocabulary import LAST_PHASE


def curves(runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Validation accuracy over the phase that classifies: a panel for each data set and backbone, a line a kind."""
    finished = drawing.finished_runs(runs)
    finished = drawing.where_true(finished, finished["protocol"].map(LAST_PHASE).isin(list(drawing.PHASE_NAMES)))
    panels = []
    for (dataset, backbone), group in finished.groupby(["dataset", "backbone"], sort=False):
        group = group.assign(kind=drawing.kinds(group))
        by_seed(group, "kind")
        lines = {kind: drawing.result_curve(metrics, part) for kind, part in group.groupby("kind", sort=False)}
        lines = {kind: table for kind, table in lines.items() if len(table)}
        if len(lines) > len(drawing.LOOKS) and len(finished) == len(group) and _by_tasks_alone(group):
            return curves_by_tasks(group, metrics)
        if len(lines) > len(drawing.LOOKS):
            raise NothingToDraw(
                f"{dataset} with {backbone} has {len(lines)} kinds of cells, more than the {len(drawing.LOOKS)} lines "
                "that can be told apart; pick some with --where FIELD=VALUE"
            )
        if lines:
            panels.append(((dataset, backbone), lines, set(group["protocol"])))
    if not panels:
        raise NothingToDraw("no finished run has logged the validation accuracy of a phase that classifies")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(drawing.COLUMN if len(panels) == 1 else drawing.PAGE, 0.4 + 1.9 * rows))
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    order = list(dict.fromkeys(kind for _, lines, _ in panels for kind in lines))
    looks = dict(zip(order, drawing.LOOKS)) if len(order) <= len(drawing.LOOKS) else {}
    sizes, numbers, cut = [], {}, ""
    for axes, (place, lines, _) in zip(grid.flat, panels):
        for number, (kind, table) in enumerate(lines.items()):
            drawing.draw_curve(axes, table, looks.get(kind, drawing.LOOKS[number]), kind)
            sizes += list(table["n"])
            numbers[", ".join([*place, kind]) if len(panels) > 1 else kind] = {"accuracy": drawing.curve_entry(table)}
        if len(panels) > 1:
            axes.set_title(f"{dataset_name(place[0])}, {backbone_name(place[1])}")
        if not looks:
            axes.legend(fontsize=6.5)
        drawing.epochs_axis(axes, None)
        cut = drawing.zoom(axes, lines.values()) or cut
    protocols = sorted(set().union(*(found for *_, found in panels)))
    phases = " or ".join(drawing.PHASE_NAMES[LAST_PHASE[protocol]] for protocol in protocols)
    figure.supxlabel(f"Epoch of {phases}", fontsize=8)
    figure.supylabel("Validation accuracy (%)", fontsize=8)
    if looks:
        drawing.shared_legend(figure, grid, ncols=2 if len(panels) == 1 else 3)
    return Drawing(
        figure,
        f"Validation accuracy over {phases}. {drawing.bands_sentence(sizes)}{cut} {drawing.source_sentence(finished)}",
        numbers,
    )


def _by_tasks_alone(runs: pd.DataFrame) -> bool:
    """Whether the kinds of runs are combinations of the four tasks, each in one setting and protocol."""
    pairs = runs[["kind", "tasks", "protocol"]].drop_duplicates()
    return pairs["tasks"].is_unique and pairs["tasks"].isin(COMBINED).all() and pairs["protocol"].nunique() == 1


def curves_by_tasks(runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Accuracy over the phase that classifies: a panel for each combination of tasks, the supervised cell in each."""
    finished = drawing.finished_runs(runs)
    finished = drawing.where_true(finished, finished["protocol"].map(LAST_PHASE).isin(list(drawing.PHASE_NAMES)))
    by_seed(finished)  # one run a cell and seed
    lines = {
        tasks: drawing.result_curve(metrics, drawing.where_true(finished, finished["tasks"] == tasks))
        for tasks in COMBINED
    }
    present = [tasks for tasks in COMBINED if tasks != NONE and len(lines[tasks])]
    if not present:
        raise NothingToDraw("no finished run of a combination of tasks has logged its validation accuracy")
    figure = Figure(figsize=(drawing.PAGE, 0.5 + 1.05 * -(-len(present) // 5)))
    grid = figure.subplots(-(-len(present) // 5), min(5, len(present)), sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(present) :]:
        axes.set_visible(False)
    for number, (axes, tasks) in enumerate(zip(grid.flat, present)):
        if len(lines[NONE]):
            drawing.draw_curve(axes, lines[NONE], drawing.BASELINE, "" if number else "Supervised", width=0.9)
        drawing.draw_curve(axes, lines[tasks], drawing.LOOKS[0], "" if number else "RelViT with the tasks named")
        axes.set_title(
            drawing.combination_name(tasks) if len(parse_tasks(tasks)) < 4 else "All four", fontsize=7.5, pad=2
        )
        drawing.epochs_axis(axes, None)
        axes.tick_params(labelbottom=number + grid.shape[1] >= len(present))
    cut = drawing.zoom(grid[0, 0], [table for table in lines.values() if len(table)])
    phase = drawing.PHASE_NAMES[LAST_PHASE[finished["protocol"].iloc[0]]]
    figure.supxlabel(f"{phase.capitalize()} epoch", fontsize=8)
    figure.supylabel("Validation accuracy (%)", fontsize=8)
    figure.legend(loc="outside upper right", ncols=2)
    sizes = [n for tasks in present for n in lines[tasks]["n"]]
    caption = (
        f"Validation accuracy over {phase} with the tasks named, and of the supervised cell "
        f"(dashed, the same in all panels). {drawing.bands_sentence(sizes)}{cut} {drawing.source_sentence(finished)}"
    )
    numbers = {tasks: {"accuracy": drawing.curve_entry(table)} for tasks, table in lines.items() if len(table)}
    return Drawing(figure, caption, numbers)


COMBINED = task_combinations()
