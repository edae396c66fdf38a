"""What a search's driver enters about its trials, without Ray."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console
from sweeps.search.queue import _SearchReporter
from test_search import FEW, opened, row, run

from sweeps.account.account import PRUNED, RUNNING, SEARCHED, Account


class Tracking:
    """Writes down what MLflow would be told; `tags` are those of runs that were there before."""

    def __init__(self, tags):
        self.tags, self.calls = tags, []

    def tag_of(self, cell_id, name):
        return self.tags.get(cell_id, {}).get(name)

    def __getattr__(self, name):
        return lambda *arguments, **more: self.calls.append((name, *arguments))


@pytest.fixture
def ended(tmp_path):
    """A search of four trials that have ended, and its account, which has all of that."""
    search = opened(tmp_path, space=FEW, trials=4)
    run(search)
    account = Account(tmp_path / "results")
    for trial in search.trials:
        if "epochs" in trial.user_attrs:
            account.mark(search.cell_of(trial), SEARCHED)
    return search, account


def entered(search, account, tags):
    tracking = Tracking(tags)
    queue = SimpleNamespace(searches=[search])
    reporter = _SearchReporter(queue, account, tracking, {}, Console(file=io.StringIO()))
    reporter.enter_left_out()
    reporter.close()
    return tracking.calls


def test_what_an_earlier_driver_entered_is_left_alone(ended):
    search, account = ended
    tags = {trial.user_attrs["cell_id"]: {"trial_state": "complete"} for trial in search.trials}
    assert entered(search, account, tags) == []


def test_a_trial_of_which_mlflow_has_not_heard_the_end_is_entered_with_its_rows(ended):
    search, account = ended
    trial = search.trials[0]
    cell, cell_id = search.cell_of(trial), trial.user_attrs["cell_id"]
    rows = [row(cell, epoch) for epoch in (1, 2)]
    account.keep_history(cell, rows)
    tags = {each.user_attrs["cell_id"]: {"trial_state": "complete"} for each in search.trials}
    calls = entered(search, account, tags | {cell_id: {"trial_state": "running"}})
    assert calls[:3] == [("begin", cell), ("log", cell_id, rows[0]), ("log", cell_id, rows[1])]
    assert [name for name, *_ in calls[3:]] == ["interrupt", "tag"]
    assert calls[-1][2] == {"search": "a", "trial": "0", "trial_state": "complete", "stopped_epoch": "9"}


def test_a_trial_of_which_the_account_has_not_heard_the_end_is_entered_and_its_checkpoints_go(ended):
    search, account = ended
    cell = search.cell_of(search.trials[0])
    account.mark(cell, RUNNING)
    (account.folder(cell) / "000009-0123.pt").write_bytes(b"weights")
    tags = {each.user_attrs["cell_id"]: {"trial_state": "complete"} for each in search.trials}
    entered(search, account, tags)
    assert account.status(cell).state in (SEARCHED, PRUNED)
    assert not list(account.folder(cell).glob("*.pt"))
