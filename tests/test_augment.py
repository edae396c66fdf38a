"""Batched augmentation against torchvision: the same result for the same parameters, the same distribution of them.

Statistical tests have fixed seeds and fail below p = 1e-4; their samples are large enough that a wrong range or a
wrong probability is far beyond that.
"""

import itertools
import math

import pytest
import torch
import torchvision.transforms.functional as F
from scipy import stats
from torchvision import transforms

from relvit.augment import (
    Augmentation,
    Jitter,
    crop_patches,
    draw_boxes,
    draw_jitter,
    draw_mega_bounds,
    draw_offsets,
    jitter_normalised,
    jitter_patches,
    join_patches,
    luma,
    mega_patches,
    padded_crop,
    permute_patches,
    resized_crop,
    shift_hue,
    split_patches,
)

ORDERS = list(itertools.permutations(range(4)))  # of brightness, contrast, saturation and hue
PLAIN = {"patch_size": 4, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
PUBLISHED = {
    "patch_crop": 1 / 1.15,
    "jitter_probability": 0.8,
    "jitter_strength": 0.4,
    "greyscale_probability": 0.2,
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_images(batch, height, width):
    return torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8, generator=generator())


def assert_close(result, expected):
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


# The same result as torchvision's for the same parameters. torchvision wants [3, H, W], one image at a time.


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12)])
def test_padded_crop_equals_torchvisions_pad_and_crop(height, width):
    offsets = list(itertools.product(range(5), range(5)))  # all there are for a border of 2 pixels
    images = random_images(len(offsets), height, width)
    top, left = torch.tensor(offsets).T
    result = padded_crop(images, top, left, 2)
    assert result.dtype == torch.uint8
    for image, cropped, (y, x) in zip(images, result, offsets):
        expected = F.crop(F.pad(image.permute(2, 0, 1), 2), y, x, height, width)
        assert cropped.permute(2, 0, 1).equal(expected)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 32)])
def test_resized_crop_equals_torchvisions(height, width):
    drawn = draw_boxes(40, height, width, 0.08, generator())
    by_hand = torch.tensor([[0, 0, height, width], [3, 5, 1, 1], [2, 0, 7, 1], [height - 1, width - 9, 1, 9]])
    boxes = torch.cat([drawn, by_hand])
    images = random_images(len(boxes), height, width).float() / 255
    result = resized_crop(images, boxes)
    for image, resized, box in zip(images, result, boxes.tolist()):
        expected = F.resized_crop(
            image.permute(2, 0, 1), *box, [height, width], F.InterpolationMode.BILINEAR, antialias=True
        )
        assert_close(resized.permute(2, 0, 1), expected)


@pytest.mark.parametrize(("size", "crop"), [(4, 3), (8, 7), (16, 14), (8, 1)])
def test_crop_patches_equals_torchvisions_crop_and_resize_of_each_patch(size, crop):
    offsets = list(itertools.product(range(size - crop + 1), repeat=2))
    patches = torch.rand(3, size, size, len(offsets), generator=generator())
    top, left = torch.tensor(offsets).T
    result = crop_patches(patches, top, left, crop)
    for m, (y, x) in enumerate(offsets):
        cropped = F.crop(patches[..., m], y, x, crop, crop)
        assert_close(result[..., m], F.resize(cropped, [size, size], F.InterpolationMode.BILINEAR, antialias=True))


def test_jitter_patches_equals_torchvisions_sequence_of_operations_in_all_24_orders():
    torch.manual_seed(0)
    kinds = [
        torch.rand(3, 4, 4),
        torch.rand(3, 4, 4) * 0.1 + 0.45,  # little contrast
        torch.rand(1, 4, 4).expand(3, 4, 4),  # grey, no hue
        torch.full((3, 4, 4), 0.5),
        torch.zeros(3, 4, 4),  # black
        torch.ones(3, 4, 4),
        torch.eye(3)[:, :, None].expand(3, 3, 4)[:, [0, 1, 2, 0]],  # pure red, green and blue
    ]
    patches = torch.stack([patch for _ in ORDERS for patch in kinds], dim=-1)
    count = patches.shape[-1]
    jitter = Jitter(
        brightness=torch.rand(count) * 2,
        contrast=torch.rand(count) * 2,
        saturation=torch.rand(count) * 2,
        hue=torch.rand(count) - 0.5,
        order=torch.arange(len(ORDERS)).repeat_interleave(len(kinds)),
    )
    untouched = patches.clone()
    result = jitter_patches(patches, jitter)
    assert patches.equal(untouched)
    operations = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]
    for m in range(count):
        expected = patches[..., m]
        for operation in ORDERS[jitter.order[m]]:
            expected = operations[operation](expected, jitter[operation][m].item())
        assert_close(result[..., m], expected)


def test_jitter_of_normalised_pixels_clamps_as_torchvision_does_in_all_24_orders():
    torch.manual_seed(0)
    patches = 2 * torch.randn(3, 4, 4, len(ORDERS) * 8)  # most pixels lie outside [0, 1]
    count = patches.shape[-1]
    jitter = Jitter(
        brightness=0.6 + 0.8 * torch.rand(count),
        contrast=0.6 + 0.8 * torch.rand(count),
        saturation=0.6 + 0.8 * torch.rand(count),
        hue=0.2 * torch.rand(count) - 0.1,
        order=torch.arange(len(ORDERS)).repeat_interleave(8),
    )
    result = jitter_normalised(patches, jitter)
    operations = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for m in range(count):
        expected = patches[..., m]
        for operation in ORDERS[int(jitter.order[m])]:
            expected = operations[operation](expected, float(jitter[operation][m]))
        torch.testing.assert_close(result[..., m], expected, atol=1e-4, rtol=0)


def test_normalised_pixels_of_patches_that_are_left_alone_are_not_clamped():
    patches = 2 * torch.randn(3, 4, 4, 24, generator=generator())
    ones = torch.ones(24)
    assert jitter_normalised(patches, Jitter(ones, ones, ones, 0 * ones, torch.arange(24))).equal(patches)


def test_published_inputs_are_darker_and_flatter_than_normalised_ones():
    # Uniform pixels, normalised, with the published transforms: a jittered patch ends in [0, 1].
    fields = {"patch_size": 4, "mean": (0.5,) * 3, "std": (0.25,) * 3} | PUBLISHED | {"jitter_probability": 1.0}
    images = random_images(8, 8, 8)
    published, _ = Augmentation(**fields, augment_normalised=True)(images, generator())
    ours, _ = Augmentation(**fields)(images, generator())
    assert published.min() >= 0
    assert published.max() <= 1
    assert (published == 0).float().mean() > 0.1
    assert ours.min() < -1


def test_jitter_with_factors_1_and_hue_0_changes_nothing():
    patches = torch.rand(3, 4, 4, 24, generator=generator())
    ones = torch.ones(24)
    assert_close(jitter_patches(patches, Jitter(ones, ones, ones, 0 * ones, torch.arange(24))), patches)


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.0, 1 / 3, 0.5])
def test_shift_hue_equals_torchvisions_adjust_hue(shift):
    # Every colour of a 5 x 5 x 5 cube, with all ties between the channels.
    colours = torch.tensor(list(itertools.product([0.0, 0.25, 0.5, 0.75, 1.0], repeat=3))).T[:, None, None, :]
    result = shift_hue(colours, torch.full((125,), shift))
    assert_close(result[:, 0, :, :], F.adjust_hue(colours[:, 0, :, :], shift))


def test_a_third_of_a_turn_makes_red_green_and_green_blue():
    red_and_green = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])[:, None, None, :]
    green_and_blue = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[:, None, None, :]
    assert_close(shift_hue(red_and_green, torch.full((2,), 1 / 3)), green_and_blue)


def test_luma_equals_torchvisions_greyscale():
    patches = torch.rand(3, 4, 4, 10, generator=generator())
    for m in range(10):
        assert_close(luma(patches)[..., m], F.rgb_to_grayscale(patches[..., m])[0])


# Patches


def test_patches_are_split_row_by_row():
    images = random_images(2, 8, 12).float()
    patches = split_patches(images, 4)
    assert patches.shape == (3, 4, 4, 2 * 6)
    for b, row, col in itertools.product(range(2), range(2), range(3)):
        expected = images[b, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4].permute(2, 0, 1)
        assert patches[..., 6 * b + 3 * row + col].equal(expected)


def test_joining_is_the_inverse_of_splitting():
    images = random_images(2, 8, 12).float()
    assert join_patches(split_patches(images, 4), 2, (2, 3)).equal(images.permute(0, 3, 1, 2))


def test_place_n_gets_the_patch_that_the_permutation_names():
    patches = torch.arange(8.0).expand(3, 4, 4, 8)  # two images of four patches
    moved = permute_patches(patches, torch.tensor([[2, 0, 3, 1], [0, 1, 3, 2]]))
    assert moved[0, 0, 0].tolist() == [2, 0, 3, 1, 4, 5, 7, 6]


# The whole


def test_neutral_settings_only_normalise():
    images = random_images(3, 8, 12)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    result, permutation = Augmentation(patch_size=4, mean=mean, std=std)(images, generator())
    assert permutation is None
    assert result.dtype == torch.float32
    assert_close(result, F.normalize(images.permute(0, 3, 1, 2) / 255, mean, std))


def test_normalisation_is_the_last_step_for_patches_too():
    images = random_images(3, 8, 12)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.2)
    result, _ = Augmentation(patch_size=4, mean=mean, std=std, **PUBLISHED)(images, generator())
    plain, _ = Augmentation(**PLAIN, **PUBLISHED)(images, generator())
    assert 0 <= plain.min() < plain.max() <= 1
    assert_close(result, F.normalize(plain, mean, std))


def test_flipping_and_greyscale_with_certainty_equal_torchvisions():
    images = random_images(3, 8, 12)
    result, _ = Augmentation(**PLAIN, flip_probability=1.0, greyscale_probability=1.0)(images, generator())
    expected = F.rgb_to_grayscale(F.hflip(images.permute(0, 3, 1, 2) / 255), num_output_channels=3)
    assert_close(result, expected)


def test_half_of_the_images_are_flipped():
    count = 4000
    images = torch.zeros(count, 4, 8, 3, dtype=torch.uint8)
    images[:, :, 0] = 255  # a white left edge
    result, _ = Augmentation(**PLAIN, flip_probability=0.5)(images, generator())
    right = result[:, 0, 0, 7] == 1
    assert (result[:, 0, 0, 0] == 1).equal(~right)
    assert_binomial(right, 0.5)


def test_every_image_is_cropped_from_its_bordered_self_at_its_own_place():
    images = random_images(50, 8, 8)
    result, _ = Augmentation(**PLAIN, crop_padding=1)(images, generator())
    found = set()
    for image, cropped in zip(images, result):
        padded = F.pad(image.permute(2, 0, 1) / 255, 1)
        places = [
            (y, x) for y in range(3) for x in range(3) if torch.allclose(cropped, padded[:, y : y + 8, x : x + 8])
        ]
        assert len(places) == 1
        found.update(places)
    assert len(found) == 9


@pytest.mark.parametrize("settings", [{}, PUBLISHED | {"flip_probability": 0.5, "crop_padding": 1}])
def test_the_permutation_names_the_patch_that_stands_at_each_place(settings):
    # The permutation is drawn last, so that the same seed without it gives the same patches in their places.
    images = random_images(20, 8, 12)
    in_order, _ = Augmentation(**PLAIN, **settings)(images, generator())
    shuffled, permutation = Augmentation(**PLAIN, **settings, permute_patches=True)(images, generator())
    assert permutation.dtype == torch.int64
    assert permutation.shape == (20, 6)
    assert permutation.sort(1).values.equal(torch.arange(6).expand(20, 6))
    assert len({tuple(row) for row in permutation.tolist()}) > 15
    for b in range(20):
        for place in range(6):
            (row, col), (from_row, from_col) = divmod(place, 3), divmod(permutation[b, place].item(), 3)
            assert shuffled[b, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4].equal(
                in_order[b, :, 4 * from_row : 4 * from_row + 4, 4 * from_col : 4 * from_col + 4]
            )


def test_the_same_generator_state_gives_the_same_batch_and_another_gives_another():
    images = random_images(4, 16, 16)
    untouched = images.clone()
    everything = Augmentation(**PLAIN, **PUBLISHED, crop_min_area=0.5, flip_probability=0.5, permute_patches=True)
    one, one_permutation = everything(images, generator(7))
    again, again_permutation = everything(images, generator(7))
    other, other_permutation = everything(images, generator(8))
    assert one.equal(again)
    assert one_permutation.equal(again_permutation)
    assert not one.equal(other)
    assert not one_permutation.equal(other_permutation)
    assert images.equal(untouched)
    assert one.shape == (4, 3, 16, 16)


def test_patches_of_one_image_are_augmented_each_on_its_own():
    # 500 images of 16 patches, all of one colour: what differs afterwards was drawn for each patch.
    images = torch.tensor([200, 100, 50], dtype=torch.uint8).expand(500, 16, 16, 3)
    result, _ = Augmentation(**PLAIN, greyscale_probability=0.2)(images, generator())
    grey = split_patches(result.permute(0, 2, 3, 1), 4).std(0).amax((0, 1)).view(500, 16) < 1e-6
    assert_binomial(grey.flatten(), 0.2)
    # Were it drawn for each image, its patches would agree: a variance of 16^2 p q in place of 16 p q = 2.56.
    assert grey.sum(1).float().var().item() == pytest.approx(2.56, rel=0.25)

    result, _ = Augmentation(**PLAIN, jitter_probability=0.8, jitter_strength=0.4)(images, generator())
    colours = split_patches(result.permute(0, 2, 3, 1), 4)[:, 0, 0].view(3, 500, 16)
    original = torch.tensor([200, 100, 50])[:, None, None] / 255
    changed = (colours - original).abs().amax(0) > 1e-5
    assert_binomial(changed.flatten(), 0.8)
    assert changed.sum(1).float().var().item() == pytest.approx(2.56, rel=0.25)
    # 0.8 * 16 = 12.8 patches of an image change on average, and no two in the same way.
    different = [len(set(map(tuple, (image * 1e4).round().T.tolist()))) for image in colours.unbind(1)]
    assert sum(different) / 500 == pytest.approx(12.8 + 1, abs=0.4)


# The same distribution of parameters as torchvision's


def assert_binomial(happened, probability):
    """As often as it should within four and a half standard deviations."""
    deviation = math.sqrt(probability * (1 - probability) / len(happened))
    assert abs(happened.float().mean().item() - probability) < 4.5 * deviation


def assert_same_distribution(ours, theirs):
    assert stats.ks_2samp(ours, theirs).pvalue > 1e-4


def assert_same_frequencies(ours, theirs, cells):
    table = [torch.bincount(torch.as_tensor(sample), minlength=cells).tolist() for sample in (ours, theirs)]
    assert stats.chi2_contingency(table).pvalue > 1e-4


def test_jitter_is_drawn_like_torchvisions():
    torch.manual_seed(0)
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    settings = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    order, *factors = zip(*(jitter.get_params(*settings) for _ in range(4000)))
    ours = draw_jitter(4000, 1.0, 0.4, generator())
    for our_factors, their_factors in zip(ours, factors):
        assert_same_distribution(our_factors, their_factors)
    assert_same_frequencies(ours.order, [ORDERS.index(tuple(one.tolist())) for one in order], 24)


def test_jitter_ranges_by_hand():
    # Strength 0.4: factors from 0.6 to 1.4, hue from -0.1 to 0.1.
    ours = draw_jitter(4000, 1.0, 0.4, generator())
    for factors in (ours.brightness, ours.contrast, ours.saturation):
        assert factors.min() == pytest.approx(0.6, abs=0.002)
        assert factors.max() == pytest.approx(1.4, abs=0.002)
    assert ours.hue.min() == pytest.approx(-0.1, abs=0.001)
    assert ours.hue.max() == pytest.approx(0.1, abs=0.001)


def test_jitter_is_applied_with_its_probability_and_to_all_four_operations_at_once():
    ours = draw_jitter(8000, 0.8, 0.4, generator())
    applied = ours.brightness != 1
    assert_binomial(applied, 0.8)
    for values, neutral in ((ours.contrast, 1), (ours.saturation, 1), (ours.hue, 0)):
        assert (values != neutral).equal(applied)


def test_jitter_is_independent_between_operations_and_between_neighbouring_patches():
    images, patches = 2000, 4
    ours = draw_jitter(images * patches, 1.0, 0.4, generator())
    # One column for each parameter of each of the four patches; one row an image.
    columns = torch.cat([values.float().view(images, patches) for values in ours], dim=1)
    correlation = torch.corrcoef(columns.T)
    off_diagonal = correlation[~torch.eye(len(correlation), dtype=torch.bool)]
    assert off_diagonal.abs().max() < 4.5 / math.sqrt(images)


@pytest.mark.parametrize(("size", "padding"), [(8, 1), (8, 4)])
def test_offsets_of_padded_crops_are_drawn_like_torchvisions(size, padding):
    places = 2 * padding + 1
    torch.manual_seed(0)
    padded = torch.empty(3, size + 2 * padding, size + 2 * padding)
    theirs = [transforms.RandomCrop.get_params(padded, (size, size))[:2] for _ in range(5000)]
    top, left = draw_offsets(5000, 2 * padding, generator())
    assert top.dtype == left.dtype == torch.int64
    assert_same_frequencies(top * places + left, [y * places + x for y, x in theirs], places**2)


def test_boxes_are_drawn_like_torchvisions():
    torch.manual_seed(0)
    image = torch.empty(3, 224, 224)
    theirs = torch.tensor(
        [transforms.RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    ours = draw_boxes(4000, 224, 224, 0.2, generator())
    assert ours.dtype == torch.int64
    for column in range(4):  # top, left, height, width
        assert_same_distribution(ours[:, column], theirs[:, column])
    for combined in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 2] / box[:, 3]):
        assert_same_distribution(combined(ours), combined(theirs))


def test_boxes_fall_back_to_the_whole_image_as_often_as_torchvisions():
    torch.manual_seed(0)
    image = torch.empty(3, 224, 224)
    theirs = [
        transforms.RandomResizedCrop.get_params(image, (0.9, 1.0), (3 / 4, 4 / 3)) == (0, 0, 224, 224)
        for _ in range(4000)
    ]
    ours = (draw_boxes(4000, 224, 224, 0.9, generator()) == torch.tensor([0, 0, 224, 224])).all(1)
    assert 400 < sum(theirs) < 3600
    assert_same_frequencies(ours.long(), [int(whole) for whole in theirs], 2)


@pytest.mark.parametrize("min_area", [0.08, 0.5, 0.99])
def test_boxes_lie_inside_the_image(min_area):
    top, left, height, width = draw_boxes(5000, 16, 24, min_area, generator()).unbind(1)
    assert top.min() >= 0
    assert left.min() >= 0
    assert height.min() >= 1
    assert width.min() >= 1
    assert (top + height).max() <= 16
    assert (left + width).max() <= 24


def test_permutations_are_uniform():
    images = torch.zeros(5000, 8, 8, 3, dtype=torch.uint8)
    _, permutation = Augmentation(**PLAIN, permute_patches=True)(images, generator())
    which = [list(itertools.permutations(range(4))).index(tuple(row)) for row in permutation.tolist()]
    assert stats.chisquare(torch.bincount(torch.tensor(which), minlength=24).numpy()).pvalue > 1e-4


# Mega-patches: cells of a random grid, each resized to one patch


@pytest.mark.parametrize(("patch", "side", "grid"), [(4, 8, 2), (4, 8, 5), (8, 4, 3), (4, 5, 4)])
def test_mega_patches_equal_torchvisions_resize_of_every_cell(patch, side, grid):
    size = patch * side
    images = random_images(12, size, size).float() / 255
    rows, cols = (draw_mega_bounds(12, side, grid, generator(seed)) for seed in (1, 2))
    assert not rows.equal(cols)
    result = mega_patches(images, rows, cols, patch)
    assert result.shape == (12, grid * patch, grid * patch, 3)
    for b, i, j in itertools.product(range(12), range(grid), range(grid)):
        (top, bottom), (left, right) = patch * rows[b, i : i + 2], patch * cols[b, j : j + 2]
        cell = images[b, top:bottom, left:right].permute(2, 0, 1)
        expected = F.resize(cell, [patch, patch], F.InterpolationMode.BILINEAR, antialias=True)
        place = result[b, patch * i : patch * (i + 1), patch * j : patch * (j + 1)].permute(2, 0, 1)
        assert_close(place, expected)


@pytest.mark.parametrize(("side", "grid"), [(8, 2), (8, 5), (4, 3), (3, 2), (5, 4)])
def test_mega_bounds_rise_from_0_to_the_side_and_every_inner_subset_is_equally_likely(side, grid):
    bounds = draw_mega_bounds(5000, side, grid, generator())
    assert bounds.shape == (5000, grid + 1)
    assert bounds.dtype == torch.int64
    assert (bounds[:, 0] == 0).all()
    assert (bounds[:, -1] == side).all()
    assert (bounds.diff(dim=1) > 0).all()
    subsets = list(itertools.combinations(range(1, side), grid - 1))
    which = [subsets.index(tuple(inner)) for inner in bounds[:, 1:-1].tolist()]
    assert stats.chisquare(torch.bincount(torch.tensor(which), minlength=len(subsets)).numpy()).pvalue > 1e-4


def test_an_augmentation_with_a_mega_grid_gives_that_many_patches_a_side():
    augmentation = Augmentation(**PLAIN, mega_grid=3)
    images, permutation = augmentation(random_images(6, 32, 32), generator())
    assert images.shape == (6, 3, 12, 12)
    assert images.dtype == torch.float32
    assert permutation is None
    shuffled, permutation = Augmentation(**PLAIN, **PUBLISHED, mega_grid=3, permute_patches=True)(
        random_images(6, 32, 32), generator()
    )
    assert shuffled.shape == (6, 3, 12, 12)
    assert permutation.sort(1).values.equal(torch.arange(9).expand(6, 9))


def test_rows_and_columns_of_a_mega_grid_are_drawn_apart_and_anew_for_every_image():
    # In the first channel every pixel is its column, in the second its row, so that a patch's means tell its cell.
    ramp = torch.arange(32, dtype=torch.uint8)
    one = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.zeros(32, 32)], dim=-1).byte()
    images, _ = Augmentation(**PLAIN, mega_grid=2)(one.expand(64, 32, 32, 3), generator())
    col = (images[:, 0, 0, :4].mean(1) * 255 + 0.5) * 2 / 4  # the first cell's width, in patches of 4 pixels
    row = (images[:, 1, :4, 0].mean(1) * 255 + 0.5) * 2 / 4
    for bound in (row, col):
        torch.testing.assert_close(bound, bound.round(), atol=1e-3, rtol=0)
        assert set(bound.round().long().tolist()) == set(range(1, 8))
    assert not row.round().equal(col.round())
