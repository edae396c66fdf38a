"""What the entries that only read the account refuse before they ask MLflow for anything."""

import sqlite3
from contextlib import closing

import pytest
from helpers.accounts import finish
from mlflow import MlflowClient

from sweeps import pictures, reconcile
from sweeps.account.account import Account
from sweeps.planning.plan import Request, plan_cells


@pytest.fixture
def storage(tmp_path) -> str:
    """An account with one planned cell."""
    account = Account(tmp_path / "results")
    account.check()
    account.plan({plan_cells(Request("table4", "demo", tmp_path, combinations=("none",)))[0]: ("table4",)})
    return str(account.storage)


def test_keys_in_the_storage_are_refused_and_not_repeated(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["reconcile.py", "--storage", "s3://AKIA:hunter2@bucket/x"])
    with pytest.raises(SystemExit) as ended:
        reconcile.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "AWS_SECRET_ACCESS_KEY" in said
    assert "hunter2" not in said


def test_another_versions_account_is_refused(storage, monkeypatch, capsys, tmp_path):
    (tmp_path / "results/account.json").write_text('{"form": 2}')
    monkeypatch.setattr("sys.argv", ["reconcile.py", "--storage", storage])
    assert reconcile.main() == 2
    assert "nothing was changed:" in (said := capsys.readouterr().err)
    assert "a newer version" in said


def test_a_place_without_an_account_is_said_and_not_made_one(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["reconcile.py", "--storage", str(tmp_path / "typo")])
    assert reconcile.main() == 2
    assert "there is no account of cells" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("entry", [reconcile, pictures])
def test_a_password_in_the_tracking_uri_is_refused_and_not_repeated(entry, storage, monkeypatch, capsys):
    arguments = ["--storage", storage, "--tracking-uri", "http://me:hunter2@127.0.0.1:1"]
    monkeypatch.setattr("sys.argv", ["entry", *arguments])
    assert entry.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("nothing was ")
    assert "http://me:***@127.0.0.1:1 holds a password" in said
    assert "hunter2" not in said


def test_a_database_that_is_locked_for_longer_than_mlflow_waits_is_a_sentence(storage, monkeypatch, capfd, tmp_path):
    account = Account(tmp_path / "results")
    (cell,) = account.planned()
    finish(account, cell, [{"epoch": cell.total_epochs, "phase": "test", "test_accuracy": 50.0, "selected_epoch": 1}])
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(uri).create_experiment("relvit")
    monkeypatch.setattr("sys.argv", ["reconcile.py", "--storage", storage, "--tracking-uri", uri])
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("BEGIN IMMEDIATE")  # others can read
        assert reconcile.main() == 2
    said = capfd.readouterr().err
    assert said.startswith("nothing was changed:\n  - MLflow takes no writes now (") and "database is locked" in said
    assert len(said.splitlines()) == 2
    assert reconcile.main() == 0


@pytest.mark.parametrize("entry", [reconcile, pictures])
def test_a_file_that_is_no_database_is_said(entry, storage, monkeypatch, capsys, tmp_path):
    (tmp_path / "mlflow.db").write_text("a letter to somebody\n" * 100)
    monkeypatch.setattr(
        "sys.argv", ["entry", "--storage", storage, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    )
    assert entry.main() == 2
    assert "file is not a database" in capsys.readouterr().err
