"""Table 2: pre-training and fine-tuning, a row for each data set."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from analysis.output.typeset import Column, Entry, Row, Table
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
from analysis.paper.published import published, reservations
from analysis.paper.rules import all_above, on_every_dataset, stated_gains
from analysis.paper.settings import newest_of_each_place
from analysis.runs.splits import split_of
from relvit.paper import BACKBONE_NAMES, DATASET_NAMES, dataset_name


def layout_table2(entries: Entries, name: str) -> Table:
    """Table 2: a row for each data set, supervised and RelViT, and the improvement over common seeds."""
    runs, seeds, paper = entries.runs, entries.seeds, published("table2")
    columns = [Column("dataset", "Data set", align="l"), Column("backbone", "Backbone", align="l")]
    parts = (("supervised", "Supervised"), ("relvit", "RelViT"), ("improvement", "Improv."))
    columns += [Column(key, heading, group=OURS) for key, heading in parts]
    columns += [Column(f"paper_{key}", heading, group=PAPER) for key, heading in parts]
    rows, told = [], {}
    for dataset in dict.fromkeys([*paper["dataset"], *runs["dataset"]]):
        here = runs[runs["dataset"] == dataset]
        ours = measured(here, "method", "test_accuracy").reindex(["supervised", "relvit"])
        there = paper[paper["dataset"] == dataset]
        backbone = printed_names((here if len(here) else there)["backbone"], BACKBONE_NAMES)
        theirs = there.set_index("method")["value"].reindex(["supervised", "relvit"])
        best = is_best(theirs)
        texts = [Entry(DATASET_NAMES.get(dataset, dataset)), Entry(backbone)]
        both = [number_entry(ours.loc[method], len(seeds), interval=True) for method in ("supervised", "relvit")]
        told[DATASET_NAMES.get(dataset, dataset)] = both
        texts += [replace(entry, underline=False) for entry in both]
        texts.append(improvement_entry(here, "method", "relvit", "supervised"))
        remarks = {row["method"]: "; ".join(reservations(row, split_of(runs))) for row in there.to_dict("records")}
        texts += [
            published_entry(theirs[method], best[method], remark=remarks.get(method, ""))
            for method in ("supervised", "relvit")
        ]
        texts.append(published_improvement(theirs["relvit"] - theirs["supervised"]))
        rows.append(Row(dataset, tuple(texts)))
    caption = (
        f"Accuracy in % after pre-training and fine-tuning, supervised and RelViT (the paper's Table 2). "
        f"{recipe_sentence(runs)} "
        f"{how_to_read('below it the', told)} Improvement: seeds as blocks. Paper: Table 2, 100 + 100 epochs."
    )
    made = Table(name, "Table 2: pre-training and fine-tuning", tuple(columns), tuple(rows), caption)
    return entries.footnoted(made)


def entry_label(run: Mapping[str, Any]) -> str | None:
    """ "svhn relvit" for a run that is pre-trained and fine-tuned on SVHN."""
    method = METHOD_OF_TASKS.get(run["tasks"])
    return f"{run['dataset']} {method}" if method and run["protocol"] == "pretrain_finetune" else None


CLAIMS = (
    Claim(
        "finetuning-every-dataset",
        "Our approach leads to higher accuracy than the supervised one in all datasets",
        "section 3.2",
        all_above(on_every_dataset("supervised")),
    ),
    Claim(
        "finetuning-gains",
        "gaining +10.01% on Tiny-Imagenet, +6.45% on CIFAR-100 and +4.75% on CIFAR-10",
        "section 3.2",
        stated_gains(
            {
                dataset_name(name): ((f"{name} relvit",), f"{name} supervised", gain)
                for name, gain in (("tiny_imagenet", 10.01), ("cifar100", 6.45), ("cifar10", 4.75))
            }
        ),
    ),
)
TABLE = PaperTable(
    name="table2",
    title="Table 2",
    layout=layout_table2,
    split=lambda runs: [newest_of_each_place(runs, "pretrain_finetune")],
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
