"""Table 3: joint training, methods grouped by backbone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.output.typeset import DASH, Column, Entry, Row, Table
from analysis.paper.cost import cost
from analysis.paper.curves import curves
from analysis.paper.entries import Claim, Entries, PaperTable
from analysis.paper.numbers import (
    METHOD_OF_TASKS,
    OURS,
    PAPER,
    against_supervised,
    how_to_read,
    improvement_entry,
    is_best,
    measured,
    method_name,
    number_entry,
    printed_names,
    published_entry,
    published_improvement,
    recipe_sentence,
)
from analysis.paper.published import family, published, reservations
from analysis.paper.rules import all_above, on_every_dataset, stated_gains
from analysis.paper.settings import newest_of_each_place
from analysis.runs.splits import split_of
from relvit.paper import BACKBONE_NAMES, DATASET_NAMES, FAMILIES, METHODS, dataset_name


def layout_table3(entries: Entries, name: str) -> Table:
    """Table 3: methods grouped by backbone, a pair of columns for each data set, ours and the paper's.

    Of each group the best is bold and the second underlined. The improvement is that of RelViT over the best of the
    other methods.
    """
    runs, seeds, paper = entries.runs, entries.seeds, published("table3")
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
            texts = [Entry(FAMILIES.get(kind, kind) if not number_ else ""), Entry(heading)]
            for dataset in datasets:
                texts += groups[dataset].get(key, empty)
            rows.append(Row(f"{kind}-{key}", tuple(texts), rule=not number_))
    caption = (
        f"Accuracy in % after joint training from scratch (the paper's Table 3). {recipe_sentence(runs)} "
        f"{how_to_read('below it the', told)} "
        "Second underlined. Improvement: over the best of the other methods. "
        "Paper: Table 3, 100 epochs."
    )
    made = Table(name, "Table 3: joint training", tuple(columns), tuple(rows), caption)
    return entries.footnoted(made)


def _table3_group(
    runs: pd.DataFrame, paper: pd.DataFrame, dataset: str, kind: str, seeds: int
) -> dict[str, tuple[Entry, Entry]]:
    """By line of Table 3, our entry and the paper's, of one data set and kind of backbone."""
    here = runs[(runs["dataset"] == dataset) & (runs["family"] == kind)]
    there = paper[(paper["dataset"] == dataset) & (paper["family"] == kind)]
    if here.empty and there.empty:
        return {}
    theirs = there.set_index("method")["value"]
    remarks = {row["method"]: "; ".join(reservations(row, split_of(runs))) for row in there.to_dict("records")}
    methods = [method for method in METHODS if method in theirs or (here["method"] == method).any()]
    ours = measured(here, "method", "test_accuracy").reindex(methods)
    theirs = theirs.reindex(methods)
    best = is_best(theirs)
    second = is_best(theirs.where(~best)) & (best.sum() == 1)
    entries = {
        method: (
            number_entry(ours.loc[method], seeds, interval=True),
            published_entry(theirs[method], best[method], second[method], remarks.get(method, "")),
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
        published_improvement(theirs.get("relvit", np.nan) - rivals.max(), _reservation(there.set_index("method")))
        if len(rivals)
        else Entry(DASH),
    )
    return entries


def _reservation(there: pd.DataFrame) -> str:
    """What a published improvement is worth: there are the published rows of a group by method."""
    if "relvit" not in there.index:
        return ""
    rivals, own, found = there.drop(index="relvit"), there.loc["relvit"], []
    if (rivals["split"] != own["split"]).any():
        also = dict.fromkeys(f", trained on {splits}" for splits in rivals["trained_on"] if splits)
        found.append(
            f"of {own['images']:,.0f} val images over {rivals['images'].max():,.0f} test images{''.join(also)}"
        )
    if rivals["corrected"].notna().any():
        later = own["value"] - rivals["corrected"].fillna(rivals["value"]).max()
        found.append(f"{later:+.2f} over what {rivals['trained_by'].iloc[0]} later got")
    return "; ".join(found)


def entry_label(run: Mapping[str, Any]) -> str | None:
    """ "svhn swin relvit" for a run that is trained on SVHN and the tasks at once."""
    method = METHOD_OF_TASKS.get(run["tasks"])
    return f"{run['dataset']} {family(run['backbone'])} {method}" if method and run["protocol"] == "joint" else None


_VARIANTS = ("swin", "t2t")
CLAIMS = (
    Claim(
        "joint-almost-all-datasets",
        "this configuration improves the results on almost all the datasets",  # read as: on all but one of the four
        "section 3.2",
        all_above(on_every_dataset("supervised", ("vit",)), exceptions=1),
    ),
    Claim(
        "joint-gains",
        "up to +4.02% on Flower102, +3.93% on CIFAR-100, and +3.71% on CIFAR-10",
        "section 3.2",
        stated_gains(
            {
                dataset_name(name): ((f"{name} vit relvit",), f"{name} vit supervised", gain)
                for name, gain in (("flowers102", 4.02), ("cifar100", 3.93), ("cifar10", 3.71))
            }
        ),
    ),
    Claim(
        "joint-every-dataset",
        "RelViT shows significant improvement on all the tested datasets",
        "section 4",  # "and in both scenarios": the other is finetuning-every-dataset
        all_above(on_every_dataset("supervised", ("vit",))),
    ),
    Claim(
        "variants-above-supervised",
        "we outperform the supervised baselines",
        "section 3.2",
        all_above(on_every_dataset("supervised", _VARIANTS)),
    ),
    Claim(
        "variants-above-drloc",
        "we outperform [...] also [9] results",
        "section 3.2",
        all_above(on_every_dataset("drloc", _VARIANTS)),
    ),
    Claim(
        "variants-gains",
        "up to +19.85% and +16.24% on Flower-102, with Swin and T2T-ViT backbones",
        "section 3.2",
        stated_gains(
            {
                f"Flower-102, {FAMILIES[name]}": ((f"flowers102 {name} relvit",), f"flowers102 {name} drloc", gain)
                for name, gain in (("swin", 19.85), ("t2t", 16.24))
            }
        ),
    ),
)
TABLE = PaperTable(
    name="table3",
    title="Table 3",
    layout=layout_table3,
    split=lambda runs: [newest_of_each_place(runs, "joint")],
    label=entry_label,
    label_name=method_name,
    pairs=against_supervised,
    group=lambda label: label.rpartition(" ")[0],
    varying=("dataset", "backbone"),
    figures={"-curves": curves, "-cost": cost},
    comparisons=("forest", "across"),
    claims=CLAIMS,
    in_full=True,
)
