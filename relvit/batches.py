"""Batches of a split on the device: gathered there where the data set fits beside the model, else read ahead."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from relvit.data import Split
from relvit.enlarge import enlarge

# Of a trial's share of a GPU's memory, what a data set may take: less than what packing leaves beyond the model's peak.
_SHARE = 0.125


class Batches:
    """The batches of a run. A data set is copied to a GPU once, when its first split is asked for, and stays there for
    as long as this object lives; one that does not fit is read ahead through pinned memory, which `note` says.

    gpu_share: of the GPU, that is this trial's, at most 1.
    """

    def __init__(self, device: str, gpu_share: float = 1.0, note: Callable[[str], None] = lambda text: None):
        self._device, self._gpu_share, self._note = torch.device(device), gpu_share, note
        self._resident: dict[int, Tensor | None] = {}

    def of(self, split: Split, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Images uint8 [b, S, S, 3] and labels int64 [b] at the places `order` of a split, and where images are whole
        their aspects, float32 [b].

        order: int64 [n], on the CPU; size: of a batch, of which the last may have fewer.
        """
        aspects = None
        if split.aspects is not None:
            aspects = torch.from_numpy(split.aspects[split.rows])[order].to(self._device)
        images = self._on_device(split)
        if images is None:
            batches = self._read_ahead(split, order.split(size))
        else:  # one copy an epoch: in a step nothing comes from the host
            rows, labels = (torch.from_numpy(array)[order].to(self._device) for array in (split.rows, split.labels))
            parts = zip(rows.split(size), labels.split(size))
            batches = ((enlarge(images.index_select(0, part), split.side), part_labels) for part, part_labels in parts)
        for (batch, batch_labels), start in zip(batches, range(0, len(order), size)):
            yield batch, batch_labels, None if aspects is None else aspects[start : start + size]

    def _on_device(self, split: Split) -> Tensor | None:
        """All images of the split's data set; None on a CPU, which has the memory map, or where they do not fit."""
        if self._device.type != "cuda":
            return None
        key = id(split.images)  # held by the data set, which lives as long as the run
        if key not in self._resident:
            limit = _SHARE * self._gpu_share * torch.cuda.get_device_properties(self._device).total_memory
            self._resident[key], lacks = None, f"this trial has {limit / 1e9:.1f} GB for them on its GPU"
            if split.images.nbytes <= limit:
                try:
                    with warnings.catch_warnings():  # that the map cannot be written, which nobody wants
                        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                        images = torch.from_numpy(split.images)
                    self._resident[key] = images.to(self._device)
                except torch.OutOfMemoryError:  # other processes have more than their share
                    lacks = "its GPU has less left"
            if self._resident[key] is None:
                taken = f"the images take {split.images.nbytes / 1e9:.1f} GB and {lacks}"
                self._note(f"{taken}: each batch is read ahead from the disk instead")
        return self._resident[key]

    def _read_ahead(self, split: Split, chunks: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """The next batch is read from the memory map while this one is used."""
        pinned = self._device.type == "cuda"

        def read(index: Tensor) -> list[Tensor]:
            arrays = [torch.from_numpy(array) for array in split.read(index.numpy())]
            return [array.pin_memory() for array in arrays] if pinned else arrays

        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(read, chunks[0])
            for following in [*chunks[1:], None]:
                images, labels = ahead.result()
                if following is not None:
                    ahead = reader.submit(read, following)
                yield images.to(self._device, non_blocking=pinned), labels.to(self._device, non_blocking=pinned)
