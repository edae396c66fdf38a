"""What a phase of a cell costs on this machine, from a few training steps on random images."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from relvit.backbones import build_backbone
from relvit.cell import Cell
from relvit.model import RelViT
from relvit.step import Step
from relvit.train import Phase, phase_augmentation

_STEPS = 3  # measured, after one that warms up
# A CPU measures a few images, unless their step is so quick that it is mostly overhead; then, and on a GPU, the cell's
# own batch is used.
_IMAGES_ON_CPU, _QUICK_SECONDS = 4, 0.1


@dataclass(frozen=True)
class Cost:
    """seconds_per_image: of each measured training step; evaluation_seconds_per_image; parameters: how many, and how
    many of them are trained; saved_bytes_per_image: what the backward pass keeps of the forward pass."""

    seconds_per_image: tuple[float, ...]
    evaluation_seconds_per_image: float
    parameters: int
    trained_parameters: int
    saved_bytes_per_image: float


def measure(cell: Cell, phase: Phase, *, pair_head: str, classes: int, device: str) -> Cost:
    """Train a fresh model of this phase for a few steps; nothing is kept. `phase` need not be one of the cell's own."""
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
    )
    generator = torch.Generator(device).manual_seed(0)
    batch = cell.batch_size if device == "cuda" else min(cell.batch_size, _IMAGES_ON_CPU)
    images = torch.randint(0, 256, (cell.batch_size, size, size, 3), dtype=torch.uint8, device=device)
    labels = torch.zeros(cell.batch_size, dtype=torch.int64, device=device)
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        step_on(images[:batch], labels[:batch], generator)

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    activations = sum(size for pointer, size in saved.items() if pointer not in weights)
    activations_per_image = activations / batch
    if _timed(step, device) < _QUICK_SECONDS:
        batch = cell.batch_size
        step()
    seconds = tuple(_timed(step, device) / batch for _ in range(_STEPS))
    model.eval()
    with torch.inference_mode():
        inputs, _ = augment(images[:batch], generator)
        model(inputs)
        evaluation = _timed(lambda: model(inputs), device) / batch
    return Cost(
        seconds,
        evaluation,
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for parameter in step_on.trained),
        activations_per_image,
    )


def _timed(function: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started
