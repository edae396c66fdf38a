"""The paper's tables from runs, beside the published numbers, as `analysis.output.typeset.Table`.

runs    what `analysis.runs.gather` returns; what an older store lacks is taken as unknown (`comparability.conform`).

Every number over several seeds is a mean with its sample standard deviation, and where there is room its 95 % interval.
Bold is the best of its column or group, with all that were not shown to be worse (`statistics.tied_with_best`); of
single seeds, the highest as printed.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.output.typeset import CROSS, DASH, DOWN, UP, Column, Entry, Row, Table
from analysis.runs.comparability import acting_fields, conform, deviations
from analysis.stats import seeds as statistics
from relvit.cell import BACKBONES, DRLOC, FIELDS, NONE, ViTSpec, parse_tasks, task_combinations
from relvit.paper import BACKBONE_NAMES, BEST, DATASET_NAMES, FAMILIES, METHODS

PUBLISHED = Path(__file__).with_name("published.csv")

# Table 4's columns from left to right: task, metric, heading, unit, whether a larger value is better.
TASK_COLUMNS = (
    ("abspos", "abspos_accuracy", "AbsPos", f"(Acc {UP})", True),
    ("ang", "ang_mse_x100", "Ang", f"(MSE {DOWN})", False),
    ("dist", "dist_mse_x100", "Dist", f"(MSE {DOWN})", False),
    ("sprel", "sprel_accuracy", "SpRel", f"(Acc {UP})", True),
)
_FINETUNING = ("accuracy", "Finetuning", f"(Acc {UP})", True)
OURS, PAPER = "Ours", "Paper"

_METHOD_OF_TASKS = {NONE: "supervised", DRLOC: "drloc", BEST: "relvit"}


# Which runs stand together


@dataclass(frozen=True)
class Setting:
    """Runs that differ only in tasks (or what else varies by design) and seed, and so belong in one table.

    fields: what they share, as far as it acts in any of them.
    """

    fields: dict[str, Any]
    runs: pd.DataFrame

    @property
    def seeds(self) -> list[int]:
        """All seeds that any of the runs has."""
        return sorted(int(seed) for seed in self.runs["seed"].unique())


def settings(
    runs: pd.DataFrame, varying: Collection[str] = (), protocol: str | None = "pretrain_finetune"
) -> list[Setting]:
    """Split the runs of a protocol (None: of all) into settings, the most recently started last.

    varying: the fields beside tasks that vary by design. A run belongs to a setting if every field that acts in it has
    the setting's value; a supervised run, in which the fewest fields act, may belong to several. A setting that holds
    only cells which a larger one on the same data set and backbone lacks fills that one up, where its numbers get a
    footnote (`comparability.deviations`): a table with a deviating row says more than two with gaps.
    """
    runs = conform(runs)
    usable = runs[["dataset", "backbone", "protocol", "tasks", "seed"]].notna().all(axis=1)
    runs = runs[usable if protocol is None else usable & (runs["protocol"] == protocol)]
    acting = {
        index: {name: value for name, value in acting_fields(row).items() if name not in varying}
        for index, row in zip(runs.index, runs.to_dict("records"))
    }
    found: list[tuple[dict[str, Any], list[int]]] = []
    for index in sorted(acting, key=lambda index: -len(acting[index])):
        fields = acting[index]
        fitting = [each for each in found if all(each[0].get(name, value) == value for name, value in fields.items())]
        if not fitting:
            fitting = [({}, [])]
            found += fitting
        for shared, members in fitting:
            shared |= fields
            members.append(index)
    split = [Setting(shared, _one_run_per_cell(runs.loc[sorted(members)], varying)) for shared, members in found]
    return sorted(_filled(split, varying), key=_newest)


def _newest(setting: Setting) -> pd.Timestamp:
    return setting.runs["start_time"].fillna(pd.Timestamp(0, tz="UTC")).max()


def _one_run_per_cell(runs: pd.DataFrame, varying: Collection[str]) -> pd.DataFrame:
    """Of several finished runs of one cell and seed, which only an older schema cannot tell apart, the newest."""
    finished = runs[runs["status"] == "FINISHED"].sort_values("start_time", na_position="first")
    older = finished.duplicated(["tasks", "seed", *varying], keep="last")
    return runs.drop(index=finished.index[older])


def _filled(split: list[Setting], varying: Collection[str]) -> list[Setting]:
    def cells(setting: Setting) -> dict[tuple, set[str]]:
        finished = setting.runs[setting.runs["status"] == "FINISHED"]
        keys = finished[["tasks", *varying]].astype(str).agg(tuple, axis=1)
        return finished.groupby(keys)["run_id"].agg(set).to_dict() if len(finished) else {}

    def same_place(one: Setting, other: Setting) -> bool:
        names = ("dataset", "backbone", "image_size", "protocol")
        return all(one.fields.get(name) == other.fields.get(name) for name in names)

    kept: list[Setting] = []
    for one in sorted(split, key=lambda one: (len(cells(one)), _newest(one)), reverse=True):
        for number, other in enumerate(kept):
            theirs = cells(other)
            own = [key for key, ids in cells(one).items() if not ids <= theirs.get(key, set())]
            if own and not set(own) & set(theirs) and same_place(one, other):
                together = pd.concat([other.runs, one.runs]).drop_duplicates("run_id")
                kept[number] = Setting(other.fields, together)
                break
        else:
            kept.append(one)
    return kept


def family(backbone: str) -> str:
    """The kind of a backbone: "vit" for vit_s4 and vit_xs8 alike."""
    return backbone.partition("_")[0]


# Numbers


def published(table: str) -> pd.DataFrame:
    """The rows of published.csv of a table: dataset, backbone, family, method, tasks, metric, value."""
    rows = _published()
    return rows[rows["table"] == table].copy()


@cache
def _published() -> pd.DataFrame:
    rows = pd.read_csv(PUBLISHED, keep_default_na=False).astype({"value": float})
    return rows.assign(tasks=rows["tasks"].replace({"": NONE}), family=rows["backbone"].map(family))


def measured(
    runs: pd.DataFrame, by: str, metric: str, larger: bool = True, baseline: str | None = None
) -> pd.DataFrame:
    """One row a cell: mean, std, n, low, high over seeds; bold and second, by the rules above; runs, their ids.

    baseline: of which the study's table of differences is; bold says nothing that this one denies.
    Second is the highest after a single best; there is none after a group that cannot be told apart.
    """
    runs = runs.assign(**{metric: runs.get(metric, np.nan)})
    table = statistics.summary(runs, by, metric)
    tied = statistics.tied_with_best(runs, by, metric, larger, baseline)["tied"]
    printed = table["mean"].round(2)
    if table["n"].max() <= 1:
        tied = is_best(printed, larger)
    rest = printed.where(~tied)
    table["bold"] = tied
    table["second"] = (
        is_best(rest, larger) & (printed[tied].nunique() == 1) & (tied.sum() == 1 or table["n"].max() <= 1)
    )
    finished = runs[(runs["status"] == "FINISHED") & runs[metric].notna()].dropna(subset=[by, "seed"])
    ids = finished.groupby(by)["run_id"].agg(lambda names: tuple(sorted(names)))
    table["runs"] = [ids.get(cell, ()) for cell in table.index]
    return table


def is_best(values: pd.Series, larger: bool = True) -> pd.Series:
    """Whether each value is the best of all as printed, with two decimals; null is not."""
    rounded = values.round(2)
    return rounded.notna() & (rounded == (rounded.max() if larger else rounded.min()))


def table4(setting: Setting) -> pd.DataFrame:
    """The numbers of Table 4: one row a combination of tasks, in the paper's order.

    Columns: for each metric of TASK_COLUMNS and "accuracy" those of `measured`, as METRIC_mean, METRIC_std, METRIC_low,
    METRIC_high, METRIC_bold and METRIC_runs, from the test split; n, the finished seeds; paper_METRIC, the published
    figure.
    """
    table = pd.DataFrame(index=pd.Index(task_combinations(), name="tasks"))
    paper = published("table4")
    metrics = [(metric, larger) for _, metric, _, _, larger in TASK_COLUMNS] + [("accuracy", True)]
    for metric, larger in metrics:
        numbers = measured(setting.runs, "tasks", f"test_{metric}", larger, NONE).reindex(table.index)
        for name in ("mean", "std", "low", "high"):
            table[f"{metric}_{name}"] = numbers[name].astype(float)
        table[f"{metric}_bold"] = numbers["bold"].eq(True)
        table[f"{metric}_runs"] = [ids if isinstance(ids, tuple) else () for ids in numbers["runs"]]
        table[f"paper_{metric}"] = paper[paper["metric"] == metric].set_index("tasks")["value"]
    finished = setting.runs[setting.runs["status"] == "FINISHED"]
    table["n"] = finished.groupby("tasks").size().reindex(table.index, fill_value=0)
    return table


# Entries


def number(row: Mapping[str, Any], of: int | None = None, interval: bool = False, bold: bool | None = None) -> Entry:
    """A row of `measured` as an entry. of: how many seeds there should be, named where some are missing.

    interval: whether the 95 % interval stands below. bold: None for the row's own.
    """
    n = 0 if pd.isna(row.get("n", 0)) else int(row.get("n", 0))
    mean, std, low, high = (float(row.get(name, np.nan)) for name in ("mean", "std", "low", "high"))
    below = [f"[{low:.2f}, {high:.2f}]"] * (interval and not np.isnan(low))
    below += [f"n = {n}/{of}"] * (of is not None and n < of)
    return Entry(
        text=spread(mean, std),
        below=", ".join(below),
        numbers={} if np.isnan(mean) else {"value": mean, "std": std, "n": n, "low": low, "high": high},
        runs=row["runs"] if isinstance(row.get("runs"), tuple) else (),
        bold=_is_set(row.get("bold")) if bold is None else bold,
        underline=_is_set(row.get("second")),
    )


def _is_set(flag: Any) -> bool:
    return flag is not None and not pd.isna(flag) and bool(flag)


def spread(mean: float, std: float = float("nan")) -> str:
    """ "93.00 ± 3.61", without the deviation where there is none, a dash where there is nothing."""
    if pd.isna(mean):
        return DASH
    return f"{mean:.2f}" if pd.isna(std) else f"{mean:.2f} ± {std:.2f}"


def paper_number(value: float, bold: bool = False, underline: bool = False) -> Entry:
    """A published number as an entry."""
    if pd.isna(value):
        return Entry(DASH)
    return Entry(
        f"{value:.2f}", numbers={"value": float(value)}, published=True, bold=bool(bold), underline=bool(underline)
    )


def improvement(difference: float) -> str:
    """ "+4.75 ↑", as Table 2 prints it."""
    if pd.isna(difference):
        return DASH
    printed = f"{difference:+.2f}"
    return printed if float(printed) == 0 else f"{printed} {UP if difference > 0 else DOWN}"


def _improvement_entry(runs: pd.DataFrame, by: str, cell: str, baseline: str) -> Entry:
    """The mean difference over common seeds, with its interval below."""
    wide = statistics.by_seed(runs, by)
    (row,) = statistics.compare(wide, [(cell, baseline)]).to_dict("records")
    if not row["n"]:
        return Entry(DASH)
    common = wide.reindex(columns=[cell, baseline]).dropna().index
    used = runs[runs["seed"].isin(common) & runs[by].isin([cell, baseline]) & (runs["status"] == "FINISHED")]
    return Entry(
        improvement(row["difference"]),
        below="" if pd.isna(row["low"]) else f"[{row['low']:+.2f}, {row['high']:+.2f}]",
        numbers={"value": row["difference"], **{name: row[name] for name in ("std", "n", "low", "high", "p")}},
        runs=tuple(sorted(used["run_id"])),
    )


# Captions


def recipe(runs: pd.DataFrame) -> str:
    """How runs were trained, chosen and tested, in a sentence, with every value that occurs."""
    if runs.empty:
        return "There are no runs yet."
    trained = runs[runs["protocol"] != "joint"]

    def values(name: str, of: pd.DataFrame = runs, unknown: str = "unknown") -> str:
        known = of[name].dropna().unique() if name in of else []
        try:
            known = sorted(known)
        except TypeError:
            known = sorted(known, key=str)
        return "/".join(f"{value:g}" if isinstance(value, float) else str(value) for value in known) or unknown

    two_phases = len(trained) > 0
    epochs = f"{values('pretrain_epochs', trained)} + {values('epochs', trained)} epochs" * two_phases
    if len(trained) < len(runs):
        joint = f"{values('epochs', runs[runs['protocol'] == 'joint'])} epochs in one phase"
        epochs = f"{epochs}, or {joint}" if epochs else joint
    rates = list(dict.fromkeys([values("pretrain_learning_rate", trained)] * two_phases + [values("learning_rate")]))
    images = [name for name in runs["train_images"].dropna().unique() if name]
    selection = {"best_val": "best validation epoch", "last": "last epoch"}
    chosen = " or ".join(selection.get(str(one), str(one)) for one in sorted(runs["selection"].dropna().unique()))
    seeds = sorted(int(seed) for seed in runs["seed"].dropna().unique())
    return (
        f"{epochs} ({values('warmup_epochs')} of warm-up), batches of {values('batch_size')}, AdamW with learning "
        f"rate {' and '.join(rates)}, weight decay {values('weight_decay')}, {values('precision')}"
        + (f", {values('train_images', runs[runs['train_images'] != 0])} training images" if images else "")
        + f"; {chosen or 'unknown selection'}, test split; {_count(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds))}); commit {commits(runs)}."
    )


def commits(runs: pd.DataFrame) -> str:
    """The commits of runs, with a note on uncommitted changes."""
    origins = runs.reindex(columns=["git_commit", "git_dirty"]).fillna("unknown").drop_duplicates()
    return ", ".join(
        sorted(str(commit)[:10] + ("+changes" if dirty == "true" else "") for commit, dirty in origins.to_numpy())
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _most_seeds(runs: pd.DataFrame) -> int:
    """The finished seeds of the cell that has most of them: what is planned has no spread yet."""
    finished = runs[runs["status"] == "FINISHED"]
    told = [name for name in FIELDS if name != "seed" and name in finished]
    return int(finished.groupby(told, dropna=False)["seed"].nunique().max()) if len(finished) else 0


def how_to_read(runs: pd.DataFrame, intervals: str, groups: Mapping[str, Iterable[Entry]]) -> str:
    """groups: by name, the entries among which bold tells the best."""
    if _most_seeds(runs) <= 1:
        return "One seed: numbers without intervals, nothing is tested; best in bold."
    return (
        f"Mean ± standard deviation over n seeds, {intervals} 95 % t interval; bold: the best, with all that were not "
        "shown to be worse (t tests with the residual variance that all cells share over seeds, 5 %, Holm), those of "
        f"one seed among them.{_nothing_told_apart(groups)}"
    )


def _nothing_told_apart(groups: Mapping[str, Iterable[Entry]]) -> str:
    found = []
    for name, entries in groups.items():
        finished = [entry for entry in entries if entry.numbers]
        several = any(entry.numbers["n"] > 1 for entry in finished)
        if len(finished) > 1 and several and all(entry.bold for entry in finished):
            found.append(name)
    return f" Nothing was shown to be worse, so all is bold: {', '.join(found)}." if found else ""


def _names(values: Iterable[str], known: Mapping[str, str]) -> str:
    return ", ".join(dict.fromkeys(known.get(value, value) for value in values)) or "no data set yet"


# Table 4


def layout_table4(setting: Setting, name: str = "table4") -> Table:
    """Table 4: the combinations of tasks, each task's own metric or a cross, and accuracy after fine-tuning."""
    table, seeds = table4(setting), setting.seeds
    several = bool(table["accuracy_low"].notna().any())
    accuracy, heading, unit, _ = _FINETUNING
    columns = [Column("method", "Method", align="l")]
    columns += [Column(metric, heading_, unit_, OURS) for _, metric, heading_, unit_, _ in TASK_COLUMNS]
    columns += [Column(accuracy, heading, unit, OURS)]
    columns += [Column("interval", "95 %", "interval", OURS)] * several
    columns += [Column("n", "n", "", OURS)]
    columns += [Column(f"paper_{metric}", heading_, unit_, PAPER) for _, metric, heading_, unit_, _ in TASK_COLUMNS]
    columns += [Column(f"paper_{accuracy}", heading, unit, PAPER)]
    best = {
        metric: is_best(table[f"paper_{metric}"], larger)
        for metric, larger in [(metric, larger) for _, metric, _, _, larger in TASK_COLUMNS] + [("accuracy", True)]
    }
    rows = []
    for tasks, values in table.iterrows():
        trained = parse_tasks(tasks)
        entries = [Entry("RelViT" if trained else "Supervised")]
        entries += [
            _from_table4(values, metric) if task in trained else Entry(CROSS) for task, metric, *_ in TASK_COLUMNS
        ]
        entries.append(_from_table4(values, "accuracy"))
        if several:
            low, high = values["accuracy_low"], values["accuracy_high"]
            text = DASH if pd.isna(low) else f"[{low:.2f}, {high:.2f}]"
            entries.append(Entry(text, runs=values["accuracy_runs"] if text != DASH else ()))
        entries.append(Entry(f"{values['n']}/{len(seeds)}", runs=values["accuracy_runs"]))
        entries += [
            paper_number(values[f"paper_{metric}"], best[metric][tasks]) if task in trained else Entry(CROSS)
            for task, metric, *_ in TASK_COLUMNS
        ]
        entries.append(paper_number(values["paper_accuracy"], best["accuracy"][tasks]))
        rows.append(Row(tasks, tuple(entries)))
    dataset, backbone = setting.fields.get("dataset", "?"), setting.fields.get("backbone", "?")
    shown = f"{DATASET_NAMES.get(dataset, dataset)} with {BACKBONE_NAMES.get(backbone, backbone)}"
    tested = [metric for _, metric, *_ in TASK_COLUMNS] + [accuracy]
    told = {
        column.heading: [row.entries[number_] for row in rows]
        for number_, column in enumerate(columns)
        if column.key in tested
    }
    caption = (
        f"The combinations of tasks (the paper's Table 4) on {shown}. {recipe(setting.runs)} "
        f"Accuracies in %, mean squared errors times 100. "
        f"{how_to_read(setting.runs, 'and its', told)} Paper: Table 4, CIFAR-10 with ViT-S/4, 100 + 100 epochs."
    )
    made = Table(name, f"Table 4: tasks on {shown}", tuple(columns), tuple(rows), caption)
    return footnoted(made, setting.runs)


def _from_table4(values: pd.Series, metric: str) -> Entry:
    ids = values[f"{metric}_runs"]
    row = {part: values[f"{metric}_{part}"] for part in ("mean", "std", "low", "high", "bold")}
    return number({**row, "runs": ids, "n": len(ids)})


def footnoted(table: Table, runs: pd.DataFrame, varying: Collection[str] = ()) -> Table:
    """The table with a footnote on every number whose runs differ from the others'."""
    finished = runs[runs["status"] == "FINISHED"].dropna(subset="seed")
    seeds = dict(zip(finished["run_id"], finished["seed"].astype(int)))
    return table.footnoted(deviations(runs, varying), seeds)


# Tables 2 and 3

VARYING = {
    "table2": ("dataset", "backbone"),
    "table3": ("dataset", "backbone"),
    "figure2": ("protocol", "pretrain_position_embedding", "permute_patches"),
}
_PROTOCOLS = {"table2": "pretrain_finetune", "table3": "joint", "table4": "pretrain_finetune", "figure2": None}


def entries_of(runs: pd.DataFrame, table: str) -> pd.DataFrame:
    """The runs that are entries of Table 2 or 3, of each data set and kind of backbone those of the newest setting.

    With the further columns family and method.
    """
    runs = conform(runs)
    runs = runs[runs["tasks"].isin(_METHOD_OF_TASKS)]
    chosen: dict[tuple[str, str], pd.DataFrame] = {}
    for setting in settings(runs, protocol=_PROTOCOLS[table]):
        chosen[setting.fields["dataset"], family(setting.fields["backbone"])] = setting.runs
    found = pd.concat([*chosen.values(), runs.head(0)])
    return found.assign(family=found["backbone"].map(family), method=found["tasks"].map(_METHOD_OF_TASKS))


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
        backbone = _names((here if len(here) else there)["backbone"], BACKBONE_NAMES)
        theirs = there.set_index("method")["value"].reindex(["supervised", "relvit"])
        best = is_best(theirs)
        entries = [Entry(DATASET_NAMES.get(dataset, dataset)), Entry(backbone)]
        both = [number(ours.loc[method], len(seeds), interval=True) for method in ("supervised", "relvit")]
        told[DATASET_NAMES.get(dataset, dataset)] = both
        entries += [replace(entry, underline=False) for entry in both]
        entries.append(_improvement_entry(here, "method", "relvit", "supervised"))
        entries += [paper_number(theirs[method], best[method]) for method in ("supervised", "relvit")]
        entries.append(_paper_improvement(theirs["relvit"] - theirs["supervised"]))
        rows.append(Row(dataset, tuple(entries)))
    caption = (
        f"Accuracy in % after pre-training and fine-tuning, supervised and RelViT (the paper's Table 2). "
        f"{recipe(runs)} "
        f"{how_to_read(runs, 'below it the', told)} Improvement: over common seeds. Paper: Table 2, 100 + 100 epochs."
    )
    made = Table(name, "Table 2: pre-training and fine-tuning", tuple(columns), tuple(rows), caption)
    return footnoted(made, runs, VARYING["table2"])


def _paper_improvement(difference: float) -> Entry:
    difference = round(difference, 2)
    if pd.isna(difference):
        return Entry(DASH)
    return Entry(improvement(difference), numbers={"value": difference}, published=True)


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
        f"Accuracy in % after joint training from scratch (the paper's Table 3). {recipe(runs)} "
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
            number(ours.loc[method], seeds, interval=True),
            paper_number(theirs[method], best[method], second[method]),
        )
        for method in methods
    }
    entries["backbone"] = (
        Entry(_names(here["backbone"], BACKBONE_NAMES) if len(here) else DASH),
        Entry(_names(there["backbone"], BACKBONE_NAMES) if len(there) else DASH),
    )
    others = ours["mean"].drop("relvit", errors="ignore").dropna()
    rivals = theirs.drop("relvit", errors="ignore").dropna()
    entries["improvement"] = (
        _improvement_entry(here, "method", "relvit", others.idxmax()) if len(others) else Entry(DASH),
        _paper_improvement(theirs.get("relvit", np.nan) - rivals.max()) if len(rivals) else Entry(DASH),
    )
    return entries


# Figure 2's end values

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
            Entry(CROSS) if random else number(sprel.loc[key], len(seeds), interval=True, bold=False),
            number(accuracy.loc[key], len(seeds), interval=True),
        ]
        rows.append(Row(key, tuple(replace(entry, underline=False) for entry in entries)))
    told = {"Finetuning": [each.entries[-1] for each in rows]}
    where = f"{_names(runs['dataset'], DATASET_NAMES)} with {_names(runs['backbone'], BACKBONE_NAMES)}"
    caption = (
        f"Position embeddings and permuted patches in SpRel pre-training, on {where}: accuracies in %. {recipe(runs)} "
        f"{how_to_read(runs, 'below it the', told)} Paper: Figure 2, which prints no numbers."
    )
    made = Table(name, "Figure 2: position embeddings and permutation", columns, tuple(rows), caption)
    return footnoted(made, runs, VARYING["figure2"])


# Table 1


def vit_parameters(spec: ViTSpec, image_size: int) -> int:
    """Learnable numbers of a ViT without a head for classes, class token and position embedding included.

    Patch embedding 3 P^2 D + D; a class token D and an embedding (N + 1) D; each block 12 D^2 + 13 D (queries, keys,
    values and projection 4 D^2 + 4 D, an MLP of 4 D hidden 8 D^2 + 5 D, two norms 4 D); a last norm 2 D.
    """
    dim, patch = spec.dim, spec.patch_size
    tokens = (image_size // patch) ** 2 + 1
    return 3 * patch**2 * dim + dim + dim + tokens * dim + spec.depth * (12 * dim**2 + 13 * dim) + 2 * dim


def layout_table1(runs: pd.DataFrame, name: str = "table1") -> Table:
    """Table 1: the configurations of the ViTs, the paper's three and those of the runs, computed beside published."""
    runs = conform(runs)
    paper = published("table1").pivot(index="backbone", columns="metric", values="value")
    used = runs[["backbone", "image_size"]].dropna().drop_duplicates().to_numpy()
    nominal = [(backbone, int(BACKBONES[backbone].image_size)) for backbone in ("vit_s4", "vit_s8", "vit_s32")]
    pairs = dict.fromkeys([*nominal, *sorted((str(backbone), int(size)) for backbone, size in used)])
    parts = {  # metric of published.csv: heading and form
        "image_size": ("Img Res.", "({0:.0f}, {0:.0f})"),
        "blocks": ("Blocks", "{:.0f}"),
        "heads": ("Heads", "{:.0f}"),
        "dim": ("Dim", "{:.0f}"),
        "tokens": ("#Tokens", "{:.0f}"),
        "params_millions": ("#Params", "{:.1f}M"),
    }
    columns = [Column("model", "Model", align="l")]
    columns += [Column(metric, heading, group=OURS) for metric, (heading, _) in parts.items()]
    columns += [Column(f"paper_{metric}", heading, group=PAPER) for metric, (heading, _) in parts.items()]
    rows = []
    for backbone, size in pairs:
        spec = BACKBONES.get(backbone)
        if not isinstance(spec, ViTSpec):
            continue
        values = {
            "image_size": size,
            "blocks": spec.depth,
            "heads": spec.heads,
            "dim": spec.dim,
            "tokens": (size // spec.patch_size) ** 2 + 1,
            "params_millions": vit_parameters(spec, size) / 1e6,
        }
        having = runs[((runs["backbone"] == backbone) & (runs["image_size"] == size)).fillna(False).astype(bool)]
        ids = tuple(sorted(having["run_id"]))
        entries = [Entry(BACKBONE_NAMES.get(backbone, backbone))]
        entries += [
            Entry(form.format(values[metric]), numbers={"value": values[metric]}, runs=ids)
            for metric, (_, form) in parts.items()
        ]
        known = paper.loc[backbone] if (backbone, size) in nominal else pd.Series(dtype=float)
        for metric, (_, form) in parts.items():
            value = known.get(metric, np.nan)
            text = DASH if pd.isna(value) else form.format(value)
            entries.append(Entry(text, numbers={} if text == DASH else {"value": value}, published=text != DASH))
        rows.append(Row(f"{backbone}-{size}", tuple(entries)))
    caption = (
        "Configurations of the ViTs: the three of the paper's Table 1 and those of the runs. #Tokens with the class "
        "token; #Params without a classification head, computed from the configuration."
    )
    return Table(name, "Table 1: configurations", tuple(columns), tuple(rows), caption)


# Any other study


def layout_listing(runs: pd.DataFrame, study: str, name: str) -> Table:
    """Any study: a row for each kind of cell, by the fields in which the study's cells differ, and its accuracy."""
    runs = conform(runs).dropna(subset=["tasks", "seed"])
    acting = [acting_fields(row) | {"tasks": row["tasks"]} for row in runs.to_dict("records")]
    values = {field: {fields[field] for fields in acting if field in fields} for field in FIELDS}
    varying = [field for field in FIELDS if len(values[field]) > 1] or ["tasks"]
    keys = runs[varying].astype(object).map(lambda value: DASH if pd.isna(value) else _plain(value))
    runs = runs.assign(label=keys.agg(" ".join, axis=1))
    newest = runs.sort_values("start_time").drop_duplicates(["label", "seed", "status"], keep="last")
    seeds = sorted(int(seed) for seed in newest["seed"].unique())
    accuracy = measured(newest, "label", "test_accuracy")
    columns = [Column(field, field.replace("_", " "), align="l") for field in varying]
    columns += [Column("accuracy", "Test accuracy", f"(Acc {UP})"), Column("n", "n")]
    rows = []
    for key, place in zip(runs["label"], runs.index):
        if key in [row.key for row in rows]:
            continue
        entries = [Entry(keys.loc[place, field]) for field in varying]
        entries.append(replace(number(accuracy.loc[key], interval=True), underline=False))
        runs_of_cell = accuracy.loc[key, "runs"]
        entries.append(Entry(f"{len(runs_of_cell)}/{len(seeds)}", runs=runs_of_cell, noted=False))
        rows.append(Row(key, tuple(entries)))
    how = how_to_read(newest, "below it the", {"Test accuracy": [each.entries[-2] for each in rows]})
    caption = f"Test accuracy in % of the cells of {study}. {recipe(runs)} {how}"
    made = Table(name, f"Study {study}", tuple(columns), tuple(rows), caption)
    return footnoted(made, runs, varying)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# All tables of a study


def study_tables(
    study: str, runs: pd.DataFrame, name: str | None = None, papers_first: bool = False
) -> Sequence[tuple[Table, pd.DataFrame]]:
    """The tables of a study, the one to show first, each with the runs that it is made of.

    Where Table 4's runs have several settings, each has its table; that of the newest comes first, with papers_first
    one on the paper's data set and backbone.
    """
    name = name or study
    if study == "table1":
        return [(layout_table1(runs, name), runs)]
    if study == "table4":
        found = list(reversed(settings(runs)))
        if papers_first:
            (place,) = published("table4")[["dataset", "backbone"]].drop_duplicates().itertuples(index=False, name=None)
            found.sort(key=lambda one: (one.fields.get("dataset"), one.fields.get("backbone")) != place)
        return [
            (layout_table4(setting, f"{name}-older-{number}" if number else name), setting.runs)
            for number, setting in enumerate(found)
        ]
    if study == "table2":
        return [(layout_table2(runs, name), entries_of(runs, study))]
    if study == "table3":
        return [(layout_table3(runs, name), entries_of(runs, study))]
    if study == "figure2":
        return [(layout_figure2(runs, name), figure2_entries(runs))]
    return [(layout_listing(runs, study, name), conform(runs))]
