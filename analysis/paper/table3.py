"""Table 3: joint training, methods grouped by backbone."""

import numpy as np
import pandas as pd

from analysis.output.typeset import DASH, Column, Entry, Row, Table
from analysis.paper.numbers import (
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
from analysis.paper.published import published
from analysis.paper.table2 import entries_of
from relvit.paper import BACKBONE_NAMES, DATASET_NAMES, FAMILIES, METHODS


def layout_table3(runs: pd.DataFrame, name: str = "table3") -> Table:
    """Table 3: methods grouped by backbone, a pair of columns for each data set, ours and the paper's.

    Of each group the best is bold and the second underlined. The improvement is that of RelViT over the best of the
    other methods.
    """
    runs, paper = entries_of(runs, "table3"), published("table3")
    seeds = sorted(int(seed) for seed in runs["seed"].unique())
    datasets = list(dict.fromkeys([*paper["dataset"], *runs["dataset"]]))
    columns = [Column("backbone", "Backbone", align="l"), Column("method", "Method", align="l")]
    for dataset in datasets:
        shown = DATASET_NAMES.get(dataset, dataset)
        columns += [Column(dataset, OURS, group=shown), Column(f"paper_{dataset}", PAPER, group=shown)]
    rows, told = [], {}
    for kind in dict.fromkeys([*paper["family"], *runs["family"]]):
        groups = {dataset: _table3_group(runs, paper, dataset, kind, len(seeds)) for dataset in datasets}
        methods = ["supervised", *(["drloc"] if any("drloc" in group for group in groups.values()) else []), "relvit"]
        for dataset, group in groups.items():
            place = f"{DATASET_NAMES.get(dataset, dataset)} with {FAMILIES.get(kind, kind)}"
            told[place] = [group[method][0] for method in METHODS if method in group]
        empty = (Entry(DASH), Entry(DASH))
        for number_, (key, heading) in enumerate(
            [("backbone", ""), *((method, METHODS[method]) for method in methods), ("improvement", "(Improv.)")]
        ):
            entries = [Entry(FAMILIES.get(kind, kind) if not number_ else ""), Entry(heading)]
            for dataset in datasets:
                entries += groups[dataset].get(key, empty)
            rows.append(Row(f"{kind}-{key}", tuple(entries), rule=not number_))
    caption = (
        f"Accuracy in % after joint training from scratch (the paper's Table 3). {recipe_sentence(runs)} "
        f"{how_to_read(runs, 'below it the', told)} "
        "Second underlined. Improvement: over the best of the other methods, over common seeds. "
        "Paper: Table 3, 100 epochs."
    )
    made = Table(name, "Table 3: joint training", tuple(columns), tuple(rows), caption)
    return footnoted(made, runs, VARYING["table3"])


def _table3_group(
    runs: pd.DataFrame, paper: pd.DataFrame, dataset: str, kind: str, seeds: int
) -> dict[str, tuple[Entry, Entry]]:
    """By line of Table 3, our entry and the paper's, of one data set and kind of backbone."""
    here = runs[(runs["dataset"] == dataset) & (runs["family"] == kind)]
    there = paper[(paper["dataset"] == dataset) & (paper["family"] == kind)]
    if here.empty and there.empty:
        return {}
    theirs = there.set_index("method")["value"]
    methods = [method for method in METHODS if method in theirs or (here["method"] == method).any()]
    ours = measured(here, "method", "test_accuracy", baseline="supervised").reindex(methods)
    theirs = theirs.reindex(methods)
    best = is_best(theirs)
    second = is_best(theirs.where(~best)) & (best.sum() == 1)
    entries = {
        method: (
            number_entry(ours.loc[method], seeds, interval=True),
            published_entry(theirs[method], best[method], second[method]),
        )
        for method in methods
    }
    entries["backbone"] = (
        Entry(printed_names(here["backbone"], BACKBONE_NAMES) if len(here) else DASH),
        Entry(printed_names(there["backbone"], BACKBONE_NAMES) if len(there) else DASH),
    )
    others = ours["mean"].drop("relvit", errors="ignore").dropna()
    rivals = theirs.drop("relvit", errors="ignore").dropna()
    entries["improvement"] = (
        improvement_entry(here, "method", "relvit", others.idxmax()) if len(others) else Entry(DASH),
        published_improvement(theirs.get("relvit", np.nan) - rivals.max()) if len(rivals) else Entry(DASH),
    )
    return entries
