"""How a trial can fail, told apart, and what is done about each: the rule of its class.

A cell is tried again as a new trial, which continues from the cell's newest checkpoint.
"""

import errno
from collections import Counter
from dataclasses import dataclass, field, replace

from relvit.messages import unknown

CRASH, HOST_OOM, GPU_OOM = "crash", "host_oom", "gpu_oom"
NOT_FINITE, BAD_DATA, NODE_LOST, STALLED = "not_finite", "bad_data", "node_lost", "stalled"
STORAGE, NOT_STARTED = "storage", "not_started"

# How often a cell that failed in this way is tried again within one sweep. What would only repeat itself is not.
RETRIES = {
    CRASH: 3,  # a killed process, an error in a driver or a library
    HOST_OOM: 3,  # Ray or the kernel ended the process for the node's memory
    GPU_OOM: 8,  # each time with less: alone on its GPU, then in twice as many micro-batches
    NOT_FINITE: 0,
    BAD_DATA: 0,
    NODE_LOST: 100,  # a node that was taken away, or that has no GPU to use, says nothing about the cell
    STALLED: 2,  # no sign of progress for far longer than an epoch takes
    STORAGE: 100,  # full, read-only or away: each try waits, see `pause`
    NOT_STARTED: 6,  # the process died before it had looked at the cell; each try waits
}

_STORAGE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}
# An object store's errors carry no number; pyarrow names who refused: for instance "AWS Error NETWORK_CONNECTION during
# CreateMultipartUpload operation".
_STORE_ERRORS = ("AWS Error ", "google::cloud::Status")
_LONGEST_PAUSE = 60.0

# How Ray tells what became of a worker, in text alone. Where the kernel's OOM killer ended one, it says what it says of
# every process that was killed ("Some common causes include: (1) the process was killed by the OOM killer"): a crash.
_LOW_ON_MEMORY = ("running low on memory",)  # by Ray's memory monitor: "1 worker(s) were killed due to the node ..."
_NEVER_RAN = ("The actor never ran",)
_NODE_GONE = ("node has died", "node was terminated", "died with node", "node it was running on is dead")

# What --retry takes beside the classes.
GROUPS = {"failed": tuple(RETRIES), "oom": (HOST_OOM, GPU_OOM), "none": ()}


def parse_classes(text: str) -> frozenset[str]:
    """The classes named in "crash,oom". Raises ValueError with the valid names and the nearest."""
    classes: set[str] = set()
    for name in text.split(","):
        if name not in RETRIES and name not in GROUPS:
            raise ValueError(f"--retry: {unknown('class of failure', name, (*GROUPS, *RETRIES))}")
        classes |= set(GROUPS.get(name, (name,)))
    return frozenset(classes)


class NodeError(RuntimeError):
    """What is wrong with the node that a trial was given: the trial may be sound on another."""


class DiedError(RuntimeError):
    """What ended a trial's process, where only Ray's text of it was kept."""


def classify(error: BaseException) -> str:
    """The class of an error that ended a trial's process or escaped from it."""
    from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError, RayTaskError

    cause = error.cause if isinstance(error, RayTaskError) and error.cause else error
    if isinstance(cause, OSError) and (cause.errno in _STORAGE_ERRORS or _says(cause, _STORE_ERRORS)):
        return STORAGE
    if isinstance(cause, (OutOfMemoryError, MemoryError)):
        return HOST_OOM
    if isinstance(cause, (NodeDiedError, ActorUnavailableError, NodeError)):
        return NODE_LOST
    if isinstance(cause, (ActorDiedError, DiedError)):
        if _says(cause, _LOW_ON_MEMORY):
            return HOST_OOM
        if getattr(cause, "preempted", False) or _says(cause, _NODE_GONE):
            return NODE_LOST
        if _says(cause, _NEVER_RAN):
            return NOT_STARTED
    return CRASH


def _says(error: BaseException, texts: tuple[str, ...]) -> bool:
    return any(text in str(error) for text in texts)


def pause(failure: str, times: int) -> float:
    """Seconds to wait before a cell that failed in this way `times` times is tried again."""
    return min(2.0 ** min(times, 6), _LONGEST_PAUSE) if failure in (STORAGE, NOT_STARTED) else 0.0


@dataclass(frozen=True)
class Setting:
    """How a cell is trained where that is not part of the cell: gpus and cpus of the trial, micro_batches of a step."""

    cpus: float
    gpus: float
    micro_batches: int = 1

    def with_less(self, batch_size: int) -> "Setting | None":
        """What to try after the GPU's memory was not enough; None if there is nothing left."""
        if 0 < self.gpus < 1:
            return replace(self, gpus=1.0)
        if self.micro_batches < batch_size:
            return replace(self, micro_batches=min(2 * self.micro_batches, batch_size))
        return None

    @property
    def deviation(self) -> str:
        """What in this setting can change the result, as runs are tagged and tables footnoted; empty if nothing."""
        return f"micro_batches={self.micro_batches}" if self.micro_batches > 1 else ""


@dataclass
class Attempts:
    """The failures of one cell in this sweep, and what its next trial gets."""

    setting: Setting
    failures: Counter[str] = field(default_factory=Counter)

    def again(self, failure: str, batch_size: int) -> bool:
        """Enter a failure. Whether the cell is tried again, with what `setting` then says."""
        self.failures[failure] += 1
        if self.failures[failure] > RETRIES[failure]:
            return False
        if failure == GPU_OOM:
            less = self.setting.with_less(batch_size)
            if less is None:
                return False
            self.setting = less
        return True
