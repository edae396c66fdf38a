"""Effects of the four tasks, recomputed from Table 4 by naive loops, by least squares and over orders of adding."""

from itertools import combinations, permutations, product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.paper.published import PUBLISHED
from analysis.stats import effects
from analysis.stats.seeds import SeveralRuns
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


# Main effects and interactions


def test_main_effect_of_sprel_in_table_4_by_hand(table4):
    # With SpRel 89.02 + 89.24 + 90.12 + 90.13 + 88.81 + 89.80 + 89.73 + 90.06 = 716.91, a mean of 89.61375;
    # without 85.38 + 89.27 + 88.75 + 89.39 + 89.34 + 89.75 + 89.90 + 89.67 = 711.45, a mean of 88.93125.
    table = effects.main_effects_and_interactions(runs_of(table4))
    assert table.loc["sprel", "mean"] == pytest.approx(0.6825)


def test_main_effects_are_on_minus_off(table4):
    table = effects.main_effects_and_interactions(runs_of(table4))
    for task in PAPER_TASKS:
        on = np.mean([value for tasks, value in table4.items() if task in tasks.split("+")])
        off = np.mean([value for tasks, value in table4.items() if task not in tasks.split("+")])
        assert table.loc[task, "mean"] == pytest.approx(on - off)


def test_interactions_are_half_the_difference_between_effects(table4):
    table = effects.main_effects_and_interactions(runs_of(table4))
    for one, other in combinations(PAPER_TASKS, 2):
        effect = {}
        for other_is_on in (True, False):
            cells = {tasks: value for tasks, value in table4.items() if (other in tasks.split("+")) == other_is_on}
            on = np.mean([value for tasks, value in cells.items() if one in tasks.split("+")])
            off = np.mean([value for tasks, value in cells.items() if one not in tasks.split("+")])
            effect[other_is_on] = on - off
        assert table.loc[f"{one}:{other}", "mean"] == pytest.approx((effect[True] - effect[False]) / 2)


def test_all_effects_are_twice_the_coefficients_of_least_squares_on_plus_and_minus_one(table4):
    table = effects.main_effects_and_interactions(runs_of(table4))
    codes = list(product((1, -1), repeat=4))
    terms = [term for size in range(5) for term in combinations(range(4), size)]
    design = np.array([[np.prod([code[i] for i in term]) for term in terms] for code in codes])
    response = [table4[name_of([task for task, on in zip(PAPER_TASKS, code) if on == 1])] for code in codes]
    coefficients, *_ = np.linalg.lstsq(design, response)
    fitted = {":".join(PAPER_TASKS[i] for i in term): 2 * value for term, value in zip(terms, coefficients)}
    assert table["mean"].to_dict() == pytest.approx({name: fitted[name] for name in table.index})
    assert list(table.index) == [*PAPER_TASKS, *(":".join(pair) for pair in combinations(PAPER_TASKS, 2))]


def test_an_additive_world_has_its_effects_and_no_interactions():
    table = effects.main_effects_and_interactions(runs_of(made(sprel=3.0, ang=-1.0)))
    assert table["mean"].to_dict() == pytest.approx(
        {name: {"sprel": 3, "ang": -1}.get(name, 0) for name in table.index}
    )


def test_two_tasks_that_help_only_together():
    # Both on: 4 points more. Each has an effect of 4 where the other is on and 0 where it is off: main effect 2,
    # interaction (4 - 0) / 2 = 2.
    table = effects.main_effects_and_interactions(runs_of(made(dist_abspos=4.0)))
    assert table.loc[["dist", "abspos", "dist:abspos", "sprel"], "mean"].tolist() == pytest.approx([2, 2, 2, 0])


def test_effects_are_taken_within_seeds_and_then_averaged():
    # Effects of SpRel 1, 2 and 6 in three seeds of very different level: mean 3, deviation sqrt(7).
    worlds = [
        {tasks: value + level for tasks, value in made(sprel=effect).items()}
        for effect, level in ((1.0, 0.0), (2.0, -40.0), (6.0, 15.0))
    ]
    row = effects.main_effects_and_interactions(runs_of(*worlds)).loc["sprel"]
    assert row[["mean", "std", "n"]].tolist() == pytest.approx([3.0, 7**0.5, 3])
    half = stats.t.ppf(0.975, 2) * (7 / 3) ** 0.5
    assert row[["low", "high"]].tolist() == pytest.approx([3.0 - half, 3.0 + half])


def test_one_seed_gives_effects_without_intervals(table4):
    for table in (function(runs_of(table4)) for function in (effects.main_effects_and_interactions, effects.shapley)):
        assert table["mean"].notna().all()
        assert table[["std", "low", "high"]].isna().all(axis=None)


# Missing cells


def test_a_missing_cell_is_named_and_its_seed_gives_nothing(table4):
    runs = runs_of(table4, {**table4, "sprel+ang": None, "none": None}, made(sprel=2.0))
    lacking = effects.missing(runs)
    assert list(zip(lacking["seed"], lacking["tasks"])) == [(1, "none"), (1, "sprel+ang")]
    without = runs_of(table4).assign(seed=0), runs_of(made(sprel=2.0)).assign(seed=2)
    for function in (effects.main_effects_and_interactions, effects.shapley):
        table = function(runs)
        assert set(table["n"]) == {2}
        pd.testing.assert_frame_equal(table, function(pd.concat(without)))


def test_without_a_complete_seed_there_is_no_effect_at_all(table4):
    runs = runs_of({tasks: value for tasks, value in table4.items() if tasks != "dist"})
    assert effects.missing(runs)["tasks"].tolist() == ["dist"]
    for function in (effects.main_effects_and_interactions, effects.shapley):
        table = function(runs)
        assert len(table) >= 4
        assert set(table["n"]) == {0}
        assert table.drop(columns="n").isna().all(axis=None)


def test_a_full_design_lacks_nothing_and_no_runs_lack_everything(table4):
    assert effects.missing(runs_of(table4)).empty
    assert effects.missing(runs_of())["tasks"].tolist() == task_combinations()
    assert set(effects.main_effects_and_interactions(runs_of())["n"]) == {0}


def test_cells_outside_the_design_change_nothing(table4):
    with_rival = runs_of({**table4, "drloc": 12.0})
    pd.testing.assert_frame_equal(effects.shapley(with_rival), effects.shapley(runs_of(table4)))


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
    table = effects.leave_one_out(runs_of(table4, few))
    assert table["n"].to_dict() == {"sprel": 2, "dist": 1, "ang": 1, "abspos": 1}
    assert table.loc["sprel", "mean"] == pytest.approx((0.39 + 2.0) / 2)


# Shapley


def test_shapley_is_the_mean_over_all_orders_of_adding_tasks(table4):
    added = dict.fromkeys(PAPER_TASKS, 0.0)
    for order in permutations(PAPER_TASKS):
        for position, task in enumerate(order):
            before, after = name_of(order[:position]), name_of(order[: position + 1])
            added[task] += (table4[after] - table4[before]) / 24
    table = effects.shapley(runs_of(table4))
    assert table["mean"].to_dict() == pytest.approx(added)


def test_shapley_values_add_up_to_the_whole_gain(table4):
    table = effects.shapley(runs_of(table4))
    assert table["mean"].sum() == pytest.approx(90.06 - 85.38)
    assert table["share"].sum() == pytest.approx(1.0)
    assert table["share"].to_dict() == pytest.approx((table["mean"] / 4.68).to_dict())


def test_partners_share_alike_and_a_task_that_adds_nothing_gets_nothing():
    table = effects.shapley(runs_of(made(dist_abspos=4.0, ang=1.0)))
    assert table["mean"].to_dict() == pytest.approx({"sprel": 0.0, "dist": 2.0, "ang": 1.0, "abspos": 2.0})
    assert table["share"].to_dict() == pytest.approx({"sprel": 0.0, "dist": 0.4, "ang": 0.2, "abspos": 0.4})


def test_without_a_gain_there_are_values_but_no_shares():
    table = effects.shapley(runs_of(made(sprel=-1.0)))
    assert table.loc["sprel", "mean"] == pytest.approx(-1.0)
    assert table["share"].isna().all()
