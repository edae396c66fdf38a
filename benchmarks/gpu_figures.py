"""What one GPU makes of RelViT: is it right, how fast is it, and what does the paper's experiment give there.

    python benchmarks/gpu.py --minutes 15 --data DIR --out DIR

Needs torch 2.11 or newer, torchvision, timm, numpy, pillow and pyarrow; neither Ray nor MLflow. DIR/cifar10 holds
CIFAR-10 as Parquet, as class folders or as Krizhevsky's batches; without it parts (a) and (b) run alone. OUT/gpu.json
and OUT/gpu.md are written after every figure, so that what is measured stays when the run is stopped. --smoke runs
every line in a minute or two on small models and made-up images, on a CPU too: its figures mean nothing. What is
measured, and what it should reach: docs/gpu.md.
"""

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # matrix products that repeat to the bit, for (a)

import argparse
import io
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.augmentation import patch_loop
from benchmarks.training_step import CLASSES, MEAN, STD, bare_step, relvit_step, time_alternately
from relvit.backbones import build_backbone
from relvit.cell import NONE, Cell, make_cell, task_combinations
from relvit.data import DataError, Dataset, prepare
from relvit.model import RelViT
from relvit.specs import BACKBONES
from relvit.step import INDUCTOR, Step
from relvit.train import phase_augmentation, phases, train
from relvit.vocabulary import SPEEDS
from sweeps.planning.recipes import recipe

VIT, AT_224 = "vit_s4", ("vit_s32", "swin_t", "t2t_vit_14")
GRAPHS = {"options": {**INDUCTOR["options"], "triton.cudagraphs": True}}
PRECISIONS = ("fp32", "tf32", "bf16")


class Report:
    """Figures by part, written whenever one is added. done(): whether the time is up."""

    def __init__(self, folder: Path, minutes: float):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._ends = folder, time.monotonic() + 60 * minutes
        self._started = time.monotonic()
        self.figures: dict[str, dict[str, Any]] = {}

    @property
    def seconds_left(self) -> float:
        return self._ends - time.monotonic()

    def add(self, part: str, name: str, value: Any) -> None:
        self.figures.setdefault(part, {})[name] = value
        print(f"{time.monotonic() - self._started:7.0f} s  {part}: {name}: {_shown(value)}", flush=True)
        self._write("gpu.json", json.dumps(self.figures, indent=1))
        self._write("gpu.md", self._markdown())

    @contextmanager
    def attempt(self, part: str, name: str) -> Iterator[None]:
        """What fails is a figure too: the rest goes on. Nothing is begun once the time is up."""
        try:
            yield
        except Exception as error:
            text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            self.add(part, name, f"failed: {type(error).__name__}: {text[:300]}")

    def _write(self, name: str, text: str) -> None:
        scratch = self._folder / f".{name}.tmp"
        scratch.write_text(text + "\n")
        scratch.replace(self._folder / name)

    def _markdown(self) -> str:
        lines = ["# One GPU"]
        for part, figures in self.figures.items():
            lines += ["", f"## {part}", "", "| | |", "| --- | --- |"]
            lines += [f"| {name} | {_shown(value)} |" for name, value in figures.items()]
        return "\n".join(lines)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    return str(value).replace("|", "/")


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
            self.compilers["inductor, CUDA graphs"] = GRAPHS
        self.precisions = ("bf16",) if smoke else PRECISIONS
        self.combinations = [NONE, task_combinations()[-1]] if smoke else [NONE, *reversed(task_combinations()[1:])]

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


def right(report: Report, setting: Setting, seconds: float) -> None:
    part, ends = "a. right", time.monotonic() + seconds
    for name, measure in (
        ("resumed run, bit for bit", resumes_to_the_bit),
        ("synchronisations in a step", synchronisations),
        ("device against CPU, relative difference in float32", device_against_cpu),
    ):
        with report.attempt(part, name):
            report.add(part, name, measure(setting))
    pairs = [(setting.vit, tasks) for tasks in setting.combinations]
    for backbone, tasks in [*pairs[:2], *((each, "sprel+abspos") for each in setting.at_224), *pairs[2:]]:
        name = f"compiled against eager, {backbone}, {tasks}"
        if time.monotonic() > ends:
            report.add(part, name, "not reached in the time given: --minutes 60")
            continue
        with report.attempt(part, name):
            report.add(part, name, compiled_against_eager(setting, backbone, tasks))


def one_step(setting: Setting, cell: Cell, device: torch.device, compile: str = "never") -> dict[str, torch.Tensor]:
    """Losses of one step, and its gradient, of a model and a batch that are the same on every device."""
    images, labels = setting.batch(cell.image_size, 8)
    torch.manual_seed(0)
    phase = phases(cell)[0]
    backbone = build_backbone(cell.backbone, cell.image_size, position_embedding=phase.position_embedding)
    model = RelViT(backbone, phase.tasks, classes=CLASSES if phase.classify else 0).train()
    # Not augmented, since generators of different devices draw differently.
    augment = phase_augmentation(cell, phase, mean=MEAN, std=STD, training=False)
    rates = {"learning_rate": 0.0, "weight_decay": 0.0, "gradient_clip": 0.0, "weights": {}}
    compiler = setting.compilers["inductor"]
    step = Step(model, backbone.grid, augment, device=str(device), compile=compile, compiler=compiler, **rates)
    losses = step(images.to(device), labels.to(device), torch.Generator(device).manual_seed(0))
    gradient = torch.cat([parameter.grad.flatten() for parameter in step.trained])
    return {**losses, "gradient": gradient}


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
    """Of the losses and of the gradient, relative to the first."""
    pairs = [(name, value.double().cpu(), other[name].double().cpu()) for name, value in one.items()]
    return {
        name: float((mine - theirs).norm() / mine.norm()) for name, mine, theirs in pairs if name != "gradient_norm"
    }


def device_against_cpu(setting: Setting) -> dict[str, float]:
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        found: dict[str, float] = {}
        for tasks in ("sprel", "dist", "ang", "abspos", NONE):
            cell = setting.cell(setting.vit, "pretrain_finetune", tasks)
            worst = differences(one_step(setting, cell, torch.device("cpu")), one_step(setting, cell, setting.device))
            found[tasks] = max(worst.values())
        return found
    finally:
        torch.backends.cudnn.allow_tf32 = before


def compiled_against_eager(setting: Setting, backbone: str, tasks: str) -> dict[str, float]:
    cell = setting.cell(backbone, "joint", tasks)
    return differences(*(one_step(setting, cell, setting.device, compile) for compile in ("never", "always")))


def synchronisations(setting: Setting) -> str:
    """torch raises at the first operation that makes the host wait for the GPU."""
    cell = setting.cell(setting.vit, "pretrain_finetune")
    step = relvit_step(cell, phases(cell)[0], *setting.batch(cell.image_size, 8))
    step()
    if not setting.on_gpu:
        return "not seen on a CPU, which never waits"
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def resumes_to_the_bit(setting: Setting) -> str:
    """A short run of two phases against one that was stopped after each epoch, in torch's deterministic mode."""
    cell = setting.cell(
        "vit_xs4", "pretrain_finetune", pretrain_epochs=2, epochs=2, warmup_epochs=1, batch_size=32, image_size=32
    )
    dataset = made_up(200, 32)
    torch.use_deterministic_algorithms(True, warn_only=True)
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


def fast(report: Report, setting: Setting, seconds: float) -> dict[str, float]:
    """Adds its figures; returns images a second of the two cells of part (c)."""
    part, ends = "b. fast", time.monotonic() + seconds
    peak = None
    with report.attempt(part, "peak"):
        peak = peak_flops(setting)
        report.add(part, "measured peak of a bf16 matrix product, TFLOP/s", peak / 1e12)
    speeds: dict[str, float] = {}
    # What the claims need comes first: a run that is cut short has those.
    for backbone in (setting.vit, *setting.at_224):
        cell = setting.cell(backbone, "pretrain_finetune" if backbone == setting.vit else "joint")
        count = cell.batch_size
        batch = setting.batch(cell.image_size, count)
        with report.attempt(part, f"{backbone}, FLOP an image"):
            flops = step_flops(relvit_step(cell, phases(cell)[0], *batch)) / count
            report.add(part, f"{backbone}, GFLOP an image, forward and backward", flops / 1e9)
        for precision in reversed(setting.precisions):
            for how in (*setting.compilers, "eager"):
                if how != "eager" and "graphs" in how and precision != "bf16":
                    continue
                name = f"{backbone}, batch {count}, {precision}, {how}"
                if time.monotonic() > ends:
                    report.add(part, name, "not reached in the time given: --minutes 60")
                    continue
                with report.attempt(part, name):
                    found = full_and_bare(setting, cell, batch, precision, how)
                    if peak and precision == "bf16":
                        found["share of the bf16 peak"] = found["images a second"] * flops / peak
                    report.add(part, name, found)
                    if backbone == setting.vit and how == "inductor" and precision == "bf16":
                        speeds["step"] = found["images a second"]
    for name, measure in (
        ("one against two trials at once", packed),
        ("patches in a Python loop, 8 loader processes, images a second", loader_speed),
    ):
        if time.monotonic() < ends:
            with report.attempt(part, name):
                report.add(part, name, measure(setting))
    return speeds


def peak_flops(setting: Setting) -> float:
    side = 256 if setting.smoke else 8192
    left, right = (torch.randn(side, side, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = time_alternately({"product": lambda: left @ right}, setting.rounds, setting.repeats, setting.device)
    return 2 * side**3 / min(seconds["product"])


def step_flops(step: Callable[[], None]) -> float:
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def full_and_bare(setting: Setting, cell: Cell, batch: tuple, precision: str, how: str) -> dict[str, float]:
    """Images a second of the full step; its time as a multiple of timm's bare step, both alike compiled or eager, and
    the share of it that is augmentation."""
    compile, compiler = ("never", INDUCTOR) if how == "eager" else ("always", setting.compilers[how])
    make = partial(relvit_step, cell, phases(cell)[0], *batch, precision, compile, compiler=compiler)
    steps = {
        "full": make(),
        "normalised alone": make(augmented=False),
        "bare": bare_step(cell.backbone, *batch, precision, compile, compiler),
    }
    seconds = time_alternately(steps, setting.rounds, setting.repeats, setting.device)
    full = statistics.median(seconds["full"])
    ratio = {name: statistics.median(f / o for f, o in zip(seconds["full"], each)) for name, each in seconds.items()}
    found = {
        "images a second": len(batch[0]) / full,
        "full / bare": ratio["bare"],
        "augmentation's share": 1 - 1 / ratio["normalised alone"],
    }
    if setting.on_gpu:
        found["GB of GPU memory, the three steps"] = torch.cuda.max_memory_reserved() / 1e9
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found


def packed(setting: Setting) -> dict[str, float]:
    """Images a second of one process that trains alone, and of two at once, together."""
    command = [sys.executable, __file__, "--device", str(setting.device), "--worker", *["--smoke"] * setting.smoke]

    def together(count: int) -> float:
        workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        return sum(float(worker.communicate()[0].split()[-1]) for worker in workers)

    one, two = together(1), together(2)
    return {"one": one, "two": two, "gain": two / one}


def work(setting: Setting) -> float:
    """What each process of `packed` does: images a second of the step, over a while that outlasts the other's start."""
    cell = setting.cell(setting.vit, "pretrain_finetune")
    compile = "never" if setting.smoke else "always"
    step = relvit_step(cell, phases(cell)[0], *setting.batch(cell.image_size, cell.batch_size), "bf16", compile)
    step()
    for lasts in (0.0, 0.2) if setting.smoke else (10.0, 15.0):  # the first while the other is still starting
        started, steps = time.perf_counter(), 0
        while steps == 0 or time.perf_counter() - started < lasts:
            step()
            steps += 1
            if setting.on_gpu:
                torch.cuda.synchronize()
    return steps * cell.batch_size / (time.perf_counter() - started)


class _PatchByPatch(TorchDataset):
    """Images that are augmented as the published code does it: each patch of each image on its own, on a CPU."""

    def __init__(self, count: int):
        self._images = torch.rand(count, 3, 32, 32)
        self._augment = patch_loop()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> torch.Tensor:
        torch.set_num_threads(1)
        return self._augment(self._images[index])


def loader_speed(setting: Setting) -> float:
    count, workers = (16, 1) if setting.smoke else (2048, 8)
    loader = DataLoader(_PatchByPatch(count), batch_size=count // 8, num_workers=workers)
    batches = iter(loader)
    first = next(batches)  # the processes have started
    started = time.perf_counter()
    rest = sum(len(batch) for batch in batches)
    return rest / (time.perf_counter() - started) if rest else float(len(first))


# (c) The paper


def paper(report: Report, setting: Setting, dataset: Dataset, speed: float, out: Path) -> None:
    """Table 4's supervised row and its best, on the whole of CIFAR-10 as in section 3.1, in as many epochs as fit."""
    part = "c. the paper"
    cells = {"supervised (paper: 85.38)": NONE, "sprel+abspos (paper: 90.13)": "sprel+abspos"}
    images = len(dataset.train)
    # Two phases each; what an epoch takes beside its steps (validation, compiling, checkpoints) is a third more.
    epochs = int(report.seconds_left * speed / (1.33 * images * 2 * len(cells)))
    epochs = 1 if setting.smoke else max(2, min(100, epochs))
    report.add(part, "epochs a phase", f"{epochs} (the paper: 100)")
    for number, (name, tasks) in enumerate(cells.items()):
        share = time.monotonic() + report.seconds_left / (len(cells) - number)
        fields = {"pretrain_epochs": epochs, "epochs": epochs, "warmup_epochs": epochs // 10, "precision": "bf16"}
        cell = setting.cell(setting.vit, "pretrain_finetune", tasks, **fields)
        with report.attempt(part, name):
            compile = "never" if setting.smoke else "auto"
            run = train(cell, dataset, out / "cells" / cell.cell_id, device=str(setting.device), compile=compile)
            for row in run:
                measured = {key: value for key, value in row.items() if "accuracy" in key or key in _OF_A_ROW}
                report.add(part, name, measured)
                if time.monotonic() > share and row["phase"] != "test":
                    report.add(part, name, measured | {"note": "stopped: the time is up"})
                    run.close()
                    break


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="at most, for all parts (default: 15)")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="where cifar10/ is")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), metavar="DIR")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--smoke", action="store_true", help="every line once, on small models: no figure means anything"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.minutes <= 0:
        parser.error(f"--minutes must be above 0, not {options.minutes:g}")
    setting = Setting(options.device, options.smoke)
    if options.worker:
        print(work(setting))
        return
    if not setting.on_gpu and not options.smoke:
        parser.error("there is no GPU that torch can use: --smoke tries this command on a CPU")
    report = Report(options.out, options.minutes)
    report.add("machine", "this", machine(setting))
    total = report.seconds_left
    right(report, setting, 0.2 * total)
    speeds = fast(report, setting, 0.4 * total)
    part, name = "c. the paper", "CIFAR-10"
    try:
        dataset = made_up(200, 32) if options.smoke else prepare("cifar10", options.data, 32, download=False)
    except DataError as error:
        report.add(part, name, f"not run: {error}")
        return
    report.add(part, name, f"{len(dataset.train):,} training and {len(dataset.test):,} test images")
    paper(report, setting, dataset, speeds.get("step", 1000.0), options.out)


if __name__ == "__main__":
    main()
