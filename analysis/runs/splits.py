"""The val split in the place of the test split, for published numbers that are of val.

What a run measured on val is in its history alone: a metric of a task after the pre-training, everything of the phase
that classifies at the epoch that was selected.
"""

import pandas as pd

from relvit.vocabulary import LAST_PHASE, SELECTED_EPOCH, SPLIT, TEST

VAL = "val"
SPLITS = (TEST, VAL)


def split_of(runs: pd.DataFrame) -> str:
    """The split that the results of these runs are of."""
    return VAL if SPLIT in runs and (runs[SPLIT] == VAL).any() else TEST


def val_metrics(runs: pd.DataFrame) -> list[str]:
    """The metrics that `on_val` reads."""
    phases = dict.fromkeys(["pretrain", *LAST_PHASE.values()])
    return [f"{phase}_val_{name}" for name in _results(runs) for phase in phases]


def _results(runs: pd.DataFrame) -> list[str]:
    return [column.removeprefix("test_") for column in runs.columns if str(column).startswith("test_")]


def on_val(runs: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """The runs with what they measured on val in the columns of their results, test_*, and "val" in the column split;
    null where a run did not.

    history: the points of `val_metrics` of these runs.
    """
    points = history.assign(metric=history["metric"].astype(str), run_id=history["run_id"].astype(str))
    known = points.drop_duplicates(["run_id", "metric", "step"], keep="last").set_index(["run_id", "metric", "step"])
    values = known["value"].to_dict()
    columns: dict[str, list[float | None]] = {f"test_{name}": [] for name in _results(runs)}
    for run in runs.to_dict("records"):
        ends = [(LAST_PHASE.get(run["protocol"]), run.get(SELECTED_EPOCH)), ("pretrain", run.get("pretrain_epochs"))]
        for column, found in columns.items():
            measured = (
                values.get((run["run_id"], f"{phase}_val_{column.removeprefix('test_')}", int(step)))
                for phase, step in ends
                if not pd.isna(step)
            )
            found.append(next((value for value in measured if value is not None), None))
    changed = runs.assign(**{column: pd.array(found, dtype="Float64") for column, found in columns.items()})
    changed = changed.astype(dict.fromkeys(columns, float)).assign(**{SPLIT: VAL})
    changed.attrs = runs.attrs
    return changed
