"""What a phase of a cell costs on this machine, from a few training steps on random images."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import torch

from relvit.backbones import build_backbone
from relvit.cell import Cell
from relvit.model import RelViT
from relvit.step import Step
from relvit.task_files import add_tasks_source
from relvit.train import Phase, phase_augmentation, phases

_STEPS = 3  # measured, after one that warms up
# A CPU measures a few images, unless their step is so quick that it is mostly overhead; then, and on a GPU, the cell's
# own batch is used.
_IMAGES_ON_CPU, _QUICK_SECONDS = 4, 0.1
_PATIENCE = 600  # seconds for processes to start and compile
_UNWATCHED = 10  # steps after which a GPU is waited for: training waits once an epoch


@dataclass(frozen=True)
class Cost:
    """seconds_per_image: of each measured training step, and, of one on one CPU core, also what the core itself spent
    on it, which is less where other programs ran meanwhile; evaluation_seconds_per_image; parameters: how many, and how
    many of them are trained; saved_bytes_per_image: what the backward pass keeps of the forward pass."""

    seconds_per_image: tuple[float, ...]
    evaluation_seconds_per_image: float
    parameters: int
    trained_parameters: int
    saved_bytes_per_image: float


def _fresh_step(
    cell: Cell, phase: Phase, *, pair_head: str, classes: int, device: str, compile: str = "never"
) -> tuple[Step, torch.Tensor, torch.Tensor]:
    """A step of a fresh model of this phase, and a batch of random images with labels."""
    size = phase.image_size or cell.image_size
    backbone = build_backbone(
        cell.backbone,
        phase.mega_grid * cell.patch_size or size,
        position_embedding=phase.position_embedding,
        drop_path=cell.drop_path,
    )
    model = RelViT(
        backbone, phase.tasks, classes=classes if phase.classify else 0, pair_head=pair_head, probe=phase.frozen
    )
    augment = phase_augmentation(cell, phase, mean=(0.5,) * 3, std=(0.25,) * 3, training=True)
    step_on = Step(
        model,
        backbone.grid,
        augment,
        device=device,
        learning_rate=1e-3,
        weight_decay=0.0,
        gradient_clip=1.0,
        weights={},
        precision="fp32" if (device, cell.precision) == ("cpu", "tf32") else cell.precision,
        compile=compile,
    )
    images = torch.randint(0, 256, (cell.batch_size, size, size, 3), dtype=torch.uint8, device=device)
    model.train()
    return step_on, images, torch.zeros(cell.batch_size, dtype=torch.int64, device=device)


def measure(cell: Cell, phase: Phase, *, pair_head: str, classes: int, device: str) -> Cost:
    """Train a fresh model of this phase for a few steps; nothing is kept. `phase` need not be one of the cell's own."""
    step_on, images, labels = _fresh_step(cell, phase, pair_head=pair_head, classes=classes, device=device)
    model, generator = step_on.model, torch.Generator(device).manual_seed(0)
    batch = cell.batch_size if device == "cuda" else min(cell.batch_size, _IMAGES_ON_CPU)
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        step_on(images[:batch], labels[:batch], generator)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    activations = sum(size for pointer, size in saved.items() if pointer not in weights)
    activations_per_image = activations / batch
    if _timed(step, device) < _QUICK_SECONDS:
        batch = cell.batch_size
        step()
    seconds = tuple(_timed(step, device) / batch for _ in range(_STEPS))
    if device == "cpu" and torch.get_num_threads() == 1:
        used = time.process_time()
        seconds += (_timed(step, device) / batch, (time.process_time() - used) / batch)
    model.eval()
    with torch.inference_mode():
        inputs, _ = step_on.augment(images[:batch], generator)
        model(inputs)
        evaluation = _timed(lambda: model(inputs), device) / batch
    return Cost(
        seconds,
        evaluation,
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for parameter in step_on.trained),
        activations_per_image,
    )


def images_per_second(
    count: int,
    cell: Cell,
    task_files: Sequence[tuple[str, str]] = (),
    *,
    pair_head: str,
    classes: int,
    device: str,
    compile: str,
    seconds: float,
) -> float:
    """What `count` processes train together on one device, in the first phase of a cell, while all are at work.

    task_files: names and texts of the files that the cell's tasks come from. Raises RuntimeError where not all of them
    can, for want of memory for instance.
    """
    context = torch.multiprocessing.get_context("spawn")
    together, rates = context.Barrier(count, timeout=_PATIENCE), context.Queue()
    how = {"pair_head": pair_head, "classes": classes, "device": device, "compile": compile}
    arguments = (together, rates, cell.as_dict(), task_files, how, seconds)
    processes = [context.Process(target=_work, args=arguments, daemon=True) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.kill()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"of {count} processes at once not all could train")
    return sum(rates.get() for _ in processes)


def _work(
    together: Barrier, rates: Queue, fields: dict, task_files: Sequence[tuple[str, str]], how: dict, seconds: float
) -> None:
    try:
        for name, text in task_files:
            add_tasks_source(name, text)
        torch.set_num_threads(1)
        cell = Cell(**fields)
        step, images, labels = _fresh_step(cell, phases(cell)[0], **how)
        draws, steps = torch.Generator(how["device"]).manual_seed(0), 0
        for _ in range(_STEPS):
            _timed(lambda: step(images, labels, draws), how["device"])
        at_once = _UNWATCHED if how["device"] == "cuda" else 1

        def some() -> None:
            for _ in range(at_once):
                step(images, labels, draws)

        together.wait()
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < seconds or not steps:
            _timed(some, how["device"])
            steps += at_once
        rates.put(steps * len(images) / took)
    except BaseException:
        together.abort()
        raise


def _timed(function: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
