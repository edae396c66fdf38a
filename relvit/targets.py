"""What the model has to predict about a grid of patches: Eq. 5-7 and the absolute position.

Patches are numbered row by row: patch ``i`` of a ``height x width`` grid stands in row ``i // width`` and
column ``i % width``. N = height * width. In a matrix of pairs the entry ``[i, j]`` speaks of patch i as seen
from patch j.
"""

import torch
from torch import Tensor, nn

from relvit.tasks import PAIRS, TASKS

# Eq. 7 leaves the constant open; the published code uses 1e-4.
ANGLE_EPSILON = 1e-4


def spatial_relations(height: int, width: int) -> Tensor:
    """Where patch i lies as seen from patch j: Eq. 5.

    Returns int64 [N, N] with class ``3 * row + col``, row 0, 1, 2 for top, centre, bottom and col 0, 1, 2 for
    left, centre, right; the diagonal is 4, "same row and same column".
    """
    rows, cols = _grid(height, width)
    row = torch.sign(rows[:, None] - rows[None, :]) + 1
    col = torch.sign(cols[:, None] - cols[None, :]) + 1
    return 3 * row + col


def distances(height: int, width: int) -> Tensor:
    """Euclidean distance between patches, in patches, scaled from [0, maximum] to [-1, 1]: Eq. 6.

    Returns float32 [N, N]. The scaling by the maximum is the published code's reading of "normalize in [-1, 1]".
    Raises ValueError for a single patch, which has no pair.
    """
    _require_pairs(height, width)
    rows, cols = (axis.double() for axis in _grid(height, width))
    distance = torch.hypot(rows[:, None] - rows[None, :], cols[:, None] - cols[None, :])
    return _to_unit_interval(distance)


def angles(height: int, width: int) -> Tensor:
    """Angle at the origin between the positions of two patches, scaled from [0, maximum] to [-1, 1]: Eq. 7.

    Returns float32 [N, N]. As in the published code, positions are shifted by half the grid's side on each axis
    (so that no patch sits on the origin, where an angle means nothing), epsilon is 1e-4, and the diagonal, whose
    arc cosine the epsilon would move off zero, is set to zero before scaling.
    Raises ValueError for a single patch, which has no pair.
    """
    _require_pairs(height, width)
    rows, cols = (axis.double() for axis in _grid(height, width))
    points = torch.stack([cols + width / 2, rows + height / 2], dim=1)
    norms = points.norm(dim=1)
    cosine = (points @ points.T) / (norms[:, None] * norms[None, :] + ANGLE_EPSILON)
    angle = torch.acos(cosine).fill_diagonal_(0.0)
    return _to_unit_interval(angle)


def positions(height: int, width: int) -> Tensor:
    """The number of each patch, counted from 0 where the paper counts from 1: int64 [N]."""
    return torch.arange(height * width)


def coordinates(height: int, width: int) -> Tensor:
    """Row and column of each patch as shares of the grid's sides, from 0 to below 1: float32 [N, 2].

    For dense relative localisation, whose Eq. 1 divides by the side and not by the largest distance.
    """
    rows, cols = _grid(height, width)
    return torch.stack([rows / height, cols / width], dim=1)


def permute_pairs(target: Tensor, permutation: Tensor) -> Tensor:
    """The pair target [N, N] for patches that were put in another order: [B, N, N].

    permutation: int64 [B, N]; place n of image b holds the patch that was ``permutation[b, n]``.
    """
    return target[permutation[:, :, None], permutation[:, None, :]]


class Targets(nn.Module):
    """The targets of the chosen tasks on one grid, held on the model's device."""

    def __init__(self, tasks: tuple[str, ...], grid: tuple[int, int]):
        super().__init__()
        self.tasks, self.grid = tasks, grid
        for task in tasks:
            if not TASKS[task].of_images:
                self.register_buffer(task, TASKS[task].target(*grid), persistent=False)

    def forward(self, permutation: Tensor | None, images: Tensor | None = None) -> dict[str, Tensor]:
        """The target of each task by name.

        permutation: int64 [B, N], or None for patches in order; images: [B, 3, H, W] as the model sees them, for the
        tasks whose targets come from there.
        """
        return {task: self._target(task, permutation, images) for task in self.tasks}

    def _target(self, name: str, permutation: Tensor | None, images: Tensor | None) -> Tensor:
        task = TASKS[name]
        if task.of_images:
            return task.target(images, *self.grid)
        in_order: Tensor = getattr(self, name)
        if permutation is None:
            return in_order
        return permute_pairs(in_order, permutation) if task.over == PAIRS else in_order[permutation]


def _grid(height: int, width: int) -> tuple[Tensor, Tensor]:
    index = torch.arange(height * width)
    return index // width, index % width


def _require_pairs(height: int, width: int) -> None:
    if height * width < 2:
        raise ValueError(f"a grid of {height} x {width} patches has no pair; at least two patches are needed")


def _to_unit_interval(values: Tensor) -> Tensor:
    return (values / values.max() * 2 - 1).float()
