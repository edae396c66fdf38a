"""What a plan will cost: time, GPU-hours, peak memory and disk, each as an interval.

An epoch's time comes from finished cells of the same kind where there are any, else from a short calibration on this
machine: a few training steps of each kind of phase. Calibrations are kept under the storage path. What is measured
once, at the end of a phase, comes from the calibration in any case.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from relvit.cell import HEADS, NONE, PAPER_TASKS, PRECISIONS, Cell
from relvit.data import class_count, decoded_bytes, split_sizes
from relvit.files import write_atomic
from sweeps.account.account import FINISHED, Account, Status, read_json
from sweeps.cluster.machine import available_cpus
from sweeps.planning.plan import datasets_of

if TYPE_CHECKING:
    from relvit.calibrate import Cost
    from relvit.train import Phase

# How far a trial in company may fall behind a calibration that ran alone: memory bandwidth, checkpoints, reports.
# A rule of thumb, not a measurement.
_CROWDING = 1.5
# What a process holds before its first image: Python, Ray and torch. Trials of the demo, whose model is small, were
# seen at 1.28 GB resident with a CUDA build of torch.
_PROCESS_BYTES = 1.2e9
_WEIGHT_BYTES, _TRAINED_BYTES = 4, 12  # a parameter: float32; and a gradient and two moments where it is trained
_KEPT_CHECKPOINTS = 2

Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """Low and high of each. seconds: of the whole plan with `slots` trials at once; trial_seconds: of all trials
    together; gpu_hours; memory_bytes: of the largest trial, on the GPU if it has one; disk_bytes: at the end, and at
    most on the way; otherwise: trial_seconds in each other precision that this device has, None unless finished cells
    tell how long every kind of epoch takes in both; decoded: `decoded_bytes` of each data set, by its name, image size
    and whether images are whole."""

    seconds: Interval
    trial_seconds: Interval
    gpu_hours: Interval
    memory_bytes: Interval
    disk_bytes: Interval
    slots: int
    measured: int  # kinds of phases known from finished cells
    calibrated: int  # kinds of phases known from calibration
    otherwise: Mapping[str, Interval | None]
    decoded: Mapping[tuple[str, int, bool], tuple[int, bool]]


def has_gpu() -> bool:
    """Whether torch can use a GPU of this machine."""
    import torch

    return torch.cuda.is_available()


def slots_here(cpus: float, gpus: float | None) -> tuple[int, float]:
    """Trials at once on this machine, and GPUs for each, as the engine would pack them."""
    import torch

    torch.set_num_threads(max(1, int(cpus)))  # as a trial has them
    there = torch.cuda.device_count()
    each = (1.0 if there else 0.0) if gpus is None else gpus
    at_once = int(available_cpus() / cpus)
    if each:
        # A trial shares one GPU, or has whole ones: what is left of each GPU serves nobody.
        at_once = min(at_once, there * int(1 / each) if each < 1 else int(there / each))
    return max(1, at_once), each


def estimate(
    statuses: Mapping[Cell, Status], account: Account, data_root: Path, cpus: float, gpus: float | None
) -> Estimate:
    """The cost of what is left of the plan. Each first phase that cells share is counted once."""
    from relvit.train import phases

    slots, gpus_each = slots_here(cpus, gpus)
    costs = _Costs(account, "cuda" if gpus_each else "cpu")
    # Counting class folders reads the disk: once a data set, not once a cell.
    sizes_of = cache(lambda name, image_size: split_sizes(name, data_root, image_size))
    classes_of = cache(lambda name, image_size: class_count(name, data_root, image_size))
    unfinished = {cell: status for cell, status in statuses.items() if status.state != FINISHED}
    parts = list(_parts(unfinished, account))
    there = {cell.precision for cell in unfinished}
    others = [name for name in PRECISIONS if there - {name} and (gpus_each or name != "tf32")]
    otherwise: dict[str, Interval | None] = dict.fromkeys(others, (0.0, 0.0))
    spent, memory = (0.0, 0.0), 0.0
    for cell, phase, epochs in parts:
        name = cell.pretrain_dataset if phase.name == "pretrain" else cell.dataset
        sizes = sizes_of(name, phase.image_size)
        classes = classes_of(name, phase.image_size) if phase.classify and cell.labels_per_class else None
        seconds = costs.epoch_seconds(cell, phase, sizes, classes)
        after = costs.seconds_after(cell, phase, sizes) if epochs else (0.0, 0.0)
        spent = _plus(spent, epochs, seconds, after)
        for precision, sofar in otherwise.items() if epochs else ():
            other = costs.observed(dataclasses.replace(cell, precision=precision), phase)
            if sofar is None or other is None or costs.observed(cell, phase) is None:
                otherwise[precision] = None
            else:
                otherwise[precision] = _plus(sofar, epochs, other, after)
        cost = costs.of(cell, phase)
        held: float = cost.parameters * _WEIGHT_BYTES + cost.trained_parameters * _TRAINED_BYTES
        held += cost.saved_bytes_per_image * min(cell.batch_size, sizes["train"])
        memory = max(memory, held + (0 if gpus_each else _PROCESS_BYTES))
    # Finished cells keep their weights, and so do shared first phases until nobody waits for them.
    kept = [(cell, phases(cell)[-1]) for cell in unfinished]
    kept += [(cell, phase) for cell, phase, _ in parts if phase.name == "pretrain"]
    disk = sum(costs.of(*each).parameters for each in kept) * _WEIGHT_BYTES
    largest = max((costs.of(cell, phase).parameters for cell, phase, _ in parts), default=0)
    on_the_way = largest * (_WEIGHT_BYTES + _TRAINED_BYTES) * _KEPT_CHECKPOINTS * slots
    costs.save()
    decoded = {
        (name, size, whole): decoded_bytes(name, data_root, size, whole, sum(sizes_of(name, size).values()))
        for name, size, whole in datasets_of(unfinished)
    }
    return Estimate(
        (spent[0] / slots, spent[1] / slots),
        spent,
        (spent[0] * gpus_each / 3600, spent[1] * gpus_each / 3600),
        (memory, memory * 1.3),
        (disk, disk + on_the_way),
        slots,
        len(costs.from_cells),
        len(costs.calibrated),
        otherwise,
        decoded,
    )


def _parts(unfinished: Mapping[Cell, Status], account: Account) -> Iterator[tuple[Cell, "Phase", int]]:
    """The phases of these cells, each with the epochs that it lacks. A first phase that cells share comes once, and one
    whose weights are there not at all."""
    from relvit.train import phases

    first_phases: set[str] = set()
    for cell, status in unfinished.items():
        done = status.epoch
        for phase in phases(cell):
            shared = cell.pretraining() if phase.name == "pretrain" else None
            if shared is None or not (shared.cell_id in first_phases or account.is_published(shared)):
                first_phases |= {shared.cell_id} if shared else set()
                yield cell, phase, max(0, phase.epochs - done)
            done = max(0, done - phase.epochs)


def _plus(sofar: Interval, epochs: int, seconds: Interval, after: Interval) -> Interval:
    """So many seconds more: of each epoch, and after the last."""
    low, high = (sum_ + epochs * each + end for sum_, each, end in zip(sofar, seconds, after))
    return low, high


class _Costs:
    """Costs by kind of phase, calibrated when first asked for."""

    def __init__(self, account: Account, device: str):
        self._account, self._device = account, device
        self._path = account.storage / "calibration.json"
        self._stored: dict[str, Any] = read_json(self._path, {})
        self._observed = _observed_epochs(account, device)
        self.from_cells: set[str] = set()
        self.calibrated: set[str] = set()

    def of(self, cell: Cell, phase: "Phase") -> "Cost":
        """The calibrated cost of a phase of this kind."""
        from relvit.calibrate import Cost, measure

        phase = _typical(phase)
        key = _kind(cell, phase, self._device)
        if key not in self._stored:
            self._stored[key] = dataclasses.asdict(
                measure(cell, phase, pair_head=_pair_head(cell), classes=100, device=self._device)
            )
        stored = self._stored[key]
        return Cost(**{**stored, "seconds_per_image": tuple(stored["seconds_per_image"])})

    def observed(self, cell: Cell, phase: "Phase") -> Interval | None:
        """Low and high of the epochs of this kind in finished cells, all but the tenth at either end, so that one epoch
        in which the machine was busy does not stand for all; None where there are none."""
        return self._observed.get(_observed_key(cell, phase.name))

    def epoch_seconds(self, cell: Cell, phase: "Phase", sizes: dict[str, int], classes: int | None = None) -> Interval:
        """Low and high of one epoch with its validation. classes: how many, where as many images of each have a label
        and that is known."""
        key = _kind(cell, _typical(phase), self._device)
        if observed := self.observed(cell, phase):
            self.from_cells.add(key)
            return observed
        self.calibrated.add(key)
        cost = self.of(cell, phase)
        train, val = _images(cell, sizes)
        if phase.classify:
            train = classes * cell.labels_per_class if classes else round(train * cell.label_share)
        steps, evaluation = cost.seconds_per_image, val * cost.evaluation_seconds_per_image
        return train * min(steps) + evaluation, (train * max(steps) + evaluation) * _CROWDING

    def seconds_after(self, cell: Cell, phase: "Phase", sizes: dict[str, int]) -> Interval:
        """Low and high of what a phase measures once, after its last epoch: on the test images its metrics, and after
        a pre-training on tasks k-NN among the training images, else the confusion of classes."""
        if phase.name == "pretrain" and not phase.tasks:
            return 0.0, 0.0
        train, val = _images(cell, sizes) if phase.name == "pretrain" else (0, 0)
        seconds = (2 * sizes["test"] + train + val) * self.of(cell, phase).evaluation_seconds_per_image
        return seconds, seconds * _CROWDING

    def save(self) -> None:
        """Keep the calibrations for the next plan, where the storage path can be written."""
        if self._account.storage.is_dir():
            write_atomic(self._path, json.dumps(self._stored, indent=1).encode())


def _images(cell: Cell, sizes: dict[str, int]) -> tuple[int, int]:
    """How many a cell trains on and validates on, of so many in each split."""
    val = sizes.get("val", round(sizes["train"] * cell.val_share))
    return cell.train_images or sizes["train"] - (0 if "val" in sizes else val), val


def _typical(phase: "Phase") -> "Phase":
    """One combination stands for all in a calibration: SpRel, whose head is the largest by far, and AbsPos."""
    return phase._replace(tasks=("sprel", "abspos")) if set(phase.tasks) & set(PAPER_TASKS) else phase


def _pair_head(cell: Cell) -> str:
    return HEADS[0] if cell.pair_head == NONE else cell.pair_head


def _kind(cell: Cell, phase: "Phase", device: str) -> str:
    """What a step's cost per image depends on."""
    augmented = _augments_patches(cell) if phase.tasks else ()
    parts = (cell.backbone, phase.image_size, cell.precision, _pair_head(cell), phase.mega_grid, augmented, device)
    batch = cell.batch_size if device == "cuda" else "any"
    whole = () if cell.auto_augment == NONE else (cell.auto_augment,)
    return "/".join(map(str, (*parts, batch, "+".join(phase.tasks) or "none", phase.classify, phase.frozen, *whole)))


def _augments_patches(cell: Cell) -> tuple[bool, ...]:
    """Which of the operations on patches a training step on tasks has."""
    return cell.patch_crop < 1, cell.jitter_probability > 0, cell.greyscale_probability > 0


def _observed_key(cell: Cell, phase: str) -> tuple:
    """Cells with this in common take the same time for an epoch of this phase on the same device."""
    kind: tuple = (cell.backbone, cell.train_images, cell.batch_size, cell.precision, cell.auto_augment)
    if phase != "pretrain" or not cell.task_list:
        kind += (cell.labels_per_class, cell.label_share)
    if phase not in ("pretrain", "joint"):
        return (phase, cell.dataset, cell.last_image_size, *kind)
    kind += (cell.image_size,)
    name, mega_grid = (cell.pretrain_dataset, cell.mega_grid) if phase == "pretrain" else (cell.dataset, 0)
    return (phase, name, *kind, cell.tasks, cell.pair_head, mega_grid, _augments_patches(cell))


def _observed_epochs(account: Account, device: str) -> dict[tuple, Interval]:
    """Low and high of the seconds of the epochs of finished cells that were trained on such a device, by kind."""
    seconds: dict[tuple, list[float]] = {}
    for path in account.storage.glob("cells/*/history.json"):
        try:
            cell = Cell(**read_json(path.with_name("cell.json"), {}))
        except (ValueError, TypeError):  # not there, damaged, or another version's: it tells nothing of time
            continue
        # The account knows GPU memory of those cells alone that were trained on a GPU.
        if device != ("cuda" if account.status(cell).peak_gpu_bytes else "cpu"):
            continue
        end = cell.pretrain_epochs if cell.pretrain_epochs > 1 else None  # its time is not an epoch's alone
        for row in account.history(cell):
            known = isinstance(row, dict) and isinstance(row.get("epoch_seconds"), float) and "phase" in row
            if known and row.get("epoch") != end:
                seconds.setdefault(_observed_key(cell, row["phase"]), []).append(row["epoch_seconds"])
    return {kind: _without_ends(found) for kind, found in seconds.items()}


def _without_ends(seconds: list[float]) -> Interval:
    tenths = quantiles(seconds, n=10, method="inclusive") if len(seconds) > 1 else seconds
    return tenths[0], tenths[-1]
