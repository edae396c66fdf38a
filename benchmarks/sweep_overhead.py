"""The demo from start to end: its time, the engine's overhead over the training itself, and that it learns.

    python benchmarks/sweep_overhead.py        about 5 minutes on two cores; claims: 8 minutes, 1.25, 90 %, twice

Overhead is the whole command's time over the sum of the cells' training times divided by the trials at once (one a
core). SpRel accuracy is held against the rate of the most frequent relation, which a model that learned nothing gets.
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
from relvit.targets import spatial_relations
from relvit.tasks import majority_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="*", help="options of sweeps/ablation.py, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([sys.executable, ROOT / "sweeps/ablation.py", *options.arguments], cwd=folder, check=True)
        makespan = time.perf_counter() - started
        cells = {
            Cell(**json.loads(path.with_name("cell.json").read_text())): json.loads(path.read_text())[-1]
            for path in Path(folder).glob("results/cells/*/history.json")
        }
    training, slots = sum(result["training_seconds"] for result in cells.values()), os.cpu_count()
    print(f"{len(cells)} cells in {makespan:.0f} s (claim: at most 480 s)")
    print(
        f"overhead: {makespan:.0f} s over {training:.0f} s of training on {slots} slots = "
        f"{makespan / (training / slots):.3f} (claim: at most 1.25)"
    )
    for cell, result in cells.items():
        if cell.tasks == "none":
            print(f"supervised: test accuracy {result['test_accuracy']:.2f} % (claim: at least 90)")
        if cell.tasks == "sprel":
            majority = majority_rate(spatial_relations(*cell.grid))
            print(
                f"sprel: test SpRel accuracy {result['test_sprel_accuracy']:.2f} %, "
                f"{result['test_sprel_accuracy'] / majority:.2f} times the majority's {majority:.2f} % (claim: twice)"
            )


if __name__ == "__main__":
    main()
