"""The order in which cells become trials: no two pre-train the same thing at once, and nothing else waits."""

import time

import pytest
from helpers.searches import base
from ray.tune.search import Searcher

from relvit.cell import Cell
from sweeps.account.account import Account
from sweeps.account.failures import Setting
from sweeps.account.work import WorkItem
from sweeps.driver import queue as module
from sweeps.driver.options import Options
from sweeps.driver.plan_source import PlanSource
from sweeps.driver.queue import TrialQueue
from sweeps.driver.trainable import TRIAL


def cell(number: int, pretraining: str | None) -> Cell:
    """A cell for each number; those with the same pre-training share it."""
    fields = {"learning_rate": 0.001 * (1 + number)}
    if pretraining is None:
        return Cell(**base("none", protocol="joint", **fields))
    return Cell(**base("sprel", pretrain_learning_rate=0.0001 * ord(pretraining), **fields))


class Cells:
    """A queue of (name, pre-training) pairs. A trial goes by its cell's name, and runs until it is ended."""

    def __init__(self, folder, *entries, published="", is_closed=lambda: False):
        self.items = {name: WorkItem(cell(number, shared)) for number, (name, shared) in enumerate(entries)}
        self.names = {item.cell.cell_id: name for name, item in self.items.items()}
        account = Account(folder)
        for name in published:
            self.publish(account, cell(0, name).pretraining())
        self.account = account
        source = PlanSource(list(self.items.values()), account)
        self.queue = TrialQueue(source, account, Options(Setting(1, 0), folder), "lease", is_closed)
        self.asked = 0

    def publish(self, account, shared) -> None:
        account.folder(shared).mkdir(parents=True, exist_ok=True)
        (account.folder(shared) / "final-0123456789abcdef.pt").touch()

    def ask(self):
        """The name of the next cell, or what the queue says instead."""
        self.asked += 1
        answer = self.queue.suggest(f"trial {self.asked}")
        if not isinstance(answer, dict):
            return answer
        name = self.names[Cell(**answer[TRIAL]["cell"]).cell_id]
        setattr(self, f"trial_of_{name}", f"trial {self.asked}")
        return name

    def publishes(self, name) -> None:
        """The trial of this cell is past its first phase."""
        self.publish(self.account, self.items[name].cell.pretraining())
        self.queue.release(self.items[name].cell.cell_id)

    def end(self, *names) -> None:
        for name in names:
            self.queue.leave(getattr(self, f"trial_of_{name}"))


def test_cells_without_a_shared_pretraining_come_in_the_order_of_the_plan(tmp_path):
    cells = Cells(tmp_path, ("a", None), ("b", None), ("c", None))
    assert [cells.ask() for _ in range(4)] == ["a", "b", "c", None]
    cells.end("a", "b", "c")
    assert [cells.ask() for _ in range(2)] == [Searcher.FINISHED, Searcher.FINISHED]


def test_different_pretrainings_do_not_wait_for_one_another(tmp_path):
    cells = Cells(tmp_path, ("a", "x"), ("b", "y"), ("c", "z"))
    assert [cells.ask() for _ in range(3)] == ["a", "b", "c"]


def test_one_at_a_time_trains_a_pretraining_and_the_next_goes_ahead_meanwhile(tmp_path):
    cells = Cells(tmp_path, ("a", "x"), ("b", "x"), ("c", None), ("d", "y"), ("e", "y"))
    assert [cells.ask() for _ in range(3)] == ["a", "c", "d"]
    assert cells.ask() is None
    assert cells.ask() is None  # asking costs nothing


def test_what_waited_goes_in_its_order_once_the_pretraining_is_published(tmp_path):
    cells = Cells(tmp_path, ("a", "x"), ("b", "x"), ("c", "x"), ("d", None))
    assert [cells.ask() for _ in range(2)] == ["a", "d"]
    assert cells.ask() is None
    cells.publishes("a")
    # They only read it, so that they do not wait for each other.
    assert [cells.ask() for _ in range(2)] == ["b", "c"]


def test_the_plans_order_is_taken_up_again_where_a_cell_had_to_wait(tmp_path):
    cells = Cells(tmp_path, ("a", "x"), ("b", "x"), ("c", None), ("d", None))
    assert [cells.ask() for _ in range(2)] == ["a", "c"]
    cells.publishes("a")
    assert [cells.ask() for _ in range(2)] == ["b", "d"]


def test_after_a_failure_the_next_in_line_trains_the_pretraining_itself(tmp_path):
    cells = Cells(tmp_path, ("a", "x"), ("b", "x"), ("c", "x"))
    assert cells.ask() == "a"
    assert cells.ask() is None
    cells.end("a")  # nothing was published
    assert cells.ask() == "b"
    assert cells.ask() is None
    cells.end("b")
    assert cells.ask() == "c"


def test_a_pretraining_of_an_earlier_sweep_keeps_nobody_waiting(tmp_path):
    cells = Cells(tmp_path, ("a", "x"), ("b", "x"), ("c", "x"), published="x")
    assert [cells.ask() for _ in range(3)] == ["a", "b", "c"]


def test_release_lets_only_its_own_pretraining_go(tmp_path):
    cells = Cells(tmp_path, ("a", "x"), ("b", "y"), ("c", "x"), ("d", "y"))
    assert [cells.ask() for _ in range(2)] == ["a", "b"]
    cells.end("b")
    assert cells.ask() == "d"
    assert cells.ask() is None
    cells.queue.release("a cell that trains nothing")
    assert cells.ask() is None


def test_a_cell_past_its_first_phase_neither_waits_nor_is_waited_for(tmp_path):
    cells = Cells(tmp_path, ("a", "x"), ("b", "x"))
    assert cells.ask() == "a"
    cells.end("a")
    cells.queue.again(cells.items["a"], epoch=cells.items["a"].cell.pretrain_epochs)
    assert [cells.ask() for _ in range(2)] == ["a", "b"]


def test_whatever_the_order_of_releases_no_two_trials_train_one_pretraining(tmp_path):
    # Half of 30 cells share three pre-trainings, five each; at most four trials at a time, the oldest ends first.
    entries = [(f"{number}", "xyz"[number % 3] if number % 2 else None) for number in range(30)]
    pretraining, cells = dict(entries), Cells(tmp_path, *entries)
    running, seen = [], []
    while (answer := cells.ask()) != Searcher.FINISHED:
        if answer is not None:
            seen.append(answer)
            running.append(answer)
            busy = [pretraining[name] for name in running if pretraining[name]]
            assert len(busy) == len(set(busy))
        if answer is None or len(running) == 4:
            cells.end(running.pop(0))
    assert sorted(seen, key=int) == [name for name, _ in entries]


def test_the_queue_is_not_at_its_end_while_a_trial_runs_that_may_come_back(tmp_path):
    cells = Cells(tmp_path, ("a", None))
    assert cells.ask() == "a"
    assert cells.ask() is None
    cells.end("a")
    cells.queue.again(cells.items["a"])
    assert cells.ask() == "a"
    cells.end("a")
    assert cells.ask() == Searcher.FINISHED


def test_a_cell_that_is_tried_again_goes_before_those_never_begun_and_after_its_pause(tmp_path):
    cells = Cells(tmp_path, ("a", None), ("b", None), ("c", None), ("d", None))
    assert [cells.ask() for _ in range(2)] == ["a", "b"]
    cells.end("a", "b")
    cells.queue.again(cells.items["a"], not_before=time.monotonic() + 3600)
    cells.queue.again(cells.items["b"])
    assert [cells.ask() for _ in range(4)] == ["b", "c", "d", None]


def test_a_cell_whose_files_are_about_to_be_removed_waits_until_they_are(tmp_path):
    cells = Cells(tmp_path, ("a", "x"), ("b", None))
    cells.queue.unsettle(cells.items["a"].cell.pretraining().cell_id)
    assert [cells.ask() for _ in range(2)] == ["b", None]
    cells.queue.settle(cells.items["a"].cell.pretraining().cell_id)
    assert cells.ask() == "a"


def test_a_closed_queue_hands_out_no_more_and_is_at_its_end(tmp_path):
    closed = []
    cells = Cells(tmp_path, ("a", None), ("b", None), is_closed=lambda: bool(closed))
    assert cells.ask() == "a"
    closed.append(True)
    assert cells.ask() == Searcher.FINISHED


def test_while_the_storage_is_away_the_queue_waits_and_loses_nothing(tmp_path, monkeypatch):
    cells, asked = Cells(tmp_path, ("a", "x"), ("b", None)), []

    def published(shared):
        asked.append(shared)
        if len(asked) == 1:
            raise OSError("AWS Error NETWORK_CONNECTION")
        return False

    monkeypatch.setattr(cells.account, "is_published", published)
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    assert cells.ask() is None
    assert cells.ask() is None
    assert len(asked) == 1  # the storage is not asked at each look
    now[0] += module.PAUSE
    assert [cells.ask() for _ in range(2)] == ["a", "b"]


@pytest.mark.parametrize(("asked_for", "begun_in", "expected"), [(1, 4, 4), (4, 1, 4), (1, 1, 1)])
def test_a_cell_that_was_begun_in_micro_batches_goes_on_in_them(tmp_path, asked_for, begun_in, expected):
    account = Account(tmp_path)
    account.mark(cell(0, "x"), "running", micro_batches=begun_in)
    item = WorkItem(cell(0, "x"), account.status(cell(0, "x")))
    queue = TrialQueue(PlanSource([item], account), account, Options(Setting(1, 0, asked_for), tmp_path), "lease")
    config = queue.suggest("trial")[TRIAL]
    assert config["micro_batches"] == expected
    assert (config["pretrained"] is None) == (expected > 1)  # a deviation is neither shared nor taken over
