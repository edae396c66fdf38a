"""Where MLflow keeps its runs, read only: a database, with a few plain SELECTs, or whatever MLflow's client can reach.

A database is read around MLflow's client for two reasons. The client takes milliseconds a metric and run; and opening
a database of an older schema, or none, with it would migrate or make it, which is not a reader's business.
"""

import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import quote, urlsplit

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one a file, thousands of files

import mlflow
import pyarrow as pa
import sqlalchemy
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db.db_types import DATABASE_ENGINES
from mlflow.store.tracking.dbmodels import models
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from relvit.secrets import redacted

logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # tracebacks of what is raised here as a sentence

_PAGE = 1000
_PATIENCE = 60  # seconds that a reader waits for a writer of the same SQLite file


class GatherError(ValueError):
    """Why no runs could be gathered. Nothing was overwritten."""


POINTS = pa.schema(
    {
        "run_id": pa.dictionary(pa.int32(), pa.string()),
        "metric": pa.dictionary(pa.int32(), pa.string()),
        "step": pa.int64(),
        "value": pa.float64(),
        "time": pa.timestamp("ms", tz="UTC"),
    }
)


class Latest(NamedTuple):
    """A metric's point of the last step, of several the last logged. time: Unix, milliseconds."""

    step: int
    time: int
    value: float


@dataclass
class Run:
    """A run as MLflow lists it, without its history. latest: by name of the metric. Times: Unix, milliseconds; end_time
    None for a run that never ended."""

    run_id: str
    status: str
    start_time: int
    end_time: int | None
    artifact_uri: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    latest: dict[str, Latest] = field(default_factory=dict)


class Store(Protocol):
    """What can be gathered from. requests: how many are worth making at once."""

    requests: int

    def runs(self, experiment: str) -> list[Run]:
        """All runs of an experiment that are not deleted. Raises GatherError."""

    def points(self, runs: list[Run]) -> pa.Table:
        """Every point of these runs, with the schema POINTS, sorted by run, metric and step. Raises GatherError."""

    def artifact(self, run: Run, name: str) -> bytes:
        """A file at the root of a run's artifacts. Raises GatherError."""


def open_store(uri: str) -> Store:
    """The store at a tracking URI. Raises GatherError where there is none, or none that this MLflow can read."""
    scheme = urlsplit(uri).scheme.partition("+")[0]
    if scheme in DATABASE_ENGINES:
        return Database(uri)
    if not scheme:
        what = f"sqlite:///{uri}" if uri and Path(uri).is_file() else "sqlite:///PATH or http://HOST:PORT"
        raise GatherError(f"{uri!r} is not a tracking URI; a database or a server is named like {what}")
    return Client(uri)


class Database:
    """A tracking database. Reads in short transactions, so that a sweep at work on it need not wait."""

    requests = 1

    def __init__(self, uri: str):
        self._uri, self._name = uri, redacted(uri)
        try:
            self._engine = self._connect()
        except (sqlalchemy.exc.ArgumentError, ImportError) as error:
            raise self._unusable(error) from error
        self._check_schema()

    def _connect(self) -> sqlalchemy.Engine:
        if sqlalchemy.make_url(self._uri).get_backend_name() != "sqlite":
            return sqlalchemy.create_engine(self._uri)
        database = sqlalchemy.make_url(self._uri).database
        if not database:
            raise GatherError(
                f"{self._name!r} names no file; a database is named like sqlite:///PATH, with three slashes"
            )
        path = Path(database).absolute()
        if not path.is_file():
            raise GatherError(f"no tracking database at {path}: run a sweep first, or name another with --tracking-uri")
        # Not read-only: what a writer that was killed left half-written must be rolled back by whoever comes next.
        address = f"file:{quote(str(path))}?mode=rw"
        return sqlalchemy.create_engine(
            "sqlite://",
            creator=lambda: sqlite3.connect(address, uri=True, timeout=_PATIENCE, check_same_thread=False),
            poolclass=sqlalchemy.pool.NullPool,
        )

    def _check_schema(self) -> None:
        script = ScriptDirectory(str(Path(mlflow.__file__).parent / "store/db_migrations"))
        needed = script.get_current_head()
        with self._reading() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        if found == needed:
            return
        if found is None:
            raise GatherError(f"{self._name} is no tracking database of MLflow: it has no schema version")
        version = mlflow.__version__
        try:
            script.get_revision(found)
        except CommandError:
            raise GatherError(
                f"{self._name} was written by a newer MLflow (schema {found}) than the one installed here, {version}, "
                "which leaves it alone; install that version: pip install --upgrade mlflow"
            ) from None
        raise GatherError(
            f"{self._name} has the schema of an older MLflow ({found}; MLflow {version} needs {needed}) and was left "
            f"alone; make a copy of it, then run: mlflow db upgrade {self._name}"
        )

    @contextmanager
    def _reading(self) -> Iterator[sqlalchemy.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> GatherError:
        return GatherError(f"the tracking database {self._name} cannot be read: {reason(error, self._uri)}")

    def runs(self, experiment: str) -> list[Run]:
        experiments, runs = models.SqlExperiment.__table__.c, models.SqlRun.__table__.c
        with self._reading() as connection:
            select = sqlalchemy.select(experiments.name, experiments.experiment_id, experiments.lifecycle_stage)
            found = {name: (number, stage) for name, number, stage in connection.execute(select)}
            _require(experiment, {name: stage for name, (_, stage) in found.items()}, self._name)
            ours = (runs.experiment_id == found[experiment][0], runs.lifecycle_stage == "active")
            columns = (runs.run_uuid, runs.status, runs.start_time, runs.end_time, runs.artifact_uri)
            listed = [Run(*row) for row in connection.execute(sqlalchemy.select(*columns).where(*ours))]
            by_id, ids = {run.run_id: run for run in listed}, sqlalchemy.select(runs.run_uuid).where(*ours)
            for model, name in ((models.SqlParam, "params"), (models.SqlTag, "tags")):
                table = model.__table__.c
                select = sqlalchemy.select(table.run_uuid, table.key, table.value).where(table.run_uuid.in_(ids))
                for run_id, key, value in connection.execute(select):
                    getattr(by_id[run_id], name)[key] = value
            latest = models.SqlLatestMetric.__table__.c
            for run_id, key, step, value, time in connection.execute(_select(latest).where(latest.run_uuid.in_(ids))):
                by_id[run_id].latest[key] = Latest(step, time, float("nan") if value is None else value)
        return listed

    def points(self, runs: list[Run]) -> pa.Table:
        table = models.SqlMetric.__table__.c
        with self._reading() as connection:
            chosen = table.run_uuid.in_([run.run_id for run in runs])
            order = (table.run_uuid, table.key, table.step, table.timestamp)
            rows = connection.execute(_select(table).where(chosen).order_by(*order)).all()
        points = _points(rows)
        return points.set_column(3, POINTS.field("value"), points["value"].fill_null(float("nan")))

    def artifact(self, run: Run, name: str) -> bytes:
        return _artifact(run, name, self._uri)


class Client:
    """A tracking server, or anything else that MLflow's client reads."""

    requests = 8

    def __init__(self, uri: str):
        self._uri, self._name = uri, redacted(uri)
        with self._asking():
            self._client = MlflowClient(uri)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
            raise GatherError(f"MLflow at {self._name} cannot be read: {reason(error, self._uri)}") from error

    def runs(self, experiment: str) -> list[Run]:
        with self._asking():
            with _few_retries():  # a wrong address should not take minutes to be called one
                found = self._client.get_experiment_by_name(experiment)
            if found is None:
                _require(experiment, {each.name: "active" for each in self._client.search_experiments()}, self._name)
            _require(experiment, {experiment: found.lifecycle_stage}, self._name)
            return [self._run(run) for run in search(self._client, found.experiment_id)]

    @staticmethod
    def _run(run: mlflow.entities.Run) -> Run:
        info, data = run.info, run.data
        # Only the message has each latest value's step and time.
        latest = {metric.key: Latest(metric.step, metric.timestamp, metric.value) for metric in data.to_proto().metrics}
        # A run that never ended has no end_time, which a server says as 0.
        end_time = info.end_time or None
        return Run(
            info.run_id, info.status, info.start_time, end_time, info.artifact_uri, data.params, data.tags, latest
        )

    def points(self, runs: list[Run]) -> pa.Table:
        with self._asking():
            return _points(
                (run.run_id, name, point.step, point.value, point.timestamp)
                for run in runs
                for name in sorted(run.latest)
                for point in self._client.get_metric_history(run.run_id, name)
            )

    def artifact(self, run: Run, name: str) -> bytes:
        return _artifact(run, name, self._uri)


def search(client: MlflowClient, experiment_id: str, condition: str = "") -> list[mlflow.entities.Run]:
    """All runs of an experiment that are not deleted and fit a filter of MLflow's."""
    page = client.search_runs([experiment_id], condition, ViewType.ACTIVE_ONLY, _PAGE)
    runs = list(page)
    while page.token:
        page = client.search_runs([experiment_id], condition, ViewType.ACTIVE_ONLY, _PAGE, page_token=page.token)
        runs += page
    return runs


def _select(table: object) -> sqlalchemy.Select:
    """Points of one of MLflow's two tables of metrics; null is what is not a number, which MLflow writes as a mark."""
    value = sqlalchemy.case((table.is_nan == sqlalchemy.true(), None), else_=table.value)
    return sqlalchemy.select(table.run_uuid, table.key, table.step, value, table.timestamp)


def _points(rows: Iterable[tuple]) -> pa.Table:
    columns = list(zip(*rows)) or [()] * len(POINTS)
    return pa.Table.from_arrays([pa.array(column, each.type) for column, each in zip(columns, POINTS)], schema=POINTS)


def _artifact(run: Run, name: str, tracking_uri: str) -> bytes:
    try:
        if is_local_uri(run.artifact_uri):
            return Path(local_file_uri_to_path(run.artifact_uri), name).read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            repository = get_artifact_repository(run.artifact_uri, tracking_uri=tracking_uri)
            return Path(repository.download_artifacts(name, folder)).read_bytes()
    except (MlflowException, OSError, ImportError) as error:
        raise GatherError(reason(error, tracking_uri)) from error


def _require(experiment: str, stages: dict[str, str], name: str) -> None:
    """Raise GatherError unless the experiment is among those known, by their stage of life, and not deleted."""
    if experiment not in stages:
        raise GatherError(f"no experiment {experiment!r} in {name}; there are: {', '.join(sorted(stages))}")
    if stages[experiment] != "active":
        raise GatherError(f"experiment {experiment!r} in {name} was deleted; mlflow experiments restore brings it back")


@contextmanager
def _few_retries() -> Iterator[None]:
    variable = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def reason(error: Exception, uri: str) -> str:
    """The first line of an error, which may quote the URI, without the password in it."""
    lines = filter(None, (line.strip() for line in str(error).splitlines()))
    text, password = next(lines, type(error).__name__), urlsplit(uri).password
    return (text.replace(password, "***") if password else text)[:300]
