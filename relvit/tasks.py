"""One row per objective: its target, its head, its loss, its metric. A fifth task is one more row here.

B batch, N patches, D channels, K outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relvit import losses, targets
from relvit.heads import PAIR_HEADS, PairOffsetHead, PairOffsets, TokenHead


@dataclass(frozen=True)
class Task:
    """A self-supervised objective over the patch tokens of one image.

    target: (height, width) of the grid to the target of an unpermuted image.
    permute: the target for a batch of permuted images, from it and permutations [B, N].
    head: (D, N, kind of pair head) to the module that makes the prediction.
    loss: prediction and target to a scalar.
    metric_name, metric: what Table 4 prints; a mean over images, so that batches average by their size.
    """

    target: Callable[[int, int], Tensor]
    permute: Callable[[Tensor, Tensor], Tensor]
    head: Callable[[int, int, str], nn.Module]
    loss: Callable[[Any, Tensor], Tensor]
    metric_name: str
    metric: Callable[[Any, Tensor], Tensor]


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of right answers in percent. logits [..., K], target [...] with the batch dimension or without."""
    return (logits.argmax(-1) == target).float().mean() * 100


def mse_x100(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error times 100, as Table 4 evidently prints it. prediction [B, N, N, 1]."""
    return (prediction.squeeze(-1).float() - target).square().mean() * 100


def offset_error_x100(prediction: PairOffsets, target: Tensor) -> Tensor:
    """Mean absolute error of the predicted offsets times 100, offsets as shares of the grid's sides."""
    return losses.dense_relative_localisation_loss(prediction, target) * 100


def _permute_positions(target: Tensor, permutation: Tensor) -> Tensor:
    return target[permutation]


def _pair_head(outputs: int) -> Callable[[int, int, str], nn.Module]:
    return lambda dim, patches, kind: PAIR_HEADS[kind](dim, outputs)


TASKS: dict[str, Task] = {
    "sprel": Task(
        target=targets.spatial_relations,
        permute=targets.permute_pairs,
        head=_pair_head(9),
        loss=losses.spatial_relation_loss,
        metric_name="sprel_accuracy",
        metric=accuracy,
    ),
    "dist": Task(
        target=targets.distances,
        permute=targets.permute_pairs,
        head=_pair_head(1),
        loss=losses.distance_loss,
        metric_name="dist_mse_x100",
        metric=mse_x100,
    ),
    "ang": Task(
        target=targets.angles,
        permute=targets.permute_pairs,
        head=_pair_head(1),
        loss=losses.angle_loss,
        metric_name="ang_mse_x100",
        metric=mse_x100,
    ),
    "abspos": Task(
        target=targets.positions,
        permute=_permute_positions,
        head=lambda dim, patches, kind: TokenHead(dim, patches),
        loss=losses.absolute_position_loss,
        metric_name="abspos_accuracy",
        metric=accuracy,
    ),
    "drloc": Task(
        target=targets.coordinates,
        permute=_permute_positions,
        head=lambda dim, patches, kind: PairOffsetHead(dim),
        loss=losses.dense_relative_localisation_loss,
        metric_name="drloc_error_x100",
        metric=offset_error_x100,
    ),
}


class Targets(nn.Module):
    """The targets of the chosen tasks for one grid, held on the model's device.

    Called with permutations [B, N], or None for images in order, it gives the target of each task by name.
    """

    def __init__(self, tasks: tuple[str, ...], grid: tuple[int, int]):
        super().__init__()
        self.tasks = tasks
        for task in tasks:
            self.register_buffer(task, TASKS[task].target(*grid), persistent=False)

    def forward(self, permutation: Tensor | None) -> dict[str, Tensor]:
        unpermuted = {task: getattr(self, task) for task in self.tasks}
        if permutation is None:
            return unpermuted
        return {task: TASKS[task].permute(target, permutation) for task, target in unpermuted.items()}


def majority_rate(target: Tensor) -> float:
    """Accuracy in percent of always answering the most frequent class: what a model must beat."""
    return float(torch.bincount(target.flatten()).max() / target.numel() * 100)
