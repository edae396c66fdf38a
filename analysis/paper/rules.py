"""What a sentence of the paper asks of runs: rules from runs and a margin to a judgement."""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.paper.entries import Entries, Judge, Judgement
from analysis.paper.numbers import interval_text
from analysis.stats.blocks import contrasts
from analysis.stats.seeds import (
    ABOVE,
    ALPHA,
    BELOW,
    MOST_SEEDS,
    REPRODUCED,
    SAME,
    compare,
    describe,
    directions,
    family_alpha,
    judge_equality,
    seeds_for_equivalence,
    seeds_for_power,
)
from relvit.messages import counted

HOLDS, CONTRADICTED, UNDECIDED, NOT_COMPARABLE = "holds", "contradicted", "undecided", "not comparable"
# Percentage points within which cells count as similar: the paper says it of 88.75 to 89.39.
SIMILAR = 1.0
NOTHING_TO_COMPARE = "no finished run has a result to compare"
SOLVED = 95.0  # percent of SpRel accuracy from which Figure 2a's task counts as solved; the paper's sentence says 100


Pairs = Callable[[Entries], list[tuple[str, str]]]


def fixed(*pairs: tuple[str, str]) -> Pairs:
    return lambda entries: list(pairs)


def on_every_dataset(baseline: str, families: tuple[str, ...] = ()) -> Pairs:
    """RelViT against a baseline on each data set of the paper's table, and on those that the runs add; with each of
    these kinds of backbones, where labels name them."""

    def pairs(entries: Entries) -> list[tuple[str, str]]:
        datasets = dict.fromkeys([*entries.of.paper_backbones(), *entries.labelled["dataset"]])
        kinds = [f"{family} " for family in families] or [""]
        return [(f"{dataset} {kind}relvit", f"{dataset} {kind}{baseline}") for kind in kinds for dataset in datasets]

    return pairs


def all_above(pairs: Pairs, exceptions: int = 0) -> Judge:
    """Holds where each cell is above its baseline, but for so many; contradicted where more than those are below."""

    def judge(entries: Entries, margin: float, printed: bool = False) -> Judgement:
        wide = entries.wide()
        comparisons = compare_entries(wide, pairs(entries), entries.of.group)
        groups = [entries.of.group(cell) for cell in comparisons.index.get_level_values("cell")]
        families = len(set(groups))
        if printed:
            direction = np.sign(comparisons["difference"].fillna(0.0).to_numpy())
        else:
            direction = directions(
                *(comparisons[name].to_numpy() for name in ("difference", "p", "p_family")), families
            )
        known = comparisons["difference"].notna()
        above, below = comparisons[direction > 0], comparisons[direction < 0]
        open_, absent = comparisons[(direction == 0) & known], comparisons[~known]
        if len(below) > exceptions:
            verdict, deciding = CONTRADICTED, [("below", below)]
        elif len(above) >= len(comparisons) - exceptions:
            closest = above.nsmallest(1, "difference")
            verdict, deciding = HOLDS, [("closest", closest), ("except", pd.concat([below, open_]))]
        else:
            verdict, deciding = UNDECIDED, [("below", below), ("open", open_)]
        numbers = [
            f"{word} {'; '.join(_difference(entries, row) for row in rows.itertuples())}"
            for word, rows in deciding
            if len(rows)
        ]
        if len(absent):
            numbers.append(f"missing {'; '.join(_pair(entries, pair) for pair in absent.index)}")
        cells = pd.Series([entries.of.group(label) for label in wide.columns]).value_counts()
        sizes = dict(zip(comparisons.index, cells.reindex(groups).fillna(2)))

        def seeds(row: Any) -> int | None:
            # What is above needs 5 % alone; what is below that of its family.
            size = int(sizes[row.Index])
            alpha = ALPHA if row.difference > 0 else family_alpha(size, ALPHA / families)
            return seeds_for_power(row.difference, row.std, alpha)

        needs = _needs(open_[open_["difference"].abs() > SAME], seeds, lambda pair: _pair(entries, pair))
        note = _note(comparisons, printed)
        return Judgement(verdict, ". ".join(numbers), note, comparisons, needs)

    return judge


def compare_entries(wide: pd.DataFrame, pairs: list[tuple[str, str]], group_of: Callable[[str], str]) -> pd.DataFrame:
    """`compare` within each group of a table: cells of different data sets or backbones have errors of their own."""
    found = []
    for group in dict.fromkeys(group_of(cell) for cell, _ in pairs):
        within = wide[[label for label in wide.columns if group_of(label) == group]]
        found.append(compare(within, [pair for pair in pairs if group_of(pair[0]) == group]))
    return pd.concat(found).reindex(pairs) if found else compare(wide, [])


def _pair(entries: Entries, pair: tuple[str, str]) -> str:
    return " against ".join(map(entries.of.label_name, pair))


def _difference(entries: Entries, row: Any) -> str:
    return f"{_pair(entries, row.Index)}: {_estimate(row.difference, row.low, row.high, row.n)}"


def _estimate(value: float, low: float, high: float, n: int, sign: str = "+") -> str:
    return " ".join(filter(None, [f"{value:{sign}.2f}", interval_text(low, high, sign, ""), f"(n = {n})"]))


def _note(comparisons: pd.DataFrame, printed: bool, margin: float | None = None) -> str:
    if comparisons["n"].max() == 0:
        return NOTHING_TO_COMPARE
    within = f"; the same within {counted(margin, 'point')}" if margin else ""
    if printed:
        return f"the numbers as printed{within}"
    if comparisons["n"].max() == 1:
        return f"one seed: nothing is tested{within}"
    return f"t tests over seeds{within}"


def stated_gains(stated: Mapping[str, tuple[tuple[str, ...], str, float]]) -> Judge:
    """By name, which is for a reader: cells, whose mean is taken, their baseline, and the gain that the paper states.

    Holds where every gain is the stated one within the margin, contradicted where one is off by more than the margin
    and the errors of single runs, which the published numbers are: `analysis.stats.seeds.judge_equality`.
    """

    def judge(entries: Entries, margin: float, printed: bool = False) -> Judgement:
        needed = list(dict.fromkeys(label for cells, baseline, _ in stated.values() for label in (*cells, baseline)))
        weights = {
            name: {baseline: -1.0} | {cell: 1 / len(cells) for cell in cells}
            for name, (cells, baseline, _) in stated.items()
        }
        expected = pd.Series({name: gain for name, (*_, gain) in stated.items()})
        return _judge_equality(entries, weights, expected, margin, "stated {:+.2f}, ", needed, printed, drawn=True)

    return judge


def all_similar(cells: tuple[str, ...], within: float | None = None) -> Judge:
    """Holds where every two of the cells are the same within so many points (None: within the margin), contradicted
    where two are further apart: `analysis.stats.seeds.judge_equality`."""

    def judge(entries: Entries, margin: float, printed: bool = False) -> Judgement:
        weights = {_pair(entries, pair): {pair[0]: 1.0, pair[1]: -1.0} for pair in combinations(cells, 2)}
        most = margin if within is None else within
        expected = pd.Series(0.0, index=list(weights))
        return _judge_equality(entries, weights, expected, most, "", list(cells), printed)

    return judge


def _judge_equality(
    entries: Entries,
    weights: Mapping[str, Mapping[str, float]],
    expected: pd.Series,
    margin: float,
    word: str,
    labels: list[str],
    printed: bool,
    drawn: bool = False,
) -> Judgement:
    """Whether contrasts of entries are what is expected. drawn: whether that is itself from one run a cell."""
    found, errors, wide, group_of = [], [], entries.wide(), entries.of.group
    spreads = describe(wide)["std"]
    for name, of in weights.items():
        group = group_of(next(iter(of)))
        within = wide[[label for label in wide.columns if group_of(label) == group]]
        found.append(contrasts(within, pd.DataFrame({name: of}), family=False))
        # Of the seeds behind the published numbers nothing is known: nothing cancels between cells.
        each = spreads.reindex(list(of)) * np.array(list(of.values()))
        errors.append(float(np.sqrt((each**2).sum())) if drawn else 0.0)
    comparisons = pd.concat(found)
    off, error = comparisons["estimate"] - expected, pd.Series(errors, index=comparisons.index)
    if printed:
        same = off.abs() <= margin
        apart = off.notna() & ~same
    else:
        tests = [(comparisons[f"{own}error"], comparisons[f"{own}freedom"]) for own in ("", "own_")]
        p, verdicts = judge_equality(off, tests, margin, error, judged=len(expected))
        same, apart = (
            pd.Series(verdicts == REPRODUCED, off.index),
            pd.Series(np.isin(verdicts, [ABOVE, BELOW]), off.index),
        )
    verdict = CONTRADICTED if apart.any() else HOLDS if same.all() else UNDECIDED
    decide = apart if apart.any() else same if same.all() else ~same
    numbers = [
        f"{row.Index}: {word.format(expected[row.Index])}"
        + ("missing" if np.isnan(row.estimate) else _estimate(row.estimate, row.low, row.high, row.n))
        for row in comparisons[decide].itertuples()
    ]
    needs = _needs(
        comparisons[~same & ~apart],
        lambda row: seeds_for_equivalence(off[row.Index], row.std, margin, error[row.Index], len(expected)),
    )
    note = _note(comparisons, printed, margin)
    return Judgement(verdict, "; ".join(numbers), note, comparisons, needs, tuple(labels), stated=drawn)


def level_above(metric: str, cell: str, level: float) -> Judge:
    """Holds where the metric's 95 % interval lies above a level, contradicted where it lies below; where all of several
    seeds have one value, that value decides."""

    def judge(entries: Entries, margin: float, printed: bool = False) -> Judgement:
        comparisons = describe(entries.wide(metric).reindex(columns=[cell]))
        (row,) = comparisons.itertuples()
        alike = row.n > 1 and row.std <= SAME
        low, high = (row.mean, row.mean) if alike or printed else (row.low, row.high)
        verdict = HOLDS if low > level else CONTRADICTED if high < level else UNDECIDED
        name = entries.of.label_name(cell)
        numbers = f"{name}: {_estimate(row.mean, row.low, row.high, row.n, '')}, level {level:g}" if row.n else ""
        needs = _needs(comparisons, lambda row: seeds_for_power(row.mean - level, row.std), entries.of.label_name)
        note = _note(comparisons, printed) + "; every seed has the same value" * alike
        return Judgement(verdict, numbers, note, comparisons, needs)

    return judge


def no_help(cell: str, baseline: str) -> Judge:
    """Holds where the cell is less than the margin above its baseline (one-sided test), contradicted where it is shown
    to be more than that above."""

    def judge(entries: Entries, margin: float, printed: bool = False) -> Judgement:
        comparisons = compare(entries.wide(), [(cell, baseline)])
        (row,) = comparisons.itertuples()
        beyond = row.difference - margin
        if printed:
            verdict = UNDECIDED if np.isnan(beyond) else HOLDS if beyond <= 0 else CONTRADICTED
        else:
            is_less = max(
                stats.t.cdf(beyond / row.error, row.freedom), stats.t.cdf(beyond / row.own_error, row.own_freedom)
            )
            verdict = HOLDS if is_less < ALPHA else CONTRADICTED if row.low > margin else UNDECIDED
        # One-sided to show that it is less, two-sided that it is more.
        needs = _needs(
            comparisons,
            lambda row: seeds_for_power(
                row.difference - margin, row.std, ALPHA * (2 if row.difference < margin else 1)
            ),
            lambda pair: _pair(entries, pair),
        )
        numbers = "" if np.isnan(beyond) else _difference(entries, row)
        return Judgement(verdict, numbers, _note(comparisons, printed, margin), comparisons, needs)

    return judge


def _needs(rows: pd.DataFrame, seeds: Callable[[Any], int | None], name_of: Callable[[Any], str] = str) -> str:
    """By comparison, under its name, what `seeds` says of its row: how many decide it, in all."""
    if len(rows) and rows["n"].max() < 2:
        return "2 or more"
    needed = []
    for row in rows.itertuples():
        name = name_of(row.Index)
        if row.n < 2:
            needed.append(f"{name}: 2 or more")
        elif row.std > SAME:
            needed.append(f"{name}: {seeds(row) or f'over {MOST_SEEDS:,}'}")
    return "; ".join(needed)
