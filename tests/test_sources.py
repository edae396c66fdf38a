"""Where images come from: archives in their published formats, class folders, downloads, and what is wrong with them.

The archives are made here, in the formats of their authors, with pixels that are known. Nothing is ever fetched.
"""

import dataclasses
import hashlib
import multiprocessing
import pickle
import shutil
import socket
import tarfile
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from relvit import data, sources
from relvit.data import DATASETS, DataError
from relvit.sources import Archive

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that would fetch anything fails."""

    def refuse(url, *arguments, **options):
        raise AssertionError(f"a test must not fetch {url}")

    for name in ("_urlretrieve", "_get_redirect_url"):
        monkeypatch.setattr(f"torchvision.datasets.utils.{name}", refuse)


def noise(count, side=32, seed=0):
    """uint8 [count, side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def everything(split):
    return split.read(np.arange(len(split)))


# CIFAR


def write_python_2_pickle(path, content):
    """As Python 2 pickled it: the keys are byte strings."""
    payload = pickle.dumps(content, protocol=2)
    for key in content:
        unicode, bytestring = b"X" + len(key).to_bytes(4, "little"), b"U" + bytes([len(key)])
        assert unicode + key.encode() in payload
        payload = payload.replace(unicode + key.encode(), bytestring + key.encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(payload)


def planes(images):
    """Krizhevsky's rows: all red values of an image row by row, then all green, then all blue."""
    rows = np.zeros((len(images), 3072), dtype=np.uint8)
    for n, image in enumerate(images):
        for channel in range(3):
            for y in range(32):
                start = 1024 * channel + 32 * y
                rows[n, start : start + 32] = image[y, :, channel]
    return rows


CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar10(folder):
    """Five batches of four images and three test images. Returns images and labels of both splits."""
    images, labels = noise(23), [n % 10 for n in range(23)]
    for number in range(6):
        part = slice(4 * number, 4 * number + 4)
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        write_python_2_pickle(
            folder / "cifar-10-batches-py" / name,
            {"data": planes(images[part]), "labels": labels[part], "filenames": ["x.png"] * len(labels[part])},
        )
    write_python_2_pickle(
        folder / "cifar-10-batches-py" / "batches.meta", {"label_names": CIFAR10_CLASSES, "num_vis": 3072}
    )
    return images, labels


def test_cifar10_is_read_from_its_batches(tmp_path):
    images, labels = write_cifar10(tmp_path / "cifar10")
    dataset = data.prepare("cifar10", tmp_path, 32)
    assert dataset.classes == tuple(CIFAR10_CLASSES)
    assert dataset.val is None
    for split, part in ((dataset.train, slice(0, 20)), (dataset.test, slice(20, 23))):
        read_images, read_labels = everything(split)
        assert np.array_equal(read_images, images[part])
        assert read_labels.tolist() == labels[part]


def test_cifar100_is_read_from_its_batches_with_the_fine_labels(tmp_path):
    images, fine = noise(7), [99, 0, 5, 42, 41, 3, 98]
    folder = tmp_path / "cifar100" / "cifar-100-python"
    for name, part in (("train", slice(0, 5)), ("test", slice(5, 7))):
        write_python_2_pickle(
            folder / name,
            {"data": planes(images[part]), "fine_labels": fine[part], "coarse_labels": [7] * len(fine[part])},
        )
    names = [f"fine{number}" for number in range(100)]
    write_python_2_pickle(folder / "meta", {"fine_label_names": names, "coarse_label_names": ["coarse"] * 20})
    dataset = data.prepare("cifar100", tmp_path, 32)
    assert dataset.classes == tuple(names)
    for split, part in ((dataset.train, slice(0, 5)), (dataset.test, slice(5, 7))):
        read_images, read_labels = everything(split)
        assert np.array_equal(read_images, images[part])
        assert read_labels.tolist() == fine[part]


def test_a_batch_that_has_changed_is_decoded_anew(tmp_path):
    write_cifar10(tmp_path / "cifar10")
    before = data.prepare("cifar10", tmp_path, 32)
    write_python_2_pickle(
        tmp_path / "cifar10" / "cifar-10-batches-py" / "test_batch",
        {"data": planes(noise(2, seed=5)), "labels": [1, 2], "filenames": []},
    )
    after = data.prepare("cifar10", tmp_path, 32)
    assert len(before.test) == 3
    assert np.array_equal(everything(after.test)[0], noise(2, seed=5))


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_missing_batch_is_named(tmp_path, name):
    write_cifar10(tmp_path / "cifar10")
    path = tmp_path / "cifar10" / "cifar-10-batches-py" / name
    path.unlink()
    with pytest.raises(DataError) as caught:
        data.prepare("cifar10", tmp_path, 32)
    assert str(caught.value) == f"{path} is missing"


BATCH = pickle.dumps({"data": planes(noise(4)), "labels": [0, 1, 2, 3]}, protocol=2)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>404 Not Found</html>", id="a web page"),
        pytest.param(BATCH[: len(BATCH) // 2], id="cut off in the pixels"),
        pytest.param(BATCH[:-3], id="cut off at the end"),
        pytest.param(bytes(range(128, 256)), id="other bytes"),
        pytest.param(pickle.dumps([1, 2, 3]), id="a pickled list"),
        pytest.param(pickle.dumps({"data": planes(noise(4))}), id="without labels"),
        pytest.param(pickle.dumps({"data": planes(noise(4))[:, :100], "labels": [0] * 4}), id="pixels are missing"),
        pytest.param(pickle.dumps({"data": planes(noise(4)), "labels": [0] * 3}), id="a label is missing"),
        pytest.param(b"cno.such.module\nThing\n.", id="a class that is not there"),
    ],
)
def test_a_corrupt_batch_is_named(tmp_path, content):
    write_cifar10(tmp_path / "cifar10")
    path = tmp_path / "cifar10" / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        data.prepare("cifar10", tmp_path, 32)
    assert str(caught.value).startswith(f"{path} is not a batch of CIFAR images")
    assert not list(tmp_path.rglob("images.npy"))


class Intruder:
    """What a pickle may ask for: to call any function with any arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
@pytest.mark.parametrize("where", ["the whole", "a value", "an array"])
def test_no_batch_can_run_code(tmp_path, name, where):
    write_cifar10(tmp_path / "cifar10")
    ran = tmp_path / "ran"
    intruder = Intruder(Path.touch, ran)
    pickle.loads(pickle.dumps(intruder))
    assert ran.exists()  # it would
    ran.unlink()
    content = {
        "the whole": intruder,
        "a value": {"data": planes(noise(4)), "labels": [0, 1, 2, 3], "label_names": intruder},
        "an array": {"data": np.array([intruder]), "labels": [0], "label_names": ["a"]},
    }[where]
    path = tmp_path / "cifar10" / "cifar-10-batches-py" / name
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DataError) as caught:
        data.prepare("cifar10", tmp_path, 32)
    assert str(caught.value).startswith(f"{path} is not a batch of CIFAR images: UnpicklingError: it asks for ")
    assert "only numbers, text and numpy's arrays" in str(caught.value)
    assert not ran.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_are_read_whatever_pickle_wrote_them(tmp_path, protocol, order):
    write_cifar10(tmp_path / "cifar10")
    images = noise(4, seed=9)
    content = {"data": np.array(planes(images), order=order), "labels": np.array([3, 2, 1, 0], dtype=">i8")}
    path = tmp_path / "cifar10" / "cifar-10-batches-py" / "test_batch"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read_images, read_labels = everything(data.prepare("cifar10", tmp_path, 32).test)
    assert np.array_equal(read_images, images)
    assert read_labels.tolist() == [3, 2, 1, 0]


def test_files_are_held_against_the_checksums_that_torchvision_knows_and_others_are_named(tmp_path, caplog):
    from torchvision.datasets import CIFAR10, CIFAR100

    for name, known in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        theirs = [*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])]
        assert DATASETS[name].md5 == {f"{known.base_folder}/{file}": md5 for file, md5 in theirs}
    write_cifar10(tmp_path / "cifar10")
    data.prepare("cifar10", tmp_path, 32)
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path / 'cifar10'}: cifar-10-batches-py/data_batch_1, ")
    assert said.endswith(" have another MD5 than what was published, and are used as they are")


# SVHN


def write_svhn(folder, compressed=True):
    """Five training and three test images. Returns images, digits."""
    images, digits = noise(8), [0, 1, 9, 5, 0, 2, 0, 7]
    folder.mkdir(parents=True)
    for name, part in (("train", slice(0, 5)), ("test", slice(5, 8))):
        pixels = np.zeros((32, 32, 3, len(digits[part])), dtype=np.uint8)
        for n, image in enumerate(images[part]):
            pixels[:, :, :, n] = image
        labels = np.array([[digit or 10] for digit in digits[part]], dtype=np.uint8)  # [n, 1], 10 stands for 0
        savemat(folder / f"{name}_32x32.mat", {"X": pixels, "y": labels}, do_compression=compressed)
    return images, digits


def test_svhn_is_read_from_its_matlab_files_and_label_10_is_the_digit_0(tmp_path):
    images, digits = write_svhn(tmp_path / "svhn")
    dataset = data.prepare("svhn", tmp_path, 32)
    assert dataset.classes == tuple("0123456789")
    assert dataset.val is None
    for split, part in ((dataset.train, slice(0, 5)), (dataset.test, slice(5, 8))):
        read_images, read_labels = everything(split)
        assert np.array_equal(read_images, images[part])
        assert read_labels.tolist() == digits[part]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("damage", ["empty", "a web page", "cut in half", "cut at the end", "version 7.3", "no pixels"])
def test_a_corrupt_matlab_file_is_named(tmp_path, damage, compressed):
    write_svhn(tmp_path / "svhn", compressed)
    path = tmp_path / "svhn" / "test_32x32.mat"
    whole = path.read_bytes()
    if damage == "no pixels":
        savemat(path, {"y": np.zeros((3, 1))})
    else:
        path.write_bytes(
            {
                "empty": b"",
                "a web page": b"<html>404 Not Found</html>" * 20,
                "cut in half": whole[: len(whole) // 2],
                "cut at the end": whole[:-8],
                "version 7.3": b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400),
            }[damage]
        )
    with pytest.raises(DataError) as caught:
        data.prepare("svhn", tmp_path, 32)
    assert str(path) in str(caught.value)
    assert not list(tmp_path.rglob("images.npy"))


def test_svhn_pixels_of_another_type_are_named(tmp_path):
    write_svhn(tmp_path / "svhn")
    path = tmp_path / "svhn" / "test_32x32.mat"
    savemat(path, {"X": np.zeros((32, 32, 3, 2)), "y": np.ones((2, 1))})
    with pytest.raises(DataError, match=f"{path} is not a file of SVHN: its pixels are float64 and not uint8"):
        data.prepare("svhn", tmp_path, 32)


def test_a_split_without_images_is_no_whole_copy(tmp_path):
    write_svhn(tmp_path / "svhn")
    empty = {"X": np.zeros((32, 32, 3, 0), dtype=np.uint8), "y": np.zeros((0, 1), dtype=np.uint8)}
    savemat(tmp_path / "svhn" / "test_32x32.mat", empty)
    with pytest.raises(DataError, match="no images of test; the copy is not complete"):
        data.prepare("svhn", tmp_path, 32)


# Flower-102


def write_flowers(folder):
    """Six images of one colour each; image n is of class n % 3 + 1. Returns their colours by number."""
    (folder / "jpg").mkdir(parents=True)
    colours = {number: (40 * number, 255 - 40 * number, 100) for number in range(1, 7)}
    for number, colour in colours.items():
        Image.new("RGB", (16, 16), colour).save(folder / "jpg" / f"image_{number:05d}.jpg", quality=95)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[2, 3, 1, 2, 3, 1]], dtype=np.uint8)})
    savemat(
        folder / "setid.mat",
        {
            "trnid": np.array([[6, 2]], dtype=np.uint16),
            "valid": np.array([[4]], dtype=np.uint16),
            "tstid": np.array([[1, 3, 5]], dtype=np.uint16),
        },
    )
    return colours


@pytest.mark.parametrize("below", [".", "flowers-102"], ids=["as published", "as torchvision unpacks it"])
def test_flowers102_has_its_own_three_splits_and_classes_counted_from_0(tmp_path, below):
    colours = write_flowers(tmp_path / "flowers102" / below)
    dataset = data.prepare("flowers102", tmp_path, 16)
    assert dataset.classes == ("0", "1", "2")
    splits = {"train": ([6, 2], [0, 2]), "val": ([4], [1]), "test": ([1, 3, 5], [1, 0, 2])}
    for name, (numbers, labels) in splits.items():
        images, read_labels = everything(getattr(dataset, name))
        assert read_labels.tolist() == labels
        for image, number in zip(images, numbers):
            np.testing.assert_allclose(image.mean((0, 1)), colours[number], atol=2)
    # Nothing is held out from its training split.
    train, val = dataset.train_val(0)
    assert (len(train), val.labels.tolist()) == (2, [1])


def test_a_missing_flower_is_named(tmp_path):
    write_flowers(tmp_path / "flowers102")
    path = tmp_path / "flowers102" / "jpg" / "image_00003.jpg"
    path.unlink()
    with pytest.raises(DataError) as caught:
        data.prepare("flowers102", tmp_path, 16)
    assert str(caught.value) == f"1 of 6 files are missing: {path}"


@pytest.mark.parametrize("name", ["imagelabels.mat", "setid.mat"])
def test_a_corrupt_list_of_flowers_is_named(tmp_path, name):
    write_flowers(tmp_path / "flowers102")
    (tmp_path / "flowers102" / name).write_bytes(b"<html>404 Not Found</html>" * 20)
    with pytest.raises(DataError, match=f"{name} is not a Matlab file"):
        data.prepare("flowers102", tmp_path, 16)


def test_flowers_beyond_the_list_of_labels_are_named(tmp_path):
    write_flowers(tmp_path / "flowers102")
    savemat(tmp_path / "flowers102" / "imagelabels.mat", {"labels": np.array([[2, 3, 1]], dtype=np.uint8)})
    with pytest.raises(DataError, match="setid.mat: trnid goes to image 6, but .*imagelabels.mat has 3 labels"):
        data.prepare("flowers102", tmp_path, 16)


# Tiny ImageNet

WNIDS = ["n02", "n01", "n03"]  # the published list is in no order of names


def write_tiny_imagenet(folder):
    """Three classes of two training images, five validation images, and a test split without labels."""
    shade = {"n01": 50, "n02": 120, "n03": 200}
    for label in WNIDS:
        (folder / "train" / label / "images").mkdir(parents=True)
        (folder / "train" / label / f"{label}_boxes.txt").write_text(f"{label}_0.JPEG\t0\t0\t63\t63\n")
        for number in range(2):
            path = folder / "train" / label / "images" / f"{label}_{number}.JPEG"
            Image.new("RGB", (64, 64), (shade[label],) * 3).save(path)
    (folder / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (folder / "words.txt").write_text("n01\tgoldfish\n")
    for split in ("val", "test"):
        (folder / split / "images").mkdir(parents=True)
        for number, label in enumerate(["n03", "n01", "n01", "n02", "n03"]):
            Image.new("RGB", (64, 64), (shade[label],) * 3).save(folder / split / "images" / f"{split}_{number}.JPEG")
    (folder / "val" / "val_annotations.txt").write_text(
        "".join(
            f"val_{number}.JPEG\t{label}\t0\t32\t44\t62\n"
            for number, label in enumerate(["n03", "n01", "n01", "n02", "n03"])
        )
    )


@pytest.mark.parametrize(
    "place", ["tiny_imagenet/tiny-imagenet-200", "tiny-imagenet-200", "tiny_imagenet"], ids=lambda place: place
)
def test_tiny_imagenet_is_read_in_its_own_layout_wherever_it_was_unpacked(tmp_path, place):
    write_tiny_imagenet(tmp_path / place)
    dataset = data.prepare("tiny_imagenet", tmp_path, 64)
    assert dataset.classes == ("n01", "n02", "n03")
    assert dataset.val is None  # its val split is the test split here
    images, labels = everything(dataset.train)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images[:, 32, 32, 0].tolist() == pytest.approx([50, 50, 120, 120, 200, 200], abs=2)
    images, labels = everything(dataset.test)
    assert labels.tolist() == [2, 0, 0, 1, 2]
    assert images[:, 32, 32, 0].tolist() == pytest.approx([200, 50, 50, 120, 200], abs=2)


def test_an_annotation_of_an_unknown_class_is_named(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(root)
    with (root / "val" / "val_annotations.txt").open("a") as file:
        file.write("val_0.JPEG\tn99\t0\t0\t63\t63\n")
    with pytest.raises(DataError) as caught:
        data.prepare("tiny_imagenet", tmp_path, 64)
    assert str(caught.value) == f"{root}/val/val_annotations.txt has classes that wnids.txt lacks: n99"


def test_a_missing_validation_image_is_named(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(root)
    (root / "val" / "images" / "val_2.JPEG").unlink()
    with pytest.raises(DataError) as caught:
        data.prepare("tiny_imagenet", tmp_path, 64)
    assert str(caught.value) == f"1 of 5 files are missing: {root}/val/images/val_2.JPEG"


def test_a_class_without_training_images_is_named(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(root)
    shutil.rmtree(root / "train" / "n02")
    with pytest.raises(DataError) as caught:
        data.prepare("tiny_imagenet", tmp_path, 64)
    assert str(caught.value) == f"{root} looks half-copied: no images in train/ for n02"


@pytest.mark.parametrize("missing", ["wnids.txt", "val/val_annotations.txt"])
def test_what_is_missing_of_tiny_imagenet_is_named(tmp_path, missing):
    root = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(root)
    (root / missing).unlink()
    with pytest.raises(DataError) as caught:
        data.prepare("tiny_imagenet", tmp_path, 64)
    assert str(caught.value) == f"{root} is not Tiny ImageNet as published: {missing} missing"


def test_annotations_that_are_cut_off_are_named(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(root)
    path = root / "val" / "val_annotations.txt"
    path.write_text(path.read_text()[: -len(".JPEG\tn03\t0\t32\t44\t62\n")])
    with pytest.raises(DataError, match="val_annotations.txt"):
        data.prepare("tiny_imagenet", tmp_path, 64)


@pytest.mark.parametrize("name", ["val/val_annotations.txt", "wnids.txt"])
def test_an_empty_list_of_tiny_imagenet_is_no_whole_copy(tmp_path, name):
    root = tmp_path / "tiny-imagenet-200"
    write_tiny_imagenet(root)
    (root / name).write_text("")
    with pytest.raises(DataError):
        data.prepare("tiny_imagenet", tmp_path, 64)


# Planning


def test_planning_a_data_set_that_is_not_here_downloads_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.utils.download_url", None)
    published = {"train": 50_000, "test": 10_000}
    assert data.split_sizes("cifar10", tmp_path, 32) == published
    (tmp_path / "cifar10").mkdir()
    assert data.split_sizes("cifar10", tmp_path, 32) == published


# Real images


def link_real(name, tmp_path):
    """The real images, linked into a data root beside which a cache may be written."""
    if not (SHARED_DATA / name).is_dir():
        pytest.skip(f"needs the real images under {SHARED_DATA / name}")
    (tmp_path / name).symlink_to(SHARED_DATA / name)


def test_the_real_slice_of_tiny_imagenet(tmp_path):
    link_real("tiny-imagenet-200", tmp_path)
    dataset = data.prepare("tiny_imagenet", tmp_path, 64)
    assert len(dataset.classes) == 10
    assert np.bincount(dataset.train.labels).tolist() == [100] * 10
    assert np.bincount(dataset.test.labels).tolist() == [50] * 10
    train, val = dataset.train_val(0)
    assert (len(train), len(val)) == (900, 100)
    # Some files are greyscale: three equal channels, and the very values of the file.
    images = everything(dataset.train)[0]
    paths = [
        path
        for label in dataset.classes
        for path in sorted((tmp_path / "tiny-imagenet-200/train" / label / "images").iterdir())
    ]
    grey = [index for index, path in enumerate(paths) if Image.open(path).mode == "L"]
    assert grey
    for index in grey:
        assert np.array_equal(images[index], np.stack([np.asarray(Image.open(paths[index]))] * 3, axis=2))
    for index in (0, 123, 999):
        assert np.array_equal(images[index], np.asarray(Image.open(paths[index]).convert("RGB")))


def test_the_real_slice_of_flowers_as_class_folders(tmp_path):
    link_real("flowers12", tmp_path)
    assert data.native_image_size("flowers12", tmp_path) == 224
    dataset = data.prepare("flowers12", tmp_path, 56)
    assert len(dataset.classes) == 12
    assert "sunflower" in dataset.classes
    assert np.bincount(dataset.train.labels).tolist() == [30] * 12
    assert np.bincount(dataset.test.labels).tolist() == [10] * 12


# Class folders under a known name


def write_class_folders(root, split, label, colour, count=2):
    (root / split / label).mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (32, 32), colour).save(root / split / label / f"{number}.png")


def test_class_folders_under_a_known_name_are_read_before_its_archive(tmp_path):
    write_cifar10(tmp_path / "cifar10")
    for split in ("train", "test"):
        write_class_folders(tmp_path / "cifar10", split, "cat", (1, 2, 3))
    dataset = data.prepare("cifar10", tmp_path, 32)
    assert dataset.classes == ("cat",)
    assert (everything(dataset.train)[0] == (1, 2, 3)).all()


def test_class_folders_are_read_before_the_archives_own_folder_elsewhere(tmp_path):
    write_tiny_imagenet(tmp_path / "tiny-imagenet-200")
    for split in ("train", "test"):
        write_class_folders(tmp_path / "tiny_imagenet", split, "cat", (1, 2, 3))
    assert data.prepare("tiny_imagenet", tmp_path, 32).classes == ("cat",)


def test_half_of_the_class_folders_under_a_known_name_start_no_download(tmp_path):
    write_class_folders(tmp_path / "svhn", "train", "7", (1, 2, 3))
    with pytest.raises(DataError) as caught:
        data.prepare("svhn", tmp_path, 32)
    assert f"{tmp_path / 'svhn' / 'test'} is missing" in str(caught.value)


def test_the_native_sizes_of_the_data_sets_of_section_3_1(tmp_path):
    sizes = {name: data.native_image_size(name, tmp_path) for name in DATASETS}
    assert sizes == {
        "digits": 16,
        "cifar10": 32,
        "cifar100": 32,
        "svhn": 32,
        "flowers102": 224,
        "tiny_imagenet": 64,
    }


# Downloads

DOWNLOADED = [name for name in DATASETS if name != "digits"]


@pytest.mark.parametrize("name", DOWNLOADED)
def test_without_a_network_the_message_names_what_was_looked_for_where_and_the_address(tmp_path, monkeypatch, name):
    def unreachable(url, *arguments, **options):
        raise URLError("[Errno -2] Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", unreachable)
    with pytest.raises(DataError) as caught:
        data.prepare(name, tmp_path, 32)
    message, row = str(caught.value), DATASETS[name]
    assert message.startswith(f"{name}: looked for ")
    assert "Name or service not known" in message
    assert row.archives[0].url in message
    root = tmp_path / name
    assert f"class folders {root}/train/CLASS/*.jpg and {root}/test/CLASS/*.jpg" in message
    for layout in row.layouts:
        assert " and ".join(str(root / path) for path in layout) in message
    for archive in row.archives:
        assert f"{root / archive.filename} (MD5 {archive.md5})" in message
    for alias in row.aliases:
        assert str(tmp_path / alias) in message
    assert not list(tmp_path.rglob("images.npy"))


ADDRESS = "https://example.org/cifar-10-python.tar.gz"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A small CIFAR-10 as an archive that lies ready for download. Returns the archive's path, images and labels."""
    web = tmp_path / "web"
    images, labels = write_cifar10(web)
    path = web / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(web / "cifar-10-batches-py", "cifar-10-batches-py")
    digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    archive = Archive(ADDRESS, digest, "cifar-10-batches-py")

    def copy(url, filename, *arguments):
        if url != ADDRESS or not path.exists():
            raise URLError(f"nothing at {url}")
        shutil.copy(path, filename)

    # What is below torchvision's own handling of a download, and its look at the checksum.
    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, *arguments, **options: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", copy)
    monkeypatch.setitem(DATASETS, "cifar10", dataclasses.replace(DATASETS["cifar10"], archives=(archive,)))
    return path, images, labels


def test_what_is_not_there_is_downloaded_and_unpacked_once(tmp_path, published):
    path, images, labels = published
    root = tmp_path / "data"
    dataset = data.prepare("cifar10", root, 32)
    assert np.array_equal(everything(dataset.train)[0], images[:20])
    assert everything(dataset.test)[1].tolist() == labels[20:]
    assert sorted(child.name for child in (root / "cifar10").iterdir()) == [
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    ]
    path.unlink()
    data.prepare("cifar10", root, 32)  # or it would say that the archive cannot be had


def test_an_archive_that_was_put_there_by_hand_is_unpacked_without_a_network(tmp_path, published):
    path, images, _ = published
    root = tmp_path / "data"
    (root / "cifar10").mkdir(parents=True)
    path.rename(root / "cifar10" / path.name)
    assert np.array_equal(everything(data.prepare("cifar10", root, 32).train)[0], images[:20])


def test_a_download_with_a_wrong_checksum_is_refused_and_the_right_one_taken_later(tmp_path, published):
    path, images, _ = published
    root, whole = tmp_path / "data", path.read_bytes()
    path.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(DataError) as caught:
        data.prepare("cifar10", root, 32)
    assert ADDRESS in str(caught.value)
    assert "corrupted" in str(caught.value)
    assert not (root / "cifar10" / "cifar-10-batches-py").exists()
    assert not list(root.rglob("images.npy"))
    path.write_bytes(whole)
    assert np.array_equal(everything(data.prepare("cifar10", root, 32).train)[0], images[:20])


@pytest.mark.parametrize(
    "end", [KeyboardInterrupt("stop"), OSError("no space left on device")], ids=["killed", "disk full"]
)
def test_an_unpacking_that_was_cut_short_leaves_nothing_and_the_next_attempt_succeeds(
    tmp_path, published, monkeypatch, end
):
    path, images, _ = published
    root = tmp_path / "data"

    def cut_short(archive, target):
        assert Path(archive).name == path.name
        half = Path(target) / "cifar-10-batches-py"
        half.mkdir()
        shutil.copy(path.parent / "cifar-10-batches-py" / "data_batch_1", half)
        raise end

    with monkeypatch.context() as patch:
        patch.setattr("torchvision.datasets.utils.extract_archive", cut_short)
        with pytest.raises(KeyboardInterrupt if isinstance(end, KeyboardInterrupt) else DataError, match=str(end)):
            data.prepare("cifar10", root, 32)
    assert [child.name for child in (root / "cifar10").iterdir()] == [path.name]
    path.unlink()  # the archive that is there is whole, and is not fetched again
    assert np.array_equal(everything(data.prepare("cifar10", root, 32).train)[0], images[:20])


def test_what_a_killed_process_left_of_its_unpacking_is_not_taken_for_the_data_set(tmp_path, published):
    _, images, _ = published
    root = tmp_path / "data"
    half = root / "cifar10" / ".unpacking-abc" / "cifar-10-batches-py"
    half.mkdir(parents=True)
    shutil.copy(tmp_path / "web" / "cifar-10-batches-py" / "data_batch_1", half)
    assert np.array_equal(everything(data.prepare("cifar10", root, 32).train)[0], images[:20])


@pytest.fixture
def published_svhn(tmp_path, monkeypatch):
    """A small SVHN, whose two files are the data set as they are, ready for download. Returns their folder, the images
    of both splits, and what was fetched, by name."""
    web, fetched = tmp_path / "web", []
    images, _ = write_svhn(web)
    archives = tuple(
        Archive(f"https://example.org/{path.name}", hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest())
        for path in (web / "train_32x32.mat", web / "test_32x32.mat")
    )

    def copy(url, filename, *arguments):
        fetched.append(url.rpartition("/")[2])
        shutil.copy(web / fetched[-1], filename)

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, *arguments, **options: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", copy)
    monkeypatch.setitem(DATASETS, "svhn", dataclasses.replace(DATASETS["svhn"], archives=archives))
    return web, images, fetched


def test_a_single_file_with_a_wrong_checksum_is_refused_every_time_until_it_is_right(tmp_path, published_svhn):
    web, images, _ = published_svhn
    root, whole = tmp_path / "data", (web / "test_32x32.mat").read_bytes()
    # A file that could be read, with other pixels than those that were published.
    savemat(web / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 3), np.uint8), "y": np.ones((3, 1), np.uint8)})
    for _ in range(2):
        with pytest.raises(DataError, match=r"test_32x32.mat could not be downloaded \(it is corrupted: its MD5 is"):
            data.prepare("svhn", root, 32)
        assert [child.name for child in (root / "svhn").iterdir()] == ["train_32x32.mat"]
    (web / "test_32x32.mat").write_bytes(whole)
    assert np.array_equal(everything(data.prepare("svhn", root, 32).test)[0], images[5:])


@pytest.mark.parametrize(
    "end",
    [KeyboardInterrupt("stop"), OSError("no space left on device"), IncompleteRead(b"half")],
    ids=["killed", "disk full", "cut off"],
)
@pytest.mark.parametrize("name", ["train_32x32.mat", "test_32x32.mat"])
def test_a_single_file_whose_download_was_cut_short_is_fetched_again(tmp_path, published_svhn, monkeypatch, name, end):
    web, images, fetched = published_svhn
    root = tmp_path / "data"

    def cut_short(url, filename, *arguments):
        content = (web / url.rpartition("/")[2]).read_bytes()
        Path(filename).write_bytes(content if not url.endswith(name) else content[: len(content) // 2])
        if url.endswith(name):
            raise end

    with monkeypatch.context() as patch:
        patch.setattr("torchvision.datasets.utils._urlretrieve", cut_short)
        with pytest.raises(KeyboardInterrupt if isinstance(end, KeyboardInterrupt) else DataError):
            data.prepare("svhn", root, 32)
    dataset = data.prepare("svhn", root, 32)
    assert np.array_equal(everything(dataset.train)[0], images[:5])
    assert np.array_equal(everything(dataset.test)[0], images[5:])
    # What came before it was whole and is not fetched again.
    names = ["train_32x32.mat", "test_32x32.mat"]
    assert fetched == names[names.index(name) :]


def test_what_a_killed_process_left_of_a_download_is_not_taken_for_the_file(tmp_path, published_svhn):
    web, images, _ = published_svhn
    root = tmp_path / "data"
    (root / "svhn").mkdir(parents=True)
    for path in web.iterdir():
        (root / "svhn" / f"{path.name}.part").write_bytes(path.read_bytes()[:-100])
    assert np.array_equal(everything(data.prepare("svhn", root, 32).test)[0], images[5:])
    assert sorted(child.name for child in (root / "svhn").iterdir()) == ["test_32x32.mat", "train_32x32.mat"]


def test_two_sizes_that_are_prepared_at_once_are_downloaded_once(tmp_path, published_svhn):
    *_, fetched = published_svhn
    with ThreadPoolExecutor(2) as pool:
        datasets = list(pool.map(lambda size: data.prepare("svhn", tmp_path / "data", size), (32, 16)))
    assert [dataset.image_size for dataset in datasets] == [32, 16]
    assert fetched == ["train_32x32.mat", "test_32x32.mat"]


# Two processes


def prepare_and_count(root, barrier, log):
    """Runs in a process of its own: prepares the data set, and notes in `log` when it decodes or reads the source."""
    for module, name in ((data, "_write_cache"), (data, "read_source")):
        original = getattr(module, name)

        def noted(*arguments, name=name, original=original):
            with log.open("a") as file:
                file.write(f"{name}\n")
            return original(*arguments)

        setattr(module, name, noted)
    barrier.wait(timeout=120)
    assert len(data.prepare("cifar10", root, 32).train) == 20


def test_two_processes_that_prepare_the_same_data_set_at_once_decode_it_once(tmp_path):
    write_cifar10(tmp_path / "cifar10")
    context = multiprocessing.get_context("spawn")
    barrier, log = context.Barrier(2), tmp_path / "log"
    processes = [context.Process(target=prepare_and_count, args=(tmp_path, barrier, log)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(log.read_text().split()) == ["_write_cache", "read_source", "read_source"]
    assert len(list(tmp_path.rglob("images.npy"))) == 1


# Helpers


@pytest.mark.parametrize("size", [7, 20])
def test_every_prefix_of_interleaved_classes_holds_them_in_their_proportions(size):
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    order = sources.interleaved_classes(labels, np.random.default_rng(0))
    assert sorted(order.tolist()) == list(range(100))
    counts = np.bincount(labels[order[:size]], minlength=3)
    assert np.abs(counts - size * np.array([0.5, 0.3, 0.2])).max() < 1


def test_long_lists_of_names_are_shortened():
    assert sources.shorten([str(number) for number in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert sources.shorten([str(number) for number in range(13)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more"


def test_a_download_is_said_and_one_that_stalls_ends_in_an_error_that_names_it(tmp_path, monkeypatch, caplog):
    monkeypatch.undo()  # the server is this test's own
    monkeypatch.setattr(sources, "SILENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/images.mat"
        row = dataclasses.replace(DATASETS["svhn"], archives=(Archive(url, "0" * 32),))
        monkeypatch.setitem(DATASETS, "svhn", row)
        with pytest.raises(DataError, match=f"svhn: .*{url} could not be downloaded .*timed out"):
            data.prepare("svhn", tmp_path, 32)
    assert f"downloading {url} to {tmp_path}/svhn" in caplog.text
    assert socket.getdefaulttimeout() is None
