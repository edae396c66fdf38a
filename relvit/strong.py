"""Stronger augmentation of a whole batch on its device: RandAugment, TrivialAugment, mixup, cutmix, random erasing.

As in `relvit.augment`, `draw_*` draws the parameters of the batch and a pure function applies them. The operations and
their magnitudes are torchvision's, and so is the result, to a step of 8 bits; mixup and cutmix are timm's in its mode
"batch", with which Swin and DeiT were trained; erasing is timm's with random pixels. Those libraries draw on the host,
and torchvision draws once a batch, so only their definitions serve here.

B batch, H and W image side, K classes. Images are float [B, H, W, 3] in [0, 1] until they are normalised.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

# ITU-R 601-2 luma, the weights torchvision's rgb_to_grayscale uses.
LUMA = (0.2989, 0.587, 0.114)
# torchvision's order.
OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "colour", "contrast"),
    *("sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
_PLACE = {name: place for place, name in enumerate(OPERATIONS)}
_SIGNED = range(_PLACE["shear_x"], _PLACE["sharpness"] + 1)
_BINS = 31
RAND_OPERATIONS, RAND_MAGNITUDE = 2, 9  # torchvision's defaults, and the paper's for ImageNet


def magnitudes(kind: str, height: int, width: int) -> Tensor:
    """The 31 magnitudes of each operation, float32 [14, 31], for images of this size. kind: "trivialaugment" (Müller
    and Hutter, ICCV 2021) or "randaugment" (Cubuk et al., 2020)."""
    trivial = kind == "trivialaugment"
    share = torch.arange(_BINS) / (_BINS - 1)
    largest = dict.fromkeys(("shear_x", "shear_y"), 0.99 if trivial else 0.3)
    largest |= {"translate_x": 32.0, "translate_y": 32.0}
    if not trivial:
        largest |= {"translate_x": 150 / 331 * width, "translate_y": 150 / 331 * height}
    largest |= {"rotate": 135.0 if trivial else 30.0}
    largest |= dict.fromkeys(("brightness", "colour", "contrast", "sharpness"), 0.99 if trivial else 0.9)
    table = torch.zeros(len(OPERATIONS), _BINS)
    for name, value in largest.items():
        table[_PLACE[name]] = share * value
    table[_PLACE["posterize"]] = 8 - (share * (6 if trivial else 4)).round()
    table[_PLACE["solarize"]] = 255 * (1 - share)
    return table


class Operations(NamedTuple):
    """One operation on each image: which of OPERATIONS, int64 [B], and with which magnitude, float [B], with a sign."""

    which: Tensor
    magnitude: Tensor


def draw_operations(kind: str, table: Tensor, batch: int, generator: Generator) -> tuple[Operations, ...]:
    """One operation of any magnitude an image for "trivialaugment", two of the ninth for "randaugment". table: that of
    `magnitudes`, on the generator's device."""
    device = generator.device
    drawn = []
    for _ in range(1 if kind == "trivialaugment" else RAND_OPERATIONS):
        which = torch.randint(len(OPERATIONS), (batch,), generator=generator, device=device)
        bins = torch.randint(_BINS, (batch,), generator=generator, device=device)
        if kind == "randaugment":
            bins = torch.full_like(bins, RAND_MAGNITUDE)
        sign = torch.randint(2, (batch,), generator=generator, device=device) * 2 - 1
        signed = (which >= _SIGNED.start) & (which < _SIGNED.stop)
        drawn.append(Operations(which, table[which, bins] * torch.where(signed, sign, 1)))
    return tuple(drawn)


def apply_operations(images: Tensor, operations: Operations) -> Tensor:
    """Each image under its operation. The others leave it as it is, so that one pass of each serves the batch."""
    images = _moved(images, operations)
    images = _blended(images, operations)
    images = _with_fewer_levels(images, operations)
    return _stretched(images, operations)


def _is(operations: Operations, name: str) -> Tensor:
    return (operations.which == _PLACE[name])[:, None, None, None]


def _moved(images: Tensor, operations: Operations) -> Tensor:
    """Shear (about the upper left corner), translate and rotate (about the centre); the nearest pixel, black beyond."""
    batch, height, width, _ = images.shape
    which, value = operations.which, operations.magnitude

    def of(name: str, other: float = 0.0) -> Tensor:
        return torch.where(which == _PLACE[name], value, other)[:, None, None]

    # For each pixel of the result, where it comes from, counted from the centre.
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[None, :, None]
    x = (torch.arange(width, device=images.device) - (width - 1) / 2)[None, None, :]
    angle = of("rotate") * (math.pi / 180)
    column = torch.cos(angle) * x - torch.sin(angle) * y + of("shear_x") * (y + height / 2) - of("translate_x").trunc()
    row = torch.sin(angle) * x + torch.cos(angle) * y + of("shear_y") * (x + width / 2) - of("translate_y").trunc()
    column, row = (column + (width - 1) / 2).round().long(), (row + (height - 1) / 2).round().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    index = torch.arange(batch, device=images.device)[:, None, None]
    found = images[index, row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return torch.where(inside[..., None], found, 0.0)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(-1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[..., None]


def _blended(images: Tensor, operations: Operations) -> Tensor:
    """Brightness, colour, contrast and sharpness: the image and a reference, in shares of a factor and the rest."""
    reference = torch.where(_is(operations, "brightness"), 0.0, images)
    grey = _grey(images)
    reference = torch.where(_is(operations, "colour"), grey, reference)
    reference = torch.where(_is(operations, "contrast"), grey.mean((1, 2, 3), keepdim=True), reference)
    reference = torch.where(_is(operations, "sharpness"), _blurred(images), reference)
    of_these = (operations.which >= _PLACE["brightness"]) & (operations.which <= _PLACE["sharpness"])
    factor = (1 + torch.where(of_these, operations.magnitude, 0.0))[:, None, None, None]
    return (factor * images + (1 - factor) * reference).clamp(0, 1)


def _blurred(images: Tensor) -> Tensor:
    """The mean of each inner pixel, five times, and its eight neighbours; the border as it is."""
    planes = images.permute(0, 3, 1, 2)
    inner = (9 * F.avg_pool2d(planes, 3, stride=1) + 4 * planes[..., 1:-1, 1:-1]) / 13
    height, width = planes.shape[2:]
    blurred = F.pad(inner, (1, 1, 1, 1))
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    border = ((rows == 0) | (rows == height - 1))[:, None] | ((columns == 0) | (columns == width - 1))
    return torch.where(border, planes, blurred).permute(0, 2, 3, 1)


def _with_fewer_levels(images: Tensor, operations: Operations) -> Tensor:
    levels = (images * 255).round()
    step = torch.exp2(8 - torch.where(operations.which == _PLACE["posterize"], operations.magnitude, 8.0))
    step = step[:, None, None, None]
    images = torch.where(_is(operations, "posterize"), torch.floor(levels / step) * step / 255, images)
    bright = levels >= operations.magnitude[:, None, None, None]
    return torch.where(_is(operations, "solarize") & bright, 1 - images, images)


def _stretched(images: Tensor, operations: Operations) -> Tensor:
    """Each channel over its whole range: linearly (autocontrast), or so that all levels are about as frequent."""
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    flat = high <= low
    contrasted = torch.where(flat, images, (images - low) / torch.where(flat, 1.0, high - low))
    images = torch.where(_is(operations, "autocontrast"), contrasted, images)
    return torch.where(_is(operations, "equalize"), _equalized(images), images)


def _equalized(images: Tensor) -> Tensor:
    batch, height, width, channels = images.shape
    levels = (images * 255).round().long().permute(0, 3, 1, 2).reshape(batch * channels, height * width)
    counts = torch.zeros(batch * channels, 256, device=images.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=counts.dtype))
    last = counts.gather(1, levels.amax(1, keepdim=True))
    step = torch.floor((height * width - last) / 255)
    before = counts.cumsum(1) - counts
    table = torch.floor((before + torch.floor(step / 2)) / step.clamp(min=1)).clamp(0, 255)
    equal = torch.where(step > 0, table.gather(1, levels), levels.float())
    return (equal / 255).view(batch, channels, height, width).permute(0, 2, 3, 1)


# Mixing with the batch in reverse


class Mix(NamedTuple):
    """How a batch is mixed with itself in reverse: share, [] of the images as they are; box, int64 [4] of top, bottom,
    left and right, what is cut out of the others, None for no cutmix; cut, [], whether this batch is cut or blended,
    None where there is but one way."""

    share: Tensor
    box: Tensor | None = None
    cut: Tensor | None = None


def draw_mix(mixup: float, cutmix: float, height: int, width: int, generator: Generator) -> Mix:
    """Shares from Beta(mixup, mixup) and Beta(cutmix, cutmix), 0 switching one off; with both each has every other
    batch, at random (Zhang et al., ICLR 2018; Yun et al., ICCV 2019)."""
    device = generator.device
    cut = torch.rand((), generator=generator, device=device) < 0.5 if mixup and cutmix else None
    share = _beta(mixup or cutmix, generator)
    if not cutmix:
        return Mix(share)
    kept = _beta(cutmix, generator) if mixup else share
    ratio = (1 - kept).sqrt()
    edges = []
    for side in (height, width):
        length = (side * ratio).long()
        centre = torch.randint(side, (), generator=generator, device=device)
        edges += [(centre - length // 2).clamp(0, side), (centre + (length + 1) // 2).clamp(0, side)]
    top, bottom, left, right = edges
    kept = 1 - (bottom - top) * (right - left) / (height * width)  # of the box as it was clipped
    return Mix(kept if cut is None else torch.where(cut, kept, share), torch.stack(edges), cut)


def _beta(concentration: float, generator: Generator) -> Tensor:
    """Beta(c, c) as the ratio of two gamma variables; torch.distributions cannot be given a generator."""
    both = torch.full((2,), concentration, dtype=torch.float64, device=generator.device)
    first, second = torch._standard_gamma(both, generator=generator).clamp(min=1e-30)
    return (first / (first + second)).float()


def mixed_images(images: Tensor, mix: Mix) -> Tensor:
    """images: [B, C, H, W], of which the first is mixed with the last."""
    others = images.flip(0)
    if mix.box is None:
        return mix.share * images + (1 - mix.share) * others
    rows, columns = (torch.arange(side, device=images.device) for side in images.shape[2:])
    top, bottom, left, right = mix.box
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    pasted = torch.where(inside, others, images)
    return pasted if mix.cut is None else torch.where(mix.cut, pasted, mix.share * images + (1 - mix.share) * others)


def mixed_labels(labels: Tensor, classes: int, mix: Mix) -> Tensor:
    """Labels int64 [B] as shares of classes, float [B, K]."""
    shares = (labels[:, None] == torch.arange(classes, device=labels.device)).float()
    return mix.share * shares + (1 - mix.share) * shares.flip(0)
