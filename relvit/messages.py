"""Wording of error messages that several modules share. Standard library only."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """A sentence for a name that does not exist: the valid ones, and the one that was probably meant."""
    valid = list(valid)
    nearest = difflib.get_close_matches(str(name), valid, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"unknown {kind} {name!r}: one of {', '.join(valid)}{hint}"
