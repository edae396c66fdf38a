"""Means, intervals, paired comparisons and equivalence over seeds: functions from data frames to data frames.

runs    what `runs.gather.gather` returns, of one setting: runs that differ only in what `by` names and in the seed.
        Only runs with status FINISHED count.
by      the column whose values are the cells to compare ("tasks"). Where several fields tell cells apart, join them
        into one column first.
metric  the column to compare, in its own unit; percent for accuracies.
wide    one row a seed, one column a cell, in the metric's unit; null where there is no finished run.

Seeds are the unit of observation: a seed stands for one draw of weights, order, augmentation and validation split.
Cells that share a seed share some of that draw, hence differences are taken within seeds. All intervals and tests are
Student's t, two-sided unless said otherwise. Where a spread cannot be estimated (fewer than two seeds, or values that
are all the same, as happens on small test splits) there is a number, no interval and no p.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from scipy import optimize, stats

from relvit.cell import unknown

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
POWER = 0.8
MOST_SEEDS = 10_000  # beyond this a comparison is called out of reach
SAME = 1e-9  # differences below this are floating point, not measurement

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
    rows = []
    for cell in wide.columns:
        values = wide[cell].dropna()
        row = {"mean": values.mean(), "std": values.std(), "n": len(values), "low": np.nan, "high": np.nan}
        if _has_spread(values):
            row["low"], row["high"] = stats.ttest_1samp(values, 0).confidence_interval(CONFIDENCE)
        rows.append(row)
    frame = pd.DataFrame(rows, index=wide.columns, columns=["mean", "std", "n", "low", "high"])
    return frame.astype({"mean": float, "std": float, "n": int, "low": float, "high": float})


def _has_spread(values: pd.Series) -> bool:
    return len(values) > 1 and np.ptp(values) > SAME


# Paired comparisons


def paired(runs: pd.DataFrame, baseline: str, by: str = "tasks", metric: str = "test_accuracy") -> pd.DataFrame:
    """Every other cell against `baseline`, as `compare` but with the cell alone as index.

    Raises ValueError for a baseline that `runs` does not have, with the cells that it has; SeveralRuns.
    """
    wide = by_seed(runs, by, metric)
    if baseline not in wide.columns:
        raise ValueError(unknown("baseline", baseline, wide.columns))
    pairs = [(cell, baseline) for cell in wide.columns if cell != baseline]
    return compare(wide, pairs).droplevel("baseline").rename_axis(by)


def compare(wide: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Cells against baselines over the seeds that both have; the pairs are one family of comparisons.

    Index: cell, baseline. Columns: difference, the mean of cell - baseline; std of the differences; n, the common
    seeds; low and high of the difference's 95 % t interval; p of the paired t test; p_holm, p corrected for the
    family. A cell that `wide` lacks has n = 0.
    """
    pairs = list(pairs)
    rows = []
    for cell, baseline in pairs:
        both = wide.reindex(columns=[cell, baseline]).dropna().to_numpy()
        differences = pd.Series(both[:, 0] - both[:, 1])
        row = {"difference": differences.mean(), "std": differences.std(), "n": len(both)}
        row |= dict.fromkeys(("low", "high", "p"), np.nan)
        if _has_spread(differences):
            test = stats.ttest_rel(both[:, 0], both[:, 1])
            row["low"], row["high"] = test.confidence_interval(CONFIDENCE)
            row["p"] = test.pvalue
        rows.append(row)
    index = pd.MultiIndex.from_tuples(pairs, names=["cell", "baseline"]) if pairs else _no_pairs()
    columns = ["difference", "std", "n", "low", "high", "p"]
    frame = pd.DataFrame(rows, index=index, columns=columns).astype({**dict.fromkeys(columns, float), "n": int})
    return frame.assign(p_holm=holm(frame["p"]))


def _no_pairs() -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays([[], []], names=["cell", "baseline"])


def holm(p: pd.Series) -> pd.Series:
    """p values in [0, 1], corrected for their number so that the chance of any false rejection stays below alpha.

    Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979): the smallest of m is
    multiplied by m, the next by m - 1, and so on; none may fall below the one before it. Nulls stay null and do not
    count.
    """
    ordered = p.dropna().sort_values()
    factors = np.arange(len(ordered), 0, -1)
    return (ordered * factors).cummax().clip(upper=1.0).reindex(p.index)


def tied_with_best(
    runs: pd.DataFrame,
    by: str = "tasks",
    metric: str = "test_accuracy",
    larger: bool = True,
    baseline: str | None = None,
) -> pd.DataFrame:
    """Which cells cannot be told from the one of the highest mean, or the lowest where smaller is better.

    One row a cell. Columns: mean, n; difference to the best, corrected for seeds that one of them lacks (0 for the
    best); p_holm over all comparisons with the best, as `compare_with`; best; tied; note, why a cell was not tested.
    Tied are the best, the cells whose difference to it is not significant after Holm at 5 %, and those that no test
    could tell from it: who is not tied was shown to be worse. The best is chosen among cells of at least two seeds, if
    there are any; of single seeds the best stands alone, with those of exactly equal mean.

    The best is chosen by the same runs that test it, for which Holm does not account: the group may be too small.
    Raises SeveralRuns.
    """
    wide = by_seed(runs, by, metric)
    table = describe(wide)[["mean", "n"]]
    if not table["n"].any():
        return table.assign(difference=np.nan, p_holm=np.nan, best=False, tied=False, note="no finished run")
    several = table["n"] >= 2
    means = table["mean"].where(several if several.any() else table["n"] > 0)
    best = means.idxmax() if larger else means.idxmin()
    comparison = compare_with(wide, best).reindex(table.index)
    table["difference"] = comparison["difference"].fillna(table["mean"] - table.loc[best, "mean"])
    table["p_holm"] = comparison["p_holm"]
    table["best"] = table.index == best
    untested = ~table["best"] & table["p_holm"].isna() & (table["n"] > 0)
    table["note"] = ""
    table.loc[untested, "note"] = "the same difference for every seed: not tested"
    table.loc[untested & ~several, "note"] = "fewer than 2 seeds: not tested"
    table.loc[table["n"] == 0, "note"] = "no finished run"
    if not several.any():
        table.loc[best, "note"] = "one seed: nothing is tested"
        untested = (table.loc[best, "mean"] - table["mean"]).abs() < SAME
    table["tied"] = table["best"] | untested | (table["p_holm"] >= ALPHA)
    for cell in _worse_in_pairs(wide, best, larger, baseline):
        table.loc[cell, "tied"] = False
    return table[["mean", "n", "difference", "p_holm", "best", "tied", "note"]]


def _worse_in_pairs(wide: pd.DataFrame, best: str, larger: bool, baseline: str | None) -> list[str]:
    """The cells that the paired differences to the baseline show to be worse than the best."""
    if baseline not in wide.columns:
        return []
    compared = compare(wide, [(cell, baseline) for cell in wide.columns if cell != baseline])
    shown = compared[compared["p_holm"] < ALPHA]
    found = []
    for (cell, _), difference in shown["difference"].items():
        worse = baseline if (difference > 0) == larger else cell
        if best in (cell, baseline) and worse != best:
            found.append(worse)
    return found


def compare_with(wide: pd.DataFrame, best: str) -> pd.DataFrame:
    """Every other cell against one, by the residual variance that all cells share.

    Seeds are blocks: value = cell + seed + residual, fitted by least squares to cells of at least two seeds
    (randomised complete blocks where no run is missing). With few seeds the many cells give the variance the degrees of
    freedom that a paired test of two of them lacks; in return cells are taken to scatter alike. Index: cell. Columns:
    difference; p of the t test; p_holm over all of them. Empty where nothing varies.
    """
    kept = wide.loc[:, wide.notna().sum() >= 2]
    long = kept.stack().dropna()
    empty = pd.DataFrame(columns=["difference", "p", "p_holm"], dtype=float)
    if best not in kept or len(kept.columns) < 2:
        return empty
    cells = pd.get_dummies(long.index.get_level_values(1)).astype(float)
    seeds = pd.get_dummies(long.index.get_level_values(0)).astype(float).iloc[:, 1:]
    design = np.column_stack([cells, seeds])
    effects, _, rank, _ = np.linalg.lstsq(design, long.to_numpy(), rcond=None)
    freedom = len(long) - rank
    residuals = long.to_numpy() - design @ effects
    if freedom < 1 or np.abs(residuals).max() <= SAME:
        return empty
    variance = residuals @ residuals / freedom
    covariance = variance * np.linalg.pinv(design.T @ design)
    names, reference = list(cells.columns), list(cells.columns).index(best)
    rows = {}
    for place, name in enumerate(names):
        if name != best:
            contrast = np.zeros(design.shape[1])
            contrast[place], contrast[reference] = 1, -1
            difference = contrast @ effects
            t = difference / np.sqrt(contrast @ covariance @ contrast)
            rows[name] = {"difference": difference, "p": 2 * stats.t.sf(abs(t), freedom)}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    return frame.assign(p_holm=holm(frame["p"]))


# Against published numbers


def equivalence(
    runs: pd.DataFrame, published: pd.Series, margin: float, by: str = "tasks", metric: str = "test_accuracy"
) -> pd.DataFrame:
    """Each cell's mean against its published number, as `equivalent`. Raises as it does, and SeveralRuns."""
    return equivalent(by_seed(runs, by, metric), published, margin)


def equivalent(wide: pd.DataFrame, published: pd.Series, margin: float, judged: int = 1) -> pd.DataFrame:
    """Whether means agree with published numbers, which come without seeds or spread.

    published: by cell, in the metric's unit. margin, above 0, in that unit: a deviation that does not matter. judged:
    how many numbers a single verdict rests on; above and below are then tested at 5 % over that number (Bonferroni).
    One row an entry of `published`: mean, std, n, low and high as `describe`; published; p_equivalence, the larger p of
    two one-sided t tests (TOST) against published - margin and published + margin; verdict:

    reproduced    equivalent within the margin at 5 %, even where the interval leaves the published number out
    above, below  the interval lies beyond published + margin, or published - margin: off by more than does not matter
    within noise  neither is shown
    undecided     fewer than two seeds, or seeds without any spread

    So more seeds lead to one of the first three, whatever the true deviation is, and a verdict that they gave is not
    turned into its opposite. The published number is taken as exact. Schuirmann, J. Pharmacokinet. Biopharm. 15 (1987).
    Raises ValueError for a margin that is not above 0.
    """
    if not margin > 0:
        raise ValueError(f"the margin of an equivalence test must be above 0, not {margin!r}")
    table = describe(wide.reindex(columns=published.index)).assign(published=published.astype(float))
    table["p_equivalence"] = [
        _tost(wide[cell].dropna(), target, margin) if cell in wide.columns else np.nan
        for cell, target in table["published"].items()
    ]
    values = [wide[cell].dropna() if cell in wide.columns else pd.Series(dtype=float) for cell in table.index]
    table["verdict"] = [
        _verdict(of, row["published"], margin, row["p_equivalence"], ALPHA / judged)
        for of, row in zip(values, table.to_dict("records"))
    ]
    return table


def _tost(values: pd.Series, target: float, margin: float) -> float:
    if not _has_spread(values):
        return np.nan
    not_below = stats.ttest_1samp(values, target - margin, alternative="greater").pvalue
    not_above = stats.ttest_1samp(values, target + margin, alternative="less").pvalue
    return max(not_below, not_above)


def _verdict(values: pd.Series, target: float, margin: float, p_equivalence: float, alpha: float) -> str:
    if np.isnan(p_equivalence):
        return UNDECIDED
    if p_equivalence < ALPHA:
        return REPRODUCED
    low, high = stats.ttest_1samp(values, target).confidence_interval(1 - alpha)
    if low > target + margin:
        return ABOVE
    return BELOW if high < target - margin else WITHIN_NOISE


# How many seeds


def seeds_needed(
    runs: pd.DataFrame,
    baseline: str,
    difference: float | None = None,
    by: str = "tasks",
    metric: str = "test_accuracy",
) -> pd.DataFrame:
    """How many seeds each cell's comparison with `baseline` needs to be decided with a power of 80 %.

    difference: the smallest that matters, in the metric's unit; None for the observed one, which answers "if what we
    saw is what there is". One row a cell: difference (the one to be found), std of the observed differences, n, the
    common seeds so far; seeds (in all, not in addition; null where it cannot be said) and note, why not. The 5 % are
    shared by all comparisons as in Holm's first step, its strictest, so that none needs more.

    Raises ValueError for an unknown baseline or a difference of 0; SeveralRuns.
    """
    if difference == 0:
        raise ValueError("no number of seeds finds a difference of 0")
    table = paired(runs, baseline, by, metric)[["difference", "std", "n", "p"]]
    alpha = ALPHA / max(1, int(table.pop("p").notna().sum()))
    if difference is not None:
        table["difference"] = float(difference)
    seeds, notes = [], []
    for row in table.to_dict("records"):
        needed, note = pd.NA, ""
        if row["n"] < 2:
            note = "fewer than 2 common seeds"
        elif row["std"] <= SAME:
            note = "the same difference for every seed"
        else:
            found = seeds_for_power(row["difference"], row["std"], alpha)
            needed, note = (pd.NA, f"more than {MOST_SEEDS}") if found is None else (found, "")
        seeds.append(needed)
        notes.append(note)
    return table.assign(seeds=pd.array(seeds, dtype="Int64"), note=notes)


def seeds_to_find(compared: pd.DataFrame) -> dict[tuple[str, str], str]:
    """`seeds_needed` for the rows of `compare`, as text: a number, or why there is none."""
    alpha = ALPHA / max(1, int(compared["p"].notna().sum()))
    result = {}
    for pair, row in compared.iterrows():
        if row["n"] < 2:
            result[pair] = "2 or more"
        elif row["std"] <= SAME or abs(row["difference"]) <= SAME:
            result[pair] = "–"
        else:
            found = seeds_for_power(row["difference"], row["std"], alpha)
            result[pair] = str(found) if found else f">{MOST_SEEDS}"
    return result


def seeds_for_power(difference: float, std: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """The least number of seeds, at least 2, with which a paired t test finds a difference with this power.

    difference and std (above 0) of the differences in one unit; alpha and power in (0, 1). None beyond MOST_SEEDS. A
    one-sided test at 5 % is, but for the wrong tail, a two-sided one at 10 %.
    """
    return _least(lambda seeds: paired_power(difference, std, seeds, alpha), power)


def seeds_for_equivalence(off: float, std: float, margin: float, judged: int = 1, power: float = POWER) -> int | None:
    """The least number of seeds with which `equivalent` says reproduced, or above or below, with this power.

    off: the true deviation from the published number; the rest as `equivalent` and `seeds_for_power`. None for a
    deviation as large as the margin, of which neither can be shown, and beyond MOST_SEEDS.
    """
    if abs(abs(off) - margin) <= SAME:
        return None
    if abs(off) > margin:
        return seeds_for_power(abs(off) - margin, std, ALPHA / judged, power)

    def both(seeds: float) -> float:
        # The two one-sided tests fail together only where the margin is far too narrow for so few seeds.
        return sum(paired_power(bound, std, seeds, 2 * ALPHA) for bound in (margin - off, margin + off)) - 1

    return _least(both, power)


def _least(power_of: Callable[[float], float], power: float) -> int | None:
    def lacking(seeds: float) -> float:
        return power_of(seeds) - power

    if lacking(2) >= 0:
        return 2
    if lacking(MOST_SEEDS) < 0:
        return None
    # The root is found to far less than one seed; an n that is exactly enough must not be rounded up.
    return int(np.ceil(optimize.brentq(lacking, 2, MOST_SEEDS) - 1e-6))


def paired_power(difference: float, std: float, seeds: float, alpha: float = ALPHA) -> float:
    """The chance in [0, 1] that a two-sided paired t test at `alpha` finds a true difference.

    Under it the square of t is noncentral F with 1 and seeds - 1 degrees of freedom. (The noncentral t distribution
    says the same, but scipy 1.17 gives NaN for its far tail.)
    """
    critical = stats.f.isf(alpha, 1, seeds - 1)
    return float(stats.ncf.sf(critical, 1, seeds - 1, seeds * (difference / std) ** 2))
