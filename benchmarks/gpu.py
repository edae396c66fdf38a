"""What one GPU makes of RelViT: is it right, how fast is it, and what does the paper's experiment give there.

    python benchmarks/gpu.py --minutes 15 --data DIR --out DIR

Needs torch 2.11 or newer, torchvision, timm, numpy, pillow and pyarrow; neither Ray nor MLflow. DIR/cifar10 holds
CIFAR-10 as Parquet, as class folders or as Krizhevsky's batches; without it parts (a) and (b) run alone. OUT/gpu.json
and OUT/gpu.md are written after every figure, so that what is measured stays when the run is stopped; the same command
again goes on from there. --smoke runs every line in a minute or two on small models and made-up images, on a CPU too:
its figures mean nothing. What is measured, and what it should reach: docs/gpu.md.

The figures are taken in a process of its own (gpu_figures.py). Where it dies, is stuck or has lost its GPU to an error,
the figure at hand counts as failed and another process takes the rest. OUT/gpu.md ends with the claims and whether the
figures meet them.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Of a figure that is being taken, and how one begins that could not be taken, or is still to be.
BEGUN, FAILED, OPEN = "begun", "failed: ", "not reached in the time given: --minutes 60"
MACHINE, FAST, NEVER = "machine", "b. fast", "never"
NO_GPU = 2  # exit status of a process of figures that can take none: the same as of a wrong option
_SILENT = 500.0  # seconds without a figure after which a process is stuck: more than any figure is given
_MOST_DEATHS = 10


class Report:
    """Figures by part, on the disk whenever one is added; those of an earlier run in the same folder are taken up."""

    def __init__(self, folder: Path, minutes: float):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._started = folder, time.monotonic()
        self._ends = self._started + 60 * minutes
        path = folder / "gpu.json"
        self.figures: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    @property
    def seconds_left(self) -> float:
        return self._ends - time.monotonic()

    def of(self, part: str, name: str) -> Any:
        """A figure that was taken; None where it failed or is open."""
        value = self.figures.get(part, {}).get(name)
        return None if isinstance(value, str) and value.startswith((BEGUN, FAILED, OPEN)) else value

    def is_open(self, part: str, name: str) -> bool:
        """Whether a figure is still to be taken: one that has failed is not."""
        return self.figures.get(part, {}).get(name, OPEN) == OPEN

    def require(self, machine: dict[str, str]) -> None:
        """Raises ValueError where the folder has figures of another machine, which would stand for this one's."""
        known = self.figures.get(MACHINE, {}).get("this", machine)
        if known != machine:
            raise ValueError(
                f"{self._folder} has figures of {_shown(known)}; here there is {_shown(machine)}: give another --out"
            )
        self.add(MACHINE, "this", machine)

    def add(self, part: str, name: str, value: Any) -> None:
        """Enter a figure, or what it is instead."""
        self.figures.setdefault(part, {})[name] = value
        if value != BEGUN:
            print(f"{time.monotonic() - self._started:7.0f} s  {part}: {name}: {_shown(value)}", flush=True)
        self._write("gpu.json", json.dumps(self.figures, indent=1))
        self._write("gpu.md", self._markdown())

    def end_begun(self, value: str) -> None:
        """Nobody takes what was begun any more."""
        for part, figures in self.figures.items():
            for name in [name for name, known in figures.items() if known == BEGUN]:
                self.add(part, name, value)

    def _write(self, name: str, text: str) -> None:
        scratch = self._folder / f".{name}.tmp"
        scratch.write_text(text + "\n")
        scratch.replace(self._folder / name)

    def _markdown(self) -> str:
        lines = ["# One GPU"]
        for part, figures in self.figures.items():
            lines += ["", f"## {part}", "", "| | |", "| --- | --- |"]
            lines += [f"| {name} | {_shown(value)} |" for name, value in figures.items()]
        lines += ["", "## Claims", "", "| | | |", "| --- | --- | --- |"]
        return "\n".join([*lines, *(f"| {' | '.join(claim)} |" for claim in claims(self.figures))])


def claims(figures: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """What an H100 is to reach, the figure, and whether it does: "met", "missed" or "open". ViT-S/4 at batch 256."""
    fast = {name: value for name, value in figures.get(FAST, {}).items() if isinstance(value, dict)}
    ours, eager = (fast.get(f"vit_s4, batch 256, {how}", {}) for how in ("bf16, inductor", "fp32, eager"))
    speed, slow = ours.get("images a second"), eager.get("images a second")
    waits = ours.get("waits for the GPU")
    found: list[tuple[str, Any, Callable[[Any], bool]]] = [
        ("full step in bf16, images a second: at least 20,000", speed, lambda value: value >= 20_000),
        ("over timm's bare step, both compiled: at most 1.10", ours.get("full / bare"), lambda value: value <= 1.1),
        ("over the eager step in fp32: at least 4", speed and slow and speed / slow, lambda value: value >= 4),
        ("augmentation's share: at most 0.05", ours.get("augmentation's share"), lambda value: value <= 0.05),
        ("a step waits for the GPU: never", waits, lambda value: value == NEVER),
    ]
    return [
        (claim, "", "open") if value is None else (claim, _shown(value), "met" if is_met(value) else "missed")
        for claim, value, is_met in found
    ]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    return str(value).replace("|", "/")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15.0, help="at most, for all parts (default: 15)")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="where cifar10/ is")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"), metavar="DIR")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="of several: CUDA_VISIBLE_DEVICES=1")
    parser.add_argument(
        "--smoke", action="store_true", help="every line once, on small models: no figure means anything"
    )
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes must be above 0, not {options.minutes:g}")
    return options


def supervise(command: Callable[[float], list[str]], folder: Path, minutes: float, silent: float = _SILENT) -> int:
    """Have figures taken by processes, one after the other, until one comes to its end or the time is up.

    command: of a process that has so many minutes; silent: seconds without a figure after which one is ended. Returns
    the exit status of the last.
    """
    ends, status, written = time.monotonic() + 60 * minutes, 1, folder / "gpu.json"
    if written.exists():  # what was begun when this command was interrupted is not to blame
        Report(folder, minutes).end_begun(OPEN)
    for _ in range(_MOST_DEATHS):
        left = ends - time.monotonic()
        if left <= 0:
            break
        process, began, ended = subprocess.Popen(command(left / 60)), time.time(), ""
        while process.poll() is None:
            time.sleep(0.2)
            heard = max(began, written.stat().st_mtime if written.exists() else 0)
            if time.monotonic() > ends + 30:
                ended = OPEN
            elif time.time() - heard > silent:
                ended = f"{FAILED}no end after {time.time() - heard:.0f} s"
            if ended:
                process.kill()
                process.wait()
        status = process.returncode
        if status in (0, NO_GPU):
            break
        took_none = not written.exists() or written.stat().st_mtime < began
        if took_none and not ended:  # nor would the next
            break
        Report(folder, minutes).end_begun(ended or f"{FAILED}its process ended with {status}")
    return status


def main() -> int:
    options = parse()
    figures = str(Path(__file__).with_name("gpu_figures.py"))
    return supervise(
        lambda minutes: [sys.executable, figures, *sys.argv[1:], "--minutes", f"{minutes:.3f}"],
        options.out,
        options.minutes,
    )


if __name__ == "__main__":
    sys.exit(main())
