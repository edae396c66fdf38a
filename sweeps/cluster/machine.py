"""This machine: which of its CPUs are this process's, a private place for what nobody else should reach, and what of
this user's is open to its other users."""

import os
import pwd
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

_LONGEST_FOLDER = 21  # bytes: Ray's sockets lie 86 below, and a socket's path may have 107
_CREDENTIALS = (".ray", ".mlflow", ".aws", ".pgpass")  # what a home that is read-only may still hold


def available_cpus() -> int:
    """CPUs that this process may use: fewer than the machine has under taskset, a cpuset, a container's quota or a
    batch system."""
    from ray._private.utils import get_num_cpus  # the machine's, or a container's

    counts = [int(get_num_cpus(override_docker_cpu_warning=True)), len(os.sched_getaffinity(0))]
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return max(1, min([*counts, int(given)] if given.isdigit() and int(given) else counts))


def private_folder() -> Path:
    """A folder that this user alone can enter, for sockets and scratch files: the same at every call where possible.

    Raises OSError where none can be made.
    """
    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > _LONGEST_FOLDER and os.access("/tmp", os.W_OK):
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


def keep_private(shared: Iterable[Path]) -> None:
    """Let this process and its children make files for their owner alone, unless one of the folders `shared` was made
    for a group to write in."""
    modes = [path.stat().st_mode for path in shared if path.is_dir()]
    if not any(mode & stat.S_IWGRP and not mode & stat.S_IWOTH for mode in modes):  # open to all is not a group's
        os.umask(0o077)


def open_to_others(files: Iterable[Path]) -> list[str]:
    """What other users of this machine can read or change of what should be this user's alone, with the command that
    closes it. files: those that hold secrets, and folders whose content runs."""
    found = []
    for path in files:
        try:
            mode = path.stat().st_mode
        except OSError:
            continue
        reading, writing = stat.S_IRGRP | stat.S_IROTH, stat.S_IWGRP | stat.S_IWOTH
        is_open = mode & (writing if path.is_dir() else reading | writing)
        if is_open and all(_may_enter(parent) for parent in path.resolve().parents):
            how = "can be changed" if mode & writing else "can be read"
            found.append(f"{path} {how} by others: chmod go-rwx {path}")
    return found


def _may_enter(folder: Path) -> bool:
    return bool(folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH))


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
