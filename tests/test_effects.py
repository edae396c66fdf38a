"""Effects of the four tasks, recomputed from Table 4 by naive loops, by least squares and over orders of adding."""

from itertools import combinations, permutations, product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.paper.published import PUBLISHED
from analysis.stats import effects
from analysis.stats.seeds import SeveralRuns, by_seed, compare
from relvit.cell import PAPER_TASKS, task_combinations


def name_of(subset) -> str:
    return "+".join(task for task in PAPER_TASKS if task in subset) or "none"


def runs_of(*tables_by_seed: dict[str, float | None]) -> pd.DataFrame:
    """Runs of one seed for each dict of accuracies by tasks; None: the run failed."""
    rows = [
        {
            "tasks": tasks,
            "seed": seed,
            "status": "FAILED" if accuracy is None else "FINISHED",
            "test_accuracy": accuracy,
        }
        for seed, accuracies in enumerate(tables_by_seed)
        for tasks, accuracy in accuracies.items()
    ]
    columns = ["tasks", "seed", "status", "test_accuracy"]
    return pd.DataFrame(rows, columns=columns).astype({"tasks": "string", "seed": "Int64", "test_accuracy": "Float64"})


@pytest.fixture(scope="module")
def table4() -> dict[str, float]:
    """The paper's accuracies by tasks."""
    published = pd.read_csv(PUBLISHED, keep_default_na=False)
    published = published.query("table == 'table4' and metric == 'accuracy'")
    accuracies = {tasks or "none": float(value) for tasks, value in zip(published["tasks"], published["value"])}
    assert sorted(accuracies) == sorted(task_combinations())
    return accuracies


def made(**coefficients: float) -> dict[str, float]:
    """Accuracies that are 80 plus the coefficient of every named product of tasks that are on ("sprel_dist")."""
    return {
        tasks: 80.0
        + sum(value for term, value in coefficients.items() if set(term.split("_")) <= set(tasks.split("+")))
        for tasks in task_combinations()
    }


# Any task against none


def test_the_gain_of_pretraining_at_all_is_the_mean_of_the_fifteen_less_the_supervised_cell(table4):
    # The 15 sum to 716.91 + (711.45 - 85.38) = 1342.98, a mean of 89.532; less 85.38.
    table = effects.any_against_none(runs_of(table4))
    assert table.loc["any", "mean"] == pytest.approx(4.152)


# Main effects and interactions, within the 15


def test_effects_are_twice_the_coefficients_of_least_squares_on_the_fifteen(table4):
    table = effects.main_effects_and_interactions(runs_of(table4))
    codes = [code for code in product((1, -1), repeat=4) if code != (-1, -1, -1, -1)]
    terms = [term for size in range(3) for term in combinations(range(4), size)]
    design = np.array([[np.prod([code[i] for i in term]) for term in terms] for code in codes])
    response = [table4[name_of([task for task, on in zip(PAPER_TASKS, code) if on == 1])] for code in codes]
    coefficients, *_ = np.linalg.lstsq(design, response)
    fitted = {":".join(PAPER_TASKS[i] for i in term): 2 * value for term, value in zip(terms, coefficients)}
    assert table["mean"].to_dict() == pytest.approx({name: fitted[name] for name in table.index})
    assert list(table.index) == [*PAPER_TASKS, *(":".join(pair) for pair in combinations(PAPER_TASKS, 2))]


def test_they_are_the_effects_of_sixteen_cells_with_a_term_for_any_task_at_all(table4):
    # The paper's interactions, -0.41 to -0.71 with the supervised cell as the factorial's corner, are these without.
    table = effects.main_effects_and_interactions(runs_of(table4))
    codes = list(product((1, -1), repeat=4))
    terms = [term for size in range(3) for term in combinations(range(4), size)]
    design = [[np.prod([code[i] for i in term]) for term in terms] + [float(1 in code)] for code in codes]
    response = [table4[name_of([task for task, on in zip(PAPER_TASKS, code) if on == 1])] for code in codes]
    coefficients, *_ = np.linalg.lstsq(np.array(design), response)
    assert table["mean"].tolist() == pytest.approx(list(2 * coefficients[1:11]))
    interactions = table["mean"].drop(list(PAPER_TASKS))
    assert [interactions.min(), interactions.max()] == pytest.approx([-0.311, -0.006], abs=1e-3)


@pytest.mark.parametrize("corner", [0.0, -4.0, 30.0])
def test_an_additive_world_has_its_effects_and_no_interactions_wherever_the_supervised_cell_is(corner):
    world = made(sprel=3.0, ang=-1.0)
    table = effects.main_effects_and_interactions(runs_of(world | {"none": 80.0 + corner}))
    assert table["mean"].to_dict() == pytest.approx(
        {name: {"sprel": 3, "ang": -1}.get(name, 0) for name in table.index}
    )


def test_two_tasks_that_help_only_together():
    # Both on: 4 points more. Each has an effect of 4 where the other is on and 0 where it is off: main effect 2,
    # interaction (4 - 0) / 2 = 2.
    table = effects.main_effects_and_interactions(runs_of(made(dist_abspos=4.0)))
    assert table.loc[["dist", "abspos", "dist:abspos", "sprel"], "mean"].tolist() == pytest.approx([2, 2, 2, 0])


def test_levels_of_seeds_cancel_and_the_interval_is_that_of_the_residuals_of_all_cells():
    generator = np.random.default_rng(1)
    levels, noise = (0.0, -40.0, 15.0), generator.normal(0, 0.5, (3, 16))
    worlds = [
        {tasks: value + level + error for (tasks, value), error in zip(made(sprel=3.0).items(), errors)}
        for level, errors in zip(levels, noise)
    ]
    row = effects.main_effects_and_interactions(runs_of(*worlds)).loc["sprel"]
    values = pd.DataFrame(worlds)
    residuals = values.sub(values.mean(axis=1), axis=0) - values.mean() + values.to_numpy().mean()
    variance = (residuals**2).to_numpy().sum() / (15 * 2)
    weights = effects.family()["sprel"]
    assert row["mean"] == pytest.approx((values.mean() * weights).sum())
    half = stats.t.ppf(0.975, 30) * np.sqrt(variance * (weights**2).sum() / 3)
    assert row["high"] - row["mean"] >= half - 1e-9  # that of the cells' own variances may be wider
    assert row["high"] - row["mean"] == pytest.approx(half, rel=0.25)
    assert row["n"] == 3


def test_one_seed_gives_effects_without_intervals(table4):
    for table in (function(runs_of(table4)) for function in (effects.main_effects_and_interactions, effects.shapley)):
        assert table["mean"].notna().all()
        assert table[["std", "low", "high", "p_family"]].isna().all(axis=None)


# Missing cells


def test_incomplete_seeds_tell_what_they_can():
    # 77 of 80 runs, as a sweep leaves them that was stopped. The truth is an effect of 0.7 with a spread of 0.3: of
    # 16 cells in 5 seeds a standard error of 2 x 0.3 / sqrt(80) = 0.067, within the 15 a little more.
    generator = np.random.default_rng(2)
    levels = generator.normal(0, 1, 5)
    worlds = [
        {tasks: value + level + generator.normal(0, 0.3) for tasks, value in made(sprel=0.7).items()}
        for level in levels
    ]
    for seed, tasks in ((0, "dist"), (2, "none"), (4, "sprel+ang")):
        worlds[seed][tasks] = None
    runs = runs_of(*worlds)
    assert len(effects.missing(runs)) == 3
    row = effects.main_effects_and_interactions(runs).loc["sprel"]
    assert row["low"] < 0.7 < row["high"]
    assert row["high"] - row["low"] < 0.4
    assert row["n"] == 4
    complete = runs[~runs["seed"].isin([0, 2, 4])]
    alone = effects.main_effects_and_interactions(complete).loc["sprel"]
    assert alone["high"] - alone["low"] > 1.2 * (row["high"] - row["low"])


def test_without_a_cell_in_any_seed_the_effects_that_need_it_are_unknown(table4):
    runs = runs_of({tasks: value for tasks, value in table4.items() if tasks != "dist"})
    assert effects.missing(runs)["tasks"].tolist() == ["dist"]
    for function in (effects.main_effects_and_interactions, effects.shapley, effects.any_against_none):
        table = function(runs)
        assert set(table["n"]) == {0}
        assert table.drop(columns="n").isna().all(axis=None)
    assert effects.leave_one_out(runs)["n"].tolist() == [1, 1, 1, 1]


def test_within_the_fifteen_the_supervised_cell_may_be_missing(table4):
    without = runs_of({tasks: value for tasks, value in table4.items() if tasks != "none"})
    for function in (effects.main_effects_and_interactions, effects.shapley):
        pd.testing.assert_frame_equal(function(without), function(runs_of(table4)))


def test_a_full_design_lacks_nothing_and_no_runs_lack_everything(table4):
    assert effects.missing(runs_of(table4)).empty
    assert effects.missing(runs_of())["tasks"].tolist() == task_combinations()
    assert set(effects.main_effects_and_interactions(runs_of())["n"]) == {0}


def test_cells_outside_the_design_change_nothing(table4):
    with_rival = runs_of({**table4, "drloc": 12.0})
    for function in (effects.shapley, effects.leave_one_out):
        pd.testing.assert_frame_equal(function(with_rival), function(runs_of(table4)))


def test_runs_of_two_settings_are_refused(table4):
    with pytest.raises(SeveralRuns):
        effects.shapley(pd.concat([runs_of(table4), runs_of(table4)]))


# Leave-one-out


def test_leave_one_out_of_table_4_by_hand(table4):
    # 90.06 against 89.67 without SpRel, 89.73 without Dist, 89.80 without Ang, 88.81 without AbsPos.
    expected = {"sprel": 0.39, "dist": 0.33, "ang": 0.26, "abspos": 1.25}
    assert effects.leave_one_out(runs_of(table4))["mean"].to_dict() == pytest.approx(expected)


def test_leave_one_out_needs_only_the_two_cells_that_it_compares(table4):
    few = {"sprel+dist+ang+abspos": 90.0, "dist+ang+abspos": 88.0}
    table = effects.leave_one_out(runs_of(few))
    assert table["mean"].dropna().to_dict() == {"sprel": 2.0}
    assert table["n"].to_dict() == {"sprel": 1, "dist": 0, "ang": 0, "abspos": 0}


def test_leave_one_out_is_corrected_as_the_pairs_of_table_4():
    generator = np.random.default_rng(3)
    runs = runs_of(*({tasks: value + generator.normal(0, 0.3) for tasks, value in made().items()} for _ in range(3)))
    pair = tuple(effects.with_and_without("ang"))
    expected = compare(by_seed(runs), [pair]).iloc[0]
    assert effects.leave_one_out(runs).loc["ang", ["mean", "p_family"]].tolist() == pytest.approx(
        expected[["difference", "p_family"]].tolist()
    )


# Shapley


def over_single_tasks(accuracies: dict[str, float]) -> dict[str, float]:
    """By task, what it adds averaged over all orders of adding, where nothing is worth the mean of the single tasks."""
    worth = accuracies | {"none": np.mean([accuracies[task] for task in PAPER_TASKS])}
    added = dict.fromkeys(PAPER_TASKS, 0.0)
    for order in permutations(PAPER_TASKS):
        for position, task in enumerate(order):
            before, after = name_of(order[:position]), name_of(order[: position + 1])
            added[task] += (worth[after] - worth[before]) / 24
    return added


def test_shapley_is_the_mean_over_all_orders_of_adding_tasks_to_the_average_single_one(table4):
    assert effects.shapley(runs_of(table4))["mean"].to_dict() == pytest.approx(over_single_tasks(table4))


def test_shapley_values_add_up_to_the_gain_of_all_four_over_the_average_single_task(table4):
    # (89.02 + 89.27 + 88.75 + 89.39) / 4 = 89.1075.
    assert effects.shapley(runs_of(table4))["mean"].sum() == pytest.approx(90.06 - 89.1075)


def test_identical_tasks_have_no_value_of_their_own():
    world = {tasks: 86.0 if tasks == "none" else 90.0 for tasks in task_combinations()}
    assert effects.shapley(runs_of(world))["mean"].tolist() == pytest.approx([0.0] * 4)


def several(world: dict[str, float], spread: float = 0.1, draw: int = 5) -> pd.DataFrame:
    generator = np.random.default_rng(draw)
    noisy = [{tasks: value + generator.normal(0, spread) for tasks, value in world.items()} for _ in range(5)]
    return runs_of(*noisy)


def test_a_share_is_told_with_its_interval_where_there_is_a_gain_to_share():
    # All four reach 85, single tasks 80.25 on average. Dist and AbsPos get (2 - 0.0625) / 4.75 each, by symmetry.
    world = made(dist_abspos=4.0, ang=1.0)
    exact = pd.Series(over_single_tasks(world)) / 4.75
    assert exact.sum() == pytest.approx(1.0)
    covered = []
    for draw in range(40):
        table = effects.shapley(several(world, draw=draw))
        assert table["share"].to_dict() == pytest.approx(exact.to_dict(), abs=0.1)
        assert table["share"].sum() == pytest.approx(1.0)
        covered += list((table["share_low"] < exact) & (exact < table["share_high"]))
    # 95 % of 160, which are related in fours: a standard error of 2 to 3 points.
    assert 0.88 < np.mean(covered) < 1.0


def test_noise_and_single_seeds_have_no_shares(table4):
    for runs in (several(made(), 0.3), runs_of(table4)):
        assert effects.shapley(runs)[["share", "share_low", "share_high"]].isna().all(axis=None)


# Other tasks than the paper's four


def test_of_two_tasks_the_effects_are_those_of_a_2_by_2_design_without_its_corner():
    """Main effect: twice the least-squares coefficient of the code; of three cells the model is exact."""
    runs = runs_of({"none": 50.0, "sprel": 60.0, "abspos": 64.0, "sprel+abspos": 70.0})
    tasks = ("sprel", "abspos")
    assert effects.missing(runs, tasks).empty
    assert effects.any_against_none(runs, tasks)["mean"].tolist() == pytest.approx([(60 + 64 + 70) / 3 - 50])
    assert effects.leave_one_out(runs, tasks)["mean"].to_dict() == pytest.approx({"sprel": 6.0, "abspos": 10.0})
    # The gain of both over the mean single task is 70 - 62, of which each has half and what it adds beyond the other.
    shares = effects.shapley(runs, tasks)["mean"]
    assert shares.sum() == pytest.approx(8.0)
    assert shares["abspos"] - shares["sprel"] == pytest.approx(4.0)
    found = effects.main_effects_and_interactions(runs, tasks)
    assert list(found.index) == ["sprel", "abspos", "sprel:abspos"]


def test_of_three_tasks_all_cells_but_the_supervised_one_have_their_part():
    weights = effects.family(("sprel", "ang", "abspos"))
    assert weights.shape == (8, 3 + 3 + 3)
    assert (weights.loc["none"] == 0).all()
    assert weights.sum().abs().max() < 1e-9
