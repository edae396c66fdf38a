"""A task of your own: the mean and the standard deviation of each patch's red, green and blue.

    python sweeps/ablation.py --study table4 --tasks-file examples/colour_statistics.py --plan     Table 4 as it is
    python sweeps/ablation.py --study examples/colour_statistics.py --tasks colour,abspos+colour

A study file may name this file too, `tasks_file = "colour_statistics.py"`, and then have `colour` in its cells. The
target is of the pixels that the model sees, jittered and normalised: it asks what a patch looks like and no more.
"""

import torch
import torch.nn.functional as F

from relvit.tasks import MSE, PATCHES, Task


def statistics(images, height, width):
    """[B, N, 6]: the three means, then the three deviations."""
    patches = images.unflatten(3, (width, -1)).unflatten(2, (height, -1))  # [B, 3, rows, P, columns, P]
    both = [patches.mean((3, 5)), patches.std((3, 5))]
    return torch.cat(both, 1).flatten(2).transpose(1, 2)


def loss(prediction, target):
    return F.mse_loss(prediction.float(), target)


tasks = [
    Task(
        name="colour", title="Colour", over=PATCHES, outputs=6, target=statistics, of_images=True, loss=loss, metric=MSE
    )
]
