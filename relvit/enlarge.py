"""Small images brought to a larger size as Pillow does it, bit for bit, on any device.

A data set of small images that a backbone wants large (CIFAR-10 at 224 pixels) is stored at its images' own size. What
a step sees is what Pillow's bilinear `resize` would have stored: two passes, along the rows and then along the columns,
each a sum of two neighbours weighted by integers of 22 bits and rounded to 8.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_BITS = 22  # Pillow's PRECISION_BITS: what 32 leave beside 8 of a pixel and 2 for sums


def taps(native: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The two pixels of `native` that each of `side` >= native pixels is made of, and their weights in units of
    2**-22: int64 [2, side] each."""
    centre = (np.arange(side) + 0.5) * (native / side)
    first = np.maximum((centre - 0.5).astype(np.int64), 0)
    places = np.stack([first, first + 1])
    weights = np.maximum(1 - np.abs(places + 0.5 - centre), 0) * (places < native)
    weights = (weights / weights.sum(0) * (1 << _BITS) + 0.5).astype(np.int64)
    return np.minimum(places, native - 1), weights


def enlarge(images: Tensor, side: int) -> Tensor:
    """uint8 [b, n, n, 3] as uint8 [b, side, side, 3], on the device of the images; as they are where n >= side."""
    native = images.shape[1]
    if native >= side:
        return images
    places, weights = _taps_on(images.device, native, side)
    for axis in (2, 1):
        shape = [-1 if dim == axis else 1 for dim in range(4)]
        # 255 * 2**22 and a half fit 31 bits.
        one, other = (images.index_select(axis, places[tap]).int() * weights[tap].view(shape) for tap in range(2))
        images = ((one + other + (1 << _BITS - 1)) >> _BITS).clamp(max=255).to(torch.uint8)
    return images


@lru_cache(maxsize=8)  # a step copies nothing from the host
def _taps_on(device: torch.device, native: int, side: int) -> tuple[Tensor, Tensor]:
    places, weights = (torch.from_numpy(each).to(device) for each in taps(native, side))
    return places, weights.int()
