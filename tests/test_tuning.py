"""Requests of a search that are refused before anything starts."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from sweeps.account.account import Account
from sweeps.hpo import base_cells, parse_arguments
from sweeps.planning.plan import PlanError
from sweeps.search.request import _summary, prepare, storage_url


def test_a_password_typed_for_the_search_s_database_is_refused_beside_what_else_is_wrong(tmp_path, monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    url = "postgresql://me:hunter2@db/optuna"
    options = parse_arguments(["--optuna-storage", url, "--name", "a/b", "--trials", "4"])
    with pytest.raises(PlanError) as caught:
        prepare(options, base_cells(options), Account(tmp_path))
    said = "\n".join(caught.value.problems)
    assert "postgresql://me:***@db/optuna holds a password" in said and "set OPTUNA_STORAGE" in said
    assert "hunter2" not in said
    assert "--name 'a/b'" in said


def test_a_password_in_the_environment_is_seen_by_nobody_and_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://me:hunter2@db/optuna")
    assert storage_url(parse_arguments([]), Account(tmp_path)) == "postgresql://me:hunter2@db/optuna"


def test_a_search_is_kept_beside_its_account_unless_a_database_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    assert storage_url(parse_arguments([]), Account(tmp_path)) == f"sqlite:///{tmp_path}/optuna.db"
    named = parse_arguments(["--optuna-storage", "sqlite:///elsewhere.db"])
    assert storage_url(named, Account(tmp_path)) == "sqlite:///elsewhere.db"


@pytest.mark.parametrize(
    ("state", "said"),
    [(TrialState.PRUNED, "the recipe's own 11.00 % when it was stopped)"), (TrialState.COMPLETE, "own 11.00 %)")],
)
def test_a_recipe_that_was_stopped_early_is_not_held_against_the_best_as_if_complete(state, said):
    recipes, best = SimpleNamespace(values=[11.0], state=state), SimpleNamespace(values=[88.0], number=3)
    search = SimpleNamespace(
        name="search", trials=[recipes], best=lambda: best, training_epochs=20, training_seconds=60.0
    )
    assert said in _summary(search, [], Path("results"))
