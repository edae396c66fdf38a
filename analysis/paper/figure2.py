"""Figure 2: position embeddings and permuted patches in SpRel pre-training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.output.typeset import CROSS, UP, Column, Entry, Row, Table
from analysis.paper import drawing
from analysis.paper.cost import cost
from analysis.paper.entries import Claim, Drawing, Entries, NothingToDraw, PaperTable
from analysis.paper.numbers import how_to_read, measured, number_entry, printed_names, recipe_sentence
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
    accuracy = measured(runs, "label", "test_accuracy").reindex(LABELS)
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
        f"{recipe_sentence(runs)} {how_to_read('below it the', told)} Paper: Figure 2, which prints no numbers."
    )
    made = Table(name, "Figure 2: position embeddings and permutation", columns, tuple(rows), caption)
    return entries.footnoted(made)


# Drawings


_LINES = {  # by entry, its name in the paper's legend
    "embedding": ("PE", drawing.LOOKS[0]),
    "embedding, permuted": ("PE + Perm", drawing.LOOKS[2]),
    "no embedding": ("no PE", drawing.LOOKS[3]),
    "no embedding, permuted": ("no PE + Perm", drawing.LOOKS[4]),
    "random": ("random initialisation", drawing.BASELINE),
}


def figure2a(runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Figure 2a: SpRel accuracy over pre-training, with and without position embeddings and permutation."""
    metric = "pretrain_val_sprel_accuracy"
    figure, axes, shown, lines, numbers = _drawn(
        runs, LABELS[:-1], lambda chosen: drawing.curve(metrics, chosen, metric), metric, "sprel_accuracy"
    )
    axes.set_ylabel("SpRel accuracy (%)")
    axes.set_ylim(0, 103)
    drawing.epochs_axis(axes, "Pre-training epoch")
    figure.legend(loc="outside upper center", ncols=4, columnspacing=1.0)
    caption = (
        "Figure 2a: validation accuracy of SpRel while it alone is pre-trained, with and without position embeddings "
        f"(PE) and random permutations of the patches (Perm). {drawing.bands_sentence(_sizes(lines))} "
        f"{drawing.source_sentence(shown)}"
    )
    return Drawing(figure, caption, numbers)


def figure2b(runs: pd.DataFrame, metrics: pd.DataFrame) -> Drawing:
    """Figure 2b: accuracy over fine-tuning after each of these pre-trainings, and from random initialisation."""
    figure, axes, shown, lines, numbers = _drawn(
        runs, LABELS, lambda chosen: drawing.result_curve(metrics, chosen), "finetune_val_accuracy", "accuracy"
    )
    axes.set_ylabel("Accuracy (%)")
    cut = drawing.zoom(axes, lines)
    drawing.epochs_axis(axes, "Fine-tuning epoch")
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1.0)
    missing = " The line of random initialisation is missing: no such run is finished."
    caption = (
        "Figure 2b: validation accuracy while fine-tuning after SpRel pre-training with and without position "
        "embeddings (PE) and random permutations of the patches (Perm), and training from a random initialisation "
        f"(dashed).{missing * (NONE not in set(shown['tasks']))} {drawing.bands_sentence(_sizes(lines))}{cut} "
        f"{drawing.source_sentence(shown)}"
    )
    return Drawing(figure, caption, numbers)


def _drawn(
    runs: pd.DataFrame, labels: Sequence[str], read: Callable[[pd.DataFrame], pd.DataFrame], metric: str, column: str
) -> tuple[Figure, Axes, pd.DataFrame, list[pd.DataFrame], dict[str, dict[str, Entry]]]:
    """A line for each of these entries, read from its runs: the figure, its axes, the runs that it shows, its lines,
    and the numbers."""
    entries = Entries(TABLE, drawing.finished_runs(runs)).labelled
    entries = entries[entries["label"].isin(labels)]
    by_seed(entries, "label")  # one run a seed
    if (entries["label"] == "random").all():
        raise NothingToDraw("no cell that is pre-trained on SpRel alone is finished")
    figure = Figure(figsize=(drawing.COLUMN, 2.3))
    axes = figure.subplots()
    lines, numbers = [], {}
    for label in labels:
        table = read(entries[entries["label"] == label])
        if len(table):
            name, look = _LINES[label]
            drawing.draw_curve(axes, table, look, name)
            lines.append(table)
            numbers[name] = {column: drawing.curve_entry(table)}
    if not set(numbers) - {_LINES["random"][0]}:
        raise NothingToDraw(f"no run has logged {metric}")
    axes.set_xlim(left=0)
    return figure, axes, entries, lines, numbers


def _sizes(lines: list[pd.DataFrame]) -> list[int]:
    return [int(n) for table in lines for n in table["n"]]


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
        "the shuffling [...] improves the classification accuracy",
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
        "the shuffling is optional",
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
    label_name=lambda label: "random start" if label == "random" else f"SpRel, {label}",
    pairs=lambda labels: [(label, "random") for label in LABELS[:-1]],
    baseline="a random start",
    varying=VARYING,
    places="table4",  # it shares its data set and backbone
    figures={"a": figure2a, "b": figure2b, "-cost": cost},
    comparisons=("order",),
    claims=CLAIMS,
)
