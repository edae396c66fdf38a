"""Jobs on a Ray cluster: what would be uploaded, whether it may be, and a job followed to its exit status."""

import asyncio
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from relvit.messages import first_line
from relvit.secrets import redacted, secrets_of
from relvit.vocabulary import GIT_COMMIT, GIT_DIRTY
from sweeps.account.code_version import COMMIT, DIRTY, git_state

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

INTERRUPTED = 130
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_CONNECT_SECONDS = 10
_MIB = 1024**2
# What a zip holds for a file beside its content and twice its name.
_ZIP_ENTRY_BYTES = 128
_OFFENDERS = 10
# Ray says at each of several walks which ignore files it read, and more that is not for a user.
_TALKATIVE = ("ray._private.runtime_env", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")

_TOKEN_REMEDY = "put the cluster's token into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"


class SubmitError(ValueError):
    """Why nothing was submitted."""


class NotFollowedError(ConnectionError):
    """The connection to the cluster is gone, and the job is not."""


@dataclass(frozen=True)
class Upload:
    """What would be uploaded: bytes by path relative to the working directory, as Ray would zip it."""

    files: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes of the zip, which Ray does not compress."""
        return sum(size + 2 * len(name.encode()) + _ZIP_ENTRY_BYTES for name, size in self.files.items())

    def largest(self) -> list[tuple[str, int]]:
        """The files and first folders with the most bytes, largest first: what to leave out."""
        totals: dict[str, int] = {}
        for name, size in self.files.items():
            top, slash, _ = name.partition("/")
            totals[top + slash] = totals.get(top + slash, 0) + size
        return sorted(totals.items(), key=lambda each: -each[1])[:_OFFENDERS]


def upload_of(folder: Path) -> Upload:
    """What Ray uploads of a working directory, by its own rules: .gitignore, .rayignore and its default excludes."""
    # Ray's own walk, so that we count what it sends; tests compare the two.
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    logging.getLogger(_TALKATIVE[0]).setLevel(logging.ERROR)
    folder = folder.absolute()
    files: dict[str, int] = {}

    def count(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size

    respects_gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    excludes = [_get_excludes(folder, get_runtime_env_default_excludes())]
    _dir_travel(folder, excludes, count, include_gitignore=respects_gitignore, logger=logging.getLogger(_TALKATIVE[0]))
    return Upload(files)


def upload_problems(folder: Path) -> list[str]:
    """Why Ray would refuse this working directory, with the largest offenders; empty if it would not."""
    from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE as LIMIT

    if not folder.is_dir():
        return [f"the working directory {folder} is not there"]
    upload = upload_of(folder)
    if upload.size <= LIMIT:
        return []
    offenders = "\n".join(f"      {size / _MIB:9.1f} MiB  {name}" for name, size in upload.largest())
    return [
        f"{folder} would be an upload of {upload.size / _MIB:.1f} MiB, and Ray takes {LIMIT / _MIB:.0f} MiB: move what "
        f"the job does not need elsewhere, or name it in .rayignore. The largest:\n{offenders}"
    ]


def secret_problems(entrypoint: list[str]) -> list[str]:
    """Passwords in the command, which the dashboard and `ps` would show."""
    return [
        f"{shown} holds a password or a key, which Ray's dashboard and ps would show: leave it out, and give it to the "
        "cluster in its environment or in a file (docs/cluster.md)"
        for argument in entrypoint
        for shown in secrets_of(argument)
    ]


def address_problems(address: str) -> list[str]:
    """Why no job can be submitted to this address: it is no URL, or nobody answers there."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        known = parts.scheme in ("http", "https") and host
    except ValueError:
        known = ""
    if not known:
        return [f"--address takes the URL of Ray's dashboard, such as {DEFAULT_ADDRESS}, not {redacted(address)}"]
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return [
            f"nothing answers at {address} ({error}): is the cluster up and its dashboard forwarded to this machine? "
            "`ray dashboard ray_cluster.yaml` or `kubectl port-forward` does that (docs/cluster.md)"
        ]
    return []


def use_token() -> None:
    """Turn token authentication on where this machine has a token; call it before Ray is imported, which reads it."""
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if named or Path("~/.ray/auth_token").expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def connect(address: str) -> "JobSubmissionClient":
    """A client of the cluster. Raises SubmitError with the remedy."""
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets the environment win over the argument
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise SubmitError(f"{address} refuses: {first_line(error)}; {_TOKEN_REMEDY}") from error
    except (ConnectionError, RuntimeError, ValueError, requests.RequestException) as error:
        raise SubmitError(f"{address} answers, but not as Ray's dashboard does: {error}") from error


def version_notes(client: "JobSubmissionClient") -> Iterator[str]:
    """Whether this machine's Ray is another than the cluster's; jobs can be submitted all the same."""
    import ray

    with _told():
        answer = client._do_request("GET", "/api/version")
    theirs = answer.json().get("ray_version", "unknown") if answer.status_code == 200 else "unknown"
    if theirs != ray.__version__:
        yield f"this machine has Ray {ray.__version__}, the cluster {theirs}; the job runs with the cluster's"


def submit(client: "JobSubmissionClient", folder: Path, entrypoint: list[str], submission_id: str | None) -> str:
    """Upload the folder and start the command in it on the head. Returns the job's id. Raises SubmitError."""
    origin = git_state(folder)
    # Ray kills a job that is stopped after 3 s; a driver needs longer to close the runs of its trials.
    environment = {COMMIT: origin[GIT_COMMIT], DIRTY: origin[GIT_DIRTY], "RAY_JOB_STOP_WAIT_TIME_S": "120"}
    try:
        with _told():
            return client.submit_job(
                entrypoint=shlex.join(entrypoint),
                submission_id=submission_id,
                runtime_env={"working_dir": str(folder), "env_vars": environment},
            )
    except RuntimeError as error:
        raise SubmitError(f"the cluster refuses the job: {error}") from error


@contextmanager
def _told() -> Iterator[None]:
    """Raise SubmitError where the connection is lost before the job is known to be there."""
    import requests

    try:
        yield
    except (OSError, requests.RequestException) as error:
        raise SubmitError(
            f"the connection to the cluster was lost ({first_line(error)}); `ray job list` says whether the job arrived"
        ) from error


def follow(client: "JobSubmissionClient", job_id: str) -> int:
    """Print the job's log until it ends. Returns its exit status. Raises NotFollowedError where the cluster is out of
    reach: the job goes on."""
    import aiohttp
    import requests

    try:
        return _follow(client, job_id)
    except (OSError, RuntimeError, aiohttp.ClientError, requests.RequestException) as error:
        raise NotFollowedError(first_line(error)) from error


def _follow(client: "JobSubmissionClient", job_id: str) -> int:
    from ray.job_submission import JobStatus

    async def print_log() -> None:
        async for lines in client.tail_job_logs(job_id):
            print(lines, end="", flush=True)

    asyncio.run(print_log())
    info = client.get_job_info(job_id)
    while not info.status.is_terminal():  # the log ended before the job did
        time.sleep(1)
        info = client.get_job_info(job_id)
    print(f"job {job_id} {info.status.value.lower()}")
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        return INTERRUPTED
    if info.driver_exit_code is None:  # it never started, or its supervisor died
        print(info.message, file=sys.stderr)
    return info.driver_exit_code or 1
