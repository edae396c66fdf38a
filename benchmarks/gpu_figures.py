"""The figures of benchmarks/gpu.py, which starts this in a process of its own, and again where it dies."""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # matrix products that repeat to the bit, for (a)

import gc
import io
import itertools
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from PIL import Image
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.augmentation import patch_loop
from benchmarks.compiled import differences, one_step
from benchmarks.gpu import BEGUN, FAILED, FAST, NEVER, NO_GPU, OPEN, Report, parse
from benchmarks.training_step import CLASSES, bare_step, relvit_step, time_alternately
from relvit.calibrate import images_per_second
from relvit.cell import HEADS, NONE, Cell, make_cell, task_combinations
from relvit.data import Dataset, prepare
from relvit.messages import first_line
from relvit.specs import BACKBONES
from relvit.step import INDUCTOR
from relvit.train import phases, train
from relvit.vocabulary import SPEEDS
from sweeps.planning.recipes import recipe

VIT, AT_224 = "vit_s4", ("vit_s32", "swin_t", "t2t_vit_14")
GRAPHS = {"options": {**INDUCTOR["options"], "triton.cudagraphs": True}}
PRECISIONS = ("fp32", "tf32", "bf16")
CUDA_GRAPHS, EAGER = "inductor, CUDA graphs", "eager"
FIRST = "seconds of the first step, compiling among them"
_LONGEST = 400.0  # seconds that a figure may take: a compiler that hangs must not take all of them
_OVER = 60.0  # seconds of the next part that the last figure of a part may take


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block after so many seconds."""

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, seconds))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def take(report: Report, part: str, name: str, measure: Callable[[], Any], ends: float = float("inf")) -> None:
    """Enter a figure that is still open, or why it failed: the others go on. ends: until when it may begin."""
    if not report.is_open(part, name):
        return
    began = time.monotonic()
    if began > ends or report.seconds_left < 0:
        report.add(part, name, OPEN)
        return
    report.add(part, name, BEGUN)
    allowed = min(_LONGEST, max(10.0, report.seconds_left), ends - began + _OVER)
    try:
        with at_most(allowed):
            value = measure()
    except Exception as error:  # a time limit may come as another error, of what it interrupted
        if allowed < _LONGEST and time.monotonic() - began >= allowed:
            report.add(part, name, OPEN)
        else:
            enter_failure(report, part, name, error)
    else:
        report.add(part, name, value)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def enter_failure(report: Report, part: str, name: str, error: Exception) -> None:
    """Enter why a figure failed. Ends the process where it can use the GPU no more."""
    said = str(error)
    text = next((line.strip() for line in said.splitlines() if line.strip()), "")
    report.add(part, name, f"{FAILED}{type(error).__name__}: {text[:300]}")
    if "CUDA error" in said or "CUBLAS_STATUS" in said or "CUDNN_STATUS" in said:
        os._exit(3)


class Setting:
    """What differs between a real run and --smoke."""

    def __init__(self, device: str, smoke: bool):
        self.device, self.smoke = torch.device(device), smoke
        self.on_gpu = self.device.type == "cuda"
        self.vit = "vit_xs4" if smoke else VIT
        self.at_224 = ("swin_xs8",) if smoke else AT_224
        self.rounds, self.repeats = (1, 1) if smoke else (5, 20)
        self.compilers = {"inductor": {"backend": "aot_eager"} if smoke else INDUCTOR}
        if self.on_gpu and not smoke:
            self.compilers[CUDA_GRAPHS] = GRAPHS
        self.combinations = [NONE, task_combinations()[-1]] if smoke else [NONE, *reversed(task_combinations()[1:])]

    @property
    def steps(self) -> list[tuple[str, str, str]]:
        """What is timed: backbone, precision and compiler or none. What the claims need comes first."""
        if self.smoke:
            return [(name, "bf16", how) for name in (self.vit, *self.at_224) for how in ("inductor", EAGER)]
        first = [(self.vit, "bf16", "inductor"), (self.vit, "fp32", EAGER), (self.vit, "bf16", CUDA_GRAPHS)]
        first += [(name, "bf16", "inductor") for name in self.at_224]
        every = itertools.product((self.vit, *self.at_224), reversed(PRECISIONS), ("inductor", EAGER))
        return [*first, *(each for each in every if each not in first)]

    def image_size(self, backbone: str) -> int:
        return BACKBONES[backbone].image_size or (64 if backbone.startswith("t2t") else 32)

    def cell(self, backbone: str, protocol: str, tasks: str = "sprel+abspos", **fields: Any) -> Cell:
        size = self.image_size(backbone)
        what = {"dataset": "cifar10", "pretrain_dataset": "cifar10", "backbone": backbone, "tasks": tasks, "seed": 0}
        values = recipe("paper").for_backbone(backbone, size) | {"image_size": size, "protocol": protocol}
        return make_cell(**{**values, **what, **({"batch_size": 8} if self.smoke else {}), **fields})

    def batch(self, size: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)
        return images.to(self.device), (torch.arange(count) % CLASSES).to(self.device)


# (a) Right


def right(report: Report, setting: Setting, ends: float) -> None:
    part = "a. right"
    for name, measure in (
        ("resumed run, bit for bit", resumes_to_the_bit),
        ("synchronisations in a step", synchronisations),
        ("device against CPU, relative difference in float32", device_against_cpu),
    ):
        take(report, part, name, partial(measure, setting))
    pairs = [(setting.vit, tasks) for tasks in setting.combinations]
    for backbone, tasks in [*pairs[:2], *((each, "sprel+abspos") for each in setting.at_224), *pairs[2:]]:
        name = f"compiled against eager, {backbone}, {tasks}"
        take(report, part, name, partial(compiled_against_eager, setting, backbone, tasks), ends)


def device_against_cpu(setting: Setting) -> dict[str, float]:
    found: dict[str, float] = {}
    for tasks in ("sprel", "dist", "ang", "abspos", NONE):
        cell = setting.cell(setting.vit, "pretrain_finetune", tasks)
        found[tasks] = max(differences(one_step(cell, torch.device("cpu")), one_step(cell, setting.device)).values())
    return found


def compiled_against_eager(setting: Setting, backbone: str, tasks: str) -> dict[str, float]:
    cell, compiler = setting.cell(backbone, "joint", tasks), setting.compilers["inductor"]
    return differences(*(one_step(cell, setting.device, compile, compiler) for compile in ("never", "always")))


def synchronisations(setting: Setting) -> str:
    cell = setting.cell(setting.vit, "pretrain_finetune")
    step = relvit_step(cell, phases(cell)[0], *setting.batch(cell.image_size, 8))
    step()
    return waits(step) if setting.on_gpu else "not seen on a CPU, which never waits"


def waits(step: Callable[[], None]) -> str:
    """Whether a step that has run before makes the host wait for the GPU, and where: torch raises at the first such
    operation."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        return f"yes: {first_line(error)}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return NEVER


def resumes_to_the_bit(setting: Setting) -> str:
    """A short run of two phases against one that was stopped after each epoch, in torch's deterministic mode."""
    cell = setting.cell(
        "vit_xs4", "pretrain_finetune", pretrain_epochs=2, epochs=2, warmup_epochs=1, batch_size=32, image_size=32
    )
    dataset = made_up(200, 32)
    torch.use_deterministic_algorithms(True)  # with warn_only attention would go on without
    try:
        with tempfile.TemporaryDirectory() as folder:
            run = partial(train, cell, dataset, device=str(setting.device), compile="never")
            whole = list(run(Path(folder) / "whole"))
            for epoch in range(1, cell.total_epochs):
                list(run(Path(folder) / "parts", stop_after=epoch))
            parts = list(run(Path(folder) / "parts"))
    finally:
        torch.use_deterministic_algorithms(False)
    one, other = ([{k: v for k, v in row.items() if k not in SPEEDS} for row in rows] for rows in (whole, parts))
    return "yes" if one == other else f"no: {one[-1]} against {other[-1]}"


# (b) Fast


def fast(report: Report, setting: Setting, ends: float) -> None:
    part, peak = FAST, "measured peak of a bf16 matrix product, TFLOP/s"
    take(report, part, peak, partial(peak_flops, setting))
    for backbone, precision, how in setting.steps:
        cell = setting.cell(backbone, "pretrain_finetune" if backbone == setting.vit else "joint")
        work = f"{backbone}, GFLOP an image, forward and backward"
        take(report, part, work, partial(step_flops, setting, cell), ends)

        def measured(cell: Cell = cell, precision: str = precision, how: str = how, work: str = work) -> dict:
            found = full_and_bare(setting, cell, setting.batch(cell.image_size, cell.batch_size), precision, how)
            if precision == "bf16" and report.of(part, peak) and report.of(part, work):
                used = found["images a second"] * report.of(part, work) / 1e3
                found["share of the bf16 peak"] = used / report.of(part, peak)
            return found

        take(report, part, step_name(setting, backbone, precision, how), measured, ends)
        if (backbone, how) == (setting.vit, EAGER):  # once: what the claims need comes first
            take(report, part, "one against two trials at once", partial(packed, setting), ends)
            loop = "patches in a Python loop, 8 loader processes, images a second"
            take(report, part, loop, partial(loader_speed, setting), ends)


def step_name(setting: Setting, backbone: str, precision: str, how: str) -> str:
    return f"{backbone}, batch {setting.cell(backbone, 'joint').batch_size}, {precision}, {how}"


def peak_flops(setting: Setting) -> float:
    side = 256 if setting.smoke else 8192
    left, right = (torch.randn(side, side, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = time_alternately({"product": lambda: left @ right}, setting.rounds, setting.repeats, setting.device)
    return 2 * side**3 / min(seconds["product"]) / 1e12


def step_flops(setting: Setting, cell: Cell) -> float:
    step = relvit_step(cell, phases(cell)[0], *setting.batch(cell.image_size, cell.batch_size))
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / cell.batch_size / 1e9


def full_and_bare(setting: Setting, cell: Cell, batch: tuple, precision: str, how: str) -> dict[str, Any]:
    """Images a second of the full step; its time as a multiple of timm's bare step, both alike compiled or eager, and
    the share of it that is augmentation; whether it waits for the GPU."""
    counters.clear()
    compile, compiler = ("never", INDUCTOR) if how == "eager" else ("always", setting.compilers[how])
    make = partial(relvit_step, cell, phases(cell)[0], *batch, precision, compile, compiler=compiler)
    steps = {
        "full": make(),
        "normalised alone": make(augmented=False),
        "bare": bare_step(cell.backbone, *batch, precision, compile, compiler),
    }
    began = time.perf_counter()
    steps["full"]()
    first = time.perf_counter() - began
    seconds = time_alternately(steps, setting.rounds, setting.repeats, setting.device)
    full = statistics.median(seconds["full"])
    ratio = {name: statistics.median(f / o for f, o in zip(seconds["full"], each)) for name, each in seconds.items()}
    found: dict[str, Any] = {
        "images a second": len(batch[0]) / full,
        "full / bare": ratio["bare"],
        "augmentation's share": 1 - 1 / ratio["normalised alone"],
        FIRST: first,
    }
    if compiler is GRAPHS and (left := counters["inductor"]["cudagraph_skips"]):
        found["graphs that were not captured"] = left
    if setting.on_gpu:
        found["waits for the GPU"] = waits(steps["full"])
        found["GB of GPU memory, the three steps"] = torch.cuda.max_memory_reserved() / 1e9
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found


def packed(setting: Setting) -> dict[str, float]:
    """Images a second of one process that trains alone, and of two at once, together."""
    cell = setting.cell(setting.vit, "pretrain_finetune", precision="bf16")
    how = {"pair_head": HEADS[0], "classes": CLASSES, "device": str(setting.device)}
    how |= {"compile": "never", "seconds": 0.2} if setting.smoke else {"compile": "always", "seconds": 10.0}
    one, two = (images_per_second(count, cell, **how) for count in (1, 2))
    return {"one": one, "two": two, "gain": two / one}


class _PatchByPatch(TorchDataset):
    """Images that are augmented as the published code does it: each patch of each image on its own, on a CPU."""

    def __init__(self, count: int):
        self._images = torch.rand(count, 3, 32, 32)

    @cached_property
    def _augment(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return patch_loop()  # made in the process that uses it

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> torch.Tensor:
        torch.set_num_threads(1)
        return self._augment(self._images[index])


def loader_speed(setting: Setting) -> float:
    count, workers = (16, 1) if setting.smoke else (2048, 8)
    batches = iter(DataLoader(_PatchByPatch(count), batch_size=count // (16 * workers), num_workers=workers))
    for _ in range(workers):  # each process has begun
        next(batches)
    started = time.perf_counter()
    return sum(len(batch) for batch in batches) / (time.perf_counter() - started)


# (c) The paper


def paper(report: Report, setting: Setting, data: Path, out: Path) -> None:
    """Table 4's supervised row and its best, on the whole of CIFAR-10 as in section 3.1, in as many epochs as fit."""
    part, chosen = "c. the paper", "epochs a phase (the paper: 100)"
    try:
        dataset = made_up(200, 32) if setting.smoke else prepare("cifar10", data, 32, download=False)
    except Exception as error:  # whatever is wrong with the images: parts (a) and (b) need none
        report.add(part, "CIFAR-10", f"not run: {error}")
        return
    report.add(part, "CIFAR-10", f"{len(dataset.train):,} training and {len(dataset.test):,} test images")
    cells = {"supervised (paper: 85.38)": NONE, "sprel+abspos (paper: 90.13)": "sprel+abspos"}
    fit = 1 if setting.smoke else max(2, min(100, epochs_that_fit(report, setting, len(dataset.train), 2 * len(cells))))
    epochs = report.of(part, chosen) or fit
    name_of = lambda name: f"{name}, {epochs} epochs a phase"  # noqa: E731
    if epochs < fit and all(_is_done(report.figures[part].get(name_of(name))) for name in cells):
        epochs = fit  # a second run that has more time
    report.add(part, chosen, epochs)
    for number, (tested, tasks) in enumerate(cells.items()):
        name, share = name_of(tested), time.monotonic() + report.seconds_left / (len(cells) - number)
        fields = {"pretrain_epochs": epochs, "epochs": epochs, "warmup_epochs": epochs // 10, "precision": "bf16"}
        cell = setting.cell(setting.vit, "pretrain_finetune", tasks, **fields)
        # In a second run, and where the process died, it goes on from its newest checkpoint.
        known = report.figures[part].get(name)
        if _is_done(known):
            continue
        if report.seconds_left < 0:
            report.add(part, name, known or OPEN)
            continue
        try:
            how = {"device": str(setting.device), "compile": "never" if setting.smoke else "auto"}
            run = train(cell, dataset, out / "cells" / cell.cell_id, checkpoint_every=None, **how)
            for row in run:
                measured = {key: value for key, value in row.items() if "accuracy" in key or key in _OF_A_ROW}
                report.add(part, name, measured)
                if time.monotonic() > share and row["phase"] != "test":
                    report.add(part, name, measured | {"note": "stopped: the time is up"})
                    run.close()
                    break
        except Exception as error:
            enter_failure(report, part, name, error)


def epochs_that_fit(report: Report, setting: Setting, images: int, phases: int) -> int:
    """How many epochs each of so many phases can have in the time left, by the speed that was measured."""
    ways = ((precision, how) for precision, how in (("bf16", "inductor"), ("bf16", EAGER), ("fp32", EAGER)))
    known = [report.of(FAST, step_name(setting, setting.vit, *way)) for way in ways]
    step = next(filter(None, known), {"images a second": 1000.0})
    # What an epoch takes beside its steps (validation, checkpoints) is a third more; each phase is compiled, from
    # caches in part.
    left = report.seconds_left - 0.75 * phases * step.get(FIRST, 0.0)
    return int(left * step["images a second"] / (1.33 * images * phases))


def _is_done(figure: Any) -> bool:
    return isinstance(figure, dict) and figure["phase"] == "test" or str(figure).startswith(FAILED)


_OF_A_ROW = ("epoch", "phase", *SPEEDS)


# What there is


def made_up(count: int, side: int) -> Dataset:
    """Images of noise in ten classes, through a Parquet data set as a user would have it."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "cifar10").mkdir()
        rng = np.random.default_rng(0)
        for split, images in (("train", count), ("test", count // 2)):
            payloads = []
            for _ in range(images):
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(buffer, "png")
                payloads.append({"bytes": buffer.getvalue(), "path": None})
            labels = list(itertools.islice(itertools.cycle(range(CLASSES)), images))
            pq.write_table(pa.table({"img": payloads, "label": labels}), root / "cifar10" / f"{split}.parquet")
        return prepare("cifar10", root, side, download=False)


def machine(setting: Setting) -> dict[str, str]:
    name = torch.cuda.get_device_name() if setting.on_gpu else f"no GPU: {platform.processor() or platform.machine()}"
    versions = {"torch": torch.__version__, "timm": timm.__version__, "Python": platform.python_version()}
    return {"device": name, "CPUs": str(os.cpu_count()), **versions, **({"smoke": "yes"} if setting.smoke else {})}


def main() -> int:
    options = parse()
    setting = Setting(options.device if torch.cuda.is_available() else "cpu", options.smoke)
    if not setting.on_gpu and not options.smoke:
        print("there is no GPU that torch can use: --smoke tries this command on a CPU", file=sys.stderr)
        return NO_GPU
    report = Report(options.out, options.minutes)
    try:
        report.require(machine(setting))
    except ValueError as error:
        print(error, file=sys.stderr)
        return NO_GPU
    began, total = time.monotonic(), report.seconds_left
    right(report, setting, began + 0.2 * total)
    fast(report, setting, began + 0.6 * total)
    paper(report, setting, options.data, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
