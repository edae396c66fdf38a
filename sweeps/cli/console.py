"""What the entries that start a sweep share: how they speak, refuse, start and stop."""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console

from relvit.files import sqlite_file
from relvit.host import ensure_home
from relvit.messages import counted
from sweeps.account.code_version import code_line
from sweeps.cli.options import Places
from sweeps.cluster.machine import keep_private, open_to_others
from sweeps.planning.plan import PlanError

if TYPE_CHECKING:
    from sweeps.tracking.tracker import Tracker

# Exit statuses.
SOME_FAILED, BAD_REQUEST, OUT_OF_BUDGET, LEFT_TO_ANOTHER, INTERRUPTED = 1, 2, 3, 4, 130


class _Lasting:
    """Standard output that a process survives: once it cannot be written (a terminal that is gone, a pipe without a
    reader, a full disk), what is written goes nowhere."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._surviving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._surviving():
            self._stream.flush()

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # What is still buffered would fail again when the process ends.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def new_console() -> Console:
    """The console that an entry writes to, whatever becomes of its terminal."""
    return Console(file=cast(TextIO, _Lasting(sys.stdout)))


def say(console: Console, line: str) -> None:
    """Print a line as it is: no markup, no colours of numbers, no breaks that a reader's grep would miss."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def refuse(problems: Iterable[str], nothing: str = "nothing was started") -> int:
    """Say all that is wrong, once, and that nothing is lost. Returns the exit status."""
    lines = "\n".join(f"  - {problem}" for problem in dict.fromkeys(problems))
    print(f"{nothing}:\n{lines}", file=sys.stderr)
    return BAD_REQUEST


def begin(places: Places, console: Console) -> None:
    """Before anything is made: say which code this is and what others on this machine can reach, and keep from them
    what will be made."""
    keep_private(path for path in (places.storage, places.data_root) if isinstance(path, Path))
    say(console, code_line())
    secrets = [Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")), Path("~/.mlflow/credentials")]
    if database := sqlite_file(places.tracking_uri):
        secrets.append(database)
    # A job runs in a copy of the working directory, which who can write there can change.
    sessions = [folder for folder in Path.cwd().parents if folder.name.startswith("session_")]
    found = open_to_others([*(path.expanduser() for path in secrets), *sessions])
    if found:
        say(console, f"note: {'; '.join(found)}")


def left_to(count: int, drivers: Iterable[str]) -> str:
    """That so many cells are other drivers', who are named."""
    names = sorted(set(drivers))
    who = f"{', '.join(names)}, which {'is' if len(names) == 1 else 'are'}"
    return f"{counted(count, 'cell')} left to {who} training {'it' if count == 1 else 'them'}"


def stop_for_another(console: Console) -> None:
    """Another driver took this one for dead and has its cells now: end as a user's interrupt would."""
    say(console, "note: another driver has taken over, because this one gave no heartbeat; stopping")
    os.kill(os.getpid(), signal.SIGINT)


def exit_status(main: Callable[[], int]) -> int:
    """Run a command's `main`; a Ctrl-C or a SIGTERM that it did not expect ends it without a traceback."""
    note = ensure_home()
    if note:
        print(f"note: {note}", file=sys.stderr)
    before: Any = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted; nothing is lost: run the same command to continue", file=sys.stderr)
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def ray_and_mlflow(places: Places, console: Console, cluster_problems: Callable[[], list[str]]) -> Iterator["Tracker"]:
    """MLflow's runs, on the connected cluster. Either takes seconds, imports among them, so they go side by side.

    Raises PlanError with what is wrong with both. cluster_problems: asked where the cluster is connected and MLflow
    cannot be used.
    """
    with ThreadPoolExecutor(1) as pool, interrupts_wait(console) as release:
        opening = pool.submit(open_tracker, places)
        from sweeps.cluster import connection as cluster

        try:
            with cluster.connected(places.address):
                if isinstance(failure := opening.exception(), PlanError):
                    raise PlanError([*failure.problems, *cluster_problems()])
                release()
                yield opening.result()
        except cluster.ClusterError as error:
            failure = opening.exception()
            others = failure.problems if isinstance(failure, PlanError) else []
            raise PlanError([*others, str(error)]) from error


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
        say(console, "stopping as soon as Ray and MLflow have started; press Ctrl-C again to stop at once")

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


def open_tracker(places: Places) -> "Tracker":
    """MLflow's runs; it takes seconds. Raises PlanError where they cannot be had."""
    from sweeps.tracking.tracker import Tracker, TrackingError

    try:
        return Tracker(places.tracking_uri, places.experiment, places.storage)
    except TrackingError as error:
        raise PlanError([str(error)]) from error
