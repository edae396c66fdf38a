"""Tells a webhook that a study has ended: one HTTP POST of JSON, only where the user names a URL.

The URL often is the secret (a chat's incoming webhook): give it in $RELVIT_WEBHOOK, or the path of a file that holds
it in $RELVIT_WEBHOOK_FILE. It is never logged; of a URL only the host is shown.
"""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sweeps.cli.console import BAD_REQUEST, INTERRUPTED, LEFT_TO_ANOTHER, OUT_OF_BUDGET, SOME_FAILED

WEBHOOK, WEBHOOK_FILE = "RELVIT_WEBHOOK", "RELVIT_WEBHOOK_FILE"
_SECONDS = 10  # for each of connecting and answering
_OUTCOMES = {
    0: "finished",
    SOME_FAILED: "failed",
    BAD_REQUEST: "refused",
    OUT_OF_BUDGET: "out of budget",
    LEFT_TO_ANOTHER: "left to another driver",
    INTERRUPTED: "interrupted",
}


class WebhookError(ValueError):
    """What is wrong with the webhook that was asked for."""


def webhook() -> str | None:
    """The URL that the environment names, or None: no notification. Raises WebhookError if it is not a URL.

    $RELVIT_WEBHOOK goes before $RELVIT_WEBHOOK_FILE.
    """
    url, source = os.environ.get(WEBHOOK, ""), f"${WEBHOOK}"
    if not url and (path := os.environ.get(WEBHOOK_FILE)):
        source = f"${WEBHOOK_FILE} ({path})"
        try:
            url = Path(path).read_text()
        except OSError as error:
            raise WebhookError(f"{source} cannot be read: {error.strerror}") from error
    url = url.strip()
    if not url and source == f"${WEBHOOK}":
        return None
    if not _is_http(url):
        raise WebhookError(f"{source} does not hold a URL that begins with http:// or https:// and names a host")
    return url


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def message(study: str, counts: Mapping[str, int], exit_status: int, seconds: float) -> dict[str, Any]:
    """What is posted. counts: cells by state; seconds: of the whole command; `text` is what chats show."""
    outcome = _OUTCOMES.get(exit_status, "failed")
    cells = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    return {
        "text": f"study {study} {outcome}: {cells or 'no cells'}",
        "study": study,
        "outcome": outcome,
        "exit_status": exit_status,
        "counts": dict(counts),
        "seconds": round(seconds, 1),
    }


def notify(url: str, content: Mapping[str, Any]) -> str | None:
    """Post the content as JSON. Returns None, or in one sentence why it was not delivered.

    Raises nothing: what happens here must not change the outcome of a sweep.
    """
    request = urllib.request.Request(
        url, data=json.dumps(content).encode(), headers={"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        reason = f"it answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        reason = str(error.reason)
    except (OSError, HTTPException, ValueError) as error:
        reason = f"{type(error).__name__}"
    return f"the webhook at {urlsplit(url).hostname} was not notified: {reason}; the outcome of the study is unchanged"
