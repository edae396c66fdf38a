"""Augmentation of a whole batch at once, on the device where it lives, without a loop over images or patches.

Section 3.1: whole images are randomly cropped and flipped; then, for the self-supervised tasks, every patch is
cropped and resized, colour-jittered and turned grey on its own, with the published code's parameters. Each
transform is split in two: `draw_*` draws the parameters of the whole batch, and a pure function applies them, equal
to torchvision's transform with those parameters.

B batch, H and W image side, N patches, P patch side. Inside, patches are held as [3, P, P, B * N]: with the patch
index last, one number a patch broadcasts along contiguous memory. That is where the speed comes from.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from relvit.cell import patch_crop_size
from relvit.strong import LUMA, Mix, Operations, apply_operations, draw_mix, draw_operations, magnitudes, mixed_images

# The 24 orders in which torchvision's ColorJitter may apply its four operations, as the place of each operation.
# Rows: orders; columns: brightness, contrast, saturation, hue.
_PLACES = torch.tensor([[order.index(op) for op in range(4)] for order in itertools.permutations(range(4))])

# torchvision's defaults for RandomResizedCrop.
_RESIZED_CROP_RATIO = (3 / 4, 4 / 3)
_RESIZED_CROP_ATTEMPTS = 10


class Jitter(NamedTuple):
    """Parameters of torchvision's ColorJitter, [M] each, for M patches.

    brightness, contrast and saturation are factors, 1 leaving the patch as it is; hue is a shift in turns, in
    [-0.5, 0.5]; order numbers the 24 sequences of the four operations.
    """

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    order: Tensor


class Draws(NamedTuple):
    """All that is random about one batch's augmentation, as the `draw_*` functions below return it; None where a
    transform is off. flip: bool [B]; grey: bool [B * N]; permutation: int64 [B, N]; erasure: which pixels of the
    normalised images are replaced, bool [B, 1, H, W], and by what, [B, 3, H, W]."""

    window: Tensor | None = None
    crop: tuple[Tensor, Tensor] | None = None
    boxes: Tensor | None = None
    flip: Tensor | None = None
    mega: tuple[Tensor, Tensor] | None = None
    patch_crop: tuple[Tensor, Tensor] | None = None
    jitter: Jitter | None = None
    grey: Tensor | None = None
    permutation: Tensor | None = None
    operations: tuple[Operations, ...] = ()
    erasure: tuple[Tensor, Tensor] | None = None
    mix: Mix | None = None


class Augmentation(nn.Module):
    """uint8 images in, augmented and normalised images out, with the order of their patches.

    The arguments are fields of `relvit.cell.Cell`; mean and std are of the data set, per channel, for values in [0, 1].
    The neutral value of a field switches its transform off; with all neutral this only normalises. output_size: pixels
    a side to which crops of whole images are resized; 0: images have the size that is wanted. The constants are
    buffers: `.to(device)` brings it to where the images are.
    """

    mean: Tensor
    std: Tensor
    places: Tensor

    def __init__(
        self,
        *,
        patch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop_padding: int = 0,
        crop_min_area: float = 1.0,
        flip_probability: float = 0.0,
        patch_crop: float = 1.0,
        jitter_probability: float = 0.0,
        jitter_strength: float = 0.0,
        greyscale_probability: float = 0.0,
        augment_normalised: bool = False,
        permute_patches: bool = False,
        mega_grid: int = 0,
        output_size: int = 0,
        auto_augment: str = "none",
        erase_probability: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ):
        super().__init__()
        self.patch_size, self.crop_padding, self.crop_min_area = patch_size, crop_padding, crop_min_area
        self.flip_probability, self.greyscale_probability = flip_probability, greyscale_probability
        self.jitter_probability, self.jitter_strength = jitter_probability, jitter_strength
        self.permute_patches, self.mega_grid, self.output_size = permute_patches, mega_grid, output_size
        self.augment_normalised, self.auto_augment = augment_normalised, auto_augment
        self.erase_probability, self.mixup, self.cutmix = erase_probability, mixup, cutmix
        self.patch_crop_size = patch_crop_size(patch_size, patch_crop)  # of all pixels where there is no crop
        for name, constant in (("mean", torch.tensor(mean)), ("std", torch.tensor(std)), ("places", _PLACES)):
            self.register_buffer(name, constant, persistent=False)
        self.magnitudes: Tensor | None = None  # of auto_augment, by the images' size

    def forward(self, images: Tensor, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """images: uint8 [B, H, W, 3]; generator: on their device.

        Returns float32 [B, 3, H, W] (with mega_grid, its cells as patches: [B, 3, mega_grid * P, mega_grid * P]) and
        the permutation int64 [B, N], whose place n names the patch that now stands there, or None where patches keep
        their places.
        """
        batch, height, width, _ = images.shape
        draws = self.draw(batch, height, width, generator)
        return self.apply_draws(images, draws), draws.permutation

    def draw(self, batch: int, height: int, width: int, generator: Generator, aspects: Tensor | None = None) -> Draws:
        """The random numbers for a batch of images of that size. aspects: float32 [B], width / height, of whole images
        that are stored as squares (output_size); None: they are squares."""
        device, window = generator.device, None
        if self.output_size:
            aspects = torch.ones(batch, device=device) if aspects is None else aspects
            window = centre_windows(aspects)
            if self.crop_min_area < 1:
                window = draw_windows(aspects, self.crop_min_area, generator)
            height = width = self.output_size
        crop = boxes = flip = mega = patch_crop = jitter = grey = permutation = None
        if self.crop_padding:
            crop = draw_offsets(batch, 2 * self.crop_padding, generator)
        if self.crop_min_area < 1 and not self.output_size:
            boxes = draw_boxes(batch, height, width, self.crop_min_area, generator)
        if self.flip_probability:
            flip = torch.rand(batch, generator=generator, device=device) < self.flip_probability
        rows, cols = height // self.patch_size, width // self.patch_size
        if self.mega_grid:
            row_bounds = draw_mega_bounds(batch, rows, self.mega_grid, generator)
            mega = (row_bounds, draw_mega_bounds(batch, rows, self.mega_grid, generator))
            rows = cols = self.mega_grid
        count = batch * rows * cols
        if self.patch_crop_size < self.patch_size:
            patch_crop = draw_offsets(count, self.patch_size - self.patch_crop_size, generator)
        if self.jitter_probability:
            jitter = draw_jitter(count, self.jitter_probability, self.jitter_strength, generator)
        if self.greyscale_probability:
            grey = torch.rand(count, generator=generator, device=device) < self.greyscale_probability
        if self.permute_patches:
            permutation = torch.rand(batch, rows * cols, generator=generator, device=device).argsort(1)
        operations: tuple[Operations, ...] = ()
        erasure = mix = None
        if self.auto_augment != "none":
            if self.magnitudes is None:  # once: what is made on the host may not be in a step
                self.magnitudes = magnitudes(self.auto_augment, height, width).to(device)
            operations = draw_operations(self.auto_augment, self.magnitudes, batch, generator)
        height, width = (rows * self.patch_size, cols * self.patch_size) if self.mega_grid else (height, width)
        if self.erase_probability:
            erasure = draw_erasure(batch, height, width, self.erase_probability, generator)
        if self.mixup or self.cutmix:
            mix = draw_mix(self.mixup, self.cutmix, height, width, generator)
        return Draws(window, crop, boxes, flip, mega, patch_crop, jitter, grey, permutation, operations, erasure, mix)

    def apply_draws(self, images: Tensor, draws: Draws) -> Tensor:
        """The images of `forward` for these random numbers: a pure function in static shapes, which may be compiled."""
        if draws.crop is not None:
            images = padded_crop(images, *draws.crop, self.crop_padding)
        images = images.float() / 255
        if draws.window is not None:
            images = window_crop(images, draws.window, self.output_size)
        if draws.boxes is not None:
            images = resized_crop(images, draws.boxes)
        if draws.flip is not None:
            images = torch.where(draws.flip[:, None, None, None], images.flip(2), images)
        for each in draws.operations:
            images = apply_operations(images, each)
        if draws.mega is not None:
            images = mega_patches(images, *draws.mega, self.patch_size)
        if all(each is None for each in (draws.patch_crop, draws.jitter, draws.grey, draws.permutation)):
            return self._finished(self._normalise(images).permute(0, 3, 1, 2).contiguous(), draws)
        patches = split_patches(images, self.patch_size)
        if draws.patch_crop is not None:
            patches = crop_patches(patches, *draws.patch_crop, self.patch_crop_size)
        if self.augment_normalised:
            patches = self._normalised(patches)
        if draws.jitter is not None:
            jitter = jitter_normalised if self.augment_normalised else jitter_patches
            patches = jitter(patches, draws.jitter, self.places)
        if draws.grey is not None:
            patches = torch.where(draws.grey, luma(patches), patches)
        if not self.augment_normalised:
            patches = self._normalised(patches)
        batch, height, width, _ = images.shape
        if draws.permutation is not None:
            patches = permute_patches(patches, draws.permutation)
        joined = join_patches(patches, batch, (height // self.patch_size, width // self.patch_size))
        return self._finished(joined, draws)

    def _finished(self, images: Tensor, draws: Draws) -> Tensor:
        if draws.erasure is not None:
            images = torch.where(*draws.erasure, images)
        return images if draws.mix is None else mixed_images(images, draws.mix)

    def _normalised(self, patches: Tensor) -> Tensor:
        return self._normalise(patches.movedim(0, -1)).movedim(-1, 0)

    def _normalise(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std


# Images


def draw_offsets(count: int, largest: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Top and left corners of `count` crops, int64 [count] each, uniform on 0..largest (torchvision RandomCrop)."""
    corners = torch.randint(0, largest + 1, (2, count), generator=generator, device=generator.device)
    return corners[0], corners[1]


def padded_crop(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Crops of the images' own size, [B, H, W, 3], out of the images with a black border.

    top, left: int64 [B] in 0..2 * padding, counted from the corner of the padded image.
    """
    batch, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    rows = top[:, None] + torch.arange(height, device=images.device)
    cols = left[:, None] + torch.arange(width, device=images.device)
    index = torch.arange(batch, device=images.device)
    return padded[index[:, None, None], rows[:, :, None], cols[:, None, :]]


def draw_boxes(
    batch: int,
    height: int,
    width: int,
    min_area: float,
    generator: Generator,
    max_area: float = 1.0,
    ratios: tuple[float, float] = _RESIZED_CROP_RATIO,
) -> Tensor:
    """Boxes of torchvision's RandomResizedCrop: int64 [B, 4] of top, left, height, width.

    Area uniform in [min_area, max_area] of the image, aspect ratio log-uniform between ratios; the first of ten
    attempts that fits is taken, and the whole image if none does (torchvision's fallback for images whose own ratio
    lies in that range; ours are square).
    """
    low, high = (math.log(ratio) for ratio in ratios)
    area, ratio, y, x = torch.rand(4, batch, _RESIZED_CROP_ATTEMPTS, generator=generator, device=generator.device)
    area = height * width * (min_area + (max_area - min_area) * area)
    ratio = torch.exp(low + (high - low) * ratio)
    box_width = (area * ratio).sqrt().round().long()
    box_height = (area / ratio).sqrt().round().long()
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    first = fits.int().argmax(1, keepdim=True)
    # y < 1, but its product in float32 can round up to the excluded bound.
    top = torch.minimum((y * (height - box_height + 1)).long(), height - box_height)
    left = torch.minimum((x * (width - box_width + 1)).long(), width - box_width)
    boxes = torch.stack([top, left, box_height, box_width], dim=-1)
    top, left, box_height, box_width = boxes.gather(1, first[:, :, None].expand(-1, 1, 4)).squeeze(1).unbind(1)
    found = fits.any(1)
    whole = ((top, 0), (left, 0), (box_height, height), (box_width, width))
    return torch.stack([torch.where(found, drawn, otherwise) for drawn, otherwise in whole], dim=1)


def draw_erasure(
    batch: int, height: int, width: int, probability: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Random erasing (Zhong et al., AAAI 2020) as timm has it: with this probability a box of 1/50 to 1/3 of the image
    is normal noise, its aspect ratio between 0.3 and 1 / 0.3. Returns the boxes, bool [B, 1, H, W], and the noise,
    [B, 3, H, W]."""
    device = generator.device
    boxes = draw_boxes(batch, height, width, 1 / 50, generator, 1 / 3, (0.3, 1 / 0.3))
    top, left, box_height, box_width = boxes[:, :, None, None].unbind(1)
    erased = torch.rand(batch, 1, 1, generator=generator, device=device) < probability
    erased = erased & (2 * box_height * box_width < height * width)  # else no attempt fitted
    rows, cols = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    inside = (rows >= top) & (rows < top + box_height) & (cols >= left) & (cols < left + box_width)
    noise = torch.randn(batch, 3, height, width, generator=generator, device=device)
    return (erased & inside)[:, None], noise


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Each image's box, resized bilinearly to the size of the image. images: float [B, H, W, 3]; boxes: [B, 4]."""
    batch, height, width, _ = images.shape
    top, left, box_height, box_width = boxes.unbind(1)
    row0, row1, row_share = _bilinear_taps(top, box_height, height)
    col0, col1, col_share = _bilinear_taps(left, box_width, width)
    index = torch.arange(batch, device=images.device)[:, None]
    rows = torch.lerp(images[index, row0], images[index, row1], row_share[:, :, None, None])
    rows = rows.transpose(1, 2)
    return torch.lerp(rows[index, col0], rows[index, col1], col_share[:, :, None, None]).transpose(1, 2)


def _bilinear_taps(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """For `size` output pixels over [start, start + length): the two source pixels and the second one's share."""
    centre = (torch.arange(size, device=start.device) + 0.5) * (length[:, None] / size) - 0.5
    last = (length - 1)[:, None]
    centre = centre.clamp(min=0).minimum(last.float())
    tap0 = centre.floor().long()
    tap1 = (tap0 + 1).minimum(last)
    return start[:, None] + tap0, start[:, None] + tap1, centre - tap0


# Crops of whole images, which are stored stretched to squares. Windows are float32 [B, 4]: top, left, height and width
# as shares of the image's own height and width, and so of the square's.


def draw_windows(aspects: Tensor, min_area: float, generator: Generator) -> Tensor:
    """RandomResizedCrop on whole images: as `draw_boxes`, in shares instead of pixels. aspects: [B], width / height."""
    low, high = (math.log(ratio) for ratio in _RESIZED_CROP_RATIO)
    shape = (4, len(aspects), _RESIZED_CROP_ATTEMPTS)
    area, ratio, y, x = torch.rand(shape, generator=generator, device=generator.device)
    area = min_area + (1 - min_area) * area
    ratio = torch.exp(low + (high - low) * ratio) / aspects[:, None]
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    fits = (width <= 1) & (height <= 1)
    windows = torch.stack([y * (1 - height), x * (1 - width), height, width], dim=-1)
    first = fits.int().argmax(1)[:, None, None].expand(-1, 1, 4)
    found = windows.gather(1, first).squeeze(1)
    return torch.where(fits.any(1, keepdim=True), found, centre_windows(aspects, *_RESIZED_CROP_RATIO))


def centre_windows(aspects: Tensor, narrowest: float = 1.0, widest: float = 1.0) -> Tensor:
    """The largest window in the middle whose width / height in pixels lies in that range; by default a square."""
    wanted = aspects.clamp(narrowest, widest)
    width, height = (wanted / aspects).clamp(max=1), (aspects / wanted).clamp(max=1)
    return torch.stack([(1 - height) / 2, (1 - width) / 2, height, width], dim=1)


def window_crop(images: Tensor, windows: Tensor, size: int) -> Tensor:
    """Each image's window, resized to [B, size, size, 3] bilinearly with antialiasing, as torchvision's Resize."""
    top, left, height, width = windows.unbind(1)
    rows = _window_matrix(top, height, images.shape[1], size)
    cols = _window_matrix(left, width, images.shape[2], size)
    return torch.einsum("bph,bhwc,bqw->bpqc", rows, images, cols)


def _window_matrix(start: Tensor, length: Tensor, pixels: int, size: int) -> Tensor:
    """The linear map of one axis, float32 [B, size, pixels]: a triangle filter as wide as the window is shrunk."""
    start, length = start[:, None, None] * pixels, length[:, None, None] * pixels
    scale = length / size
    centre = start + (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    pixel = torch.arange(pixels, device=start.device) + 0.5
    weight = (1 - (pixel - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    # Of a pixel on the window's edge its larger part is taken; one is always there.
    weight = weight * ((pixel >= start - 0.5) & (pixel <= start + length + 0.5))
    return weight / weight.sum(-1, keepdim=True)


# Mega-patches


def draw_mega_bounds(batch: int, side: int, grid: int, generator: Generator) -> Tensor:
    """Where the cells of random grids begin and end along one axis, in patches: int64 [B, grid + 1], 0 to `side`.

    The inner bounds are a uniformly drawn subset of 1..side-1, as in the published code.
    """
    inner = torch.rand(batch, side - 1, generator=generator, device=generator.device).argsort(1)[:, : grid - 1] + 1
    return F.pad(F.pad(inner, (1, 0), value=0), (0, 1), value=side).sort(1).values


def mega_patches(images: Tensor, row_bounds: Tensor, col_bounds: Tensor, patch_size: int) -> Tensor:
    """Each cell of a grid of its own for each image, resized to one patch: [B, H, W, 3] to [B, G * P, G * P, 3].

    row_bounds, col_bounds: int64 [B, G + 1], in patches. Bilinear with antialiasing, as torchvision's Resize. The
    published code (create_megapatches_grid) draws bounds of columns too but then splits columns at those of rows;
    here both axes have their own.
    """
    rows = _mega_matrix(row_bounds, images.shape[1], patch_size)
    cols = _mega_matrix(col_bounds, images.shape[2], patch_size)
    return torch.einsum("bph,bhwc,bqw->bpqc", rows, images, cols)


def _mega_matrix(bounds: Tensor, size: int, patch_size: int) -> Tensor:
    """The linear map of one axis, float32 [B, G * P, size]: a triangle filter as wide as the cell is shrunk."""
    start, stop = bounds[:, :-1, None] * patch_size, bounds[:, 1:, None] * patch_size
    shrink = (stop - start) / patch_size
    centre = start + (torch.arange(patch_size, device=bounds.device) + 0.5) * shrink
    pixel = torch.arange(size, device=bounds.device) + 0.5
    weight = (1 - (pixel - centre[..., None]).abs() / shrink[..., None]).clamp(min=0)
    inside = (pixel > start[..., None]) & (pixel < stop[..., None])
    weight = weight * inside
    return (weight / weight.sum(-1, keepdim=True)).flatten(1, 2)


# Patches, [3, P, P, M] with M = B * N


def split_patches(images: Tensor, patch_size: int) -> Tensor:
    """[B, H, W, 3] to [3, P, P, B * N], patches row by row."""
    batch, height, width, channels = images.shape
    rows, cols = height // patch_size, width // patch_size
    patches = images.view(batch, rows, patch_size, cols, patch_size, channels).permute(5, 2, 4, 0, 1, 3)
    return patches.reshape(channels, patch_size, patch_size, batch * rows * cols)


def join_patches(patches: Tensor, batch: int, grid: tuple[int, int]) -> Tensor:
    """[3, P, P, B * N] to [B, 3, H, W]: the inverse of `split_patches`, channels first."""
    channels, size = patches.shape[:2]
    rows, cols = grid
    images = patches.view(channels, size, size, batch, rows, cols).permute(3, 0, 4, 1, 5, 2)
    return images.reshape(batch, channels, rows * size, cols * size)


def permute_patches(patches: Tensor, permutation: Tensor) -> Tensor:
    """Patches [3, P, P, B * N] in the order of permutation int64 [B, N]: place n gets patch permutation[b, n]."""
    batch, count = permutation.shape
    first = torch.arange(batch, device=patches.device)[:, None] * count
    return patches.index_select(3, (first + permutation).flatten())


def crop_patches(patches: Tensor, top: Tensor, left: Tensor, crop: int) -> Tensor:
    """A square of `crop` pixels out of each patch, resized bilinearly back to the patch. top, left: int64 [M]."""
    channels, size, _, count = patches.shape
    steps = torch.arange(crop, device=patches.device)[:, None]
    rows = (top + steps)[None, :, None, :].expand(channels, crop, size, count)
    patches = patches.gather(1, rows)
    cols = (left + steps)[None, None, :, :].expand(channels, crop, crop, count)
    patches = patches.gather(2, cols)
    # All crops have one size, so that one matrix [P, crop] resizes them all along an axis.
    identity = torch.eye(crop, device=patches.device)
    resize = F.interpolate(identity[None], size=size, mode="linear", align_corners=False)[0].T.contiguous()
    patches = resize @ patches.reshape(channels, crop, crop * count)
    patches = resize @ patches.view(channels * size, crop, count)
    return patches.view(channels, size, size, count)


def luma(patches: Tensor) -> Tensor:
    """Grey value of each pixel. [3, ...] to [...]."""
    red, green, blue = patches.unbind(0)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def draw_jitter(count: int, probability: float, strength: float, generator: Generator) -> Jitter:
    """Parameters of ColorJitter(s, s, s, s / 4) under RandomApply(probability), independent for each patch.

    A patch that is left alone gets the identity: factors 1, hue shift 0.
    """
    device = generator.device
    uniform = torch.rand(5, count, generator=generator, device=device)
    low, high = max(0.0, 1 - strength), 1 + strength
    applied = uniform[4] < probability
    brightness, contrast, saturation = torch.where(applied, low + (high - low) * uniform[:3], 1.0)
    hue = torch.where(applied, (2 * uniform[3] - 1) * (strength / 4), 0.0)
    order = torch.randint(0, len(_PLACES), (count,), generator=generator, device=device)
    return Jitter(brightness, contrast, saturation, hue, order)


def jitter_patches(patches: Tensor, jitter: Jitter, places: Tensor = _PLACES, beyond: bool = False) -> Tensor:
    """torchvision's ColorJitter with the given parameters, each patch with its own, in its own order.

    places: the table of the 24 orders, on the patches' device; beyond: whether pixels may lie outside [0, 1], where
    each operation clamps what it changes.

    Brightness, contrast and saturation are all a blend with a reference (black, the mean grey, the own grey), so
    that one pass serves patches that are at different operations. Hue is costly and its place varies, so each patch
    does its earlier blends, then all patches shift hue at once, then each does its later blends.
    """
    places = places[jitter.order].T
    blend_places, hue_place = places[:3], places[3]
    factors = torch.stack([jitter.brightness, jitter.contrast, jitter.saturation])

    def blend(patches: Tensor, active: Tensor) -> Tensor:
        blended = _blend(patches, factors, active)
        return torch.where(active.any(0), blended, patches) if beyond else blended

    for place in range(3):
        patches = blend(patches, (blend_places == place) & (place < hue_place))
    shifted = shift_hue(patches, jitter.hue)
    if beyond:  # torchvision's hue clamps all but the largest channel
        shifted = torch.where(shifted >= patches.amax(0) - 1e-5, shifted, shifted.clamp(0, 1))
    patches = shifted
    for place in range(1, 4):
        patches = blend(patches, (blend_places == place) & (place > hue_place))
    return patches


def jitter_normalised(patches: Tensor, jitter: Jitter, places: Tensor = _PLACES) -> Tensor:
    """ColorJitter of normalised pixels, as in the published code: torchvision clamps those of each jittered patch to
    [0, 1]; patches that are left alone keep theirs."""
    changes = (jitter.brightness != 1) | (jitter.contrast != 1) | (jitter.saturation != 1) | (jitter.hue != 0)
    return torch.where(changes, jitter_patches(patches, jitter, places, beyond=True), patches)


def _blend(patches: Tensor, factors: Tensor, active: Tensor) -> Tensor:
    """clamp(f * x + (1 - f) * reference), where `active` [3, M] marks at most one operation for each patch."""
    factor = torch.where(active, factors, 1.0)
    rest = 1 - factor
    grey = luma(patches)
    reference = torch.addcmul(rest[1] * grey.mean((0, 1)), grey, rest[2])
    return torch.addcmul(reference, patches, factor.prod(0)).clamp_(0, 1)


def shift_hue(patches: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue by `shift` [M] turns, through HSV; the closed form of torchvision's adjust_hue."""
    red, green, blue = patches.unbind(0)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sixth = torch.where(
        high == red,
        (green - blue) / divisor,
        torch.where(high == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixth = torch.remainder(sixth.add_(6 * shift), 6)
    shares = torch.stack([(sixth - 3).abs_().sub_(1), 2 - (sixth - 2).abs_(), 2 - (sixth - 4).abs_()]).clamp_(0, 1)
    return torch.addcmul(low, chroma, shares)
