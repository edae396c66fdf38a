"""Figure 2: position embeddings and permuted patches in SpRel pre-training."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.output.typeset import CROSS, UP, Column, Entry, Row, Table
from analysis.paper import drawing
from analysis.paper.cost import cost
from analysis.paper.entries import Claim, Drawing, Entries, NothingToDraw, PaperTable
from analysis.paper.numbers import (
    how_to_read,
    measured,
    number_entry,
    printed_names,
    recipe_sentence,
)
from analysis.paper.rules import SOLVED, all_above, all_similar, fixed, level_above, no_help
from analysis.paper.settings import settings
from analysis.stats.seeds import by_seed
from relvit.cell import NONE
from relvit.paper import BACKBONE_NAMES, DATASET_NAMES

VARYING = ("protocol", "pretrain_position_embedding", "permute_patches")
LABELS = ("embedding", "embedding, permuted", "no embedding", "no embedding, permuted", "random")


def newest_setting(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """The runs of the newest setting that are in Figure 2."""
    labels = pd.Series([TABLE.label_of(row) for row in runs.to_dict("records")], runs.index, dtype=object)
    runs = runs[labels.notna()]
    found = settings(runs, VARYING, protocol=None)
    return [found[-1].runs if found else runs]


def entry_label(run: Mapping[str, Any]) -> str | None:
    """Which setting of Figure 2 a run is, if any."""
    if run["protocol"] == "joint" and run["tasks"] == NONE:
        return "random"
    embedding, permuted = run.get("pretrain_position_embedding"), run.get("permute_patches")
    if run["protocol"] != "pretrain_finetune" or run["tasks"] != "sprel" or pd.isna(embedding) or pd.isna(permuted):
        return None
    return ("embedding" if embedding else "no embedding") + (", permuted" if permuted else "")


def layout_figure2(entries: Entries, name: str) -> Table:
    """Figure 2's end values: four ways to pre-train on SpRel, and no pre-training."""
    runs, seeds = entries.labelled, entries.seeds
    columns = (
        Column("pretraining", "Pre-training", align="l"),
        Column("embedding", "Position", "embedding"),
        Column("permuted", "Permuted", "patches"),
        Column("sprel_accuracy", "SpRel", f"(Acc {UP})"),
        Column("accuracy", "Finetuning", f"(Acc {UP})"),
    )
    sprel = measured(runs, "label", "test_sprel_accuracy").reindex(LABELS)
    accuracy = measured(runs, "label", "test_accuracy", baseline="random").reindex(LABELS)
    rows = []
    for key in LABELS:
        random = key == "random"
        texts = [
            Entry("none" if random else "SpRel"),
            Entry(CROSS if random else "no" if key.startswith("no ") else "yes"),
            Entry(CROSS if random else "yes" if key.endswith("permuted") else "no"),
            Entry(CROSS) if random else number_entry(sprel.loc[key], len(seeds), interval=True, bold=False),
            number_entry(accuracy.loc[key], len(seeds), interval=True),
        ]
        rows.append(Row(key, tuple(replace(entry, underline=False) for entry in texts)))
    told = {"Finetuning": [each.entries[-1] for each in rows]}
    where = f"{printed_names(runs['dataset'], DATASET_NAMES)} with {printed_names(runs['backbone'], BACKBONE_NAMES)}"
    caption = (
        f"Position embeddings and permuted patches in SpRel pre-training, on {where}: accuracies in %. "
        f"{recipe_sentence(runs)} {how_to_read(runs, 'below it the', told)} Paper: Figure 2, which prints no numbers."
    )
    made = Table(name, "Figure 2: position embeddings and permutation", columns, tuple(rows), caption)
    return entries.footnoted(made)


# Drawings


_FIGURE2 = (  # position embedding, permuted; as the paper's legend names them
    ((True, False), "PE", drawing.LOOKS[0]),
    ((True, True), "PE + Perm", drawing.LOOKS[2]),
    ((False, False), "no PE", drawing.LOOKS[3]),
    ((False, True), "no PE + Perm", drawing.LOOKS[4]),
)


def figure2a(runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Figure 2a: SpRel accuracy over pre-training, with and without position embeddings and permutation."""
    pretrained = _sprel_pretrained(runs)
    figure = Figure(figsize=(drawing.COLUMN, 2.3))
    axes = figure.subplots()
    sizes, numbers = [], {}
    for label, look, chosen in _figure2_settings(pretrained):
        table = drawing.curve(metrics, chosen, "pretrain_val_sprel_accuracy")
        if len(table):
            drawing.draw_curve(axes, table, look, label)
            sizes += list(table["n"])
            numbers[label] = {"sprel_accuracy": drawing.curve_entry(table)}
    if not sizes:
        raise NothingToDraw("no run has logged pretrain_val_sprel_accuracy")
    axes.set_ylabel("SpRel accuracy (%)")
    axes.set_ylim(0, 103)
    axes.set_xlim(left=0)
    drawing.epochs_axis(axes, "Pre-training epoch")
    figure.legend(loc="outside upper center", ncols=4, columnspacing=1.0)
    caption = (
        "Figure 2a: validation accuracy of SpRel while it alone is pre-trained, with and without position embeddings "
        f"(PE) and random permutations of the patches (Perm). {drawing.bands_sentence(sizes)} "
        f"{drawing.source_sentence(pretrained)}"
    )
    return Drawing(figure, caption, numbers)


def figure2b(runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Figure 2b: accuracy over fine-tuning after each of these pre-trainings, and from random initialisation."""
    pretrained = _sprel_pretrained(runs)
    figure = Figure(figsize=(drawing.COLUMN, 2.3))
    axes = figure.subplots()
    sizes, shown, numbers = [], [pretrained], {}
    for label, look, chosen in _figure2_settings(pretrained):
        table = drawing.result_curve(metrics, chosen)
        if len(table):
            drawing.draw_curve(axes, table, look, label)
            sizes += list(table["n"])
            numbers[label] = {"accuracy": drawing.curve_entry(table)}
    if not sizes:
        raise NothingToDraw("no run has logged finetune_val_accuracy")
    finished = drawing.finished_runs(runs)
    random = drawing.where_true(finished, (finished["tasks"] == NONE) & (finished["protocol"] == "joint"))
    without = ""
    if len(random):
        by_seed(random)  # one run a seed
        table = drawing.result_curve(metrics, random)
        drawing.draw_curve(axes, table, drawing.BASELINE, "random initialisation")
        shown.append(random)
        if len(table):
            numbers["random initialisation"] = {"accuracy": drawing.curve_entry(table)}
    else:
        without = " The line of random initialisation is missing: no such run is finished."
    axes.set_ylabel("Accuracy (%)")
    axes.set_xlim(left=0)
    drawing.epochs_axis(axes, "Fine-tuning epoch")
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1.0)
    caption = (
        "Figure 2b: validation accuracy while fine-tuning after SpRel pre-training with and without position "
        "embeddings (PE) and random permutations of the patches (Perm), and training from a random initialisation "
        f"(dashed).{without} {drawing.bands_sentence(sizes)} {drawing.source_sentence(pd.concat(shown))}"
    )
    return Drawing(figure, caption, numbers)


def _sprel_pretrained(runs: pd.DataFrame) -> pd.DataFrame:
    finished = drawing.finished_runs(runs)
    chosen = drawing.where_true(
        finished, (finished["tasks"] == "sprel") & (finished["protocol"] == "pretrain_finetune")
    )
    if chosen.empty:
        raise NothingToDraw("no cell that is pre-trained on SpRel alone is finished")
    return chosen


def _figure2_settings(runs: pd.DataFrame) -> Iterable[tuple[str, drawing.Look, pd.DataFrame]]:
    for (embedding, permuted), label, look in _FIGURE2:
        fits = (runs["pretrain_position_embedding"] == embedding) & (runs["permute_patches"] == permuted)
        chosen = drawing.where_true(runs, fits)
        by_seed(chosen)  # one run a seed
        yield label, look, chosen


CLAIMS = (
    Claim(
        "embedding-solves-sprel",
        "if the model uses the PEs without shuffling during the pre-training, it solves the task with 100% of SpRel "
        "accuracy",
        "section 3.3, Figure 2a",
        level_above("test_sprel_accuracy", "embedding", SOLVED),
    ),
    Claim(
        "embedding-does-not-help",
        "reaches a classification accuracy comparable to a randomly initialized network",
        "section 3.3, Figure 2b",
        no_help("embedding", "random"),
    ),
    Claim(
        "shuffling-helps",
        "the shuffling removes the trivial solution and improves the classification accuracy",
        "section 3.3, Figure 2b",
        all_above(fixed(("embedding, permuted", "embedding"))),
    ),
    Claim(
        "no-embedding-is-best",
        "we removed PEs from RelViT since, in this way, we obtained the best results",
        "section 3.3, Figure 2b",
        all_above(fixed(("no embedding", "embedding"), ("no embedding", "embedding, permuted"))),
    ),
    Claim(
        "shuffling-is-optional",
        "the shuffling is optional due to the permutation equivariance property of the model",
        "section 3.3",
        all_similar(("no embedding", "no embedding, permuted")),
    ),
)
TABLE = PaperTable(
    name="figure2",
    title="Figure 2",
    layout=layout_figure2,
    split=newest_setting,
    label=entry_label,
    label_name="SpRel, {}".format,
    pairs=lambda labels: [(label, "random") for label in LABELS[:-1]],
    baseline="a random start",
    varying=VARYING,
    places="table4",  # it shares its data set and backbone
    figures={"a": figure2a, "b": figure2b, "-cost": cost},
    claims=CLAIMS,
)
