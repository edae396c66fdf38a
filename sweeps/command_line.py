"""What the entries that start a sweep share: how they take a place, speak, refuse and stop."""

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich.console import Console

from relvit.files import Location, location

if TYPE_CHECKING:
    from sweeps.tracking import Tracker

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


def open_tracker(
    options: argparse.Namespace, storage: Location, members: Mapping[str, str]
) -> tuple["Tracker | None", str | None]:
    """MLflow's runs by --tracking-uri and --experiment, or why they cannot be had. Takes seconds, MLflow's import among
    them, as Ray's start does: the two can go side by side."""
    from sweeps.tracking import Tracker, TrackingError

    try:
        return Tracker(options.tracking_uri, options.experiment, storage, members), None
    except TrackingError as error:
        return None, str(error)
