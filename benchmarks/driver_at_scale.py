"""The driver with 1,000 trials that each report every two seconds: does it keep up, in how much memory, and complete?

    python benchmarks/driver_at_scale.py                      ten minutes into SQLite; claim: 500 rows a second
    python benchmarks/driver_at_scale.py --store server       ten minutes into an MLflow server, on PostgreSQL where
                                                              initdb is found, else on SQLite; claim: 200 rows a second
    python benchmarks/driver_at_scale.py --minutes 1 --runs 100 --rate 50     a short look

Trials are simulated: this process hands their rows to the driver's reporter as Ray Tune would, and starts neither Ray
nor a trial. After a third of the time the store is away for a tenth of it, at most a minute: the server is stopped, or
SQLite's file is locked by another. At the end the rows of the account and the points of MLflow are compared one by one
with what was reported. Exit status 1 where a claim is missed: rows taken as they come, all of them written and all runs
ended within two minutes of the last, the driver's memory in the last third at most 10 % above that in the second, no
row lost.
"""

import argparse
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient

from relvit.cell import Cell
from sweeps.account.account import FINISHED, Account
from sweeps.account.failures import Setting
from sweeps.account.work import work_items
from sweeps.driver.driver import ready_to_write
from sweeps.driver.options import Options
from sweeps.driver.plan_source import PlanSource
from sweeps.driver.reporter import Reporter
from sweeps.driver.trainable import ROW, USAGE
from sweeps.driver.trainable import WORKER as WORKER_TAGS
from sweeps.planning.plan import Request, plan_cells
from sweeps.tracking.tracker import Tracker

WORKER = {"host": "node", "device": "cuda (simulated)", "compile": "auto", "data_fingerprint": "0123456789abcdef"}
USAGE_OF_ALL = {"host_memory_bytes": 1.5e9, "gpu_memory_bytes": 9e9}


def planned(count: int, epochs: int, folder: Path) -> list[Cell]:
    """Cells of one combination with as many seeds, of so many epochs each."""
    first = epochs // 2
    settings = (f"pretrain_epochs={first}", f"epochs={epochs - first}", "warmup_epochs=1")
    what = {"combinations": ("sprel+abspos",), "seeds": tuple(range(count)), "settings": settings}
    return plan_cells(Request("table4", "demo", folder, **what))


def rows_of(cell: Cell) -> Iterator[dict[str, Any]]:
    """What a cell reports: the names of a real run's rows, and values that tell one row from every other."""
    for epoch in range(1, cell.total_epochs + 1):
        phase = "pretrain" if epoch <= cell.pretrain_epochs else "finetune"
        value = cell.seed + epoch / 1024
        names = ["train_loss", "val_loss", "train_gradient_norm"]
        tasks = ("sprel", "abspos") if phase == "pretrain" else ("classification",)
        names += [f"{split}_{task}_{what}" for task in tasks for split in ("train", "val") for what in ("loss",)]
        names += [f"val_{task}_accuracy" for task in tasks]
        row = {f"{phase}_{name}": value + index / 8192 for index, name in enumerate(names)}
        speed = {"images_per_second": 1000.0, "epoch_seconds": 2.0, "training_seconds": 2.0 * epoch}
        yield {"epoch": epoch, "phase": phase, "learning_rate": value, **row, **speed}
    yield {
        "epoch": cell.total_epochs, "phase": "test", "test_accuracy": 50.0, "test_loss": cell.seed + 0.5,
        "selected_epoch": cell.total_epochs, "training_seconds": 2.0 * cell.total_epochs,
    }  # fmt: skip


def start(reporter: Reporter, number: int) -> tuple[SimpleNamespace, Cell]:
    """The next trial, as Tune begins one."""
    trial = SimpleNamespace(trial_id=f"trial-{number}", temporary_state=SimpleNamespace(ray_actor=None))
    reporter.queue.suggest(trial.trial_id)
    reporter.on_trial_start(0, [], trial)
    return trial, reporter.queue.assignment(trial.trial_id).item.cell


def report(reporter: Reporter, trial: SimpleNamespace, row: dict[str, Any]) -> None:
    """A row of a trial, as Tune hands it on."""
    result = {ROW: row, WORKER_TAGS: WORKER, USAGE: USAGE_OF_ALL}
    reporter.stopper(trial.trial_id, result)
    reporter.on_trial_result(0, [], trial, result)
    reporter.on_step_end(0, [])


def memory() -> int:
    """Bytes of this process that are resident."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


# The stores, each as a URI and what takes it away and brings it back


Away = Callable[[bool], None]


@contextmanager
def sqlite_file(folder: Path) -> Iterator[tuple[str, Away]]:
    """Away: another process holds the file's lock."""
    path = folder / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    held: list[sqlite3.Connection] = []

    def away(yes: bool) -> None:
        if yes:
            held.append(sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False))
            held[0].execute("BEGIN EXCLUSIVE")
        else:
            held.pop().close()

    yield f"sqlite:///{path}", away


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """A database of PostgreSQL on this machine. The server refuses to run as root, who becomes "nobody" for it."""
    home, port = folder / "postgres", free_port()
    home.mkdir()
    as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    if as_user:
        folder.chmod(0o755)
        shutil.chown(home, 65534, 65534)
    found = shutil.which("initdb") or next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))))
    run = lambda *command, **how: subprocess.run([*as_user, *map(str, command)], check=True, cwd="/", **how)  # noqa: E731
    quiet = {"stdout": subprocess.DEVNULL}
    run(found, "-D", home / "data", "-A", "trust", "-U", "mlflow", **quiet)
    control = Path(found).with_name("pg_ctl")
    options = f"-p {port} -k {home} -c listen_addresses=127.0.0.1"
    run(control, "-D", home / "data", "-w", "-l", home / "log", "-o", options, "start", **quiet)
    try:
        yield f"postgresql+psycopg://mlflow@127.0.0.1:{port}/postgres"
    finally:
        run(control, "-D", home / "data", "-m", "fast", "stop", **quiet)


def has_postgres() -> bool:
    return bool(shutil.which("initdb") or [*Path("/usr/lib/postgresql").glob("*/bin/initdb")])


@contextmanager
def server(folder: Path, database: str) -> Iterator[tuple[str, Away]]:
    """An MLflow server. Away: it is stopped."""
    port, running = free_port(), []
    uri = f"http://127.0.0.1:{port}"
    options = ["--backend-store-uri", database, "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    options += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]

    def start() -> None:
        with (folder / "server.log").open("a") as log:
            command = [sys.executable, "-m", "mlflow", "server", *options]
            environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            running.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment))
        for _ in range(3000):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.2)
        sys.exit(f"the server did not start: {(folder / 'server.log').read_text()[-2000:]}")

    def stop() -> None:
        running[0].terminate()
        running.pop().wait()

    try:
        start()
        yield uri, lambda yes: stop() if yes else start()
    finally:
        if running:
            stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# What must be there at the end


def lost(cells: list[Cell], account: Account, points: dict[str, dict]) -> list[str]:
    """What the account or MLflow lacks, or has otherwise than it was reported. points: of MLflow, by cell."""
    wrong = []
    for cell in cells:
        rows, expected = list(rows_of(cell)), {}
        if account.status(cell).state != FINISHED or account.history(cell) != rows:
            wrong.append(f"{cell.cell_id}: the account's history is not what was reported")
        for row in rows:
            is_result = row["phase"] == "test"
            numbers = {name: row[name] for name in row if name != "phase" and not (is_result and name == "epoch")}
            for name, value in (numbers | ({} if is_result else USAGE_OF_ALL)).items():
                expected.setdefault(name, []).append((row["epoch"], float(value)))
        if points.get(cell.cell_id) != expected:
            wrong.append(f"{cell.cell_id}: MLflow's points are not what was reported")
    return wrong


def points_of(database: str) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Every point of every run, by cell and metric, as the database has them."""
    import sqlalchemy

    asked = (
        "SELECT tags.value, metrics.key, metrics.step, metrics.value FROM metrics JOIN tags ON "
        "metrics.run_uuid = tags.run_uuid AND tags.key = 'cell_id' ORDER BY metrics.step, metrics.timestamp"
    )
    found: dict[str, dict[str, list]] = {}
    with sqlalchemy.create_engine(database).connect() as connection:
        for cell_id, name, step, value in connection.execute(sqlalchemy.text(asked)):
            found.setdefault(cell_id, {}).setdefault(name, []).append((step, value))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("sqlite", "server"), default="sqlite")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long trials report (default: 10)")
    parser.add_argument("--runs", type=int, default=1000, help="trials at once (default: 1000)")
    parser.add_argument("--rate", type=float, help="rows a second of all together (default: the claim's)")
    options = parser.parse_args()
    options.seconds = 60 * options.minutes
    rate = options.rate or (500.0 if options.store == "sqlite" else 200.0)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        database = f"sqlite:///{folder}/mlflow.db"
        if options.store == "sqlite":
            uri, away = stack.enter_context(sqlite_file(folder))
        else:
            if has_postgres():
                database = stack.enter_context(postgres(folder))
            uri, away = stack.enter_context(server(folder, database))
        kind = database.partition("://")[0].partition("+")[0]
        print(f"{options.runs} runs, {rate:g} rows a second, {options.seconds:g} s, into {options.store} ({kind})")
        return measure(folder, uri, away, database, rate, options, stack)


def take_away(away: Away, after: float, seconds: float) -> None:
    """Let the store be away for a while."""
    time.sleep(after)
    away(True)
    print(f"        the store is away for {seconds:.0f} s", flush=True)
    time.sleep(seconds)
    away(False)


def measure(
    folder: Path, uri: str, away: Away, database: str, rate: float, options: argparse.Namespace, stack: ExitStack
) -> int:
    """Report rows at the rate, wait until they are written and compare. Returns the exit status."""
    epochs = max(2, round(options.seconds * rate / options.runs) - 1)  # and a row of the result
    cells = planned(options.runs, epochs, folder)
    account, studies = Account(folder / "results"), dict.fromkeys(cells, ("table4",))
    account.check()
    account.plan(studies)
    source = PlanSource(work_items(account, studies), account, keep_pretrainings=True)
    tracker = Tracker(uri, "relvit", folder / "results")
    stack.enter_context(ready_to_write(tracker))
    hold, notes = SimpleNamespace(name="this", is_lost=False, may_not_write=lambda: False), []
    how = Options(Setting(1, 0.0), folder / "data", keep_pretrainings=True)
    reporter = Reporter(source, account, tracker, how, notes.append, hold)
    source.begin(reporter.enter)
    outage = (away, options.seconds / 3, min(60.0, options.seconds / 10))
    outside = threading.Thread(target=take_away, args=outage, daemon=True)
    outside.start()

    total = len(cells) * (epochs + 1)
    count, samples, behind, started = 0, [], 0.0, time.perf_counter()
    running = [(trial, rows_of(cell)) for trial, cell in (start(reporter, number) for number in range(len(cells)))]
    print(f"{len(running)} runs of {epochs} epochs begun after {time.perf_counter() - started:.1f} s", flush=True)
    started = time.perf_counter()
    while count < total:
        now = time.perf_counter() - started
        behind = max(behind, now - count / rate)
        if now >= len(samples) * options.seconds / 20:
            samples.append(memory())
            print(f"{now:6.0f} s  {count:8,} rows  {samples[-1] / 1e6:6.0f} MB", flush=True)
        if count > now * rate:
            time.sleep(1 / rate)
            continue
        trial, rows = running[count % len(running)]
        report(reporter, trial, next(rows))
        count += 1
    took = time.perf_counter() - started
    print(
        f"{count:,} rows taken in {took:.1f} s: {count / took:.0f} a second (claim: {rate:g}), "
        f"{behind:.1f} s behind at most"
    )
    outside.join()
    left = reporter.close()
    late = time.perf_counter() - started - took
    print(f"all of them written {late:.1f} s later (claim: 120), {left} writes left")
    for note in notes:
        print(f"note: {note}")
    middle, last = (samples[len(samples) * at // 3 : len(samples) * (at + 1) // 3] for at in (1, 2))
    growth = max(last) / max(middle)
    print(
        f"memory in the last third over the second: {growth:.3f} (claim: at most 1.1), "
        f"{max(samples) / 1e6:.0f} MB at most"
    )
    wrong = lost(cells, account, points_of(database))
    print(f"runs with rows that are lost or changed: {len(wrong)}{': ' + wrong[0] if wrong else ''} (claim: none)")
    if count / took >= 0.98 * rate and late <= 120 and not left and growth <= 1.1 and not wrong:
        return 0
    print("a claim is missed")
    return 1


if __name__ == "__main__":
    sys.exit(main())
