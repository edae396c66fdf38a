"""Secrets come from the environment or from files: what is typed is seen by `ps`, Ray's dashboard, logs and tags."""

from urllib.parse import SplitResult, urlsplit, urlunsplit


def redacted(uri: str) -> str:
    """The URI as it may be shown: a password in it replaced by "***"."""
    parts = _with_password(uri)
    if parts is None:
        return uri
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def holds_password(uri: str) -> bool:
    """Whether the text is a URI with a password in it, as in http://user:password@host."""
    return _with_password(uri) is not None


def _with_password(uri: str) -> SplitResult | None:
    try:
        parts = urlsplit(uri)
        return parts if parts.password else None
    except ValueError:  # not a URI at all
        return None
