"""What is shown of our numbers against published ones, of the order of cells, and of methods over data sets."""

import numpy as np
import pandas as pd
import pytest
from helpers.made_runs import conformed_runs, planned
from helpers.paper_runs import entries, published_as_runs
from scipy import stats

from analysis.paper.across import across_datasets
from analysis.paper.critical import critical_difference, not_told_apart
from analysis.paper.entries import NothingToDraw
from analysis.paper.forest import forest
from analysis.stats.aggregates import bootstrap, interquartile_mean, probability_of_improvement


def repeated(tmp_path, study: str, offsets: tuple[float, ...]) -> pd.DataFrame:
    """The paper's numbers as runs, a seed for each offset, which is added."""
    runs = [
        run | {"seed": seed, "run_id": f"{run['run_id']}-{seed}"} | {"test_accuracy": run["test_accuracy"] + offset}
        for run in published_as_runs(tmp_path, study)
        for seed, offset in enumerate(offsets)
    ]
    return pd.DataFrame(runs)


# The forest


def test_the_forest_shows_ours_less_the_published_number_with_its_interval_the_seeds_and_the_margin(tmp_path):
    figure, caption, numbers = forest(entries("table4", repeated(tmp_path, "table4", (0.1, 0.3, 0.8))))
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["Supervised", "SpRel"]
    half = stats.t.ppf(0.975, 2) * np.std([0.1, 0.3, 0.8], ddof=1) / np.sqrt(3)
    (bars,) = [each for each in axes.containers if each.get_label() == "comparable"]
    assert bars.lines[0].get_xdata() == pytest.approx([0.4] * 16)
    for segment in bars.lines[2][0].get_segments():
        assert segment[:, 0] == pytest.approx([0.4 - half, 0.4 + half])
    seeds = [line for line in axes.get_lines() if len(line.get_xdata()) == 3]
    assert len(seeds) == 16
    assert all(sorted(line.get_xdata()) == pytest.approx([0.1, 0.3, 0.8]) for line in seeds)
    # 10,000 test images leave sqrt(2 p (100 - p) / 10000) in a difference, 0.4997 at 85.38 %: the least margin holds.
    assert {(patch.get_x(), patch.get_width()) for patch in axes.patches} == {(-0.5, 1.0)}
    assert numbers["sprel"]["difference"].numbers["value"] == pytest.approx(0.4)
    assert "Hollow" not in caption


def test_numbers_of_another_split_or_recipe_are_hollow_with_the_reason(tmp_path):
    figure, caption, _ = forest(entries("table3", repeated(tmp_path, "table3", (0.0,))))
    (axes,) = figure.axes
    apart = {
        each.get_label(): len(each.lines[0].get_xdata()) for each in axes.containers if "comparable" in each.get_label()
    }
    # 16 rows are Liu et al.'s, and of the paper's own 16 four are Flower-102's.
    assert apart == {"comparable": 12, "not comparable": 20}
    assert "published on the 1,020 images of the val split" in caption
    assert "one seed: there are no intervals" in caption


def test_there_is_no_forest_of_runs_on_another_data_set(tmp_path):
    runs, _ = conformed_runs(planned(tmp_path, "table4"), "table4")  # on digits
    with pytest.raises(NothingToDraw, match="no finished run has a data set and backbone of the paper's table"):
        forest(entries("table4", runs))


# The order


def test_stretches_in_which_no_two_differ_are_the_longest_and_none_lies_within_another():
    different = {frozenset(pair) for pair in ("ac", "ad", "bd")}
    assert not_told_apart(list("abcd"), different) == [(0, 1), (1, 2), (2, 3)]
    assert not_told_apart(list("abcd"), set()) == [(0, 3)]
    assert not_told_apart(list("ab"), {frozenset("ab")}) == []


def test_cells_stand_in_their_order_and_a_bar_joins_those_that_are_not_told_apart(tmp_path):
    rng = np.random.default_rng(0)
    runs = repeated(tmp_path, "table4", (0.0,) * 5)
    # Two levels far apart, the same within each.
    low = runs["tasks"].isin(["none", "sprel", "dist"])
    runs["test_accuracy"] = np.where(low, 80.0, 90.0) + rng.normal(0, 0.2, len(runs))
    figure, _, numbers = critical_difference(entries("table4", runs))
    (axes,) = figure.axes
    means = runs.groupby("tasks")["test_accuracy"].mean().sort_values(ascending=False)
    assert list(numbers) == list(means.index)
    assert [numbers[cell]["accuracy"].numbers["value"] for cell in numbers] == pytest.approx(list(means))
    bars = [line.get_xdata() for line in axes.get_lines() if line.get_linewidth() > 2]
    assert [bar == pytest.approx(ends, abs=0.1) for bar, ends in zip(bars, [means.iloc[[0, 12]], means.iloc[[13, 15]]])]
    assert len(bars) == 2
    assert len(axes.texts) == 16


@pytest.mark.parametrize(
    ("study", "offsets", "reason"),
    [
        ("table4", (0.0,), "no cell has two seeds"),
        ("table2", (0.0, 0.1), "several data sets or backbones"),
    ],
)
def test_what_has_no_order_is_left_out_with_the_reason(tmp_path, study, offsets, reason):
    with pytest.raises(NothingToDraw, match=reason):
        critical_difference(entries(study, repeated(tmp_path, study, offsets)))


# Over data sets


def test_the_aggregates_are_rliables_in_its_own_example():
    # Its tests have these scores, runs by tasks, and these values (google-research/rliable, metrics_test.py).
    x = [np.array(task, dtype=float) for task in ([1, 2, 1, 2], [2, 2, 1, 1])]
    y = [np.array(task, dtype=float) for task in ([1, 2, 3], [1, 2, 3])]
    assert interquartile_mean(x) == 1.5
    assert interquartile_mean(y) == 2
    assert probability_of_improvement(x, y) == pytest.approx(1 / 3)


def test_the_bootstrap_draws_seeds_within_each_data_set():
    # One data set never varies: only the two values of the other are drawn, both, or either one twice.
    scores = [np.array([50.0, 50.0]), np.array([60.0, 80.0])]
    drawn = []

    def mean(resampled):
        values = np.mean(np.concatenate(resampled, axis=-1), axis=-1)
        drawn.append(values)
        return values

    value, low, high = bootstrap(mean, scores)
    assert (value, low, high) == (60.0, 55.0, 65.0)
    assert set(drawn[-1]) == {55.0, 60.0, 65.0}
    assert (drawn[-1] == 60.0).mean() == pytest.approx(0.5, abs=0.05)
    assert np.isnan(bootstrap(interquartile_mean, [np.array([1.0]), np.array([2.0])])[1])


def test_the_methods_of_table_3_over_the_places_that_they_share(tmp_path):
    runs = repeated(tmp_path, "table3", (-0.1, 0.0, 0.1))
    figure, caption, numbers = across_datasets(entries("table3", runs))
    shared = runs[~runs["backbone"].str.startswith("vit")]  # L_drloc has no ViT
    means = shared.groupby("tasks")["test_accuracy"].agg(lambda values: stats.trim_mean(values, 0.25))
    assert numbers["relvit"]["interquartile_mean"].numbers["value"] == pytest.approx(means["sprel+abspos"])
    assert numbers["drloc"]["interquartile_mean"].numbers["value"] == pytest.approx(means["drloc"])
    # In the paper T2T-ViT on CIFAR-100 is below L_drloc, and on SVHN less than 0.1 above: 6 of 9 pairs of seeds win.
    # ViT on SVHN is 0.16 below the supervised cell: only +0.1 wins against -0.1.
    assert numbers["drloc"]["improvement"].numbers["value"] == pytest.approx((6 + 6 / 9) / 8)
    assert numbers["supervised"]["improvement"].numbers["value"] == pytest.approx((11 + 1 / 9) / 12)
    assert "8 places (data set and backbone)" in caption


def test_one_data_set_has_no_aggregate(tmp_path):
    with pytest.raises(NothingToDraw, match="two methods on two data sets"):
        across_datasets(entries("table4", repeated(tmp_path, "table4", (0.0, 0.1))))
