"""Stronger recipes: each part against the library that defines it, or by hand, and all together in a training."""

import math

import pytest
import torch
from helpers.tiny import TINY, newest, without_speeds
from timm.data.mixup import mixup_target
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import RandAugment, TrivialAugmentWide, _apply_op

from relvit.augment import Augmentation, draw_erasure
from relvit.backbones import build_backbone
from relvit.cell import Cell, make_cell
from relvit.losses import classification_loss
from relvit.strong import (
    OPERATIONS,
    Mix,
    Operations,
    apply_operations,
    draw_mix,
    draw_operations,
    magnitudes,
    mixed_images,
    mixed_labels,
)
from relvit.train import train

# torchvision's names in its order.
THEIRS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# RandAugment and TrivialAugment


def pictures(height=24, width=32):
    """Smooth gradients with noise, one dark, one of a single colour: what operations on histograms differ in."""
    ramp = torch.linspace(20, 230, height)[:, None, None] * torch.linspace(0.3, 1, width)[:, None]
    noise = torch.randint(0, 25, (3, height, width, 3), generator=generator())
    images = (ramp * torch.tensor([1.0, 0.8, 0.5]) + noise).clamp(0, 255)
    images[1] *= 0.3
    return torch.cat([images, torch.full((1, height, width, 3), 77.0)]).to(torch.uint8)


@pytest.mark.parametrize("name", range(14), ids=OPERATIONS)
@pytest.mark.parametrize("kind", ["trivialaugment", "randaugment"])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_operation_gives_what_torchvision_gives(name, kind, sign):
    images = pictures()
    count, height, width, _ = images.shape
    table = magnitudes(kind, height, width)
    signed = 0 < name < 10
    for step in (1, 9, 30):
        value = float(table[name, step]) * (sign if signed else 1)
        ours = apply_operations(
            images.float() / 255, Operations(torch.full((count,), name), torch.full((count,), value))
        )
        theirs = _apply_op(images.permute(0, 3, 1, 2), THEIRS[name], value, InterpolationMode.NEAREST, None)
        if THEIRS[name] in ("AutoContrast", "Equalize"):  # of each image on its own
            parts = [
                _apply_op(image, THEIRS[name], value, InterpolationMode.NEAREST, None)
                for image in images.permute(0, 3, 1, 2)
            ]
            theirs = torch.stack(parts)
        difference = (ours.permute(0, 3, 1, 2) * 255 - theirs.float()).abs()
        # torchvision cuts the result to whole levels, and before that the grey image that it blends with.
        assert (difference < 2).float().mean() > 0.995, (step, difference.max())


@pytest.mark.parametrize(("kind", "theirs"), [("trivialaugment", TrivialAugmentWide()), ("randaugment", RandAugment())])
def test_the_magnitudes_are_torchvisions(kind, theirs):
    space = theirs._augmentation_space(31, *([(24, 32)] if kind == "randaugment" else []))
    table = magnitudes(kind, 24, 32)
    assert tuple(space) == THEIRS
    for row, (values, _) in zip(table, space.values()):
        torch.testing.assert_close(row, values.float().expand(31), rtol=1e-5, atol=1e-5)


def test_each_image_has_an_operation_of_its_own_and_each_sign_and_magnitude_occurs():
    (drawn,) = draw_operations("trivialaugment", magnitudes("trivialaugment", 32, 32), 20_000, generator())
    assert torch.bincount(drawn.which).tolist() == pytest.approx([20_000 / 14] * 14, rel=0.15)
    rotations = drawn.magnitude[drawn.which == OPERATIONS.index("rotate")]
    assert len(rotations.unique()) == 61  # 30 of each sign and none at all
    assert rotations.mean().abs() < 6
    assert (drawn.magnitude[drawn.which == OPERATIONS.index("solarize")] >= 0).all()


def test_randaugment_has_two_operations_of_the_ninth_magnitude():
    first, second = draw_operations("randaugment", magnitudes("randaugment", 32, 32), 500, generator())
    assert not torch.equal(first.which, second.which)
    turned = first.magnitude[first.which == OPERATIONS.index("rotate")]
    assert set(turned.tolist()) == {9.0, -9.0}


# Mixup and cutmix


def test_shares_and_blended_images_are_timms():
    images, labels = torch.randn(5, 3, 4, 4, generator=generator()), torch.tensor([0, 1, 2, 0, 1])
    mix = Mix(torch.tensor(0.7))
    torch.testing.assert_close(mixed_images(images, mix), 0.7 * images + 0.3 * images.flip(0))
    torch.testing.assert_close(mixed_labels(labels, 3, mix), mixup_target(labels, 3, 0.7))


def test_the_loss_of_smoothed_and_mixed_labels_is_that_of_timms_targets():
    logits, labels = torch.randn(4, 3, generator=generator()), torch.tensor([0, 1, 2, 2])
    mix = Mix(torch.tensor(0.7))
    targets = mixup_target(labels, 3, 0.7, smoothing=0.1)
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(classification_loss(logits, mixed_labels(labels, 3, mix), 0.1), expected)


def test_a_box_is_cut_out_of_the_others_and_its_area_is_their_share():
    images = torch.arange(2.0)[:, None, None, None].expand(2, 3, 6, 8)
    mix = Mix(torch.tensor(1 - 8 / 48), torch.tensor([1, 3, 2, 6]))
    mixed = mixed_images(images, mix)
    assert (mixed[0, :, 1:3, 2:6] == 1).all()
    assert mixed[0].sum() == 3 * 8
    assert mixed[1].sum() == 3 * (48 - 8)


@pytest.mark.parametrize("concentration", [0.2, 0.8, 1.0])
def test_shares_are_drawn_from_beta(concentration):
    drawn = torch.stack([draw_mix(concentration, 0.0, 8, 8, generator(seed)).share for seed in range(2000)])
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * concentration + 1)), rel=0.1)


def test_a_cut_box_lies_in_the_image_and_the_share_is_that_of_what_is_kept():
    for seed in range(200):
        mix = draw_mix(0.0, 1.0, 6, 8, generator(seed))
        top, bottom, left, right = mix.box.tolist()
        assert 0 <= top <= bottom <= 6
        assert 0 <= left <= right <= 8
        assert mix.share == pytest.approx(1 - (bottom - top) * (right - left) / 48)


def test_with_both_about_every_other_batch_is_cut():
    cut = [bool(draw_mix(0.8, 1.0, 8, 8, generator(seed)).cut) for seed in range(500)]
    assert sum(cut) == pytest.approx(250, abs=40)


# Random erasing


def test_boxes_of_a_fiftieth_to_a_third_of_the_image_are_erased_with_their_probability():
    boxes, noise = draw_erasure(4000, 32, 32, 0.25, generator())
    area = boxes.flatten(1).float().mean(1)
    assert (area > 0).float().mean() == pytest.approx(0.25, abs=0.03)
    erased = area[area > 0]
    assert erased.min() >= 0.015  # sides are rounded
    assert erased.max() <= 0.37
    assert erased.mean() == pytest.approx((1 / 50 + 1 / 3) / 2, abs=0.02)
    assert noise.std() == pytest.approx(1, abs=0.01)


def test_an_erased_box_is_noise_after_normalisation_and_the_rest_is_as_it_was():
    options = {"patch_size": 4, "mean": (0.5,) * 3, "std": (0.25,) * 3}
    images = torch.full((3, 8, 8, 3), 255, dtype=torch.uint8)
    augment = Augmentation(**options, erase_probability=1.0)
    drawn = augment.draw(3, 8, 8, generator())
    inside, noise = drawn.erasure
    result = augment.apply_draws(images, drawn)
    assert torch.equal(result, torch.where(inside, noise, 2.0))
    assert 0 < inside.float().mean() < 0.5


# Dropout and the moving average


@pytest.mark.parametrize(
    ("backbone", "size", "count"),
    [("vit_xs4", 16, 13), ("swin_xs8", 32, 12), ("t2t_xs", 64, 13), ("timm/vit_tiny_patch16_224", 64, 36)],
)
def test_dropout_is_in_every_block(backbone, size, count):
    """After attention, and twice in the MLP; and after the position embedding of ours that have one."""
    model = build_backbone(backbone, size, dropout=0.3)
    rates = [module.p for module in model.modules() if isinstance(module, nn.Dropout) and module.p]
    assert rates == [0.3] * count
    assert not any(module.p for module in build_backbone(backbone, size).modules() if isinstance(module, nn.Dropout))


STRONG = {
    "auto_augment": "randaugment", "erase_probability": 0.25, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1,
    "dropout": 0.1, "drop_path": 0.1, "ema_decay": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"tasks": "none"}, {"protocol": "joint"}, {"selection": "last"}], ids=str)
def test_a_strong_recipe_trains_and_resumes_to_the_same_bits(small, tmp_path, changes):
    cell = make_cell(**TINY | STRONG | changes)
    whole = list(train(cell, small, tmp_path / "whole"))
    assert all(math.isfinite(value) for row in whole for name, value in row.items() if name != "phase")
    weights = newest(tmp_path / "whole")["model"]
    for count in range(1, cell.total_epochs + 1):
        folder = tmp_path / str(count)
        rows = train(cell, small, folder)
        for _ in range(count):
            next(rows)
        rows.close()
        assert without_speeds(list(train(cell, small, folder))) == without_speeds(whole)
        assert all(torch.equal(value, weights[name]) for name, value in newest(folder)["model"].items())


def test_the_average_is_what_is_tested_and_follows_the_weights(small, tmp_path):
    fields = TINY | {"protocol": "joint", "tasks": "none", "selection": "last", "epochs": 1, "warmup_epochs": 0}
    fields |= {"batch_size": 72}  # one step
    start = newest_after(small, tmp_path / "start", make_cell(**fields | {"learning_rate": 1e-12}))
    moved = newest_after(small, tmp_path / "moved", make_cell(**fields))
    averaged = newest_after(small, tmp_path / "averaged", make_cell(**fields | {"ema_decay": 0.75}))
    for name, value in averaged.items():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * moved[name], rtol=1e-4, atol=1e-6)


def newest_after(dataset, folder, cell):
    list(train(cell, dataset, folder))
    return newest(folder)["model"]


# Fields that cannot act, and contradictions


def test_what_acts_where_classes_are_learned_leaves_a_pre_training_on_tasks_alone():
    plain, strong = (
        make_cell(**TINY | fields) for fields in ({}, {"mixup": 0.8, "label_smoothing": 0.1, "ema_decay": 0.9})
    )
    assert plain != strong
    assert plain.pretraining() == strong.pretraining()
    probe = make_cell(**TINY | STRONG | {"protocol": "pretrain_probe", "probe": "logistic"})
    assert (probe.mixup, probe.cutmix, probe.label_smoothing, probe.ema_decay) == (0, 0, 0, 0)
    assert probe.auto_augment == "randaugment"  # of the pre-training
    supervised = make_cell(**TINY | STRONG | {"tasks": "none"}).pretraining()
    assert (supervised.mixup, supervised.label_smoothing, supervised.ema_decay) == (0.8, 0.1, 0)


def test_a_model_without_dropout_holds_none():
    assert make_cell(**TINY | {"backbone": "timm/resnet10t", "image_size": 64, "dropout": 0.1}).dropout == 0
    assert (
        make_cell(**TINY | {"backbone": "timm/vit_tiny_patch16_224", "image_size": 64, "dropout": 0.1}).dropout == 0.1
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"batch_size": 1},
            "mixup and cutmix mix the images of a batch: batch_size must be above 1, or mixup=0 and cutmix=0",
        ),
        ({"protocol": "joint", "permute_patches": True}, "which with permute_patches have two labels for the tasks"),
        (
            {"auto_augment": "randaugmnet"},
            "unknown auto_augment 'randaugmnet': one of none, trivialaugment, randaugment;",
        ),
        ({"mixup": -0.1}, "mixup must be at least 0, not -0.1"),
        ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, not 1.0"),
        ({"ema_decay": 1.0}, "ema_decay must be at least 0 and below 1, not 1.0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"erase_probability": 1.1}, "erase_probability must be between 0 and 1, not 1.1"),
    ],
)
def test_contradictions_and_values_out_of_range_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        make_cell(**TINY | STRONG | changes)


def test_no_field_of_these_changes_an_older_cell():
    cell = make_cell(**TINY)
    assert (
        Cell(**{name: value for name, value in cell.as_dict().items() if name not in STRONG or name == "drop_path"})
        == cell
    )
