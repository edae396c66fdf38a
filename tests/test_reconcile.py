"""What sweeps/reconcile.py refuses before it asks MLflow for anything; what it mends: end_to_end/test_ablation.py."""

import pytest

from sweeps import reconcile
from sweeps.account import Account
from sweeps.plan import Request, plan_cells


@pytest.fixture
def storage(tmp_path) -> str:
    """An account with one planned cell."""
    account = Account(tmp_path / "results")
    account.check()
    account.plan({plan_cells(Request("table4", "demo", tmp_path, combinations=("none",)))[0]: "table4"})
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
    assert "nothing was changed: " in (said := capsys.readouterr().err)
    assert "a newer version" in said


def test_a_place_without_an_account_is_said_and_not_made_one(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["reconcile.py", "--storage", str(tmp_path / "typo")])
    assert reconcile.main() == 2
    assert "there is no account of cells" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()
