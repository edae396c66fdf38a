"""Secrets come from the environment or from files: what is typed is seen by `ps`, Ray's dashboard, logs and tags."""

import re
from urllib.parse import urlsplit, urlunsplit

_NAME = (
    r"[\w.-]*(?:pass(?:word|wd|phrase)|pwd|secret|token|signature|(?:access|api|account)[_-]?key)[\w-]*|pass|key|sig"
)
# As in postgresql://host/db?user=me&password=... and s3://bucket?secret_key=...
_IN_QUERY = re.compile(rf"(?<=[?&;])({_NAME})=[^&;#\s]+", re.IGNORECASE)
# As in MLFLOW_TRACKING_PASSWORD=...; what names a file or another variable is no secret.
_ASSIGNED = re.compile(
    r"\b(RELVIT_WEBHOOK|(?:[A-Z0-9]+_)*(?:PASSWORD|PASSWD|TOKEN|ACCESS_KEY|API_KEY|[A-Z0-9]*SECRET[A-Z0-9]*)(?:_\w+)?)"
    r"(?<!_PATH)(?<!_FILE)=(?!\$)[^\s;]+"
)


# What to do instead of a password in the URI of MLflow.
CREDENTIALS = (
    "leave it out and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write ~/.mlflow/credentials; for a "
    "database of one's own, what its client reads (PGPASSWORD or ~/.pgpass)"
)


def redacted(uri: str) -> str:
    """The URI as it may be shown: passwords in it replaced by "***"."""
    if "://" not in uri:
        return uri
    shown = _IN_QUERY.sub(r"\1=***", uri)
    try:
        parts = urlsplit(shown)
        if not parts.password:
            return shown
    except ValueError:  # not a URI, so that nobody knows where in it a password ends
        return re.sub("://.*@", "://***@", shown)
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def holds_password(uri: str) -> bool:
    """Whether the text is a URI with a password or a key in it, as http://user:password@host, or ?password=... ."""
    return redacted(uri) != uri


def secrets_of(argument: str) -> list[str]:
    """What of a command's argument, which may be a whole command itself, is a secret; as it may be shown."""
    words = [part for word in re.split(r"[\s'\"]+", argument) for part in (word, re.sub(r"^-*\w[\w-]*=", "", word))]
    found = [redacted(word) for word in dict.fromkeys(reversed(words)) if holds_password(word)]
    # Of an option and its value the value is enough.
    uris = [shown for shown in found if not any(other != shown and shown.endswith(other) for other in found)]
    return uris + [f"{name}=***" for name in dict.fromkeys(_ASSIGNED.findall(argument))]
