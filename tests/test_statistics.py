"""Statistics over seeds, against values worked out by hand, textbook values, a bootstrap and simulations."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.stats import seeds as statistics
from analysis.stats.seeds import SeveralRuns


def made(values: dict[str, list[float | None]], status: str = "FINISHED") -> pd.DataFrame:
    """Runs of cells, one for each value, with seeds 0, 1, ...; None: the run failed. Typed as gather types them."""
    rows = [
        {"tasks": tasks, "seed": seed, "status": status if value is not None else "FAILED", "test_accuracy": value}
        for tasks, accuracies in values.items()
        for seed, value in enumerate(accuracies)
    ]
    frame = pd.DataFrame(rows, columns=["tasks", "seed", "status", "test_accuracy"])
    return frame.astype({"tasks": "string", "seed": "Int64", "status": "string", "test_accuracy": "Float64"})


# Student's sleep data (Biometrika 1908), R's `sleep`: R gives t = -4.0621, df = 9, p = 0.002833 for the paired test,
# mean difference 1.58 and interval [0.7001142, 2.4598858].
SLEEP = {
    "none": [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    "sprel": [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
}


# Summary


def test_mean_deviation_and_interval_by_hand():
    table = statistics.summary(made({"dist": [90.0, 92.0, 97.0]}))
    # Mean 93; squared deviations 9, 1, 16, so the variance is 26 / 2 = 13. t(0.975, 2) = 4.30265 from a printed table:
    # half the interval is 4.30265 x sqrt(13 / 3) = 8.9567.
    assert table.loc["dist", ["mean", "std", "n"]].tolist() == [93.0, pytest.approx(13**0.5), 3]
    assert table.loc["dist", ["low", "high"]].tolist() == pytest.approx([93 - 8.9567, 93 + 8.9567], abs=1e-3)


def test_interval_agrees_with_a_bootstrap():
    generator = np.random.default_rng(0)
    values = generator.normal(90.0, 1.0, 60)
    resampled = generator.choice(values, (20_000, 60)).mean(axis=1)
    table = statistics.summary(made({"dist": list(values)}))
    # Student's interval is wider than the bootstrap's by about 3 % at n = 60: 0.01 of 0.26 points.
    assert table.loc["dist", ["low", "high"]].tolist() == pytest.approx(
        np.quantile(resampled, [0.025, 0.975]), abs=0.02
    )


def test_one_seed_gives_its_number_and_no_interval():
    row = statistics.summary(made({"dist": [90.0]})).loc["dist"]
    assert (row["mean"], row["n"]) == (90.0, 1)
    assert row[["std", "low", "high"]].isna().all()


def test_seeds_that_all_agree_have_no_interval():
    row = statistics.summary(made({"dist": [90.0, 90.0, 90.0]})).loc["dist"]
    assert (row["mean"], row["std"], row["n"]) == (90.0, 0.0, 3)
    assert row[["low", "high"]].isna().all()


def test_only_finished_runs_count_and_a_cell_without_any_is_still_listed():
    runs = pd.concat([made({"dist": [90.0, None], "ang": [None]}), made({"sprel": [10.0]}, status="RUNNING")])
    table = statistics.summary(runs)
    assert table["n"].to_dict() == {"dist": 1, "ang": 0, "sprel": 0}
    assert table["mean"].dropna().to_dict() == {"dist": 90.0}


def test_two_finished_runs_of_one_cell_and_seed_are_refused_by_name():
    with pytest.raises(SeveralRuns, match="dist with seed 0"):
        statistics.summary(pd.concat([made({"dist": [90.0]}), made({"dist": [91.0]})]))


def test_any_column_can_tell_cells_apart_and_any_metric_be_compared():
    runs = made({"dist": [90.0, 92.0]}).assign(head=["low_rank", "bilinear"], test_loss=[1.0, 3.0])
    table = statistics.summary(runs, by="head", metric="test_loss")
    assert table["mean"].to_dict() == {"low_rank": 1.0, "bilinear": 3.0}


def test_no_runs_give_an_empty_summary_with_all_columns():
    table = statistics.summary(made({}))
    assert list(table.columns) == ["mean", "std", "n", "low", "high"]
    assert table.empty


# Holm


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04, times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; the last may not fall below 0.06.
    corrected = statistics.holm(pd.Series({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}))
    assert corrected.to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})


def test_holm_as_r_computes_it():
    # R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm")
    corrected = statistics.holm(pd.Series([0.01, 0.02, 0.03, 0.04, 0.05]))
    assert corrected.tolist() == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])


def test_holm_never_exceeds_one_and_leaves_out_what_was_not_tested():
    corrected = statistics.holm(pd.Series({"a": 0.6, "b": np.nan, "c": 0.7}))
    assert corrected[["a", "c"]].tolist() == [1.0, 1.0]
    assert np.isnan(corrected["b"])
    assert statistics.holm(pd.Series({"a": 0.02, "b": np.nan}))["a"] == 0.02


def test_holm_keeps_false_rejections_of_a_family_below_alpha():
    p = np.random.default_rng(1).uniform(size=(2000, 15))
    any_rejected = np.mean([(statistics.holm(pd.Series(row)) < 0.05).any() for row in p])
    # Independent nulls: 1 - (1 - 0.05 / 15)^15 = 0.0489, with a standard error of 0.005 here; uncorrected 0.54.
    assert any_rejected == pytest.approx(0.0489, abs=0.015)


# Paired differences


def test_students_sleep_data_give_what_r_gives():
    row = statistics.paired(made(SLEEP), "none").loc["sprel"]
    assert row["difference"] == pytest.approx(1.58)
    assert row[["low", "high"]].tolist() == pytest.approx([0.7001142, 2.4598858], abs=1e-6)
    assert row["p"] == pytest.approx(0.002833, abs=1e-6)
    assert row["n"] == 10


def test_only_common_seeds_are_compared():
    # Common seeds 0, 2, 3: differences 1, 2, 3; mean 2, deviation 1, t = 2 / (1 / sqrt(3)) = 3.4641.
    # With two degrees of freedom the distribution has a closed form: p = 1 - t / sqrt(t^2 + 2) = 0.0742.
    runs = made({"none": [80.0, 10.0, 80.0, 80.0, None], "dist": [81.0, None, 82.0, 83.0, 99.0]})
    row = statistics.paired(runs, "none").loc["dist"]
    assert row[["difference", "std", "n"]].tolist() == pytest.approx([2.0, 1.0, 3])
    assert row["p"] == pytest.approx(1 - 12**0.5 / 14**0.5)


def test_the_family_of_holm_is_all_tested_comparisons():
    runs = made({**SLEEP, "dist": SLEEP["sprel"], "ang": [1.0]})
    table = statistics.paired(runs, "none")
    # Two are tested, with equal p: the smaller is doubled, the other may not fall below it.
    assert table.loc[["sprel", "dist"], "p_holm"].tolist() == pytest.approx([2 * 0.002833] * 2, abs=1e-5)
    assert np.isnan(table.loc["ang", "p_holm"])


def test_one_common_seed_gives_a_difference_and_nothing_more():
    row = statistics.paired(made({"none": [80.0, 81.0], "dist": [83.0]}), "none").loc["dist"]
    assert (row["difference"], row["n"]) == (3.0, 1)
    assert row[["std", "low", "high", "p", "p_holm"]].isna().all()


def test_a_cell_without_common_seeds_has_n_of_zero():
    row = statistics.paired(made({"none": [80.0, None], "dist": [None, 83.0]}), "none").loc["dist"]
    assert row["n"] == 0
    assert row.drop("n").isna().all()


def test_the_same_difference_for_every_seed_is_no_proof():
    # 0.1 + 0.2 and the like: equal but for floating point, where t would be astronomical.
    runs = made({"none": [80.1, 81.3, 82.7], "dist": [80.4, 81.6, 83.0]})
    row = statistics.paired(runs, "none").loc["dist"]
    assert row["difference"] == pytest.approx(0.3)
    assert row[["low", "high", "p"]].isna().all()


def test_pairing_finds_what_a_comparison_of_means_does_not():
    generator = np.random.default_rng(2)
    seeds = generator.normal(80.0, 5.0, 8)
    runs = made({"none": list(seeds), "dist": list(seeds + 1 + generator.normal(0.0, 0.2, 8))})
    assert statistics.paired(runs, "none").loc["dist", "p"] < 0.001
    wide = statistics.by_seed(runs)
    assert stats.ttest_ind(wide["dist"], wide["none"]).pvalue > 0.5


def test_an_unknown_baseline_lists_the_cells_that_there_are():
    with pytest.raises(ValueError, match="'nine': one of none, sprel; did you mean 'none'"):
        statistics.paired(made(SLEEP), "nine")


# The group tied with the best


def test_cells_that_cannot_be_told_from_the_best_are_tied_with_it():
    runs = made(
        {
            "none": [80.0, 80.5, 79.8, 80.2],  # some 10 points below
            "dist": [90.0, 91.0, 89.0, 90.4],
            "sprel": [90.5, 90.5, 89.5, 90.3],  # differences to dist 0.5, -0.5, 0.5, -0.1: mean 0.1
        }
    )
    table = statistics.tied_with_best(runs)
    assert list(table.index[table["best"]]) == ["sprel"]
    assert list(table.index[table["tied"]]) == ["dist", "sprel"]
    assert table.loc["dist", "difference"] == pytest.approx(-0.1)
    assert table.loc["none", "p_holm"] < 0.001 < 0.5 < table.loc["dist", "p_holm"]
    assert set(table["note"]) == {""}


def test_two_cells_are_compared_as_by_a_paired_test():
    # Differences to the best 1, 2, 1, 2.4: mean 1.6, deviation 0.712; t = 4.495 with 3 degrees of freedom.
    table = statistics.tied_with_best(made({"best": [90.0] * 4, "a": [89.0, 88.0, 89.0, 87.6]}))
    assert table.loc["a", "p_holm"] == pytest.approx(0.0206, abs=5e-4)
    assert list(table.index[table["tied"]]) == ["best"]


def test_cells_are_compared_by_the_residual_variance_of_randomised_blocks():
    # Three cells, four seeds. Cell means 91, 90, 87; seed means 89, 90, 89.5, 88.83; the residuals' squares sum to Q.
    values = np.array([[91.0, 92.0, 90.0, 91.0], [90.0, 90.5, 91.0, 88.5], [86.0, 87.5, 87.5, 87.0]])
    table = statistics.compare_with(pd.DataFrame(values.T, columns=["a", "b", "c"]), "a")
    residuals = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    variance = (residuals**2).sum() / ((3 - 1) * (4 - 1))
    for place, cell in ((1, "b"), (2, "c")):
        difference = values[place].mean() - values[0].mean()
        t = difference / np.sqrt(2 * variance / 4)
        assert table.loc[cell, "difference"] == pytest.approx(difference)
        assert table.loc[cell, "p"] == pytest.approx(2 * stats.t.sf(abs(t), 6))
    assert table["p_holm"].tolist() == statistics.holm(table["p"]).tolist()


def test_with_missing_runs_the_comparison_is_that_of_nested_models():
    # Against the model in which the two cells are one: F, with one degree of freedom, is the square of t.
    wide = pd.DataFrame({"a": [91.0, 92.0, None, 91.0], "b": [90.0, 90.5, 91.0, None], "c": [86.0, None, 87.5, 87.0]})
    long = wide.stack().dropna()

    def squares(cells: list[str]) -> float:
        design = np.column_stack(
            [
                *(np.array([cell == name for cell in cells], dtype=float) for name in sorted(set(cells))),
                *(long.index.get_level_values(0) == seed for seed in (1, 2, 3)),
            ]
        )
        return np.linalg.lstsq(design, long.to_numpy(), rcond=None)[1][0]

    names = list(long.index.get_level_values(1))
    full = squares(names)
    freedom = 9 - 3 - 3
    for cell in ("b", "c"):
        joined = squares(["a" if name == cell else name for name in names])
        expected = stats.f.sf((joined - full) / (full / freedom), 1, freedom)
        assert statistics.compare_with(wide, "a").loc[cell, "p"] == pytest.approx(expected)


def test_a_baseline_far_below_is_not_tied_with_the_best_though_three_seeds_of_sixteen_cells_are_all_there_is():
    # A paired test of three seeds has two degrees of freedom: Holm over fifteen lets it reject nothing.
    generator = np.random.default_rng(0)
    cells = {f"c{number}": list(89.5 + 0.02 * number + generator.normal(0, 0.4, 3)) for number in range(15)}
    table = statistics.tied_with_best(made({"none": [84.4, 85.0, 85.3], **cells}))
    assert not table.loc["none", "tied"]
    assert table["tied"].sum() > 10


def test_a_cell_of_wild_seeds_does_not_tie_the_baseline_with_a_best_that_its_own_differences_show_to_be_better():
    # Differences 5, 5 and 5.06: mean 5.02, deviation 0.035, t = 251 with 2 degrees of freedom, p = 1.6e-5, twice that
    # after Holm over two. The residual variance of all three is that of the wild cell: some 30 points.
    cells = {"none": [85.0, 85.1, 84.9], "sprel": [90.0, 90.1, 89.96], "ang": [10.0, 90.0, 50.0]}
    by_variance = statistics.tied_with_best(made(cells))
    assert by_variance["tied"].all()
    table = statistics.tied_with_best(made(cells), baseline="none")
    assert list(table.index[table["tied"]]) == ["sprel", "ang"]
    errors = {cell: [100 - value for value in values] for cell, values in cells.items()}
    smaller = statistics.tied_with_best(made(errors), larger=False, baseline="none")
    assert list(smaller.index[smaller["tied"]]) == ["sprel", "ang"]
    # The baseline may be the best itself.
    reverse = {"none": cells["sprel"], "sprel": cells["none"], "ang": cells["ang"]}
    table = statistics.tied_with_best(made(reverse), baseline="none")
    assert list(table.index[table["tied"]]) == ["none", "ang"]
    assert statistics.tied_with_best(made(cells), baseline="dist")["tied"].all()  # one that is not there


def test_a_cell_that_no_test_told_from_the_best_stays_with_it():
    table = statistics.tied_with_best(made({"ang": [89.0, 89.3, 89.2], "dist": [85.0, 85.2, 85.3], "sprel": [89.4]}))
    assert list(table.index[table["best"]]) == ["ang"]  # of those with a spread
    assert list(table.index[table["tied"]]) == ["ang", "sprel"]
    assert table.loc["sprel", "note"] == "fewer than 2 seeds: not tested"


def test_with_one_seed_the_best_stands_alone_and_says_why():
    table = statistics.tied_with_best(made({"none": [80.0], "dist": [90.0], "ang": [89.99]}))
    assert list(table.index[table["tied"]]) == ["dist"]
    assert table.loc["dist", "note"] == "one seed: nothing is tested"
    assert "not tested" in table.loc["ang", "note"]


def test_with_one_seed_equal_cells_are_all_best():
    table = statistics.tied_with_best(made({"none": [80.0], "dist": [90.0], "ang": [90.0]}))
    assert list(table.index[table["tied"]]) == ["dist", "ang"]


def test_a_cell_below_by_the_same_for_every_seed_stays_in_the_group_untested():
    table = statistics.tied_with_best(made({"dist": [90.0, 91.0], "ang": [89.0, 90.0]}))
    assert table["tied"].all()
    assert table.loc["ang", "note"] == "the same difference for every seed: not tested"


def test_without_finished_runs_nothing_is_best():
    table = statistics.tied_with_best(made({"dist": [None], "ang": [None]}))
    assert not table[["best", "tied"]].any(axis=None)
    assert set(table["note"]) == {"no finished run"}


# Equivalence with published numbers

# Mean 90.0, deviation 0.2, n = 4: standard error 0.1; t(0.975, 3) = 3.1824, so the interval is 90 -+ 0.318;
# t(0.95, 3) = 2.3534, so the mean is equivalent to what differs by less than margin - 0.2353.
TIGHT = [89.8, 90.2, 89.8, 90.2]
TIGHT = [90 + (value - 90) * 0.2 / np.std(TIGHT, ddof=1) for value in TIGHT]


@pytest.mark.parametrize(
    ("published", "margin", "verdict"),
    [
        (90.2, 0.5, "reproduced"),  # 0.2 < 0.5 - 0.2353
        (90.3, 0.5, "within noise"),  # 0.3 > 0.2647, yet inside the interval
        (90.35, 0.5, "within noise"),  # the interval ends at 90.318, but 0.35 may not matter
        (90.85, 0.5, "below"),  # the interval ends below 90.85 - 0.5
        (89.15, 0.5, "above"),
        (90.8, 0.5, "within noise"),  # 90.318 is above 90.3
        (90.35, 1.0, "reproduced"),  # outside the interval, but equivalent: 0.35 < 1 - 0.2353
        (90.0, 0.2, "within noise"),  # the very number, but a margin that four seeds cannot show
    ],
)
def test_verdict_against_a_published_number(published, margin, verdict):
    table = statistics.equivalence(made({"dist": TIGHT}), pd.Series({"dist": published}), margin)
    assert table.loc["dist", "std"] == pytest.approx(0.2)
    assert table.loc["dist", "verdict"] == verdict


@pytest.mark.parametrize("seeds", [4, 8, 40])
def test_a_deviation_that_does_not_matter_is_hardly_ever_called_one(seeds):
    # 0.35 of a margin of 0.5: at no number of seeds, so that more of them do not turn a verdict into its opposite.
    generator = np.random.default_rng(5)
    drawn = pd.DataFrame(generator.normal(90.35, 0.3, (seeds, 400)))
    verdicts = statistics.equivalent(drawn, pd.Series(90.0, index=drawn.columns), 0.5)["verdict"]
    assert verdicts.isin(["above", "below"]).mean() < 0.05
    assert "within noise" in set(verdicts) or seeds == 40


def test_above_is_tested_the_more_strictly_the_more_numbers_a_verdict_rests_on():
    # Beyond the margin by 0.35: 0.32 is what an interval of 95 % leaves, 0.42 what one of 97.5 % does.
    published = pd.Series({"dist": 89.15})
    wide = statistics.by_seed(made({"dist": TIGHT}))
    assert statistics.equivalent(wide, published, 0.5).loc["dist", "verdict"] == "above"
    assert statistics.equivalent(wide, published, 0.5, judged=2).loc["dist", "verdict"] == "within noise"


def test_equivalence_at_five_per_cent_is_a_ninety_per_cent_interval_within_the_margin():
    generator = np.random.default_rng(3)
    agree = 0
    for _ in range(60):
        values = generator.normal(90.2, 0.5, 6)
        row = statistics.equivalence(made({"dist": list(values)}), pd.Series({"dist": 90.0}), 0.6).loc["dist"]
        low, high = stats.t.interval(0.9, 5, values.mean(), stats.sem(values))
        inside = low > 89.4 and high < 90.6
        assert (row["verdict"] == "reproduced") == inside
        agree += inside
    assert 10 < agree < 50  # both outcomes occurred


@pytest.mark.parametrize("values", [[], [90.0], [90.0, 90.0, 90.0]])
def test_undecided_without_two_seeds_or_without_spread(values):
    row = statistics.equivalence(made({"dist": values}), pd.Series({"dist": 90.0}), 0.5).loc["dist"]
    assert (row["verdict"], row["n"]) == ("undecided", len(values))


def test_cells_without_a_published_number_have_no_verdict():
    table = statistics.equivalence(made({"dist": TIGHT, "ang": TIGHT}), pd.Series({"dist": 90.0}), 0.5)
    assert list(table.index) == ["dist"]


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan")])
def test_a_margin_must_be_above_zero(margin):
    with pytest.raises(ValueError, match="margin"):
        statistics.equivalence(made({"dist": TIGHT}), pd.Series({"dist": 90.0}), margin)


# How many seeds


@pytest.mark.parametrize(("difference", "std", "seeds"), [(1.0, 2.0, 34), (0.2, 1.0, 199), (0.8, 1.0, 15)])
def test_seeds_for_cohens_effect_sizes_as_g_power_gives_them(difference, std, seeds):
    # G*Power and R's power.t.test(type = "paired"): small, medium and large effects at 80 % power.
    assert statistics.seeds_for_power(difference, std) == seeds


def test_power_agrees_with_simulated_experiments():
    drawn = np.random.default_rng(4).normal(0.7, 1.0, (20_000, 10))
    simulated = np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05)
    # The standard error of a simulated share near 0.5 is 0.0035.
    assert statistics.paired_power(0.7, 1.0, 10) == pytest.approx(simulated, abs=0.012)


def test_power_agrees_with_the_noncentral_t_distribution():
    critical, shift = stats.t.isf(0.025, 9), 0.7 * 10**0.5
    both_tails = stats.nct.sf(critical, 9, shift) + stats.nct.cdf(-critical, 9, shift)
    assert statistics.paired_power(0.7, 1.0, 10) == pytest.approx(both_tails, abs=1e-9)


@pytest.mark.parametrize(("difference", "alpha"), [(0.5, 0.05), (-1.3, 0.05), (3.0, 0.05), (0.4, 0.05 / 15)])
def test_the_number_of_seeds_is_the_first_with_enough_power(difference, alpha):
    seeds = statistics.seeds_for_power(difference, 1.0, alpha)
    assert statistics.paired_power(difference, 1.0, seeds, alpha) >= 0.8
    assert seeds > 2
    assert statistics.paired_power(difference, 1.0, seeds - 1, alpha) < 0.8


@pytest.mark.parametrize(("off", "judged"), [(0.0, 1), (0.2, 1), (-0.2, 3), (1.0, 1), (-1.0, 3)])
def test_seeds_for_equivalence_agree_with_simulated_verdicts(off, judged):
    seeds = statistics.seeds_for_equivalence(off, 0.4, 0.5, judged)
    generator = np.random.default_rng(7)
    drawn = pd.DataFrame(generator.normal(90 + off, 0.4, (seeds, 1000)))
    verdicts = statistics.equivalent(drawn, pd.Series(90.0, index=drawn.columns), 0.5, judged)["verdict"]
    decided = verdicts.isin(["reproduced", "above", "below"]).mean()
    assert 0.77 < decided < 0.93  # one seed is a large step where there are few
    assert set(verdicts) - {"within noise"} == {"reproduced" if abs(off) < 0.5 else "above" if off > 0 else "below"}


def test_a_deviation_as_large_as_the_margin_is_never_decided():
    assert statistics.seeds_for_equivalence(-0.5, 0.4, 0.5) is None


def test_a_huge_difference_needs_two_seeds_and_none_at_all_cannot_be_found():
    assert statistics.seeds_for_power(1000.0, 1.0) == 2
    assert statistics.seeds_for_power(0.0, 1.0) is None
    assert statistics.seeds_for_power(0.001, 1.0) is None


def test_seeds_needed_from_the_observed_differences():
    # Differences 0, 1, 2: mean 1, deviation 1.
    row = statistics.seeds_needed(made({"none": [80.0, 80.0, 80.0], "dist": [80.0, 81.0, 82.0]}), "none").loc["dist"]
    assert row[["difference", "std", "n"]].tolist() == pytest.approx([1.0, 1.0, 3])
    assert row["seeds"] == statistics.seeds_for_power(1.0, 1.0) == 10  # G*Power: 10 for an effect of 1


def test_the_comparisons_share_the_five_per_cent():
    values = [80.0, 81.0, 82.0]
    runs = made({"none": [80.0, 80.0, 80.0], "dist": values, "ang": values, "sprel": [85.0]})
    table = statistics.seeds_needed(runs, "none")
    assert table.loc["dist", "seeds"] == statistics.seeds_for_power(1.0, 1.0, alpha=0.05 / 2)  # two are tested


def test_seeds_needed_for_a_stated_difference():
    runs = made({"none": [80.0, 80.0, 80.0], "dist": [80.0, 81.0, 82.0]})
    row = statistics.seeds_needed(runs, "none", difference=0.5).loc["dist"]
    assert (row["difference"], row["seeds"]) == (0.5, 34)


def test_where_the_number_of_seeds_cannot_be_said_there_is_a_reason():
    runs = made({"none": [80.0, 81.0], "dist": [82.0], "ang": [81.0, 82.0], "sprel": [79.0, 82.0]})
    table = statistics.seeds_needed(runs, "none")
    assert table["seeds"].isna().all()
    assert table["note"].to_dict() == {
        "dist": "fewer than 2 common seeds",
        "ang": "the same difference for every seed",
        "sprel": "more than 10000",
    }


def test_a_difference_of_zero_is_refused():
    with pytest.raises(ValueError, match="difference of 0"):
        statistics.seeds_needed(made(SLEEP), "none", difference=0.0)
