"""Between the first look at the account and the first trial, the status of each cell is read once."""

import contextlib
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from helpers.accounts import finish
from helpers.driving import Tracking

from sweeps import ablation
from sweeps.account.account import RUNNING, Account
from sweeps.planning.plan import plan_cells

ARGUMENTS = (
    "--tasks",
    "none,sprel,dist",
    "--set",
    "pretrain_epochs=2",
    "--set",
    "epochs=2",
    "--set",
    "warmup_epochs=1",
)


class Runs(Tracking):
    """MLflow's runs, which lack nothing."""

    def close_orphans(self, alive):
        return []

    def mark_duplicates(self):
        return []

    def is_finished(self, cell):
        return True


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """Counts by path the files that are read and the folders that are listed."""
    counts: Counter = Counter()
    read_text, glob = Path.read_text, Path.glob

    def counted_read(self, *arguments, **options):
        counts[str(self)] += 1
        return read_text(self, *arguments, **options)

    def counted_glob(self, pattern, **options):
        counts[str(self)] += 1
        return glob(self, pattern, **options)

    monkeypatch.setattr(Path, "read_text", counted_read)
    monkeypatch.setattr(Path, "glob", counted_glob)
    return counts


@pytest.fixture
def without_ray(monkeypatch, reads):
    """No cluster and no MLflow; Tune asks for one trial and looks no further."""
    asked = []

    def ask_once(reporter):
        entered = threading.Event()
        reporter.enter(entered.set)  # after all that is entered before the first trial
        assert entered.wait(60)
        asked.append((reporter.queue.suggest("the first trial"), Counter(reads)))

    monkeypatch.setattr("sweeps.cluster.connection.connected", lambda address: contextlib.nullcontext())
    monkeypatch.setattr("sweeps.cluster.connection.gpus_per_trial", lambda asked: 0.0)
    monkeypatch.setattr("sweeps.cluster.connection.resource_problems", lambda cpus, gpus: [])
    monkeypatch.setattr("sweeps.cluster.nodes.node_problems", lambda *arguments, **options: [])
    monkeypatch.setattr("sweeps.cli.console.open_tracker", lambda places: Runs())
    monkeypatch.setattr("sweeps.driver.driver.tune_trials", ask_once)
    return asked


def test_each_cell_s_status_is_read_once_before_the_first_trial(tmp_path, monkeypatch, reads, without_ray):
    monkeypatch.chdir(tmp_path)
    options = ablation.parse_arguments([*ARGUMENTS, "--storage", str(tmp_path / "results")])
    none, sprel, dist = cells = plan_cells(ablation.request_of(options))
    account = Account(tmp_path / "results")
    account.check()
    finish(account, none, [])
    account.mark(sprel, RUNNING)
    (account.folder(sprel) / "000001-0123456789abcdef.pt").touch()
    # Whether this is used by a cell that is not finished must not be read again either.
    account.folder(dist.pretraining()).mkdir(parents=True)
    (account.folder(dist.pretraining()) / "final-0123456789abcdef.pt").touch()
    monkeypatch.setattr(sys, "argv", ["ablation.py", *ARGUMENTS, "--storage", str(tmp_path / "results")])
    reads.clear()
    assert ablation.main() == 130  # the stand-in for Tune trains nothing
    (trial, reads_before), *_ = without_ray
    assert isinstance(trial, dict)
    states = {cell.tasks: reads_before[str(account.folder(cell) / "state.json")] for cell in cells}
    assert states == {"none": 1, "sprel": 1, "dist": 1}
    listings = {cell.tasks: reads_before[str(account.folder(cell))] for cell in cells}
    assert max(listings.values()) == 1
