"""Images that are stored small and used large are what Pillow makes of them, bit for bit."""

import numpy as np
import pytest
import torch
from PIL import Image

from relvit.enlarge import enlarge, taps


@pytest.mark.parametrize(
    ("native", "side"), [(32, 224), (32, 64), (28, 224), (64, 224), (96, 224), (223, 224), (8, 16), (2, 7), (7, 7)]
)
def test_every_bit_is_pillows(native, side):
    images = np.random.default_rng(native).integers(0, 256, (4, native, native, 3), dtype=np.uint8)
    images[0], images[1] = 255, 0  # what would overflow, and what would not
    images[2, ::2] = 255
    expected = [np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BILINEAR)) for each in images]
    found = enlarge(torch.from_numpy(images), side)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), np.stack(expected))


def test_twice_the_side_takes_a_quarter_of_the_neighbour():
    places, weights = taps(2, 4)
    # Centres at 0.25, 0.75, 1.25 and 1.75 of pixels whose own are at 0.5 and 1.5.
    assert (weights / 2**22).T.tolist() == [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [1.0, 0.0]]
    assert places.T.tolist() == [[0, 1], [0, 1], [0, 1], [1, 1]]
