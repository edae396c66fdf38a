"""Writes that wait: to a tracking server that may be away, or to a storage that may be full, in order and once.

The driver's loop must not stand still because somebody else's machine does. What it wants written goes into a queue;
threads write it, try again what failed for a passing reason, and keep the order. Nothing depends on this memory: if the
driver dies, the account and the checkpoints hold all that waits here, and the next start fills the gaps.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0  # seconds between two tries


class Outbox:
    """Carries out calls in threads of its own. Calls of one lane are carried out one at a time and in order; lanes take
    turns.

    name: where the calls go, for notes; passing: whether an error is one that may pass, after which the same call is
    made again; any other is noted and its call dropped. note: told when writes begin to wait and when they arrive.
    is_void: asked before each try; once it answers True, what waits and what is still put in is dropped in silence. It
    may raise an error that passes, and the call then waits. writers: how many lanes are written at once.
    """

    def __init__(
        self,
        name: str,
        passing: Callable[[Exception], bool],
        note: Callable[[str], None],
        is_void: Callable[[], bool] = lambda: False,
        writers: int = 1,
    ):
        self._name, self._passing, self._note, self._is_void = name, passing, note, is_void
        self._lanes: dict[str, deque[tuple[Callable, tuple]]] = {}  # those in which a call waits or is carried out
        self._ready: deque[str] = deque()  # of these, those in which none is carried out
        self._left = 0
        lock = threading.Lock()
        self._arrived, self._put_in = threading.Condition(lock), threading.Condition(lock)
        self._closing = threading.Event()
        self._away: set[int] = set()  # threads whose call has failed and is tried again
        self._away_since = 0.0
        for number in range(writers):
            threading.Thread(target=self._work, args=(number,), daemon=True, name=f"{name} {number}").start()

    def put(self, call: Callable[..., Any], *arguments: Any, lane: str = "") -> None:
        """Have this called, after all that was put into the lane before."""
        with self._put_in:
            self._add(call, arguments, lane)

    def put_once(self, call: Callable[..., Any], *arguments: Any, lane: str = "") -> None:
        """As `put`, but nothing where the same call waits as the lane's last: however many are put in while the other
        side is away, one is made."""
        with self._put_in:
            waiting = self._lanes.get(lane)
            if not waiting or waiting[-1] != (call, arguments):
                self._add(call, arguments, lane)

    def close(self, patience: float) -> int:
        """Wait until all has arrived, or `patience` seconds; then stop. Returns how many calls did not arrive."""
        with self._arrived:
            self._arrived.wait_for(lambda: not self._left, timeout=patience)
            self._closing.set()
            self._put_in.notify_all()
            return self._left

    def _add(self, call: Callable[..., Any], arguments: tuple, lane: str) -> None:
        if lane not in self._lanes:
            self._lanes[lane] = deque()
            self._ready.append(lane)
            self._put_in.notify()
        self._lanes[lane].append((call, arguments))
        self._left += 1

    def _work(self, number: int) -> None:
        while True:
            with self._put_in:
                self._put_in.wait_for(lambda: self._ready or self._closing.is_set())
                if self._closing.is_set():
                    return
                lane = self._ready.popleft()
                call, arguments = self._lanes[lane].popleft()
            arrived = self._carry_out(number, call, arguments)
            with self._put_in:
                if self._lanes[lane]:
                    self._ready.append(lane)
                    self._put_in.notify()
                else:
                    del self._lanes[lane]
                self._left -= arrived
                if not self._left:
                    self._arrived.notify_all()

    def _carry_out(self, number: int, call: Callable[..., Any], arguments: tuple) -> bool:
        """Returns whether the call was made or dropped: False where the outbox was closed before."""
        pause = FIRST_PAUSE
        while not self._closing.is_set():
            try:
                if self._is_void():
                    self._away.discard(number)
                    return True
                call(*arguments)
            except Exception as error:
                if not self._passing(error):
                    self._note(f"{self._name} rejected a write, which is dropped: {line_of(error)}")
                    self._is_back(number)
                    return True
                self._is_away(number, error)
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._is_back(number)
                return True
        return False

    def _is_away(self, number: int, error: Exception) -> None:
        with self._put_in:
            is_new = not self._away
            self._away.add(number)
        if is_new:
            self._away_since = time.monotonic()
            self._note(f"{self._name} is not accepting writes, which are queued: {line_of(error)}")

    def _is_back(self, number: int) -> None:
        """Said once all that was tried again has arrived."""
        if number not in self._away:
            return
        with self._put_in:
            self._away.discard(number)
            are_all = not self._away
        if are_all:
            self._note(f"{self._name} accepts writes again, after {time.monotonic() - self._away_since:.0f} s")


def line_of(error: Exception) -> str:
    """An error in a line. SQLAlchemy may begin with a hint at itself."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("(raised as a result of")]
    return lines[0] if lines else type(error).__name__
