"""MLflow, written in one place: by the driver, in batches, one permanent run per cell and storage path.

MLflow is the view that people look at; the account is the truth. A run is found by its cell's id and its storage path
and continued, no step is logged twice, and no run is left RUNNING that nothing runs. Two users who train one cell under
storage paths of their own have a run each.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the progress is what a person reads
# A server that is away is named within seconds at the start, and later waited for by the outbox.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from relvit.cell import Cell
from relvit.files import Location, sqlite_file
from relvit.messages import first_line
from relvit.secrets import redacted
from relvit.vocabulary import (
    ACCOUNT_ID,
    CELL_ID,
    DATA_FINGERPRINT,
    DEVIATION,
    DRIVER_HOST,
    DUPLICATE,
    FAILURE,
    GIT_COMMIT,
    KIND,
    METHOD,
    MOST_NOTE,
    NOTE,
    PACKAGES,
    PHASE,
    PYTHON_VERSION,
    REASON,
    RUN_NAME,
    SELECTED_EPOCH,
    STORAGE,
    STUDY,
    STUDY_KIND,
    TASK_ROWS,
    TEST,
)
from sweeps.account.account import account_id
from sweeps.account.code_version import UNKNOWN, code_tags
from sweeps.account.work import WorkItem
from sweeps.tracking.evaluation import attach_evaluation
from sweeps.tracking.history import attach_history, create_experiment, follow_move
from sweeps.tracking.naming import name_alone
from sweeps.tracking.points import Points
from sweeps.tracking.spool import Spool

# MLflow announces every table that it makes in a new database, and logs the traceback of each write to one that is
# locked; the outbox says in a line what waits.
logging.getLogger("alembic.runtime.migration").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

_LOGGER = logging.getLogger(__name__)

_RUNNING, _FINISHED, _FAILED, _KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
_PAGE = 1000
# Around what a study's page says while it trains: what it begins with, and what stands before what it said earlier.
_SO_FAR, _BELOW = "### So far\n\n", "\n\n---\n\n"
_MOST_DIGEST = 36  # characters that MLflow takes of a data set's digest
_ROWS, _METRICS = 60, 900  # a request, at most; MLflow takes 1,000 entries, tags among them
_SERVER_WRITERS = 8

# What MLflow will answer again however often it is asked.
_LASTING = {
    "BAD_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "PERMISSION_DENIED",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


class TrackingError(ValueError):
    """The tracking server or database cannot be used, and why."""


class Tracker:
    """The runs of one experiment. Open it in one process only where the tracking URI is a SQLite file.

    uri: the tracking URI; origin: the tags of a run that this program trains, which lead back to its code.
    """

    def __init__(self, uri: str, experiment: str, storage: Location):
        """Raises TrackingError if the URI cannot be used."""
        self._storage, self._account = str(storage.absolute()), account_id(storage)
        self.uri = uri
        try:
            with _one_at_a_time(uri):  # two drivers that make the tables of one new database spoil it
                self._client = MlflowClient(uri)
                found = self._client.get_experiment_by_name(experiment)
                if found and found.lifecycle_stage == LifecycleStage.DELETED:
                    raise TrackingError(
                        f"the MLflow experiment {experiment!r} at {redacted(uri)} was deleted and accepts no runs: "
                        f"restore it (mlflow experiments restore --experiment-id {found.experiment_id}), or name "
                        "another with --experiment"
                    )
                self._experiment = found.experiment_id if found else create_experiment(self._client, experiment)
                if found and uri.startswith("http"):
                    self._require_writes()
                moved_from = follow_move(uri, experiment) if found else ""
                if moved_from:
                    _LOGGER.warning("MLflow was moved: its artifacts are beside its database, not in %s", moved_from)
            runs = self._search(f"tags.{CELL_ID} != ''")
        except (MlflowException, OSError, SQLAlchemyError, ImportError) as error:
            # A driver that is missing for a database is an ImportError, a file that is none is SQLAlchemy's.
            said = str(error).replace(uri, redacted(uri)).strip().splitlines()[0]
            raise TrackingError(f"MLflow at {redacted(uri)} cannot be used: {said}") from error
        self._points = Points(self._client, uri)
        self._runs: dict[str, Run] = {}
        self._duplicates: list[tuple[Run, Run]] = []
        # A finished run before the others, the oldest first.
        for run in sorted(runs, key=lambda run: (run.info.status != _FINISHED, run.info.start_time)):
            kept = self._runs.setdefault(run.data.tags[CELL_ID], run)
            if kept is not run:
                self._duplicates.append((run, kept))
        self.origin = _origin()
        self._study_runs: dict[str, str] = {}  # by study, the id of the run that stands for it
        self._without_data: dict[str, Cell] = {}  # cells whose runs do not have their data sets as inputs yet
        self._logged: dict[str, int] = {}  # the epochs that a run has, as the bits of a number
        self._results: set[str] = set()  # cells whose run is known to have its result
        self._made: set[str] = set()  # cells whose run this tracker has made: what it has logged is all that they have
        # By cell, the rows that are to be logged; those of the runs in `_made` also once they are, so that their points
        # need not be read back when they end.
        self._rows = Spool()
        self._kept: dict[str, int] = {}  # how many rows were ever kept of a cell
        self._written: dict[str, int] = {}  # the number of the last of them that is logged
        # How many runs can be written at once: a file has one writer.
        self.writers = 1 if sqlite_file(uri) else _SERVER_WRITERS

    def _require_writes(self) -> None:
        """Raise TrackingError where the server lets this user read and no more: every run would be lost to it."""
        try:
            self._client.set_experiment_tag(self._experiment, KIND, "relvit sweeps")
        except MlflowException as error:
            if not is_passing(error):
                raise TrackingError(
                    f"MLflow at {redacted(self.uri)} accepts no runs from this user: {first_line(error)}; the "
                    "server's administrator can give the permission EDIT on the experiment"
                ) from error

    def _search(self, condition: str) -> list[Run]:
        """All runs of the experiment that fit and belong to this storage path."""
        found = search_runs(self._client, self._experiment, condition)
        return [run for run in found if self._is_ours(run.data.tags)]

    def _is_ours(self, tags: Mapping[str, str]) -> bool:
        if self._account and tags.get(ACCOUNT_ID, self._account) != self._account:
            return False  # another machine's, which has the same path
        storage = tags.get(STORAGE)
        if storage in (None, self._storage):
            return True
        # The database of one machine knows a storage folder that was moved by its old name.
        return sqlite_file(self.uri) is not None and "://" not in storage and not Path(storage).exists()

    def mark_duplicates(self) -> list[str]:
        """Take the cell's id from all but one of the runs that carry it, and say in a tag which run stands for the
        cell: a request that was answered too late, or another program, made them. Returns their run ids."""
        for run, kept in self._duplicates:
            self._client.set_tag(run.info.run_id, DUPLICATE, kept.info.run_id)
            self._client.delete_tag(run.info.run_id, CELL_ID)
            if run.info.status == _RUNNING:
                self._client.set_terminated(run.info.run_id, _KILLED)
        marked = [run.info.run_id for run, _ in self._duplicates]
        self._duplicates.clear()
        return marked

    def close_orphans(self, alive: Container[str] = ()) -> list[str]:
        """End the runs under this storage path that a dead driver left RUNNING. Returns their cells' ids.

        alive: ids of cells that other drivers hold, whose runs are left alone.
        """
        orphans = []
        for cell_id, run in list(self._runs.items()):
            if run.info.status != _RUNNING or STORAGE not in run.data.tags or cell_id in alive:
                continue
            # What is known here is of the tracker's opening: another driver may have ended the run since.
            self._runs[cell_id] = self._client.get_run(run.info.run_id)
            if self._runs[cell_id].info.status == _RUNNING:
                self._end(cell_id, _KILLED, "the driver died")
                orphans.append(cell_id)
        return orphans

    def begin(self, item: WorkItem, deviation: str = "", origin: Mapping[str, str] | None = None) -> None:
        """Make the run of an item's cell, or take it up again, and set it RUNNING. The item's studies are added to
        those of the run; a description that it has stays. deviation: what in this training differs from the cell's own
        settings (sweeps/account/failures.py); origin: as `origin`, of what trained it, with the note in it where that
        was kept; this program's unless given."""
        cell, cell_id, name = item.cell, item.cell.cell_id, item.name
        made_by = dict(self.origin if origin is None else origin)
        kept_note = made_by.pop(NOTE, "")
        note = item.note or kept_note
        tags = {
            CELL_ID: cell_id,
            STORAGE: self._storage,
            **({ACCOUNT_ID: self._account} if self._account else {}),
            STUDY: self._studies(item),
            METHOD: cell.method,
            REASON: "",
            FAILURE: "",
            DEVIATION: deviation,
            **({TASK_ROWS: _rows_of(cell)} if cell.tasks_digest else {}),
            **made_by,
        }
        run = self._runs.get(cell_id)
        if run is None:
            # There may be one after all: of a request that was carried out and not answered.
            run = next(iter(self._search(f"tags.{CELL_ID} = '{cell_id}'")), None)
        if run is None:
            name = name or name_alone(cell)
            tags |= {NOTE: note} if note else {}
            tags.setdefault(GIT_COMMIT, UNKNOWN)  # it is the engine's all the same
            run = self._client.create_run(self._experiment, tags=tags, run_name=name)
            self._logged[cell_id] = 0
            self._made.add(cell_id)
        else:
            tags |= {RUN_NAME: name} if name else {}
            tags |= {NOTE: note} if note and not run.data.tags.get(NOTE) else {}
            self._client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
            self._client.update_run(run.info.run_id, status=_RUNNING)
        if not run.data.params:
            params = [Param(name, str(value)) for name, value in cell.as_dict().items()]
            self._client.log_batch(run.info.run_id, params=params)
        self._runs[cell_id] = run
        if not (run.inputs and run.inputs.dataset_inputs):
            self._without_data[cell_id] = cell
        if cell_id not in self._made:
            self._logged[cell_id] = sum(1 << epoch for epoch in self._epochs(run))

    def _epochs(self, run: Run) -> set[int]:
        """The epochs whose rows the run has."""
        return {int(metric.value) for metric in self._client.get_metric_history(run.info.run_id, "epoch")}

    def _studies(self, item: WorkItem) -> str:
        """The studies that the cell belongs to, as its run's tag: those that the run knows of, and the item's."""
        run = self._runs.get(item.cell.cell_id)
        known = run.data.tags.get(STUDY, "").split(",") if run else []
        return ",".join(sorted({*known, *item.studies} - {""}))

    def tag_study(self, item: WorkItem) -> None:
        """Let the run of a finished cell know that the item's studies have it too."""
        tag, run = self._studies(item), self._runs[item.cell.cell_id]
        if tag != run.data.tags.get(STUDY):
            self._client.set_tag(run.info.run_id, STUDY, tag)

    def keep(
        self,
        cell_id: str,
        row: Mapping[str, Any],
        worker: Mapping[str, str] | None = None,
        usage: Mapping[str, float] | None = None,
    ) -> None:
        """Keep a row of metrics, with the time, on this machine's disk until `write` is called. Asks nothing of MLflow.

        worker: tags that say where it was trained; usage: what the trial's process used (driver/usage.py), logged with
        the rows of epochs alone.
        """
        number = self._kept[cell_id] = self._kept.get(cell_id, 0) + 1
        self._rows.put(cell_id, number, [row, worker or {}, usage or {}, int(time.time() * 1000)])

    def write(self, cell_id: str, is_void: Callable[[], bool] = lambda: False) -> None:
        """Log the rows that were kept of a cell, each at its epoch, in as few requests as MLflow allows; a row that its
        run has already is left alone. The same call again, after one that was not answered, changes nothing.

        A row that MLflow refuses is left out. Raises its error once the others are logged. is_void: asked before each
        request; once it answers True, no more is logged.
        """
        refused, most = None, _ROWS
        while (kept := self._rows.get(cell_id, self._written.get(cell_id, 0), most)) and not is_void():
            last = kept[0][0]
            try:
                last = self._write(cell_id, kept)
            except Exception as error:
                if is_passing(error):
                    raise
                if len(kept) > 1:  # which of them it is shows when they are logged one by one
                    most = 1
                    continue
                refused = error
                self._rows.drop(cell_id, last)
            self._written[cell_id] = last
        if refused:
            raise refused

    def _write(self, cell_id: str, kept: list[tuple[int, list[Any]]]) -> int:
        """Log as many of the rows as a request takes. Returns the number of the last."""
        metrics: list[Metric] = []
        tags: dict[str, str] = {}
        new: dict[tuple[int, bool], int] = {}
        for number, report in kept:
            row, worker, *_ = report
            which = row["epoch"], row["phase"] == TEST
            if which in new or self._has(cell_id, *which):
                self._rows.drop(cell_id, number)
            else:
                points = _points(report)
                if new and len(metrics) + len(points) > _METRICS:
                    break
                metrics += points
                tags |= {PHASE: row["phase"], **worker}
                new[which] = number
            last = number
        if new:
            self._log_data(cell_id, tags.get(DATA_FINGERPRINT, ""))
            self._points.log(self._runs[cell_id].info.run_id, metrics, tags)
        for (epoch, is_result), number in new.items():
            if is_result:
                self._results.add(cell_id)
            else:
                self._logged[cell_id] |= 1 << epoch
            if cell_id not in self._made:
                self._rows.drop(cell_id, number)
        return last

    def _has(self, cell_id: str, epoch: int, is_result: bool) -> bool:
        """Whether the cell's run has this row."""
        if not is_result:
            return bool(self._logged[cell_id] >> epoch & 1)
        if cell_id in self._made:
            return cell_id in self._results
        return SELECTED_EPOCH in self._client.get_run(self._runs[cell_id].info.run_id).data.metrics

    def log(self, cell_id: str, rows: Iterable[Mapping[str, Any]], worker: Mapping[str, str] | None = None) -> None:
        """Keep rows and log them at once."""
        for row in rows:
            self.keep(cell_id, row, worker)
        self.write(cell_id)

    def _log_data(self, cell_id: str, fingerprints: str) -> None:
        """Log the cell's data sets as its run's inputs, once their fingerprints are known."""
        if not fingerprints or cell_id not in self._without_data:
            return
        cell = self._without_data[cell_id]
        uses = [(cell.dataset, "training"), (cell.pretrain_dataset, "pre-training")]
        inputs = [
            DatasetInput(
                Dataset(name, digest[:_MOST_DIGEST], "local", json.dumps({"uri": name})),
                [InputTag("mlflow.data.context", use)],
            )
            for (name, use), digest in zip(uses, fingerprints.split("+"))
        ]
        for left in (2, 1, 0):
            try:
                self._client.log_inputs(self._runs[cell_id].info.run_id, inputs)
                break
            except MlflowException as error:
                if is_passing(error):
                    raise
                if not left:  # else another run may have entered one of the data sets at the same moment
                    _LOGGER.warning("the run of %s has no data sets as inputs: %s", cell_id, error)
        del self._without_data[cell_id]

    def finish(self, cell_id: str, folder: Location | None = None) -> None:
        """The cell is finished. folder: its own; how it did on each class is logged from there, as tables."""
        if folder is not None:
            attach_evaluation(self._client, self._runs[cell_id].info.run_id, folder)
        self._end(cell_id, _FINISHED, "")

    def fail(self, cell_id: str, reason: str, failure: str = "") -> None:
        """The cell failed for this reason, in this way (sweeps/account/failures.py)."""
        self._end(cell_id, _FAILED, reason, {FAILURE: failure})

    def interrupt(self, cell_id: str, reason: str) -> None:
        """The cell was stopped and can be continued."""
        self._end(cell_id, _KILLED, reason)

    def tag(self, cell_id: str, tags: Mapping[str, str]) -> None:
        """Say more about a cell that has a run."""
        self._client.log_batch(self._runs[cell_id].info.run_id, tags=[RunTag(*each) for each in tags.items()])

    def status(self, cell_id: str) -> str | None:
        """The status of the cell's run, as this tracker read or left it; None where it has none."""
        run = self._runs.get(cell_id)
        return run.info.status if run else None

    def tag_of(self, cell_id: str, name: str) -> str | None:
        """A tag of the cell's run when this tracker was opened; None where it has no such run or tag."""
        run = self._runs.get(cell_id)
        return run.data.tags.get(name) if run else None

    def is_finished(self, cell: Cell) -> bool:
        """Whether the cell's run is there, FINISHED, and has its last epoch and its result. Asks nothing of MLflow."""
        run = self._runs.get(cell.cell_id)
        if run is None or run.info.status != _FINISHED:
            return False
        return run.data.metrics.get("epoch") == cell.total_epochs and SELECTED_EPOCH in run.data.metrics

    def missing_epochs(self, cell: Cell) -> list[int]:
        """The epochs of a cell whose rows its run lacks, by one request."""
        return sorted(set(range(1, cell.total_epochs + 1)) - self._epochs(self._runs[cell.cell_id]))

    def rebuild(
        self, item: WorkItem, history: list[dict[str, Any]], deviation: str = "", folder: Location | None = None
    ) -> None:
        """Make the run of a finished cell whole again from its rows in the account, and its folder as in `finish`. What
        trained it is what the item's status knows of it, not this program."""
        self.begin(item, deviation, item.status.origin)
        self.log(item.cell.cell_id, history)
        self.finish(item.cell.cell_id, folder)

    def show_study(self, study: str, text: str) -> None:
        """Let the run that stands for the study begin with this text, in Markdown; what it says otherwise, as of
        analysis/make_tables.py, stays below. The run is made where there is none."""
        if study not in self._study_runs:
            found = search_runs(self._client, self._experiment, f"tags.{KIND} = '{STUDY_KIND}'")
            runs = [run for run in found if run.data.tags.get(STUDY) == study]
            run = min(runs, key=lambda run: (run.info.start_time, run.info.run_id), default=None)
            if run is None:
                run = self._client.create_run(self._experiment, tags={KIND: STUDY_KIND, STUDY: study}, run_name=study)
                self._client.set_terminated(run.info.run_id)
            self._study_runs[study] = run.info.run_id
        run_id = self._study_runs[study]
        earlier = self._client.get_run(run_id).data.tags.get(NOTE, "")
        earlier = earlier.partition(_BELOW)[2] if earlier.startswith(_SO_FAR) else earlier
        shown = f"{_SO_FAR}{text}" + (f"{_BELOW}{earlier}" if earlier else "")
        self._client.set_tag(run_id, NOTE, shown[:MOST_NOTE])

    def _end(self, cell_id: str, status: str, reason: str, more: Mapping[str, str] | None = None) -> None:
        run_id = self._runs[cell_id].info.run_id
        self.tag(cell_id, {REASON: reason[:5000], **(more or {})})
        known = [point for _, report in self._rows.get(cell_id) for point in _points(report)]
        attach_history(self._client, run_id, known if cell_id in self._made else None)
        self._client.set_terminated(run_id, status)
        self._points.forget(run_id)
        self._runs[cell_id] = self._client.get_run(run_id)
        if status == _FINISHED:
            self._rows.drop(cell_id)
            self._made.discard(cell_id)


def _points(report: list[Any]) -> list[Metric]:
    """A row that was kept as points of its epoch. The epoch itself is one of them: it marks the row as logged."""
    row, _, usage, milliseconds = report
    # The result shares its step with the last epoch's row, which has "epoch" and the usage.
    left_out, more = ({"phase", "epoch"}, {}) if row["phase"] == TEST else ({"phase"}, usage)
    numbers = {**{key: value for key, value in row.items() if key not in left_out}, **more}
    return [Metric(key, float(value), milliseconds, row["epoch"]) for key, value in numbers.items()]


def search_runs(client: MlflowClient, experiment: str, condition: str) -> list[Run]:
    """All runs of an experiment, by its id, that fit."""
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], condition, ViewType.ACTIVE_ONLY, _PAGE, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def is_passing(error: Exception) -> bool:
    """Whether a write to MLflow that failed like this may succeed later: the server is away or busy, the database
    locked."""
    if isinstance(error, MlflowException):
        return error.error_code not in _LASTING
    return isinstance(error, (OSError, OperationalError))


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Where the URI is a SQLite file: alone with it, among the drivers of this machine."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    with FileLock(database.with_name(f"{database.name}.lock")):
        yield


def _rows_of(cell: Cell) -> str:
    from relvit.tasks import describe  # loads torch, which a driver does without otherwise

    return describe(cell.task_list)


def _origin() -> dict[str, str]:
    """Tags that lead from a run back to the code that made it: this one."""
    return {
        DRIVER_HOST: platform.node(),
        **code_tags(),
        **{f"{package}_version": version(package) for package in PACKAGES},
        PYTHON_VERSION: platform.python_version(),
    }
