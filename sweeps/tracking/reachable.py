"""Whether runs can be written to a tracking URI, as far as it shows without writing."""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from relvit.files import sqlite_file
from relvit.secrets import CREDENTIALS, holds_password, redacted

# With what has to be imported below half a minute; a server that is busy, or has just begun, may take long.
CONNECT_SECONDS, ANSWER_SECONDS = 5, 18
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

# Types in /proc/mounts of what is reached over a network, where SQLite's locks are not to be trusted.
_NETWORK_FILE_SYSTEMS = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.goofys",
    "fuse.juicefs", "fuse.mount-s3", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "nfs",
    "nfs4", "smb3", "smbfs",
}  # fmt: skip


def tracking_problems(uri: str) -> list[str]:
    """Why runs cannot be written there, as far as it shows without writing; within 15 s."""
    if holds_password(uri):
        return [f"the tracking URI {redacted(uri)} holds a password, which ps, tags and logs would show: {CREDENTIALS}"]
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in ("http", "https"):
        return _server_problems(uri)
    if path := sqlite_file(uri):
        return _sqlite_problems(path.absolute())
    if scheme in _DATABASE_PORTS:
        return _database_problems(uri, _DATABASE_PORTS[scheme])
    if uri.startswith("databricks"):
        return []
    return [
        f"the tracking URI {redacted(uri)} is none of a server (http://, https://), of a SQLite file "
        f"(sqlite:///mlflow.db) or of a database ({', '.join(f'{name}://' for name in _DATABASE_PORTS)})"
    ]


def _server_problems(uri: str) -> list[str]:
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    given = get_default_host_creds(uri)
    try:
        answer = http_request(
            given,
            "/api/2.0/mlflow/experiments/search",
            "POST",
            json={"max_results": 1},
            max_retries=0,
            timeout=(CONNECT_SECONDS, ANSWER_SECONDS),
            raise_on_status=False,
        )
    except (MlflowException, requests.RequestException, OSError) as error:
        cause = _root_cause(error)
        return [f"no MLflow server answers at {uri} ({cause}): start it, or name another with --tracking-uri"]
    if answer.status_code == 200:
        return []
    if answer.status_code == 401:
        who = f"the password of {given.username!r}" if given.username else "a request without a user and password"
        return [
            f"the MLflow server at {uri} refuses {who}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "write ~/.mlflow/credentials"
        ]
    said = " ".join(answer.text.split())[:200]
    return [f"what answers at {uri} does not answer as an MLflow server does: {answer.status_code} {said}"]


def _root_cause(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    return str(error) or type(error).__name__


def _sqlite_problems(path: Path) -> list[str]:
    problem = network_problem(path)
    if problem:
        return [f"{problem}: name a MLflow server with --tracking-uri, or a database on a local disk"]
    if path.is_dir():
        return [
            f"MLflow's database {path} is a folder: name a file with --tracking-uri, such as sqlite:///{path}/mlflow.db"
        ]
    shut = next((each for each in (path, path.parent) if each.exists() and not os.access(each, os.W_OK)), None)
    if shut:
        return [
            f"MLflow's database {path} can only be read by this user ({shut} cannot be written), so that every run "
            "would be lost to it: name another with --tracking-uri"
        ]
    return []


def network_problem(database: Path) -> str:
    """Why a SQLite file must not lie there; empty if it may."""
    kind = file_system_of(database)
    if kind not in _NETWORK_FILE_SYSTEMS:
        return ""
    return (
        f"{database} is on a network file system ({kind}), where SQLite's locks do not hold and a database is "
        "corrupted sooner or later"
    )


def file_system_of(path: Path, mounts: str | None = None) -> str | None:
    """The type of the file system that holds a path, by /proc/mounts; None where there is no such list."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text()
        except OSError:
            return None
    path = Path(os.path.realpath(path))
    found = None
    longest = -1
    for line in mounts.splitlines():
        _, folder, kind, *_ = line.split(" ")
        folder = folder.replace("\\040", " ")
        # Of two at one place the later covers the former.
        if path.is_relative_to(folder) and len(folder) >= longest:
            found, longest = kind, len(folder)
    return found


def _database_problems(uri: str, default_port: int) -> list[str]:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port or default_port
    except ValueError as error:
        return [f"the tracking URI {uri} is not one: {error}"]
    if not host:  # a socket of this machine
        return []
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return [f"no database answers at {host}:{port} ({error}): start it, or name another with --tracking-uri"]
    return []
