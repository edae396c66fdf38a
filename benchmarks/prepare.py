"""Preparing many small files, and training from a cold disk.

    python benchmarks/prepare.py                                   100,000 JPEG files of 64 x 64 pixels; 2 GB of disk
    python benchmarks/prepare.py --images 20000 --rounds 1         the same, small
    python benchmarks/prepare.py --data-root DIR --dataset NAME    a data set of one's own

Claims: preparation takes at most 1.2 times as long as decoding alone, which is Pillow in as many processes as there
are cores, with nothing kept; killed in the middle and run again it decodes at most one shard of 4,096 images twice.
Both are whole processes, one after the other in each round, so that a machine whose speed drifts slows all alike;
beside the ratio of times stands that of processor time, on which other programs have less influence.

Then an epoch in random order is read from a cold disk, as training reads it, against the same rows read by 16 threads
that do nothing else; claim: at most 1.2 times as long. Exit status 1 where a claim is missed.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from relvit.data import load, native_image_size, prepare
from relvit.sources import read_source

SIDE, CLASSES, SHARD = 64, 10, 4096
CORES = len(os.sched_getaffinity(0))


def make_folder(folder: Path, number: int) -> None:
    """Write the images of one of 100 parts: random colours, smooth, as JPEG of some 1.7 KB, as Tiny ImageNet's."""
    count, number = divmod(number, 100)
    rng = np.random.default_rng(number)
    split, label = ("test" if number % 10 == 0 else "train"), number // 10 % CLASSES
    (folder / split / f"{label:02}").mkdir(parents=True, exist_ok=True)
    for image in range(count):
        small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture.save(folder / split / f"{label:02}" / f"{number:02}-{image:05}.jpg", quality=85)


def decode_alone(paths: list[str]) -> int:
    """What anybody would write."""
    return sum(np.asarray(Image.open(path).convert("RGB")).shape[0] for path in paths)


def part(what: str, name: str, root: Path) -> None:
    """What a process of its own does that is timed."""
    if what == "prepare":
        prepare(name, root, native_image_size(name, root))
        return
    paths = json.loads((root / "paths.json").read_text())
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(decode_alone, [paths[start : start + 256] for start in range(0, len(paths), 256)]))


def start(what: str, name: str, root: Path) -> subprocess.Popen:
    command = [sys.executable, __file__, "--part", what, "--dataset", name, "--data-root", str(root)]
    return subprocess.Popen(command)


def timed(what: str, name: str, root: Path) -> tuple[float, float]:
    """Seconds and processor seconds of such a process and its children."""
    begun, process = time.perf_counter(), start(what, name, root)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{what} ended with status {process.returncode}")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def write_packed(name: str, root: Path) -> None:
    """The same images as tar shards and as Parquet."""
    source = read_source(name, root)
    for split, (images, labels) in source.splits.items():
        found = [(Path(str(path)).read_bytes(), label) for path, label in zip(images, labels)]
        for number in range(0, len(found), SHARD):
            shards = [root / f"{name}-{kind}" / f"{split}-{number // SHARD:05}.{kind}" for kind in ("tar", "parquet")]
            for path in shards:
                path.parent.mkdir(exist_ok=True)
            some = found[number : number + SHARD]
            with tarfile.open(shards[0], "w") as shard:
                for key, (payload, label) in enumerate(some):
                    for ending, content in (("jpg", payload), ("cls", str(label).encode())):
                        entry = tarfile.TarInfo(f"{key:05}.{ending}")
                        entry.size = len(content)
                        shard.addfile(entry, io.BytesIO(content))
            pq.write_table(pa.table({"image": [p for p, _ in some], "label": [c for _, c in some]}), shards[1])


def kill_and_resume(name: str, root: Path) -> tuple[int, bool]:
    """How many images are decoded twice when a preparation is killed near its middle, and whether it ends as one that
    was not."""
    size = native_image_size(name, root)
    before, cache = load(name, root, size).fingerprint, root / ".relvit-cache"
    shutil.rmtree(cache)
    process = start("prepare", name, root)
    while True:
        records = list(cache.glob("*.tmp/decoded.json")) if cache.is_dir() else []
        done = json.loads(records[0].read_text())["images"] if records else 0
        if process.poll() is not None:
            sys.exit("it ended before it could be killed: give it more images")
        if done and done >= 0.4 * np.load(records[0].with_name("images.npy"), mmap_mode="r").shape[0]:
            break
        time.sleep(0.01)
    process.kill()
    process.wait()
    time.sleep(1)  # its workers read the end of their pipes
    done = json.loads(records[0].read_text())["images"]
    array = np.load(records[0].with_name("images.npy"), mmap_mode="r")
    twice = sum(bool(array[row].any()) for row in range(done, len(array)))  # decoded, and not in the record
    return twice, prepare(name, root, size).fingerprint == before


def evict(path: Path) -> None:
    """Let the system forget what it holds of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def epoch_seconds(how: str, name: str, root: Path, batch: int = 256) -> float:
    """Seconds to read train once in random order."""
    import torch

    from relvit.batches import Batches

    data = load(name, root, native_image_size(name, root))
    train, order = data.train, torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    path = Path(str(train.images.filename))
    if how != "warm":
        evict(path)
    size = train.images[0].nbytes
    begun = time.perf_counter()
    if how == "rows alone":
        buffers = [bytearray(size) for _ in range(batch)]
        offsets = (train.images.offset + train.rows[order.numpy()] * size).tolist()
        with path.open("rb", buffering=0) as file, ThreadPoolExecutor(16) as pool:
            for at in range(0, len(offsets), batch):
                some = offsets[at : at + batch]
                list(pool.map(lambda buffer, at: os.preadv(file.fileno(), [buffer], at), buffers[: len(some)], some))
    elif how == "whole file":
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 22):
                pass
    else:
        for _ in Batches("cpu").of(train, order, batch):
            pass
    return time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--data-root", type=Path, help="where the data set is (default: one is made, and removed)")
    parser.add_argument("--dataset", default="many", help="its name")
    parser.add_argument("--part", choices=("decode", "prepare"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    name = options.dataset
    if options.part:
        part(options.part, name, options.data_root)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        if options.data_root:
            (root / name).symlink_to((options.data_root / name).absolute())
        else:
            with ProcessPoolExecutor(CORES) as pool:
                numbers = [100 * (options.images // 100) + number for number in range(100)]
                list(pool.map(make_folder, [root / name] * 100, numbers))
        return measure(name, root, options.rounds)


def measure(name: str, root: Path, rounds: int) -> int:
    source = read_source(name, root)
    paths = [str(path) for images, _ in source.splits.values() for path in images]
    (root / "paths.json").write_text(json.dumps(paths))
    write_packed(name, root)
    layouts = {"class folders": name, "tar shards": f"{name}-tar", "Parquet": f"{name}-parquet"}
    ratios: dict[str, list[tuple[float, float]]] = {layout: [] for layout in layouts}
    for _ in range(rounds):
        seconds, processor = timed("decode", name, root)
        for layout, each in layouts.items():
            shutil.rmtree(root / ".relvit-cache", ignore_errors=True)
            found = timed("prepare", each, root)
            ratios[layout].append((found[0] / seconds, found[1] / processor))
        shutil.rmtree(root / ".relvit-cache")
    print(f"{len(paths):,} images, {CORES} cores, {rounds} rounds; decoding alone took {seconds:.0f} s in the last")
    for layout, found in ratios.items():
        print(
            f"prepared from {layout} / decoded alone: {spread([a for a, _ in found])}; of processor time "
            f"{spread([b for _, b in found])}"
        )
    prepare(name, root, native_image_size(name, root))
    twice, same = kill_and_resume(name, root)
    print(f"killed and resumed: {twice:,} images decoded twice (claim: {SHARD:,}); the result is the same: {same}")
    hows = ("rows alone", "as training reads", "whole file", "warm")
    epochs: dict[str, list[float]] = {how: [] for how in hows}
    for _ in range(rounds):
        for how in hows:
            epochs[how].append(epoch_seconds(how, name, root))
    over = {how: spread([a / b for a, b in zip(epochs[how], epochs["rows alone"])]) for how in hows[1:]}
    print("an epoch from a cold disk / its rows alone: " + ", ".join(f"{how} {text}" for how, text in over.items()))
    within = statistics.median(a / b for a, b in zip(epochs[hows[1]], epochs[hows[0]])) <= 1.2
    if statistics.median(a for a, _ in ratios["class folders"]) <= 1.2 and twice <= SHARD and same and within:
        return 0
    print("a claim is missed")
    return 1


if __name__ == "__main__":
    sys.exit(main())
