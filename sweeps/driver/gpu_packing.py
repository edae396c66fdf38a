"""How many trials share a GPU: as many as gain by it, of those that its memory holds.

What finished cells of the same kind needed at most is known from the account; for other kinds a few training steps of
each phase are run on one GPU of the cluster. Then one process, two, four and so on train there for some seconds, as
long as twice as many do more.
"""

import math
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import replace

import ray

from relvit.cell import HEADS, NONE, Cell
from relvit.task_files import add_tasks_source, sources_of
from sweeps.account.account import FINISHED, Account
from sweeps.account.work import WorkItem
from sweeps.cluster.connection import ClusterError

# Beyond the most that was seen: fragments, other batches, cuDNN's workspaces.
_MARGIN = 1.2
# A share of the GPU that is left free for its driver and for processes that have just ended.
_FREE = 0.05
# Twice as many trials must do so many times as much in the same time; less is noise, and each would take longer.
_GAIN = 1.05
_SECONDS = 5.0  # of training for each number of trials
_CLASSES = 200  # of the largest data set that has a name
_CONTEXT_BYTES = 0.6e9  # what a process holds on a GPU before its first tensor, where it was not measured with it


def held_at_once(peak_bytes: float, total_bytes: float) -> int:
    """How many trials that need at most `peak_bytes` each a GPU with `total_bytes` holds.

    Raises ClusterError for a trial that no GPU of that size holds.
    """
    together = math.floor(total_bytes * (1 - _FREE) / (peak_bytes * _MARGIN))
    if together < 1 and peak_bytes > total_bytes:
        raise ClusterError(
            f"a trial needs {peak_bytes / 1e9:.1f} GB of GPU memory and a GPU has {total_bytes / 1e9:.1f} GB; try "
            "--micro-batches 2, or a smaller backbone"
        )
    return max(1, together)


def gaining(most: int, rate: Callable[[int], float]) -> tuple[int, float]:
    """How many trials at once, of at most so many, gain over half as many, and how many times what one does they do.

    rate: what so many do together in a second; 0 where they cannot.
    """
    count, best = 1, rate(1)
    alone = best
    while alone and count < most:
        more = min(2 * count, most)
        together = rate(more)
        if together < _GAIN * best:
            break
        count, best = more, together
    return count, best / alone if alone else 0.0


def measured_gpus(
    items: Iterable[WorkItem], account: Account, micro_batches: int, note: Callable[[str], None], compile: str = "never"
) -> float:
    """GPUs a trial for all the items, on the connected cluster: a fraction 1/n in Ray's steps of a ten-thousandth, or
    1; 0 where it has no GPU. What is gained is measured with the cell that needs most memory.

    micro_batches: parts of a batch that were asked for; a cell that was begun in more goes on in those. Where a few
    steps run out of a GPU's memory, each trial gets one whole, and the rule of that failure does the rest.

    Raises ClusterError where the memory of its GPUs cannot be read.
    """
    from sweeps.cluster.connection import gpus_per_trial

    if not gpus_per_trial(None):
        return 0.0
    statuses = {item.cell: item.status for item in items}
    parts = {cell: max(micro_batches, status.micro_batches) for cell, status in statuses.items()}
    known = _known_peaks(account, statuses)
    kinds = {_kind(cell, part): (cell.as_dict(), part, sources_of(cell.tasks_digest)) for cell, part in parts.items()}
    unknown = {kind: each for kind, each in kinds.items() if kind not in known}
    on_a_gpu = ray.remote(num_gpus=1)
    measured, total = ray.get(on_a_gpu(_measure).remote(list(unknown.values())))
    if total is None:
        raise ClusterError(
            "--gpus auto reads the memory of a GPU, and the node that Ray gave a GPU to has none that torch can use; "
            "give a number: --gpus 0.5"
        )
    seen = [peak for peak in measured if peak is not None]
    if len(seen) < len(measured):
        note(
            f"a GPU of {total / 1e9:.1f} GB does not hold a step of every cell: each trial gets a whole one, and "
            "those that run out of its memory go on in micro-batches"
        )
        return 1.0
    peaks: dict[tuple, float] = {kind: known[kind] for kind in kinds if kind in known} | dict(zip(unknown, seen))
    largest = max(peaks, key=peaks.__getitem__)
    most = held_at_once(peaks[largest], total)
    if most == 1:
        return 1.0
    count, gain = gaining(most, lambda count: ray.get(on_a_gpu(_rate).remote(count, kinds[largest], compile)))
    if not gain:
        note(f"what trials gain by sharing a GPU could not be measured: as many share it as its memory holds, {most}")
        count = most
    elif count < most:
        note(
            f"a GPU's memory holds {most} trials, but {min(2 * count, most)} at once gain less than "
            f"{_GAIN - 1:.0%} over {count}: {f'{count} share one' if count > 1 else 'each trial has one alone'}"
        )
    return math.floor(1e4 / count) / 1e4


def _kind(cell: Cell, micro_batches: int) -> tuple:
    """What the memory of a trial depends on."""
    tasks = cell.tasks if cell.task_list else NONE
    batch = (cell.batch_size, micro_batches)
    sizes = (cell.image_size, cell.last_image_size)
    return (cell.backbone, *sizes, *batch, cell.precision, cell.pair_head, cell.mega_grid, tasks)


def _known_peaks(account: Account, unfinished: Container[Cell]) -> dict[tuple, int]:
    others = account.statuses(cell for cell in account.planned() if cell not in unfinished)
    peaks: dict[tuple, int] = {}
    for cell, status in others.items():
        if status.state == FINISHED and status.peak_gpu_bytes:
            kind = _kind(cell, status.micro_batches)
            peaks[kind] = max(status.peak_gpu_bytes, peaks.get(kind, 0))
    return peaks


_Measured = tuple[dict, int, Sequence[tuple[str, str]]]  # a cell's fields, micro-batches, the files of its tasks


def _measure(cells: list[_Measured]) -> tuple[list[float | None], float | None]:
    """On a GPU: for each cell the most bytes that a few steps of its phases took, in so many micro-batches, None where
    it does not have as many; and the bytes that it has."""
    import torch

    from relvit.calibrate import measure
    from relvit.train import phases

    if not torch.cuda.is_available():
        return [], None
    peaks: list[float | None] = []
    for what in cells:
        part, head = _part(what)
        torch.cuda.reset_peak_memory_stats()
        try:
            for phase in phases(part):
                torch.cuda.empty_cache()
                measure(part, phase, pair_head=head, classes=_CLASSES, device="cuda")
        except torch.OutOfMemoryError:
            peaks.append(None)
        else:
            peaks.append(torch.cuda.max_memory_reserved() + _CONTEXT_BYTES)
    return peaks, float(torch.cuda.get_device_properties(0).total_memory)


def _rate(count: int, what: _Measured, compile: str) -> float:
    """On a GPU: images a second of so many processes together that train this cell; 0 where not all can."""
    from relvit.calibrate import images_per_second

    part, head = _part(what)
    try:
        return images_per_second(
            count, part, what[2], pair_head=head, classes=_CLASSES, device="cuda", compile=compile, seconds=_SECONDS
        )
    except RuntimeError:
        return 0.0


def _part(what: _Measured) -> tuple[Cell, str]:
    """A cell whose batch is one of its micro-batches, and the head that its tasks would have."""
    fields, micro_batches, task_files = what
    for name, text in task_files:
        add_tasks_source(name, text)
    cell = Cell(**fields)
    part = replace(cell, batch_size=math.ceil(cell.batch_size / micro_batches))
    return part, HEADS[0] if cell.pair_head == NONE else cell.pair_head
