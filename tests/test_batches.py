"""Where a split's batches come from, with a GPU that is simulated: its tensors are the host's."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from relvit.batches import Batches
from relvit.data import Split


@pytest.fixture
def gpu(monkeypatch):
    """Sets the bytes of the GPU, and those of them that other processes have left. Returns what was copied there."""
    copied, copy = [], torch.Tensor.to

    def set_memory(total: float, free: float):
        def to(tensor, *arguments, **options):
            if arguments != (torch.device("cuda"),) and options != {"non_blocking": True}:
                return copy(tensor, *arguments, **options)
            if tensor.nbytes > free:
                raise torch.OutOfMemoryError("CUDA out of memory")
            copied.append(tuple(tensor.shape))
            return tensor

        monkeypatch.setattr(torch.Tensor, "to", to)
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        total_memory = SimpleNamespace(total_memory=total)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: total_memory)
        return copied

    return set_memory


def batches(gpu_share=1.0, native=1000, side=0):
    """Those of 10 of 20 images of 3 MB each, or of another size, in threes, by a trial that has so much of a GPU; and
    its notes. What comes must be what the split reads."""
    rng, notes = np.random.default_rng(0), []
    images = rng.integers(0, 256, (20, native, native, 3), dtype=np.uint8)
    images.flags.writeable = False  # as the map of a cache
    split = Split(images, np.arange(0, 20, 2), np.arange(10), side=side)
    made = list(Batches("cuda", gpu_share, notes.append).of(split, torch.arange(9, -1, -1), 3))
    expected = [split.read(part) for part in ([9, 8, 7], [6, 5, 4], [3, 2, 1], [0])]
    for (batch, labels, aspects), (wanted, wanted_labels) in zip(made, expected, strict=True):
        assert np.array_equal(batch.numpy(), wanted) and np.array_equal(labels.numpy(), wanted_labels)
        assert aspects is None
    return notes


@pytest.mark.filterwarnings("error")
def test_images_that_fit_beside_the_model_are_copied_to_the_gpu_once(gpu):
    copied = gpu(total=1e9, free=1e9)  # an eighth is 125 MB
    assert batches() == []
    assert copied.count((20, 1000, 1000, 3)) == 1 and len(copied) == 3  # with an epoch's order and labels


@pytest.mark.parametrize(
    ("total", "share", "free", "lacks"),
    [
        (0.4e9, 1.0, 0.4e9, "this trial has 0.1 GB for them on its GPU"),
        (1e9, 0.25, 1e9, "this trial has 0.0 GB for them on its GPU"),  # of which packing gave it a quarter
        (1e9, 1.0, 50e6, "its GPU has less left"),
    ],
)
def test_images_that_do_not_fit_are_read_ahead_batch_by_batch_and_it_is_said(gpu, total, share, free, lacks):
    copied = gpu(total, free)
    assert batches(share) == [f"the images take 0.1 GB and {lacks}: each batch is read ahead from the disk instead"]
    assert max(shape[0] for shape in copied) == 3


@pytest.mark.parametrize("total", [1e9, 1e3])
def test_small_images_are_enlarged_on_the_gpu_as_they_are_when_they_are_read_ahead(gpu, total):
    copied = gpu(total, free=1e9)
    batches(native=32, side=224)
    resident = (20, 32, 32, 3) in copied
    assert resident == (total == 1e9)
    assert ((3, 224, 224, 3) in copied) != resident
