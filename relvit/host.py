"""The machine that a command runs on, before anything else is imported: a home, a private folder, what listens here.

Standard library only.
"""

import gc
import os
import pwd
import stat
import tempfile
from pathlib import Path

LONGEST_FOLDER = 21  # bytes: Ray's sockets lie 86 below, and a socket's path may have 107
_THRESHOLDS = gc.get_threshold()
_CREDENTIALS = (".ray", ".mlflow", ".aws", ".pgpass")  # what a home that is read-only may still hold


def spare_loopback() -> None:
    """Have what listens on this machine never asked through a proxy, which would ask its own machine."""
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [*filter(None, os.environ.get(name, "").split(",")), "localhost", "127.0.0.1", "::1"]
        os.environ[name] = ",".join(dict.fromkeys(hosts))


def start_quickly() -> None:
    """Let garbage collections wait while this process imports what it needs, until `collect_as_usual`: among a million
    new objects that stay, they take a fifth of the time."""
    gc.set_threshold(50_000)


def collect_as_usual() -> None:
    """Collect garbage as Python does by itself, but look no more at what is there now: it stays."""
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


def report_to_nobody() -> None:
    """Turn off Ray's usage statistics and MLflow's telemetry, which starts as soon as MLflow is imported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def private_folder() -> Path:
    """A folder that this user alone can enter, for sockets and scratch files: the same at every call where possible.

    Raises OSError where none can be made.
    """
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > LONGEST_FOLDER and os.access("/tmp", os.W_OK):
        base = Path("/tmp")
    folder = base / f"relvit-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():  # somebody was here first
            return Path(tempfile.mkdtemp(prefix="relvit-", dir=base))
        folder.chmod(0o700)
    return folder


def ensure_home() -> str:
    """Have $HOME name a folder that can be written, which Ray, MLflow and matplotlib need. Returns what was done about
    it, empty if nothing: a user of a container may have no entry in the password file, or a home that is read-only."""
    try:
        home = Path(os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        home = Path("/")
    os.environ.setdefault("USER", _user())
    if home != Path("/") and os.access(home, os.W_OK | os.X_OK):
        os.environ.setdefault("HOME", str(home))
        return ""
    folder = private_folder() / "home"
    folder.mkdir(exist_ok=True)
    for name in _CREDENTIALS:
        if os.access(home / name, os.R_OK) and not (folder / name).is_symlink():
            (folder / name).symlink_to(home / name)
    os.environ["HOME"] = str(folder)
    return (
        f"the home {home} cannot be written, so {folder} takes its place; to choose another, set HOME, or "
        "RAY_AUTH_TOKEN_PATH for Ray's token and XDG_CACHE_HOME and MPLCONFIGDIR for caches"
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
