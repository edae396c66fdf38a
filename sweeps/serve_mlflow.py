"""Starts an MLflow server that lets in only who has the password, on this machine's own address 127.0.0.1.

    python sweeps/serve_mlflow.py                            the database and the artifacts in ~/mlflow
    python sweeps/ablation.py --tracking-uri http://127.0.0.1:5000

The user and password are those of $MLFLOW_TRACKING_USERNAME and $MLFLOW_TRACKING_PASSWORD, else of
~/.mlflow/credentials, which is made with a random password where it is missing, and which every MLflow client of this
user on this machine reads by itself. They set the server's password at its first start; later it is changed in MLflow.
$MLFLOW_BACKEND_STORE_URI names another database than SQLite. Needs the standard library and mlflow[auth] alone.
"""

import argparse
import configparser
import os
import secrets
import shutil
import socket
import sys
from pathlib import Path

_USER, _PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


def credentials(path: Path) -> tuple[str, str]:
    """User and password, of the environment or of the file, which is made where it is missing.

    Raises ValueError if the file does not hold them.
    """
    if os.environ.get(_USER) and os.environ.get(_PASSWORD):
        return os.environ[_USER], os.environ[_PASSWORD]
    if not path.exists():
        _write_secret(
            path,
            f"[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = {secrets.token_urlsafe(24)}\n",
        )
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(path)
    try:
        return parser["mlflow"][_USER.lower()], parser["mlflow"][_PASSWORD.lower()]
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}: write it as [mlflow] with {_USER.lower()} and {_PASSWORD.lower()}, "
                         "or remove it to have one made") from error  # fmt: skip


def server_environment(folder: Path, user: str, password: str) -> dict[str, str]:
    """The environment of the server, which holds all that is secret: its command line can be read by everyone."""
    key = folder / "session_key"
    if not key.exists():
        _write_secret(key, secrets.token_hex(32))
    configuration = folder / "basic_auth.ini"
    # Users whom the admin adds may read; who may write what is the admin's to grant.
    # A password is hashed once a minute: once a request, as without the last line, is most of a request's time.
    settings = f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/users.db\n"
    _write_secret(configuration, f"{settings}auth_cache_ttl_seconds = 60\n")
    ours = {
        "MLFLOW_AUTH_CONFIG_PATH": str(configuration),
        "MLFLOW_AUTH_ADMIN_USERNAME": user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Six more processes, for evaluations that nothing here asks for.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db", **os.environ, **ours}


def _write_secret(path: Path, text: str) -> None:
    """Write a file that its owner alone can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _home() -> Path:
    return Path(os.path.expanduser("~"))  # noqa: PTH111 - Path's raises where there is none


def _folder(text: str) -> Path:
    """As a shell reads it. This file stands alone: a pod has no other of the project."""
    return Path(os.path.expanduser(os.path.expandvars(text)))  # noqa: PTH111 - Path's raises where there is no home


def _port_problem(host: str, port: int) -> str:
    """Why the server cannot listen there; empty if it can."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself asks
            probe.bind(address)
    except (OSError, OverflowError) as error:
        return f"it cannot listen at {host}:{port} ({error}): another server may be there; name another with --port"
    return ""


def shut(folder: Path, credentials: Path) -> str:
    """Let nobody else enter the folder. Returns what is open all the same, with what closes it; empty if nothing."""
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o700)
    found = [path for path in (folder, credentials) if path.exists() and path.stat().st_mode & 0o077]
    closing = "; ".join(f"chmod -R go-rwx {path}" for path in found)
    return f"note: open to others on this machine: {', '.join(map(str, found))}: {closing}" if found else ""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="serve_mlflow.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=_folder, default=_home() / "mlflow", metavar="DIR",
        help="the database, on a local disk, and the artifacts (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--artifacts", metavar="DIR", help="where artifacts are, a folder or s3:// (default: in DIR)")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5000, metavar="N", help="to listen on (default: %(default)s)")
    parser.add_argument(
        "--allowed-hosts", metavar="NAME,NAME,...", help="names that clients call the server by, where it has others"
    )
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_arguments()
    # In a pod every address is one of the cluster's own network.
    if options.host in ("0.0.0.0", "::") and "KUBERNETES_SERVICE_HOST" not in os.environ:
        print(f"--host {options.host} is every address of this machine: name the private one", file=sys.stderr)
        return 2
    folder = options.folder.absolute()
    path = _home() / ".mlflow/credentials"
    os.umask(0o077)  # the databases hold what only their owner should read
    try:
        if str(_home()) == "~":
            raise ValueError("this user has no home folder: set HOME to a folder of yours")
        problem = _port_problem(options.host, options.port)
        if problem:
            raise ValueError(problem)
        folder.mkdir(parents=True, exist_ok=True)
        user, password = credentials(path)
        environment = server_environment(folder, user, password)
    except (OSError, ValueError) as error:
        print(f"the server was not started: {error}", file=sys.stderr)
        return 2
    beside = Path(sys.executable).with_name("mlflow")
    program = str(beside) if beside.exists() else shutil.which("mlflow")
    if program is None:
        print("the server was not started: mlflow is not installed: pip install 'mlflow[auth]'", file=sys.stderr)
        return 2
    command = [program, "server", "--app-name", "basic-auth", "--host", options.host, "--port", str(options.port)]
    # One process is enough for a driver and a few readers, and SQLite takes one writer at a time.
    command += ["--artifacts-destination", options.artifacts or str(folder / "artifacts"), "--workers", "1"]
    if options.allowed_hosts:
        command += ["--allowed-hosts", options.allowed_hosts]
    source = "$" + _PASSWORD if os.environ.get(_PASSWORD) else path
    note = shut(folder, path)
    if note:
        print(note, flush=True)
    print(f"MLflow at http://{options.host}:{options.port}, user {user!r}, password in {source}", flush=True)
    return os.execve(program, command, environment)


if __name__ == "__main__":
    sys.exit(main())
