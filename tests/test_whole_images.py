"""crop_from="original": images are kept whole and at their own size, and crops are taken from there on the device."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny import TINY
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from relvit import data
from relvit.augment import Augmentation, centre_windows, draw_windows, window_crop
from relvit.cell import make_cell
from relvit.train import train
from relvit.vocabulary import SPEEDS
from sweeps.planning.plan import prepare_data

BLACK_TO_WHITE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
FLOWERS = Path(__file__).resolve().parents[2] / "shared" / "data" / "flowers12"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photograph(height, width, seed):
    """uint8 with detail of every size, as a photograph has: noise whose amplitude falls with its frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    spectrum = rng.standard_normal((height, width)) + 1j * rng.standard_normal((height, width))
    plane = np.fft.ifft2(spectrum / np.maximum(frequency, 1 / max(height, width))).real
    plane = (plane - plane.mean()) / plane.std() * 50 + 128
    return np.repeat(plane.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def write(root, split, images):
    for number, image in enumerate(images):
        folder = root / split / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number:03d}.png")


def test_images_of_one_native_size_are_stored_at_that_size_and_as_they_are(tmp_path):
    images = [photograph(32, 32, seed) for seed in range(20)]
    write(tmp_path / "photos", "train", images)
    write(tmp_path / "photos", "test", images[:2])
    whole = data.prepare("photos", tmp_path, 224, whole=True)
    assert whole.train.images.shape == (22, 32, 32, 3)  # of which 224 x 224 would be 49 times as many bytes
    assert (whole.train.aspects == 1).all()
    in_folders = [image for label in (0, 1) for image in images[label::2]]
    assert np.array_equal(whole.train.read(np.arange(20))[0], in_folders)
    assert data.prepare("photos", tmp_path, 224).train.images.shape == (22, 224, 224, 3)
    assert data.load("photos", tmp_path, 224, whole=True).image_size == 32


def test_whole_photographs_are_stored_as_squares_of_at_most_three_times_the_image_size(tmp_path):
    write(tmp_path / "photos", "train", [photograph(60, 90, 0), photograph(100, 50, 1)])
    write(tmp_path / "photos", "test", [photograph(20, 20, number) for number in (2, 3)])
    small, large = (data.prepare("photos", tmp_path, size, whole=True) for size in (16, 64))
    assert small.train.images.shape == (4, 48, 48, 3)
    assert large.train.images.shape == (4, 100, 100, 3)  # the largest side that there is
    assert large.train.aspects.tolist() == [1.5, 0.5, 1, 1]
    assert large.train.part(np.array([1])).aspects is large.train.aspects


def test_in_evaluation_the_middle_square_is_resized_as_torchvision_does_it(tmp_path):
    image = photograph(90, 60, 0)
    stored = torch.from_numpy(np.array(Image.fromarray(image).resize((90, 90), Image.Resampling.LANCZOS)))[None]
    plain = Augmentation(patch_size=4, output_size=32, **BLACK_TO_WHITE)
    draws = plain.draw(1, 90, 90, generator(), torch.tensor([60 / 90]))
    assert draws.window.tolist() == [[pytest.approx(1 / 6), 0, pytest.approx(2 / 3), 1]]
    ours = plain.apply_draws(stored, draws)[0]
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    theirs = functional.resize(functional.center_crop(tensor, 60), [32, 32], antialias=True)
    assert (ours - theirs).abs().mean() < 0.01


def test_a_window_of_whole_pixels_is_cropped_and_resized_as_torchvision_does_it():
    images = torch.rand(2, 40, 40, 3, generator=generator())
    windows = torch.tensor([[0.25, 0.5, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]])
    ours = window_crop(images, windows, 10).permute(0, 3, 1, 2)
    for found, image, (top, left, side) in zip(ours, images.permute(0, 3, 1, 2), ((10, 20, 20), (0, 0, 40))):
        theirs = functional.resized_crop(image, top, left, side, side, [10, 10], antialias=True)
        inner = slice(1, -1)  # on the window's edge half a pixel more may count
        torch.testing.assert_close(found[:, inner, inner], theirs[:, inner, inner], rtol=0, atol=1e-5)


def test_windows_have_torchvisions_areas_and_ratios():
    aspects = torch.tensor([1.5]).expand(4000)
    height, width = draw_windows(aspects, 0.2, generator()).unbind(1)[2:]
    torch.manual_seed(0)
    theirs = torch.tensor(
        [
            transforms.RandomResizedCrop.get_params(torch.empty(3, 400, 600), (0.2, 1), (3 / 4, 4 / 3))
            for _ in range(4000)
        ]
    ).float()
    expected_area, expected_ratio = theirs[:, 2] * theirs[:, 3] / (400 * 600), (theirs[:, 3] / theirs[:, 2]).log()
    assert abs((height * width).mean() - expected_area.mean()) < 0.01
    assert abs((width * 1.5 / height).log().mean() - expected_ratio.mean()) < 0.01
    assert (height <= 1).all() and (width <= 1).all()


@pytest.mark.parametrize(
    ("aspect", "expected"), [(1.0, [0, 0, 1, 1]), (2.0, [0, 1 / 6, 1, 2 / 3]), (0.5, [1 / 6, 0, 2 / 3, 1])]
)
def test_where_no_attempt_fits_the_middle_is_taken_as_torchvision_does(aspect, expected):
    """RandomResizedCrop's fallback: the largest window with a ratio from 3/4 to 4/3."""
    assert centre_windows(torch.tensor([aspect]), 3 / 4, 4 / 3)[0].tolist() == pytest.approx(expected)


def gradient_energy(images):
    """Mean square of the differences of neighbours, of [B, 3, H, W] in [0, 1]."""
    return float((images.diff(dim=2) ** 2).mean() + (images.diff(dim=3) ** 2).mean())


def blown_up(path: Path) -> np.ndarray:
    """A photograph of 224 x 224 pixels enlarged to 672 x 448."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB").resize((672, 672), Image.Resampling.BICUBIC))[112:-112]


@pytest.mark.parametrize(("kind", "size", "draws"), [("noise", 32, 10), ("flowers", 224, 4)])
def test_training_crops_are_as_sharp_as_those_of_the_public_pipeline(tmp_path, kind, size, draws):
    """RandomResizedCrop from the original; from an image that was brought to the square before, a crop is blurred."""
    if kind == "flowers" and not FLOWERS.is_dir():
        pytest.skip(f"needs the photographs of flowers under {FLOWERS}")
    paths = sorted(FLOWERS.glob("train/*/*.jpg"))[::9]
    originals = [photograph(80, 120, seed) for seed in range(40)] if kind == "noise" else [*map(blown_up, paths)]
    write(tmp_path / "photos", "train", originals)
    write(tmp_path / "photos", "test", originals[:2])
    torch.manual_seed(0)
    public = transforms.RandomResizedCrop(size, antialias=True)
    tensors = [torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in originals]
    theirs = gradient_energy(torch.stack([public(image) for image in tensors for _ in range(draws)]))
    energies = {}
    for name, whole in (("original", True), ("resized", False)):
        split = data.prepare("photos", tmp_path, size, whole=whole).train
        crop = Augmentation(patch_size=4, crop_min_area=0.08, output_size=size * whole, **BLACK_TO_WHITE)
        images = torch.from_numpy(split.read(np.arange(len(originals)))[0])
        aspects = torch.from_numpy(split.aspects[split.rows]) if whole else None
        energies[name] = [
            gradient_energy(crop.apply_draws(images, crop.draw(*images.shape[:3], generator(seed), aspects)))
            for seed in range(draws)
        ]
    assert np.mean(energies["original"]) == pytest.approx(theirs, rel=0.1)
    assert np.mean(energies["resized"]) < 0.8 * theirs


def test_a_cell_trains_on_whole_images_resumes_to_the_same_rows_and_has_another_id(tmp_path):
    for split, count in (("train", 24), ("test", 4)):
        write(tmp_path / "photos", split, [photograph(30, 45, number) for number in range(count)])
    fields = TINY | {"dataset": "photos", "pretrain_dataset": "photos", "crop_padding": 0, "crop_min_area": 0.3}
    cell = make_cell(**fields | {"batch_size": 8, "crop_from": "original"})
    assert cell.cell_id != dataclasses.replace(cell, crop_from="resized").cell_id
    assert dataclasses.replace(cell, crop_from="resized") == make_cell(**fields | {"batch_size": 8})
    dataset = data.prepare("photos", tmp_path, cell.image_size, whole=True)
    once, again = (
        [{name: value for name, value in row.items() if name not in SPEEDS} for row in rows]
        for rows in (
            list(train(cell, dataset, tmp_path / "once")),
            [*train(cell, dataset, tmp_path / "again", stop_after=2), *train(cell, dataset, tmp_path / "again")][2:],
        )
    )
    assert once == again


def test_what_cannot_be_cropped_from_the_original_is_refused(tmp_path):
    with pytest.raises(ValueError, match="crop_from='original' crops whole images, which have no border"):
        make_cell(**TINY | {"crop_padding": 1, "crop_from": "original"})
    cell = make_cell(**TINY | {"crop_padding": 0, "crop_min_area": 0.5, "crop_from": "original"})
    assert prepare_data([cell], tmp_path) == []  # the digits are scans of 8 x 8, of which 16 x 16 would be made
    for split in ("train", "test"):
        write(tmp_path / "photos", split, [photograph(16, 16, number) for number in range(24)])
    photos = dataclasses.replace(cell, dataset="photos", pretrain_dataset="photos")
    assert prepare_data([photos], tmp_path) == [
        "crop_from='original' changes nothing: the images of photos are 16 x 16 pixels"
    ]
