"""A table or figure of the paper as one object, and the runs that are its entries.

Each is a `PaperTable` that its own module makes and `registry` lists: which runs it shows and what each of them is, its
layout, its figures, its sentences. `Entries` are the runs of one such table, read once for all that is made of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.output.typeset import Entry, Table
from analysis.paper.published import AUTHORS, PAPER_EPOCHS, family, paper_backbones, published
from analysis.runs.comparability import chosen_fields, deviations, of_recipe, shown
from analysis.runs.splits import split_of
from analysis.stats.seeds import by_seed
from relvit.cell import BACKBONES, FIELDS, LATER_FIELDS, NONE
from relvit.paper import backbone_name, dataset_name, section_3_1
from relvit.vocabulary import IMAGES_OF, TEST_ACCURACY, TEST_KNN_ACCURACY


class NothingToDraw(ValueError):
    """What a figure lacks, as a sentence without a full stop."""


class Drawing(NamedTuple):
    """A figure, the caption that a reader needs with it, and the numbers that it shows, by row and column."""

    figure: Figure
    caption: str
    numbers: Mapping[str, Mapping[str, Entry]]


@dataclass(frozen=True)
class Judgement:
    """What runs say about a claim.

    verdict: holds, contradicted or undecided; of one seed always the last. numbers: those that decide it, for a reader.
    note: on what footing. comparisons: every one that was made, as `analysis.stats.blocks.contrasts` gives it or, for a
    level, `analysis.stats.seeds.describe`. needs: for an undecided one how many seeds, in all, each comparison that is
    open takes to be decided with a power of 80 %, by the test that decides it, if what was seen is what there is.
    entries: the labels of those that it rests on, where the index of comparisons does not name them. stated: whether it
    is held against numbers that the sentence states, which come from the published ones of these entries.
    """

    verdict: str
    numbers: str
    note: str
    comparisons: pd.DataFrame
    needs: str = ""
    entries: tuple[str, ...] = ()
    stated: bool = False


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, quoted, and where it stands. judge: from the entries of its table and a margin.

    The margin, above 0, is in percentage points. With the further argument printed=True the entries are the paper's own
    numbers, one each, taken as they are printed. judge raises analysis.stats.seeds.SeveralRuns.
    """

    id: str
    sentence: str
    where: str
    judge: "Judge"


Build = Callable[[pd.DataFrame, pd.DataFrame], Drawing]
Judge = Callable[..., Judgement]  # of entries, margin and printed


@dataclass(frozen=True, kw_only=True, eq=False)
class PaperTable:
    """A table or figure of the paper, or of a study of one's own, as all outputs of its study need it.

    name: of the study whose runs it shows, and of its rows in published.csv; title: as the paper has it.
    layout: its entries and a name for its files to the table.
    split: conformed runs to those of each setting, the one to show first; one of several belongs in one table.
    label: a run's fields to the entry that the run is, None where it is none; label_name: an entry as it is printed.
    pairs: the labels that occur to the comparisons behind the table, each (entry, baseline); baseline: what that is.
    group: a label to the data set and backbone within which entries are compared, where the table has several.
    varying: the fields beside tasks and seed in which entries differ by design.
    places: the table in published.csv that has its data sets and backbones, where that is another.
    combinations: the tasks of its cells, where `sweeps/ablation.py --tasks` picks among them.
    figures: by how their files' names end, what draws them from runs and metrics, in the order to be read.
    comparisons: further figures, behind those, by their names in `figures.COMPARISONS`.
    behind: further tables behind it, from its entries and a name for their files.
    in_full: whether study "full" has its cells. of_all_runs: whether it shows runs of every study.
    """

    name: str
    title: str
    layout: Callable[["Entries", str], Table]
    split: Callable[[pd.DataFrame], list[pd.DataFrame]] = lambda runs: [runs]
    label: Callable[[Mapping[str, Any]], str | None] = lambda run: None
    label_name: Callable[[str], str] = str
    pairs: Callable[[Sequence[str]], list[tuple[str, str]]] = lambda labels: []
    baseline: str = "the supervised cell"
    group: Callable[[str], str] = lambda label: ""
    varying: tuple[str, ...] = ()
    places: str = ""
    combinations: tuple[str, ...] = ()
    figures: Mapping[str, Build] = field(default_factory=dict)
    comparisons: tuple[str, ...] = ()
    behind: Callable[["Entries", str], list[Table | None]] = lambda entries, name: []
    claims: tuple[Claim, ...] = ()
    in_full: bool = False
    of_all_runs: bool = False

    def label_of(self, run: Mapping[str, Any]) -> str | None:
        """The entry that a run is, None where it is none or a crash left it without the fields that say so."""
        known = all(not pd.isna(run.get(name)) for name in ("dataset", "backbone", "protocol", "tasks"))
        return self.label(run) if known else None

    def paper_backbones(self) -> dict[str, dict[str, str]]:
        """By data set, by family, the backbone that the paper has."""
        return paper_backbones(self.places or self.name)

    def fits(self, run: Mapping[str, Any], any_dataset: bool) -> bool:
        """Whether a run that was planned for another table is an entry of this one: its cell trained nothing else."""
        if self.label_of(run) is None:
            return False
        paper = self.paper_backbones()
        families = paper.get(run["dataset"]) or {kind: "" for each in paper.values() for kind in each if any_dataset}
        neutral = {"mega_grid": 0, "permute_patches": False, "pretrain_position_embedding": False}
        by_design = {*self.varying, *(["pretrain_position_embedding"] if run["tasks"] == NONE else [])}
        return (
            family(run["backbone"]) in families
            and _is(run.get("pretrain_dataset"), NONE, run["dataset"])
            and all(_is(run.get(name), value) for name, value in neutral.items() if name not in by_design)
        )


def _is(value: Any, *either: Any) -> bool:
    """Whether a field has one of these values, or is not known."""
    return bool(pd.isna(value)) or value in either


@dataclass(frozen=True, eq=False)
class Entries:
    """The runs of one table, conformed, and what is the same for everything that is made of them."""

    of: PaperTable
    runs: pd.DataFrame

    @cached_property
    def labelled(self) -> pd.DataFrame:
        """The runs that are entries, with the column label: "sprel+dist", "svhn swin relvit", "random"."""
        labels = [self.of.label_of(row) for row in self.runs.to_dict("records")]
        return self.runs.assign(label=np.array(labels, dtype=object)).dropna(subset="label")

    @property
    def seeds(self) -> list[int]:
        """All seeds that any of the runs has."""
        return sorted(int(seed) for seed in self.runs["seed"].dropna().unique())

    @property
    def finished(self) -> pd.DataFrame:
        """The labelled runs that are finished."""
        return self.labelled[self.labelled["status"] == "FINISHED"]

    def wide(self, metric: str = TEST_ACCURACY) -> pd.DataFrame:
        """A metric as `analysis.stats.seeds.by_seed`, one column a label; the accuracy of a pre-training alone is
        k-NN's. Raises SeveralRuns."""
        runs = self.labelled
        if metric == TEST_ACCURACY and TEST_KNN_ACCURACY in runs:
            alone = runs["protocol"] == "pretrain"
            runs = runs.assign(**{metric: runs.get(metric, np.nan)})
            runs[metric] = runs[metric].where(~alone, runs[TEST_KNN_ACCURACY])
        return by_seed(runs, "label", metric)

    @cached_property
    def deviations(self) -> dict[str, tuple[str, ...]]:
        """By run id, in what finished runs differ from most of the others."""
        return deviations(self.runs, self.of.varying)

    def footnoted(self, table: Table) -> Table:
        """The table with a footnote on every number whose runs differ from the others'."""
        return footnoted(table, self.runs, self.deviations)

    @cached_property
    def mixture(self) -> list[str]:
        """In what the recipes of finished entries differ, each as "sprel with seed 0: epochs 30 instead of 20"; of more
        than four, the first four and how many more."""
        runs = self.labelled
        names = dict(zip(runs["run_id"], runs["label"].astype(str) + " with seed " + runs["seed"].astype(str)))
        lines = [
            f"{names[run]}: {', '.join(of_recipe(reasons))}"
            for run, reasons in self.deviations.items()
            if run in names and of_recipe(reasons)
        ]
        return lines if len(lines) <= 4 else [*lines[:4], f"and {len(lines) - 4} more"]

    @cached_property
    def departures(self) -> list[str]:
        """`departures` of all runs."""
        return departures(self.runs, self.of)


def footnoted(table: Table, runs: pd.DataFrame, reasons: Mapping[str, tuple[str, ...]]) -> Table:
    """The table with a footnote on every number that rests on a run with a reason, by run id (`deviations`)."""
    finished = runs[runs["status"] == "FINISHED"].dropna(subset="seed")
    return table.footnoted(reasons, dict(zip(finished["run_id"], finished["seed"].astype(int))))


def departures(runs: pd.DataFrame, table: PaperTable) -> list[str]:
    """Why finished runs of a study cannot be held against the paper's numbers, one reason each; empty if they can.

    Data sets and backbones that the paper's table does not have, a backbone of its kind that only stands in, another
    number of epochs, part of the training images, results of another number of images than the published ones of the
    same split, another recipe than section 3.1's, what the engine had to do differently (tag deviation), and code with
    uncommitted or unknown changes.
    """
    runs = runs[runs["status"] == "FINISHED"]
    paper = table.paper_backbones()
    reasons = []
    for dataset, backbone in runs[["dataset", "backbone"]].dropna().drop_duplicates().to_numpy():
        if dataset not in paper:
            reasons.append(f"data set {dataset_name(dataset)} is not in the paper's {table.title}")
            if not any(backbone in each.values() for each in paper.values()):
                reasons.append(f"backbone {backbone_name(backbone)} is not in the paper's {table.title}")
        elif backbone not in paper[dataset].values():
            meant = paper[dataset].get(family(backbone))
            named = " or ".join(map(backbone_name, [meant] if meant else paper[dataset].values()))
            reasons.append(f"{backbone_name(backbone)} stands in for {named} on {dataset_name(dataset)}")
    for phase, column in (("of pre-training", "pretrain_epochs"), ("of classification", "epochs")):
        for epochs in sorted(runs[column].dropna().unique()):
            if epochs not in (0, PAPER_EPOCHS):  # 0: there is no such phase
                reasons.append(f"{epochs:.0f} epochs {phase} instead of {PAPER_EPOCHS}")
    reasons += [f"{n:,.0f} training images instead of all" for n in sorted(runs["train_images"].dropna().unique()) if n]
    reasons += _other_images(runs, table)
    for name, found in _other_recipe(runs, table.varying).items():
        reasons.append(f"{name} {' or '.join(found)}")
    reasons += sorted({str(text).strip() for text in runs["deviation"].dropna()} - {""})
    if len(runs):
        origin = set(runs["git_dirty"].fillna("unknown"))
        reasons += ["uncommitted changes in the code"] * ("true" in origin)
        reasons += ["unknown state of the code"] * ("unknown" in origin)
    return list(dict.fromkeys(reasons))


_OWN_REASONS = ("train_images", "pretrain_epochs", "epochs")  # for which `departures` has sentences


def _other_images(runs: pd.DataFrame, table: PaperTable) -> list[str]:
    """A tenth of a folder's training images is no official val split, nor a few images a test split."""
    split, paper = split_of(runs), published(table.places or table.name)
    paper = paper[(paper["split"] == split) & (paper["trained_by"] == AUTHORS)]
    theirs = dict(zip(paper["dataset"], paper["images"].astype(int)))
    known = runs.reindex(columns=["dataset", IMAGES_OF[split]]).dropna().drop_duplicates().to_numpy()
    return [
        f"{int(images):,} {split} images of {dataset_name(dataset)} instead of {theirs[dataset]:,}"
        for dataset, images in known
        if theirs.get(dataset, int(images)) != int(images)
    ]


def _other_recipe(runs: pd.DataFrame, varying: Sequence[str]) -> dict[str, list[str]]:
    """By field, "0.01 instead of 0.0005" for each way in which runs were not trained as section 3.1 says.

    What the table varies by design is no such field, nor is what an older store does not know of a run.
    """
    found: dict[str, list[str]] = {}
    for run in runs.drop_duplicates([name for name in FIELDS if name != "seed"]).to_dict("records"):
        acting, backbone = chosen_fields(run), str(run["backbone"])
        # The paper's backbones have one size of images each, whatever the data set's own; stand-ins may have none.
        usual = getattr(BACKBONES.get(backbone), "image_size", None)
        paper = LATER_FIELDS | section_3_1(backbone, acting.get("image_size") or usual or 0)
        paper |= {"pretrain_dataset": run["dataset"]} | ({"image_size": usual} if usual else {})
        for name, value in paper.items():
            if name in acting and name not in (*varying, *_OWN_REASONS) and acting[name] != value:
                text = f"{shown(acting[name])} instead of {shown(value)}"
                if text not in found.setdefault(name, []):
                    found[name].append(text)
    return found
