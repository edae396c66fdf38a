"""Runs and metrics as gathered, made up so that a test can work every number out again."""

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.runs.comparability import conform
from analysis.runs.gather import Gathered
from relvit.cell import TASKS, Cell
from sweeps.planning.plan import Request, plan_cells

_LAST = {"pretrain_finetune": "finetune", "joint": "joint", "pretrain_probe": "probe"}


def planned(folder: Path, study: str, seeds: tuple[int, ...] = (0, 1, 2), **changes) -> list[Cell]:
    """The cells of a study, of 3 + 4 epochs unless `changes` say otherwise."""
    settings = changes.pop("settings", ("pretrain_epochs=3", "epochs=4", "warmup_epochs=1"))
    fields = {"recipe": "demo", "settings": settings} | changes
    return plan_cells(Request(study=study, data_root=folder, seeds=seeds, **fields))


def made_runs(cells: list[Cell], study: str, draw_seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """runs and metrics of finished cells, accuracies drawn at random in [60, 90], training_seconds in [60, 90].

    The tasks' own test metrics lie in [10, 16].
    """
    rng = np.random.default_rng(draw_seed)
    runs, points = [], []
    for number, cell in enumerate(cells):
        run_id = f"{number:032x}"
        runs.append(
            {
                "run_id": run_id,
                "cell_id": cell.cell_id,
                "status": "FINISHED",
                "start_time": pd.Timestamp(number, unit="s", tz="UTC"),
                "end_time": pd.Timestamp(number + 90, unit="s", tz="UTC"),
                "study": study,
                "git_commit": "0123456789abcdef",
                "git_dirty": "false",
                "device": "cpu (made up)",
                **cell.as_dict(),
                "test_accuracy": rng.uniform(60, 90),
                "training_seconds": rng.uniform(60, 90),
                **{f"test_{metric}": 10.0 + number % 7 for metric in _task_metrics(cell)},
            }
        )
        for step in range(1, cell.total_epochs + 1):
            first = step <= cell.pretrain_epochs
            names = ["val_accuracy"] if not first else []
            if first:
                names = [f"val_{metric}" for metric in _task_metrics(cell)] or ["val_accuracy"]
            phase = "pretrain" if first else _LAST[cell.protocol]
            points += [(run_id, cell.cell_id, f"{phase}_{name}", step, rng.uniform(10, 90)) for name in names]
    metrics = pd.DataFrame(points, columns=["run_id", "cell_id", "metric", "step", "value"])
    return pd.DataFrame(runs), metrics


def conformed_runs(cells: list[Cell], study: str, draw_seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`made_runs` as figures and pages take them: with every column that a table needs."""
    runs, metrics = made_runs(cells, study, draw_seed)
    return conform(runs), metrics


def gathered(folder: Path, runs: pd.DataFrame, metrics: pd.DataFrame) -> Gathered:
    """The same as `analysis.runs.gather.gather` leaves it under a folder, without a store that it was read from."""
    (folder / "metrics.parquet").mkdir(parents=True)
    metrics.to_parquet(folder / "metrics.parquet" / "000001.parquet", index=False)
    return Gathered(runs, folder, len(runs), [])


def _task_metrics(cell: Cell) -> list[str]:
    return [TASKS[task].metric_name for task in cell.task_list]
