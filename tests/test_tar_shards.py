"""Image data as tar shards in WebDataset's layout, ImageNet's splits in each layout, and what is wrong with shards."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from relvit import data
from relvit.sources import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def write_tar(path, members):
    """members: pairs of a name and the bytes of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for name, payload in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(payload)
            shard.addfile(entry, io.BytesIO(payload))


def pairs(numbers, label=lambda number: str(number % 3)):
    for number in numbers:
        yield f"{number:04}.png", png(IMAGES[number])
        yield f"{number:04}.cls", label(number).encode()


def write_shards(folder):
    write_tar(folder / "train-000000.tar", pairs(range(5)))
    write_tar(folder / "train-000001.tar", [*pairs(range(5, 9)), ("._0005.png", b"?"), ("0005.json", b"{}")])
    write_tar(folder / "test-000000.tar", pairs(range(9, 12)))


def test_images_and_labels_are_those_of_the_shards_in_their_order(tmp_path):
    write_shards(tmp_path / "pets")
    pets = data.prepare("pets", tmp_path, 8)
    assert pets.classes == ("0", "1", "2")
    for split, numbers in ((pets.train, np.arange(9)), (pets.test, np.arange(9, 12))):
        images, labels = split.read(np.arange(len(split)))
        assert np.array_equal(images, IMAGES[numbers])
        assert labels.tolist() == (numbers % 3).tolist()
    assert data.native_image_size("pets", tmp_path) == 8


def test_ten_classes_are_ordered_as_numbers_and_others_as_names(tmp_path):
    for name, label in (("numbers", str), ("names", lambda number: f"class {number}")):
        write_tar(tmp_path / name / "train.tar", pairs(range(12), label))
        write_tar(tmp_path / name / "test.tar", pairs(range(12), label))
    assert data.prepare("numbers", tmp_path, 8).classes == tuple(map(str, range(12)))
    assert data.prepare("names", tmp_path, 8).classes[:3] == ("class 0", "class 1", "class 10")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([("a.png", b"")], "train-000000.tar lacks a.cls"),
        ([("a.cls", b"0")], "train-000000.tar lacks a.jpg"),
        ([("a.png", b""), ("a.cls", b"\n")], "train-000000.tar lacks a.cls, or they are empty"),
        ([("a.png", b""), ("a.jpg", b""), ("a.cls", b"0")], "train-000000.tar has two images of one key: a.png and a"),
        ([("a.png", b""), ("a.cls", b"\xff")], "train-000000.tar cannot be read as a tar shard: 'utf-8' codec"),
        ([("a.png", b"nothing"), ("a.cls", b"0")], "train-000000.tar a.png cannot be read as an image"),
    ],
)
def test_what_is_wrong_with_a_shard_is_named(tmp_path, members, said):
    write_shards(tmp_path / "pets")
    write_tar(tmp_path / "pets" / "train-000000.tar", members)
    with pytest.raises(DataError, match=said):
        data.prepare("pets", tmp_path, 8)


def test_a_class_of_test_that_train_lacks_is_named(tmp_path):
    write_shards(tmp_path / "pets")
    write_tar(tmp_path / "pets" / "test-000000.tar", pairs([9, 11], lambda number: str(number - 9)))
    write_tar(tmp_path / "pets" / "train-000000.tar", pairs([0]))
    write_tar(tmp_path / "pets" / "train-000001.tar", pairs([3, 4]))
    with pytest.raises(DataError, match=r"test-000000.tar 0011.png: its class '2' is none of the 2 of train-\*.tar"):
        data.prepare("pets", tmp_path, 8)


@pytest.mark.parametrize("length", [0, 700, 1600])
def test_a_shard_that_is_cut_off_is_named(tmp_path, length):
    write_shards(tmp_path / "pets")
    shard = tmp_path / "pets" / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:length])
    with pytest.raises(DataError, match=r"train-000000\.tar (cannot be read|lacks)"):
        data.prepare("pets", tmp_path, 8)


def test_without_a_test_split_is_a_half_copied_data_set(tmp_path):
    write_tar(tmp_path / "pets" / "train-000000.tar", pairs(range(5)))
    with pytest.raises(DataError, match=r"pets looks half-copied: it lacks test-\*\.tar"):
        data.prepare("pets", tmp_path, 8)


# ImageNet's labels of test are not public: some copies leave the split out, some mark each label as -1.


def write_imagenet_folders(root):
    for split, numbers in (("train", range(9)), ("val", range(9, 12))):
        for number in numbers:
            folder = root / split / f"n0{number % 3}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.png").write_bytes(png(IMAGES[number]))


def write_imagenet_tar(root):
    for split, numbers in (("train", range(9)), ("val", range(9, 12))):
        write_tar(root / f"{split}-00.tar", pairs(sorted(numbers, key=lambda number: number % 3)))
    write_tar(root / "test-00.tar", pairs(range(4), lambda number: "-1"))


def write_imagenet_parquet(root):
    root.mkdir(parents=True)
    hidden = [-1] * 4
    for split, numbers in (("train", range(9)), ("validation", range(9, 12)), ("test", range(4))):
        numbers = sorted(numbers, key=lambda number: number % 3)
        labels = hidden if split == "test" else [number % 3 for number in numbers]
        images = [png(IMAGES[number]) for number in numbers]
        pq.write_table(pa.table({"image": images, "label": labels}), root / f"{split}-0.parquet")


@pytest.mark.parametrize("write", [write_imagenet_folders, write_imagenet_tar, write_imagenet_parquet])
def test_where_the_labels_of_test_are_not_public_val_is_test_and_that_is_said(tmp_path, write, caplog):
    write(tmp_path / "imagenet")
    found = data.prepare("imagenet", tmp_path, 8)
    assert found.val is None
    images, labels = found.test.read(np.arange(3))
    assert np.array_equal(images, IMAGES[9:12])
    assert labels.tolist() == [0, 1, 2]
    assert len(found.train) == 9
    assert "has no test split with labels: its val split is test here" in caplog.text
