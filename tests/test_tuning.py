"""Requests of a search that are refused before anything starts."""

import pytest

from sweeps.account import Account
from sweeps.hpo import base_cells, parse_arguments
from sweeps.plan import PlanError
from sweeps.tuning import prepare, storage_url


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
