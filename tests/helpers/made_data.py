"""The paper's data sets in their published formats, with a few random images: what the studies are run on in CI."""

import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def random_images(count: int, size: int, seed: int) -> np.ndarray:
    """uint8 [count, size, size, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def write_cifar(root: Path, folder: str, batches: dict[str, int], labels: str, meta: tuple[str, str, int]) -> None:
    """Pickled batches of rows of 3,072 bytes; `batches` gives the number of images of each file."""
    base = root / folder
    base.mkdir(parents=True)
    file, names, classes = meta
    for seed, (name, count) in enumerate(batches.items()):
        rows = random_images(count, 32, seed).transpose(0, 3, 1, 2).reshape(count, -1)
        content = {"data": rows, labels: [number % classes for number in range(count)]}
        (base / name).write_bytes(pickle.dumps(content))
    (base / file).write_bytes(pickle.dumps({names: [f"class {number}" for number in range(classes)]}))


def write_cifar10(root: Path) -> None:
    """60 training images, 20 of test."""
    batches = {f"data_batch_{number}": 12 for number in range(1, 6)} | {"test_batch": 20}
    write_cifar(root / "cifar10", "cifar-10-batches-py", batches, "labels", ("batches.meta", "label_names", 10))


def write_cifar100(root: Path) -> None:
    """120 training images, 100 of test, of 100 classes."""
    batches = {"train": 120, "test": 100}
    write_cifar(root / "cifar100", "cifar-100-python", batches, "fine_labels", ("meta", "fine_label_names", 100))


def write_svhn(root: Path) -> None:
    """Matlab files in which the digit 0 has the label 10."""
    (root / "svhn").mkdir(parents=True)
    for seed, (split, count) in enumerate((("train", 60), ("test", 20))):
        labels = np.arange(count)[:, None] % 10 + 1
        images = random_images(count, 32, seed).transpose(1, 2, 3, 0)
        savemat(root / "svhn" / f"{split}_32x32.mat", {"X": images, "y": labels.astype(np.uint8)})


def write_flowers102(root: Path) -> None:
    """JPEG files of different shapes, 1-based labels and numbers, and a val split of its own; 6 classes."""
    base = root / "flowers102"
    (base / "jpg").mkdir(parents=True)
    for number in range(1, 73):
        shape = (80, 96) if number % 2 else (90, 70)
        pixels = np.random.default_rng(number).integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.arange(72)[None] % 6 + 1})
    numbers = np.arange(1, 73)[None]
    savemat(base / "setid.mat", {"trnid": numbers[:, :48], "valid": numbers[:, 48:60], "tstid": numbers[:, 60:]})


def write_tiny_imagenet(root: Path) -> None:
    """Four classes of 20 training and 5 validation images of 64 x 64."""
    base = root / "tiny_imagenet" / "tiny-imagenet-200"
    (base / "val/images").mkdir(parents=True)
    classes = [f"n0000000{number}" for number in range(4)]
    (base / "wnids.txt").write_text("\n".join(classes) + "\n")
    lines = []
    for number, label in enumerate(classes):
        (base / "train" / label / "images").mkdir(parents=True)
        for index, pixels in enumerate(random_images(25, 64, number)):
            if index < 20:
                Image.fromarray(pixels).save(base / f"train/{label}/images/{label}_{index}.JPEG")
            else:
                name = f"val_{len(lines)}.JPEG"
                Image.fromarray(pixels).save(base / "val/images" / name)
                lines.append(f"{name}\t{label}\t0\t0\t63\t63")
    (base / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")
