"""How long a sweep says that it will take, from the epochs that it has trained."""

import time
from collections import Counter

import pytest
from helpers.made_runs import planned
from rich.console import Console

from sweeps.account.account import Account
from sweeps.account.work import WorkItem
from sweeps.cli.progress import SweepProgress
from sweeps.driver.plan_source import PlanSource


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start, in a list."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def progress(cells, epochs: dict) -> SweepProgress:
    return SweepProgress(Console(quiet=True), cells, Counter(epochs))


@pytest.fixture
def cells(tmp_path):
    return planned(tmp_path, "table4", seeds=(0,), combinations=("none", "sprel"))


def test_each_kind_of_epoch_is_left_to_take_what_it_took(cells, clock):
    bar = progress(cells, {"short": 10, "long": 10})
    assert bar.seconds_left() is None
    bar.epoch("short", 1.0)
    clock[0] = 1.0
    # 9 short ones of a second each; nothing is known of the 10 long ones, which count as short.
    assert bar.seconds_left() == pytest.approx(19.0)
    bar.epoch("long", 5.0)
    clock[0] = 6.0
    assert bar.seconds_left() == pytest.approx(9 * 1.0 + 9 * 5.0)


def test_epochs_that_were_trained_side_by_side_are_left_to_be_so(cells, clock):
    bar = progress(cells, {"long": 10})
    bar.epoch("long", 4.0)
    bar.epoch("long", 4.0)
    clock[0] = 4.0  # both in the same four seconds
    assert bar.seconds_left() == pytest.approx(8 * 4.0 / 2)


def test_an_epoch_counts_to_the_kind_that_its_time_depends_on(tmp_path, cells):
    none, sprel = cells
    account = Account(tmp_path / "results")
    source = PlanSource([WorkItem(cell, account.status(cell)) for cell in cells], account)
    kinds = source.epochs
    assert sum(kinds.values()) == none.total_epochs + sprel.total_epochs
    # Pre-training with and without tasks, and the fine-tuning of both.
    assert sorted(kinds.values()) == sorted([none.pretrain_epochs, sprel.pretrain_epochs, none.epochs + sprel.epochs])
