"""The order in which cells become trials: no two pre-train the same thing at once, and nothing else waits."""

import time

from ray.tune.search import Searcher

from sweeps.driver import queue as cell_queue
from sweeps.driver.queue import CellQueue, Entry


def queue(*entries, published=()):
    """A queue of (name, pre-training) pairs; `published` may grow as pre-trainings are finished."""
    return CellQueue(
        [Entry({"cell": name}, pretraining) for name, pretraining in entries], lambda each: each in published
    )


def ask(cells, ends=True):
    """The name of the next cell, whose trial ends at once unless told otherwise, or what the queue says instead."""
    answer = cells.suggest("trial")
    if not isinstance(answer, dict):
        return answer
    if ends:
        cells.on_trial_complete("trial")
    return answer["cell"]


def test_cells_without_a_shared_pretraining_come_in_the_order_of_the_plan():
    cells = queue(("a", None), ("b", None), ("c", None))
    assert [ask(cells) for _ in range(5)] == ["a", "b", "c", Searcher.FINISHED, Searcher.FINISHED]


def test_different_pretrainings_do_not_wait_for_one_another():
    cells = queue(("a", "x"), ("b", "y"), ("c", "z"))
    assert [ask(cells) for _ in range(4)] == ["a", "b", "c", Searcher.FINISHED]


def test_one_at_a_time_trains_a_pretraining_and_the_next_goes_ahead_meanwhile():
    cells = queue(("a", "x"), ("b", "x"), ("c", None), ("d", "y"), ("e", "y"))
    assert [ask(cells) for _ in range(3)] == ["a", "c", "d"]
    assert ask(cells) is None
    assert ask(cells) is None  # asking costs nothing


def test_what_waited_goes_in_its_order_once_the_pretraining_is_published():
    published = set()
    cells = queue(("a", "x"), ("b", "x"), ("c", "x"), ("d", None), published=published)
    assert [ask(cells) for _ in range(2)] == ["a", "d"]
    assert ask(cells) is None
    published.add("x")
    cells.release("x")
    # They only read it, so that they do not wait for each other.
    assert [ask(cells) for _ in range(3)] == ["b", "c", Searcher.FINISHED]


def test_the_plans_order_is_taken_up_again_where_a_cell_had_to_wait():
    published = set()
    cells = queue(("a", "x"), ("b", "x"), ("c", None), ("d", None), published=published)
    assert [ask(cells) for _ in range(2)] == ["a", "c"]
    published.add("x")
    cells.release("x")
    assert [ask(cells) for _ in range(2)] == ["b", "d"]


def test_after_a_failure_the_next_in_line_trains_the_pretraining_itself():
    cells = queue(("a", "x"), ("b", "x"), ("c", "x"))
    assert ask(cells) == "a"
    assert ask(cells) is None
    cells.release("x")  # nothing was published
    assert ask(cells) == "b"
    assert ask(cells) is None
    cells.release("x")
    assert ask(cells) == "c"
    assert ask(cells) == Searcher.FINISHED


def test_a_pretraining_of_an_earlier_sweep_keeps_nobody_waiting():
    cells = queue(("a", "x"), ("b", "x"), ("c", "x"), published={"x"})
    assert [ask(cells) for _ in range(4)] == ["a", "b", "c", Searcher.FINISHED]


def test_release_lets_only_its_own_pretraining_go():
    cells = queue(("a", "x"), ("b", "y"), ("c", "x"), ("d", "y"))
    assert [ask(cells) for _ in range(2)] == ["a", "b"]
    cells.release("y")
    assert ask(cells) == "d"
    assert ask(cells) is None
    cells.release("nothing that anybody trains")
    assert ask(cells) is None


def test_whatever_the_order_of_releases_no_two_trials_train_one_pretraining():
    # Half of 30 cells share three pre-trainings, five each; at most four trials at a time, the oldest ends first.
    entries = [(f"{number}", f"{number % 3}" if number % 2 else None) for number in range(30)]
    pretraining, cells = dict(entries), queue(*entries)
    running, seen = [], []
    while (answer := ask(cells)) != Searcher.FINISHED:
        if answer is not None:
            seen.append(answer)
            running.append(answer)
            busy = [pretraining[name] for name in running if pretraining[name]]
            assert len(busy) == len(set(busy))
        if answer is None or len(running) == 4:
            ended = running.pop(0)
            if pretraining[ended]:
                cells.release(pretraining[ended])
    assert sorted(seen, key=int) == [name for name, _ in entries]


def test_the_queue_is_not_at_its_end_while_a_trial_is_out_that_may_come_back():
    cells = queue(("a", None))
    assert ask(cells, ends=False) == "a"
    assert ask(cells) is None
    cells.on_trial_complete("trial", error=True)
    cells.again(Entry({"cell": "a, once more"}, None))
    assert ask(cells) == "a, once more"
    assert ask(cells) == Searcher.FINISHED


def test_a_cell_that_is_tried_again_goes_before_those_never_begun_and_after_its_pause():
    cells = queue(("a", None), ("b", None), ("c", None))
    assert ask(cells) == "a"
    cells.again(Entry({"cell": "a, later"}, None, not_before=time.monotonic() + 3600))
    cells.again(Entry({"cell": "a, now"}, None))
    assert [ask(cells) for _ in range(4)] == ["a, now", "b", "c", None]


def test_a_closed_queue_hands_out_no_more_and_is_at_its_end():
    closed = []
    cells = CellQueue([Entry({"cell": name}, None) for name in "ab"], lambda each: False, lambda: bool(closed))
    assert ask(cells, ends=False) == "a"
    closed.append(True)
    assert ask(cells) == Searcher.FINISHED


def test_while_the_storage_is_away_the_queue_waits_and_loses_nothing(monkeypatch):
    monkeypatch.setattr(cell_queue, "_PAUSE", 0.1)
    asked = []

    def published(pretraining):
        asked.append(pretraining)
        if len(asked) == 1:
            raise OSError("AWS Error NETWORK_CONNECTION")
        return False

    cells = CellQueue([Entry({"cell": "a"}, "x"), Entry({"cell": "b"}, None)], published)
    assert ask(cells) is None
    assert ask(cells) is None
    assert asked == ["x"]  # the storage is not asked at each look
    time.sleep(0.1)
    assert [ask(cells) for _ in range(3)] == ["a", "b", Searcher.FINISHED]
