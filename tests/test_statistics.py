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


# Differences of cells


def difference(cells: dict[str, list[float | None]], cell: str, baseline: str) -> pd.Series:
    return statistics.compare(statistics.by_seed(made(cells)), [(cell, baseline)]).iloc[0]


def test_students_sleep_data_give_what_r_gives():
    row = difference(SLEEP, "sprel", "none")
    assert row["difference"] == pytest.approx(1.58)
    assert row[["low", "high"]].tolist() == pytest.approx([0.7001142, 2.4598858], abs=1e-6)
    assert row["p"] == row["p_family"] == pytest.approx(0.002833, abs=1e-6)
    assert row["n"] == 10


def test_of_two_cells_only_common_seeds_tell():
    # Common seeds 0, 2, 3: differences 1, 2, 3; mean 2, deviation 1, t = 2 / (1 / sqrt(3)) = 3.4641.
    # With two degrees of freedom the distribution has a closed form: p = 1 - t / sqrt(t^2 + 2) = 0.0742.
    row = difference({"none": [80.0, 10.0, 80.0, 80.0, None], "dist": [81.0, None, 82.0, 83.0, 99.0]}, "dist", "none")
    assert row[["difference", "n"]].tolist() == pytest.approx([2.0, 4])
    assert row["p"] == pytest.approx(1 - 12**0.5 / 14**0.5)


def test_one_common_seed_gives_a_difference_and_nothing_more():
    row = difference({"none": [80.0, 81.0], "dist": [83.0]}, "dist", "none")
    assert (row["difference"], row["n"]) == (3.0, 1)
    assert row[["std", "low", "high", "p", "p_family"]].isna().all()


def test_without_a_run_or_a_common_seed_there_is_no_difference():
    row = difference({"none": [80.0, None], "dist": [None, 83.0]}, "dist", "none")
    assert row.drop("n").isna().all()
    assert difference({"none": [80.0], "dist": [None]}, "dist", "none")["n"] == 0
    assert difference({"none": [80.0]}, "dist", "none")["n"] == 0


def test_a_third_cell_relates_two_that_share_no_seed():
    # Seed 1 is 2 points above seed 0, as c says: 85 - 2 - 80.
    row = difference({"a": [80.0, None], "b": [None, 85.0], "c": [90.0, 92.0]}, "b", "a")
    assert row["difference"] == pytest.approx(3.0)


def test_the_same_difference_for_every_seed_is_no_proof():
    # 0.1 + 0.2 and the like: equal but for floating point, where t would be astronomical.
    row = difference({"none": [80.1, 81.3, 82.7], "dist": [80.4, 81.6, 83.0]}, "dist", "none")
    assert row["difference"] == pytest.approx(0.3)
    assert row[["low", "high", "p"]].isna().all()


def test_pairing_finds_what_a_comparison_of_means_does_not():
    generator = np.random.default_rng(2)
    seeds = generator.normal(80.0, 5.0, 8)
    cells = {"none": list(seeds), "dist": list(seeds + 1 + generator.normal(0.0, 0.2, 8))}
    assert difference(cells, "dist", "none")["p"] < 0.001
    assert stats.ttest_ind(cells["dist"], cells["none"]).pvalue > 0.5


def test_a_pair_has_one_answer_wherever_it_is_asked_for():
    generator = np.random.default_rng(8)
    wide = pd.DataFrame(generator.normal(0, 1, (4, 5)) + np.arange(5) / 2, columns=list("abcde"))
    together = statistics.compare(wide, [("e", "a"), ("b", "a"), ("c", "d")])
    alone = statistics.compare(wide, [("a", "e")])
    assert alone["p_family"].item() == together["p_family"].iloc[0]
    assert alone["difference"].item() == -together["difference"].iloc[0]


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
    assert table.loc["none", "p_family"] < 0.001 < 0.5 < table.loc["dist", "p_family"]
    assert set(table["note"]) == {""}


def test_where_smaller_is_better_the_larger_cells_are_worse():
    errors = {"none": [20.0, 20.5, 19.8, 20.2], "dist": [10.0, 11.0, 9.0, 10.4], "sprel": [9.5, 9.5, 10.5, 9.7]}
    table = statistics.tied_with_best(made(errors), larger=False)
    assert list(table.index[table["best"]]) == ["sprel"]
    assert list(table.index[table["tied"]]) == ["dist", "sprel"]


def test_two_cells_are_compared_as_by_a_paired_test():
    # Differences to the best 1, 2, 1, 2.4: mean 1.6, deviation 0.712; t = 4.495 with 3 degrees of freedom.
    table = statistics.tied_with_best(made({"best": [90.0] * 4, "a": [89.0, 88.0, 89.0, 87.6]}))
    assert table.loc["a", "p_family"] == pytest.approx(0.0206, abs=5e-4)
    assert list(table.index[table["tied"]]) == ["best"]


def test_a_baseline_far_below_is_not_tied_with_the_best_though_three_seeds_of_sixteen_cells_are_all_there_is():
    # A paired test of three seeds has two degrees of freedom: Holm over fifteen lets it reject nothing.
    generator = np.random.default_rng(0)
    cells = {f"c{number}": list(89.5 + 0.02 * number + generator.normal(0, 0.4, 3)) for number in range(15)}
    table = statistics.tied_with_best(made({"none": [84.4, 85.0, 85.3], **cells}))
    assert not table.loc["none", "tied"]
    assert table["tied"].sum() > 10


def of_sixteen(**changes: list[float | None]) -> dict[str, list[float | None]]:
    """16 cells near 90 with a spread of 0.3 and five seeds, some of them replaced."""
    generator = np.random.default_rng(4)
    return {f"c{number}": list(90 + 0.3 * generator.normal(size=5)) for number in range(16)} | changes


def test_a_bad_cell_of_one_seed_is_told_from_cells_of_five_by_their_spread():
    table = statistics.tied_with_best(made(of_sixteen(c7=[60.0])))
    assert list(table.index[~table["tied"]]) == ["c7"]
    assert table.loc["c7", "note"] == "one seed: tested by the spread of the other cells"
    assert statistics.tied_with_best(made(of_sixteen(c7=[89.9])))["tied"].all()


def test_a_cell_of_wild_seeds_neither_hides_a_worse_cell_nor_is_called_worse_itself():
    # The wild cell's mean is 3 points below; its own five seeds do not know it better than to 4 points.
    wild = [90.0, 92.0, 84.0, 83.0, 86.0]
    table = statistics.tied_with_best(made(of_sixteen(c3=wild, c7=[88.9, 88.4, 88.6, 88.7, 88.5])))
    assert list(table.index[~table["tied"]]) == ["c7"]


def test_nan_results_count_for_nothing():
    table = statistics.tied_with_best(
        made({"a": [90.0, np.nan, 90.2, 90.1, 90.3], "b": [90.1, 90.0, 90.3, 90.2, 90.0]})
    )
    assert table["n"].to_dict() == {"a": 4, "b": 5}
    assert table.loc["a", "mean"] == pytest.approx(90.15)


def test_with_one_seed_the_best_stands_alone_and_says_why():
    table = statistics.tied_with_best(made({"none": [80.0], "dist": [90.0], "ang": [89.99]}))
    assert list(table.index[table["tied"]]) == ["dist"]
    assert table.loc["dist", "note"] == "one seed: nothing is tested"
    assert table["p_family"].isna().all()


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
# The published number is one draw: sqrt(1 + 1 / 4) x 0.2 = 0.2236, times 3.1824 gives 0.7116.
TIGHT = [89.8, 90.2, 89.8, 90.2]
TIGHT = [90 + (value - 90) * 0.2 / np.std(TIGHT, ddof=1) for value in TIGHT]


def equivalence(runs: pd.DataFrame, published: pd.Series, margin: float) -> pd.DataFrame:
    return statistics.equivalent(statistics.by_seed(runs), published, margin)


@pytest.mark.parametrize(
    ("published", "margin", "verdict"),
    [
        (90.2, 0.5, "reproduced"),  # 0.2 < 0.5 - 0.2353
        (90.3, 0.5, "within noise"),  # 0.3 > 0.2647, yet inside the interval
        (90.35, 0.5, "within noise"),  # the interval ends at 90.318, but 0.35 may not matter
        (90.85, 0.5, "within noise"),  # the interval ends below 90.85 - 0.5, but one draw may lie there
        (91.22, 0.5, "below"),  # 1.22 > 0.5 + 0.7116
        (91.2, 0.5, "within noise"),
        (88.78, 0.5, "above"),
        (90.35, 1.0, "reproduced"),  # outside the interval, but equivalent: 0.35 < 1 - 0.2353
        (90.0, 0.2, "within noise"),  # the very number, but a margin that four seeds cannot show
    ],
)
def test_verdict_against_a_published_number(published, margin, verdict):
    table = equivalence(made({"dist": TIGHT}), pd.Series({"dist": published}), margin)
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


@pytest.mark.parametrize("seeds", [5, 10, 30])
def test_a_true_replication_is_missed_at_no_number_of_seeds_more_often_than_stated(seeds):
    generator = np.random.default_rng(6)
    ours, theirs = generator.normal(90, 0.5, (seeds, 2000)), generator.normal(90, 0.5, 2000)
    verdicts = statistics.equivalent(pd.DataFrame(ours), pd.Series(theirs), 1e-9)["verdict"]
    # 5 % with a standard error of 0.5 %: the prediction interval is exact.
    assert verdicts.isin(["above", "below"]).mean() == pytest.approx(0.05, abs=0.015)


def test_a_published_number_also_has_the_error_of_its_test_set():
    # Of 100 images at 90 %: sqrt(0.9 x 0.1 / 100) = 3 points, where our seeds scatter by 0.2.
    published = pd.Series({"dist": 91.22})
    wide = statistics.by_seed(made({"dist": TIGHT}))
    assert statistics.equivalent(wide, published, 0.5, pd.Series({"dist": 1e6})).loc["dist", "verdict"] == "below"
    assert (
        statistics.equivalent(wide, published, 0.5, pd.Series({"dist": 100})).loc["dist", "verdict"] == "within noise"
    )


def test_above_is_tested_the_more_strictly_the_more_numbers_a_verdict_rests_on():
    # Beyond the margin by 0.35: 0.318 is what an interval of 95 % leaves, 0.42 what one of 97.5 % does.
    tests = [(np.array([0.1]), np.array([3]))]
    assert statistics.judge_equality(np.array([0.85]), tests, 0.5)[1] == "above"
    assert statistics.judge_equality(np.array([0.85]), tests, 0.5, judged=2)[1] == "within noise"


def test_where_two_tests_judge_both_must_agree():
    sure, unsure = (np.array([0.1]), np.array([3])), (np.array([1.0]), np.array([3]))
    assert statistics.judge_equality(np.array([0.0]), [sure], 0.5)[1] == "reproduced"
    assert statistics.judge_equality(np.array([0.0]), [sure, unsure], 0.5)[1] == "within noise"


def test_a_sentence_about_many_pairs_needs_each_at_five_per_cent_and_falls_by_one_that_is_below_corrected():
    difference, p, p_family = (
        np.array([1.0, 1.0, -1.0, -1.0]),
        np.array([0.04, 0.06, 0.01, 0.01]),
        np.array([1, 1, 1, 0.03]),
    )
    assert statistics.directions(difference, p, p_family).tolist() == [1, 0, 0, -1]
    assert statistics.directions(difference, p, p_family, families=2).tolist() == [1, 0, 0, 0]


def test_equivalence_at_five_per_cent_is_a_ninety_per_cent_interval_within_the_margin():
    generator = np.random.default_rng(3)
    agree = 0
    for _ in range(60):
        values = generator.normal(90.2, 0.5, 6)
        row = equivalence(made({"dist": list(values)}), pd.Series({"dist": 90.0}), 0.6).loc["dist"]
        low, high = stats.t.interval(0.9, 5, values.mean(), stats.sem(values))
        inside = low > 89.4 and high < 90.6
        assert (row["verdict"] == "reproduced") == inside
        agree += inside
    assert 10 < agree < 50  # both outcomes occurred


@pytest.mark.parametrize("values", [[], [90.0], [90.0, 90.0, 90.0]])
def test_undecided_without_two_seeds_or_without_spread(values):
    row = equivalence(made({"dist": values}), pd.Series({"dist": 90.0}), 0.5).loc["dist"]
    assert (row["verdict"], row["n"]) == ("undecided", len(values))


@pytest.mark.parametrize(
    ("images", "published", "verdict"),
    [
        (10_000, 99.9, "reproduced"),  # one image is 0.01 points
        (10_000, 98.0, "above"),
        (100, 99.9, "within noise"),  # one image is a point: 1 / sqrt(3) times 2.92 is more than the margin
    ],
)
def test_seeds_that_all_agree_are_known_to_one_test_image(images, published, verdict):
    wide = statistics.by_seed(made({"dist": [100.0, 100.0, 100.0]}))
    row = statistics.equivalent(wide, pd.Series({"dist": published}), 0.5, pd.Series({"dist": images})).loc["dist"]
    assert row["verdict"] == verdict


def test_cells_without_a_published_number_have_no_verdict():
    table = equivalence(made({"dist": TIGHT, "ang": TIGHT}), pd.Series({"dist": 90.0}), 0.5)
    assert list(table.index) == ["dist"]


@pytest.mark.parametrize("margin", [0.0, -1.0, float("nan")])
def test_a_margin_must_be_above_zero(margin):
    with pytest.raises(ValueError, match="margin"):
        equivalence(made({"dist": TIGHT}), pd.Series({"dist": 90.0}), margin)


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
    seeds = statistics.seeds_for_equivalence(off, 0.4, 0.5, judged=judged)
    generator = np.random.default_rng(7)
    drawn = pd.DataFrame(generator.normal(90 + off, 0.4, (seeds, 1000)))
    tests = [(drawn.std() / np.sqrt(seeds), pd.Series(seeds - 1, index=drawn.columns))]
    verdicts = pd.Series(statistics.judge_equality(drawn.mean() - 90, tests, 0.5, judged=judged)[1])
    decided = verdicts.isin(["reproduced", "above", "below"]).mean()
    assert 0.77 < decided < 0.93  # one seed is a large step where there are few
    assert set(verdicts) - {"within noise"} == {"reproduced" if abs(off) < 0.5 else "above" if off > 0 else "below"}


def test_a_deviation_as_large_as_the_margin_is_never_decided():
    assert statistics.seeds_for_equivalence(-0.5, 0.4, 0.5) is None


def test_a_huge_difference_needs_two_seeds_and_none_at_all_cannot_be_found():
    assert statistics.seeds_for_power(1000.0, 1.0) == 2
    assert statistics.seeds_for_power(0.0, 1.0) is None
    assert statistics.seeds_for_power(0.001, 1.0) is None


def test_a_deviation_from_a_number_that_is_itself_a_draw_takes_more_seeds_or_is_never_shown():
    # 1.6 beyond the margin, spread 0.4: of a draw that scatters by 0.4 it remains known to 2 x 0.4 at best.
    seeds = statistics.seeds_for_equivalence(2.1, 0.4, 0.5, drawn=0.4)
    generator = np.random.default_rng(9)
    drawn = generator.normal(2.1, 0.4, (seeds, 4000))
    spread = drawn.std(axis=0, ddof=1)
    tests = [(spread / np.sqrt(seeds), np.full(4000, seeds - 1))]
    found = (statistics.judge_equality(drawn.mean(axis=0), tests, 0.5, drawn=spread)[1] == "above").mean()
    assert seeds > statistics.seeds_for_equivalence(2.1, 0.4, 0.5)
    assert 0.78 < found < 0.97
    assert statistics.seeds_for_equivalence(1.0, 0.4, 0.5, drawn=0.4) is None


def test_seeds_that_find_the_difference_seen():
    # Differences 0, 1, 2: mean 1, deviation 1. G*Power: 10 for an effect of 1.
    wide = statistics.by_seed(made({"none": [80.0, 80.0, 80.0], "dist": [80.0, 81.0, 82.0]}))
    assert statistics.seeds_to_find(statistics.compare(wide, [("dist", "none")]), 2) == {("dist", "none"): "10"}


def test_the_pairs_of_a_table_share_the_five_per_cent():
    # Studentised range of 3 means, 5 %, infinitely many degrees of freedom: 3.314 (printed tables).
    assert statistics.family_alpha(3) == pytest.approx(2 * stats.norm.sf(3.314 / 2**0.5), rel=1e-3)
    assert statistics.family_alpha(2) == pytest.approx(0.05)


def test_where_the_number_of_seeds_cannot_be_said_there_is_a_reason():
    def needed(cells: dict[str, list[float]]) -> str:
        (text,) = statistics.seeds_to_find(
            statistics.compare(statistics.by_seed(made(cells)), [("dist", "none")]), 2
        ).values()
        return text

    assert needed({"none": [80.0, 81.0], "dist": [82.0]}) == "2 or more"
    assert needed({"none": [80.0, 81.0], "dist": [81.0, 82.0]}) == "–"  # the same difference for every seed
    assert needed({"none": [80.0, 81.0], "dist": [79.0, 82.0]}) == "–"  # none at all
    assert needed({"none": [80.0, 81.0], "dist": [79.001, 82.0]}) == ">10000"
