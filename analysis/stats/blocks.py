"""One error model for the cells of a study, and every comparison by it: value = cell + seed + residual.

Seeds are blocks: cells that share a seed share some of its draw of weights, order and split, and that part cancels.
Cells and seeds are fitted by least squares, so a missing run costs its own information and nothing else.

A contrast is a weighted sum of cells whose weights add up to 0, a difference of two cells for instance. Two t tests
judge it, and it counts where both do:

shared  by the residual variance of all cells together, which even two seeds of many cells know well. Cells that scatter
        beyond doubt more than the others (F test at 0.1 %, Bonferroni) are left out of it, so that one unstable cell
        does not hide what the stable ones show.
own     by the residual variance of the very cells of the contrast (Welch and Satterthwaite), so that an unstable cell
        is not called different because the others are stable. A cell of one seed has none; it borrows the shared one.

Several contrasts are a family: of the largest of their shared t, among those that the own test lets pass, the
distribution under equal cells is simulated for the very runs that there are. That is Tukey's studentised range where
no run is missing and the own test lets everything pass; it keeps the family's error at 5 % for missing runs, and for
cells that the data have ranked, too. The level of the own test is the largest of `_OWN_LEVELS` with which the family
also keeps 5.5 % where one cell scatters ten times as much as the others.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
SAME = 1e-9  # differences below this are floating point, not measurement

_OWN_LEVELS = (0.05, 0.03, 0.02, 0.015, 0.01, 0.007, 0.005)
_UNSTABLE, _UNSTABLE_ALPHA = 10.0, 0.055  # times the spread of the others; chance of a wrong word then
_OUTLYING = 0.001  # chance of leaving a cell out of the shared variance without a reason
_MOST_OUTLIERS = 3
_DRAWS = 20_000
_MOST_NUMBERS = 10_000_000  # draws x contrasts: fewer draws where there are very many contrasts

COLUMNS = ["estimate", "std", "n", "low", "high", "p", "p_family", "error", "freedom", "own_error", "own_freedom"]


def contrasts(wide: pd.DataFrame, weights: pd.DataFrame, family: bool = True) -> pd.DataFrame:
    """Contrasts of cells, in the unit of `wide`, as one family; without `family` p_family is p.

    wide: one row a seed, one column a cell, null where there is no finished run. weights: one row a cell, one column a
    contrast. One row a contrast, with the columns estimate; std, of the contrast in one seed; n, the seeds of the cell
    that has fewest of those with a weight; low and high, the 95 % interval; p; p_family, corrected for the family; and
    what both tests rest on, standard errors of the estimate with their degrees of freedom. Null is what the runs cannot
    tell: the estimate where cells have no run, the rest where nothing varies or no cell has two seeds.
    """
    weights = weights.reindex(wide.columns.union(weights.index, sort=False), fill_value=0.0).astype(float)
    wide = wide.reindex(columns=weights.index)
    counts, used = wide.notna().sum().to_numpy(), weights.to_numpy() != 0
    n = np.where(used.any(axis=0), np.where(used, counts[:, None], counts.max(initial=0)).min(axis=0, initial=10**9), 0)
    table = pd.DataFrame(np.nan, index=weights.columns, columns=COLUMNS).assign(n=n.astype(int))
    has_run = counts > 0
    if not has_run.any() or not len(weights.columns):
        return table
    present = wide.loc[wide.notna().any(axis=1), has_run].to_numpy(dtype=float)
    blocks = _blocks(~np.isnan(present), weights[has_run].to_numpy())
    known = blocks.estimable & ~used[~has_run].any(axis=0)
    judged = _judged(blocks, present[~np.isnan(present)][None], known, family)
    for name, values in judged.items():
        table[name] = np.where(known, values[0], np.nan)
    table["std"] = np.fmax(table["error"], table["own_error"]) * np.sqrt(n)
    return table


def of_many(worlds: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """The same for many worlds without missing runs: worlds R x seeds x cells, weights cells x P, results R x P by the
    names of `contrasts`' columns."""
    blocks = _blocks(np.ones(worlds.shape[1:], dtype=bool), np.ascontiguousarray(weights, dtype=float))
    return _judged(blocks, worlds.reshape(len(worlds), -1), blocks.estimable, True)


def _judged(blocks: "_Blocks", values: np.ndarray, known: np.ndarray, family: bool) -> dict[str, np.ndarray]:
    tests = _Tests(blocks, values)
    varies = ((tests.freedom > 0) & (tests.largest > SAME))[:, None]
    freedom = np.where(varies, tests.freedom[:, None], np.nan)
    own_freedom = np.where(varies, tests.own_freedom, np.nan)
    own_p = 2 * stats.t.sf(tests.own_t, own_freedom)
    p = np.fmax(2 * stats.t.sf(tests.t, freedom), own_p)
    half = np.fmax(tests.error * stats.t.isf(ALPHA / 2, freedom), tests.own_error * stats.t.isf(ALPHA / 2, own_freedom))
    corrected = p
    if family and known.sum() > 1 and varies.any():
        level, largest = _simulated(*_key(blocks.present, blocks.contrasts[:, known]))
        beyond = 1 - np.searchsorted(largest, tests.t) / len(largest)
        corrected = np.where(np.isnan(p), p, np.minimum(np.fmax(np.fmax(beyond, own_p * ALPHA / level), p), 1.0))
    return {
        "estimate": tests.estimate,
        "low": tests.estimate - half,
        "high": tests.estimate + half,
        "p": p,
        "p_family": corrected,
        "error": np.where(varies, tests.error, np.nan),
        "freedom": np.broadcast_to(freedom, tests.error.shape),
        "own_error": np.where(varies, tests.own_error, np.nan),
        "own_freedom": own_freedom,
    }


def share(wide: pd.DataFrame, part: pd.Series, whole: pd.Series) -> tuple[float, float, float]:
    """What share of one contrast another is, with its 95 % interval; nulls where the whole may be 0.

    part, whole: weights by cell. The interval is Fieller's (J. R. Statist. Soc. B 16, 1954), by the shared variance.
    """
    both = contrasts(wide, pd.DataFrame({"part": part, "whole": whole, "sum": part + whole}), family=False)
    if not (both.loc["whole", "p"] < ALPHA and both["estimate"].notna().all()):
        return np.nan, np.nan, np.nan
    (a, b, _), (part_variance, variance, of_sum) = both["estimate"], both["error"] ** 2
    covariance, t = (of_sum - part_variance - variance) / 2, stats.t.isf(ALPHA / 2, both["freedom"].iloc[0])
    # a - share * b differs from 0 by less than t standard errors, between the roots of a quadratic.
    roots = np.roots([b**2 - t**2 * variance, -2 * (a * b - t**2 * covariance), a**2 - t**2 * part_variance])
    return a / b, float(min(roots.real)), float(max(roots.real))


def cell_means(wide: pd.DataFrame) -> pd.Series:
    """The mean of each cell, corrected for what the seeds that it lacks would have added; the plain mean where cells
    share too few seeds for that."""
    has_run = wide.notna().any()
    means = wide.mean()
    if has_run.sum() > 1:
        reference = means[has_run].index[int(wide.notna().sum()[has_run].argmax())]
        others = [cell for cell in wide.columns[has_run] if cell != reference]
        present = wide.loc[wide.notna().any(axis=1), has_run]
        weights = np.array([[float(cell == other) - (cell == reference) for other in others] for cell in present])
        blocks = _blocks(present.notna().to_numpy(), weights)
        if blocks.estimable.all():
            filled = present.to_numpy(dtype=float)[present.notna().to_numpy()]
            means[others] = means[reference] + filled @ blocks.weights.T
    return means


class _Tests:
    """Of R sets of values and P contrasts: estimate, t and own_t (absolute), error and own_error (R x P); freedom of
    the shared variance (R), own_freedom (R x P); largest residual (R)."""

    def __init__(self, blocks: "_Blocks", values: np.ndarray):
        residuals = values - values @ blocks.hat
        self.largest = np.abs(residuals).max(axis=1, initial=0.0)
        squares = residuals**2 @ blocks.members
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = squares / blocks.freedom
            kept = blocks.kept(squares, variance)
            self.freedom = kept @ blocks.freedom
            shared = (squares * kept).sum(axis=1) / self.freedom
            variance = np.where(blocks.freedom > SAME, variance, shared[:, None])
            self.estimate = np.round(values @ blocks.weights.T, 10) + 0.0  # no -0, no dust of the matrix inversion
            self.error = np.sqrt(shared[:, None] * blocks.factor)
            self.own_error = np.sqrt(variance @ blocks.factors.T)
            each = np.where(blocks.freedom > SAME, blocks.own_freedom, np.maximum(self.freedom, 1)[:, None])
            self.own_freedom = self.own_error**4 / (variance**2 / each @ (blocks.factors**2).T) / blocks.related
            self.own_freedom = np.where(np.isfinite(self.own_freedom), self.own_freedom, 1.0)
            self.t = np.abs(self.estimate) / self.error
            self.own_t = np.abs(self.estimate) / self.own_error


class _Blocks:
    """The least-squares fit of cells and seeds to the runs that there are.

    present: bool, seeds x cells. contrasts: cells x P. Values come as R x N, N being the runs row by row.
    """

    def __init__(self, present: np.ndarray, contrasts: np.ndarray):
        self.present, self.contrasts = present, contrasts
        seed, cell = np.nonzero(present)
        self.members = np.eye(present.shape[1])[cell]  # N x cells
        design = np.hstack([self.members, np.eye(present.shape[0])[seed][:, 1:]])
        inverse = np.linalg.pinv(design)
        self.hat = design @ inverse
        # Residuals r = M e have the sum of squares of a cell c in tr(M_cc) degrees of freedom. As an estimate of its
        # variance that sum is worth tr(M_cc)^2 / tr(M_cc M_cc); two cells' are related by tr(M_cd M_dc).
        spare = np.eye(len(self.hat)) - self.hat
        self.freedom = self.members.T @ np.diag(spare)
        self.freedom[self.freedom < 1e-6] = 0.0
        squared = self.members.T @ spare**2 @ self.members
        with np.errstate(divide="ignore", invalid="ignore"):
            relation = np.nan_to_num(squared / np.outer(self.freedom, self.freedom), posinf=0.0)
            self.own_freedom = 1 / np.diag(relation)
        self.weights = contrasts.T @ inverse[: present.shape[1]]  # P x N
        wanted = np.hstack([contrasts.T, np.zeros((contrasts.shape[1], present.shape[0] - 1))])
        self.estimable = np.isclose(self.weights @ design, wanted, atol=1e-6).all(axis=1)
        self.factors = self.weights**2 @ self.members  # P x cells
        self.factor = self.factors.sum(axis=1)
        # Satterthwaite's sum takes variances as independent; of two cells alone both come from the same differences.
        apart = self.factors**2 @ np.diag(relation)
        together = np.einsum("pc,cd,pd->p", self.factors, relation, self.factors)
        self.related = np.where(apart > 0, together / np.where(apart > 0, apart, 1.0), 1.0)
        others = self.freedom.sum() - self.freedom
        able = (self.freedom > 0) & (others > 1)
        self.limit = np.full(len(self.freedom), np.inf)
        self.limit[able] = stats.f.isf(_OUTLYING / able.sum(), self.freedom[able], others[able]) if able.any() else 0

    def kept(self, squares: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """R x cells: 1.0 for the cells that the shared variance is of."""
        kept, rows = np.ones_like(squares), np.arange(len(squares))
        for _ in range(min(_MOST_OUTLIERS, squares.shape[1] // 4)):
            inside, freedom = (squares * kept).sum(axis=1, keepdims=True), (kept @ self.freedom)[:, None]
            ratio = variance * (freedom - self.freedom) / (inside - squares)
            ratio = np.where((kept > 0) & np.isfinite(ratio), ratio / self.limit, 0.0)
            worst = ratio.argmax(axis=1)
            kept[rows, worst] *= ratio[rows, worst] <= 1
        return kept

    def draws(self, unstable: bool) -> Iterator[_Tests]:
        """Equal cells; with `unstable` one of those with two seeds, another in each draw, scatters more."""
        generator = np.random.default_rng(int(unstable))
        total = int(np.clip(_MOST_NUMBERS / self.contrasts.shape[1], 2_000, _DRAWS))
        several = np.flatnonzero(self.present.sum(axis=0) > 1)
        for start in range(0, total, 2_000):
            values = generator.normal(size=(min(2_000, total - start), len(self.members)))
            if unstable:
                chosen = generator.choice(several, len(values))
                values *= 1 + (_UNSTABLE - 1) * self.members.T[chosen]
            yield _Tests(self, values)


def _key(present: np.ndarray, contrasts: np.ndarray) -> tuple[bytes, tuple[int, ...], bytes, tuple[int, ...]]:
    return present.tobytes(), present.shape, contrasts.tobytes(), contrasts.shape


def _blocks(present: np.ndarray, contrasts: np.ndarray) -> _Blocks:
    return _of_key(*_key(present, contrasts))


@lru_cache(maxsize=64)
def _of_key(runs: bytes, seeds_by_cells: tuple, weights: bytes, cells_by_contrasts: tuple) -> _Blocks:
    present = np.frombuffer(runs, dtype=bool).reshape(seeds_by_cells)
    return _Blocks(present, np.frombuffer(weights).reshape(cells_by_contrasts))


@lru_cache(maxsize=64)
def _simulated(*key) -> tuple[float, np.ndarray]:
    """The level of the own test, and the largest shared t of each simulated family of equal cells, sorted: only the
    runs that there are and the contrasts decide them."""
    blocks = _of_key(*key)
    equal, unstable = list(blocks.draws(False)), list(blocks.draws(True))
    for level in _OWN_LEVELS:
        largest = np.sort(np.concatenate([_largest(tests, level) for tests in equal]))
        critical = largest[int(np.ceil(CONFIDENCE * len(largest))) - 1]
        wrong = np.concatenate([_largest(tests, level) > critical for tests in unstable]).mean()
        if wrong <= _UNSTABLE_ALPHA:
            break
    return level, largest


def _largest(tests: _Tests, level: float) -> np.ndarray:
    """The largest shared t of each draw among the contrasts that the own test passes at this level; 0 without one."""
    low, step = tests.own_freedom.min(), max(np.ptp(tests.own_freedom), SAME) / 500
    critical = stats.t.isf(level / 2, low + step * np.arange(501))
    passed = tests.own_t > critical[((tests.own_freedom - low) / step).astype(np.int32)]
    return np.where(passed, tests.t, 0.0).max(axis=1)
