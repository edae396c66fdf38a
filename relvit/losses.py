"""Eq. 10-13 as pure functions: logits and targets in, a scalar out.

B batch, N patches, K classes. Losses are taken in float32 whatever the logits' type. A target without the batch
dimension is the same for every image.
"""

import operator
from collections.abc import Mapping
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from relvit.heads import PairOffsets


def spatial_relation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the nine relations, averaged over all pairs: Eq. 10.

    logits: [B, N, N, 9]; target: int64 [N, N] or [B, N, N] with values 0..8.
    """
    return _cross_entropy(logits, target)


def distance_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error averaged over all pairs: Eq. 11. prediction: [B, N, N, 1]; target: [N, N] or [B, N, N]."""
    return F.mse_loss(prediction.squeeze(-1).float(), target.expand(prediction.shape[:-1]))


def angle_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Squared error averaged over all pairs: Eq. 12. prediction: [B, N, N, 1]; target: [N, N] or [B, N, N]."""
    return F.mse_loss(prediction.squeeze(-1).float(), target.expand(prediction.shape[:-1]))


def absolute_position_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the N positions, averaged over patches: Eq. 13.

    logits: [B, N, N]; target: int64 [N] or [B, N] with values 0..N-1.
    """
    return _cross_entropy(logits, target)


def classification_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy over the data set's classes. logits: [B, K]; target: int64 [B], or shares of classes [B, K];
    smoothing: the share of the target that all classes have in equal parts (Szegedy et al., CVPR 2016)."""
    return F.cross_entropy(logits.float(), target, label_smoothing=smoothing)


def dense_relative_localisation_loss(prediction: PairOffsets, target: Tensor) -> Tensor:
    """L_drloc of Liu et al. (NeurIPS 2021), Eq. 2: mean absolute error of the offsets of sampled pairs.

    target: `relvit.targets.coordinates`, [N, 2] or [B, N, 2]. As in the authors' code a mean over images, pairs and
    the two numbers of an offset, where Eq. 2 has the sum over images and over the two.
    """
    return F.l1_loss(prediction.offset.float(), pair_offsets(prediction, target))


def pair_offsets(prediction: PairOffsets, target: Tensor) -> Tensor:
    """The true offsets of the sampled pairs, without sign, as shares of the grid's sides: their Eq. 1.

    Returns [B, M, 2] with values from 0 to below 1. The authors' code has the same offsets in tokens, not in shares.
    """
    first, second = (
        target.expand(len(index), -1, -1).gather(1, index[:, :, None].expand(-1, -1, 2))
        for index in (prediction.first, prediction.second)
    )
    return (first - second).abs()


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of named losses; a name without a weight counts once (section 2.2: a plain sum)."""
    return reduce(operator.add, (weights.get(name, 1.0) * loss for name, loss in losses.items()))


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    target = target.expand(logits.shape[:-1])
    # F.cross_entropy wants [rows, classes, ...]. One leading dimension folds away the batch, so that the pair
    # logits keep the memory layout in which the head produced them and no copy is made.
    logits, target = logits.flatten(0, 1).movedim(-1, 1).float(), target.flatten(0, 1)
    # On a GPU torch takes the mean over pairs by atomic additions, whose order differs from run to run.
    if torch.are_deterministic_algorithms_enabled():
        return F.cross_entropy(logits, target, reduction="none").mean()
    return F.cross_entropy(logits, target)
