"""Tuned beside untuned: the cells of a study as its recipe has them, and after each got the same search."""

from collections.abc import Mapping

import pandas as pd

from analysis.output.typeset import DASH, UP, Column, Entry, Row, Table
from analysis.paper.entries import footnoted
from analysis.paper.numbers import difference_entry, how_to_read, measured, number_entry
from analysis.runs.comparability import deviations
from analysis.stats.seeds import ALPHA, by_seed, compare
from relvit.cell import FIELDS
from relvit.vocabulary import SEARCH_SPACE, TUNED_BY, TUNING_BUDGET

SUFFIX = "-tuned"  # `sweeps/hpo.py --per-cell table4` tags the retrained winners with "table4-tuned"
_KEY = ["dataset", "backbone", "protocol", "tasks"]
_HEADINGS = {"dataset": "Data set", "backbone": "Backbone", "protocol": "Protocol", "tasks": "Tasks"}
UNTUNED, TUNED = "untuned", "tuned"


def pairs(runs: pd.DataFrame, study: str) -> pd.DataFrame:
    """One row for each tuned run and the untuned run that it is to be compared with: that of the same seed with the
    same fields, but for those that the search was free to change.

    Only finished runs count: a search's own trials, pruned or not, never do. Of several of one cell and seed the newest
    does. Columns: those of _KEY, seed, tuned and
    untuned test_accuracy in percent (null where there is no such run), run_id of each, tuning_budget.
    """
    runs = runs.sort_values("start_time", kind="stable", na_position="first")
    finished = runs[runs["status"] == "FINISHED"].dropna(subset="test_accuracy")
    names = finished["study"].fillna("").str.split(",")
    ours = finished[[study + SUFFIX in each for each in names]]
    plain = finished[[study in each for each in names]]
    rows = []
    for _, run in ours.iterrows():
        free = set(str(run[SEARCH_SPACE]).split(", "))
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
                TUNING_BUDGET: run[TUNING_BUDGET],
            }
        )
    columns = [*_KEY, "seed", TUNED, UNTUNED, "run_id", "untuned_run_id", TUNING_BUDGET]
    return pd.DataFrame(rows, columns=columns).drop_duplicates([*_KEY, "seed"], keep="last")


def beside(runs: pd.DataFrame, study: str) -> list[Table]:
    """The table of a study and its tuned cells; none where there are no tuned cells.

    Bold by the rule of the other tables (`measured`), in each column among the cells of one data set, backbone
    and protocol.
    """
    study = study.removesuffix(SUFFIX)
    if not {TUNED_BY, TUNING_BUDGET, SEARCH_SPACE} <= set(runs.columns):
        return []
    found = pairs(runs, study)
    if found.empty:
        return []
    told = [name for name in _KEY if found[name].nunique() > 1 or name == "tasks"]
    found = found.assign(
        label=["/".join(map(str, key)) for key in found[told].to_numpy()],
        place=[", ".join(map(str, key)) for key in found[told[:-1]].to_numpy()],  # all but the tasks
    )
    # Means over the same seeds, or the difference would be one of seeds too.
    lacks_all = found.groupby("label")[UNTUNED].transform("count") == 0
    shown = found[found[UNTUNED].notna() | lacks_all]
    arms = {name: _arm(shown, name, ids) for name, ids in ((UNTUNED, "untuned_run_id"), (TUNED, "run_id"))}
    numbers = {name: _measured(arm) for name, arm in arms.items()}
    compared = _differences(arms)
    rows: list[Row] = []
    places: dict[str, list[Entry]] = {}
    for label, group in found.groupby("label", sort=False):
        both = group.dropna(subset=UNTUNED)
        used = (*both["run_id"], *both["untuned_run_id"])
        entries = [Entry(str(group[name].iloc[0])) for name in told]
        for name, heading in ((UNTUNED, "Untuned"), (TUNED, "Tuned")):
            known = numbers[name].loc[label].to_dict() if label in numbers[name].index else {}
            entries.append(number_entry(known | {"second": False}, interval=True))
            places.setdefault(", ".join(filter(None, (heading, group["place"].iloc[0]))), []).append(entries[-1])
        entries.append(_difference(compared.loc[label].to_dict(), used))
        entries.append(Entry(f"{len(both)}/{len(group)}", runs=used, noted=False))
        rows.append(Row(label, tuple(entries)))
    columns = [
        *(Column(name, _HEADINGS[name], align="l") for name in told),
        Column(UNTUNED, "Untuned", f"(Acc {UP})"),
        Column(TUNED, "Tuned", f"(Acc {UP})"),
        Column("difference", "Difference"),
        Column("n", "n"),
    ]
    seeds = ", ".join(map(str, sorted(found["seed"].unique())))
    budgets = "; ".join(dict.fromkeys(str(budget).partition(";")[0] for budget in found[TUNING_BUDGET]))
    resting = runs[runs["run_id"].isin(pd.concat([arm["run_id"] for arm in arms.values()]))]
    caption = (
        f"Test accuracy in % of {study} with the recipe's hyperparameters and after tuning every cell alike: "
        f"{budgets}, for each cell, in the same search space, chosen by validation accuracy with a seed that is "
        f"not among those tested; seeds {seeds}. {how_to_read('below it the', places)} Difference: "
        "over common seeds, with its 95 % interval; bold where significant at 5 % for all rows (Bonferroni). n: "
        "seeds in both of those tuned."
    )
    made = Table(f"{study}{SUFFIX}-beside", f"{study}, tuned beside untuned", tuple(columns), tuple(rows), caption)
    # What a search was free to change differs by design.
    free = {name for text in resting[SEARCH_SPACE].dropna() for name in str(text).split(", ")}
    return [footnoted(made, resting, deviations(resting, free | set(told)))]


def _arm(shown: pd.DataFrame, name: str, ids: str) -> pd.DataFrame:
    """The tuned or the untuned runs of pairs, as runs of cells "label"."""
    arm = shown.dropna(subset=name)[["label", "place", "seed", name, ids]]
    return arm.rename(columns={name: "test_accuracy", ids: "run_id"}).assign(status="FINISHED")


def _measured(arm: pd.DataFrame) -> pd.DataFrame:
    """`measured`, the best told among the cells of one place."""
    return pd.concat([measured(each, "label", "test_accuracy") for _, each in arm.groupby("place")] or [arm])


def _differences(arms: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Tuned less untuned of each cell, as `compare`: a pair of its own, p_family corrected for the number of pairs."""
    wide = pd.concat([by_seed(arm, "label").add_prefix(f"{name} ") for name, arm in arms.items()], axis="columns")
    labels = list(dict.fromkeys(label for arm in arms.values() for label in arm["label"]))
    pairs = [(f"{TUNED} {label}", f"{UNTUNED} {label}") for label in labels]
    compared = pd.concat([compare(wide.reindex(columns=list(pair)), [pair]) for pair in pairs]).set_axis(labels)
    return compared.assign(p_family=(compared["p"] * compared["p"].notna().sum()).clip(upper=1.0))


def _difference(row: Mapping[str, float], runs: tuple[str, ...]) -> Entry:
    if not row["n"]:
        return Entry(DASH)
    return difference_entry(row, f"{row['difference']:+.2f}", runs, bool(row["p_family"] < ALPHA))
