"""How many trials share a GPU: as many as its memory holds, by what such trials were seen to need.

What finished cells of the same kind needed at most is known from the account; for other kinds a few training steps of
each phase are run on one GPU of the cluster.
"""

import math
from collections.abc import Iterable

import ray

from relvit.cell import HEADS, NONE, Cell
from sweeps.account import FINISHED, Account
from sweeps.cluster import ClusterError

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


def measured_gpus(cells: Iterable[Cell], account: Account) -> float:
    """GPUs a trial for all the cells, on the connected cluster; 0 where it has no GPU.

    Raises ClusterError where the memory of its GPUs cannot be read.
    """
    from sweeps.cluster import gpus_per_trial

    if not gpus_per_trial(None):
        return 0.0
    cells = list(cells)
    known = _known_peaks(account)
    unknown = list({_kind(cell): cell for cell in cells if _kind(cell) not in known}.values())
    measured, total = ray.get(ray.remote(num_gpus=1)(_measure).remote([cell.as_dict() for cell in unknown]))
    if total is None:
        raise ClusterError(
            "--gpus auto reads the memory of a GPU, and the node that Ray gave a GPU to has none that torch can use; "
            "give a number: --gpus 0.5"
        )
    peaks = [known[_kind(cell)] for cell in cells if _kind(cell) in known] + measured
    return gpus_for(max(peaks), total)


def _kind(cell: Cell) -> tuple:
    """What the memory of a trial depends on."""
    tasks = cell.tasks if cell.task_list else NONE
    return (cell.backbone, cell.image_size, cell.batch_size, cell.precision, cell.pair_head, cell.mega_grid, tasks)


def _known_peaks(account: Account) -> dict[tuple, int]:
    finished = [
        (cell, status.peak_gpu_bytes)
        for cell, status in account.statuses(account.planned()).items()
        if status.state == FINISHED and status.peak_gpu_bytes
    ]
    peaks: dict[tuple, int] = {}
    for cell, peak in finished:
        peaks[_kind(cell)] = max(peak, peaks.get(_kind(cell), 0))
    return peaks


def _measure(cells: list[dict]) -> tuple[list[float], float | None]:
    """On a GPU: the most bytes that a few steps of each cell's phases took, and the bytes that it has."""
    import torch

    from relvit.calibrate import measure
    from relvit.train import phases

    if not torch.cuda.is_available():
        return [], None
    peaks = []
    for cell in (Cell(**fields) for fields in cells):
        for phase in phases(cell):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            pair_head = HEADS[0] if cell.pair_head == NONE else cell.pair_head
            measure(cell, phase, pair_head=pair_head, classes=200, device="cuda")
            peaks.append(torch.cuda.max_memory_reserved() + _CONTEXT_BYTES)
    return peaks, float(torch.cuda.get_device_properties(0).total_memory)
