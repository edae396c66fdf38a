"""Population-based training without Ray: who is replaced, by what, and that it does not matter how it was run."""

import random
import re

import pytest
from helpers.searches import base
from optuna.trial import TrialState
from ray import tune

from relvit.cell import parse_schedule
from sweeps.search.optuna_study import DurableStudy
from sweeps.search.population import PopulationSearch, boundaries, explore, replaced, select
from sweeps.search.report import comparable, write_report
from sweeps.search.search import Budget, Method, forked_epochs, is_fork, method_problems
from sweeps.search.space import make_space

NAMES = ["learning_rate", "weight_decay", "batch_size"]
SPACE = make_space(base("none", protocol="joint", epochs=8), names=NAMES)
POPULATION = 5
METHOD = Method("random", "pbt", 2, 0, POPULATION)


def row(cell, epoch):
    """What an epoch adds to a made-up accuracy is the less, the further its learning rate is from 0.001."""
    gains = [1 - 50 * abs(cell.after(done).learning_rate - 0.001) for done in range(epoch)]
    return {"epoch": epoch, "epoch_seconds": 2.0, "joint_val_accuracy": 50 + 5 * sum(gains)}


def opened(tmp_path, name="a", trials=30, space=SPACE, method=METHOD):
    return PopulationSearch(name, space, method, Budget(trials=trials), f"sqlite:///{tmp_path}/optuna.db")


def run(search, slots=1, epochs=10**9):
    """Train members, so many at a time and an epoch of each in turn, until the end or for so many epochs in all.

    Returns the trials' numbers as they were handed out.
    """
    live, started = [], []
    while True:
        while len(live) < slots and (asked := search.next()) is not None:
            asked.restart()
            live.append(asked)
            started.append(asked.number)
        if not live:
            assert search.finished()
            return started
        for asked in list(live):
            if not epochs:
                return started
            # A training that goes on yields what it has again.
            ends = search.report(asked, row(asked.cell, asked.epoch + 1))
            epochs -= 1
            if ends:
                live.remove(asked)
                search.wait(asked) if asked.waits else search.settle(asked)


def outcomes(search):
    return [
        (trial.number, trial.state, trial.values, trial.params, search.cell_of(trial).cell_id)
        for trial in search.trials
    ]


# The rules of the publication


def test_a_fifth_at_the_end_is_replaced_by_members_of_the_fifth_at_the_top():
    values = {number: float(value) for number, value in enumerate([5, 9, 7, 1, 3, 8, 2, 6, 4, 0])}
    drawn = [select(values, random.Random(seed)) for seed in range(50)]
    assert all(set(chosen) == {3, 9} for chosen in drawn)
    assert {winner for chosen in drawn for winner in chosen.values()} == {1, 5}
    assert [replaced(count) for count in (2, 5, 8, 10, 20)] == [1, 1, 2, 2, 4]


def test_of_equal_members_the_younger_is_replaced():
    assert select({4: 1.0, 2: 1.0, 3: 1.0}, random.Random(0)) == {4: 2}
    assert select({4: 1.0}, random.Random(0)) == {}


def test_members_are_compared_after_each_interval_but_the_last():
    assert boundaries(2, 8) == [2, 4, 6]
    assert boundaries(3, 8) == [3, 6]


@pytest.mark.parametrize(
    ("domain", "value", "near"),
    [
        (tune.loguniform(1e-4, 1e-2), 1e-3, {0.0008, 0.0012}),
        (tune.loguniform(1e-4, 1e-2), 9e-3, {0.0072, 0.01}),  # not beyond the end
        (tune.uniform(0.0, 0.5), 0.25, {0.2, 0.3}),
        (tune.quniform(0.0, 0.4, 0.1), 0.2, {0.1, 0.3}),  # a fifth of it is less than a step
        (tune.randint(0, 11), 10, {8, 10}),
        (tune.choice([0.0, 0.5, 1.0, 5.0]), 1.0, {0.5, 5.0}),
        (tune.choice([5.0, 1.0, 0.5]), 5.0, {1.0, 5.0}),
        (tune.choice([False, True]), True, {False, True}),
    ],
)
def test_a_value_is_perturbed_to_its_neighbourhood_or_drawn_anew(domain, value, near):
    found = [explore(value, domain, random.Random(seed)) for seed in range(400)]
    close = [each for each in found if any(each == pytest.approx(one) for one in near)]
    assert {round(each, 9) for each in close} == {round(each, 9) for each in near}
    # One in four is drawn anew; from few choices that may be a neighbour too.
    assert len(close) >= 0.65 * len(found)
    if not isinstance(domain.sample(), (bool, int)) and len(near) == 2 and not hasattr(domain, "categories"):
        assert len(close) < len(found)
    assert all(type(each) is type(value) for each in found)


# A search


def test_members_that_fall_behind_become_forks_of_those_ahead(tmp_path):
    search = opened(tmp_path)
    run(search)
    forks = [trial for trial in search.trials if is_fork(trial)]
    assert len(forks) == 3  # one after each of 2, 4 and 6 epochs
    assert [trial.user_attrs["forked_after"] for trial in forks] == [2, 4, 6]
    states = [trial.state for trial in search.trials]
    assert states.count(TrialState.COMPLETE) == POPULATION
    assert states.count(TrialState.PRUNED) == len(forks)
    for fork in forks:
        after = fork.user_attrs["forked_after"]
        parent, loser = search.trials[fork.user_attrs["parent"]], search.trials[fork.user_attrs["replaces"]]
        at_that_time = [
            trial.intermediate_values[after]
            for trial in search.trials
            if after in trial.intermediate_values and forked_epochs(trial, search.cell_of(trial)) < after
        ]
        assert parent.intermediate_values[after] == max(at_that_time)
        assert loser.intermediate_values[after] == min(at_that_time)
        assert loser.state == TrialState.PRUNED and max(loser.intermediate_values) == after
        # It has its parent's past, and its parameters are what it changed to.
        cell = search.cell_of(fork)
        assert cell.until(after) == search.cell_of(parent).until(after)
        assert parse_schedule(cell.schedule)[-1][0] == after
        assert cell.after(after).learning_rate == fork.params["learning_rate"]
        assert cell.batch_size == search.cell_of(parent).batch_size
        assert fork.user_attrs["cell_id"] == cell.cell_id
        assert {step: fork.intermediate_values[step] for step in range(1, after + 1)} == {
            step: parent.intermediate_values[step] for step in range(1, after + 1)
        }


def test_an_epoch_that_a_fork_took_over_is_counted_once(tmp_path):
    search = opened(tmp_path)
    run(search)
    # Five members through eight epochs, whoever they are.
    assert search.training_epochs == POPULATION * 8
    assert search.training_seconds == pytest.approx(POPULATION * 8 * 2.0)


@pytest.mark.parametrize("slots", [2, 3, 5, 9])
def test_however_many_are_trained_at_once_the_outcome_is_the_same(tmp_path, slots):
    alone, together = opened(tmp_path, "alone"), opened(tmp_path, "together")
    run(alone)
    run(together, slots)
    assert outcomes(together) == outcomes(alone)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("epochs", [1, 9, 10, 11, 13, 20, 21, 30, 37, 44, 55])
def test_a_search_that_was_killed_goes_on_to_the_same_outcome(tmp_path, slots, epochs):
    whole = opened(tmp_path, "whole")
    run(whole)
    run(opened(tmp_path, "parts"), slots, epochs)
    run(opened(tmp_path, "parts"), slots, epochs)
    parts = opened(tmp_path, "parts")
    run(parts, slots)
    assert outcomes(parts) == outcomes(whole)


def test_a_selection_that_was_interrupted_half_way_is_finished(tmp_path, monkeypatch):
    whole = opened(tmp_path, "whole")
    run(whole)
    with monkeypatch.context() as patch:
        # The first outcome that is entered is that of a member which was replaced; its fork is entered before.
        patch.setattr(DurableStudy, "tell", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(opened(tmp_path, "parts"))
    parts = opened(tmp_path, "parts")
    run(parts)
    assert outcomes(parts) == outcomes(whole)


def test_a_parent_does_not_go_on_before_its_fork_has_taken_over_its_checkpoint(tmp_path):
    run(opened(tmp_path), epochs=POPULATION * 2)
    search = opened(tmp_path)
    fork = search.next()
    parent = search.trials[fork.number].user_attrs["parent"]
    assert fork.forked == search.cell_of(search.trials[parent])
    assert (fork.forked_after, fork.stop_after) == (2, 4)
    others = []
    while (asked := search.next()) is not None:
        others.append(asked.number)
    assert len(others) == POPULATION - 2 and parent not in others
    fork.restart()
    search.report(fork, row(fork.cell, 1))
    assert search.next().number == parent


def test_a_member_whose_training_failed_is_replaced_by_a_new_one(tmp_path):
    search = opened(tmp_path)
    failed = search.next()
    search.settle(failed, "the node burned down")
    run(search)
    states = [trial.state for trial in search.trials]
    assert states[0] == TrialState.FAIL
    assert states.count(TrialState.COMPLETE) == POPULATION


def test_when_the_budget_is_spent_nobody_is_replaced_and_all_train_to_their_end(tmp_path):
    search = opened(tmp_path, trials=POPULATION + 1)
    run(search)
    states = [trial.state for trial in search.trials]
    assert states.count(TrialState.COMPLETE) == POPULATION
    assert states.count(TrialState.PRUNED) == 1
    assert search.finished()


def test_the_best_one_s_fields_make_the_same_cell_again(tmp_path):
    search = opened(tmp_path)
    run(search)
    best = search.best()
    fields = search.fields_of(best)
    assert set(fields) == {*NAMES, "schedule"}
    assert type(search.cell_of(best))(**{**SPACE.base, **fields}) == search.cell_of(best)


def test_the_report_says_what_the_best_one_changed_when(tmp_path):
    search = opened(tmp_path, method=Method("random", "pbt", 2, 2, POPULATION))
    run(search)
    write_report(search, tmp_path / "report", "30 trials", [])
    report = (tmp_path / "report/report.md").read_text()
    changes = parse_schedule(search.cell_of(search.best()).schedule)
    assert changes, "the best one has to be a fork, or this shows nothing"
    for epochs, _ in changes:
        assert f"- after {epochs} epochs of the last phase: " in report
    # Importance is judged without forks, whose past is their parent's.
    assert all(trial.value is not None for trial in comparable(search)[1])
    assert len(comparable(search)[1]) == POPULATION


# What cannot work


def problems(space=SPACE, trials=30, **method):
    known = {"sampler": "random", "scheduler": "pbt", "population": POPULATION}
    return method_problems(Method(**known | method), Budget(trials=trials), space)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"population": 1}, "--population 1 is no population: give at least 2"),
        ({"trials": POPULATION}, "--trials 5 leaves nothing beyond the 5 members that pbt begins with"),
        ({"min_epochs": 8}, "there is none between"),
        ({"sampler": "nsga2"}, "searches for two .*use --scheduler none"),
        ({"scheduler": "asha"}, "--population is for --scheduler pbt; asha has none"),
        (
            {"space": make_space(base("none", protocol="joint", epochs=8), names=["batch_size"])},
            "none of batch_size can change within a phase: search one of learning_rate, weight_decay",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(request_, sentence):
    (found,) = problems(**request_)
    assert re.search(sentence, found)


def test_what_can_work_is_not_refused():
    assert problems() == []
