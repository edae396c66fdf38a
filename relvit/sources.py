"""Where the images of each data set are, before they are decoded: archives in their own formats, or class folders.

One row of DATASETS is all that is known of a data set by name. Under the name of any data set, known or not, a folder
`DATA_ROOT/NAME` with `train/CLASS/*.jpg` and `test/CLASS/*.jpg` (and, if there, `val/CLASS/*.jpg`) is read first, after
it one with `train-*.parquet` and `test-*.parquet` (and, if there, `validation-*.parquet`), and after that one with
`train-*.tar` and so on, in which KEY.jpg and KEY.cls lie side by side. Where the labels of the test split are not
public, as ImageNet's, and val is there, val is test.
"""

import hashlib
import io
import json
import logging
import os
import pickle
import re
import shutil
import socket
import tarfile
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from relvit.messages import unknown

if TYPE_CHECKING:
    import pyarrow

logger = logging.getLogger(__name__)

SILENCE = 60.0  # seconds without a byte after which a download has failed

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
# What systems leave among folders; hidden ones aside, which are no classes either.
SYSTEM_FOLDERS = {"__MACOSX", "__pycache__", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
LISTED = 10  # how many offending names a message holds


class DataError(ValueError):
    """What is wrong with a data set on disk, and what would be right. Nothing was changed."""


class Encoded(NamedTuple):
    """The bytes of an image file that lies inside another file; None where they are missing there.

    place: which file and row, as a message names it.
    """

    payload: bytes | None
    place: str

    def __str__(self) -> str:
        return self.place


class Slice(NamedTuple):
    """A part of a file that is an image file: where it begins, its length in bytes, and its name there."""

    path: str
    start: int
    length: int
    name: str

    def read(self) -> bytes:
        """The part. Raises DataError where the file no longer has it."""
        try:
            with Path(self.path).open("rb", buffering=0) as file:
                payload = os.pread(file.fileno(), self.length, self.start)
        except OSError as error:
            raise DataError(f"{self} cannot be read: {error.strerror}") from error
        if len(payload) < self.length:
            raise DataError(f"{self} cannot be read: the file is shorter than when it was listed")
        return payload

    def __str__(self) -> str:
        return f"{self.path} {self.name}"


Image = str | Path | Encoded | Slice | np.ndarray


@dataclass(frozen=True)
class Source:
    """The images of a data set, before they are decoded.

    splits: for each of train, val (may be missing) and test the images, as files or uint8 arrays, and labels. Images
    are read in their order.
    fingerprint: changes when the images may have; notes: what a person should know of the copy, a sentence each.
    """

    classes: list[str]
    splits: Mapping[str, tuple[Collection[Image], list[int]]]
    fingerprint: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Archive:
    """A file to download: where from, its MD5 sum, and the folder that it unpacks to, "" for a file used as it is."""

    url: str
    md5: str
    folder: str = ""

    @property
    def filename(self) -> str:
        """The name under which it is kept."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class DatasetRow:
    """What is known of a data set by name.

    image_size: its side in pixels; read: from the data set's folder to its source; counts: images of each split as
    published, for planning before a download; layouts: each a set of
    paths that the folder may hold, one of which it must; archives: what is downloaded into it otherwise; aliases: other
    names that the folder may have in DATA_ROOT; md5: of unpacked files, by path.
    """

    image_size: int
    read: Callable[[Path], Source]
    counts: Mapping[str, int]
    layouts: tuple[tuple[str, ...], ...] = ((),)
    archives: tuple[Archive, ...] = ()
    aliases: tuple[str, ...] = ()
    md5: Mapping[str, str] = field(default_factory=dict)


class DatasetNotDownloaded(DataError):
    """A data set would have to be downloaded first."""


def read_source(name: str, data_root: Path, download: bool = True) -> Source:
    """The source of a data set, downloaded if need be. Raises DataError where it is missing, incomplete or corrupt, and
    DatasetNotDownloaded where it would have to be downloaded and must not be."""
    try:
        source = _read_source(name, data_root, download)
    except OSError as error:
        path = Path(error.filename or data_root / name)
        wrong = f"cannot be read: {error.strerror or error}"
        if isinstance(error, FileNotFoundError):
            wrong = "is a link that leads nowhere" if path.is_symlink() else "is missing"
        raise DataError(f"{path} {wrong}") from error
    empty = [split for split, (_, labels) in source.splits.items() if not labels]
    if empty:
        raise DataError(f"{data_root / name}: no images of {' and '.join(empty)}; the copy is not complete")
    return source


def _read_source(name: str, data_root: Path, download: bool) -> Source:
    root = data_root / name
    row = DATASETS.get(name)
    found = row is not None and any(all((root / path).exists() for path in layout) for layout in row.layouts)
    if has_class_folders(name, root):
        return _read_class_folders(name, root)
    for suffix, read in (("parquet", _read_parquet), ("tar", _read_tar)):
        if folder := _packed_folder(root, suffix):
            return _without_hidden_labels(folder, read(folder))
    if row is None:
        return _read_class_folders(name, root)  # which says what is missing
    for alias in row.aliases:
        if (data_root / alias).is_dir():
            return _read_published(row, data_root / alias)
    if not found:
        if (root / "train").is_dir() != (root / "test").is_dir():
            return _read_class_folders(name, root)  # which says what is missing
        if not download:
            raise DatasetNotDownloaded(f"{name}: looked for {_layouts(row, root)}, found none")
        _download(name, row, root)
    return _read_published(row, root)


def _read_published(row: DatasetRow, root: Path) -> Source:
    """The data set in its own format. A file whose MD5 is not the published one is used all the same, and named."""
    source = row.read(root)
    known = {**{archive.filename: archive.md5 for archive in row.archives if not archive.folder}, **row.md5}
    others = [path for path, md5 in known.items() if (root / path).exists() and _md5(root / path) != md5]
    if others:
        note = f"{root}: {shorten(others)} have another MD5 than what was published, and are used as they are"
        source = replace(source, notes=(*source.notes, note))
    return source


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def has_class_folders(name: str, root: Path) -> bool:
    """Whether a data set's folder is to be read as class folders. Tiny ImageNet has a train/ and a test/ of its own."""
    own = ("wnids.txt", "val/val_annotations.txt") if name == "tiny_imagenet" else ()
    own_layout = any((root / path).exists() for path in own)
    return (root / "train").is_dir() and any((root / split).is_dir() for split in ("test", "val")) and not own_layout


# Downloads


def _download(name: str, row: DatasetRow, root: Path) -> None:
    """Fetch and unpack what is missing. What is there and whole is kept; nothing half-done is ever taken for whole."""
    from torchvision.datasets.utils import calculate_md5, check_integrity, download_url, extract_archive

    for archive in row.archives:
        path = root / archive.filename
        # The final name says that a file is whole: `read_source` asks for no more than that it is there.
        partial = root / f"{archive.filename}.part"
        try:
            if not check_integrity(path, archive.md5):
                partial.unlink(missing_ok=True)  # a kill's; torchvision would take it for what it is to fetch
                logger.warning("downloading %s to %s", archive.url, root)
                with _silence_ends():
                    download_url(archive.url, root, partial.name)  # shows its progress
                if (found := calculate_md5(partial)) != archive.md5:
                    raise RuntimeError(f"it is corrupted: its MD5 is {found}, not {archive.md5}")
                partial.rename(path)
            if archive.folder:
                # Unpacked beside its place and moved there as a whole, so that a kill leaves nothing half-unpacked.
                with tempfile.TemporaryDirectory(dir=root, prefix=".unpacking-") as scratch:
                    extract_archive(str(path), scratch)
                    shutil.rmtree(root / archive.folder, ignore_errors=True)
                    (Path(scratch) / archive.folder).rename(root / archive.folder)
        except (OSError, RuntimeError, HTTPException) as error:
            raise DataError(
                f"{name}: looked for {_layouts(row, root)}, found none, and {archive.url} could not be downloaded "
                f"({error}); put one of them there"
            ) from error
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def _silence_ends() -> Iterator[None]:
    """A connection that is opened in the block and says nothing for `SILENCE` seconds ends in a TimeoutError."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _layouts(row: DatasetRow, root: Path) -> str:
    places = [f"class folders {root}/train/CLASS/*.jpg and {root}/test/CLASS/*.jpg"]
    places += [f"{root}/train-*.{suffix} and {root}/test-*.{suffix}" for suffix in ("parquet", "tar")]
    places += [f"{root.parent / alias}/" for alias in row.aliases]
    places += [" and ".join(str(root / path) for path in layout) for layout in row.layouts]
    places += [" and ".join(f"{root / archive.filename} (MD5 {archive.md5})" for archive in row.archives)]
    return ", ".join(places[:-1]) + f" or {places[-1]}"


# Formats


def _read_digits(root: Path) -> Source:
    """scikit-learn's copy of the UCI digits: 1,797 scans of 8 x 8, of which a fixed fifth of each class is test."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    scans = (digits.images * (255 / 16)).round().astype(np.uint8)
    order = interleaved_classes(digits.target, np.random.default_rng(0))
    tests = round(len(order) / 5)
    parts = {"train": np.sort(order[tests:]), "test": np.sort(order[:tests])}
    splits = {
        name: ([np.repeat(scans[i][:, :, None], 3, axis=2) for i in index], digits.target[index].tolist())
        for name, index in parts.items()
    }
    return Source([str(digit) for digit in range(10)], splits, "scikit-learn")


def interleaved_classes(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All indices in an order of which every prefix holds the classes in their proportions, as far as it can."""
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(position, kind="stable")


def _read_cifar(
    folder: str, batches: dict[str, list[str]], labels: str, meta: str, names: str
) -> Callable[[Path], Source]:
    """Krizhevsky's pickled batches: rows of 3,072 bytes, the red, green and blue planes of 32 x 32 pixels."""

    def read(root: Path) -> Source:
        base = root / folder
        splits = {}
        classes = _class_names(base / meta, _unpickle(base / meta, names)[names])
        for split, files in batches.items():
            parts = [_cifar_batch(base / name, labels, len(classes)) for name in files]
            images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            splits[split] = (list(images), [label for _, batch_labels in parts for label in batch_labels])
        paths = [base / name for files in batches.values() for name in files]
        return Source(classes, splits, fingerprint(base, paths))

    return read


def _class_names(path: Path, names: Any) -> list[str]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path} is not a batch of CIFAR images: it does not list the names of classes")
    return names


def _cifar_batch(path: Path, labels: str, classes: int) -> tuple[np.ndarray, list[int]]:
    """Pixels uint8 [n, 3072] and labels of one file."""
    content = _unpickle(path, "data", labels)
    try:
        pixels, numbers = np.asarray(content["data"]), np.asarray(content[labels])
    except ValueError as error:  # rows of unequal length
        raise DataError(f"{path} is not a batch of CIFAR images: {error}") from error
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise DataError(f"{path} is not a batch of CIFAR images: data is {pixels.dtype} {list(pixels.shape)}")
    if numbers.shape != (len(pixels),):
        raise DataError(f"{path} is not a batch of CIFAR images: {len(pixels)} images and {numbers.size} labels")
    if not np.issubdtype(numbers.dtype, np.integer) or not ((numbers >= 0) & (numbers < classes)).all():
        raise DataError(f"{path} is not a batch of CIFAR images: labels beyond its {classes} classes")
    return pixels, numbers.tolist()


def _refused(what: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"it asks for {what}, and only numbers, text and numpy's arrays are read from it")


class _PickledType:
    """A pickled dtype of plain numbers or characters."""

    def __init__(self, code: str, *_: Any):
        self.dtype = np.dtype(str(code))
        if self.dtype.hasobject:
            raise _refused("objects in an array")

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _PickledArray:
    """A pickled array, put together by us: numpy's own way of it would trust sizes and flags that the file gives."""

    def __init__(self, *_: Any):
        self.array = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, payload = state
        payload = payload.encode("latin1") if isinstance(payload, str) else payload  # Python 2's bytes
        self.array = np.frombuffer(payload, kind.dtype).reshape(shape, order="F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array


def _pickled_buffer(payload: bytes, kind: _PickledType, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    return np.frombuffer(payload, kind.dtype).reshape(shape, order=order)


class _Arrays(pickle.Unpickler):
    """Reads dicts, lists, numbers, text, bytes and numpy's arrays. Whatever else a pickle asks for, which might be any
    function, is refused before it is looked up."""

    _KNOWN = {
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledType,
        ("multiarray", "_reconstruct"): _PickledArray,
        ("numeric", "_frombuffer"): _pickled_buffer,
        # How later Pythons write bytes for Python 2.
        ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
        ("__builtin__", "bytes"): bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        room = module.removeprefix("numpy._core.").removeprefix("numpy.core.")
        try:
            return self._KNOWN[room, name]
        except KeyError:
            raise _refused(f"{module}.{name}") from None


def _unpickle(path: Path, *keys: str) -> dict[str, Any]:
    """A pickled dict that has these keys. Nothing in the file can run code."""
    payload = path.read_bytes()
    try:
        content = _Arrays(io.BytesIO(payload), encoding="latin1").load()
    except Exception as error:  # bytes that are no pickle may raise anything
        raise DataError(f"{path} is not a batch of CIFAR images: {type(error).__name__}: {error}") from error
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise DataError(f"{path} is not a batch of CIFAR images: it lacks {', '.join(missing)}")
    return content


def _read_svhn(root: Path) -> Source:
    """Matlab files of Netzer et al.: X [32, 32, 3, n] and y [n, 1], in which 10 stands for the digit 0."""
    splits, files = {}, [root / f"{split}_32x32.mat" for split in ("train", "test")]
    for split, path in zip(("train", "test"), files):
        content = _load_mat(path, "X", "y")
        if content["X"].ndim != 4 or content["X"].shape[3] != content["y"].size:
            shapes = f"X {list(content['X'].shape)} and y {list(content['y'].shape)}"
            raise DataError(f"{path} is not a file of SVHN: {shapes} do not belong together")
        if content["X"].dtype != np.uint8:
            raise DataError(f"{path} is not a file of SVHN: its pixels are {content['X'].dtype} and not uint8")
        images = np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2))
        splits[split] = (list(images), (content["y"].ravel().astype(int) % 10).tolist())
    return Source([str(digit) for digit in range(10)], splits, fingerprint(root, files))


def _read_flowers102(root: Path) -> Source:
    """Nilsback and Zisserman's images with imagelabels.mat (1-based) and setid.mat; it has a val split of its own."""
    base = root / "flowers-102" if (root / "flowers-102").is_dir() else root
    labels = _load_mat(base / "imagelabels.mat", "labels")["labels"].ravel().astype(int) - 1
    numbers = _load_mat(base / "setid.mat", "trnid", "valid", "tstid")
    splits = {}
    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        index = numbers[key].ravel().astype(int)
        if not ((index >= 1) & (index <= len(labels))).all():
            raise DataError(
                f"{base / 'setid.mat'}: {key} goes to image {index.max()}, but {base / 'imagelabels.mat'} has "
                f"{len(labels)} labels: one of the two is not of Flower-102, or not whole"
            )
        splits[split] = ([base / "jpg" / f"image_{number:05d}.jpg" for number in index], labels[index - 1].tolist())
    files = [path for paths, _ in splits.values() for path in paths]
    _require_files(files)
    return Source([str(number) for number in range(labels.max() + 1)], splits, fingerprint(base, files))


def _load_mat(path: Path, *keys: str) -> dict[str, np.ndarray]:
    """A Matlab file that has these variables."""
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing") from error
    except Exception as error:  # reading bytes that are no Matlab file may raise anything
        raise DataError(f"{path} is not a Matlab file that scipy can read: {type(error).__name__}: {error}") from error
    missing = [key for key in keys if key not in content]
    if missing:
        raise DataError(f"{path} lacks the variables {', '.join(missing)}")
    return content


def _read_tiny_imagenet(root: Path) -> Source:
    """Le and Yang's layout: wnids.txt, train/WNID/images/*.JPEG, val/images/*.JPEG with val/val_annotations.txt.

    The labels of its test split were never published: its val split is test here, and val is held out from train.
    """
    base = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
    missing = [path for path in ("wnids.txt", "train", "val/val_annotations.txt") if not (base / path).exists()]
    if missing:
        raise DataError(f"{base} is not Tiny ImageNet as published: {', '.join(missing)} missing")
    classes = sorted((base / "wnids.txt").read_text().split())
    train = {label: _image_files(base / "train" / label / "images") for label in classes}
    empty = [label for label, files in train.items() if not files]
    if empty:
        raise DataError(f"{base} looks half-copied: no images in train/ for {shorten(empty)}")
    annotations = [line.split("\t")[:2] for line in (base / "val/val_annotations.txt").read_text().splitlines()]
    cut = [number for number, columns in enumerate(annotations, start=1) if len(columns) < 2]
    if cut:
        raise DataError(f"{base}/val/val_annotations.txt looks cut off: line {cut[0]} has no class")
    if strange := sorted({label for _, label in annotations} - set(classes)):
        raise DataError(f"{base}/val/val_annotations.txt has classes that wnids.txt lacks: {shorten(strange)}")
    tests = [base / "val/images" / name for name, _ in annotations]
    _require_files(tests)
    number = {label: index for index, label in enumerate(classes)}
    splits = {
        "train": (
            [path for label in classes for path in train[label]],
            [number[label] for label in classes for _ in train[label]],
        ),
        "test": (tests, [number[label] for _, label in annotations]),
    }
    return Source(classes, splits, fingerprint(base, [path for paths, _ in splits.values() for path in paths]))


# Parquet, as data sets are commonly published: an image's bytes and its label in each row


_SPLITS = {"train": ("train",), "val": ("validation", "val", "valid"), "test": ("test",)}
# Where several columns could be meant; CIFAR-100 has labels of two grains, of which the paper uses the fine one.
_IMAGE_COLUMNS, _LABEL_COLUMNS = ("image", "img"), ("label", "labels", "fine_label", "class", "target")


@dataclass(frozen=True)
class _ParquetImages(Collection):
    """The images of a split's files, read a part at a time: a split may be larger than memory."""

    files: tuple[Path, ...]
    column: str
    count: int

    def __len__(self) -> int:
        return self.count

    def __contains__(self, image: object) -> bool:
        return any(image == each for each in self)

    def __iter__(self) -> Iterator[Encoded]:
        for path in self.files:
            row = 0
            with _reading(path):
                for batch in _parquet_file(path).iter_batches(batch_size=1024, columns=[self.column]):
                    images = batch.column(0)
                    for payload in images.field("bytes") if hasattr(images, "field") else images:
                        yield Encoded(payload.as_py(), f"{path} row {row}")
                        row += 1


def _packed_folder(root: Path, suffix: str) -> Path | None:
    """The data set's folder, or the one folder in it, that holds such files of a split."""
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())] if root.is_dir() else []
    holding = [folder for folder in folders if any(_packed(folder, split, suffix) for split in _SPLITS)]
    if len(holding) > 1 and holding[0] != root:
        kind = "Parquet files" if suffix == "parquet" else "tar shards"
        raise DataError(f"{root} holds {kind} in {shorten([path.name for path in holding])}: keep one of them")
    return holding[0] if holding else None


def _packed(folder: Path, split: str, suffix: str) -> list[Path]:
    names = "|".join(_SPLITS[split])
    found = (path for path in folder.glob(f"*.{suffix}") if re.fullmatch(rf"({names})(-.*)?\.{suffix}", path.name))
    return sorted(found)


def _split_files(folder: Path, suffix: str) -> dict[str, list[Path]]:
    """The files of each split. Raises DataError where some are missing."""
    files = {split: paths for split in _SPLITS if (paths := _packed(folder, split, suffix))}
    missing = [f"train-*.{suffix}"] if "train" not in files else []
    missing += [f"test-*.{suffix}"] if not {"test", "val"} & set(files) else []
    for paths in files.values():
        wanted = {match[1] for path in paths if (match := re.search(rf"-of-(\d+)\.{suffix}$", path.name))}
        if len(wanted) == 1 and len(paths) != int(count := wanted.pop()):
            missing.append(f"{int(count) - len(paths)} of the {int(count)} files like {paths[0].name}")
    if missing:
        raise DataError(f"{folder} looks half-copied: it lacks {' and '.join(missing)}")
    return files


def _without_hidden_labels(root: Path, source: Source) -> Source:
    """Where the labels of test are not public and val is there, val is test, and val is held out from train: so are
    ImageNet's results published."""
    splits = dict(source.splits)
    test = splits.pop("test", None)
    if "val" not in splits or (test and test[1]):
        return source
    splits["test"] = splits.pop("val")
    note = f"{root} has no test split with labels: its val split is test here, and val is held out from train"
    return replace(source, splits=splits, notes=(*source.notes, note))


def _read_parquet(folder: Path) -> Source:
    files = _split_files(folder, "parquet")
    every = [path for paths in files.values() for path in paths]
    image, label, names = _parquet_columns(files["train"][0])
    for path in every:
        if lacking := [column for column in (image, label) if column not in _parquet_file(path).schema_arrow.names]:
            raise DataError(
                f"{path} lacks the column {' and '.join(lacking)} that {files['train'][0].name} has; it has "
                f"{', '.join(_parquet_file(path).schema_arrow.names)}"
            )
    values = {split: _parquet_labels(paths, label) for split, paths in files.items()}
    if set(values.get("test", ())) == {-1}:  # how labels are marked that are not public
        values["test"], files["test"] = [], []
    known = list(enumerate(names)) if names else [(value, str(value)) for value in sorted(set(values["train"]))]
    classes = [name for _, name in known]
    number = {key: index for index, pair in enumerate(known) for key in pair if isinstance(key, str) or key >= 0}
    splits = {}
    for split, given in values.items():
        for row, value in enumerate(given):
            if value not in number:
                path, row = _place(files[split], row)
                whose = "named in the metadata" if names else "of train-*.parquet"
                raise DataError(f"{path} row {row}: {label} {value!r} is none of the {len(classes)} classes {whose}")
        splits[split] = (_ParquetImages(tuple(files[split]), image, len(given)), [number[value] for value in given])
    return Source(classes, splits, fingerprint(folder, every))


def _parquet_columns(path: Path) -> tuple[str, str, list[str] | None]:
    """The names of the image and of the label column, and of the classes where the file names them."""
    import pyarrow.types as types

    schema = _parquet_file(path).schema_arrow
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: its metadata 'huggingface' cannot be read: {error}") from error

    def holds_image(kind: "pyarrow.DataType") -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds_image(kind.field("bytes").type)
        return types.is_binary(kind) or types.is_large_binary(kind)

    def holds_label(kind: "pyarrow.DataType") -> bool:
        if types.is_dictionary(kind):
            return holds_label(kind.value_type)
        return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)

    def only(what: str, fits: Callable, kind: str, preferred: tuple[str, ...], expectation: str) -> str:
        found = [field.name for field in schema if fits(field.type)]
        found = [name for name in found if features.get(name, {}).get("_type") == kind] or found
        found = found if len(found) == 1 else [name for name in preferred if name in found][:1]
        if not found:
            columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
            raise DataError(f"{path} has no column of {what} ({expectation}); it has {columns or 'none at all'}")
        return found[0]

    image = only("images", holds_image, "Image", _IMAGE_COLUMNS, "named image or img, {bytes, path} or bytes")
    label = only("labels", holds_label, "ClassLabel", _LABEL_COLUMNS, "named label, integers or class names")
    return image, label, features.get(label, {}).get("names")


def _parquet_labels(paths: list[Path], column: str) -> list[int | str]:
    """The labels of the files, one after the other."""
    labels: list[int | str] = []
    for path in paths:
        with _reading(path):
            values = _parquet_file(path).read(columns=[column]).column(column).to_pylist()
        if None in values:
            raise DataError(f"{path} row {values.index(None)} has no {column}")
        labels += values
    return labels


def _place(paths: list[Path], row: int) -> tuple[Path, int]:
    """Which file, and which row of it, row `row` of the split is."""
    for path in paths:
        if row < (count := _parquet_file(path).metadata.num_rows):
            break
        row -= count
    return path, row


def _parquet_file(path: Path) -> "pyarrow.parquet.ParquetFile":
    from pyarrow import parquet

    with _reading(path):
        return parquet.ParquetFile(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Where Arrow cannot read the file, a DataError that names it."""
    import pyarrow

    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from error


# Tar shards, as WebDataset has them: KEY.jpg and KEY.cls, the class as a number or a name


def _read_tar(folder: Path) -> Source:
    files = _split_files(folder, "tar")
    found = {split: [each for path in paths for each in _tar_images(path)] for split, paths in files.items()}
    if {label for _, label in found.get("test", ())} == {"-1"}:  # how labels are marked that are not public
        found["test"] = []
    names = {label for _, label in found["train"]}
    numbers = all(re.fullmatch("[0-9]+", name) for name in names)
    classes = sorted(names, key=int if numbers else str)
    number = {name: index for index, name in enumerate(classes)}
    splits = {}
    for split, images in found.items():
        strange = next(((image, label) for image, label in images if label not in number), None)
        if strange:
            raise DataError(f"{strange[0]}: its class {strange[1]!r} is none of the {len(classes)} of train-*.tar")
        splits[split] = ([image for image, _ in images], [number[label] for _, label in images])
    return Source(classes, splits, fingerprint(folder, (path for paths in files.values() for path in paths)))


def _tar_images(path: Path) -> list[tuple[Slice, str]]:
    stat = path.stat()
    return _listed_tar(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)  # shards; a plan asks for them several times
def _listed_tar(path: str, size: int, changed: int) -> list[tuple[Slice, str]]:
    """The images of a shard, which are left where they lie in it, in its order, with what their .cls files hold."""
    images: dict[str, Slice] = {}
    labels: dict[str, str] = {}
    try:
        with Path(path).open("rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
            for member in shard:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if not member.isreg() or not stem:  # hidden files, such as what macOS leaves beside each
                    continue
                key = f"{folder}/{stem}"
                if ending.lower() == "cls":
                    text = os.pread(file.fileno(), member.size, member.offset_data).decode().strip()
                    labels[key] = str(int(text)) if text.isdecimal() else text
                elif f".{ending.lower()}" in IMAGE_SUFFIXES:
                    if key in images:
                        raise DataError(f"{path} has two images of one key: {images[key].name} and {member.name}")
                    images[key] = Slice(path, member.offset_data, member.size, member.name)
    except (tarfile.TarError, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as a tar shard: {error}") from error
    labels = {key: text for key, text in labels.items() if text}
    if alone := sorted(images.keys() ^ labels.keys()):
        lacking = [f"{key.lstrip('/')}.{'cls' if key in images else 'jpg'}" for key in alone]
        raise DataError(f"{path} lacks {shorten(lacking)}, or they are empty")
    return [(image, labels[key]) for key, image in images.items()]


def _require_files(paths: list[Path]) -> None:
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise DataError(f"{len(missing)} of {len(paths)} files are missing: {shorten(missing)}")


def _read_class_folders(name: str, root: Path) -> Source:
    """train/CLASS/*.jpg, test/CLASS/*.jpg and, if there, val/CLASS/*.jpg."""
    if not root.is_dir():
        siblings = root.parent.iterdir() if root.parent.is_dir() else []
        there = {
            path.name
            for path in siblings
            if has_class_folders(path.name, path) or any(_packed(path, "train", each) for each in ("parquet", "tar"))
        }
        raise DataError(
            f"{unknown('data set', name, [*DATASETS, *sorted(there - set(DATASETS))])} "
            f"(a folder {root} with train/CLASS/ and test/CLASS/ would be one too, or with train-*.parquet and "
            "test-*.parquet, or with train-*.tar and test-*.tar)"
        )
    problems = [f"{root / split} is missing" for split in ("train", "test") if not (root / split).is_dir()]
    if problems and not has_class_folders(name, root):
        raise DataError(
            f"{name}: {'; '.join(problems)}. Looked for class folders: {root}/train/CLASS/*.jpg and "
            f"{root}/test/CLASS/*.jpg (val/ is optional)"
        )
    present = [split for split in ("train", "val", "test") if (root / split).is_dir()]
    unused: list[str] = []
    files: dict[str, dict[str, list[str]]] = {split: {} for split in present}
    for split in present:
        for folder in sorted((root / split).iterdir()):
            if _is_class(folder):
                files[split][folder.name], others = _listing(folder)
                unused += [f"{split}/{folder.name}/{each}" for each in others]
            else:
                unused.append(f"{split}/{folder.name}")
    classes = sorted(files["train"])
    problems = [] if classes else [f"{root / 'train'} holds no class folders"]
    for split, by_class in files.items():
        problems += [f"{root / split / label} holds no images" for label, paths in by_class.items() if not paths]
        if missing := sorted(set(classes) - set(by_class)):
            problems.append(f"{root / split} lacks the classes {shorten(missing)} that train has")
        if extra := sorted(set(by_class) - set(classes)):
            problems.append(f"{root / split} has the classes {shorten(extra)} that train lacks")
    if problems:
        raise DataError(f"{name} looks half-copied: {'; '.join(problems[:LISTED])}")
    splits = {
        split: (
            [path for label in classes for path in by_class[label]],
            [index for index, label in enumerate(classes) for _ in by_class[label]],
        )
        for split, by_class in files.items()
    }
    unused.sort()
    notes = (f"{root}: {len(unused)} files and folders are not used: {shorten(unused)}",) if unused else ()
    source = Source(classes, splits, fingerprint(root, (path for paths, _ in splits.values() for path in paths)), notes)
    return _without_hidden_labels(root, source)


def _is_class(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith(".") and folder.name not in SYSTEM_FOLDERS


def _image_files(folder: Path) -> list[Path]:
    """The images directly in a folder."""
    return [Path(path) for path in _listing(folder)[0]] if folder.is_dir() else []


def _listing(folder: Path) -> tuple[list[str], list[str]]:
    """The paths of the images directly in a folder, by name, but for hidden files, such as what macOS leaves beside
    each; and the names of what else is there. As text: a million of pathlib's objects take seconds."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    images = {name for name in names if name[0] != "." and f".{name.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES}
    return [f"{folder}/{name}" for name in names if name in images], [name for name in names if name not in images]


def shorten(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")


def fingerprint(root: Path, paths: Iterable[Path | str]) -> str:
    """A digest of the files' names below `root`, sizes and times of change."""
    digest, before = hashlib.sha256(), len(str(root / "name")) - len("name")
    for path in map(str, paths):
        stat = os.stat(path)  # noqa: PTH116 - a million of pathlib's objects take seconds
        digest.update(f"{path[before:]} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


# The data sets of section 3.1, and the digits. Sizes are of the images as published, the side in pixels.
_TORONTO, _STANFORD = "https://www.cs.toronto.edu/~kriz", "http://ufldl.stanford.edu/housenumbers"
_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102"
DATASETS: dict[str, DatasetRow] = {
    # 8 x 8 scans shown at 16 x 16, so that patches of 4 x 4 pixels make a grid of 16.
    "digits": DatasetRow(image_size=16, read=_read_digits, counts={"train": 1438, "test": 359}),
    "cifar10": DatasetRow(
        image_size=32,
        read=_read_cifar(
            "cifar-10-batches-py",
            {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
            "labels",
            "batches.meta",
            "label_names",
        ),
        archives=(
            Archive(f"{_TORONTO}/cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py"),
        ),
        counts={"train": 50_000, "test": 10_000},
        layouts=(("cifar-10-batches-py",),),
        md5={
            "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
            "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
            "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
            "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    "cifar100": DatasetRow(
        image_size=32,
        read=_read_cifar(
            "cifar-100-python", {"train": ["train"], "test": ["test"]}, "fine_labels", "meta", "fine_label_names"
        ),
        archives=(
            Archive(f"{_TORONTO}/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", "cifar-100-python"),
        ),
        counts={"train": 50_000, "test": 10_000},
        layouts=(("cifar-100-python",),),
        md5={
            "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
            "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    "svhn": DatasetRow(
        image_size=32,
        read=_read_svhn,
        archives=(
            Archive(f"{_STANFORD}/train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            Archive(f"{_STANFORD}/test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
        counts={"train": 73_257, "test": 26_032},
        layouts=(("train_32x32.mat", "test_32x32.mat"),),
    ),
    "flowers102": DatasetRow(
        image_size=224,
        read=_read_flowers102,
        archives=(
            Archive(f"{_OXFORD}/102flowers.tgz", "52808999861908f626f3c1f4e79d11fa", "jpg"),
            Archive(f"{_OXFORD}/imagelabels.mat", "e0620be6f572b9609742df49c70aed4d"),
            Archive(f"{_OXFORD}/setid.mat", "a5357ecc9cb78c4bef273ce3793fc85c"),
        ),
        counts={"train": 1_020, "val": 1_020, "test": 6_149},
        layouts=(("jpg", "imagelabels.mat", "setid.mat"), ("flowers-102",)),  # the latter as torchvision unpacks it
    ),
    "tiny_imagenet": DatasetRow(
        image_size=64,
        read=_read_tiny_imagenet,
        archives=(
            Archive(
                "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                "90528d7ca1a48142e341f4ef8d21d0de",
                "tiny-imagenet-200",
            ),
        ),
        counts={"train": 100_000, "test": 10_000},
        layouts=(("tiny-imagenet-200",), ("wnids.txt",)),
        aliases=("tiny-imagenet-200",),  # the archive's own name
    ),
}
