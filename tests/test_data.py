"""Data sets on disk: splits, decoding, cache, and what is said about a broken one."""

import contextlib
import errno
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from relvit import data, decoding
from relvit.data import DataError
from relvit.sources import read_source


def write_class_folders(root, counts, side=8):
    """PNGs of noise, no two alike: counts maps "split/class" to how many."""
    rng = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{index:03d}.png")


CATS_AND_DOGS = {"train/cat": 15, "train/dog": 5, "test/cat": 3, "test/dog": 2}


# Splits


def test_digits_are_split_into_a_fixed_fifth_for_test_and_the_rest(digits):
    assert digits.classes == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    assert len(digits.train) + len(digits.test) == 1797
    assert len(digits.test) == 359
    assert digits.val is None
    assert digits.train.images.shape == (1797, 16, 16, 3)


def test_a_tenth_of_the_digits_is_held_out_for_validation(digits):
    train, val = digits.train_val(seed=0)
    assert len(val) == 144
    assert len(train) == 1294


@pytest.mark.parametrize("seed", [0, 1])
def test_no_row_is_in_two_splits_and_none_is_lost(digits, seed):
    train, val = digits.train_val(seed)
    rows = np.concatenate([train.rows, val.rows, digits.test.rows])
    assert sorted(rows.tolist()) == list(range(1797))


def test_no_digit_is_in_the_test_split_under_another_row(digits):
    # The scans themselves, since rows could be numbered apart and still repeat an image.
    train = {image.tobytes() for image in digits.train.read(np.arange(len(digits.train)))[0]}
    test = {image.tobytes() for image in digits.test.read(np.arange(len(digits.test)))[0]}
    assert not train & test


def test_every_class_has_its_share_of_every_split(digits):
    train, val = digits.train_val(seed=0)
    for split in (train, val, digits.test):
        share = np.bincount(split.labels, minlength=10) / len(split)
        everywhere = np.bincount(np.concatenate([digits.train.labels, digits.test.labels])) / 1797
        assert np.abs(share - everywhere).max() < 1.5 / len(split)


def test_labels_and_images_belong_together(digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    for split in (*digits.train_val(seed=0), digits.test):
        images, labels = split.read(np.arange(20))
        for image, label in zip(images, labels):
            # Shrunk again to 8 x 8 and 0..16, an image is nearest to the scan that it was made from.
            scan = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BOX))[:, :, 0] * (16 / 255)
            nearest = np.abs(source.images - scan).sum((1, 2)).argmin()
            assert source.target[nearest] == label


def test_the_same_seed_gives_the_same_split_and_another_seed_another(digits):
    train, val = digits.train_val(seed=3, train_images=200)
    again_train, again_val = digits.train_val(seed=3, train_images=200)
    other_train, other_val = digits.train_val(seed=4, train_images=200)
    assert train.rows.tolist() == again_train.rows.tolist()
    assert val.rows.tolist() == again_val.rows.tolist()
    assert train.rows.tolist() != other_train.rows.tolist()
    assert val.rows.tolist() != other_val.rows.tolist()


@pytest.mark.parametrize("train_images", [50, 128, 1000])
def test_fewer_training_images_keep_the_share_of_each_class_and_the_validation_split(digits, train_images):
    train, val = digits.train_val(0, train_images)
    assert len(train) == train_images
    everything, whole_val = digits.train_val(0)
    expected = np.bincount(everything.labels) / len(everything) * train_images
    assert np.abs(np.bincount(train.labels, minlength=10) - expected).max() < 2
    assert set(train.rows) <= set(everything.rows)
    assert val.rows.tolist() == whole_val.rows.tolist()


def test_more_training_images_than_there_are_are_refused(digits):
    assert len(digits.train_val(0, 1294)[0]) == 1294
    with pytest.raises(DataError, match="train_images=1295, but digits has 1294 training images beside those held out"):
        digits.train_val(0, 1295)


def test_too_few_images_to_hold_any_out_are_refused(tmp_path):
    write_class_folders(tmp_path / "few", {"train/a": 2, "train/b": 2, "test/a": 1, "test/b": 1})
    with pytest.raises(DataError, match="4 training images of few are too few to hold out a tenth for val"):
        data.prepare("few", tmp_path, 8).train_val(0)


def test_a_part_of_a_split_has_its_images_and_labels(digits):
    part = digits.test.part(np.array([5, 2, 9]))
    images, labels = part.read(np.array([2, 0]))
    assert len(part) == 3
    assert np.array_equal(images, digits.test.read(np.array([9, 5]))[0])
    assert labels.tolist() == digits.test.labels[[9, 5]].tolist()


# Class folders


def test_class_folders_become_a_data_set(tmp_path):
    root = tmp_path / "pets"
    write_class_folders(root, CATS_AND_DOGS)
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / "list.txt").write_text("not a class")
    pets = data.prepare("pets", tmp_path, 8)
    assert pets.name == "pets"
    assert pets.classes == ("cat", "dog")
    assert pets.image_size == 8
    assert np.bincount(pets.train.labels).tolist() == [15, 5]
    assert np.bincount(pets.test.labels).tolist() == [3, 2]
    images, labels = pets.train.read(np.arange(20))
    for index, path in enumerate(sorted((root / "train").glob("*/*.png"))):
        assert np.array_equal(images[index], np.asarray(Image.open(path)))
        assert pets.classes[labels[index]] == path.parent.name


def test_classes_of_unequal_size_keep_their_proportions(tmp_path):
    write_class_folders(tmp_path / "pets", {"train/cat": 60, "train/dog": 20, "test/cat": 1, "test/dog": 1})
    train, val = data.prepare("pets", tmp_path, 8).train_val(0, train_images=40)
    assert np.bincount(val.labels).tolist() == [6, 2]
    assert np.bincount(train.labels).tolist() == [30, 10]


def test_a_val_folder_is_the_validation_split_whatever_the_seed(tmp_path):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS | {"val/cat": 2, "val/dog": 1})
    pets = data.prepare("pets", tmp_path, 8)
    for seed in (0, 1):
        train, val = pets.train_val(seed)
        assert len(train) == 20
        assert val.labels.tolist() == [0, 0, 1]
        assert val.rows.tolist() == pets.val.rows.tolist()


def test_mean_and_deviation_are_those_of_the_training_images(tmp_path):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS)
    pets = data.prepare("pets", tmp_path, 8)
    images = pets.train.read(np.arange(len(pets.train)))[0] / 255
    np.testing.assert_allclose(pets.mean, images.mean((0, 1, 2)), atol=1e-12)
    np.testing.assert_allclose(pets.std, images.std((0, 1, 2)), atol=1e-12)


def test_a_constant_channel_counts_as_a_deviation_of_one(tmp_path):
    for folder in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "flat" / folder).mkdir(parents=True)
        Image.new("RGB", (8, 8), (51, 102, 255)).save(tmp_path / "flat" / folder / "0.png")
    flat = data.prepare("flat", tmp_path, 8)
    np.testing.assert_allclose(flat.mean, (0.2, 0.4, 1.0))
    assert flat.std == (1.0, 1.0, 1.0)


# Decoding


def decode(tmp_path, image, size):
    """The array of one image that was written as PNG into a data set of its own."""
    for folder in ("train/a", "test/a"):
        (tmp_path / "one" / folder).mkdir(parents=True)
        image.save(tmp_path / "one" / folder / "0.png")
    return data.prepare("one", tmp_path, size).train.read(np.array([0]))[0][0]


def test_greyscale_gets_three_equal_channels(tmp_path):
    ramp = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(decode(tmp_path, Image.fromarray(ramp), 8), np.stack([ramp] * 3, axis=2))


def test_of_a_transparent_image_the_colours_stay(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    assert np.array_equal(decode(tmp_path, Image.fromarray(rgba), 8), rgba[:, :, :3])


def test_a_palette_is_looked_up(tmp_path):
    image = Image.new("P", (8, 8))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((3, 1), 1)
    expected = np.tile(np.array([10, 20, 30], dtype=np.uint8), (8, 8, 1))
    expected[1, 3] = (200, 100, 50)
    assert np.array_equal(decode(tmp_path, image, 8), expected)


def test_black_and_white_become_0_and_255(tmp_path):
    bits = np.eye(8, dtype=bool)
    expected = np.stack([bits * np.uint8(255)] * 3, axis=2)
    assert np.array_equal(decode(tmp_path, Image.fromarray(bits), 8), expected)


def test_of_16_bits_the_upper_8_stay(tmp_path):
    ramp = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    decoded = decode(tmp_path, Image.fromarray(ramp), 8)
    assert np.abs(decoded.astype(int) - (ramp // 256).astype(int)[:, :, None]).max() <= 1


@pytest.mark.parametrize("turned", [False, True])
def test_the_centre_is_cropped_where_the_shorter_side_fits(tmp_path, turned):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 13, 3), dtype=np.uint8)
    expected = pixels[:, 2:10]  # (13 - 8) // 2 from the left
    if turned:
        pixels, expected = pixels.transpose(1, 0, 2).copy(), expected.transpose(1, 0, 2)
    assert np.array_equal(decode(tmp_path, Image.fromarray(pixels), 8), expected)


@pytest.mark.parametrize("turned", [False, True])
def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path, turned):
    # 48 x 16 at a size of 8: 24 x 8, of which the middle third stays.
    pixels = np.zeros((16, 48, 3), dtype=np.uint8)
    pixels[:, :16] = (255, 0, 0)
    pixels[:, 16:32] = (0, 255, 0)
    pixels[:, 32:] = (0, 0, 255)
    if turned:
        pixels = pixels.transpose(1, 0, 2).copy()
    decoded = decode(tmp_path, Image.fromarray(pixels), 8)
    if turned:
        decoded = decoded.transpose(1, 0, 2)
    assert decoded.shape == (8, 8, 3)
    assert (decoded[:, 1:-1] == (0, 255, 0)).all()
    # Interpolation mixes a little of the neighbour into the outermost column, the same on both sides.
    assert (decoded[:, 0, 0] == decoded[:, 7, 2]).all()
    assert 0 < decoded[0, 0, 0] < 64


def test_small_images_are_enlarged(tmp_path):
    image = Image.new("RGB", (3, 5), (1, 2, 3))
    assert (decode(tmp_path, image, 8) == (1, 2, 3)).all()


def test_the_native_size_is_that_of_the_images(tmp_path):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS, side=12)
    assert data.native_image_size("pets", tmp_path) == 12
    assert data.native_image_size("digits", tmp_path) == 16


def test_a_native_size_of_images_that_are_not_square_is_asked_for(tmp_path):
    for folder in ("train/a", "test/a"):
        (tmp_path / "wide" / folder).mkdir(parents=True)
        Image.new("RGB", (12, 8)).save(tmp_path / "wide" / folder / "0.png")
    with pytest.raises(DataError, match="0.png is 12 x 8 pixels; .*--image-size"):
        data.native_image_size("wide", tmp_path)


# Cache


def test_images_are_memory_mapped_and_read_as_copies(digits):
    assert isinstance(digits.train.images, np.memmap)
    assert digits.train.images is digits.test.images
    part = digits.train_val(0, 100)[0]
    assert part.images is digits.train.images
    images, labels = part.read(np.arange(3))
    assert not np.shares_memory(images, digits.train.images)
    assert images.dtype == np.uint8
    assert labels.dtype == np.int64
    with pytest.raises(ValueError, match="read-only"):
        digits.train.images[0] = 0


def test_the_second_time_nothing_is_decoded(tmp_path):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS)
    first = data.prepare("pets", tmp_path, 8)
    (array,) = tmp_path.rglob("images.npy")
    written = array.stat().st_mtime_ns
    second = data.prepare("pets", tmp_path, 8)
    assert array.stat().st_mtime_ns == written
    assert second.mean == first.mean
    assert np.array_equal(second.train.images, first.train.images)


@pytest.mark.parametrize("change", ["other bytes", "a new file", "a removed file"])
def test_the_cache_is_made_anew_when_a_file_has_changed(tmp_path, change):
    root = tmp_path / "pets"
    write_class_folders(root, CATS_AND_DOGS)
    before = data.prepare("pets", tmp_path, 8)
    path = root / "train" / "cat" / "000.png"
    if change == "other bytes":
        size, modified = path.stat().st_size, path.stat().st_mtime_ns
        Image.new("RGB", (8, 8), (9, 9, 9)).save(path)
        os.utime(path, ns=(modified, modified + 1_000_000_000))
        assert path.stat().st_size != size
    elif change == "a new file":
        Image.new("RGB", (8, 8), (9, 9, 9)).save(path.with_name("00.png"))
    else:
        path.unlink()
    after = data.prepare("pets", tmp_path, 8)
    first = after.train.read(np.array([0]))[0][0]
    if change == "a removed file":
        assert len(after.train) == 19
        assert np.array_equal(first, before.train.read(np.array([1]))[0][0])
    else:
        assert len(after.train) == (21 if change == "a new file" else 20)
        assert (first == 9).all()
    assert after.mean != before.mean


def test_a_trial_loads_the_cache_without_the_source(tmp_path):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS)
    prepared = data.prepare("pets", tmp_path, 8)
    shutil.rmtree(tmp_path / "pets")
    loaded = data.load("pets", tmp_path, 8)
    assert loaded.classes == prepared.classes
    assert loaded.mean == prepared.mean
    assert np.array_equal(loaded.test.read(np.arange(5))[0], prepared.test.read(np.arange(5))[0])


def test_a_trial_without_a_cache_makes_it(tmp_path):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS)
    assert len(data.load("pets", tmp_path, 8).train) == 20


def test_every_size_has_a_cache_of_its_own(tmp_path):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS)
    assert data.prepare("pets", tmp_path, 8).train.images.shape[1:] == (8, 8, 3)
    assert data.prepare("pets", tmp_path, 12).train.images.shape[1:] == (12, 12, 3)
    assert data.load("pets", tmp_path, 8).train.images.shape[1:] == (8, 8, 3)


def test_where_the_data_folder_cannot_be_written_the_users_cache_folder_is_used(tmp_path, monkeypatch):
    root = tmp_path / "read-only"
    write_class_folders(root / "pets", CATS_AND_DOGS)
    # root may write everywhere, so that taking the permission away would not tell.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pets = data.prepare("pets", root, 8)
    assert [path.name for path in root.iterdir()] == ["pets"]
    assert len(list((tmp_path / "cache").rglob("images.npy"))) == 1
    assert len(data.load("pets", root, 8).train) == len(pets.train) == 20


# What is wrong with a data set


def test_a_missing_data_set_names_the_valid_ones_and_the_nearest(tmp_path):
    write_class_folders(tmp_path / "flowers12", CATS_AND_DOGS)
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError) as caught:
        data.prepare("flowers21", tmp_path, 8)
    assert str(caught.value).startswith(
        "unknown data set 'flowers21': one of digits, cifar10, cifar100, svhn, flowers102, tiny_imagenet, flowers12; "
        "did you mean 'flowers12'? "
    )
    assert str(tmp_path / "flowers21") in str(caught.value)


def test_a_missing_data_root_is_a_missing_data_set(tmp_path):
    with pytest.raises(DataError, match="unknown data set 'pets': one of digits, cifar10"):
        data.prepare("pets", tmp_path / "nowhere", 8)


def test_a_missing_test_folder_is_named(tmp_path):
    write_class_folders(tmp_path / "pets", {"train/cat": 2, "train/dog": 2})
    with pytest.raises(DataError) as caught:
        data.prepare("pets", tmp_path, 8)
    assert f"{tmp_path / 'pets' / 'test'} is missing" in str(caught.value)
    assert "train is missing" not in str(caught.value)


def test_everything_half_copied_stands_in_one_message(tmp_path):
    root = tmp_path / "pets"
    write_class_folders(root, {"train/cat": 2, "train/dog": 2, "train/emu": 0, "test/cat": 1, "test/cow": 1})
    with pytest.raises(DataError) as caught:
        data.prepare("pets", tmp_path, 8)
    assert str(caught.value) == (
        f"pets looks half-copied: {root / 'train' / 'emu'} holds no images; "
        f"{root / 'test'} lacks the classes dog, emu that train has; "
        f"{root / 'test'} has the classes cow that train lacks"
    )


def test_no_class_folders_at_all_are_said_so(tmp_path):
    (tmp_path / "pets" / "train").mkdir(parents=True)
    (tmp_path / "pets" / "test").mkdir()
    with pytest.raises(DataError, match="train holds no class folders"):
        data.prepare("pets", tmp_path, 8)


def test_unreadable_images_are_named_together_and_nothing_is_left_behind(tmp_path):
    root = tmp_path / "pets"
    write_class_folders(root, CATS_AND_DOGS, side=32)
    truncated, empty, text = (root / name for name in ("train/cat/003.png", "train/dog/000.png", "test/cat/000.png"))
    truncated.write_bytes(truncated.read_bytes()[:1000])
    empty.write_bytes(b"")
    text.write_text("<html>404 Not Found</html>")
    with pytest.raises(DataError) as caught:
        data.prepare("pets", tmp_path, 8)
    for path in (truncated, empty, text):
        assert f"{path} cannot be read as an image" in str(caught.value)
    assert str(caught.value).count("cannot be read") == 3
    assert not list(tmp_path.rglob("images.npy"))
    # Repaired, the same call works.
    for path in (truncated, empty, text):
        Image.new("RGB", (32, 32)).save(path)
    assert len(data.prepare("pets", tmp_path, 8).train) == 20


@pytest.mark.parametrize("length", [9, 20, 30, 37, 45, 60])
def test_a_png_cut_off_anywhere_is_named(tmp_path, length):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS)
    path = tmp_path / "pets" / "train" / "cat" / "003.png"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match="003.png cannot be read as an image"):
        data.prepare("pets", tmp_path, 8)


def test_a_file_whose_header_is_nonsense_is_named(tmp_path):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS)
    (tmp_path / "pets" / "train" / "cat" / "nonsense.ppm").write_bytes(b"P6\nx8 8\n255\n" + bytes(192))
    with pytest.raises(DataError, match="nonsense.ppm cannot be read as an image"):
        data.prepare("pets", tmp_path, 8)


# Real images


def test_a_part_of_the_real_cifar10(cifar10_part_root):
    part = data.prepare("cifar10", cifar10_part_root, 32)
    assert part.classes == (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    assert np.bincount(part.train.labels).tolist() == [20] * 10
    assert np.bincount(part.test.labels).tolist() == [5] * 10
    # The published mean and deviation of all of CIFAR-10, within what 200 images allow.
    np.testing.assert_allclose(part.mean, (0.4914, 0.4822, 0.4465), atol=0.05)
    np.testing.assert_allclose(part.std, (0.2470, 0.2435, 0.2616), atol=0.05)
    train, val = part.train_val(0)
    assert np.bincount(val.labels).tolist() == [2] * 10
    assert np.bincount(train.labels).tolist() == [18] * 10


# Deep greyscale


def write_deep(root, *values):
    """A data set of 16-bit greyscale: one training and one test image of each array, all of one class."""
    for split in ("train/a", "test/a"):
        (root / "deep" / split).mkdir(parents=True)
        for number, pixels in enumerate(values):
            Image.fromarray(pixels.astype(np.uint16)).save(root / "deep" / split / f"{number}.png")


@pytest.mark.parametrize(("bits", "shift"), [(8, 0), (12, 4), (14, 6), (16, 8)])
def test_of_deep_greyscale_the_upper_8_of_the_bits_in_use_stay(tmp_path, bits, shift):
    brightest = np.linspace(0, 2**bits - 1, 64).round().reshape(8, 8)
    darker = np.full((8, 8), 2 ** (bits - 1))
    write_deep(tmp_path, brightest, darker)
    images = data.prepare("deep", tmp_path, 8).train.read(np.arange(2))[0]
    assert np.array_equal(images[0][:, :, 0], brightest.astype(int) >> shift)
    assert (images[1] == 128).all()  # by the data set's depth, not by the image's own


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_colours_of_16_bits_are_refused_because_their_range_is_not_known(tmp_path, colour_type, channels):
    """Of RGB, RGBA and grey with alpha, Pillow keeps the upper 8 bits: 12 bits in use would leave 16 levels."""
    write_class_folders(tmp_path / "deep", {"train/a": 2, "test/a": 1})

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 8, 8, 16, colour_type, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\x0f\xff" * 8 * channels) * 8)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    (tmp_path / "deep/train/a/1.png").write_bytes(png)
    with pytest.raises(DataError, match="1.png has colours of 16 bits, of unknown range; convert it to 8 bits"):
        data.prepare("deep", tmp_path, 8)


def test_pixels_below_zero_are_refused(tmp_path):
    write_deep(tmp_path, np.zeros((8, 8)))
    Image.fromarray(np.full((8, 8), -5, dtype=np.int32)).save(tmp_path / "deep/train/a/1.tif")
    with pytest.raises(DataError, match="1.tif has negative pixels"):
        data.prepare("deep", tmp_path, 8)


def test_a_data_set_of_one_colour_is_refused_before_it_is_trained_on(tmp_path):
    write_class_folders(tmp_path / "flat", {"train/a": 20, "test/a": 1})
    for path in (tmp_path / "flat/train/a").iterdir():
        Image.new("RGB", (8, 8), (7, 7, 7)).save(path)
    flat = data.prepare("flat", tmp_path, 8)
    with pytest.raises(DataError, match="all training images of flat are one and the same colour"):
        flat.train_val(0)


# What is not used, and classes of one image


def test_hidden_and_system_folders_are_no_classes_and_what_is_not_used_is_said(tmp_path, caplog):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS | {"train/.ipynb_checkpoints": 2, "test/__MACOSX": 1})
    root = tmp_path / "pets"
    (root / "train/cat/notes.txt").write_text("not an image")
    (root / "train/cat/._000.png").write_bytes(b"what macOS leaves")
    (root / "train/dog/more").mkdir()
    pets = data.prepare("pets", tmp_path, 8)
    assert pets.classes == ("cat", "dog")
    assert len(pets.train) == 20
    assert caplog.messages == [
        f"{root}: 5 files and folders are not used: test/__MACOSX, train/.ipynb_checkpoints, train/cat/._000.png, "
        "train/cat/notes.txt, train/dog/more"
    ]


def test_the_only_image_of_a_class_is_never_held_out(tmp_path):
    write_class_folders(tmp_path / "zoo", {"train/cat": 30, "train/emu": 1, "test/cat": 1, "test/emu": 1})
    zoo = data.prepare("zoo", tmp_path, 8)
    validated = set()
    for seed in range(40):  # in a tenth of all seeds it would be
        train, val = zoo.train_val(seed)
        assert np.bincount(train.labels)[1] == 1
        assert len(train) + len(val) == 31
        validated.add(len(val))
    assert validated == {2, 3}


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS)
    path = tmp_path / "pets/train/cat/zzz.png"
    path.symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError) as caught:
        data.prepare("pets", tmp_path, 8)
    assert str(caught.value) == f"{path} is a link that leads nowhere"


# Fingerprints


def test_the_fingerprint_is_of_the_images_and_not_of_their_files(tmp_path):
    write_class_folders(tmp_path / "a" / "pets", CATS_AND_DOGS)
    write_class_folders(tmp_path / "b" / "pets", CATS_AND_DOGS)
    for path in (tmp_path / "b").rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    first = data.prepare("pets", tmp_path / "a", 8).fingerprint
    assert len(first) == 16
    assert data.prepare("pets", tmp_path / "b", 8).fingerprint == first
    assert data.load("pets", tmp_path / "b", 8).fingerprint == first
    assert data.cached_fingerprint("pets", tmp_path / "a", 8) == first
    assert data.cached_fingerprint("pets", tmp_path / "a", 12) == ""


@pytest.mark.parametrize("change", ["a pixel", "a label", "a split"])
def test_another_pixel_label_or_split_is_another_fingerprint(tmp_path, change):
    root = tmp_path / "pets"
    write_class_folders(root, CATS_AND_DOGS)
    before = data.prepare("pets", tmp_path, 8).fingerprint
    if change == "a pixel":
        image = Image.open(root / "test/dog/000.png")
        image.putpixel((7, 7), (1, 2, 3))
        image.save(root / "test/dog/000.png")
    elif change == "a label":  # the last cat becomes the first dog: the same images in the same order
        (root / "train/cat/014.png").rename(root / "train/dog/000-.png")
        (root / "train/dog/000-.png").rename(root / "train/dog/!.png")
    else:
        (root / "train/dog/004.png").rename(root / "test/cat/!.png")
    assert data.prepare("pets", tmp_path, 8).fingerprint != before


# Shared folders and full disks


def test_a_cache_is_as_open_to_a_group_as_the_umask_says(tmp_path):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS)
    tmp_path.chmod(0o2775)
    before = os.umask(0o002)
    try:
        data.prepare("pets", tmp_path, 8)
    finally:
        os.umask(before)
    made = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / ".relvit-cache").rglob("*")}
    assert made == {
        "pets.lock": 0o664,
        "pets-8": 0o775,
        "images.npy": 0o664,
        "labels.npy": 0o664,
        "meta.json": 0o664,
    }


def test_a_full_disk_is_said_before_anything_is_decoded_and_leaves_nothing(tmp_path, monkeypatch):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS)

    def full(descriptor, offset, length):
        assert length > 25 * 8 * 8 * 3
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        DataError, match=r"pets cannot be decoded to .*images.npy: No space left on device \(4.8e-06 GB"
    ):
        data.prepare("pets", tmp_path, 8)
    assert [path.name for path in (tmp_path / ".relvit-cache").iterdir()] == ["pets.lock"]


def test_what_a_killed_process_left_of_a_cache_is_removed(tmp_path):
    write_class_folders(tmp_path / "pets", CATS_AND_DOGS)
    cache = tmp_path / ".relvit-cache"
    (cache / ".pets-8.0123abcd.tmp").mkdir(parents=True)
    (cache / ".pets-8.x-8.0123abcd.tmp").mkdir()  # of a data set "pets-8.x", which somebody may be decoding
    data.prepare("pets", tmp_path, 8)
    assert sorted(path.name for path in cache.iterdir()) == [".pets-8.x-8.0123abcd.tmp", "pets-8", "pets.lock"]


# Large data sets


def made_folder(tmp_path, count=60):
    """Images of one colour each, the number of the image, as class folders of two classes."""
    for number in range(count):
        folder = tmp_path / "many" / ("test" if number % 3 == 0 else "train") / ("ab"[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 255 - number, 7)).save(folder / f"{number:03}.png")


def interrupted(monkeypatch, tmp_path, after):
    """Prepare, interrupted as by Ctrl-C at the image `after`, counted from 0. Returns how many were decoded."""
    splits = read_source("many", tmp_path).splits.values()
    place = {image: number for number, image in enumerate(image for images, _ in splits for image in images)}
    decode, calls = decoding.decode, []

    def counted(image, *arguments):
        if place[image] >= after:
            raise KeyboardInterrupt
        calls.append(image)
        return decode(image, *arguments)

    monkeypatch.setattr(decoding, "decode", counted)
    with contextlib.suppress(KeyboardInterrupt):
        data.prepare("many", tmp_path, 8)
    monkeypatch.setattr(decoding, "decode", decode)
    return len(calls)


def test_an_interrupted_preparation_goes_on_after_the_last_whole_block(tmp_path, monkeypatch):
    made_folder(tmp_path)
    whole = data.prepare("many", tmp_path, 8)
    (cache,) = (tmp_path / ".relvit-cache").glob("many-8")
    shutil.rmtree(cache)
    monkeypatch.setattr(decoding, "BLOCK", 16)
    interrupted(monkeypatch, tmp_path, after=40)
    (scratch,) = cache.parent.glob(".many-8.*.tmp")
    assert interrupted(monkeypatch, tmp_path, after=1000) == 60 - 32  # two blocks of 16 were whole
    assert not scratch.exists()
    again = data.load("many", tmp_path, 8)
    assert again.fingerprint == whole.fingerprint
    assert np.array_equal(again.train.images, whole.train.images)


def test_at_a_terminal_without_rich_images_are_decoded_without_a_bar(tmp_path, monkeypatch):
    made_folder(tmp_path)
    monkeypatch.setattr(decoding, "BLOCK", 4)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert len(data.prepare("many", tmp_path, 8).train) > 4 * 4


def test_of_other_images_nothing_is_gone_on_with(tmp_path, monkeypatch):
    made_folder(tmp_path)
    monkeypatch.setattr(decoding, "BLOCK", 16)
    interrupted(monkeypatch, tmp_path, after=40)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "many" / "train" / "a" / "more.png")
    assert interrupted(monkeypatch, tmp_path, after=61) == 61
    assert [path.name for path in (tmp_path / ".relvit-cache").iterdir() if path.is_dir()] == ["many-8"]


def test_a_damaged_record_of_an_interrupted_preparation_starts_it_again(tmp_path, monkeypatch):
    made_folder(tmp_path)
    monkeypatch.setattr(decoding, "BLOCK", 16)
    interrupted(monkeypatch, tmp_path, after=40)
    (record,) = (tmp_path / ".relvit-cache").glob(".many-8.*.tmp/decoded.json")
    record.write_text('{"images": "many"}')
    assert interrupted(monkeypatch, tmp_path, after=1000) == 60


def test_many_images_are_decoded_by_processes_to_what_threads_make_of_them(tmp_path, monkeypatch):
    made_folder(tmp_path)
    threads = data.prepare("many", tmp_path, 8)
    (cache,) = (tmp_path / ".relvit-cache").glob("many-8")
    cache.rename(tmp_path / "by-threads")
    monkeypatch.setattr(decoding, "PROCESSES_FROM", 1)
    processes = data.prepare("many", tmp_path, 8)
    assert (processes.fingerprint, processes.mean, processes.std) == (threads.fingerprint, threads.mean, threads.std)
    assert np.array_equal(processes.train.images, threads.train.images)
    shutil.rmtree(cache)
    (tmp_path / "many" / "train" / "a" / "002.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"train/a/002.png cannot be read as an image"):
        data.prepare("many", tmp_path, 8)


def test_a_process_that_dies_as_it_decodes_is_said_and_what_was_decoded_stays(tmp_path, monkeypatch):
    made_folder(tmp_path)
    monkeypatch.setattr(decoding, "BLOCK", 16)
    interrupted(monkeypatch, tmp_path, after=40)
    monkeypatch.setattr(decoding, "PROCESSES_FROM", 1)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    ends = lambda: subprocess.Popen([sys.executable, "-S", "-c", "raise SystemExit(7)"], **pipes)  # noqa: E731
    monkeypatch.setattr(decoding, "start_worker", ends)
    with pytest.raises(DataError, match="ended with status 7.*run the same command again"):
        data.prepare("many", tmp_path, 8)
    monkeypatch.undo()
    monkeypatch.setattr(decoding, "BLOCK", 16)
    assert interrupted(monkeypatch, tmp_path, after=60) == 60 - 32


def test_what_a_large_preparation_takes_is_said_beforehand(tmp_path, monkeypatch, caplog):
    made_folder(tmp_path)
    monkeypatch.setattr(data, "LARGE", 60 * 8 * 8 * 3)
    data.prepare("many", tmp_path, 8)
    assert f"many-8: 60 images are decoded to 0.0 GB in {tmp_path / '.relvit-cache'}" in caplog.text


# Small images that are used large


@pytest.fixture
def small_images(tmp_path):
    """A folder of 40 training and 8 test images of 12 x 12 pixels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path


def test_small_images_of_a_large_data_set_are_kept_small_and_read_as_they_were(small_images, monkeypatch):
    large = data.prepare("pets", small_images, 30)
    shutil.rmtree(small_images / ".relvit-cache")
    monkeypatch.setattr(data, "LARGE", 48 * 30 * 30 * 3)
    small = data.prepare("pets", small_images, 30)
    assert (large.train.images.shape, small.train.images.shape) == ((48, 30, 30, 3), (48, 12, 12, 3))
    assert (small.image_size, small.mean, small.std) == (large.image_size, large.mean, large.std)
    assert small.fingerprint == large.fingerprint  # the same images, however they are kept
    for ours, theirs in ((small.train, large.train), (small.test, large.test)):
        assert all(np.array_equal(*pair) for pair in zip(ours.read(np.arange(8)), theirs.read(np.arange(8))))
    taken, is_there = data.decoded_bytes("pets", small_images, 30, whole=False, images=48)
    assert is_there and 0 <= taken - 48 * 12 * 12 * 3 <= 128  # and numpy's header
    assert data.load("pets", small_images, 30).train.images.shape == (48, 12, 12, 3)


def test_images_of_several_sizes_are_kept_at_the_size_that_is_asked_for(small_images, monkeypatch):
    Image.new("RGB", (12, 14), "red").save(small_images / "pets/train/cat/other.png")
    monkeypatch.setattr(data, "LARGE", 1)
    assert data.prepare("pets", small_images, 30).train.images.shape == (49, 30, 30, 3)


def test_images_that_are_larger_than_what_is_asked_for_are_kept_at_that(small_images, monkeypatch):
    monkeypatch.setattr(data, "LARGE", 1)
    assert data.prepare("pets", small_images, 6).train.images.shape == (48, 6, 6, 3)


def test_all_broken_files_of_a_large_data_set_are_named(small_images, monkeypatch):
    monkeypatch.setattr(data, "LARGE", 1)
    for number in (3, 5):
        (small_images / f"pets/train/dog/{number}.png").write_bytes(b"no image")
    with pytest.raises(DataError) as refused:
        data.prepare("pets", small_images, 30)
    assert "dog/3.png" in str(refused.value) and "dog/5.png" in str(refused.value)
