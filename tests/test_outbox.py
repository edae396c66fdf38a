"""Writes that wait: in order, each once, whatever the other side does meanwhile."""

import threading
import time

import pytest

from sweeps.tracking import outbox
from sweeps.tracking.outbox import Outbox


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(outbox, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(outbox, "_LONGEST_PAUSE", 0.02)


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
    assert notes[-2] == "the server does not take writes, which wait: nobody is there"
    assert notes[-1].startswith("the server takes writes again, after ")


def test_a_write_that_will_never_be_taken_is_said_and_does_not_hold_up_the_others():
    server, notes = Server(), []
    server.up.set()
    box = Outbox("the server", passing, notes.append)
    for item in (1, "bad", 2):
        box.put(server.take, item)
    assert box.close(patience=30) == 0
    assert server.got == [1, 2]
    assert notes == ["the server refused a write, which is left out: a bad write"]


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
    assert notes == ["the server does not take writes, which wait: nobody is there"]
