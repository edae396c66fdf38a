"""Tuned beside untuned: the cells of a study as its recipe has them, and after each got the same search."""

import pandas as pd

from analysis.typeset import DASH, UP, Column, Entry, Row, Table
from relvit.cell import FIELDS

SUFFIX = "-tuned"  # `sweeps/hpo.py --per-cell table4` tags the retrained winners with "table4-tuned"
_KEY = ["dataset", "backbone", "protocol", "tasks"]
_HEADINGS = {"dataset": "Data set", "backbone": "Backbone", "protocol": "Protocol", "tasks": "Tasks"}
UNTUNED, TUNED = "untuned", "tuned"


def pairs(runs: pd.DataFrame, study: str) -> pd.DataFrame:
    """One row for each tuned run and the untuned run that it is to be compared with: that of the same seed with the
    same fields, but for those that the search was free to change.

    Only finished runs count: a search's own trials, pruned or not, never do. Columns: those of _KEY, seed, tuned and
    untuned test_accuracy in percent (null where there is no such run), run_id of each, tuning_budget.
    """
    finished = runs[runs["status"] == "FINISHED"]
    names = finished["study"].fillna("").str.split(",")
    ours = finished[[study + SUFFIX in each for each in names]]
    plain = finished[[study in each for each in names]]
    rows = []
    for _, run in ours.iterrows():
        free = set(str(run["search_space"]).split(", "))
        same = plain
        for name in FIELDS:
            if name not in free:
                same = same[same[name] == run[name]]
        other = same.iloc[-1] if len(same) else None
        rows.append(
            {
                **{name: run[name] for name in [*_KEY, "seed"]},
                TUNED: float(run["test_accuracy"]),
                UNTUNED: float("nan") if other is None else float(other["test_accuracy"]),
                "run_id": run["run_id"],
                "untuned_run_id": None if other is None else other["run_id"],
                "tuning_budget": run["tuning_budget"],
            }
        )
    return pd.DataFrame(rows, columns=[*_KEY, "seed", TUNED, UNTUNED, "run_id", "untuned_run_id", "tuning_budget"])


def beside(runs: pd.DataFrame, study: str) -> list[Table]:
    """The table of a study and its tuned cells; none where there are no tuned cells."""
    study = study.removesuffix(SUFFIX)
    if not {"tuned_by", "tuning_budget", "search_space"} <= set(runs.columns):
        return []
    found = pairs(runs, study)
    if found.empty:
        return []
    told = [name for name in _KEY if found[name].nunique() > 1 or name == "tasks"]
    groups = []
    for key, group in found.groupby(told, sort=False):
        both = group.dropna(subset=["untuned"])
        # Means over the same seeds, or the difference would be one of seeds too.
        groups.append((key, group, both, both if len(both) else group))
    best = {
        name: max((round(shown[name].mean(), 2) for *_, shown in groups if shown[name].notna().any()), default=None)
        for name in (UNTUNED, TUNED)
    }
    rows = []
    for key, group, both, shown in groups:
        entries = [Entry(str(value)) for value in key]
        for name, ids in ((UNTUNED, "untuned_run_id"), (TUNED, "run_id")):
            entries.append(_entry(shown[name].dropna(), shown[ids].dropna(), best[name]))
        gains = both[TUNED] - both[UNTUNED]
        used = (*both["run_id"], *both["untuned_run_id"])
        text = DASH if both.empty else f"{gains.mean():+.2f}"
        entries.append(Entry(text, numbers={} if both.empty else {"value": gains.mean()}, runs=used))
        entries.append(Entry(f"{len(both)}/{len(group)}", runs=used))
        rows.append(Row("/".join(map(str, key)), tuple(entries)))
    columns = [
        *(Column(name, _HEADINGS[name], align="l") for name in told),
        Column(UNTUNED, "Untuned", f"(Acc {UP})"),
        Column(TUNED, "Tuned", f"(Acc {UP})"),
        Column("difference", "Difference"),
        Column("n", "n"),
    ]
    seeds = ", ".join(map(str, sorted(found["seed"].unique())))
    budgets = "; ".join(dict.fromkeys(str(budget).partition(";")[0] for budget in found["tuning_budget"]))
    caption = (
        f"Test accuracy in % of {study} with the recipe's hyperparameters and after tuning every cell alike: "
        f"{budgets}, for each cell, in the same search space, chosen by validation accuracy with a seed that is "
        f"not among those tested; seeds {seeds}. n: seeds in both of those tuned."
    )
    return [Table(f"{study}{SUFFIX}-beside", f"{study}, tuned beside untuned", tuple(columns), tuple(rows), caption)]


def _entry(values: pd.Series, runs: pd.Series, best: float | None) -> Entry:
    if values.empty:
        return Entry(DASH)
    mean, std = values.mean(), values.std()
    text = f"{mean:.2f}" if pd.isna(std) else f"{mean:.2f} ± {std:.2f}"
    numbers = {"value": mean, "n": len(values)} | ({} if pd.isna(std) else {"std": std})
    return Entry(text, numbers=numbers, runs=tuple(runs), bold=round(mean, 2) == best)
