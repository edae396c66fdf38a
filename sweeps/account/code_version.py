"""Which code this is: its commit, whether the tree differed from it, and a digest of the sources themselves."""

import hashlib
import os
import subprocess
from pathlib import Path

from relvit.vocabulary import GIT_COMMIT, GIT_DIRTY

ROOT = Path(__file__).resolve().parents[2]

# A job's copy of the working directory has no repository: sweeps/submit.py hands over what it knew.
COMMIT, DIRTY = "RELVIT_GIT_COMMIT", "RELVIT_GIT_DIRTY"


def git_state(folder: Path = ROOT) -> dict[str, str]:
    """The tags git_commit and git_dirty ("true" where the tree differed); "unknown" outside a repository."""
    if COMMIT in os.environ:
        return {GIT_COMMIT: os.environ[COMMIT], GIT_DIRTY: os.environ.get(DIRTY, "unknown")}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {
            GIT_COMMIT: git("rev-parse", "HEAD"),
            GIT_DIRTY: str(bool(git("status", "--porcelain"))).lower(),
        }
    except (OSError, subprocess.CalledProcessError):
        return {GIT_COMMIT: "unknown", GIT_DIRTY: "unknown"}


def source_digest(root: Path = ROOT) -> str:
    """Twelve hexadecimal digits over the Python sources that train: those of relvit/ and sweeps/ under `root`."""
    digest = hashlib.sha256()
    for package in ("relvit", "sweeps"):
        for path in sorted((root / package).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]
