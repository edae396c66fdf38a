"""Writes that wait: to a tracking server that may be away, or to a storage that may be full, in order and once.

The driver's loop must not stand still because somebody else's machine does. What it wants written goes into a queue;
one thread writes it, tries again what failed for a passing reason, and keeps the order. Nothing depends on this memory:
if the driver dies, the account and the checkpoints hold all that waits here, and the next start fills the gaps.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0  # seconds between two tries


class Outbox:
    """Carries out calls in order, in a thread of its own.

    name: where the calls go, for notes; passing: whether an error is one that may pass, after which the same call is
    made again; any other is noted and its call dropped. note: told when writes begin to wait and when they arrive.
    is_void: asked before each try; once it answers True, what waits and what is still put in is dropped in silence. It
    may raise an error that passes, and the call then waits.
    """

    def __init__(
        self,
        name: str,
        passing: Callable[[Exception], bool],
        note: Callable[[str], None],
        is_void: Callable[[], bool] = lambda: False,
    ):
        self._name, self._passing, self._note, self._is_void = name, passing, note, is_void
        self._calls: queue.SimpleQueue[tuple[Callable, tuple] | None] = queue.SimpleQueue()
        self._arrived = threading.Condition()
        self._sent = self._done = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name=name)
        self._thread.start()

    def put(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Have this called, after all that was put in before."""
        self._sent += 1
        self._calls.put((call, arguments))

    def close(self, patience: float) -> int:
        """Wait until all has arrived, or `patience` seconds; then stop. Returns how many calls did not arrive."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._done == self._sent, timeout=patience)
            left = self._sent - self._done
        self._closing.set()
        self._calls.put(None)
        return left

    def _work(self) -> None:
        while (item := self._calls.get()) is not None and not self._closing.is_set():
            self._carry_out(*item)
            with self._arrived:
                self._done += 1
                self._arrived.notify_all()

    def _carry_out(self, call: Callable[..., Any], arguments: tuple) -> None:
        pause, since = _FIRST_PAUSE, None
        while not self._closing.is_set():
            try:
                if self._is_void():
                    return
                call(*arguments)
            except Exception as error:
                if not self._passing(error):
                    self._note(f"{self._name} refused a write, which is left out: {line_of(error)}")
                    return
                if since is None:
                    since = time.monotonic()
                    self._note(f"{self._name} does not take writes, which wait: {line_of(error)}")
                self._closing.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if since is not None:
                    self._note(f"{self._name} takes writes again, after {time.monotonic() - since:.0f} s")
                return


def line_of(error: Exception) -> str:
    """An error in a line. SQLAlchemy may begin with a hint at itself."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("(raised as a result of")]
    return lines[0] if lines else type(error).__name__
