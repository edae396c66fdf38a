"""Wording of error messages that several modules share. Standard library only."""

import difflib
import traceback
from collections.abc import Iterable
from pathlib import Path

_MANY = 20  # names to read before a hint that follows them


def first_line(error: BaseException) -> str:
    """An error in at most 200 characters: of its first line that says anything, or what kind of error it is."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def counted(number: float, noun: str) -> str:
    """ "1 cell", "1,600 cells", "0.5 points"."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun}{'' if number == 1 else 's'}"


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """A sentence for a name that does not exist: the valid ones, and the one that was probably meant, which comes first
    where they are many."""
    valid = list(valid)
    nearest = difflib.get_close_matches(str(name), valid, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    if hint and len(valid) > _MANY:
        return f"unknown {kind} {name!r}{hint} One of {', '.join(valid)}"
    return f"unknown {kind} {name!r}: one of {', '.join(valid)}{hint}"


def nearest_file(path: Path) -> str:
    """ "; did you mean 'examples/gain.py'?": the file that was probably meant by one that does not exist; else ""."""
    try:
        folders = (
            [path.parent] if path.parent.is_dir() else [each for each in path.parent.parent.iterdir() if each.is_dir()]
        )
        near = {f"{file.parent.name}/{file.name}": file for each in folders for file in each.glob(f"*{path.suffix}")}
    except OSError:  # there is no such folder either, or it may not be read
        return ""
    nearest = difflib.get_close_matches(f"{path.parent.name}/{path.name}", near, n=1, cutoff=0.8)
    return f"; did you mean {str(near[nearest[0]])!r}?" if nearest else ""


def said_of(error: BaseException, file: str) -> str:
    """ " in line 7 (x = y): NameError: ...": what a user's file raised, and where in it."""
    if isinstance(error, SyntaxError):
        return f" in line {error.lineno} ({(error.text or '').strip()}): {type(error).__name__}: {error.msg}"
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = f" in line {lines[-1].lineno} ({(lines[-1].line or '').strip()})" if lines else ""
    return f"{where}: {type(error).__name__}: {error}"
