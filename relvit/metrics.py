"""What is reported beside the losses: predictions and targets in, a scalar out, a mean over the batch's images."""

import torch
from torch import Tensor

from relvit.heads import PairOffsets
from relvit.losses import dense_relative_localisation_loss


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of right answers in percent. logits [..., K], target [...] with the batch dimension or without."""
    return (logits.argmax(-1) == target).float().mean() * 100


def mse_x100(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error times 100, as Table 4 evidently prints it. prediction [B, N, N, 1]."""
    return (prediction.squeeze(-1).float() - target).square().mean() * 100


def offset_error_x100(prediction: PairOffsets, target: Tensor) -> Tensor:
    """Mean absolute error of the predicted offsets times 100, offsets as shares of the grid's sides."""
    return dense_relative_localisation_loss(prediction, target) * 100


def majority_rate(target: Tensor) -> float:
    """Accuracy in percent of always answering the most frequent class: what a model must beat."""
    return float(torch.bincount(target.flatten()).max() / target.numel() * 100)
