"""Several data sets as one number, after Agarwal et al. (NeurIPS 2021, "Deep RL at the Edge of the Statistical
Precipice"): interquartile mean, probability of improvement, and intervals by a stratified bootstrap.

Scores are a list of arrays, one a data set, with one number a seed. Their library, rliable 1.2, does not run with the
arch and numpy of today, so its formulas are written out here.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from analysis.stats.blocks import ALPHA

Scores = Sequence[np.ndarray]  # of each data set [..., seeds], leading dimensions being resamples
RESAMPLES = 2_000


def interquartile_mean(scores: Scores) -> np.ndarray:
    """The mean of all scores but the lowest and the highest quarter, data sets and seeds together."""
    return stats.trim_mean(np.concatenate(scores, axis=-1), 0.25, axis=-1)


def probability_of_improvement(scores: Scores, rival: Scores) -> np.ndarray:
    """How often a run beats a rival's on the same data set, ties counting half: the mean over data sets, in [0, 1]."""
    wins = [(one[..., :, None] > other[..., None, :]) + 0.5 * (one[..., :, None] == other[..., None, :])
            for one, other in zip(scores, rival, strict=True)]  # fmt: skip
    return np.mean([each.mean((-2, -1)) for each in wins], axis=0)


def bootstrap(statistic: Callable[..., np.ndarray], *groups: Scores) -> tuple[float, float, float]:
    """The statistic of some groups of scores, and its 95 % percentile interval: seeds are drawn anew with replacement
    within each data set (stratified). The interval is null where no data set has two seeds."""
    value = float(statistic(*groups))
    if max(len(scores) for group in groups for scores in group) < 2:
        return value, np.nan, np.nan
    generator = np.random.default_rng(0)
    drawn = [
        [scores[generator.integers(len(scores), size=(RESAMPLES, len(scores)))] for scores in group] for group in groups
    ]
    low, high = np.quantile(statistic(*drawn), [ALPHA / 2, 1 - ALPHA / 2])
    return value, float(low), float(high)
