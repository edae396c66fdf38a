"""Data sets as uint8 arrays in three splits: train fits, val selects, test is evaluated once and published.

A data set is decoded once into one array beside its files and memory-mapped after that, so that all trials of a
node share one copy. Where the images come from is `relvit.sources`' matter. This module needs no torch.
"""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from relvit.decoding import DecoderDied, Preparation, decode_all, enlarge_on_host, image_sizes, open_image
from relvit.sources import DATASETS, DataError, DatasetNotDownloaded, Image, Source, interleaved_classes, read_source

logger = logging.getLogger(__name__)

VAL_SHARE = 0.1  # of the training images, held out by seed where the data set has no val split of its own
LARGEST = 3  # times the image size: the side at which whole images are stored at most; crops of a ninth stay sharp
CACHE, CACHE_VERSION = ".relvit-cache", 3
_SMALL_VERSION = 4  # of a cache that holds small images at their own size, which earlier programs do not enlarge
# Bytes from which a preparation says beforehand what it will take, and keeps images at their own size where that is one
# size and smaller.
LARGE = 1e9
CONSTANT = (1.0, 1.0, 1.0)  # the deviation that channels without any are given; no other can be as large


@dataclass(frozen=True)
class Split:
    """A part of a data set, left in the memory map that all trials of a node share.

    images: uint8 [m, N, N, 3], the whole map; rows: int64 [n], which of them belong; labels: int64 [n], their
    classes as indices; aspects: float32 [m], width / height of the images of the map before they were brought to
    squares of N pixels, where they are whole; None where squares were cut out of them; side: S, that of the images as
    they are used, where that is more than N: small images of one size are enlarged when they are read.
    """

    images: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    aspects: np.ndarray | None = None
    side: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [b, S, S, 3] and labels int64 [b] at places `index` [b] of this split, copied out."""
        return enlarge_on_host(self.images[self.rows[index]], self.side), self.labels[index]

    def part(self, index: np.ndarray) -> "Split":
        """The split of the places `index`, in that order."""
        return replace(self, rows=self.rows[index], labels=self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """A decoded data set.

    mean and std: per channel over the training images, for values in [0, 1]; fingerprint: a digest of all images,
    labels and splits, the same wherever and from whatever files they were decoded; "" where it is not known.
    """

    name: str
    image_size: int
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: Split
    val: Split | None
    test: Split
    fingerprint: str = ""

    def train_val(self, seed: int, train_images: int = 0, val_share: float = VAL_SHARE) -> tuple[Split, Split]:
        """The training and validation split of one seed.

        Where the data set has no val split, a share of each class is held out from train, but not the only image of a
        class; with val_share=0 val has no image. train_images > 0 keeps that many of what is left, an equal share of
        each class. Raises DataError if there are fewer, if all training images are one colour, and for another share
        where the data set has a val split.
        """
        if self.std == CONSTANT:
            raise DataError(
                f"all training images of {self.name} are one and the same colour: there is nothing to learn"
            )
        if self.val is not None and val_share != VAL_SHARE:
            raise DataError(f"val_share={val_share} has no effect: {self.name} has its own val split; leave it out")
        rng = np.random.default_rng(seed)
        order = interleaved_classes(self.train.labels, rng)
        held_out = round(len(order) * val_share) if self.val is None else 0
        only = np.bincount(self.train.labels)[self.train.labels[order[:held_out]]] == 1
        order[:held_out] = np.concatenate([order[:held_out][~only], order[:held_out][only]])
        held_out -= int(only.sum())
        if self.val is None and val_share and not 0 < held_out < len(order):
            share = "a tenth" if val_share == VAL_SHARE else f"val_share={val_share}"
            raise DataError(f"{len(order)} training images of {self.name} are too few to hold out {share} for val")
        fit = order[held_out:]
        if train_images > len(fit):
            raise DataError(
                f"train_images={train_images}, but {self.name} has {len(fit)} training images"
                f"{' beside those held out for val' if held_out else ''}"
            )
        fit = np.sort(fit[: train_images or None])
        val = self.val if self.val is not None else self.train.part(np.sort(order[:held_out]))
        return self.train.part(fit), val

    def labelled(self, split: Split, seed: int, per_class: int = 0, share: float = 1.0) -> Split:
        """Of each class as many images of a split as have a label: per_class of them, or this share, at least one; all
        with 0 and 1. Drawn by seed; those of a smaller number are among those of a larger.

        Raises DataError where a class has fewer than per_class.
        """
        if not per_class and share == 1:
            return split
        counts = np.bincount(split.labels, minlength=len(self.classes))
        if counts.min() < per_class:
            fewest = int(counts.argmin())
            raise DataError(
                f"labels_per_class={per_class}, but class {self.classes[fewest]!r} of {self.name} has "
                f"{counts[fewest]} of the training images used"
            )
        rng = np.random.default_rng([seed, 1])  # another stream than that of the splits
        kept = []
        for label, count in enumerate(counts):
            members = rng.permutation(np.flatnonzero(split.labels == label))
            kept.append(members[: per_class or max(1, round(count * share))])
        return split.part(np.sort(np.concatenate(kept)))


def native_image_size(name: str, data_root: Path) -> int:
    """The side in pixels at which a data set is used unless told otherwise.

    For a folder without a row it is the side of its images, judged by the first.
    Raises DataError where there is no such data set or its images are not square.
    """
    if name in DATASETS:
        return DATASETS[name].image_size
    source = read_source(name, data_root)
    image = next(iter(source.splits["train"][0]))
    width, height = open_image(image).size
    if width != height:
        raise DataError(f"{image} is {width} x {height} pixels; say to which square to bring the images: --image-size")
    return width


def split_sizes(name: str, data_root: Path, image_size: int) -> dict[str, int]:
    """Images in train, val (may be missing) and test, without decoding or downloading any: from the cache, by what is
    published under that name, or by counting class folders. Raises DataError where there is no such data set."""
    meta = _meta(_cache_folder(name, data_root, image_size))
    if meta is not None:
        return meta["splits"]
    try:
        source = read_source(name, data_root, download=False)
    except DatasetNotDownloaded:
        return dict(DATASETS[name].counts)
    return {split: len(labels) for split, (_, labels) in source.splits.items()}


def class_count(name: str, data_root: Path, image_size: int) -> int | None:
    """How many classes a data set has, without decoding or downloading any; None where that is not known yet."""
    meta = _meta(_cache_folder(name, data_root, image_size))
    try:
        return len(read_source(name, data_root, download=False).classes if meta is None else meta["classes"])
    except DatasetNotDownloaded:
        return None


def load(name: str, data_root: Path, image_size: int, whole: bool = False) -> Dataset:
    """The decoded data set, from the cache if it is there. For trials: does not look at the source again."""
    folder = _cache_folder(name, data_root, image_size, whole)
    meta = _meta(folder)
    return prepare(name, data_root, image_size, whole=whole) if meta is None else _open_cache(name, folder, meta)


def cached_fingerprint(name: str, data_root: Path, image_size: int, whole: bool = False) -> str:
    """The fingerprint of a data set as it was decoded last; "" where it was not yet. Looks at nothing but the cache."""
    meta = _meta(_cache_folder(name, data_root, image_size, whole))
    return "" if meta is None else meta["content"]


def decoded_bytes(name: str, data_root: Path, image_size: int, whole: bool, images: int) -> tuple[int, bool]:
    """What so many decoded images take on disk, and whether they are there; else at most, since their own sizes are not
    looked at."""
    path = _cache_folder(name, data_root, image_size, whole) / "images.npy"
    if _meta(path.parent) is not None and path.exists():
        return path.stat().st_size, True
    side = image_size * (LARGEST if whole else 1)
    return images * side * side * 3, False


def fingerprint_of(fingerprints: Iterable[str]) -> str:
    """One for all the data sets of a cell; "" where one of them is not known."""
    known = list(fingerprints)
    return "+".join(known) if all(known) else ""


def prepare(name: str, data_root: Path, image_size: int, download: bool = True, whole: bool = False) -> Dataset:
    """The decoded data set, after a look at the source: downloaded, decoded or decoded anew where needed.

    whole: images are kept whole and at their own size instead of cut to squares of image_size: all stretched to one
    square as large as the largest of them, of at most LARGEST * image_size pixels a side.
    Safe to call from several processes at once: one works, the others wait.
    Raises DataError, naming the files, where the source is missing, incomplete or unreadable, and DatasetNotDownloaded
    as `read_source`.
    """
    folder = _cache_folder(name, data_root, image_size, whole)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # For all sizes, since they share one source, which may have to be downloaded; for all who may write there.
        with FileLock(folder.parent / f"{name}.lock", mode=folder.parent.stat().st_mode & 0o666):
            source = read_source(name, data_root, download)
            for note in source.notes:
                logger.warning(note)
            meta = _meta(folder)
            if meta is None or meta["fingerprint"] != source.fingerprint:
                meta = _write_cache(source, folder, image_size, whole)
    except OSError as error:
        place = error.filename or folder.parent
        raise DataError(f"{name} cannot be decoded to {place}: {error.strerror or error}") from error
    return _open_cache(name, folder, meta)


# Cache: one folder a data set and size, replaced as a whole


def _cache_folder(name: str, data_root: Path, image_size: int, whole: bool = False) -> Path:
    """Beside the data set, or, where that cannot be written, in the user's cache folder."""
    root = data_root
    nearest = next(path for path in (root / CACHE, root, *root.absolute().parents) if path.exists())
    if not os.access(nearest, os.W_OK):
        user_cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        root = user_cache / "relvit" / hashlib.sha256(str(data_root.resolve()).encode()).hexdigest()[:12]
    return root / CACHE / f"{name}-{image_size}{'-whole' if whole else ''}"


def _meta(folder: Path) -> dict[str, Any] | None:
    """What is said of a cache; None where there is none that this version reads."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return meta if meta["version"] in (CACHE_VERSION, _SMALL_VERSION) else None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{folder / 'meta.json'} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError):
        return None  # damaged: decoded anew


def _write_cache(source: Source, folder: Path, size: int, whole: bool) -> dict[str, Any]:
    parts, aspects = [images for images, _ in source.splits.values()], None
    if whole:
        sizes = image_sizes(parts)
        aspects, size = (sizes[:, 0] / sizes[:, 1]).astype(np.float32), int(min(LARGEST * size, sizes.max()))
    side = size  # at which images are used; that at which they are kept may be smaller
    if not whole and sum(map(len, parts)) * size * size * 3 >= LARGE:
        size = _own_size(parts, size)
    labels = np.array([label for _, split_labels in source.splits.values() for label in split_labels], dtype=np.int64)
    # Not tempfile's, which nobody else may read: a data folder may be a lab's. Named by what is decoded, so that what a
    # killed process left of the same is gone on with; of anything else it is removed, being as large as the cache.
    what = hashlib.sha256(json.dumps([source.fingerprint, size, whole]).encode()).hexdigest()[:8]
    scratch = folder.with_name(f".{folder.name}.{what}.tmp")
    for left in folder.parent.glob(f".{folder.name}.{'?' * 8}.tmp"):
        if left != scratch:
            shutil.rmtree(left, ignore_errors=True)
    try:
        scratch.mkdir(exist_ok=True)
        shape = (len(labels), size, size, 3)
        done, largest = _decoded_before(scratch, shape)
        if math.prod(shape) >= LARGE:
            before = f", {done:,} of them before" if done else ""
            taken = f"{math.prod(shape) / 1e9:.1f} GB in {folder.parent}"
            logger.warning(f"{folder.name}: {len(labels):,} images are decoded to {taken}{before}")
        if done:
            array = np.lib.format.open_memmap(scratch / "images.npy", mode="r+")
        else:
            array = _allocated(scratch / "images.npy", shape)
        splits = {split: len(split_labels) for split, (_, split_labels) in source.splits.items()}

        def preparation() -> Preparation:
            # Of the images as they are used, however they are kept.
            content = hashlib.sha256(json.dumps([splits, (len(labels), side, side, 3)]).encode())
            content.update(labels.data)
            return Preparation(array, scratch, splits["train"], content, side)

        prepared = preparation()
        prepared.sum_up(done)
        depth = decode_all(parts, array, 16, whole, done, prepared.add, largest).bit_length()
        if 0 < depth < 16 or depth > 16:
            logger.warning(f"{folder.name}: its deep greyscale files hold {depth} bits, of which the upper 8 are kept")
            (scratch / "decoded.json").unlink(missing_ok=True)
            prepared = preparation()
            decode_all(parts, array, depth, whole, record=lambda images, largest: prepared.sum_up(images))
        array.flush()
        np.save(scratch / "labels.npy", labels)
        if aspects is not None:
            np.save(scratch / "aspects.npy", aspects)
        mean, std = prepared.channel_statistics()
        meta = {
            "version": _SMALL_VERSION if side > size else CACHE_VERSION,
            "side": side,
            "fingerprint": source.fingerprint,
            "content": prepared.content,
            "classes": source.classes,
            "splits": splits,
            "mean": mean,
            "std": np.where(np.array(std) < 1 / 255, CONSTANT, std).tolist(),
        }
        (scratch / "decoded.json").unlink(missing_ok=True)
        (scratch / "meta.json").write_text(json.dumps(meta))
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    except DecoderDied:
        raise
    except (DataError, OSError):  # files to repair, a disk to clear; what was interrupted is gone on with
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return meta


def _own_size(parts: list[Collection[Image]], size: int) -> int:
    """The side of all images where they are squares of one size below `size`; else that. Where the first is none, the
    others are not looked at: of a million files that would take as long as to decode them."""
    try:
        width, height = open_image(next(iter(parts[0]))).size
        if width == height < size and (image_sizes(parts) == width).all():
            return width
    except DataError:  # said with all others when they are decoded
        pass
    return size


def _decoded_before(scratch: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    """How many images a preparation that was interrupted has decoded to `scratch`, whole blocks of them, and the
    largest value of deep greyscale among them."""
    try:
        record = json.loads((scratch / "decoded.json").read_text())
        done, largest = record["images"], record["largest"]
        same = np.load(scratch / "images.npy", mmap_mode="r").shape == shape
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
    whole = isinstance(done, int) and 0 < done <= shape[0] and isinstance(largest, int)
    return (done, largest) if same and whole else (0, 0)


def _allocated(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new memory map of bytes for which the disk has room: where it fills later, writing to the map would kill the
    process. Raises OSError where there is not."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} ({array.nbytes / 1e9:.2g} GB are needed)", path) from error
    return array


def _open_cache(name: str, folder: Path, meta: dict[str, Any]) -> Dataset:
    images = np.load(folder / "images.npy", mmap_mode="r")
    labels = np.load(folder / "labels.npy")
    aspects = np.load(folder / "aspects.npy") if (folder / "aspects.npy").exists() else None
    side = meta.get("side", images.shape[1])
    splits, start = {}, 0
    for split, count in meta["splits"].items():
        rows = np.arange(start, start + count)
        splits[split] = Split(images, rows, labels[rows], aspects, side)
        start += count
    return Dataset(
        name=name,
        image_size=side,
        classes=tuple(meta["classes"]),
        mean=tuple(meta["mean"]),
        std=tuple(meta["std"]),
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
        fingerprint=meta["content"],
    )
