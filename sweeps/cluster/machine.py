"""This machine: which of its CPUs are this process's, and what of this user's is open to its other users."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path


def available_cpus() -> int:
    """CPUs that this process may use: fewer than the machine has under taskset, a cpuset, a container's quota or a
    batch system."""
    from ray._private.utils import get_num_cpus  # the machine's, or a container's

    counts = [int(get_num_cpus(override_docker_cpu_warning=True)), len(os.sched_getaffinity(0))]
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return max(1, min([*counts, int(given)] if given.isdigit() and int(given) else counts))


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
        if is_open and all(may_enter(parent) for parent in path.resolve().parents):
            how = "can be changed" if mode & writing else "can be read"
            found.append(f"{path} {how} by others: chmod go-rwx {path}")
    return found


def may_enter(folder: Path) -> bool:
    return bool(folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH))
