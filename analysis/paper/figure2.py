"""Figure 2: position embeddings and permuted patches in SpRel pre-training."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.output.typeset import CROSS, UP, Column, Entry, Row, Table
from analysis.paper.drawing import (
    BASELINE,
    COLUMN,
    LOOKS,
    Drawing,
    Look,
    NothingToDraw,
    bands_sentence,
    curve,
    curve_entry,
    draw_curve,
    epochs_axis,
    finished_runs,
    result_curve,
    source_sentence,
    where_true,
)
from analysis.paper.numbers import (
    VARYING,
    footnoted,
    how_to_read,
    measured,
    number_entry,
    printed_names,
    recipe_sentence,
)
from analysis.paper.settings import settings
from analysis.runs.comparability import conform
from analysis.stats.seeds import by_seed
from relvit.cell import NONE
from relvit.paper import BACKBONE_NAMES, DATASET_NAMES

FIGURE2_LABELS = ("embedding", "embedding, permuted", "no embedding", "no embedding, permuted", "random")


def figure2_entries(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the newest setting that are in Figure 2, with the column label, one of FIGURE2_LABELS."""
    runs = conform(runs)
    labels = [figure2_label(row) for row in runs.to_dict("records")]
    runs = runs.assign(label=np.array(labels, dtype=object)).dropna(subset="label")
    found = settings(runs, VARYING["figure2"], protocol=None)
    return found[-1].runs if found else runs


def figure2_label(run: Mapping[str, Any]) -> str | None:
    """Which setting of Figure 2 a run is, if any."""
    if any(pd.isna(run.get(name)) for name in ("dataset", "backbone", "protocol", "tasks")):
        return None
    if run["protocol"] == "joint" and run["tasks"] == NONE:
        return "random"
    embedding, permuted = run.get("pretrain_position_embedding"), run.get("permute_patches")
    if run["protocol"] != "pretrain_finetune" or run["tasks"] != "sprel" or pd.isna(embedding) or pd.isna(permuted):
        return None
    return ("embedding" if embedding else "no embedding") + (", permuted" if permuted else "")


def layout_figure2(runs: pd.DataFrame, name: str = "figure2") -> Table:
    """Figure 2's end values: four ways to pre-train on SpRel, and no pre-training."""
    runs = figure2_entries(runs)
    seeds = sorted(int(seed) for seed in runs["seed"].unique())
    columns = (
        Column("pretraining", "Pre-training", align="l"),
        Column("embedding", "Position", "embedding"),
        Column("permuted", "Permuted", "patches"),
        Column("sprel_accuracy", "SpRel", f"(Acc {UP})"),
        Column("accuracy", "Finetuning", f"(Acc {UP})"),
    )
    sprel = measured(runs, "label", "test_sprel_accuracy").reindex(FIGURE2_LABELS)
    accuracy = measured(runs, "label", "test_accuracy", baseline="random").reindex(FIGURE2_LABELS)
    rows = []
    for key in FIGURE2_LABELS:
        random = key == "random"
        entries = [
            Entry("none" if random else "SpRel"),
            Entry(CROSS if random else "no" if key.startswith("no ") else "yes"),
            Entry(CROSS if random else "yes" if key.endswith("permuted") else "no"),
            Entry(CROSS) if random else number_entry(sprel.loc[key], len(seeds), interval=True, bold=False),
            number_entry(accuracy.loc[key], len(seeds), interval=True),
        ]
        rows.append(Row(key, tuple(replace(entry, underline=False) for entry in entries)))
    told = {"Finetuning": [each.entries[-1] for each in rows]}
    where = f"{printed_names(runs['dataset'], DATASET_NAMES)} with {printed_names(runs['backbone'], BACKBONE_NAMES)}"
    caption = (
        f"Position embeddings and permuted patches in SpRel pre-training, on {where}: accuracies in %. "
        f"{recipe_sentence(runs)} {how_to_read(runs, 'below it the', told)} Paper: Figure 2, which prints no numbers."
    )
    made = Table(name, "Figure 2: position embeddings and permutation", columns, tuple(rows), caption)
    return footnoted(made, runs, VARYING["figure2"])


# Drawings


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
            draw_curve(axes, table, look, label)
            sizes += list(table["n"])
            numbers[label] = {"sprel_accuracy": curve_entry(table)}
    if not sizes:
        raise NothingToDraw("no run has logged pretrain_val_sprel_accuracy")
    axes.set_ylabel("SpRel accuracy (%)")
    axes.set_ylim(0, 103)
    axes.set_xlim(left=0)
    epochs_axis(axes, "Pre-training epoch")
    figure.legend(loc="outside upper center", ncols=4, columnspacing=1.0)
    caption = (
        "Figure 2a: validation accuracy of SpRel while it alone is pre-trained, with and without position embeddings "
        f"(PE) and random permutations of the patches (Perm). {bands_sentence(sizes)} {source_sentence(pretrained)}"
    )
    return Drawing(figure, caption, numbers)


def figure2b(study: str, runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Figure 2b: accuracy over fine-tuning after each of these pre-trainings, and from random initialisation."""
    pretrained = _sprel_pretrained(runs)
    figure = Figure(figsize=(COLUMN, 2.3))
    axes = figure.subplots()
    sizes, shown, numbers = [], [pretrained], {}
    for label, look, chosen in _figure2_settings(pretrained):
        table = result_curve(metrics, chosen)
        if len(table):
            draw_curve(axes, table, look, label)
            sizes += list(table["n"])
            numbers[label] = {"accuracy": curve_entry(table)}
    if not sizes:
        raise NothingToDraw("no run has logged finetune_val_accuracy")
    finished = finished_runs(runs)
    random = where_true(finished, (finished["tasks"] == NONE) & (finished["protocol"] == "joint"))
    without = ""
    if len(random):
        by_seed(random)  # one run a seed
        table = result_curve(metrics, random)
        draw_curve(axes, table, BASELINE, "random initialisation")
        shown.append(random)
        if len(table):
            numbers["random initialisation"] = {"accuracy": curve_entry(table)}
    else:
        without = " The line of random initialisation is missing: no such run is finished."
    axes.set_ylabel("Accuracy (%)")
    axes.set_xlim(left=0)
    epochs_axis(axes, "Fine-tuning epoch")
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1.0)
    caption = (
        "Figure 2b: validation accuracy while fine-tuning after SpRel pre-training with and without position "
        "embeddings (PE) and random permutations of the patches (Perm), and training from a random initialisation "
        f"(dashed).{without} {bands_sentence(sizes)} {source_sentence(pd.concat(shown))}"
    )
    return Drawing(figure, caption, numbers)


def _sprel_pretrained(runs: pd.DataFrame) -> pd.DataFrame:
    finished = finished_runs(runs)
    chosen = where_true(finished, (finished["tasks"] == "sprel") & (finished["protocol"] == "pretrain_finetune"))
    if chosen.empty:
        raise NothingToDraw("no cell that is pre-trained on SpRel alone is finished")
    return chosen


def _figure2_settings(runs: pd.DataFrame) -> Iterable[tuple[str, Look, pd.DataFrame]]:
    for (embedding, permuted), label, look in _FIGURE2:
        fits = (runs["pretrain_position_embedding"] == embedding) & (runs["permute_patches"] == permuted)
        chosen = where_true(runs, fits)
        by_seed(chosen)  # one run a seed
        yield label, look, chosen
