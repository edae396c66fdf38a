"""What a few training steps tell of a phase's cost."""

import time
from pathlib import Path

import pytest
import torch

from relvit.calibrate import measure
from relvit.train import phases
from sweeps.planning.plan import Request, plan_cells


@pytest.fixture
def threads():
    """Sets how many torch has, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def seconds_per_image() -> tuple[float, ...]:
    (cell,) = plan_cells(Request("table4", "demo", Path("data"), combinations=("none",)))
    return measure(cell, phases(cell)[0], pair_head="bilinear", classes=10, device="cpu").seconds_per_image


def test_on_a_core_that_others_use_too_the_least_is_what_the_core_spent_itself(threads, monkeypatch):
    threads(1)
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: 5 * clock())  # as beside four others
    *by_the_clock, by_the_core = seconds_per_image()
    assert 0 < by_the_core < min(by_the_clock) / 3


def test_of_several_cores_the_clock_alone_tells(threads):
    threads(2)
    assert len(seconds_per_image()) == 3
