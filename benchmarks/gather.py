"""Gathering MLflow's runs into Parquet: time, memory, and the ratio to MLflow's client used as its manual shows.

    python benchmarks/gather.py                    10,000 runs of 100 epochs and 10 metrics in a SQLite store, and
                                                   1,000 through a real `mlflow server`; 4 GB of disk
    python benchmarks/gather.py --runs 500 --server-runs 100                         the same, small

Claims, for each of the two: first gathering at most 90 s and 2 GiB, the next with 10 new runs at most 5 s. Every
figure is of a new process; "whole" has its start and its imports in it. The usual way, `search_runs` and
`get_metric_history`, is timed on a sample of the runs and multiplied, since it takes hours: per run it costs the same
for all. The stores are warm in the page cache. Times are the median of --repeat, with the range.
"""

import argparse
import json
import os
import resource
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric

from analysis.runs.gather import gather
from relvit.cell import Cell
from relvit.vocabulary import HISTORY, HISTORY_POINTS
from sweeps.planning.plan import Request, plan_cells
from sweeps.tracking.history import create_experiment, write_history

EXPERIMENT, NEW = "relvit", 10
METRICS = (
    *("epoch", "learning_rate", "epoch_seconds", "images_per_second", "finetune_train_loss"),
    *("finetune_train_accuracy", "finetune_val_loss", "finetune_val_accuracy", "finetune_val_sprel_accuracy"),
    "finetune_val_abspos_accuracy",
)
_BORN = 1_760_000_000_000  # Unix milliseconds: when the first run of a made store began
_TAGS = {
    "method": "relvit",
    "reason": "",
    "phase": "test",
    "storage": "/results",
    "host": "node-7",
    "device": "cpu",
    "driver_host": "node-0",
    "git_commit": "0" * 40,
    "git_dirty": "false",
    "python_version": "3.11",
    "torch_version": "2.14",
    "timm_version": "1.0",
    "ray_version": "2.60",
}


class MadeStore:
    """A tracking database of finished runs of cells, as sweeps would have left it, and its artifacts.

    Its tables are made by MLflow itself and filled with SQL: through MLflow's client that takes hours.
    """

    def __init__(self, folder: Path, epochs: int, artifact_uri: str | None = None):
        """artifact_uri: what runs say of where their artifacts are, if that is not simply a folder."""
        folder.mkdir(parents=True)
        self._folder, self._epochs = folder, epochs
        self.database, self.artifacts = folder / "mlflow.db", folder / "artifacts"
        self.uri = f"sqlite:///{self.database}"
        self._artifact_uri = artifact_uri or self.artifacts.as_uri()
        self._experiment = create_experiment(MlflowClient(self.uri), EXPERIMENT)
        (self._template,) = plan_cells(Request("table4", "demo", folder, combinations=("sprel+abspos",)))
        self.size = 0

    def add(self, runs: int) -> None:
        """More runs, each of a cell of its own; every tenth belongs to two studies."""
        connection = sqlite3.connect(self.database)
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -500000")
        indices = "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'metrics' AND sql LIKE 'CREATE INDEX%'"
        dropped = connection.execute(indices).fetchall() if self.size == 0 else []
        for name, _ in dropped:
            connection.execute(f"DROP INDEX {name}")
        for number in range(self.size, self.size + runs):
            self._add(connection, number)
        for _, statement in dropped:
            connection.execute(statement)
        connection.commit()
        connection.close()
        self.size += runs

    def _add(self, connection: sqlite3.Connection, number: int) -> None:
        run_id, epochs = f"{number:032x}", self._epochs
        cell = Cell(**{**self._template.as_dict(), "seed": number})
        began = _BORN + 1_000_000 * number
        values = np.random.default_rng(number).random((epochs, len(METRICS)))
        values[:, 0] = np.arange(1, epochs + 1)
        points = [
            Metric(name, float(values[epoch - 1, index]), began + 1000 * epoch, epoch)
            for index, name in enumerate(METRICS)
            for epoch in range(1, epochs + 1)
        ]
        ended = began + 1000 * epochs + 1
        results = {"test_accuracy": 90 + float(values[-1, 1]), "selected_epoch": epochs, "training_seconds": epochs}
        latest = points[epochs - 1 :: epochs] + [Metric(*each, ended, epochs) for each in results.items()]
        points += latest[len(METRICS) :]
        tags = _TAGS | {"mlflow.runName": cell.cell_id, "cell_id": cell.cell_id, HISTORY_POINTS: str(len(points))}
        tags["study"] = "figure2,table4" if number % 10 == 0 else "table4"
        folder = self.artifacts / f"{run_id}/artifacts"
        folder.mkdir(parents=True)
        write_history(points, folder / HISTORY)

        def insert(table: str, columns: str, rows: list[tuple]) -> None:
            marks = ", ".join("?" * len(rows[0]))
            connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)

        uri = f"{self._artifact_uri}/{run_id}/artifacts"
        columns = "run_uuid, name, source_type, user_id, status, lifecycle_stage"
        run = (run_id, cell.cell_id, "LOCAL", "user", "FINISHED", "active", began, ended, uri, self._experiment)
        insert("runs", f"{columns}, start_time, end_time, artifact_uri, experiment_id", [run])
        insert("params", "run_uuid, key, value", [(run_id, key, str(value)) for key, value in cell.as_dict().items()])
        insert("tags", "run_uuid, key, value", [(run_id, *tag) for tag in tags.items()])
        for table, rows in (("metrics", points), ("latest_metrics", latest)):
            columns = "run_uuid, key, value, timestamp, step, is_nan"
            insert(table, columns, [(run_id, each.key, each.value, each.timestamp, each.step, 0) for each in rows])

    def forget_artifacts(self) -> None:
        """Let the runs be such as were made before there were artifacts."""
        with sqlite3.connect(self.database) as connection:
            connection.execute("DELETE FROM tags WHERE key = ?", (HISTORY_POINTS,))
        connection.close()


@contextmanager
def server(store: MadeStore) -> Iterator[str]:
    """The address of an MLflow server on a made store, which serves its artifacts too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["server", "--backend-store-uri", store.uri, "--host", "127.0.0.1", "--port", str(port)]
    arguments += ["--serve-artifacts", "--artifacts-destination", str(store.artifacts)]
    with (store.database.parent / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *arguments], cwd=store.database.parent, stdout=log, stderr=log
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, process)
        yield address
    finally:
        process.terminate()
        process.wait()


def wait_for(address: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while True:
        try:
            urllib.request.urlopen(f"{address}/health").close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def in_a_new_process(*arguments: object) -> dict[str, float]:
    """What the other end of this file, `measure`, prints; and the whole process's seconds."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {**json.loads(result.stdout), "whole": time.perf_counter() - started}


def measure(way: str, uri: str, argument: str) -> None:
    """Print the seconds and the peak memory of one gathering in this process."""
    started = time.perf_counter()
    found = by_gather(uri, Path(argument)) if way == "gather" else by_client(uri, int(argument))
    found["seconds"] = time.perf_counter() - started
    found["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(found))


def by_gather(uri: str, folder: Path) -> dict[str, float]:
    gathered = gather(uri, EXPERIMENT, folder)
    assert not gathered.notes, gathered.notes
    return {"runs": len(gathered.runs), "read": gathered.read}


def by_client(uri: str, sample: int) -> dict[str, float]:
    """All runs, and the histories of a sample of them, spread evenly."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    started, runs, token = time.perf_counter(), [], None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        runs, token = runs + page, page.token
        if not token:
            break
    searching = time.perf_counter() - started
    started, chosen = time.perf_counter(), runs[:: max(1, len(runs) // sample)][:sample]
    for run in chosen:
        for name in run.data.metrics:
            client.get_metric_history(run.info.run_id, name)
    return {"runs": len(runs), "searching": searching, "each": (time.perf_counter() - started) / len(chosen)}


def spread(values: list[float], unit: str = "s") -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.1f} {unit}" + (f" ({low:.1f} to {high:.1f})" if len(values) > 1 else "")


def compare(store: MadeStore, uri: str, repeat: int, sample: int) -> None:
    """Print the figures of one store. Ours and the usual way alternate, so that a machine whose speed drifts slows
    both."""
    firsts, nexts, usuals, scratch = [], [], [], store.database.parent
    for number in range(repeat):
        firsts.append(in_a_new_process("gather", uri, scratch / f"out{number}"))
        usual = in_a_new_process("client", uri, sample)
        usuals.append(usual["searching"] + usual["each"] * usual["runs"])
        store.add(NEW)
        nexts.append(in_a_new_process("gather", uri, scratch / f"out{number}"))
        assert (nexts[-1]["read"], nexts[-1]["runs"]) == (NEW, store.size)
    for name, found, claim in (("first", firsts, 90), (f"next, {NEW} new", nexts, 5)):
        print(
            f"  {name + ':':14} {spread([each['seconds'] for each in found])}; "
            f"whole {spread([each['whole'] for each in found])}; "
            f"{spread([each['mib'] for each in found], 'MiB')}   (claim: {claim} s, 2048 MiB)"
        )
    ratio = statistics.median(usual / first["seconds"] for usual, first in zip(usuals, firsts))
    print(f"  {'usual way:':14} {spread(usuals)}, extrapolated from {sample} runs: {ratio:.0f} times the first")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="in the SQLite store; 0: leave it out")
    parser.add_argument("--server-runs", type=int, default=1_000, help="behind the server; 0: leave it out")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--sample", type=int, default=20, help="runs of which the usual way is timed")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.runs:
            store = MadeStore(Path(folder, "sqlite"), options.epochs)
            store.add(options.runs)
            print(f"{options.runs} runs x {options.epochs} epochs x {len(METRICS)} metrics in SQLite ({load()})")
            compare(store, store.uri, options.repeat, options.sample)
            store.forget_artifacts()
            bare = in_a_new_process("gather", store.uri, Path(folder, "bare"))
            print(f"  first, without artifacts: {bare['seconds']:.1f} s, {bare['mib']:.0f} MiB")
        if options.server_runs:
            store = MadeStore(Path(folder, "server"), options.epochs, "mlflow-artifacts:")
            store.add(options.server_runs)
            with server(store) as address:
                print(f"{options.server_runs} runs through mlflow server over HTTP ({load()})")
                compare(store, address, options.repeat, options.sample)
                store.forget_artifacts()
                bare = in_a_new_process("gather", address, Path(folder, "bare-server"))
                print(f"  first, without artifacts: {bare['seconds']:.1f} s, {bare['mib']:.0f} MiB")


def load() -> str:
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores before"


if __name__ == "__main__":
    main()
