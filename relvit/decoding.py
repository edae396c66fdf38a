"""Images to one array, on all cores: block by block, so that what was interrupted goes on.

A small data set is decoded in threads. Of many small files most of the time is Python's own, which threads share: those
are decoded by processes, which read from and answer to this one through pipes, whatever program it is.
"""

import io
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from relvit.files import write_atomic
from relvit.sources import DataError, Encoded, Slice, shorten
from relvit.sources import Image as SourceImage

BLOCK = 1024  # images after which an interrupted preparation goes on; of Parquet, three of them are in memory at once
_PIECE = 64  # images that a worker is given at once
PROCESSES_FROM = 4096  # images from which starting processes, half a second, pays
_AHEAD = 2  # blocks that are decoded while one is summed up


class DecoderDied(DataError):
    """A process that decoded images was killed. What was decoded before stays."""


def open_image(image: SourceImage) -> Image.Image:
    """The image, of which Pillow has read no more than the header. Raises DataError where it is none."""
    if isinstance(image, np.ndarray):
        return Image.fromarray(image)
    file: str | Path | io.BytesIO
    if isinstance(image, Slice):
        file = io.BytesIO(image.read())
    elif not isinstance(image, Encoded):
        file = image
    elif image.payload is None:
        raise DataError(f"{image} holds no image")
    else:
        file = io.BytesIO(image.payload)
    try:
        return Image.open(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{image} cannot be read as an image: {error}") from error


def decode(image: SourceImage, size: int, depth: int, whole: bool = False) -> tuple[np.ndarray, int]:
    """uint8 [size, size, 3], and the largest value of deep greyscale (16 or 32 bits a pixel in the file), else 0.

    Any mode to RGB (as in the published code, alpha is dropped), the shorter side resized to `size`, the centre
    cropped; whole: the image stretched. EXIF's rotation is left aside: pixels stay where the file has them. depth: the
    bits that deep greyscale uses, of which the upper 8 are kept. Raises DataError for a file that cannot be read.
    """
    picture = open_image(image)
    largest = 0
    try:
        if not picture.mode.startswith("I") and any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ())):
            # Pillow drops the lower 8, and what uses fewer than 16 would be all but black.
            raise DataError(f"{image} has colours of 16 bits, of unknown range; convert it to 8 bits")
        if picture.mode == "F":
            raise DataError(f"{image} has floating-point pixels of unknown range; convert it to 8 bits")
        if picture.mode.startswith("I"):
            values = np.asarray(picture).astype(np.int64)  # Pillow would clip them at 255
            largest = int(values.max())
            if values.min() < 0:
                raise DataError(f"{image} has negative pixels, of unknown range; convert it to 8 bits")
            picture = Image.fromarray((values >> (depth - 8)).clip(0, 255).astype(np.uint8))
        if picture.mode == "RGB":
            picture.load()  # `convert` would copy it
        else:
            picture = picture.convert("RGB")
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # truncated and corrupt files
        raise DataError(f"{image} cannot be read as an image: {error}") from error
    if whole and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.LANCZOS)
    if picture.size != (size, size):
        scale = size / min(picture.size)
        width, height = (max(size, round(side * scale)) for side in picture.size)
        left, top = (width - size) // 2, (height - size) // 2
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        picture = picture.crop((left, top, left + size, top + size))
    return np.asarray(picture), largest


def enlarge_on_host(images: np.ndarray, side: int) -> np.ndarray:
    """uint8 [b, n, n, 3] as `decode` would have brought them to [b, side, side, 3]; as they are where n >= side.
    On a device `relvit.enlarge` does the same."""
    if images.shape[1] >= side:
        return images
    result = np.empty((len(images), side, side, 3), dtype=np.uint8)
    for row, image in zip(result, images):
        row[:] = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
    return result


def decode_all(
    parts: list[Collection[SourceImage]],
    array: np.memmap,
    depth: int,
    whole: bool,
    done: int = 0,
    record: Callable[[int, int], None] = lambda images, largest: None,
    largest: int = 0,
) -> int:
    """Decode all images of the splits into `array` [m, S, S, 3]. Returns the largest value of deep greyscale, 0 where
    there is none. Raises DataError with the files that cannot be read.

    done: how many are there already, and their largest value; record: told both after each block, in order, while the
    following are decoded.
    """
    images = itertools.islice(itertools.chain(*parts), done, None)
    problems: list[str] = []
    waiting: deque[tuple[int, list[Future]]] = deque()
    with _decoders(len(array)) as submit, _progress(len(array), done) as advance:

        def finish() -> None:
            nonlocal largest
            count, pieces = waiting.popleft()
            for piece in pieces:
                peak, wrong = piece.result()
                largest = max(largest, peak)
                problems.extend(wrong)
            advance(count)
            if not problems:
                record(count, largest)

        where = (Path(str(array.filename)), array.offset) if len(array) >= PROCESSES_FROM else array
        start = done
        while block := list(itertools.islice(images, BLOCK)):
            pieces = range(0, len(block), _PIECE)
            jobs = [(where, start + at, block[at : at + _PIECE], array.shape[1], depth, whole) for at in pieces]
            waiting.append((len(block), [submit(_decode_piece, *job) for job in jobs]))
            start += len(block)
            if len(waiting) > _AHEAD:
                finish()
        while waiting:
            finish()
    if problems:
        raise DataError(shorten(sorted(problems)))
    return largest


def _decode_piece(
    where: np.ndarray | tuple[Path, int], start: int, images: list[SourceImage], size: int, depth: int, whole: bool
) -> tuple[int, list[str]]:
    """Decode images to the rows from `start` on of an array, or of the file that holds it from a byte on. Returns the
    largest value of deep greyscale and what could not be read."""
    rows = np.zeros((len(images), size, size, 3), dtype=np.uint8)
    largest, problems = 0, []
    for row, image in enumerate(images):
        try:
            rows[row], peak = decode(image, size, depth, whole)
            largest = max(largest, peak and max(peak, 128))
        except DataError as error:
            problems.append(str(error))
    if isinstance(where, np.ndarray):
        where[start : start + len(rows)] = rows
    else:  # written: the faults of a map cost a tenth of the decoding
        with where[0].open("r+b") as file:
            file.seek(where[1] + start * rows[0].nbytes)
            file.write(rows.data)
    return largest, problems


def image_sizes(parts: list[Collection[SourceImage]]) -> np.ndarray:
    """Width and height of each image of the splits: int64 [m, 2]. Raises DataError where one cannot be read."""
    images = itertools.chain(*parts)
    waiting: deque[Future] = deque()
    found: list[tuple[int, int]] = []
    with _decoders(sum(map(len, parts))) as submit:
        while piece := list(itertools.islice(images, _PIECE)):
            waiting.append(submit(_sizes_of, piece))
            if len(waiting) > _AHEAD * BLOCK // _PIECE:
                found += waiting.popleft().result()
        for sizes in waiting:
            found += sizes.result()
    return np.array(found)


def _sizes_of(images: list[SourceImage]) -> list[tuple[int, int]]:
    return [open_image(image).size for image in images]


@contextmanager
def _decoders(images: int) -> Iterator[Callable[..., Future]]:
    """Gives what has a function of this module called, at once on each core: in this process, or, for so many images
    that it pays, in others."""
    cores = len(os.sched_getaffinity(0))
    workers: list[subprocess.Popen] = []
    own = threading.local()  # each thread has a worker of its own

    def call(function: Callable, *arguments: Any) -> Any:
        if images < PROCESSES_FROM:
            return function(*arguments)
        if not hasattr(own, "worker"):
            own.worker = start_worker()
            workers.append(own.worker)
        try:
            pickle.dump((function, arguments), own.worker.stdin, pickle.HIGHEST_PROTOCOL)
            own.worker.stdin.flush()
            answer = pickle.load(own.worker.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise DecoderDied(
                f"a process that decoded images ended with status {own.worker.wait()}, as where memory is short; what "
                "was decoded stays: run the same command again"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    pool = ThreadPoolExecutor(cores)
    try:
        yield lambda function, *arguments: pool.submit(call, function, *arguments)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.kill()
            worker.communicate()
        pool.shutdown()


def start_worker() -> subprocess.Popen:
    package = str(Path(__file__).resolve().parent.parent)
    paths = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", "from relvit.decoding import work; work()"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env={**os.environ, "PYTHONPATH": paths})


def work() -> None:
    """A worker's life: calls what it reads from standard input and answers, until there is nothing more to read."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C; who started this process ends it
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            function, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = function(*arguments)
        except Exception as error:  # raised where it was asked for
            answer = error
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


@contextmanager
def _progress(images: int, done: int) -> Iterator[Callable[[int], None]]:
    """A bar for a person at a terminal, where it takes more than some blocks. Gives what is called with how many
    more."""
    # relvit is used without rich where it only trains.
    if images <= 4 * BLOCK or not sys.stderr.isatty() or find_spec("rich") is None:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=images, completed=done)
        yield lambda count: bar.advance(task, count)


class Preparation:
    """What is known of an array of images while it is filled: how far, and what is published of them.

    folder: where the array and the record lie that an interrupted preparation goes on from; trained: how many images,
    the first, are of train; content: a digest that goes on over the images; side: to which those of the array are
    enlarged when they are used, where it is more than their own.
    """

    def __init__(self, array: np.memmap, folder: Path, trained: int, content: Any, side: int):
        self._array, self._record, self._trained, self._side = array, folder / "decoded.json", trained, side
        self._content, self._counts = content, np.zeros((3, 256), dtype=np.int64)
        self.images = 0

    def add(self, images: int, largest: int) -> None:
        """Sum up so many more images, which are decoded, and enter them in the record once they are on the disk."""
        self.sum_up(images)
        if len(self._array) > BLOCK:
            self._array.flush()
            write_atomic(self._record, json.dumps({"images": self.images, "largest": largest}).encode())

    def sum_up(self, images: int) -> None:
        """The same without the record, of images that are in it."""
        for start in range(self.images, self.images + images, BLOCK):
            block = self._array[start : min(start + BLOCK, self.images + images)]
            block = enlarge_on_host(block, self._side)
            self._content.update(block.data)
            seen = block[: max(0, self._trained - start)]
            if len(seen):  # Pillow counts the values of pixels ten times as fast as numpy
                picture = Image.fromarray(seen.reshape(-1, seen.shape[1], 3))
                self._counts += np.array(picture.histogram()).reshape(3, 256)
        self.images += images

    @property
    def content(self) -> str:
        """The digest of what it began with and the images."""
        return self._content.hexdigest()[:16]

    def channel_statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel of train for values in [0, 1]."""
        values, total = np.arange(256) / 255, self._counts.sum(1)
        mean = self._counts @ values / total
        return mean.tolist(), np.sqrt(np.maximum(self._counts @ values**2 / total - mean**2, 0)).tolist()
