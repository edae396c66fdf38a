"""Which code this is: its commit, whether the tree differed from it, and a digest of the sources themselves."""

import hashlib
import os
import subprocess
from pathlib import Path

from relvit.vocabulary import GIT_COMMIT, GIT_DIRTY, SOURCE_DIGEST

ROOT = Path(__file__).resolve().parents[2]

# A job's copy of the working directory has no repository: sweeps/submit.py hands over what it knew.
COMMIT, DIRTY = "RELVIT_GIT_COMMIT", "RELVIT_GIT_DIRTY"
UNKNOWN = "unknown"


def git_state(folder: Path = ROOT) -> dict[str, str]:
    """The tags git_commit and git_dirty ("true" where the tree differed); "unknown" outside a repository."""
    return _git_state(folder)[0]


def code_tags() -> dict[str, str]:
    """The tags of a run that say which code made it."""
    return {**git_state(), SOURCE_DIGEST: source_digest()}


def code_line() -> str:
    """The same as a sentence, with the reason where no commit is known."""
    state, why = _git_state(ROOT)
    changes = ", with uncommitted changes" if state[GIT_DIRTY] == "true" else ""
    commit = f"commit {state[GIT_COMMIT][:10]}{changes}" if state[GIT_COMMIT] != UNKNOWN else f"commit unknown ({why})"
    return f"code: {commit}; sources {source_digest()}"


def _git_state(folder: Path) -> tuple[dict[str, str], str]:
    if COMMIT in os.environ:
        dirty = os.environ.get(DIRTY, UNKNOWN)
        return {GIT_COMMIT: os.environ[COMMIT], GIT_DIRTY: dirty}, f"${COMMIT} says so"

    def git(*arguments: str) -> str:
        # Also in a checkout of another user, which git alone would refuse: its code is what runs here.
        command = ["git", "-c", "safe.directory=*", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
        return {GIT_COMMIT: commit, GIT_DIRTY: str(bool(changes)).lower()}, ""
    except subprocess.CalledProcessError as error:
        why = (error.stderr.strip().splitlines() or [str(error)])[0].removeprefix("fatal: ")
    except OSError as error:
        why = f"git: {error.strerror}"
    if "not a git repository" in why:
        why = "no git repository here; sweeps/submit.py hands the commit to a job"
    return {GIT_COMMIT: UNKNOWN, GIT_DIRTY: UNKNOWN}, why


def source_digest(root: Path = ROOT) -> str:
    """Twelve hexadecimal digits over the Python sources that train: those of relvit/ and sweeps/ under `root`."""
    digest = hashlib.sha256()
    for package in ("relvit", "sweeps"):
        for path in sorted((root / package).rglob("*.py")):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]
