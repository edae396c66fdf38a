"""Table 2: pre-training and fine-tuning, a row for each data set."""

from dataclasses import replace

import pandas as pd

from analysis.output.typeset import Column, Entry, Row, Table
from analysis.paper.numbers import (
    METHOD_OF_TASKS,
    OURS,
    PAPER,
    VARYING,
    footnoted,
    how_to_read,
    improvement_entry,
    is_best,
    measured,
    number_entry,
    printed_names,
    published_entry,
    published_improvement,
    recipe_sentence,
)
from analysis.paper.published import family, published
from analysis.paper.settings import settings
from analysis.runs.comparability import conform
from relvit.paper import BACKBONE_NAMES, DATASET_NAMES

_PROTOCOLS = {"table2": "pretrain_finetune", "table3": "joint", "table4": "pretrain_finetune", "figure2": None}


def entries_of(runs: pd.DataFrame, table: str) -> pd.DataFrame:
    """The runs that are entries of Table 2 or 3, of each data set and kind of backbone those of the newest setting.

    With the further columns family and method.
    """
    runs = conform(runs)
    runs = runs[runs["tasks"].isin(METHOD_OF_TASKS)]
    chosen: dict[tuple[str, str], pd.DataFrame] = {}
    for setting in settings(runs, protocol=_PROTOCOLS[table]):
        chosen[setting.fields["dataset"], family(setting.fields["backbone"])] = setting.runs
    found = pd.concat([*chosen.values(), runs.head(0)])
    return found.assign(family=found["backbone"].map(family), method=found["tasks"].map(METHOD_OF_TASKS))


def layout_table2(runs: pd.DataFrame, name: str = "table2") -> Table:
    """Table 2: a row for each data set, supervised and RelViT, and the improvement over common seeds."""
    runs, paper = entries_of(runs, "table2"), published("table2")
    runs = runs[runs["method"] != "drloc"]
    seeds = sorted(int(seed) for seed in runs["seed"].unique())
    columns = [Column("dataset", "Data set", align="l"), Column("backbone", "Backbone", align="l")]
    parts = (("supervised", "Supervised"), ("relvit", "RelViT"), ("improvement", "Improv."))
    columns += [Column(key, heading, group=OURS) for key, heading in parts]
    columns += [Column(f"paper_{key}", heading, group=PAPER) for key, heading in parts]
    rows, told = [], {}
    for dataset in dict.fromkeys([*paper["dataset"], *runs["dataset"]]):
        here = runs[runs["dataset"] == dataset]
        ours = measured(here, "method", "test_accuracy", baseline="supervised").reindex(["supervised", "relvit"])
        there = paper[paper["dataset"] == dataset]
        backbone = printed_names((here if len(here) else there)["backbone"], BACKBONE_NAMES)
        theirs = there.set_index("method")["value"].reindex(["supervised", "relvit"])
        best = is_best(theirs)
        entries = [Entry(DATASET_NAMES.get(dataset, dataset)), Entry(backbone)]
        both = [number_entry(ours.loc[method], len(seeds), interval=True) for method in ("supervised", "relvit")]
        told[DATASET_NAMES.get(dataset, dataset)] = both
        entries += [replace(entry, underline=False) for entry in both]
        entries.append(improvement_entry(here, "method", "relvit", "supervised"))
        entries += [published_entry(theirs[method], best[method]) for method in ("supervised", "relvit")]
        entries.append(published_improvement(theirs["relvit"] - theirs["supervised"]))
        rows.append(Row(dataset, tuple(entries)))
    caption = (
        f"Accuracy in % after pre-training and fine-tuning, supervised and RelViT (the paper's Table 2). "
        f"{recipe_sentence(runs)} "
        f"{how_to_read(runs, 'below it the', told)} Improvement: over common seeds. Paper: Table 2, 100 + 100 epochs."
    )
    made = Table(name, "Table 2: pre-training and fine-tuning", tuple(columns), tuple(rows), caption)
    return footnoted(made, runs, VARYING["table2"])
