"""A search without Ray: resume, equal draws, early stops, budgets, and which requests are refused."""

import json
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from helpers.searches import FEW, SPACE, base, opened, outcomes, quality, row, run, train
from optuna.trial import TrialState

from sweeps.planning.recipes import recipe, recipe_file
from sweeps.search.optuna_study import DatabaseError
from sweeps.search.report import comparable, importances
from sweeps.search.search import SAMPLERS, Budget, Method, Search, is_duplicate, method_problems
from sweeps.search.space import make_space

# Resume


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes", "nsga2"])
def test_a_search_that_another_driver_takes_up_draws_what_one_alone_would_have_drawn(sampler, tmp_path):
    scheduler = "none" if sampler == "nsga2" else "asha"
    method = Method(sampler, scheduler)
    whole = opened(tmp_path, method=method, name="whole", trials=16)
    run(whole)
    for _ in range(4):
        run(opened(tmp_path, method=method, name="parts", trials=16), limit=5)
    parts = opened(tmp_path, method=method, name="parts", trials=16)
    assert outcomes(parts) == outcomes(whole)
    assert parts.next() is None and parts.finished()


def test_a_trial_that_a_killed_driver_left_is_continued_with_its_parameters_and_counted_once(tmp_path):
    first = opened(tmp_path)
    run(first, limit=3)
    left = first.next()
    train(first, left, last=4)
    second = opened(tmp_path)
    again = second.next()
    assert (again.number, again.cell) == (left.number, left.cell)
    train(second, again)  # all its rows come again, those of its checkpoint first
    run(second)
    assert [trial.state for trial in second.trials] == [TrialState.COMPLETE] * 12
    assert list(second.trials[3].intermediate_values) == list(range(1, 10))
    assert second.trials[3].user_attrs["epochs"] == 9


def test_an_epoch_that_was_decided_is_not_decided_again(tmp_path):
    method = Method("random", "asha")
    first = opened(tmp_path, method=method)
    survivor = first.next()
    train(first, survivor, last=2)  # past the first rung, alone
    rival = first.next()
    train(first, rival)
    second = opened(tmp_path, method=method)
    again = second.next()
    assert again.number == survivor.number
    assert [second.report(again, row(again.cell, epoch)) for epoch in (1, 2)] == [False, False]


def test_a_larger_budget_adds_trials_and_keeps_the_others(tmp_path):
    run(opened(tmp_path, trials=5))
    more = opened(tmp_path, trials=8)
    before = outcomes(more)
    assert len(run(more)) == 3
    assert outcomes(more)[:5] == before


# Equal draws


def test_two_equal_draws_are_one_cell_trained_once_and_told_the_same(tmp_path):
    search = opened(tmp_path, space=FEW, trials=30)
    cells = run(search)
    assert len(cells) == len(set(cells)) == 4  # of gradient_clip; without tasks there is no head
    assert len(search.trials) == 30
    by_value = {}
    for trial in search.trials:
        by_value.setdefault(trial.params["gradient_clip"], set()).add((trial.state, trial.values[0]))
    assert all(len(told) == 1 for told in by_value.values())
    assert sum(is_duplicate(trial) for trial in search.trials) == 26
    assert search.training_epochs == 4 * 9


def test_a_draw_that_equals_a_running_trial_waits_for_its_outcome(tmp_path):
    search = opened(tmp_path, space=FEW, trials=30)
    running = []
    while (asked := search.next()) is not None:
        running.append(asked)
    assert len({asked.cell for asked in running}) == len(running) == 4
    for asked in running:
        train(search, asked)
    assert search.counts() == {"complete": 30}


def test_an_exhausted_space_ends_a_search_that_has_hours_left(tmp_path):
    search = Search("a", FEW, Method("random", "none"), Budget(hours=5), f"sqlite:///{tmp_path}/optuna.db")
    assert len(run(search)) == 4
    assert search.finished()


# Stops, failures, objectives


def test_asha_lets_one_in_three_past_each_rung(tmp_path):
    assert Method("tpe", "asha").rungs(9) == [1, 3]
    assert Method("tpe", "asha").rungs(20) == [2, 6, 18]
    assert Method("tpe", "asha", min_epochs=4).rungs(9) == [4]
    search = opened(tmp_path, method=Method("random", "asha"), trials=27)
    run(search)
    stopped = [trial.last_step for trial in search.trials if trial.state == TrialState.PRUNED]
    assert set(stopped) == {1, 3}
    assert search.counts()["complete"] < 9
    assert search.training_epochs < 0.6 * 27 * 9
    assert search.best().state == TrialState.COMPLETE


def test_a_failed_trial_is_kept_as_failed_and_not_tried_again(tmp_path):
    search = opened(tmp_path, trials=3)
    search.settle(search.next(), "NotFiniteError: joint loss is nan")
    run(search)
    again = opened(tmp_path, trials=3)
    assert [trial.state for trial in again.trials][0] == TrialState.FAIL
    assert "loss is nan" in again.trials[0].user_attrs["reason"]
    assert again.next() is None
    assert again.best().number in (1, 2)


def test_the_value_is_that_of_the_weights_that_would_be_tested(tmp_path):
    for selection, expected in (("best_val", 80.0), ("last", 60.0)):
        space = make_space(base("none", protocol="joint", epochs=3, selection=selection))
        search = opened(tmp_path, space=space, name=selection, trials=1)
        asked = search.next()
        for epoch, value in enumerate((50.0, 80.0, 60.0), start=1):
            search.report(asked, {"epoch": epoch, "epoch_seconds": 1.0, "joint_val_accuracy": value})
        search.settle(asked)
        assert search.best().values == [expected]


def test_two_objectives_are_accuracy_and_seconds(tmp_path):
    search = opened(tmp_path, method=Method("nsga2", "none"), trials=2)
    run(search)
    assert search.trials[0].values == [quality(search.cell_of(search.trials[0]), 9), 18.0]


def test_given_points_come_first_and_fill_what_they_leave_open(tmp_path):
    points = [{"learning_rate": 0.003, "weight_decay": 0.1}, {"drop_path": 0.1}]
    search = opened(tmp_path, points=points)
    cells = run(search, limit=2)
    assert (cells[0].learning_rate, cells[0].weight_decay) == (0.003, 0.1)
    assert cells[1].drop_path == 0.1
    run(opened(tmp_path, points=points))
    assert sum(trial.params["learning_rate"] == 0.003 for trial in opened(tmp_path).trials) == 1


def test_a_cell_that_must_wait_is_held_and_handed_out_later(tmp_path):
    search = opened(tmp_path, trials=2)
    assert search.next(lambda cell: False) is None
    assert not search.finished()
    held = search.next()
    assert held.number == 0
    assert search.next().number == 1


# Refusals


def problems(sampler="tpe", scheduler="asha", space=SPACE, min_epochs=None, **budget):
    return method_problems(Method(sampler, scheduler, min_epochs), Budget(**(budget or {"trials": 100})), space)


def test_every_searcher_goes_with_a_scheduler():
    for sampler in SAMPLERS:
        assert problems(sampler, "none") == []


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"sampler": "tep"}, "unknown searcher 'tep'.*did you mean 'tpe'"),
        ({"scheduler": "ahsa"}, "unknown scheduler 'ahsa'.*did you mean 'asha'"),
        ({"sampler": "nsga2"}, "searches for two .*use --scheduler none"),
        ({"sampler": "cmaes", "space": FEW}, "needs at least one range of numbers"),
        ({"trials": 8}, "--trials 8 is too few for one bracket of asha, with rungs after 1, 3 of 9 epochs.*at least 9"),
        ({"scheduler": "hyperband", "trials": 16}, "too few for the 3 brackets of hyperband.*at least 17"),
        ({"scheduler": "median", "trials": 5}, "too few for median stopping.*at least 6"),
        ({"min_epochs": 9}, "there is none between"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(request_, sentence):
    (found,) = problems(**request_)
    assert re.search(sentence, found)


def test_no_budget_is_refused():
    assert "no budget" in method_problems(Method(), Budget(), SPACE)[0]


def test_another_study_of_the_same_name_is_refused_with_what_differs(tmp_path):
    run(opened(tmp_path), limit=1)
    before = (tmp_path / "optuna.db").read_bytes()
    with pytest.raises(DatabaseError, match="holds another study 'a': .*searcher was random, now tpe"):
        opened(tmp_path, method=Method("tpe", "none"))
    with pytest.raises(DatabaseError, match="weight_decay was None, now 0.0"):
        opened(tmp_path, space=make_space(SPACE.base, names=["learning_rate"]))
    assert (tmp_path / "optuna.db").read_bytes() == before


def test_the_database_of_another_program_is_refused_and_left_as_it_is(tmp_path):
    with sqlite3.connect(tmp_path / "optuna.db") as connection:
        connection.execute("create table experiments (id integer)")
    before = (tmp_path / "optuna.db").read_bytes()
    with pytest.raises(DatabaseError, match="another program's database"):
        opened(tmp_path)
    assert (tmp_path / "optuna.db").read_bytes() == before


def test_a_new_database_is_whole_from_the_moment_that_others_can_see_it(tmp_path):
    path = tmp_path / "optuna.db"

    def first_sight():
        while not path.exists():
            pass
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
            # Optuna's last step in making its tables; who opens the file without it makes them a second time.
            return connection.execute("select count(*) from alembic_version").fetchone()

    with ThreadPoolExecutor() as pool:
        sight = pool.submit(first_sight)
        opened(tmp_path)
        assert sight.result() == (1,)
    assert not list(tmp_path.glob(".optuna.db-*"))


def test_optuna_reads_the_database_as_its_own(tmp_path):
    search = opened(tmp_path, method=Method("random", "asha"))
    run(search)
    study = optuna.load_study(study_name="a", storage=f"sqlite:///{tmp_path}/optuna.db")
    assert study.best_trial.number == search.best().number
    theirs = [(trial.number, trial.state, trial.values, trial.params) for trial in study.trials]
    assert theirs == outcomes(search)
    assert all(trial.user_attrs["cell_id"] == search.cell_of(trial).cell_id for trial in study.trials)


# What comes out


def test_the_parameter_that_decides_is_the_most_important_and_an_idle_one_is_not(tmp_path):
    space = make_space(SPACE.base, names=["learning_rate", "drop_path"])
    search = opened(tmp_path, space=space, method=Method("random", "asha"), trials=60)
    run(search)
    step, trials = comparable(search)
    assert step == 1 and len(trials) == 60  # all have this epoch, the stopped ones too
    first, second = importances(search, trials, resamples=4)
    assert first.name == "learning_rate" and first.low > 0.7
    assert second.name == "drop_path" and second.mean < 0.2
    assert all(0 <= each.low <= each.mean <= each.high <= 1 for each in (first, second))


def test_a_recipe_file_gives_its_fields_to_every_cell_and_goes_before_the_backbone_s(tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text(json.dumps(recipe_file("paper", {"batch_size": 48, "learning_rate": 0.003})))
    tuned = recipe(str(path))
    assert tuned.for_backbone("swin_t", 224)["batch_size"] == 48  # the paper's is 64 with Swin
    assert tuned.for_backbone("vit_s4", 32)["weight_decay"] == 0.0
    again = recipe_file(str(path), {"batch_size": 32})
    assert again == {"recipe": "paper", "fields": {"batch_size": 32, "learning_rate": 0.003}}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold"),
        ('{"recipe": "papre", "fields": {}}', "did you mean 'paper'"),
        ('{"recipe": "paper", "fields": {"learning_rat": 1.0}}', "did you mean 'learning_rate'"),
        ('{"recipe": "paper", "fields": {"seed": 1}}', "seed is no part of a recipe"),
        ('{"recipe": "paper", "fields": {"batch_size": "64"}}', "batch_size must be of type int"),
    ],
)
def test_a_recipe_file_that_is_wrong_is_refused(content, sentence, tmp_path):
    path = tmp_path / "tuned.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        recipe(str(path))
