"""Requests of a search that are refused before anything starts, and the line that says what came out."""

from pathlib import Path

import pytest
from helpers.searches import opened, run, train

from sweeps.account.account import Account
from sweeps.cli.options import Places
from sweeps.planning.plan import PlanError
from sweeps.search.request import SearchRequest, base_cells, prepare, storage_url
from sweeps.search.results import summary
from sweeps.search.search import Method


def request(folder, **asked) -> SearchRequest:
    return SearchRequest(Places(folder, folder / "data", "sqlite:///mlflow.db", "relvit", "local"), **asked)


def test_a_password_typed_for_the_search_s_database_is_refused_beside_what_else_is_wrong(tmp_path, monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    asked = request(tmp_path, optuna_storage="postgresql://me:hunter2@db/optuna", name="a/b", trials=4)
    with pytest.raises(PlanError) as caught:
        prepare(asked, base_cells(asked), Account(tmp_path))
    said = "\n".join(caught.value.problems)
    assert "postgresql://me:***@db/optuna holds a password" in said and "set OPTUNA_STORAGE" in said
    assert "hunter2" not in said
    assert "--name 'a/b'" in said


def test_a_password_in_the_environment_is_seen_by_nobody_and_taken(tmp_path, monkeypatch):
    url = "postgresql://me:hunter2@db/optuna"
    monkeypatch.setenv("OPTUNA_STORAGE", url)
    assert storage_url(request(tmp_path, optuna_storage=url), Account(tmp_path)) == url


def test_a_search_is_kept_beside_its_account_unless_a_database_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    assert storage_url(request(tmp_path), Account(tmp_path)) == f"sqlite:///{tmp_path}/optuna.db"
    named = request(tmp_path, optuna_storage="sqlite:///elsewhere.db")
    assert storage_url(named, Account(tmp_path)) == "sqlite:///elsewhere.db"


@pytest.mark.parametrize("named", [None, "sqlite:////shared/optuna.db"])
def test_a_search_s_sqlite_file_on_a_network_file_system_is_refused(named, tmp_path, monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    monkeypatch.setattr("sweeps.tracking.reachable.file_system_of", lambda path: "nfs4")
    with pytest.raises(PlanError, match=r"optuna.db is on a network file system \(nfs4\).*--optuna-storage"):
        storage_url(request(tmp_path, optuna_storage=named), Account(tmp_path))


def test_the_search_s_own_seed_is_refused_for_the_tests(tmp_path):
    with pytest.raises(PlanError, match="--seeds 7 is the search's own seed: .* optimistically biased"):
        base_cells(request(tmp_path, search_seed=7, seeds=(0, 7), trials=4))


def test_a_recipe_that_was_stopped_early_is_not_held_against_the_best_as_if_complete(tmp_path):
    complete = opened(tmp_path, name="whole", trials=2, points=[{"learning_rate": 0.009}])
    run(complete)
    first = f"{complete.trials[0].values[0]:.2f}"
    assert f"the recipe's own {first} %)" in summary(complete, [], Path("results"))

    stopped = opened(tmp_path, method=Method("random", "asha"), trials=9, points=[{"learning_rate": 0.009}])
    recipe_s = stopped.next()
    others = [stopped.next() for _ in range(5)]
    for other in others:
        train(stopped, other)
    train(stopped, recipe_s)
    assert stopped.trials[0].state.name == "PRUNED"
    assert "the recipe's own " in summary(stopped, [], Path("results"))
    assert " % when it was stopped)" in summary(stopped, [], Path("results"))
