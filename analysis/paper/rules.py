"""What a sentence of the paper asks of runs: rules from runs and a margin to a judgement."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.paper.entries import Entries, Judgement
from analysis.stats.seeds import (
    ABOVE,
    ALPHA,
    BELOW,
    MOST_SEEDS,
    REPRODUCED,
    SAME,
    compare,
    describe,
    equivalent,
    seeds_for_equivalence,
    seeds_for_power,
)

HOLDS, CONTRADICTED, UNDECIDED, NOT_COMPARABLE = "holds", "contradicted", "undecided", "not comparable"
# Percentage points within which cells count as similar: the paper says it of 88.75 to 89.39.
SIMILAR = 1.0
SOLVED = 95.0  # percent of SpRel accuracy from which Figure 2a's task counts as solved; the paper's sentence says 100


Judge = Callable[[Entries, float], Judgement]
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

    def judge(entries: Entries, margin: float) -> Judgement:
        comparisons = compare(entries.wide(), pairs(entries))
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


def stated_gains(stated: Mapping[str, tuple[tuple[str, ...], str, float]]) -> Judge:
    """By name: cells, whose mean is taken, their baseline, and the gain that the paper states.

    Holds where every gain is the stated one within the margin (TOST at 5 %), contradicted where one is off by more than
    the margin (t tests at 5 %, Bonferroni over the gains).
    """

    def judge(entries: Entries, margin: float) -> Judgement:
        needed = [label for cells, baseline, _ in stated.values() for label in (*cells, baseline)]
        wide = entries.wide().reindex(columns=list(dict.fromkeys(needed)))
        gains = {
            name: wide[list(cells)].mean(axis=1, skipna=False) - wide[baseline]
            for name, (cells, baseline, _) in stated.items()
        }
        expected = pd.Series({name: gain for name, (*_, gain) in stated.items()})
        judged = _judge_equality(pd.DataFrame(gains), expected, margin, "stated ")
        return replace(judged, entries=tuple(dict.fromkeys(needed)))

    return judge


def all_similar(cells: tuple[str, ...], within: float | None = None) -> Judge:
    """Holds where every two of the cells are the same within so many points (None: within the margin), contradicted
    where two are further apart; tested as `_gains`."""

    def judge(entries: Entries, margin: float) -> Judgement:
        wide = entries.wide().reindex(columns=list(cells))
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


def level_above(metric: str, cell: str, level: float) -> Judge:
    """Holds where the metric's 95 % interval lies above a level, contradicted where it lies below."""

    def judge(entries: Entries, margin: float) -> Judgement:
        comparisons = describe(entries.wide(metric).reindex(columns=[cell]))
        (row,) = comparisons.itertuples()
        low, high = (row.mean, row.mean) if row.n == 1 else (row.low, row.high)
        verdict = HOLDS if low > level else CONTRADICTED if high < level else UNDECIDED
        numbers = f"{cell}: {_estimate(row.mean, row.low, row.high, row.n, '')}, level {level:g}" if row.n else ""
        needs = _needs(comparisons, lambda row: seeds_for_power(row.mean - level, row.std))
        return Judgement(verdict, numbers, _note(comparisons["n"], 1), comparisons, needs)

    return judge


def no_help(cell: str, baseline: str) -> Judge:
    """Holds where the cell is less than the margin above its baseline (one-sided t test), contradicted where it is
    shown to be more than that above."""

    def judge(entries: Entries, margin: float) -> Judgement:
        wide = entries.wide().reindex(columns=[cell, baseline])
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
