"""A study of a thousand cells that take about a second each: what the engine itself costs.

    python benchmarks/many_cells.py               1,008 cells, 63 seeds of Table 4's 16; about 15 minutes on two cores
    python benchmarks/many_cells.py --seeds 5     80 cells

Claims: the plan appears within 2 s of the start, the driver stays under 1 GiB, and the same command on the finished
study returns in under 10 s. Throughput, and what a trial costs beyond its own training, are said. Exit status 1 where a
claim is missed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECOND = ("train_images=400", "pretrain_epochs=2", "epochs=2", "warmup_epochs=1")


def command(seeds: int) -> list[str]:
    settings = [argument for setting in SECOND for argument in ("--set", setting)]
    return [sys.executable, str(ROOT / "sweeps/ablation.py"), "--seeds", ",".join(map(str, range(seeds))), *settings]


def start(seeds: int, folder: str) -> tuple[float, float, int]:
    """Run the command. Returns seconds to the line that sums up the plan, to the end, and the driver's peak memory."""
    started = time.perf_counter()
    process = subprocess.Popen(command(seeds), cwd=folder, stdout=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            lines = status.read_text().splitlines() if status.exists() else []
            peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))])
            time.sleep(0.5)

    watcher = threading.Thread(target=watch)
    watcher.start()
    planned = 0.0
    for line in process.stdout:
        if not planned and " cells: " in line:
            planned = time.perf_counter() - started
    process.wait()
    watcher.join()
    if process.returncode:
        sys.exit(f"the sweep ended with {process.returncode}")
    return planned, time.perf_counter() - started, peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=63, help="of each of the 16 cells (default: %(default)s)")
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as folder:
        # The data is decoded by whoever comes first; that is not what is measured.
        subprocess.run([*command(1), "--tasks", "none"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        planned, seconds, peak = start(seeds, folder)
        histories = [json.loads(path.read_text()) for path in Path(folder).glob("results/cells/*/history.json")]
        _, again, _ = start(seeds, folder)
    training, slots = sum(rows[-1]["training_seconds"] for rows in histories), os.cpu_count()
    cells = len(histories)
    print(f"{cells} cells, {training / cells:.2f} s of training each, {slots} at once")
    print(f"plan after {planned:.2f} s (claim: 2 s)")
    print(f"the driver's memory: {peak / 2**20:.0f} MiB at most (claim: 1,024)")
    print(
        f"{seconds:.0f} s in all: {cells / seconds * 60:.0f} cells a minute; "
        f"{(seconds - training / slots) / cells * slots:.2f} s a trial beyond its training"
    )
    print(f"the same command on the finished study: {again:.1f} s (claim: 10 s)")
    if planned <= 2 and peak < 2**30 and again < 10:
        return 0
    print("a claim is missed")
    return 1


if __name__ == "__main__":
    sys.exit(main())
