"""Image data as Parquet, in the layout in which data sets are commonly published, and what is wrong with such files."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from relvit import data
from relvit.sources import DataError

SHARED_PARQUET = Path(__file__).resolve().parents[2] / "shared" / "data" / "cifar10-parquet"
CLASSES = ["cat", "dog"]


def noise(count, side=8, seed=0):
    """uint8 [count, side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def with_paths(payloads):
    return [{"bytes": payload, "path": f"{number}.png"} for number, payload in enumerate(payloads)]


def write(path, columns, features=None, row_group_size=None):
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


NAMED = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": CLASSES}}
TRAIN, TEST = "train-00000-of-00001.parquet", "test-00000-of-00001.parquet"


def write_pets(folder, train=None, test=None):
    """20 training and 4 test images of noise, label 1 for every third. What is given replaces columns."""
    images, labels = noise(24), [int(n % 3 == 0) for n in range(24)]
    parts = {TRAIN: (slice(0, 20), train), TEST: (slice(20, 24), test)}
    for name, (part, other) in parts.items():
        columns = {"image": with_paths(map(png, images[part])), "label": labels[part]} | (other or {})
        write(folder / name, columns, NAMED, row_group_size=7)
    return images, labels


def everything(split):
    return split.read(np.arange(len(split)))


def test_images_labels_and_class_names_are_those_of_the_files(tmp_path):
    images, labels = write_pets(tmp_path / "pets")
    pets = data.prepare("pets", tmp_path, 8)
    assert pets.classes == ("cat", "dog")
    assert pets.val is None
    for split, part in ((pets.train, slice(0, 20)), (pets.test, slice(20, 24))):
        found, classes = everything(split)
        assert np.array_equal(found, images[part])
        assert classes.tolist() == labels[part]


def test_a_column_of_bytes_and_one_of_class_names_need_no_metadata(tmp_path):
    images = noise(6)
    names = ["dog", "cat", "dog", "eel", "cat", "dog"]
    payloads = [png(image) for image in images]
    write(tmp_path / "pets/train-00000-of-00001.parquet", {"id": list(range(6)), "picture": payloads, "label": names})
    write(tmp_path / "pets/test.parquet", {"id": [0, 1], "picture": payloads[:2], "label": names[:2]})
    pets = data.prepare("pets", tmp_path, 8)
    assert pets.classes == ("cat", "dog", "eel")
    assert everything(pets.train)[1].tolist() == [1, 0, 1, 2, 0, 1]
    assert np.array_equal(everything(pets.train)[0], images)


def test_integer_labels_without_names_are_numbered_in_their_order(tmp_path):
    payloads = [png(image) for image in noise(4)]
    write(tmp_path / "pets" / TRAIN, {"img": payloads, "label": [3, 1, 2, 3]})
    write(tmp_path / "pets" / TEST, {"img": payloads[:1], "label": [2]})
    pets = data.prepare("pets", tmp_path, 8)
    assert pets.classes == ("1", "2", "3")
    assert everything(pets.train)[1].tolist() == [2, 0, 1, 2]


def test_the_fine_labels_are_meant_where_there_are_coarse_ones_too(tmp_path):
    payloads = [png(image) for image in noise(2)]
    for name in (TRAIN, TEST):
        write(tmp_path / "pets" / name, {"img": payloads, "coarse_label": [0, 0], "fine_label": [0, 1]})
    assert len(data.prepare("pets", tmp_path, 8).classes) == 2


def test_several_files_of_a_split_follow_one_another_and_a_validation_split_is_kept(tmp_path):
    images = noise(10)
    for number, part in enumerate(np.split(np.arange(10), [3, 6])):
        columns = {"image": [png(images[n]) for n in part], "label": [int(n % 2) for n in part]}
        write(tmp_path / "pets/data" / f"train-{number:05d}-of-00003.parquet", columns)
    rest = {"image": [png(image) for image in images[:2]], "label": [0, 1]}
    write(tmp_path / "pets/data/validation-00000-of-00001.parquet", rest)
    write(tmp_path / "pets/data" / TEST, rest)
    pets = data.prepare("pets", tmp_path, 8)
    assert np.array_equal(everything(pets.train)[0], images)
    assert len(pets.val) == 2
    assert data.split_sizes("pets", tmp_path, 99) == {"train": 10, "val": 2, "test": 2}


def test_the_name_of_a_known_data_set_is_read_from_parquet_too(tmp_path):
    images, labels = write_pets(tmp_path / "cifar10")
    found = data.prepare("cifar10", tmp_path, 8)
    assert found.classes == ("cat", "dog")
    assert np.array_equal(everything(found.test)[0], images[20:])


def test_the_native_size_is_that_of_the_first_image(tmp_path):
    write_pets(tmp_path / "pets")
    assert data.native_image_size("pets", tmp_path) == 8


def test_a_file_that_has_changed_is_decoded_anew(tmp_path):
    write_pets(tmp_path / "pets")
    data.prepare("pets", tmp_path, 8)
    other = noise(20, seed=1)
    write_pets(tmp_path / "pets", train={"image": with_paths(map(png, other))})
    assert np.array_equal(everything(data.prepare("pets", tmp_path, 8).train)[0], other)


# What is wrong with them


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0]}, r"no column of images \(.*\); it has label \(int64\)"),
        ({"image": [b"x"], "size": [1.5]}, r"no column of labels \(.*\); it has image \(binary\), size \(double\)"),
        ({"a": [b"x"], "b": [b"y"], "label": [0]}, r"no column of images \(.*\); it has a \(binary\), b \(binary\)"),
    ],
)
def test_without_an_image_or_a_label_column_the_columns_that_there_are_are_named(tmp_path, columns, message):
    for name in (TRAIN, TEST):
        write(tmp_path / "pets" / name, columns)
    with pytest.raises(DataError, match=rf"{TRAIN} has {message}"):
        data.prepare("pets", tmp_path, 8)


def test_a_file_that_lacks_the_columns_of_the_first_is_named(tmp_path):
    write_pets(tmp_path / "pets")
    write(tmp_path / "pets" / TEST, {"img": [png(noise(1)[0])], "label": [0]})
    with pytest.raises(DataError, match=rf"{TEST} lacks the column image that {TRAIN} has; it has img, label"):
        data.prepare("pets", tmp_path, 8)


@pytest.mark.parametrize("payload", [b"no image", png(noise(1)[0])[:60], b""])
def test_an_image_that_cannot_be_decoded_is_named_by_file_and_row(tmp_path, payload):
    pictures = with_paths([png(image) for image in noise(4)[:3]] + [payload])
    write_pets(tmp_path / "pets", test={"image": pictures})
    with pytest.raises(DataError, match=rf"{TEST} row 3 cannot be read as an image"):
        data.prepare("pets", tmp_path, 8)
    assert not list((tmp_path / ".relvit-cache").glob("pets-8*"))


def test_a_row_that_only_names_a_file_elsewhere_is_named(tmp_path):
    pictures = with_paths([png(noise(1)[0]), None, png(noise(1)[0]), png(noise(1)[0])])
    write_pets(tmp_path / "pets", test={"image": pictures})
    with pytest.raises(DataError, match=rf"{TEST} row 1 holds no image"):
        data.prepare("pets", tmp_path, 8)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (2, "row 1: label 2 is none of the 2 classes named in the metadata"),
        (-1, "row 1: label -1 is none of the 2 classes named in the metadata"),
        (None, "row 1 has no label"),
    ],
)
def test_a_label_out_of_range_is_named_by_file_and_row(tmp_path, label, message):
    write_pets(tmp_path / "pets", test={"label": [0, label, 1, 0]})
    with pytest.raises(DataError, match=f"{TEST} {message}"):
        data.prepare("pets", tmp_path, 8)


def test_a_class_that_only_the_test_split_has_is_named(tmp_path):
    payloads = [png(image) for image in noise(2)]
    write(tmp_path / "pets" / TRAIN, {"image": payloads, "label": ["cat", "dog"]})
    write(tmp_path / "pets" / TEST, {"image": payloads, "label": ["cat", "eel"]})
    with pytest.raises(DataError, match=f"{TEST} row 1: label 'eel' is none of the 2 classes of train"):
        data.prepare("pets", tmp_path, 8)


def test_a_missing_split_is_named(tmp_path):
    write_pets(tmp_path / "pets")
    (tmp_path / "pets" / TEST).unlink()
    with pytest.raises(DataError, match=r"looks half-copied: it lacks test-\*.parquet"):
        data.prepare("pets", tmp_path, 8)


def test_missing_files_of_a_split_are_counted(tmp_path):
    write_pets(tmp_path / "pets")
    (tmp_path / "pets" / TRAIN).rename(tmp_path / "pets/train-00002-of-00005.parquet")
    with pytest.raises(DataError, match="it lacks 4 of the 5 files like train-00002-of-00005.parquet"):
        data.prepare("pets", tmp_path, 8)


@pytest.mark.parametrize("metadata", ["no JSON", "[]"])
def test_metadata_that_cannot_be_read_are_named(tmp_path, metadata):
    write_pets(tmp_path / "pets")
    table = pq.read_table(tmp_path / "pets" / TRAIN).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "pets" / TRAIN)
    with pytest.raises(DataError, match=f"{TRAIN}: its metadata 'huggingface' cannot be read"):
        data.prepare("pets", tmp_path, 8)


def test_bytes_that_are_no_parquet_are_named(tmp_path):
    write_pets(tmp_path / "pets")
    (tmp_path / "pets" / TEST).write_bytes(b"PAR1 and nothing more")
    with pytest.raises(DataError, match=f"{TEST} cannot be read as Parquet"):
        data.prepare("pets", tmp_path, 8)


def test_two_folders_of_parquet_files_are_one_too_many(tmp_path):
    for folder in ("plain", "augmented"):
        write_pets(tmp_path / "pets" / folder)
    with pytest.raises(DataError, match="holds Parquet files in augmented, plain: keep one of them"):
        data.prepare("pets", tmp_path, 8)


def test_the_real_cifar10_is_the_same_from_parquet_and_from_class_folders(tmp_path):
    """Whole test split, class by class: the folders are written here from the very bytes in the Parquet file."""
    if not SHARED_PARQUET.is_dir():
        pytest.skip(f"needs CIFAR-10 as Parquet under {SHARED_PARQUET}")
    for split in ("train", "test"):  # a tenth of the training images is enough
        table = pq.read_table(SHARED_PARQUET / f"{split}-00000-of-00001.parquet").slice(
            0, 5000 if split == "train" else None
        )
        (tmp_path / "packed").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "packed" / f"{split}-00000-of-00001.parquet")
        names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        for number, row in enumerate(table.to_pylist()):
            folder = tmp_path / "folders" / split / names[row["label"]]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:05d}.jpg").write_bytes(row["img"]["bytes"])
    packed, folders = (data.prepare(name, tmp_path, 32) for name in ("packed", "folders"))
    shutil.rmtree(tmp_path / "folders")
    assert packed.classes == folders.classes
    for split in ("train", "test"):
        images, labels = everything(getattr(packed, split))
        in_order = np.argsort(labels, kind="stable")  # class by class, as folders are read
        expected, classes = everything(getattr(folders, split))
        assert np.array_equal(labels[in_order], classes)
        assert np.array_equal(images[in_order], expected)
    assert packed.mean == folders.mean
    assert packed.std == folders.std
