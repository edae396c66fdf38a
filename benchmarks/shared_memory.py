"""Memory that trials on one node share: a data set of Tiny ImageNet's full size is held once, not once a trial.

    python benchmarks/shared_memory.py         about 5 minutes and 2 GB of disk; claim: one copy of 1.35 GB for all

Makes 110,000 JPEG files of 64 x 64 in Tiny ImageNet's own layout, decodes them as a sweep does, then starts processes
that each read a whole epoch in batches as a trial does, and asks the kernel what part of the images' memory map each
holds: resident (RSS, counted in every process), and proportional (PSS, shared pages divided among those that share).
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np
from PIL import Image

from relvit.data import load, prepare


def write_tiny_imagenet(base: Path, classes: int, per_class: int, tests: int) -> None:
    """Tiny ImageNet's layout with smooth random images."""
    rng = np.random.default_rng(0)
    names = [f"n{number:08d}" for number in range(classes)]
    (base / "val/images").mkdir(parents=True)
    (base / "wnids.txt").write_text("\n".join(names) + "\n")

    def save(path: Path) -> None:
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((64, 64)).save(path, quality=75)

    for name in names:
        (base / "train" / name / "images").mkdir(parents=True)
        for number in range(per_class):
            save(base / "train" / name / "images" / f"{name}_{number}.JPEG")
    lines = []
    for number in range(tests):
        save(base / "val/images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{names[number % classes]}\t0\t0\t63\t63")
    (base / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")


def read_an_epoch(data_root: Path, seed: int, ready: object, done: object, sizes: object) -> None:
    """What a trial does with the data: load, split by its seed, read every image in random order."""
    train, _ = load("tiny_imagenet", data_root, 64).train_val(seed)
    order = np.random.default_rng(seed).permutation(len(train))
    for start in range(0, len(order), 256):
        train.read(order[start : start + 256])
    ready.wait()  # until every process holds what it read
    sizes.put(mapped("images.npy"))
    done.wait()


def mapped(name: str) -> tuple[int, int]:
    """Bytes of the mapping of that file in this process: resident and proportional."""
    rss = pss = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(name)
        elif inside and line.startswith(("Rss:", "Pss:")):
            value = int(line.split()[1]) * 1024
            rss, pss = (rss + value, pss) if line.startswith("Rss:") else (rss, pss + value)
    return rss, pss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--classes", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data_root = Path(folder)
        write_tiny_imagenet(data_root / "tiny-imagenet-200", options.classes, 500, 50 * options.classes)
        started = time.perf_counter()
        dataset = prepare("tiny_imagenet", data_root, 64)
        array = dataset.train.images.nbytes
        print(f"decoded {len(dataset.train) + len(dataset.test):,} images in {time.perf_counter() - started:.0f} s")
        context = multiprocessing.get_context("spawn")
        ready, done, sizes = context.Barrier(options.trials), context.Barrier(options.trials), context.Queue()
        trials = [
            context.Process(target=read_an_epoch, args=(data_root, seed, ready, done, sizes))
            for seed in range(options.trials)
        ]
        for trial in trials:
            trial.start()
        held = [sizes.get() for _ in trials]
        for trial in trials:
            trial.join()
    rss, pss = (sum(column) for column in zip(*held))
    print(
        f"{options.trials} trials map an array of {array / 1e9:.2f} GB: resident {rss / 1e9:.2f} GB counted in each, "
        f"{pss / 1e9:.2f} GB in truth = {pss / array:.2f} copies (claim: one)"
    )


if __name__ == "__main__":
    main()
