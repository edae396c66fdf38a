"""From Parquet to all tables and figures of a study, in a process of its own: how long it takes.

    python benchmarks/tables.py               16 cells of Table 4 with 5 seeds, 100 + 100 epochs of 10 metrics

Claim: at most 15 s, from the start of the process to tables in every format, document, figures, page and provenance.
The runs are made up and written as gathering writes them; gathering itself is measured by benchmarks/gather.py.
Exit status: 1 where the claim is missed. With a smaller study there is no claim.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np
import pandas as pd

CLAIM = 15.0  # seconds
SEEDS, EPOCHS = 5, 100
# Beside those that figures show, as a run logs them in either phase.
_OTHER_METRICS = ("epoch", "learning_rate", "epoch_seconds", "images_per_second", "train_loss", "train_accuracy")


def write_study(folder: Path, seeds: int, epochs: int) -> None:
    """Runs and metrics of finished runs of all 16 cells as Parquet, by study."""
    from relvit.cell import PAPER_TASKS
    from sweeps.planning.plan import Request, plan_cells

    settings = (f"pretrain_epochs={epochs}", f"epochs={epochs}", "warmup_epochs=1")
    request = Request("table4", "paper", Path("data"), seeds=tuple(range(seeds)), settings=settings)
    names = dict(zip(PAPER_TASKS, ("sprel_accuracy", "dist_mse_x100", "ang_mse_x100", "abspos_accuracy")))
    generator = np.random.default_rng(0)
    runs, points = [], []
    for number, cell in enumerate(plan_cells(request)):
        measured = [names[task] for task in cell.task_list]
        run = {
            **cell.as_dict(),
            "cell_id": cell.cell_id,
            "run_id": f"{number:032x}",
            "status": "FINISHED",
            "start_time": pd.Timestamp(number, unit="s", tz="UTC"),
            "end_time": pd.Timestamp(number + 3600, unit="s", tz="UTC"),
            "git_commit": "0123456789abcdef",
            "git_dirty": "false",
            "device": "made up",
            "training_seconds": 3600 + 60 * generator.normal(),
            "test_accuracy": 89 + generator.normal(0, 0.3),
            **{f"test_{metric}": 20 + generator.normal() for metric in measured},
        }
        runs.append(run)
        for phase, first in (("pretrain", 1), ("finetune", 1 + epochs)):
            shown = [f"val_{each}" for each in measured] if phase == "pretrain" and measured else ["val_accuracy"]
            for metric in [*(f"{phase}_{each}" for each in shown), *_OTHER_METRICS]:
                steps = np.arange(first, first + epochs)
                points.append(
                    pd.DataFrame({"metric": metric, "step": steps, "value": generator.normal(50, 5, epochs)}).assign(
                        run_id=run["run_id"], cell_id=cell.cell_id
                    )
                )
    for name, frame in (("runs", pd.DataFrame(runs)), ("metrics", pd.concat(points))):
        path = folder / f"{name}.parquet" / "study=table4" / "000001.parquet"
        path.parent.mkdir(parents=True)
        frame.to_parquet(path, index=False)


def set_everything(folder: Path) -> None:
    """What `python analysis/make_tables.py --no-attach` does once it has gathered. Prints seconds of each part."""
    start = time.perf_counter()
    from rich.console import Console

    from analysis.make_tables import make, parse_arguments
    from analysis.output.typeset import FORMATS
    from analysis.runs.gather import Gathered

    imported = time.perf_counter()
    runs = pd.read_parquet(folder / "runs.parquet").astype({"study": "string"})
    read = time.perf_counter()
    options = parse_arguments(["--out", str(folder), "--no-attach"])
    make(options, Console(file=io.StringIO()), Gathered(runs, folder, 0, []), list(FORMATS))
    made = time.perf_counter()
    print(f"imports {imported - start:.2f} s; runs {read - imported:.2f} s; tables, figures, page {made - read:.2f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each phase (default: %(default)s)")
    parser.add_argument("--of", type=Path, help=argparse.SUPPRESS)  # the process that is measured
    options = parser.parse_args()
    if options.of:
        set_everything(options.of)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder, options.seeds, options.epochs)
        start = time.perf_counter()
        subprocess.run([sys.executable, __file__, "--of", str(folder)], check=True)
        seconds = time.perf_counter() - start
        files = [path.name for path in folder.iterdir() if path.is_file()]
    pictures = sum(each.endswith((".png", ".pdf")) for each in files)
    print(f"{16 * options.seeds} runs of {2 * options.epochs} epochs: {len(files)} files, {pictures} of them pictures")
    print(f"from Parquet to all of them {seconds:.1f} s in all")
    if options.seeds < SEEDS or options.epochs < EPOCHS:
        return 0
    print(f"claim: at most {CLAIM:g} s: {'held' if seconds <= CLAIM else 'missed'}")
    return int(seconds > CLAIM)


if __name__ == "__main__":
    sys.exit(main())
