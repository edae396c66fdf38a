"""The history of a run as one artifact, so that whoever gathers many runs need not ask metric by metric.

`history.parquet`, at the root of a run's artifacts, holds every point that MLflow holds of the run:
  metric     string, dictionary-encoded
  step       int64, the epoch over all phases
  timestamp  when it was logged, UTC, milliseconds
  value      float64
sorted by all four, so that the last point of a metric is the one that MLflow shows. The run's tag "history_points" says
how many points there are. A reader that finds another number, or other last points than the run's, has met a run that
went on, and must ask MLflow itself.
"""

import logging
import sqlite3
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from relvit.files import artifacts_beside, moved_from, sqlite_file
from relvit.vocabulary import HISTORY, HISTORY_POINTS

_LOGGER = logging.getLogger(__name__)

SCHEMA = pa.schema(
    {
        "metric": pa.dictionary(pa.int32(), pa.string()),
        "step": pa.int64(),
        "timestamp": pa.timestamp("ms", tz="UTC"),
        "value": pa.float64(),
    }
)


def create_experiment(client: MlflowClient, name: str) -> str:
    """A new experiment's id."""
    beside = artifacts_beside(client.tracking_uri, name)
    return client.create_experiment(name, artifact_location=beside.as_uri() if beside else None)


def follow_move(uri: str, name: str) -> str:
    """Where a SQLite file was moved or copied with the mlruns beside it, let an experiment's runs name the artifacts
    that lie there now: MLflow keeps absolute paths, and would write into the old place. Returns the old one, or ""."""
    path, beside = sqlite_file(uri), artifacts_beside(uri, name)
    if path is None or beside is None:
        return ""
    database = sqlite3.connect(path)
    with closing(database), database:
        found = database.execute("SELECT artifact_location FROM experiments WHERE name = ?", [name]).fetchone()
        old, now = moved_from(uri, name, found[0]) if found else "", beside.as_uri()
        if old:
            database.execute("UPDATE experiments SET artifact_location = ? WHERE name = ?", [now, name])
            database.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
                [now, len(old) + 1, len(old) + 1, f"{old}/"],
            )
    return old


def attach_history(client: MlflowClient, run_id: str, known: Iterable[Metric] | None = None) -> None:
    """Write a run's artifact anew, to be called when the run has ended, however it did. known: every point of the run,
    where the caller has logged them all; else MLflow is asked, metric by metric.

    Where the artifact cannot be written, a warning says so and the run does without: it can still be read metric by
    metric. Raises what MLflow's client raises where the tracking store itself does not answer.
    """
    if known is None:
        names = sorted(client.get_run(run_id).data.metrics)
        known = [point for name in names for point in client.get_metric_history(run_id, name)]
    points = list({(point.key, point.step, point.timestamp, point.value): point for point in known}.values())
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / HISTORY
            write_history(points, path)
            client.log_artifact(run_id, str(path))
    except (MlflowException, OSError, ImportError) as error:  # a server refuses with OSError; S3 may lack its package
        _LOGGER.warning("run %s ends without the artifact %s, which makes gathering faster: %s", run_id, HISTORY, error)
    else:
        client.set_tag(run_id, HISTORY_POINTS, len(points))


def write_history(points: Iterable[Metric], path: Path) -> None:
    """Write points as described above."""
    rows = sorted((point.key, point.step, point.timestamp, point.value) for point in points)
    columns = zip(*rows) if rows else ([],) * len(SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), path)
