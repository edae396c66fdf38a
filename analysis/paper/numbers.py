"""The paper's tables from runs, beside the published numbers, as `analysis.output.typeset.Table`.

runs    what `analysis.runs.gather` returns; what an older store lacks is taken as unknown (`comparability.conform`).

Every number over several seeds is a mean with its sample standard deviation, and where there is room its 95 % interval.
Bold is the best of its column or group, with all that were not shown to be worse than another
(`analysis.stats.seeds.tied_with_best`); of single seeds, the highest as printed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.output.typeset import DASH, DOWN, UP, Column, Entry
from analysis.runs.comparability import commits
from analysis.runs.splits import split_of
from analysis.stats.seeds import by_seed, compare, summary, tied_with_best
from relvit.cell import DRLOC, LATER_FIELDS, NONE
from relvit.messages import counted
from relvit.paper import BEST, DATASET_NAMES, FAMILIES, METHODS
from relvit.tasks import TASKS
from relvit.vocabulary import TEST_ACCURACY

OURS, PAPER = "Ours", "Paper"
METHOD_OF_TASKS = {NONE: "supervised", DRLOC: "drloc", BEST: "relvit"}


def measured(runs: pd.DataFrame, by: str, metric: str, larger: bool = True) -> pd.DataFrame:
    """One row a cell: mean, std, n, low, high over seeds; bold and second, by the rules above; runs, their ids.

    Second is the highest after a single best; there is none after a group that cannot be told apart.
    """
    runs = runs.assign(**{metric: runs.get(metric, np.nan)})
    table = summary(runs, by, metric)
    tied = tied_with_best(runs, by, metric, larger)["tied"]
    printed = table["mean"].round(2)
    if table["n"].max() <= 1:
        tied = is_best(printed, larger)
    rest = printed.where(~tied)
    table["bold"] = tied
    table["second"] = (
        is_best(rest, larger) & (printed[tied].nunique() == 1) & (tied.sum() == 1 or table["n"].max() <= 1)
    )
    ids = ids_by(runs[(runs["status"] == "FINISHED") & runs[metric].notna()].dropna(subset=[by, "seed"]), by)
    table["runs"] = [ids.get(cell, ()) for cell in table.index]
    return table


def ids_by(runs: pd.DataFrame, by: str) -> pd.Series:
    """The ids of the runs of each cell, sorted."""
    return runs.groupby(by)["run_id"].agg(lambda names: tuple(sorted(names)))


def is_best(values: pd.Series, larger: bool = True) -> pd.Series:
    """Whether each value is the best of all as printed, with two decimals; null is not."""
    rounded = values.round(2)
    return rounded.notna() & (rounded == (rounded.max() if larger else rounded.min()))


# Entries


def task_column(task: str, group: str = "", prefix: str = "") -> Column:
    """The column of a task's own metric."""
    row = TASKS[task]
    arrow = UP if row.metric.higher_is_better else DOWN
    return Column(f"{prefix}{row.metric_name}", row.title, f"({row.metric.unit} {arrow})", group)


def metric_title(metric: str) -> str:
    """ "SpRel (Acc)" for "sprel_accuracy", "Accuracy" for that of classification."""
    named = {task.metric_name: f"{task.title} ({task.metric.unit})" for task in TASKS.values()}
    return named.get(metric, metric.capitalize())


def number_entry(
    row: Mapping[str, Any], of: int | None = None, interval: bool = False, bold: bool | None = None
) -> Entry:
    """A row of `measured` as an entry. of: how many seeds there should be, named where some are missing.

    interval: whether the 95 % interval stands below. bold: None for the row's own.
    """
    n = 0 if pd.isna(row.get("n", 0)) else int(row.get("n", 0))
    mean, std, low, high = (float(row.get(name, np.nan)) for name in ("mean", "std", "low", "high"))
    below = [interval_text(low, high)] * (interval and not np.isnan(low))
    below += [f"n = {n}/{of}"] * (of is not None and n < of)
    return Entry(
        text=plus_minus(mean, std),
        below=", ".join(below),
        numbers={} if np.isnan(mean) else {"value": mean, "std": std, "n": n, "low": low, "high": high},
        runs=row["runs"] if isinstance(row.get("runs"), tuple) else (),
        bold=_is_set(row.get("bold")) if bold is None else bold,
        underline=_is_set(row.get("second")),
    )


def _is_set(flag: Any) -> bool:
    return flag is not None and not pd.isna(flag) and bool(flag)


def plus_minus(mean: float, std: float = float("nan")) -> str:
    """ "93.00 ± 3.61", without the deviation where there is none, a dash where there is nothing."""
    if pd.isna(mean):
        return DASH
    return f"{mean:.2f}" if pd.isna(std) else f"{mean:.2f} ± {std:.2f}"


def interval_text(low: float, high: float, sign: str = "", nothing: str = DASH) -> str:
    """ "[92.10, 93.90]", or `nothing` where it is not known. sign: "+" for differences."""
    return nothing if pd.isna(low) else f"[{low:{sign}.2f}, {high:{sign}.2f}]"


def published_entry(value: float, bold: bool = False, underline: bool = False, remark: str = "") -> Entry:
    """A published number as an entry. remark: what a footnote says of it."""
    if pd.isna(value):
        return Entry(DASH)
    marked = {"bold": bool(bold), "underline": bool(underline), "remark": remark}
    return Entry(f"{value:.2f}", numbers={"value": float(value)}, published=True, **marked)


def improvement(difference: float) -> str:
    """ "+4.75 ↑", as Table 2 prints it."""
    if pd.isna(difference):
        return DASH
    printed = f"{difference:+.2f}"
    return printed if float(printed) == 0 else f"{printed} {UP if difference > 0 else DOWN}"


def improvement_entry(runs: pd.DataFrame, by: str, cell: str, baseline: str) -> Entry:
    """The difference of two cells, seeds being blocks, with its interval below."""
    (row,) = compare(by_seed(runs, by), [(cell, baseline)]).to_dict("records")
    if pd.isna(row["difference"]):
        return Entry(DASH)
    used = runs[runs[by].isin([cell, baseline]) & (runs["status"] == "FINISHED")]
    return difference_entry(row, improvement(row["difference"]), tuple(sorted(used["run_id"])))


def difference_entry(row: Mapping[str, Any], text: str, runs: tuple[str, ...], bold: bool = False) -> Entry:
    """A row of `compare` as an entry with its interval below."""
    return Entry(
        text,
        below=interval_text(row["low"], row["high"], "+", ""),
        numbers=tested_numbers(row["difference"], row),
        runs=runs,
        bold=bold,
    )


def tested_numbers(value: float, row: Mapping[str, Any]) -> dict[str, float]:
    """A contrast's numbers, as an entry keeps them."""
    return {"value": value, **{key: row[key] for key in ("std", "n", "low", "high", "p", "p_family")}}


def published_improvement(difference: float, remark: str = "") -> Entry:
    difference = round(difference, 2)
    if pd.isna(difference):
        return Entry(DASH)
    return Entry(improvement(difference), numbers={"value": difference}, published=True, remark=remark)


def beside(text: str, runs: tuple[str, ...], value: float = np.nan) -> Entry:
    """What stands beside a number that has the footnotes."""
    numbers = {} if pd.isna(value) else {"value": value}
    return Entry(text, numbers=numbers, runs=() if text == DASH else runs, noted=False)


def reasons_in(column: Iterable[str]) -> list[str]:
    """Each reason once, of texts that join several by "; "."""
    return list(dict.fromkeys(reason for text in column for reason in text.split("; ") if reason))


def p_value(p: float) -> str:
    """Three decimals, and never 0."""
    return DASH if pd.isna(p) else "<0.001" if p < 0.0005 else f"{p:.3f}"


# Captions

# Fields of a recipe that a caption names where a run has them, and how.
_BEYOND = {
    "labels_per_class": "{} labels a class",
    "label_share": "a share of {} of the labels",
    "finetune_image_size": "fine-tuned at {} pixels",
} | {
    name: name.replace("_", " ") + " {}"
    for name in ("dropout", "label_smoothing", "ema_decay", "auto_augment", "erase_probability", "mixup", "cutmix")
}


def recipe_sentence(runs: pd.DataFrame) -> str:
    """How runs were trained, chosen and tested, in a sentence, with every value that occurs; and in another how many
    finished without a result."""
    if runs.empty:
        return "There are no runs yet."
    trained = runs[runs["protocol"] != "joint"]

    def values(name: str, of: pd.DataFrame = runs) -> str:
        known = of[name].dropna().unique() if name in of else []
        try:
            known = sorted(known)
        except TypeError:
            known = sorted(known, key=str)
        return "/".join(f"{value:g}" if isinstance(value, float) else str(value) for value in known) or "unknown"

    two_phases = len(trained) > 0
    epochs = f"{values('pretrain_epochs', trained)} + {values('epochs', trained)} epochs" * two_phases
    if len(trained) < len(runs):
        joint = f"{values('epochs', runs[runs['protocol'] == 'joint'])} epochs in one phase"
        epochs = f"{epochs}, or {joint}" if epochs else joint
    rates = list(dict.fromkeys([values("pretrain_learning_rate", trained)] * two_phases + [values("learning_rate")]))
    present = {name: runs[name].dropna() for name in _BEYOND if name in runs}
    used = [name for name, column in present.items() if (column != LATER_FIELDS[name]).any()]
    more = "".join(f", {_BEYOND[name].format(values(name, runs[runs[name] != LATER_FIELDS[name]]))}" for name in used)
    images = [name for name in runs["train_images"].dropna().unique() if name]
    selection = {"best_val": "best validation epoch", "last": "last epoch"}
    chosen = " or ".join(selection.get(str(one), str(one)) for one in sorted(runs["selection"].dropna().unique()))
    seeds = sorted(int(seed) for seed in runs["seed"].dropna().unique())
    tested = runs[(runs["status"] == "FINISHED") & (runs["protocol"] != "pretrain")]
    lacking = int(tested.reindex(columns=[TEST_ACCURACY])[TEST_ACCURACY].isna().sum())
    without = f" {counted(lacking, 'finished run')} without a {split_of(runs)} accuracy: not counted." * (lacking > 0)
    return (
        f"{epochs} ({values('warmup_epochs')} of warm-up), batches of {values('batch_size')}, AdamW with learning "
        f"rate {' and '.join(rates)}, weight decay {values('weight_decay')}, {values('precision')}{more}"
        + (f", {values('train_images', runs[runs['train_images'] != 0])} training images" if images else "")
        + f"; {chosen or 'unknown selection'}, {split_of(runs)} split; {counted(len(seeds), 'seed')} "
        f"({listed(seeds)}); commit {', '.join(commits(runs))}.{without}"
    )


def listed(seeds: Iterable[int]) -> str:
    """Seeds in order, "0, 1, 7", of which more than three in a row are a range: "0 to 124"."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        parts = [*parts[:-1], [*parts[-1], seed]] if parts and seed == parts[-1][-1] + 1 else [*parts, [seed]]
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 3 else ", ".join(map(str, part)) for part in parts)


def how_to_read(intervals: str, groups: Mapping[str, Iterable[Entry]]) -> str:
    """groups: by name, the entries among which bold tells the best."""
    if max((entry.numbers["n"] for group in groups.values() for entry in group if entry.numbers), default=0) <= 1:
        return "One seed: numbers without intervals, nothing is tested; best in bold."
    return (
        f"Mean ± standard deviation over n seeds, {intervals} 95 % t interval; bold: the best, with all that were not "
        "shown to be worse than another, at 5 % for all pairs together (seeds as blocks; by the spread of all cells, "
        f"and by that of the pair).{_nothing_told_apart(groups)}"
    )


def _nothing_told_apart(groups: Mapping[str, Iterable[Entry]]) -> str:
    found = []
    for name, entries in groups.items():
        finished = [entry for entry in entries if entry.numbers]
        several = any(entry.numbers["n"] > 1 for entry in finished)
        if len(finished) > 1 and several and all(entry.bold for entry in finished):
            found.append(name)
    return f" Nothing was shown to be worse, so all is bold: {', '.join(found)}." if found else ""


def printed_names(values: Iterable[str], known: Mapping[str, str]) -> str:
    return ", ".join(dict.fromkeys(known.get(value, value) for value in values)) or "no data set yet"


# Tables 2 and 3


def method_name(label: str) -> str:
    """ "SVHN, Swin, RelViT" for "svhn swin relvit"."""
    dataset, *families, method = label.split(" ")
    return ", ".join(
        [DATASET_NAMES.get(dataset, dataset), *(FAMILIES.get(each, each) for each in families), METHODS[method]]
    )


def against_supervised(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Every method against the supervised cell of its data set and backbone."""
    places = [label.removesuffix(" supervised") for label in labels if label.endswith(" supervised")]
    pairs = [(f"{place} {method}", f"{place} supervised") for place in places for method in ("drloc", "relvit")]
    return [(cell, baseline) for cell, baseline in pairs if cell in labels]
