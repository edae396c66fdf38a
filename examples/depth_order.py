"""A task of your own: which of two patches lies in the nearer quadrant of the image.

    python sweeps/ablation.py --study examples/depth_order.py --plan      32 cells: Table 4's tasks and this one
    python sweeps/ablation.py --study examples/depth_order.py --tasks depth,sprel+depth

No depth is measured. The cue is an old one of monocular vision: what is near is in focus and has contrast, what is far
is hazy and blurred, so quadrants are ordered by the mean difference of neighbouring pixels.
"""

import torch
import torch.nn.functional as F

from relvit.tasks import ACCURACY, PAIRS, Task


def order(images, height, width):
    """[B, N, N]: 0 where the patch's quadrant is farther than the other's, 1 where it is the same, 2 where nearer."""
    grey = images.mean(1, keepdim=True)
    contrast = (grey[..., 1:, 1:] - grey[..., :-1, :-1]).abs()
    quadrants = F.adaptive_avg_pool2d(contrast, 2).flatten(1)
    row, column = (torch.arange(side, device=images.device) * 2 // side for side in (height, width))
    nearness = quadrants[:, (2 * row[:, None] + column).flatten()]
    return (nearness[:, :, None] - nearness[:, None, :]).sign().long() + 1


def loss(logits, target):
    return F.cross_entropy(logits.movedim(-1, 1).float(), target)


tasks = [
    Task(name="depth", title="Depth", over=PAIRS, outputs=3, target=order, of_images=True, loss=loss, metric=ACCURACY)
]
