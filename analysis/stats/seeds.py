"""Means, intervals, comparisons, equivalence and power over seeds: functions from data frames to data frames.

runs    what `runs.gather.gather` returns, of one setting: runs that differ only in what `by` names and in the seed.
        Only runs with status FINISHED count.
by      the column whose values are the cells to compare ("tasks"). Where several fields tell cells apart, join them
        into one column first.
metric  the column to compare, in its own unit; percent for accuracies.
wide    one row a seed, one column a cell, in the metric's unit; null where there is no finished run.

Seeds are the unit of observation: a seed stands for one draw of weights, order, augmentation and validation split. The
interval of a cell is Student's, from its own seeds. Cells are compared by one error model (`analysis.stats.blocks`),
whatever asks: a table's bold, its differences, the effects of tasks or the paper's sentences. One seed decides nothing.
"""

from collections.abc import Callable, Iterable
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import optimize, stats

from analysis.stats.blocks import ALPHA, SAME, cell_means, contrasts

POWER = 0.8
MOST_SEEDS = 10_000  # beyond this a comparison is called out of reach

REPRODUCED, WITHIN_NOISE, ABOVE, BELOW, UNDECIDED = "reproduced", "within noise", "above", "below", "undecided"


class SeveralRuns(ValueError):
    """Two finished runs stand for one cell and seed: the runs are of more than one setting."""


def by_seed(runs: pd.DataFrame, by: str = "tasks", metric: str = "test_accuracy") -> pd.DataFrame:
    """The finished runs as `wide`: sorted seeds, and every cell of `runs` in order of appearance, finished or not.

    Raises SeveralRuns where a cell has two finished runs with one seed.
    """
    cells = pd.Index(runs[by].dropna().unique(), name=by, dtype=object)
    finished = runs[runs["status"] == "FINISHED"].reindex(columns=["seed", by, metric]).dropna()
    finished = finished.astype({"seed": int, by: object, metric: float})
    repeated = finished[finished.duplicated(["seed", by])]
    if len(repeated):
        pairs = ", ".join(f"{cell} with seed {seed}" for seed, cell in zip(repeated["seed"], repeated[by]))
        raise SeveralRuns(f"several finished runs of {pairs}: compare runs of one setting")
    return finished.pivot(index="seed", columns=by, values=metric).reindex(columns=cells)


def summary(runs: pd.DataFrame, by: str = "tasks", metric: str = "test_accuracy") -> pd.DataFrame:
    """Each cell over its seeds, as `describe`. Raises SeveralRuns."""
    return describe(by_seed(runs, by, metric))


def describe(wide: pd.DataFrame) -> pd.DataFrame:
    """One row a column of `wide`: mean, std (of the sample, n - 1), n, and low and high of the 95 % t interval.

    std is null with fewer than two seeds; the interval also where all values are the same.
    """
    n, std = wide.notna().sum(), wide.std().astype(float)
    half = (stats.t.isf(ALPHA / 2, n.clip(lower=2) - 1) * std / np.sqrt(n.clip(lower=1))).where(std > SAME)
    mean = wide.mean().astype(float)
    return pd.DataFrame({"mean": mean, "std": std, "n": n.astype(int), "low": mean - half, "high": mean + half})


# Comparisons of cells


def compare(wide: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Cells against baselines, as `blocks.contrasts` judges them.

    Index: cell, baseline. Columns: difference, and those of `contrasts` but the estimate; n is the number of seeds of
    the cell that has fewer, 0 where one has none. The family are all pairs of the cells of `wide`, so that a pair gets
    the same answer wherever it is asked for.
    """
    pairs = list(dict.fromkeys(pairs))
    cells = list(dict.fromkeys([*wide.columns, *(cell for pair in pairs for cell in pair)]))
    asked = {frozenset(pair) for pair in pairs}
    family = [*pairs, *(pair for pair in combinations(wide.columns, 2) if frozenset(pair) not in asked)]
    places, weights = {cell: number for number, cell in enumerate(cells)}, np.zeros((len(cells), len(family)))
    for number, (cell, baseline) in enumerate(family):
        weights[places[cell], number] += 1
        weights[places[baseline], number] -= 1
    found = contrasts(wide, pd.DataFrame(weights, index=cells, columns=pd.RangeIndex(len(family))))
    names = ["cell", "baseline"]
    index = pd.MultiIndex.from_tuples(pairs, names=names) if pairs else pd.MultiIndex.from_arrays([[], []], names=names)
    return found.iloc[: len(pairs)].set_axis(index).rename(columns={"estimate": "difference"})


def tied_with_best(
    runs: pd.DataFrame, by: str = "tasks", metric: str = "test_accuracy", larger: bool = True
) -> pd.DataFrame:
    """Which cells were not shown to be worse than another; raises SeveralRuns.

    One row a cell. Columns: mean, n; difference to the best; p_family, the least p with which the cell is worse than
    any other, corrected for all pairs; best, the highest mean or the lowest where smaller is better, corrected for
    seeds that a cell lacks; tied, not shown to be worse than any cell at 5 %; note, why a cell was not tested. Where no
    cell has a second seed, the best stands alone, with those of exactly equal value.
    """
    wide = by_seed(runs, by, metric)
    table = describe(wide)[["mean", "n"]]
    if not table["n"].any():
        return table.assign(difference=np.nan, p_family=np.nan, best=False, tied=False, note="no finished run")
    means = cell_means(wide)
    best = means.idxmax() if larger else means.idxmin()
    table["difference"] = means - means[best]
    compared = compare(wide, combinations(wide.columns, 2))
    upwards = compared["difference"] > 0
    worse = np.where(upwards == larger, compared.index.get_level_values(1), compared.index.get_level_values(0))
    table["p_family"] = compared["p_family"].groupby(worse).min().reindex(table.index)
    untested = ~compared["p_family"].notna().any()
    table["best"] = table.index == best
    table["tied"] = (table["n"] > 0) & ~(table["p_family"] < ALPHA)
    table["note"] = ""
    if untested:
        single = table["n"].max() == 1
        table.loc[table["n"] > 0, "note"] = (
            "one seed: nothing is tested" if single else "the same difference for every seed: not tested"
        )
        if single:
            table["tied"] = (means - means[best]).abs() < SAME
    else:
        table.loc[table["n"] == 1, "note"] = "one seed: tested by the spread of the other cells"
    table.loc[table["n"] == 0, "note"] = "no finished run"
    return table[["mean", "n", "difference", "p_family", "best", "tied", "note"]]


# Against published numbers


def equivalent(
    wide: pd.DataFrame, published: pd.Series, margin: pd.Series | float, images: pd.Series | None = None
) -> pd.DataFrame:
    """Whether means agree with published numbers, each of which is one draw.

    published: by cell, in the metric's unit. margin, above 0, in that unit: a deviation that does not matter. images:
    for accuracies in percent, how many test images each published number is of. One row an entry of `published`: mean,
    std, n, low and high as `describe`; published; p_equivalence and verdict as `judge_equality`. Values that all
    seeds share are taken to scatter by one test image, and are undecided where the number of images is unknown.
    """
    table = describe(wide.reindex(columns=published.index)).assign(published=published.astype(float))
    std, images = table["std"], pd.Series(np.nan, index=table.index) if images is None else images.astype(float)
    std = std.where(std > SAME, (100 / images).where(table["n"] > 1))
    binomial = np.sqrt(table["published"] * (100 - table["published"]).clip(lower=0) / images).fillna(0.0)
    tests = [(std / np.sqrt(table["n"]), table["n"] - 1)]
    off, drawn = table["mean"] - table["published"], np.sqrt(std**2 + binomial**2)
    table["p_equivalence"], table["verdict"] = judge_equality(off, tests, margin, drawn)
    return table


def judge_equality(
    off: np.ndarray,
    tests: Iterable[tuple[np.ndarray, np.ndarray]],
    margin: np.ndarray | float,
    drawn: np.ndarray | float = 0.0,
    judged: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Whether estimates are the same as what they are held against: p_equivalence and verdict, in the shape of `off`.

    off: estimate less target. tests: standard errors of the estimate with their degrees of freedom; where there are
    several, all must agree. drawn: the standard error of the target itself. judged: how many a single verdict rests on.

    reproduced    within the margin of the target as it is printed: two one-sided t tests at 5 %, of which p_equivalence
                  is the larger p (Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987). All of several may be tested at
                  5 % each (intersection-union).
    above, below  by more than the margin, even if the target is one draw (prediction interval) from its test set: at
                  5 % over `judged` (Bonferroni)
    within noise  neither is shown
    undecided     fewer than two seeds

    So more seeds make a true replication no more likely to be called a failure. Raises ValueError for a margin that is
    not above 0.
    """
    if not np.all(np.asarray(margin) > 0):
        raise ValueError(f"the margin of an equivalence test must be above 0, not {margin!r}")
    off = np.asarray(off, dtype=float)
    p, beyond, known = np.zeros(off.shape), True, ~np.isnan(off)
    for error, freedom in tests:
        error, freedom = np.asarray(error, dtype=float), np.asarray(freedom, dtype=float)
        known = known & ~np.isnan(error) & (freedom > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            p = np.fmax(p, stats.t.sf((np.asarray(margin) - np.abs(off)) / error, freedom))
            half = stats.t.isf(ALPHA / judged / 2, freedom) * np.sqrt(error**2 + np.square(np.asarray(drawn)))
        beyond &= np.abs(off) - half > np.asarray(margin)
    verdict = np.where(p < ALPHA, REPRODUCED, np.where(beyond, np.where(off > 0, ABOVE, BELOW), WITHIN_NOISE))
    return np.where(known, p, np.nan), np.where(known, verdict, UNDECIDED)


def directions(difference: np.ndarray, p: np.ndarray, p_family: np.ndarray, families: int = 1) -> np.ndarray:
    """1 above, -1 below, 0 open, for a sentence that says of every comparison that the difference is above 0.

    The sentence needs all of them, so each may be above at 5 % (intersection-union). One below contradicts it, so that
    takes the p corrected for its family, and for the number of families (Bonferroni).
    """
    return np.where(
        (difference > 0) & (p < ALPHA), 1, np.where((difference < 0) & (p_family * families < ALPHA), -1, 0)
    )


# How many seeds


def seeds_to_find(compared: pd.DataFrame, cells: int) -> dict[tuple[str, str], str]:
    """For the rows of `compare` among so many cells, how many seeds find the difference seen with a power of 80 %,
    corrected for all pairs; as text: a number, or why there is none."""
    alpha = family_alpha(cells)
    result = {}
    for pair, row in compared.iterrows():
        if np.isnan(row["std"]):
            result[pair] = "2 or more" if row["n"] < 2 else "–"
        elif abs(row["difference"]) <= SAME:
            result[pair] = "–"
        else:
            found = seeds_for_power(row["difference"], row["std"], alpha, cells=cells)
            result[pair] = str(found) if found else f">{MOST_SEEDS}"
    return result


def family_alpha(cells: int, alpha: float = ALPHA) -> float:
    """The level of one comparison with which all pairs of so many cells together keep `alpha`, for many seeds: by the
    range of as many normal numbers (Tukey)."""
    if cells <= 2:
        return alpha
    return float(2 * stats.norm.sf(stats.studentized_range.isf(alpha, cells, np.inf) / np.sqrt(2)))


def seeds_for_power(difference: float, std: float, alpha: float = ALPHA, cells: int = 2) -> int | None:
    """The least number of seeds, at least 2, with which a t test finds a difference with a power of POWER.

    difference and std (above 0) of the differences in one unit; alpha in (0, 1); cells: those whose residuals
    the test knows the spread from, 2 for a paired test. None beyond MOST_SEEDS. A one-sided test at 5 % is, but for the
    wrong tail, a two-sided one at 10 %.
    """
    return _least(lambda seeds: paired_power(difference, std, seeds, alpha, cells))


def seeds_for_equivalence(off: float, std: float, margin: float, drawn: float = 0.0, judged: int = 1) -> int | None:
    """The least number of seeds with which `judge_equality` says reproduced, or above or below, with this power.

    off: the true deviation from the target; the rest as `judge_equality` and `seeds_for_power`. None for a deviation as
    large as the margin, of which neither can be shown, and beyond MOST_SEEDS.
    """
    if abs(abs(off) - margin) <= SAME:
        return None
    if abs(off) > margin:

        def beyond(seeds: float) -> float:
            critical = stats.t.isf(ALPHA / judged / 2, seeds - 1) ** 2 * (1 + seeds * (drawn / std) ** 2)
            return _noncentral(critical, seeds - 1, seeds * ((abs(off) - margin) / std) ** 2)

        return _least(beyond)

    def both(seeds: float) -> float:
        # The two one-sided tests fail together only where the margin is far too narrow for so few seeds.
        return sum(paired_power(bound, std, seeds, 2 * ALPHA) for bound in (margin - off, margin + off)) - 1

    return _least(both)


def _least(power_of: Callable[[float], float]) -> int | None:
    def lacking(seeds: float) -> float:
        return power_of(seeds) - POWER

    if lacking(2) >= 0:
        return 2
    if lacking(MOST_SEEDS) < 0:
        return None
    # The root is found to far less than one seed; an n that is exactly enough must not be rounded up.
    return int(np.ceil(optimize.brentq(lacking, 2, MOST_SEEDS) - 1e-6))


def paired_power(difference: float, std: float, seeds: float, alpha: float = ALPHA, cells: int = 2) -> float:
    """The chance in [0, 1] that a two-sided t test at `alpha` finds a true difference; arguments as `seeds_for_power`.

    Under it the square of t is noncentral F with 1 and (cells - 1) (seeds - 1) degrees of freedom. (The noncentral t
    distribution says the same, but scipy 1.17 gives NaN for its far tail.)
    """
    freedom = (cells - 1) * (seeds - 1)
    return _noncentral(stats.f.isf(alpha, 1, freedom), freedom, seeds * (difference / std) ** 2)


def _noncentral(critical: float, freedom: float, shift: float) -> float:
    return float(stats.ncf.sf(critical, 1, freedom, shift))
