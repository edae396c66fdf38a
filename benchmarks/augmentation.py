"""Batched patch augmentation against torchvision's transforms in a loop over patches, images a second, one thread.

    python benchmarks/augmentation.py          about a minute; claim: at least 120 times

The loop is how the published code augments: each patch of each image on its own through RandomCrop, Resize,
RandomApply(ColorJitter) and RandomGrayscale. Both sides first crop and flip the image and at last normalise it.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from torch import Tensor
from torchvision import transforms

from relvit.augment import Augmentation

SIDE, PATCH, BATCH, ROUNDS = 32, 4, 256, 5
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def patch_loop() -> Callable[[Tensor], Tensor]:
    """One image [3, H, W] in [0, 1] to one augmented image, patch by patch."""
    image_transform = transforms.Compose([transforms.RandomCrop(SIDE, padding=4), transforms.RandomHorizontalFlip()])
    patch_transform = transforms.Compose(
        [
            transforms.RandomCrop(round(PATCH / 1.15)),
            transforms.Resize(PATCH, antialias=True),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
        ]
    )
    normalise = transforms.Normalize(MEAN, STD)

    def augment(image: Tensor) -> Tensor:
        image = image_transform(image)
        rows = []
        for top in range(0, SIDE, PATCH):
            row = [patch_transform(image[:, top : top + PATCH, left : left + PATCH]) for left in range(0, SIDE, PATCH)]
            rows.append(torch.cat(row, dim=2))
        return normalise(torch.cat(rows, dim=1))

    return augment


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    batched = Augmentation(
        patch_size=PATCH,
        mean=MEAN,
        std=STD,
        crop_padding=4,
        flip_probability=0.5,
        patch_crop=1 / 1.15,
        jitter_probability=0.8,
        jitter_strength=0.4,
        greyscale_probability=0.2,
    )
    loop = patch_loop()
    images = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    floats = images.permute(0, 3, 1, 2).float() / 255
    few = 16  # the loop is slow; a few images are a fair sample of it
    batched(images, generator), loop(floats[0])  # warm up
    ratios, speeds = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(10):
            batched(images, generator)
        ours = 10 * BATCH / (time.perf_counter() - started)
        started = time.perf_counter()
        for image in floats[:few]:
            loop(image)
        theirs = few / (time.perf_counter() - started)
        ratios.append(ours / theirs)
        speeds.append((ours, theirs))
    ours, theirs = (statistics.median(side) for side in zip(*speeds))
    print(
        f"images a second: batched {ours:,.0f}, patch by patch {theirs:,.1f}; "
        f"ratio {statistics.median(ratios):.0f} (claim: at least 120; {min(ratios):.0f} to {max(ratios):.0f})"
    )


if __name__ == "__main__":
    main()
