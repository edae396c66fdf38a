"""Which run stands for which entry of a table, and why runs cannot be held against the paper."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.paper.figure2 import figure2_label
from analysis.paper.numbers import VARYING
from analysis.paper.published import PAPER_EPOCHS, family, paper_backbones
from analysis.paper.recipe import paper_recipe
from analysis.runs.comparability import acting_fields, conform, deviations, of_recipe, shown
from analysis.stats.seeds import by_seed
from relvit.cell import BACKBONES, DRLOC, FIELDS, NONE, task_combinations
from relvit.paper import BEST

# Studies whose cells are the paper's; "full" has those of all tables.
PAPER_STUDIES = ("table2", "table3", "table4", "figure2", "full")


def of_study(runs: pd.DataFrame, study: str) -> pd.DataFrame:
    """The runs whose tag "study", names joined by commas, has this study.

    For a table or figure of the paper also those that were planned for another or for "full", where their cell is one
    of this table's and no run of the study itself stands for it.
    """
    names = [set(text.split(",")) for text in runs["study"].fillna("")]
    tagged = np.array([study in each for each in names], dtype=bool)
    if study not in PAPER_STUDIES or study == "full":
        return runs[tagged]
    taken = {_place(row, study) for row in runs[tagged].to_dict("records")}
    fitting = tagged.copy()
    for number, (row, tags) in enumerate(zip(runs.to_dict("records"), names)):
        if not tagged[number] and tags & set(PAPER_STUDIES) and _fits(row, study, "full" in tags):
            fitting[number] = _place(row, study) not in taken
    return runs[fitting]


def _place(run: Mapping[str, Any], table: str) -> tuple:
    return (*(str(run.get(name)) for name in ("dataset", "backbone", "seed")), entry_label(run, table))


def _fits(run: Mapping[str, Any], table: str, any_dataset: bool) -> bool:
    """Whether a run that was planned for another table is an entry of this one: its cell trained nothing else."""
    if entry_label(run, table) is None:
        return False
    paper = paper_backbones(table)
    families = paper.get(run["dataset"]) or {kind: "" for each in paper.values() for kind in each if any_dataset}
    if family(run["backbone"]) not in families:
        return False

    def known(name: str) -> Any:
        value = run.get(name)
        return None if pd.isna(value) else value

    neutral = {"mega_grid": 0} if table == "figure2" else {"mega_grid": 0, "permute_patches": False}
    if table != "figure2" and run["tasks"] != NONE:
        neutral["pretrain_position_embedding"] = False
    return known("pretrain_dataset") in (None, NONE, run["dataset"]) and all(
        known(name) in (None, value) for name, value in neutral.items()
    )


def labelled(runs: pd.DataFrame, table: str) -> pd.DataFrame:
    """The runs that are entries of a table, with the column label: "sprel+dist", "svhn swin relvit", "random"."""
    labels = [entry_label(row, table) for row in runs.to_dict("records")]
    return runs.assign(label=np.array(labels, dtype=object)).dropna(subset="label")


def entry_label(run: Mapping[str, Any], table: str) -> str | None:
    if any(pd.isna(run[name]) for name in ("dataset", "backbone", "protocol", "tasks")):  # what a crash left
        return None
    tasks, two_phases, joint = run["tasks"], run["protocol"] == "pretrain_finetune", run["protocol"] == "joint"
    method = {NONE: "supervised", BEST: "relvit", DRLOC: "drloc"}.get(tasks)
    if table == "table4" and two_phases and tasks in task_combinations():
        return tasks
    if table == "table2" and two_phases and method:
        return f"{run['dataset']} {method}"
    if table == "table3" and joint and method:
        return f"{run['dataset']} {family(run['backbone'])} {method}"
    return figure2_label(run) if table == "figure2" else None


def wide_entries(runs: pd.DataFrame, table: str, metric: str = "test_accuracy") -> pd.DataFrame:
    return by_seed(labelled(runs, table), "label", metric)


def mixture(runs: pd.DataFrame, table: str) -> list[str]:
    """In what the recipes of the finished runs of a table differ, each as "sprel with seed 0: epochs 30 instead of 20";
    of more than four, the first four and how many more."""
    entries = conform(labelled(runs, table))
    found = deviations(entries, VARYING.get(table, ()))
    names = dict(zip(entries["run_id"], entries["label"].astype(str) + " with seed " + entries["seed"].astype(str)))
    lines = [f"{names[run]}: {', '.join(of_recipe(reasons))}" for run, reasons in found.items() if of_recipe(reasons)]
    return lines if len(lines) <= 4 else [*lines[:4], f"and {len(lines) - 4} more"]


def departures(runs: pd.DataFrame, table: str) -> list[str]:
    """Why finished runs of a study cannot be held against the paper's numbers, one reason each; empty if they can.

    Data sets and backbones that the paper's table does not have, a backbone of its kind that only stands in, another
    number of epochs, part of the training images, another recipe than section 3.1's, what the engine had to do
    differently (tag deviation), and code with uncommitted or unknown changes.
    """
    runs = conform(runs[runs["status"] == "FINISHED"])
    paper = paper_backbones(table)
    reasons = []
    for dataset, backbone in runs[["dataset", "backbone"]].dropna().drop_duplicates().to_numpy():
        if dataset not in paper:
            reasons.append(f"data set {dataset} is not in the paper's {table}")
            if not any(backbone in each.values() for each in paper.values()):
                reasons.append(f"backbone {backbone} is not in the paper's {table}")
        elif backbone not in paper[dataset].values():
            meant = paper[dataset].get(family(backbone), " or ".join(paper[dataset].values()))
            reasons.append(f"backbone {backbone} stands in for {meant} on {dataset}")
    for phase, column in (("of pre-training", "pretrain_epochs"), ("of classification", "epochs")):
        for epochs in sorted(runs[column].dropna().unique()):
            if epochs not in (0, PAPER_EPOCHS):  # 0: there is no such phase
                reasons.append(f"{epochs:.0f} epochs {phase} instead of {PAPER_EPOCHS}")
    reasons += [f"{n:,.0f} training images instead of all" for n in sorted(runs["train_images"].dropna().unique()) if n]
    for name, found in _other_recipe(runs, table).items():
        reasons.append(f"{name} {' or '.join(found)}")
    reasons += sorted({str(text).strip() for text in runs["deviation"].dropna()} - {""})
    if len(runs):
        origin = set(runs["git_dirty"].fillna("unknown"))
        reasons += ["uncommitted changes in the code"] * ("true" in origin)
        reasons += ["unknown state of the code"] * ("unknown" in origin)
    return list(dict.fromkeys(reasons))


def _other_recipe(runs: pd.DataFrame, table: str) -> dict[str, list[str]]:
    """By field, "0.01 instead of 0.0005" for each way in which runs were not trained as section 3.1 says.

    What the table varies by design is no such field, nor is what an older store does not know of a run.
    """
    found: dict[str, list[str]] = {}
    for run in runs.drop_duplicates([name for name in FIELDS if name != "seed"]).to_dict("records"):
        acting, backbone = acting_fields(run), str(run["backbone"])
        # The paper's backbones have one size of images each, whatever the data set's own; stand-ins may have none.
        usual = getattr(BACKBONES.get(backbone), "image_size", None)
        paper = paper_recipe(backbone, acting.get("image_size") or usual or 0)
        paper |= {"pretrain_dataset": run["dataset"]} | ({"image_size": usual} if usual else {})
        for name, value in paper.items():
            if name in acting and name not in VARYING.get(table, ()) and acting[name] != value:
                text = f"{shown(acting[name])} instead of {shown(value)}"
                if text not in found.setdefault(name, []):
                    found[name].append(text)
    return found
