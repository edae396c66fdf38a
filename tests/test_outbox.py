"""Writes that wait: in order, each once, whatever the other side does meanwhile."""

import threading
import time

import pytest

from sweeps.tracking import outbox
from sweeps.tracking.outbox import Outbox


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(outbox, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(outbox, "LONGEST_PAUSE", 0.02)


class Server:
    """Takes what it is given while it is `up`."""

    def __init__(self):
        self.got, self.up = [], threading.Event()

    def take(self, item):
        if item == "bad":
            raise ValueError("a bad write")
        if not self.up.is_set():
            raise ConnectionError("nobody is there")
        self.got.append(item)


def passing(error):
    return isinstance(error, ConnectionError)


def test_what_was_put_in_while_the_server_was_away_arrives_in_order_and_once():
    server, notes = Server(), []
    box = Outbox("the server", passing, notes.append)
    for number in range(100):
        box.put(server.take, number)
    assert box.close(patience=0.05) == 100
    assert server.got == []

    box = Outbox("the server", passing, notes.append)
    for number in range(100):
        box.put(server.take, number)
    threading.Timer(0.1, server.up.set).start()
    assert box.close(patience=30) == 0
    assert server.got == list(range(100))
    assert notes[-2] == "the server is not accepting writes, which are queued: nobody is there"
    assert notes[-1].startswith("the server accepts writes again, after ")


def test_a_write_that_will_never_be_taken_is_said_and_does_not_hold_up_the_others():
    server, notes = Server(), []
    server.up.set()
    box = Outbox("the server", passing, notes.append)
    for item in (1, "bad", 2):
        box.put(server.take, item)
    assert box.close(patience=30) == 0
    assert server.got == [1, 2]
    assert notes == ["the server rejected a write, which is dropped: a bad write"]


def test_what_waits_is_dropped_in_silence_once_it_is_another_s_to_write():
    server, notes, lost = Server(), [], threading.Event()
    box = Outbox("the server", passing, notes.append, lost.is_set)
    box.put(server.take, 1)
    while not notes:  # the first try has failed
        time.sleep(0.01)
    lost.set()
    server.up.set()
    box.put(server.take, 2)
    assert box.close(patience=30) == 0
    assert server.got == []
    assert notes == ["the server is not accepting writes, which are queued: nobody is there"]


def test_the_calls_of_a_lane_keep_their_order_while_a_lane_that_waits_holds_up_no_other():
    got, first_may_go = [], threading.Event()
    box = Outbox("the server", passing, print, writers=2)

    def take(lane, number):
        if (lane, number) == ("a", 0):
            assert first_may_go.wait(30)
        got.append((lane, number))

    for number in range(3):
        for lane in "abc":
            box.put(take, lane, number, lane=lane)
    while len(got) < 6:
        time.sleep(0.01)
    assert {lane for lane, _ in got} == {"b", "c"}
    first_may_go.set()
    assert box.close(patience=30) == 0
    for each in "abc":
        assert [number for lane, number in got if lane == each] == [0, 1, 2]


def test_lanes_take_turns():
    got, may_go = [], threading.Event()
    box = Outbox("the server", passing, print)
    box.put(may_go.wait, 30)
    for lane in "ab":
        for number in range(3):
            box.put(got.append, (lane, number), lane=lane)
    may_go.set()
    assert box.close(patience=30) == 0
    assert got == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_a_call_that_waits_already_is_made_once_however_often_it_is_put_in_meanwhile():
    got, began, may_go = [], threading.Event(), threading.Event()
    box = Outbox("the server", passing, print)
    box.put_once(lambda: began.set() or may_go.wait(30), lane="a")
    assert began.wait(30)
    for _ in range(1000):
        box.put_once(got.append, "rows", lane="a")
    box.put(got.append, "end", lane="a")
    box.put_once(got.append, "rows", lane="a")  # after the end, and so again
    may_go.set()
    assert box.close(patience=30) == 0
    assert got == ["rows", "end", "rows"]


def test_a_server_that_is_away_for_several_writers_is_said_once_and_back_once():
    server, notes = Server(), []
    box = Outbox("the server", passing, notes.append, writers=4)
    for lane in range(8):
        box.put(server.take, lane, lane=str(lane))
    while not notes:
        time.sleep(0.01)
    time.sleep(0.1)
    server.up.set()
    assert box.close(patience=30) == 0
    assert sorted(server.got) == list(range(8))
    assert len(notes) == 2
    assert notes[1].startswith("the server accepts writes again, after ")
