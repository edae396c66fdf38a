"""What the entries that start a sweep share: how they take a place, speak, refuse and stop."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from relvit.files import Location, location
from sweeps.planning.plan import PlanError

if TYPE_CHECKING:
    from sweeps.tracking.tracker import Tracker

BAD_REQUEST, INTERRUPTED = 2, 130  # exit statuses


def storage_place(text: str) -> Location:
    """The type of --storage: `relvit.files.location`, with argparse saying what is wrong with it."""
    try:
        return location(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def say(console: Console, line: str) -> None:
    """Print a line as it is: no markup, no colours of numbers, no breaks that a reader's grep would miss."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def refuse(problems: Iterable[str]) -> int:
    """Say all that is wrong, once, and that nothing is lost. Returns the exit status."""
    lines = "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
    print(f"nothing was started:\n{lines}", file=sys.stderr)
    return BAD_REQUEST


def stop_for_another(console: Console) -> None:
    """Another driver took this one for dead and has its cells now: end as a user's interrupt would."""
    say(console, "note: another driver has taken over, because this one gave no sign of life; stopping")
    os.kill(os.getpid(), signal.SIGINT)


def exit_status(main: Callable[[], int]) -> int:
    """Run a command's `main`; a Ctrl-C that it did not expect ends it without a traceback."""
    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted; nothing is lost: run the same command to continue", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def ray_and_mlflow(
    options: argparse.Namespace, console: Console, storage: Location, members: Mapping[str, str]
) -> Iterator[tuple["Tracker | None", str | None]]:
    """MLflow's runs by --tracking-uri and --experiment, or why they cannot be had, on the connected cluster of
    --address. Either takes seconds, imports among them, so they go side by side.

    Raises PlanError if there is no cluster.
    """
    with ThreadPoolExecutor(1) as pool, interrupts_wait(console) as release:
        opening = pool.submit(open_tracker, options, storage, members)
        from sweeps.cluster import connection as cluster

        try:
            with cluster.connected(options.address):
                found = opening.result()
                release()
                yield found
        except cluster.ClusterError as error:
            _, problem = opening.result()
            raise PlanError([*filter(None, [problem]), str(error)]) from error


@contextmanager
def interrupts_wait(console: Console) -> Iterator[Callable[[], None]]:
    """Ctrl-C waits until the block ends, or calls what it is given, and is raised then; a second one ends the process.

    An import that KeyboardInterrupt meets can swallow it, and keep a lock that another thread's import then waits for
    without end.
    """
    waiting = False

    def wait(number: int, frame: Any) -> None:
        nonlocal waiting
        if waiting:
            os._exit(INTERRUPTED)
        waiting = True
        say(console, "stopping as soon as Ray and MLflow have started; once more: at once")

    before: Any = signal.signal(signal.SIGINT, wait)

    def release() -> None:
        nonlocal before
        if before is not None:
            signal.signal(signal.SIGINT, before)
            before = None
            if waiting:
                raise KeyboardInterrupt

    try:
        yield release
    finally:
        release()


def open_tracker(
    options: argparse.Namespace, storage: Location, members: Mapping[str, str]
) -> tuple["Tracker | None", str | None]:
    """MLflow's runs by --tracking-uri and --experiment, or why they cannot be had. It takes seconds."""
    from sweeps.tracking.tracker import Tracker, TrackingError

    try:
        return Tracker(options.tracking_uri, options.experiment, storage, members), None
    except TrackingError as error:
        return None, str(error)
