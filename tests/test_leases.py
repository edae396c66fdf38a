"""Which driver holds which cells: one each, the living before the late, and the dead are replaced."""

import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from relvit import checkpoint
from sweeps.account import leases
from sweeps.account.leases import Lease, LeaseLostError, apparently_held, hold, read, require

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(leases, "HEARTBEAT_INTERVAL", 0.05)
    monkeypatch.setattr(leases, "LEASE_TIMEOUT", 0.5)


def nothing():
    pass


def eventually(condition):
    """Whether it comes true within 10 s; an OSError means not yet."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with suppress(OSError):
            if condition():
                return True
        time.sleep(0.05)
    return False


def elsewhere(folder, name, cells, **fields):
    """The lease of a driver on another machine, of which nothing but its file can be seen."""
    lease = Lease(name, f"process 7 on {name}", "another boot/ns/7/1", time.time(), "holding", tuple(cells))
    write(folder, replace(lease, **fields))
    return replace(lease, **fields)


def write(folder, lease):
    folder.mkdir(exist_ok=True)
    (folder / f"{lease.name}.json").write_text(json.dumps(asdict(lease)))


class Living:
    """Keeps another machine's lease alive until it is left."""

    def __init__(self, folder, lease):
        self._folder, self._lease, self._done = folder, lease, threading.Event()

    def __enter__(self):
        self._thread = threading.Thread(target=self._live)
        self._thread.start()

    def __exit__(self, *exception):
        self._done.set()
        self._thread.join()

    def _live(self):
        while not self._done.wait(0.02):
            self._lease = replace(self._lease, beat=self._lease.beat + 1)
            scratch = self._folder / "scratch"
            scratch.write_text(json.dumps(asdict(self._lease)))
            scratch.rename(self._folder / f"{self._lease.name}.json")


def test_a_driver_that_is_alone_holds_what_it_asks_for_until_it_ends(tmp_path):
    with hold(tmp_path, ["a", "b"], nothing) as mine:
        assert mine.held == {"a", "b"}
        assert mine.others == {}
        assert apparently_held(tmp_path) == {"a", "b"}
    assert read(tmp_path) == []


def test_a_second_driver_gets_what_the_first_does_not_hold(tmp_path):
    with hold(tmp_path, ["a", "b"], nothing), hold(tmp_path, ["b", "c"], nothing) as second:
        assert second.held == {"c"}
        assert set(second.others) == {"b"}


def test_a_driver_on_another_machine_that_gives_heartbeats_is_left_alone(tmp_path):
    lease = elsewhere(tmp_path, "node-1", ["a"])
    with Living(tmp_path, lease), hold(tmp_path, ["a", "b"], nothing) as mine:
        assert mine.held == {"b"}
        assert mine.others == {"a": "process 7 on node-1"}
        assert mine.replaced == []


def test_a_driver_on_another_machine_that_gives_none_is_replaced(tmp_path):
    elsewhere(tmp_path, "node-1", ["a"])
    with hold(tmp_path, ["a"], nothing) as mine:
        assert mine.held == {"a"}
        assert mine.replaced == ["process 7 on node-1"]
        assert [lease.cells for lease in read(tmp_path)] == [("a",)]


def test_clocks_do_not_matter(tmp_path):
    lease = elsewhere(tmp_path, "node-1", ["a"], ticket=time.time() - 1e6)
    with Living(tmp_path, lease), hold(tmp_path, ["a"], nothing) as mine:
        assert mine.held == set()


def test_a_dead_driver_of_this_machine_is_replaced_without_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_TIMEOUT", 3600)
    boot, namespace, _, _ = leases.this_process().rsplit("/", 3)
    # The number of this very process, begun at another time: a number that was given again.
    elsewhere(tmp_path, "gone", ["a"], process=f"{boot}/{namespace}/{leases.os.getpid()}/1")
    assert apparently_held(tmp_path) == set()
    with hold(tmp_path, ["a"], nothing) as mine:
        assert mine.held == {"a"}


def test_a_driver_that_was_replaced_is_told_once(tmp_path):
    told = []
    with hold(tmp_path, ["a"], lambda: told.append(True)) as mine:
        (lease,) = read(tmp_path)
        assert not mine.is_lost
        elsewhere(tmp_path, "node-2", ["a"], replaced=(lease.name,))
        deadline = time.monotonic() + 5
        while not told:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert mine.is_lost
    assert told == [True]


@pytest.fixture
def suspended(monkeypatch):
    """Makes a driver of this process miss its heartbeats for longer than its lease, as a suspended one does."""

    class Clock:
        ahead = 0.0

        def __call__(self):
            return time.monotonic() + self.ahead

    clock = Clock()
    monkeypatch.setattr(leases, "now", clock)
    monkeypatch.setattr(leases, "HEARTBEAT_INTERVAL", 0.5)
    monkeypatch.setattr(leases, "LEASE_TIMEOUT", 60)
    return lambda: setattr(clock, "ahead", clock.ahead + 61)


def test_a_driver_that_slept_through_its_replacement_knows_at_once_though_the_other_has_finished(tmp_path, suspended):
    told = []
    with hold(tmp_path, ["a"], lambda: told.append(True)) as mine:
        suspended()
        for lease in read(tmp_path):  # the other removed it when it took over, and its own when it had finished
            (tmp_path / f"{lease.name}.json").unlink()
        assert mine.is_lost
        assert mine.may_not_write()
        assert read(tmp_path) == []  # nor is the lease written again
        assert told == [True]


def test_a_driver_that_slept_and_was_not_replaced_goes_on(tmp_path, suspended):
    with hold(tmp_path, ["a"], nothing) as mine:
        suspended()
        assert not mine.is_lost
        assert not mine.may_not_write()
        assert apparently_held(tmp_path) == {"a"}


def test_a_driver_whose_lease_was_removed_is_told_by_its_next_heartbeat(tmp_path):
    told = threading.Event()
    with hold(tmp_path, ["a"], told.set) as mine:
        (lease,) = read(tmp_path)
        (tmp_path / f"{lease.name}.json").unlink()
        assert told.wait(10)
        assert mine.is_lost


def test_while_the_storage_is_away_nobody_is_called_dead_and_writes_wait(tmp_path, suspended, monkeypatch):
    def away(*arguments):
        raise OSError("no route to the storage")

    with hold(tmp_path, ["a"], nothing) as mine:
        with monkeypatch.context() as broken:
            broken.setattr(leases, "write_atomic", away)
            suspended()
            assert not mine.is_lost
            with pytest.raises(OSError, match="no heartbeat of this driver for 60 s"):
                mine.may_not_write()
        assert eventually(lambda: not mine.may_not_write())  # the next heartbeat


DRIVER = """
import sys, time
from pathlib import Path
from sweeps.account import leases
leases.HEARTBEAT_INTERVAL, leases.LEASE_TIMEOUT = 0.05, 0.5
with leases.hold(Path(sys.argv[1]), ["a"], lambda: print("lost", flush=True)) as mine:
    print(mine.name, flush=True)
    time.sleep(600)
"""


def test_a_trial_of_a_suspended_driver_writes_until_another_has_its_cell_and_then_no_more(tmp_path):
    command = [sys.executable, "-c", DRIVER, tmp_path / "drivers"]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        permit = partial(require, tmp_path / "drivers", driver.stdout.readline().strip())

        def written(epoch):
            with suppress(LeaseLostError):
                checkpoint.save({"weights": torch.ones(3)}, tmp_path / "cell", epoch, keep=9, permit=permit)
            return {int(path.name[:6]) for path in (tmp_path / "cell").glob("*.pt")}

        assert written(1) == {1}
        driver.send_signal(signal.SIGSTOP)
        assert written(2) == {1, 2}
        with hold(tmp_path / "drivers", ["a"], nothing) as mine:
            assert mine.held == {"a"}
            assert written(3) == {1, 2}
        assert written(4) == {1, 2}  # nor when the other has finished and nothing of it is to be seen
        assert not list((tmp_path / "cell").glob(".*"))
        driver.send_signal(signal.SIGCONT)
        assert driver.stdout.readline() == "lost\n"
    finally:
        driver.kill()
        driver.communicate()


def test_many_drivers_that_start_together_share_the_cells_without_a_quarrel(tmp_path):
    cells = [f"cell {number}" for number in range(8)]
    held, together = [], threading.Barrier(8)

    def drive(number):
        together.wait()
        # Each wants all, in an order of its own.
        with hold(tmp_path, cells[number:] + cells[:number], nothing) as mine:
            held.append(mine.held)
            together.wait()

    threads = [threading.Thread(target=drive, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(held) == 8
    assert sorted(cell for mine in held for cell in mine) == cells


def test_what_is_no_lease_stops_neither_reading_nor_the_heartbeats(tmp_path):
    with hold(tmp_path, ["a"], nothing):
        (tmp_path / "x.json").write_text("{}")
        (lease,) = read(tmp_path)
        time.sleep(0.3)
        assert read(tmp_path)[0].beat > lease.beat + 1
        assert leases.unreadable(tmp_path) == [tmp_path / "x.json"]


@pytest.mark.parametrize("field", ["process", "beat", "cells"])
def test_a_lease_of_other_types_is_none(tmp_path, field):
    lease = asdict(leases.Lease("a", "who", "process", 1.0, "holding", ("cell",)))
    (tmp_path / "a.json").write_text(json.dumps(lease | {field: [{}]}))
    (tmp_path / "b.json").mkdir()
    assert leases.unreadable(tmp_path) == [tmp_path / "a.json", tmp_path / "b.json"]
