"""MLflow's runs as two Parquet tables, brought up to date by reading only what is new. docs/schema.md says it all.

    FOLDER/runs.parquet/study=STUDY/...      one row a cell's run: its configuration, tags, outcome and results
    FOLDER/metrics.parquet/study=STUDY/...   one row for each run, metric and step

STUDY is the run's tag, which names every study that it belongs to ("figure2,table4"), so that a run is in one place
and counted once. pandas.read_parquet and polars.read_parquet open either folder, DuckDB 'FOLDER/runs.parquet/*/*'.

Both are links into FOLDER/.gathered/current, which is itself a link that changes hands once all is written: whoever
reads, or is killed, in between has the tables of last time, whole and from the same moment.
"""

import hashlib
import itertools
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from analysis.runs.stores import POINTS, GatherError, Run, Store, open_store
from relvit import vocabulary
from relvit.cell import FIELDS, LATER_FIELDS, add_described, parse_value
from relvit.messages import counted
from relvit.vocabulary import CELL_ID, HISTORY, HISTORY_POINTS, STUDY, TASK_ROWS

__all__ = ["Gathered", "GatherError", "gather", "read_gathered"]

METRICS_SCHEMA = pa.schema([POINTS.field(0), pa.field(CELL_ID, POINTS.field(0).type), *list(POINTS)[1:]])
_ATTRIBUTES = ("run_id", CELL_ID, "status", "start_time", "end_time")
_RESULTS = (vocabulary.SELECTED_EPOCH, vocabulary.TRAINING_SECONDS, vocabulary.PROCESSOR_SECONDS)

_DTYPES = {
    pa.int64(): pd.Int64Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
    pa.string(): pd.StringDtype(),
}

# Changed whenever the files change their meaning: those of another version are made anew.
_VERSION = "2"
_TABLES = ("runs", "metrics")
FILE_POINTS = 1_000_000  # a file of metrics is closed at this many rows, some 10 MB; 36 MB while in memory
BATCH = 250  # runs whose histories are read between two steps of the progress bar
_GIVE_UP = 5  # batches in a row that could not be read
_SILENCE = 15  # seconds between two lines of progress where there is no terminal


@dataclass(frozen=True)
class Gathered:
    """The runs, and where the metrics are. read: how many runs' histories were new or changed and so were read;
    notes: what was not as it should be, one sentence each; digests: by run id, one that changes with its history."""

    runs: pd.DataFrame
    folder: Path
    read: int
    notes: list[str]
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def metrics(self) -> pd.DataFrame:
        """Every point of every run; 30 bytes of memory each."""
        return self.history()

    def history(self, metrics: Collection[str] | None = None, run_ids: Collection[str] | None = None) -> pd.DataFrame:
        """The points of these metrics and runs, or of all: run_id, cell_id, metric (categories), step, value, time."""
        wanted = {"metric": metrics, "run_id": run_ids}
        conditions = [
            ds.field(name).isin(pa.array(sorted(values), pa.string()))  # whose type none of them would not tell
            for name, values in wanted.items()
            if values is not None
        ]
        where = conditions[0] if conditions else None
        for condition in conditions[1:]:
            where &= condition
        path = self.folder / "metrics.parquet"
        try:
            return ds.dataset(path).to_table(filter=where).unify_dictionaries().to_pandas()
        except (OSError, pa.ArrowException) as error:
            raise GatherError(
                f"{path} cannot be read: {error}; remove {self.folder}/.gathered, and it is gathered anew"
            ) from error


def gather(tracking_uri: str, experiment: str, folder: Path, console: Console | None = None) -> Gathered:
    """Bring the tables under `folder` up to date with an experiment's runs of cells, and return them.

    Of several runs of one cell, the finished or oldest one counts. Says on the console (default: standard error) what
    was not as it should be, and how far it is where that takes long. Raises GatherError where there is nothing to
    gather; the tables are then as they were.
    """
    console = console or Console(stderr=True)
    store = open_store(tracking_uri)
    listed = store.runs(experiment)
    notes: list[str] = []
    runs = _runs_of_cells(listed, notes)
    if not runs:
        others = f"; its {len(listed)} runs carry no tag {CELL_ID!r}, so they are not of this project" * bool(listed)
        raise GatherError(f"experiment {experiment!r} has no runs of cells yet{others}")
    _know_tasks((run.tags[TASK_ROWS] for run in reversed(runs) if run.tags.get(TASK_ROWS)), notes)
    frame = _runs_frame(runs, notes)
    home = folder / ".gathered"
    home.mkdir(parents=True, exist_ok=True)
    with _lock(home / "lock", console):
        before = _Published.find(home, notes)
        with _new_version(home) as version:
            _write_runs(frame, version / "runs.parquet")
            histories = _Histories(store, runs, before, version / "metrics.parquet")
            histories.update(console)
            histories.write_index(version)
            _publish(folder, version)
    notes += histories.notes()
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    return Gathered(frame, folder, histories.read, notes, histories.digests())


def read_gathered(folder: Path) -> Gathered:
    """The tables under `folder` as the last gathering left them, without a store. Raises GatherError where there are
    none or they are of another version of this project."""
    notes: list[str] = []
    home = folder / ".gathered"
    published = _Published.find(home, notes)
    if published.folder is None:
        raise GatherError(notes[0] if notes else f"{home} holds no gathered runs; gather them from their store first")
    path = published.folder / "runs.parquet"
    try:
        parts = [
            pq.read_table(file, partitioning=None).append_column(STUDY, pa.array([study or None] * rows, pa.string()))
            for study, file in sorted((unquote(each.parent.name[len(STUDY) + 1 :]), each) for each in path.glob("*/*"))
            for rows in [pq.read_metadata(file).num_rows]
        ]
        frame = pa.concat_tables(parts, promote_options="permissive").to_pandas(types_mapper=_DTYPES.get)
    except (OSError, pa.ArrowException) as error:
        raise GatherError(f"{path} cannot be read: {error}") from error
    order = ["run_id", CELL_ID, STUDY, *frame.columns.difference(["run_id", CELL_ID, STUDY], sort=False)]
    frame = frame[order].sort_values(["start_time", "run_id"], ignore_index=True)
    _know_tasks(frame[TASK_ROWS].dropna()[::-1] if TASK_ROWS in frame else (), notes)
    digests = {run_id: entry.digest for run_id, entry in published.runs.items()}
    return Gathered(frame, folder, 0, notes, digests)


def _runs_of_cells(listed: list[Run], notes: list[str]) -> list[Run]:
    """One run a cell, the oldest first."""

    def preference(run: Run) -> tuple[bool, int]:
        return run.status != "FINISHED", run.start_time

    chosen: dict[str, Run] = {}
    ours = [run for run in listed if run.tags.get(CELL_ID)]
    for run in sorted(ours, key=preference):
        chosen.setdefault(run.tags[CELL_ID], run)
    # A run that stands for a study (analysis/output/study_run.py) is no stranger.
    known = [
        vocabulary.DUPLICATE in run.tags or run.tags.get(vocabulary.KIND) == vocabulary.STUDY_KIND for run in listed
    ]
    strangers = sum(not run.tags.get(CELL_ID) and not own for run, own in zip(listed, known))
    if strangers and ours:
        notes.append(f"{counted(strangers, 'run')} without the tag {CELL_ID!r} left out")
    if len(chosen) < len(ours):
        notes.append(
            f"{counted(len(ours) - len(chosen), 'run')} left out of cells that have a finished or an older run too"
        )
    homeless = sum(not run.tags.get(STUDY) for run in chosen.values())
    if homeless:
        notes.append(f"{counted(homeless, 'run')} without the tag {STUDY!r}: in the tables, but in no study")
    return sorted(chosen.values(), key=lambda run: (run.start_time, run.run_id))


def _know_tasks(texts: Iterable[str], notes: list[str]) -> None:
    """Make the tasks known that come from files, as their runs, the newest first, describe them: of two under one name,
    the newer."""
    for text in dict.fromkeys(texts):
        try:
            add_described(text)
        except ValueError as error:
            notes.append(f"tag {TASK_ROWS}: {error}")


# Runs


def is_result(metric: str) -> bool:
    """Whether a metric's last value is a column of the runs."""
    return metric.startswith("test_") or "_val_" in metric or metric in _RESULTS


def _runs_frame(runs: list[Run], notes: list[str]) -> pd.DataFrame:
    """The runs' table: attributes, fields of the cell, results, tags."""
    unreadable: dict[str, str] = {}

    @cache
    def parsed(name: str, text: str) -> object:
        try:
            return parse_value(name, text)
        except ValueError as error:
            unreadable[name] = str(error)
            return None

    results = sorted({name for run in runs for name in run.latest if is_result(name)})
    tags = {name for run in runs for name in run.tags if not name.startswith("mlflow.")}
    tags = sorted(tags - {*_ATTRIBUTES, *FIELDS, *results, HISTORY_POINTS, STUDY})
    moment, text, types = pa.timestamp("ms", tz="UTC"), pa.string(), {int: pa.int64(), float: pa.float64()}
    columns: dict[str, pa.Array] = {
        "run_id": pa.array([run.run_id for run in runs], text),
        CELL_ID: pa.array([run.tags[CELL_ID] for run in runs], text),
        STUDY: pa.array([run.tags.get(STUDY) or None for run in runs], text),
        "status": pa.array([run.status for run in runs], text),
        "start_time": pa.array([run.start_time for run in runs], moment),
        "end_time": pa.array([run.end_time for run in runs], moment),
    }
    # A run from before a field came has what held then. One that a crash left without some parameter, or of an older
    # project, still has a row; the field is null.
    before = [LATER_FIELDS if FIELDS.keys() - LATER_FIELDS.keys() <= run.params.keys() else {} for run in runs]
    for name, kind in FIELDS.items():
        values = [
            parsed(name, run.params[name]) if name in run.params else held.get(name) for run, held in zip(runs, before)
        ]
        columns[name] = pa.array(values, {**types, bool: pa.bool_(), str: text}[kind])
    for name in results:
        columns[name] = pa.array([run.latest[name].value if name in run.latest else None for run in runs], pa.float64())
    for name in tags:
        columns[name] = pa.array([run.tags.get(name) for run in runs], text)
    notes += [
        f"a run's parameter was not written by this project and was left out: {error}" for error in unreadable.values()
    ]
    return pa.table(columns).to_pandas(types_mapper=_DTYPES.get)


def _write_runs(frame: pd.DataFrame, folder: Path) -> None:
    for study, rows in frame.groupby(frame[STUDY].fillna(""), sort=False):
        table = pa.Table.from_pandas(rows.drop(columns=STUDY), preserve_index=False)
        _write(table, folder / _partition(study) / "runs.parquet")


def _partition(study: str) -> str:
    """A folder's name. Where there is no study it ends in "=": pandas cannot read Hive's own name for null."""
    return f"{STUDY}={quote(study, safe=', ')}"


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())


# Metrics


@dataclass(frozen=True)
class _Entry:
    """A run in the index: what its history was like when it was read (see `_digest`), and the file it is in, or ""
    if it has no points."""

    digest: str
    file: str


@dataclass(frozen=True)
class _Published:
    """What the last gathering left: its folder, and by run what it read."""

    folder: Path | None = None
    runs: dict[str, _Entry] = field(default_factory=dict)

    @staticmethod
    def find(home: Path, notes: list[str]) -> "_Published":
        """What `current` leads to; nothing where that is of another version of this project or was damaged."""
        folder = home / "current"
        if not folder.exists():
            return _Published()
        try:
            index = json.loads((folder / "index.json").read_text())
            if index["version"] != _VERSION:
                raise ValueError("they are of another version of this project")
            runs = {run_id: _Entry(**entry) for run_id, entry in index["runs"].items()}
            for file in {entry.file for entry in runs.values()} - {""}:
                if not pq.read_schema(folder / "metrics.parquet" / file).equals(METRICS_SCHEMA):
                    raise ValueError(f"{file} has other columns")
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            notes.append(f"the previous tables cannot be extended ({error}); every run was read again")
            return _Published()
        return _Published(folder.resolve(), runs)


def _digest(run: Run) -> str:
    """Changes whenever points are added to a run, and, should they belong before its last ones, when it ends."""
    content = run.status, run.end_time, run.tags.get(HISTORY_POINTS), sorted(run.latest.items())
    return hashlib.blake2b(repr(content).encode(), digest_size=16).hexdigest()


class _Histories:
    """Brings the metrics' files up to date: unchanged files are linked, the rest is written anew."""

    def __init__(self, store: Store, runs: list[Run], before: _Published, folder: Path):
        self._store, self._before, self._folder = store, before, folder
        self._runs = {run.run_id: run for run in runs}
        self._digests = {run.run_id: _digest(run) for run in runs}
        self._files: dict[str, str] = {}
        self._waiting: dict[str, list[pa.Table]] = defaultdict(list)  # by partition, rows not written yet
        self._number = itertools.count(self._last_number() + 1)
        self.read = 0
        self._unusable: dict[str, str] = {}  # by run, why its artifact was not used
        self._unread: dict[str, str] = {}  # by run, why nothing new was read of it
        folder.mkdir()

    def _last_number(self) -> int:
        return max((int(Path(entry.file).stem) for entry in self._before.runs.values() if entry.file), default=0)

    def update(self, console: Console) -> None:
        """Read what is new or changed, and keep the rest."""
        known = self._before.runs
        stale = [
            run
            for run_id, run in self._runs.items()
            if run_id not in known or known[run_id].digest != self._digests[run_id]
        ]
        failures = 0
        with ThreadPoolExecutor(self._store.requests) as pool, _progress(console, len(stale)) as advance:
            for start in range(0, len(stale), BATCH):
                batch = stale[start : start + BATCH]
                if failures < _GIVE_UP:
                    read = self._read(batch, pool)
                    failures = 0 if read else failures + 1
                else:
                    self._unread |= {run.run_id: "the store had stopped answering" for run in batch}
                advance(len(batch))
        self.read = len(stale) - len(self._unread)
        self._keep({run.run_id for run in stale} - set(self._unread))
        for partition in list(self._waiting):
            self._flush(partition)

    def _read(self, batch: list[Run], pool: ThreadPoolExecutor) -> bool:
        """Read the histories of some runs. Returns whether any could be read."""
        tables, others = [], []
        for run, table in zip(batch, pool.map(self._from_artifact, batch)):
            (others if table is None else tables).append(run if table is None else table)
        # A database answers for all at once, a server for each run.
        shares = [others] if self._store.requests == 1 else [[run] for run in others]
        for table, share in zip(pool.map(self._from_store, filter(None, shares)), filter(None, shares)):
            if table is not None:
                tables.append(table)
            else:
                others = [run for run in others if run not in share]
        points = pa.concat_tables(tables).unify_dictionaries() if tables else ()
        if len(points):
            by_partition = defaultdict(list)
            for run in batch:
                by_partition[self._partition(run.run_id)].append(run.run_id)
            for partition, run_ids in by_partition.items():
                wanted = points if len(by_partition) == 1 else _rows_of(points, run_ids)
                self._add(partition, self._with_cell_id(wanted))
        return bool(tables)

    def _from_artifact(self, run: Run) -> pa.Table | None:
        """A run's points by its artifact; None where it has none, or one that cannot be used."""
        if HISTORY_POINTS not in run.tags or run.status == "RUNNING":
            return None
        try:
            return _read_artifact(self._store.artifact(run, HISTORY), run)
        except (GatherError, ValueError, KeyError, pa.ArrowException) as error:
            self._unusable[run.run_id] = str(error)
            return None

    def _from_store(self, runs: list[Run]) -> pa.Table | None:
        try:
            return self._store.points(runs)
        except GatherError as error:
            self._unread |= {run.run_id: str(error) for run in runs}
            return None

    def _with_cell_id(self, points: pa.Table) -> pa.Table:
        points = points.combine_chunks()
        run_ids = points["run_id"].chunk(0)
        cells = pa.array([self._runs[run_id].tags[CELL_ID] for run_id in run_ids.dictionary.to_pylist()], pa.string())
        column = pa.DictionaryArray.from_arrays(run_ids.indices, cells)
        return points.add_column(1, METRICS_SCHEMA.field(CELL_ID), column).cast(METRICS_SCHEMA)

    def _partition(self, run_id: str) -> str:
        return _partition(self._runs[run_id].tags.get(STUDY, ""))

    def _keep(self, read: set[str]) -> None:
        """Take over the rows of all runs that were not read anew: linked, where a file has nothing else."""
        members = defaultdict(list)
        for run_id, entry in self._before.runs.items():
            if entry.file:
                members[entry.file].append(run_id)
        for file, run_ids in members.items():
            kept = [run_id for run_id in run_ids if run_id in self._runs and run_id not in read]
            if not kept:
                continue
            path, partition = self._before.folder / "metrics.parquet" / file, file.partition("/")[0]
            at_home = all(self._partition(run_id) == partition for run_id in kept)
            is_small = pq.read_metadata(path).num_rows < FILE_POINTS // 2
            if len(kept) == len(run_ids) and at_home and not (is_small and self._waiting.get(partition)):
                target = self._folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(path, target)
                self._files |= dict.fromkeys(kept, file)
                continue
            rows = pq.read_table(path, schema=METRICS_SCHEMA, partitioning=None)
            by_partition = defaultdict(list)
            for run_id in kept:
                by_partition[self._partition(run_id)].append(run_id)
            for home, run_ids in by_partition.items():
                self._add(home, _rows_of(rows, run_ids))

    def _add(self, partition: str, rows: pa.Table) -> None:
        self._waiting[partition].append(rows)
        sizes = {each: sum(map(len, tables)) for each, tables in self._waiting.items()}
        largest = max(sizes, key=sizes.get)
        if sizes[largest] >= FILE_POINTS or sum(sizes.values()) >= 4 * FILE_POINTS:  # memory, if studies are many
            self._flush(largest)

    def _flush(self, partition: str) -> None:
        rows = pa.concat_tables(self._waiting.pop(partition)).unify_dictionaries()
        file = f"{partition}/{next(self._number):06}.parquet"
        _write(rows, self._folder / file)
        self._files |= dict.fromkeys(pc.unique(rows["run_id"]).to_pylist(), file)

    def write_index(self, version: Path) -> None:
        """Write what the next gathering goes by. A run that could not be read is left for it to try again."""
        entries = {
            run_id: {"digest": "" if run_id in self._unread else digest, "file": self._files.get(run_id, "")}
            for run_id, digest in self._digests.items()
        }
        (version / "index.json").write_text(json.dumps({"version": _VERSION, "runs": entries}))

    def digests(self) -> dict[str, str]:
        """By run id, a digest of the history that is in the tables: of last time, where nothing new could be read."""
        known = self._before.runs
        kept = {run_id: known[run_id].digest if run_id in known else "" for run_id in self._unread}
        return {**self._digests, **kept}

    def notes(self) -> Iterator[str]:
        """What was not as it should be."""
        if self._unusable:
            run_id, reason = next(iter(self._unusable.items()))
            yield (
                f"{counted(len(self._unusable), 'run')} with an artifact {HISTORY} that cannot be used, read from "
                f"MLflow itself instead; for instance {run_id}: {reason}"
            )
        if self._unread:
            run_id, reason = next(iter(self._unread.items()))
            yield (
                f"{counted(len(self._unread), 'run')} whose metrics could not be read now: those of last time were "
                f"kept, where there are; the same command tries again; for instance {run_id}: {reason}"
            )


def _read_artifact(content: bytes, run: Run) -> pa.Table:
    """The points of a run from its artifact. Raises ValueError, KeyError or pyarrow's errors unless they are whole
    and end where MLflow says that the run does."""
    file = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False).combine_chunks()
    fields = {"metric": "metric", "step": "step", "value": "value", "timestamp": "time"}
    columns = {new: file[old].cast(POINTS.field(new).type) for old, new in fields.items()}
    if str(len(file)) != run.tags[HISTORY_POINTS]:
        raise ValueError(f"it has {len(file)} points, the run's tag says {run.tags[HISTORY_POINTS]}")
    steps, times, values = (columns[name].to_numpy() for name in ("step", "time", "value"))
    latest = {}
    if len(file):
        metric = columns["metric"].chunk(0)
        codes = metric.indices.to_numpy()
        # Sorted by metric, step and time: the last of each metric is its latest.
        ends = np.append(np.flatnonzero(codes[1:] != codes[:-1]), len(codes) - 1)
        names = metric.dictionary.to_pylist()
        times = times.astype("datetime64[ms]").astype(np.int64)
        latest = {names[codes[end]]: (int(steps[end]), int(times[end]), float(values[end])) for end in ends}
    # Compared as text: nan equals nan.
    if {name: str(point) for name, point in latest.items()} != {
        name: str(tuple(point)) for name, point in run.latest.items()
    }:
        raise ValueError("it does not end where the run does")
    run_id = pa.DictionaryArray.from_arrays(np.zeros(len(file), np.int32), pa.array([run.run_id]))
    return pa.table([run_id, *(columns[name] for name in POINTS.names[1:])], schema=POINTS)


def _rows_of(points: pa.Table, run_ids: Iterable[str]) -> pa.Table:
    return points.filter(pc.is_in(points["run_id"].cast(pa.string()), pa.array(run_ids, pa.string())))


# Folders


def _lock(path: Path, console: Console) -> AbstractContextManager:
    """Hold the folder while its tables are brought up to date: of two that gather into it, the second waits."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        console.print(f"waiting for another process that gathers into {path.parent.parent}", highlight=False)
        return lock.acquire()


@contextmanager
def _new_version(home: Path) -> Iterator[Path]:
    """A folder for what is written now; removed if that does not come to its end."""
    number = max((int(path.name[1:]) for path in home.glob("v*")), default=0) + 1
    version = home / f"v{number:06}"
    version.mkdir()
    try:
        yield version
    except BaseException:
        shutil.rmtree(version)
        raise


def _publish(folder: Path, version: Path) -> None:
    """Let the tables be those of `version`, in one step, and drop those before the last ones."""
    home = version.parent
    before = (home / "current").resolve().name
    _replace_link(home / "current", Path(version.name))
    for table in _TABLES:
        _replace_link(folder / f"{table}.parquet", Path(home.name, "current", f"{table}.parquet"))
    for path in home.glob("v*"):
        if path.name not in (version.name, before):  # whoever is reading those of before may go on
            shutil.rmtree(path)


def _replace_link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    scratch = link.with_name(f".{link.name}.new")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(target, target_is_directory=True)
    if link.is_dir() and not link.is_symlink():  # in a copy of the outputs that followed the links
        shutil.rmtree(link)
    scratch.replace(link)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, or a copy where the file system knows no such thing."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def _progress(console: Console, total: int) -> Iterator[object]:
    """A function to tell how many more are done: a bar at a terminal, elsewhere a line now and then."""
    if console.is_terminal:
        columns = (TextColumn("gathering runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("", total=total)
            yield lambda number: progress.advance(task, number)
        return
    done, spoken = 0, time.monotonic()

    def advance(number: int) -> None:
        nonlocal done, spoken
        done += number
        if time.monotonic() - spoken >= _SILENCE:
            spoken = time.monotonic()
            console.print(f"gathering: {done:,} of {counted(total, 'run')}", highlight=False)

    yield advance
