"""The demo from start to end: its time, the engine's overhead over the training itself, and that it learns.

    python benchmarks/sweep_overhead.py        about 5 minutes on two cores; claims: 8 minutes, 1.25, 90 %, twice
    python benchmarks/sweep_overhead.py --minutes 1     16 cells of about a minute each, 9 minutes; claim: 1.08

Overhead is the whole command's time over the sum of the cells' training times divided by the trials at once (one a
core). SpRel accuracy is held against the rate of the most frequent relation, which a model that learned nothing gets.
Exit status 1 where a claim is missed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from relvit.cell import Cell
from relvit.metrics import majority_rate
from relvit.targets import spatial_relations

PILOT_EPOCHS = 4  # of each phase, in which the length of an epoch is measured
FEWEST_EPOCHS = 3  # of each phase: two are the demo's warm-up


def sweep(folder: str, *arguments: str) -> tuple[float, dict[Cell, list[dict]]]:
    """Run sweeps/ablation.py in this folder. Returns its seconds, and the rows of each cell."""
    started = time.perf_counter()
    subprocess.run([sys.executable, ROOT / "sweeps/ablation.py", *arguments], cwd=folder, check=True)
    makespan = time.perf_counter() - started
    return makespan, {
        Cell(**json.loads(path.with_name("cell.json").read_text())): json.loads(path.read_text())
        for path in Path(folder).glob("results/cells/*/history.json")
    }


def settings_for(minutes: float, arguments: list[str]) -> list[str]:
    """The epochs with which a cell takes so long while all cores train, as a few cells tell, one a core."""
    few = [*("--set", f"pretrain_epochs={PILOT_EPOCHS}"), *("--set", f"epochs={PILOT_EPOCHS}")]
    tasks = ",".join(["sprel", "dist", "ang", "abspos"][: os.cpu_count()])
    with tempfile.TemporaryDirectory() as folder:
        _, cells = sweep(folder, *arguments, "--tasks", tasks, *few)
    seconds = sum(rows[-1]["training_seconds"] for rows in cells.values()) / len(cells) / PILOT_EPOCHS
    epochs = max(FEWEST_EPOCHS, round(60 * minutes / seconds))
    return [*("--set", f"pretrain_epochs={epochs}"), *("--set", f"epochs={epochs}")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, metavar="N", help="give the cells as many epochs as last so long (default: the demo's)"
    )
    parser.add_argument("arguments", nargs="*", help="options of sweeps/ablation.py, after --")
    options = parser.parse_args()
    settings = settings_for(options.minutes, options.arguments) if options.minutes else []
    with tempfile.TemporaryDirectory() as folder:
        makespan, cells = sweep(folder, *settings, *options.arguments)
    results = {cell: rows[-1] for cell, rows in cells.items()}
    training, slots = sum(result["training_seconds"] for result in results.values()), os.cpu_count()
    overhead, most = makespan / (training / slots), 1.08 if options.minutes else 1.25
    limit = "" if options.minutes else " (claim: at most 480 s)"
    print(f"{len(cells)} cells of {training / len(cells):.0f} s each in {makespan:.0f} s{limit}")
    print(
        f"overhead: {makespan:.0f} s over {training:.0f} s of training on {slots} slots = {overhead:.3f} "
        f"(claim: at most {most})"
    )
    met = [overhead <= most]
    if not options.minutes:
        met += [makespan <= 480, *learned(results)]
    if all(met):
        return 0
    print("a claim is missed")
    return 1


def learned(results: dict[Cell, dict]) -> list[bool]:
    """Say what the demo's supervised cell and its SpRel cell have learned. Whether each is as good as claimed."""
    met = []
    for cell, result in results.items():
        if cell.tasks == "none":
            print(f"supervised: test accuracy {result['test_accuracy']:.2f} % (claim: at least 90)")
            met.append(result["test_accuracy"] >= 90)
        if cell.tasks == "sprel":
            majority = majority_rate(spatial_relations(*cell.grid))
            print(
                f"sprel: test SpRel accuracy {result['test_sprel_accuracy']:.2f} %, "
                f"{result['test_sprel_accuracy'] / majority:.2f} times the majority's {majority:.2f} % (claim: twice)"
            )
            met.append(result["test_sprel_accuracy"] >= 2 * majority)
    return met


if __name__ == "__main__":
    sys.exit(main())
