"""Points of runs, and tags with them, in as little of the driver's time as possible.

MLflow's client makes objects of each point: 10 ms of processor time a request, and 2 ms a row of 15 points. Into a
SQLite file, which only this process writes, points of names that MLflow has taken before go by two statements, with the
outcome that its own code has: each point once, and of each name the latest by step, time and value. That takes a tenth.
"""

import math
import sys
from collections.abc import Mapping, Sequence

import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Metric, RunTag
from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlRun
from sqlalchemy.dialects.sqlite import insert

from relvit.files import sqlite_file

_COLUMNS = {"key", "value", "timestamp", "step", "is_nan", "run_uuid"}
_METRICS, _LATEST = SqlMetric.__table__, SqlLatestMetric.__table__
_ORDER = ("step", "timestamp", "value")
_PATIENCE = 20  # seconds for which MLflow too waits for a file that another process has locked

_STAGE: sqlalchemy.Select = sqlalchemy.select(SqlRun.lifecycle_stage).where(
    SqlRun.run_uuid == sqlalchemy.bindparam("run")
)
_KEEP = insert(_METRICS).on_conflict_do_nothing()
_OFFERED = insert(_LATEST)
_NEW, _OLD = (sqlalchemy.tuple_(*(table[name] for name in _ORDER)) for table in (_OFFERED.excluded, _LATEST.c))
_KEEP_LATEST = _OFFERED.on_conflict_do_update(
    index_elements=["key", "run_uuid"],
    set_={name: _OFFERED.excluded[name] for name in (*_ORDER, "is_nan")},
    where=_NEW > _OLD,
)


class Points:
    """Logs for a tracking URI. Raises what MLflow's client raises, or SQLAlchemy's errors of a database."""

    def __init__(self, client: MlflowClient, uri: str):
        self._client = client
        self._tags: dict[str, dict[str, str]] = {}  # by run, what it has from here
        self._names: set[str] = set()  # of metrics, that MLflow has taken
        self._engine: sqlalchemy.Engine | None = None
        # Another MLflow may keep more of a point.
        if sqlite_file(uri) and set(_METRICS.columns.keys()) == set(_LATEST.columns.keys()) == _COLUMNS:
            self._engine = sqlalchemy.create_engine(uri, connect_args={"timeout": _PATIENCE})

    def log(self, run_id: str, points: Sequence[Metric], tags: Mapping[str, str]) -> None:
        """Log points of a run, at most as many as MLflow takes at once, and tags. What it has already stays."""
        known = self._tags.setdefault(run_id, {})
        changed = [RunTag(name, value) for name, value in tags.items() if known.get(name) != value]
        if points and self._names.issuperset(point.key for point in points) and self._insert(run_id, points):
            points = ()
        if points or changed:
            self._client.log_batch(run_id, metrics=points, tags=changed)
        self._names.update(point.key for point in points)
        known.update(tags)

    def forget(self, run_id: str) -> None:
        """Of a run that has ended."""
        self._tags.pop(run_id, None)

    def _insert(self, run_id: str, points: Sequence[Metric]) -> bool:
        """Returns whether it was done: not where the run is gone, which MLflow says, nor into what is no such file."""
        if self._engine is None:
            return False
        rows = [_row(run_id, point) for point in points]
        latest: dict[str, dict] = {}
        for row in rows:
            known = latest.setdefault(row["key"], row)
            if _order(row) > _order(known):
                latest[row["key"]] = row
        with self._engine.begin() as connection:
            if connection.execute(_STAGE, {"run": run_id}).scalar() != LifecycleStage.ACTIVE:
                return False
            connection.execute(_KEEP, rows)
            connection.execute(_KEEP_LATEST, list(latest.values()))
        return True


def _order(row: dict) -> tuple:
    return tuple(row[name] for name in _ORDER)


def _row(run_id: str, point: Metric) -> dict:
    """As MLflow stores a point: what is no number as 0, infinity as the largest number."""
    is_nan, most = math.isnan(point.value), sys.float_info.max
    value = 0.0 if is_nan else min(max(point.value, -most), most)
    return {
        "run_uuid": run_id,
        "key": point.key,
        "value": value,
        "timestamp": point.timestamp,
        "step": point.step,
        "is_nan": is_nan,
    }
