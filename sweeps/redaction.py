"""Secrets come from the environment or from files: what is typed is seen by `ps`, Ray's dashboard, logs and tags."""

import re
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

# What a parameter of a URI is called that must not be seen: password, secret_key, access_key, sslkey, token.
_SECRET = re.compile("password|passwd|pwd|secret|token|key", re.IGNORECASE)


def redacted(uri: str) -> str:
    """The URI as it may be shown: passwords, and parameters that are named like secrets, replaced by "***"."""
    parts = _split(uri)
    if parts is None or not holds_password(uri):
        return uri
    user, _, host = parts.netloc.rpartition("@")
    netloc = f"{user.partition(':')[0]}:***@{host}" if parts.password else parts.netloc
    query = "&".join(
        f"{name}{equals}{'***' if _SECRET.search(name) else value}"
        for name, equals, value in (each.partition("=") for each in parts.query.split("&"))
    )
    return urlunsplit(parts._replace(netloc=netloc, query=query))


def holds_password(uri: str) -> bool:
    """Whether the text is a URI with a password in it, as in http://user:password@host or postgresql://host/db?password=x."""
    parts = _split(uri)
    return parts is not None and bool(parts.password or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query)))


def is_secret_setting(word: str) -> bool:
    """Whether a word of a command sets a variable that is named like a secret: MLFLOW_TRACKING_PASSWORD=..."""
    name, equals, _ = word.partition("=")
    return bool(equals and re.fullmatch("[A-Z][A-Z0-9_]*", name) and _SECRET.search(name))


def _split(uri: str) -> SplitResult | None:
    try:
        parts = urlsplit(uri)
        return parts if parts.scheme else None
    except ValueError:  # not a URI at all
        return None
