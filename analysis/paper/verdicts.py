"""The paper's sentences that runs can check, as data, and what runs say about them.

A claim quotes a sentence and holds a function from runs to a judgement: holds, contradicted or undecided, with the
comparisons that decide it. Runs are those of `runs.gather.gather`; their tag "study" says which table or figure
they belong to, and those of one table must be of one setting. Accuracies in percent, differences in percentage points.

From several seeds a difference counts when it is significant at 5 % after Holm's correction over the comparisons of
its claim (`analysis.stats.seeds.compare`). From one seed, as in the paper, the order of the single numbers counts, and
the judgement's note says so. What is missing can leave a claim undecided, but not make it hold; so do runs that differ
in their recipe.

The published figures are judged one by one, by an equivalence test with a stated margin (`figures`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.paper import numbers as tables
from analysis.paper.numbers import BEST
from analysis.paper.recipe import paper_recipe
from analysis.runs.comparability import acting_fields, conform, deviations, of_recipe, shown
from analysis.stats.seeds import (
    ABOVE,
    ALPHA,
    BELOW,
    MOST_SEEDS,
    REPRODUCED,
    SAME,
    SeveralRuns,
    by_seed,
    compare,
    describe,
    equivalent,
    seeds_for_equivalence,
    seeds_for_power,
)
from relvit.cell import BACKBONES, DRLOC, FIELDS, NONE, PAPER_TASKS, task_combinations

HOLDS, CONTRADICTED, UNDECIDED, NOT_COMPARABLE = "holds", "contradicted", "undecided", "not comparable"

# Studies whose cells are the paper's; "full" has those of all tables.
PAPER_STUDIES = ("table2", "table3", "table4", "figure2", "full")

PAPER_EPOCHS = 100  # in each phase, section 3.1

# Percentage points. A deviation that does not matter: about the standard error that 10,000 test images leave in the
# difference of two accuracies near 90 %, sqrt(2 x 0.9 x 0.1 / 10,000) = 0.42 %.
MARGIN = 0.5
# A number with two decimals against the difference of two such: 3 x 0.005.
ROUNDING = 0.015

# Percentage points within which cells count as similar: the paper says it of 88.75 to 89.39.
SIMILAR = 1.0

SOLVED = 95.0  # percent of SpRel accuracy from which Figure 2a's task counts as solved; the paper's sentence says 100


@dataclass(frozen=True)
class Judgement:
    """What runs say about a claim.

    verdict: holds, contradicted or undecided. numbers: those that decide it, for a reader. note: on what footing.
    comparisons: every comparison that was made, as `analysis.stats.seeds` gives it (`compare`, `equivalent` or, for a
    level, `describe`). needs: for an undecided one how many seeds, in all, each comparison that is open takes to be
    decided with a power of 80 %, by the test that decides it, if what was seen is what there is. entries: the labels of
    those that it rests on, where the index of comparisons does not name them.
    """

    verdict: str
    numbers: str
    note: str
    comparisons: pd.DataFrame
    needs: str = ""
    entries: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, quoted. table: the study that decides it. judge: from its runs and a margin.

    The margin, above 0, is in percentage points; judge raises analysis.stats.seeds.SeveralRuns.
    """

    id: str
    sentence: str
    where: str
    table: str
    judge: Callable[[pd.DataFrame, float], Judgement]


def verdicts(runs: pd.DataFrame, margin: float = MARGIN, table: str | None = None) -> pd.DataFrame:
    """Every claim, or those of one table, judged on the finished runs of its study.

    margin: in percentage points, above 0, within which numbers count as the same.
    Index: claim. Columns: sentence, where, table, verdict, numbers, note; seeds, the most behind any of its comparisons
    (1: the single numbers count and nothing is tested); needs, for an undecided claim how many seeds would decide it,
    if what was seen is what there is; not_comparable, the reasons of `departures` joined by "; " (empty where the runs
    are comparable with the paper's); runs, the ids of those that it rests on. Runs of more than one setting leave a
    claim undecided, with a note.
    """
    rows = {}
    for study in dict.fromkeys(claim.table for claim in CLAIMS if table in (None, claim.table)):
        chosen = of_study(runs, study)
        mixed, reasons = mixture(chosen, study), "; ".join(departures(chosen, study))
        entries = labelled(conform(chosen), study)
        entries = entries[entries["status"] == "FINISHED"]
        for claim in CLAIMS:
            if claim.table == study:
                rows[claim.id] = _judged(claim, chosen, margin, mixed) | {"not_comparable": reasons}
                used = entries[entries["label"].isin(rows[claim.id].pop("labels"))]
                # What could not be compared, as runs of several settings, rests on all entries.
                rows[claim.id]["runs"] = tuple(sorted((used if len(used) else entries)["run_id"]))
    ordered = {claim.id: rows[claim.id] for claim in CLAIMS if claim.id in rows}
    return pd.DataFrame.from_dict(ordered, orient="index").rename_axis("claim")


def _judged(claim: Claim, runs: pd.DataFrame, margin: float, mixed: list[str]) -> dict[str, Any]:
    try:
        judged = claim.judge(runs, margin)
    except SeveralRuns as error:
        judged = Judgement(UNDECIDED, "", str(error), pd.DataFrame())
    needs = judged.needs if judged.verdict == UNDECIDED else ""
    if mixed and not judged.comparisons.empty:
        note, needs = f"runs of mixed settings: {'; '.join(mixed)}", ""
        judged = replace(judged, verdict=UNDECIDED, note=note)
    return {
        "sentence": claim.sentence,
        "where": claim.where,
        "table": claim.table,
        "verdict": judged.verdict,
        "numbers": judged.numbers,
        "note": judged.note,
        "seeds": int(judged.comparisons["n"].max()) if len(judged.comparisons) else 0,
        "needs": needs,
        "labels": set(judged.entries)
        or {name for place in judged.comparisons.index for name in np.atleast_1d(np.array(place, dtype=object))},
    }


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
    return (*(str(run.get(name)) for name in ("dataset", "backbone", "seed")), _label(run, table))


def _fits(run: Mapping[str, Any], table: str, any_dataset: bool) -> bool:
    """Whether a run that was planned for another table is an entry of this one: its cell trained nothing else."""
    if _label(run, table) is None:
        return False
    paper = _paper_backbones(table)
    families = paper.get(run["dataset"]) or {kind: "" for each in paper.values() for kind in each if any_dataset}
    if tables.family(run["backbone"]) not in families:
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


def mixture(runs: pd.DataFrame, table: str) -> list[str]:
    """In what the recipes of the finished runs of a table differ, each as "sprel with seed 0: epochs 30 instead of 20";
    of more than four, the first four and how many more."""
    entries = conform(labelled(runs, table))
    found = deviations(entries, tables.VARYING.get(table, ()))
    names = dict(zip(entries["run_id"], entries["label"].astype(str) + " with seed " + entries["seed"].astype(str)))
    lines = [f"{names[run]}: {', '.join(of_recipe(reasons))}" for run, reasons in found.items() if of_recipe(reasons)]
    return lines if len(lines) <= 4 else [*lines[:4], f"and {len(lines) - 4} more"]


def _needs(rows: pd.DataFrame, seeds: Callable[[Any], int | None]) -> str:
    """By comparison, what `seeds` says of its row: how many decide it, in all."""
    needed = []
    for row in rows.itertuples():
        name = row.Index if isinstance(row.Index, str) else " against ".join(row.Index)
        if row.n < 2:
            needed.append(f"{name}: 2 or more")
        elif row.std > SAME:
            needed.append(f"{name}: {seeds(row) or f'over {MOST_SEEDS:,}'}")
    return "; ".join(needed)


# The published figures


def figures(runs: pd.DataFrame, table: str, margin: float = MARGIN) -> pd.DataFrame:
    """Every published number of a table against ours, by the equivalence test of `statistics.equivalent`.

    margin: of accuracies, in points; that of a task's metric is half the spread of its published column where that is
    less, so that it can tell the column's cells apart. Index: number, from 0. Columns: cell (as in the claims'
    numbers), metric (as in published.csv), published, margin, mean, std, n, low, high, p_equivalence; seen, what the
    numbers say: "reproduced", "within noise", "above", "below", or "undecided" where there is no run; verdict, the
    same or "not comparable";
    why, the reasons of `departures`; runs, their ids. From one seed the single number counts: within the margin it is
    reproduced. Raises SeveralRuns.
    """
    entries = conform(labelled(of_study(runs, table), table))
    paper = tables.published(table)
    paper = paper.assign(tasks=paper["tasks"].where(paper["method"] != DRLOC, DRLOC))
    paper["label"] = [_label(row, table) for row in paper.to_dict("records")]
    parts = []
    for metric, numbers in paper.groupby("metric", sort=False):
        column = f"test_{metric}"
        here = entries.assign(**{column: entries.get(column, np.nan)})
        spread = (numbers["value"].max() - numbers["value"].min()) / 2
        within = margin if metric == "accuracy" or not spread else min(margin, spread)
        result = equivalent(by_seed(here, "label", column), numbers.set_index("label")["value"], within)
        finished = here[(here["status"] == "FINISHED") & here[column].notna()]
        ids = finished.groupby("label")["run_id"].agg(tuple)
        reasons = {label: "; ".join(departures(rows, table)) for label, rows in finished.groupby("label")}
        seen = [_seen(row, within) for row in result.to_dict("records")]
        parts.append(
            result.assign(
                cell=result.index,
                metric=metric,
                margin=within,
                seen=seen,
                why=[reasons.get(label, "") for label in result.index],
                runs=[ids.get(label, ()) for label in result.index],
            )
        )
    found = pd.concat(parts, ignore_index=True)
    found["verdict"] = found["seen"].where(found["why"] == "", NOT_COMPARABLE)
    columns = ["cell", "metric", "published", "margin", "mean", "std", "n", "low", "high", "p_equivalence"]
    return found[[*columns, "seen", "verdict", "why", "runs"]]


def _seen(row: Mapping[str, Any], margin: float) -> str:
    if row["n"] != 1:
        return row["verdict"]
    off = row["mean"] - row["published"]
    return REPRODUCED if abs(off) <= margin + SAME else ABOVE if off > 0 else BELOW


def published_runs() -> pd.DataFrame:
    """The accuracies of Tables 2, 3 and 4 as if they were finished runs of seed 0 with section 3.1's recipe.

    Judge them with margin=ROUNDING. Figure 2 prints no numbers and so has no rows.
    """
    published = pd.concat([tables.published(table) for table in ("table2", "table3", "table4")])
    published = published[published["metric"] == "accuracy"]
    tasks = published["tasks"].where(published["method"] != DRLOC, DRLOC)
    first_phase = (published["protocol"] != "joint").astype(int)
    return published[["dataset", "backbone", "protocol"]].assign(
        study=published["table"],
        tasks=tasks,
        seed=0,
        status="FINISHED",
        pretrain_epochs=PAPER_EPOCHS * first_phase,
        epochs=PAPER_EPOCHS,
        train_images=0,
        pretrain_position_embedding=(tasks == NONE) & (first_phase == 1),
        permute_patches=False,
        git_dirty="false",
        test_accuracy=published["value"],
    )


def departures(runs: pd.DataFrame, table: str) -> list[str]:
    """Why finished runs of a study cannot be held against the paper's numbers, one reason each; empty if they can.

    Data sets and backbones that the paper's table does not have, a backbone of its kind that only stands in, another
    number of epochs, part of the training images, another recipe than section 3.1's, what the engine had to do
    differently (tag deviation), and code with uncommitted or unknown changes.
    """
    runs = conform(runs[runs["status"] == "FINISHED"])
    paper = _paper_backbones(table)
    reasons = []
    for dataset, backbone in runs[["dataset", "backbone"]].dropna().drop_duplicates().to_numpy():
        if dataset not in paper:
            reasons.append(f"data set {dataset} is not in the paper's {table}")
            if not any(backbone in each.values() for each in paper.values()):
                reasons.append(f"backbone {backbone} is not in the paper's {table}")
        elif backbone not in paper[dataset].values():
            meant = paper[dataset].get(tables.family(backbone), " or ".join(paper[dataset].values()))
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
            if name in acting and name not in tables.VARYING.get(table, ()) and acting[name] != value:
                text = f"{shown(acting[name])} instead of {shown(value)}"
                if text not in found.setdefault(name, []):
                    found[name].append(text)
    return found


def _paper_backbones(table: str) -> dict[str, dict[str, str]]:
    """By data set of a table, by family, the backbone. Figure 2 shares Table 4's data set and backbone."""
    published = tables.published("table4" if table == "figure2" else table)
    result: dict[str, dict[str, str]] = {}
    for dataset, backbone in zip(published["dataset"], published["backbone"]):
        result.setdefault(dataset, {})[tables.family(backbone)] = backbone
    return result


# Which run stands for which entry of a table


def _wide(runs: pd.DataFrame, table: str, metric: str = "test_accuracy") -> pd.DataFrame:
    return by_seed(labelled(runs, table), "label", metric)


def labelled(runs: pd.DataFrame, table: str) -> pd.DataFrame:
    """The runs that are entries of a table, with the column label: "sprel+dist", "svhn swin relvit", "random"."""
    labels = [_label(row, table) for row in runs.to_dict("records")]
    return runs.assign(label=np.array(labels, dtype=object)).dropna(subset="label")


def _label(run: Mapping[str, Any], table: str) -> str | None:
    if any(pd.isna(run[name]) for name in ("dataset", "backbone", "protocol", "tasks")):  # what a crash left
        return None
    tasks, two_phases, joint = run["tasks"], run["protocol"] == "pretrain_finetune", run["protocol"] == "joint"
    method = {NONE: "supervised", BEST: "relvit", DRLOC: "drloc"}.get(tasks)
    if table == "table4" and two_phases and tasks in task_combinations():
        return tasks
    if table == "table2" and two_phases and method:
        return f"{run['dataset']} {method}"
    if table == "table3" and joint and method:
        return f"{run['dataset']} {tables.family(run['backbone'])} {method}"
    return tables.figure2_label(run) if table == "figure2" else None


# What is compared: (cell, baseline) pairs of labels

Pairs = Callable[[pd.DataFrame], list[tuple[str, str]]]


def _fixed(*pairs: tuple[str, str]) -> Pairs:
    return lambda runs: list(pairs)


def _on_every_dataset(table: str, baseline: str, families: tuple[str, ...] = ("vit",)) -> Pairs:
    """RelViT against a baseline on each data set of the paper's table, and on those that the runs add."""

    def pairs(runs: pd.DataFrame) -> list[tuple[str, str]]:
        datasets = dict.fromkeys([*_paper_backbones(table), *labelled(runs, table)["dataset"]])
        kinds = ("",) if table == "table2" else tuple(f"{family} " for family in families)
        return [(f"{dataset} {kind}relvit", f"{dataset} {kind}{baseline}") for kind in kinds for dataset in datasets]

    return pairs


# Rules


def _all_above(table: str, pairs: Pairs, exceptions: int = 0) -> Callable[[pd.DataFrame, float], Judgement]:
    """Holds where each cell is above its baseline, but for so many; contradicted where more than those are below."""

    def judge(runs: pd.DataFrame, margin: float) -> Judgement:
        comparisons = compare(_wide(runs, table), pairs(runs))
        direction = _direction(comparisons)
        above, below = comparisons[direction > 0], comparisons[direction < 0]
        open_, absent = comparisons[(direction == 0) & (comparisons["n"] > 0)], comparisons[comparisons["n"] == 0]
        if len(below) > exceptions:
            verdict, deciding = CONTRADICTED, [("below", below)]
        elif len(above) >= len(comparisons) - exceptions:
            closest = above.nsmallest(1, "difference")
            verdict, deciding = HOLDS, [("closest", closest), ("except", pd.concat([below, open_]))]
        else:
            verdict, deciding = UNDECIDED, [("below", below), ("open", open_)]
        numbers = [f"{word} {'; '.join(map(_difference, rows.itertuples()))}" for word, rows in deciding if len(rows)]
        if len(absent):
            numbers.append(f"missing {'; '.join(f'{cell} against {baseline}' for cell, baseline in absent.index)}")
        # At Holm's first step, its strictest; a missing cell is no question of seeds that are already there.
        alpha = ALPHA / max(1, int(comparisons["p"].notna().sum()))
        undecided = comparisons[(direction == 0) & ~(comparisons["difference"].abs() <= SAME)]
        needs = _needs(undecided, lambda row: seeds_for_power(row.difference, row.std, alpha))
        note = _note(comparisons["n"], len(comparisons))
        return Judgement(verdict, ". ".join(numbers), note, comparisons, needs)

    return judge


def _direction(comparisons: pd.DataFrame) -> np.ndarray:
    """1 above, -1 below, 0 open: by the sign alone if there is but one seed, else where significant after Holm."""
    difference = comparisons["difference"].fillna(0.0)
    counts = difference.abs() > SAME if comparisons["n"].max() <= 1 else comparisons["p_holm"] < ALPHA
    return np.where(counts, np.sign(difference), 0)


def _difference(row: tuple) -> str:
    cell, baseline = row.Index
    return f"{cell} against {baseline}: {_estimate(row.difference, row.low, row.high, row.n)}"


def _estimate(value: float, low: float, high: float, n: int, sign: str = "+") -> str:
    interval = "" if np.isnan(low) else f" [{low:{sign}.2f}, {high:{sign}.2f}]"
    return f"{value:{sign}.2f}{interval} (n = {n})"


def _note(n: pd.Series, comparisons: int, margin: float | None = None) -> str:
    if n.max() == 0:
        return "no finished runs to compare"
    within = f"; the same within {margin:g} points" if margin else ""
    if n.max() == 1:
        return f"one seed: single numbers, nothing is tested{within}"
    return (f"t tests over seeds, Holm over {comparisons}" if comparisons > 1 else "t test over seeds") + within


def _gains(
    table: str, stated: Mapping[str, tuple[tuple[str, ...], str, float]]
) -> Callable[[pd.DataFrame, float], Judgement]:
    """By name: cells, whose mean is taken, their baseline, and the gain that the paper states.

    Holds where every gain is the stated one within the margin (TOST at 5 %), contradicted where one is off by more than
    the margin (t tests at 5 %, Bonferroni over the gains).
    """

    def judge(runs: pd.DataFrame, margin: float) -> Judgement:
        needed = [label for cells, baseline, _ in stated.values() for label in (*cells, baseline)]
        wide = _wide(runs, table).reindex(columns=list(dict.fromkeys(needed)))
        gains = {
            name: wide[list(cells)].mean(axis=1, skipna=False) - wide[baseline]
            for name, (cells, baseline, _) in stated.items()
        }
        expected = pd.Series({name: gain for name, (*_, gain) in stated.items()})
        judged = _judge_equality(pd.DataFrame(gains), expected, margin, "stated ")
        return replace(judged, entries=tuple(dict.fromkeys(needed)))

    return judge


def _all_similar(table: str, cells: tuple[str, ...], within: float | None = None) -> Callable[..., Judgement]:
    """Holds where every two of the cells are the same within so many points (None: within the margin), contradicted
    where two are further apart; tested as `_gains`."""

    def judge(runs: pd.DataFrame, margin: float) -> Judgement:
        wide = _wide(runs, table).reindex(columns=list(cells))
        differences = {f"{one} against {other}": wide[one] - wide[other] for one, other in combinations(cells, 2)}
        expected = pd.Series(0.0, index=list(differences))
        judged = _judge_equality(
            pd.DataFrame(differences), expected, margin if within is None else within, "the same as "
        )
        # By the cells, which lead to their runs.
        return replace(judged, entries=cells)

    return judge


def _judge_equality(wide: pd.DataFrame, expected: pd.Series, margin: float, word: str) -> Judgement:
    comparisons = equivalent(wide, expected, margin, judged=len(expected))
    if comparisons["n"].max() <= 1:
        known = comparisons["n"] == 1
        same = known & ((comparisons["mean"] - comparisons["published"]).abs() <= margin)
        off = known & ~same
    else:
        same, off = comparisons["verdict"] == REPRODUCED, comparisons["verdict"].isin([ABOVE, BELOW])
    verdict = CONTRADICTED if off.any() else HOLDS if same.all() else UNDECIDED
    decide = off if off.any() else same if same.all() else ~same
    numbers = [
        f"{row.Index}: {word}{row.published:+.2f}, "
        + (_estimate(row.mean, row.low, row.high, row.n) if row.n else "missing")
        for row in comparisons[decide].itertuples()
    ]
    needs = _needs(
        comparisons[~same & ~off],
        lambda row: seeds_for_equivalence(row.mean - row.published, row.std, margin, len(expected)),
    )
    return Judgement(verdict, "; ".join(numbers), _note(comparisons["n"], 1, margin), comparisons, needs)


def _level_above(table: str, metric: str, cell: str, level: float) -> Callable[[pd.DataFrame, float], Judgement]:
    """Holds where the metric's 95 % interval lies above a level, contradicted where it lies below."""

    def judge(runs: pd.DataFrame, margin: float) -> Judgement:
        comparisons = describe(_wide(runs, table, metric).reindex(columns=[cell]))
        (row,) = comparisons.itertuples()
        low, high = (row.mean, row.mean) if row.n == 1 else (row.low, row.high)
        verdict = HOLDS if low > level else CONTRADICTED if high < level else UNDECIDED
        numbers = f"{cell}: {_estimate(row.mean, row.low, row.high, row.n, '')}, level {level:g}" if row.n else ""
        needs = _needs(comparisons, lambda row: seeds_for_power(row.mean - level, row.std))
        return Judgement(verdict, numbers, _note(comparisons["n"], 1), comparisons, needs)

    return judge


def _no_help(table: str, cell: str, baseline: str) -> Callable[[pd.DataFrame, float], Judgement]:
    """Holds where the cell is less than the margin above its baseline (one-sided t test), contradicted where it is
    shown to be more than that above."""

    def judge(runs: pd.DataFrame, margin: float) -> Judgement:
        wide = _wide(runs, table).reindex(columns=[cell, baseline])
        comparisons = compare(wide, [(cell, baseline)])
        (row,) = comparisons.itertuples()
        if row.n == 1:
            verdict = HOLDS if row.difference <= margin else CONTRADICTED
        elif np.isnan(row.p):
            verdict = UNDECIDED
        else:
            differences = (wide[cell] - wide[baseline]).dropna()
            is_less = stats.ttest_1samp(differences, margin, alternative="less").pvalue < ALPHA
            verdict = HOLDS if is_less else CONTRADICTED if row.low > margin else UNDECIDED
        note = _note(comparisons["n"], 1, margin)
        # One-sided to show that it is less, two-sided that it is more.
        needs = _needs(
            comparisons,
            lambda row: seeds_for_power(
                row.difference - margin, row.std, ALPHA * (2 if row.difference < margin else 1)
            ),
        )
        return Judgement(verdict, _difference(row) if row.n else "", note, comparisons, needs)

    return judge


# The sentences

_EVERY_COMBINATION = [tasks for tasks in task_combinations() if tasks != NONE]
_VARIANTS = ("swin", "t2t")

CLAIMS = (
    Claim(
        "best-single-task",
        "Among SSL tasks, the SpRel one is the most performing",
        "section 3.3",
        "table4",
        _all_above("table4", _fixed(*(("sprel", task) for task in PAPER_TASKS if task != "sprel"))),
    ),
    Claim(
        "best-combination",
        "the optimal combination of tasks is obtained by learning the SpRel and the AbsPos of the patches",
        "section 3.3",
        "table4",
        _all_above("table4", _fixed(*((BEST, tasks) for tasks in _EVERY_COMBINATION if tasks != BEST))),
    ),
    Claim(
        "single-tasks-similar",
        "solving, individually, each SSL task leads to similar fine-tuning accuracy",
        "section 3.3",
        "table4",
        _all_similar("table4", PAPER_TASKS, SIMILAR),
    ),
    Claim(
        "single-tasks-improve",
        "solving, individually, each SSL task [improves] the performance w.r.t the supervised baseline",
        "section 3.3",
        "table4",
        _all_above("table4", _fixed(*((task, NONE) for task in PAPER_TASKS))),
    ),
    Claim(
        "single-tasks-gain",
        "solving, individually, each SSL task [improves] the supervised baseline of +3.00% on average",
        "section 3.3",
        "table4",
        _gains("table4", {"mean of the single tasks": (PAPER_TASKS, NONE, 3.00)}),
    ),
    Claim(
        "finetuning-every-dataset",
        "Our approach leads to higher accuracy than the supervised one in all datasets",
        "section 3.2",
        "table2",
        _all_above("table2", _on_every_dataset("table2", "supervised")),
    ),
    Claim(
        "finetuning-gains",
        "gaining +10.01% on Tiny-Imagenet, +6.45% on CIFAR-100 and +4.75% on CIFAR-10",
        "section 3.2",
        "table2",
        _gains(
            "table2",
            {
                name: ((f"{name} relvit",), f"{name} supervised", gain)
                for name, gain in (("tiny_imagenet", 10.01), ("cifar100", 6.45), ("cifar10", 4.75))
            },
        ),
    ),
    Claim(
        "joint-almost-all-datasets",
        "this configuration improves the results on almost all the datasets",  # read as: on all but one of the four
        "section 3.2",
        "table3",
        _all_above("table3", _on_every_dataset("table3", "supervised"), exceptions=1),
    ),
    Claim(
        "joint-gains",
        "up to +4.02% on Flower102, +3.93% on CIFAR-100, and +3.71% on CIFAR-10",
        "section 3.2",
        "table3",
        _gains(
            "table3",
            {
                name: ((f"{name} vit relvit",), f"{name} vit supervised", gain)
                for name, gain in (("flowers102", 4.02), ("cifar100", 3.93), ("cifar10", 3.71))
            },
        ),
    ),
    Claim(
        "joint-every-dataset",
        "RelViT shows significant improvement on all the tested datasets and in both scenarios",
        "section 4",  # the other scenario is finetuning-every-dataset
        "table3",
        _all_above("table3", _on_every_dataset("table3", "supervised")),
    ),
    Claim(
        "variants-above-supervised",
        "we outperform the supervised baselines",
        "section 3.2",
        "table3",
        _all_above("table3", _on_every_dataset("table3", "supervised", _VARIANTS)),
    ),
    Claim(
        "variants-above-drloc",
        "we outperform [...] also [9] results",
        "section 3.2",
        "table3",
        _all_above("table3", _on_every_dataset("table3", "drloc", _VARIANTS)),
    ),
    Claim(
        "variants-gains",
        "up to +19.85% and +16.24% on Flower-102, with Swin and T2T-ViT backbones",
        "section 3.2",
        "table3",
        _gains(
            "table3",
            {
                f"flowers102 {name}": ((f"flowers102 {name} relvit",), f"flowers102 {name} drloc", gain)
                for name, gain in (("swin", 19.85), ("t2t", 16.24))
            },
        ),
    ),
    Claim(
        "embedding-solves-sprel",
        "if the model uses the PEs without shuffling during the pre-training, it solves the task with 100% of SpRel "
        "accuracy",
        "section 3.3, Figure 2a",
        "figure2",
        _level_above("figure2", "test_sprel_accuracy", "embedding", SOLVED),
    ),
    Claim(
        "embedding-does-not-help",
        "reaches a classification accuracy comparable to a randomly initialized network",
        "section 3.3, Figure 2b",
        "figure2",
        _no_help("figure2", "embedding", "random"),
    ),
    Claim(
        "shuffling-helps",
        "the shuffling removes the trivial solution and improves the classification accuracy",
        "section 3.3, Figure 2b",
        "figure2",
        _all_above("figure2", _fixed(("embedding, permuted", "embedding"))),
    ),
    Claim(
        "no-embedding-is-best",
        "we removed PEs from RelViT since, in this way, we obtained the best results",
        "section 3.3, Figure 2b",
        "figure2",
        _all_above("figure2", _fixed(("no embedding", "embedding"), ("no embedding", "embedding, permuted"))),
    ),
    Claim(
        "shuffling-is-optional",
        "the shuffling is optional due to the permutation equivariance property of the model",
        "section 3.3",
        "figure2",
        _all_similar("figure2", ("no embedding", "no embedding, permuted")),
    ),
)
