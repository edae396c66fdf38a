"""What waits on the disk comes back as it was, in order, and takes no memory."""

import math
import threading

from sweeps.tracking.spool import Spool


def test_values_come_back_as_they_were_put_in_the_order_of_their_numbers():
    spool = Spool()
    row = {"epoch": 3, "phase": "pretrain", "loss": 0.1, "tiny": 5e-324, "diverged": math.inf}
    spool.put("a", 3, row)
    spool.put("a", 1, {"epoch": 1})
    spool.put("b", 2, {"epoch": 2})
    assert spool.get("a") == [(1, {"epoch": 1}), (3, row)]
    assert spool.get("a", after=1) == [(3, row)]
    assert spool.get("a", most=1) == [(1, {"epoch": 1})]
    spool.put("a", 3, {"epoch": "again"})
    spool.drop("a", 1)
    assert spool.get("a") == [(3, {"epoch": "again"})]
    spool.drop("a")
    assert spool.get("a") == [] and spool.get("b") == [(2, {"epoch": 2})]


def test_it_is_shared_by_threads():
    spool = Spool()
    threads = [
        threading.Thread(target=lambda cell=cell: [spool.put(cell, number, number) for number in range(200)])
        for cell in "abcd"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all([number for number, _ in spool.get(cell)] == list(range(200)) for cell in "abcd")
