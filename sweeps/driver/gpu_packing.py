"""How many trials share a GPU: as many as its memory holds, by what such trials were seen to need.

What finished cells of the same kind needed at most is known from the account; for other kinds a few training steps of
each phase are run on one GPU of the cluster.
"""

import math
from collections.abc import Callable, Container, Iterable
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
_CONTEXT_BYTES = 0.6e9  # what a process holds on a GPU before its first tensor, where it was not measured with it


def gpus_for(peak_bytes: float, total_bytes: float) -> float:
    """GPUs for one trial that needs at most `peak_bytes` of a GPU with `total_bytes`: a fraction 1/n in Ray's steps of
    a ten-thousandth, or 1.

    Raises ClusterError for a trial that no GPU of that size holds.
    """
    together = math.floor(total_bytes * (1 - _FREE) / (peak_bytes * _MARGIN))
    if together < 1 and peak_bytes > total_bytes:
        raise ClusterError(
            f"a trial needs {peak_bytes / 1e9:.1f} GB of GPU memory and a GPU has {total_bytes / 1e9:.1f} GB; try "
            "--micro-batches 2, or a smaller backbone"
        )
    return math.floor(1e4 / max(1, together)) / 1e4


def measured_gpus(
    items: Iterable[WorkItem], account: Account, micro_batches: int, note: Callable[[str], None]
) -> float:
    """GPUs a trial for all the items, on the connected cluster; 0 where it has no GPU.

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
    unknown = [each for kind, each in kinds.items() if kind not in known]
    measured, total = ray.get(ray.remote(num_gpus=1)(_measure).remote(unknown))
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
    return gpus_for(max([*seen, *(peak for kind, peak in known.items() if kind in kinds)]), total)


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


def _measure(cells: list[tuple[dict, int, list[tuple[str, str]]]]) -> tuple[list[float | None], float | None]:
    """On a GPU: the most bytes that a few steps of each cell's phases took, in so many micro-batches, None where it
    does not have as many; and the bytes that it has."""
    import torch

    from relvit.calibrate import measure
    from relvit.train import phases

    if not torch.cuda.is_available():
        return [], None
    peaks: list[float | None] = []
    for fields, micro_batches, task_files in cells:
        for name, text in task_files:
            add_tasks_source(name, text)
        cell = Cell(**fields)
        part = replace(cell, batch_size=math.ceil(cell.batch_size / micro_batches))
        for phase in phases(cell):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            pair_head = HEADS[0] if cell.pair_head == NONE else cell.pair_head
            try:
                measure(part, phase, pair_head=pair_head, classes=200, device="cuda")
            except torch.OutOfMemoryError:
                peaks.append(None)
            else:
                peaks.append(torch.cuda.max_memory_reserved() + _CONTEXT_BYTES)
    return peaks, float(torch.cuda.get_device_properties(0).total_memory)
