"""The error model of a study's cells, against textbook formulas, nested models and distributions of its own."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.stats import blocks

# Three cells, four seeds.
BALANCED = pd.DataFrame({"a": [91.0, 92.0, 90.0, 91.0], "b": [90.0, 90.5, 91.0, 88.5], "c": [86.0, 87.5, 87.5, 87.0]})
MISSING = pd.DataFrame(
    {"a": [91.0, 92.0, None, 91.0], "b": [90.0, 90.5, 91.0, None], "c": [86.0, None, 87.5, 87.0]}, dtype=float
)


def pairs(cells: list) -> pd.DataFrame:
    return pd.DataFrame(
        {f"{one}-{other}": {one: 1.0, other: -1.0} for one, other in combinations(cells, 2)}, index=cells
    ).fillna(0.0)


def test_the_shared_error_is_that_of_randomised_blocks():
    found = blocks.contrasts(BALANCED, pairs(list("abc")))
    values = BALANCED.to_numpy()
    residuals = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    variance = (residuals**2).sum() / ((3 - 1) * (4 - 1))
    assert found["estimate"].to_dict() == pytest.approx({"a-b": 1.0, "a-c": 4.0, "b-c": 3.0})
    assert found["error"].tolist() == pytest.approx([np.sqrt(2 * variance / 4)] * 3)
    assert found["freedom"].tolist() == pytest.approx([6.0] * 3)


def test_with_missing_runs_the_shared_test_is_that_of_nested_models():
    # Against the model in which the two cells are one: F, with one degree of freedom, is the square of t.
    long = MISSING.stack().dropna()

    def squares(cells: list[str]) -> float:
        design = np.column_stack(
            [
                *(np.array([cell == name for cell in cells], dtype=float) for name in sorted(set(cells))),
                *(long.index.get_level_values(0) == seed for seed in (1, 2, 3)),
            ]
        )
        return np.linalg.lstsq(design, long.to_numpy(), rcond=None)[1][0]

    names = list(long.index.get_level_values(1))
    full, freedom = squares(names), 9 - 3 - 3
    found = blocks.contrasts(MISSING, pairs(list("abc")))
    for one, other in combinations("abc", 2):
        joined = squares([one if name == other else name for name in names])
        row = found.loc[f"{one}-{other}"]
        assert (row["estimate"] / row["error"]) ** 2 == pytest.approx((joined - full) / (full / freedom))
        assert row["freedom"] == pytest.approx(freedom)


def test_of_two_cells_both_tests_are_the_paired_t_test():
    two = BALANCED[["a", "b"]]
    row = blocks.contrasts(two, pairs(["a", "b"])).iloc[0]
    expected = stats.ttest_rel(two["a"], two["b"])
    assert row["p"] == pytest.approx(expected.pvalue)
    assert row[["low", "high"]].tolist() == pytest.approx(list(expected.confidence_interval(0.95)))
    assert row["error"] == pytest.approx(row["own_error"])
    assert [row["freedom"], row["own_freedom"]] == pytest.approx([3.0, 3.0])


def test_of_many_cells_the_own_test_is_welchs():
    # Without seed effects the blocks of 200 cells take next to nothing out of a cell's own variance.
    generator = np.random.default_rng(0)
    values = generator.normal(0, 1, (6, 200))
    values[:, 0] *= 3
    wide = pd.DataFrame(values - values[:, 2:].mean(axis=1, keepdims=True))
    row = blocks.contrasts(wide, pd.DataFrame({"d": {0: 1.0, 1: -1.0}}), family=False).iloc[0]
    welch = stats.ttest_ind(wide[0], wide[1], equal_var=False)
    assert abs(row["estimate"]) / row["own_error"] == pytest.approx(abs(welch.statistic), rel=0.02)
    assert row["own_freedom"] == pytest.approx(welch.df, rel=0.03)


def test_the_interval_is_the_wider_of_the_two():
    row = blocks.contrasts(BALANCED, pairs(list("abc"))).loc["a-c"]
    half = [
        row[name] * stats.t.ppf(0.975, row[of]) for name, of in (("error", "freedom"), ("own_error", "own_freedom"))
    ]
    assert row["high"] - row["estimate"] == pytest.approx(max(half))
    assert row["p"] == pytest.approx(
        max(2 * stats.t.sf(row["estimate"] / row[name], row[of])
            for name, of in (("error", "freedom"), ("own_error", "own_freedom")))
    )  # fmt: skip


@pytest.mark.parametrize(("cells", "seeds"), [(8, 10), (16, 10), (16, 20)])
def test_the_critical_value_of_a_family_of_pairs_is_tukeys_where_the_own_test_lets_pass(cells, seeds):
    # A t just above and just below the critical value of the studentised range, as printed in tables / sqrt(2).
    critical = stats.studentized_range.isf(0.05, cells, (cells - 1) * (seeds - 1)) / np.sqrt(2)
    generator = np.random.default_rng(3)
    values = generator.normal(0, 1, (seeds, cells))
    values -= values.mean(axis=0)
    # Cell 0 is moved until its difference to the others has the t that is wanted; all others are equal.
    first = blocks.contrasts(pd.DataFrame(values), pairs(list(range(cells)))).iloc[0]
    for factor, found in ((1.04, True), (0.96, False)):
        moved = values + np.where(np.arange(cells) == 0, factor * critical * first["error"], 0.0)
        p = blocks.contrasts(pd.DataFrame(moved), pairs(list(range(cells))))["p_family"]
        assert (p.min() < 0.05) == found


def test_a_contrast_that_rests_on_a_cell_without_runs_is_unknown_and_the_others_are_not():
    wide = BALANCED.assign(d=np.nan)
    found = blocks.contrasts(wide, pairs(list("abcd")))
    assert found.loc["a-d"].drop("n").isna().all()
    assert found.loc["a-d", "n"] == 0
    pd.testing.assert_series_equal(
        found.loc["a-b"].drop("p_family"), blocks.contrasts(BALANCED, pairs(list("abc"))).loc["a-b"].drop("p_family")
    )


def test_a_run_that_one_seed_lacks_costs_little():
    full = blocks.contrasts(BALANCED, pairs(list("abc")))
    lacking = BALANCED.copy()
    lacking.loc[3, "c"] = np.nan
    found = blocks.contrasts(lacking, pairs(list("abc")))
    assert found["estimate"].to_dict() == pytest.approx(full["estimate"].to_dict(), abs=0.5)
    assert found["n"].tolist() == [4, 3, 3]
    assert found.loc["a-b", "estimate"] == pytest.approx(1.0)  # both have all seeds


def test_many_worlds_at_once_get_what_each_gets_alone():
    worlds = np.random.default_rng(5).normal(0, 1, (3, 4, 6))
    weights = pairs(list(range(6)))
    together = blocks.of_many(worlds, weights.to_numpy())
    for number, world in enumerate(worlds):
        alone = blocks.contrasts(pd.DataFrame(world), weights)
        for name, values in together.items():
            assert values[number] == pytest.approx(alone[name].to_numpy()), name


def test_values_without_any_spread_and_single_seeds_give_estimates_only():
    for wide in (pd.DataFrame({"a": [100.0] * 3, "b": [99.0] * 3}), BALANCED.head(1)):
        found = blocks.contrasts(wide, pairs(["a", "b"]))
        assert found["estimate"].tolist() == [1.0]
        assert found[["low", "high", "p", "p_family"]].isna().all(axis=None)


# Shares


def test_a_share_has_fiellers_interval():
    # Independent parts would have the textbook form; here, against a bootstrap of the fitted model's normal errors.
    generator = np.random.default_rng(2)
    wide = pd.DataFrame(generator.normal(0, 0.3, (8, 3)) + np.array([1.0, 4.0, 0.0]), columns=list("abc"))
    part, whole = pd.Series({"a": 1.0, "b": 0.0, "c": -1.0}), pd.Series({"a": 0.0, "b": 1.0, "c": -1.0})
    value, low, high = blocks.share(wide, part, whole)
    found = blocks.contrasts(wide, pd.DataFrame({"part": part, "whole": whole}))
    means, error = found["estimate"], found["error"].iloc[0]
    # a - c and b - c share c: correlation 1/2.
    covariance = error**2 * np.array([[1.0, 0.5], [0.5, 1.0]])
    scale = np.sqrt(14 / generator.chisquare(14, 100_000))[:, None]
    drawn = means.to_numpy() + scale * generator.multivariate_normal([0, 0], covariance, 100_000)
    assert value == pytest.approx(means["part"] / means["whole"])
    assert [low, high] == pytest.approx(np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975]), abs=0.005)


def test_a_share_of_what_may_be_nothing_is_not_told():
    generator = np.random.default_rng(3)
    wide = pd.DataFrame(generator.normal(0, 0.3, (5, 3)), columns=list("abc"))
    found = blocks.share(wide, pd.Series({"a": 1.0, "b": -1.0, "c": 0.0}), pd.Series({"a": 0.0, "b": 1.0, "c": -1.0}))
    assert np.isnan(found).all()


# Means


def test_means_are_corrected_for_the_seeds_that_a_cell_lacks():
    # Seed 1 is 2 points above seed 0: of seed 1 alone, 85 is what 84 would be as the mean of both.
    means = blocks.cell_means(pd.DataFrame({"a": [80.0, 82.0], "b": [np.nan, 85.0]}))
    assert means.to_dict() == pytest.approx({"a": 81.0, "b": 84.0})


def test_cells_that_share_no_seed_keep_their_own_means():
    means = blocks.cell_means(pd.DataFrame({"a": [80.0, np.nan], "b": [np.nan, 85.0]}))
    assert means.to_dict() == {"a": 80.0, "b": 85.0}
