"""Campaigns of faults against a study on a cluster of two nodes of this machine, and what is left of it.

    python benchmarks/chaos.py --faults 100                     one round of the ablation, on SQLite
    python benchmarks/chaos.py --minutes 30 --secured           rounds for so long, a password and PostgreSQL
    python benchmarks/chaos.py --minutes 30 --search            a hyperparameter search
    python benchmarks/chaos.py --minutes 30 --store             account and checkpoints in an object store
    python benchmarks/chaos.py --add docs/chaos --report docs/chaos.md    the sum of many

First the study runs undisturbed. Then it runs again, once a round, while faults are drawn at random (KINDS). The driver
is started again, by the same command, whenever it has ended. After each round there must be one MLflow run per cell,
every step once, and every metric of every row, the account's history and state, and the final weights of every cell,
in a search every trial's parameters and values too, equal to those without faults. Exit status 1 where that is not so.
--summary adds what happened to a folder as JSON, one file a campaign.

Filling the storage needs the right to mount a tmpfs, --secured PostgreSQL's programs and its user; without them those
faults are left out.
"""

import argparse
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# One token for the nodes and the drivers, all of which this script starts; it lasts as long as they do.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from mlflow import MlflowClient
from ray.cluster_utils import Cluster

from relvit.checkpoint import load_newest
from relvit.files import Location, location
from relvit.vocabulary import SPEEDS
from sweeps.account.code_version import source_digest

STORAGE_MEGABYTES = 400
SILENCE = (0.5, 3.0)  # seconds that a process is suspended for, at least and at most
TAKEN_OVER = 50.0  # seconds after which a suspended driver's lease has expired and another holds its cells
SETTLING = 10.0  # seconds in which MLflow and its database are up again
STOPPED = 3.0  # seconds that Ray gives a job which it stops, before it kills it
# How a driver may end beside another: 2 where MLflow is away when it starts, 4 where the cells are the other's.
BESIDE = {0, 1, 2, 4, 130}


_SUSPENDED = f"SIGSTOP to it, SIGCONT {SILENCE[0]:g} to {SILENCE[1]:g} s later"

# By kind of fault: how often it is drawn, and what it does. Those that end a driver, whose start takes seconds, seldom.
KINDS = {
    "trial killed": (10, "SIGKILL to the process that trains"),
    "trial suspended": (12, _SUSPENDED),
    "newest checkpoint cut short": (5, "half of a cell's newest checkpoint is lost, and the trials are killed"),
    "driver killed": (1, "SIGKILL to the driver"),
    "driver stopped by Ray": (1, f"as `ray job stop`: SIGTERM, and SIGKILL {STOPPED:g} s later"),
    "driver suspended and woken": (
        0.5,
        f"SIGSTOP until its lease has expired and another driver has its cells, SIGCONT after {TAKEN_OVER:g} s",
    ),
    "second driver": (1, "the same command beside the first, on the same storage"),
    "driver of another storage": (0.5, "the same study and MLflow on another storage, killed after a while"),
    "state damaged": (1, "a cell's state.json cut, emptied or replaced by other JSON, and the driver killed"),
    "study damaged": (0.5, "studies/*.json cut: the next driver must refuse and name it; it is removed"),
    "lease damaged": (
        0.5,
        "a file that is no lease beside them: the next driver must refuse and name it; it is removed",
    ),
    "node taken away": (1, "a raylet killed with all that it runs, and another added"),
    "clock jumps": (12, "time.time() of driver and trials jumps by up to an hour, forwards or back"),
    "MLflow stopped": (1, "SIGKILL to MLflow's server, started again later"),
    "MLflow suspended": (12, _SUSPENDED),
    "PostgreSQL stopped": (6, "MLflow's database stopped at once, as by a crash, and started again"),
    "storage full": (4, "not a byte is free for some seconds"),
    "object store away": (8, "the object store answers nobody for some seconds"),
}
DAMAGE = (lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"[]", lambda whole: b'{"state": 7}')

# Python imports it first wherever it is on the path, which the driver hands on to its trials. gRPC's deadlines are left
# alone: it reckons them by Python's clock, which alone jumps here, and holds them against the machine's.
CLOCK = """
import sys, time
_time, _time_ns = time.time, time.time_ns
def _jumped():
    try:
        if sys._getframe(2).f_globals.get("__name__", "").startswith("grpc"):
            return 0.0
        with open({file!r}) as file:
            return float(file.read())
    except (OSError, ValueError):
        return 0.0
time.time = lambda: _time() + _jumped()
time.time_ns = lambda: _time_ns() + int(_jumped() * 1e9)
"""


class Nodes:
    """Two CPUs, a trial each: of the head and a node that may go away, or both of the head."""

    def __init__(self, on_head: bool):
        cpus = 2 if on_head else 1
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False})
        self._node = None if on_head else self._cluster.add_node(num_cpus=1)
        self.address = self._cluster.address

    @property
    def may_go(self) -> bool:
        return self._node is not None

    def replace(self) -> None:
        """Take the node away with all that runs on it, and add another."""
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._node = self._cluster.add_node(num_cpus=1)

    def trials(self) -> list[int]:
        """The processes that train now."""
        raylets = {
            info.process.pid
            for node in filter(None, (self._cluster.head_node, self._node))
            for info in node.all_processes.get("raylet", [])
            if info.process.poll() is None
        }
        return [
            pid for pid, title in _titles() if title.startswith(b"ray::ResourceTrainable") and _parent(pid) in raylets
        ]

    def shutdown(self) -> None:
        self._cluster.shutdown()


class Server:
    """MLflow's server on a SQLite file, or with a password and on PostgreSQL."""

    def __init__(self, folder: Path, secured: bool):
        self._folder, self._port = folder, _free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen | None = None
        self.database = Postgres(folder / "postgres") if secured else None
        # One worker process, which ends with this one and can be stopped as a whole.
        self._command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ]
        if secured:
            self._command = [sys.executable, str(ROOT / "sweeps/serve_mlflow.py"), "--folder", str(folder / "mlflow")]
            self._command += ["--port", str(self._port)]

    def start(self) -> None:
        given = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # as of serve_mlflow.py
        given |= {"MLFLOW_BACKEND_STORE_URI": self.database.uri} if self.database else {}
        self._process = subprocess.Popen(
            self._command,
            env=os.environ | given,
            stdout=(self._folder / "mlflow.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            time.sleep(0.2)
        raise RuntimeError(f"MLflow's server did not start; see {self._folder}/mlflow.log")

    def signal(self, number: signal.Signals) -> None:
        if self._process:
            os.killpg(self._process.pid, number)

    def stop(self) -> None:
        if self._process:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def runs(self) -> bool:
        return self._process is not None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0


class NoServer:
    """MLflow's SQLite file, which drivers open themselves."""

    runs, database = True, None

    def __init__(self, folder: Path):
        self.uri = f"sqlite:///{folder}/mlflow.db"

    def start(self) -> None:
        """There is nothing to start."""

    def stop(self) -> None:
        """Nor to stop."""


class Postgres:
    """A server of PostgreSQL's own user on loopback, which for as long as it lasts trusts this machine's accounts."""

    def __init__(self, folder: Path):
        self._folder, self._port = folder, _free_port()
        self.uri = f"postgresql://postgres@127.0.0.1:{self._port}/postgres"
        folder.mkdir()
        for path in (folder.parent, folder.parent.parent):
            path.chmod(0o755)
        shutil.chown(folder, "postgres")
        self._run("initdb", "--auth=trust", "--no-sync", "--username=postgres")
        self.start()

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "start", "--wait", "-o", options, "-l", str(self._folder / "log"))
        self.runs = True

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--mode=immediate")
        self.runs = False

    def _run(self, program: str, *arguments: str) -> None:
        command = [program, f"--pgdata={self._folder / 'data'}", *arguments]
        subprocess.run(command, check=True, user="postgres", cwd="/", stdout=subprocess.DEVNULL)


class Store:
    """An object store in this process, whose door can be shut."""

    def __init__(self):
        import boto3
        from moto.server import ThreadedMotoServer

        os.environ |= {"AWS_ACCESS_KEY_ID": "chaos", "AWS_SECRET_ACCESS_KEY": "chaos"}
        self._make = lambda port: ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        self._port, self._door = _free_port(), None
        self.open()
        address = f"http://127.0.0.1:{self._port}"
        boto3.client("s3", endpoint_url=address, region_name="us-east-1").create_bucket(Bucket="chaos")
        self._options = f"region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{self._port}"

    def place(self, name: str) -> Location:
        return location(f"s3://chaos/{name}?{self._options}")

    def open(self) -> None:
        self._door = self._make(self._port)
        self._door.start()

    def shut(self) -> None:
        self._door.stop()


class Campaign:
    """One run of the study under faults."""

    def __init__(
        self, options: argparse.Namespace, nodes: Nodes, folder: Path, faults: int, seed: int, store: Store | None
    ):
        self._options, self._nodes, self._folder, self._left = options, nodes, folder, faults
        self._draw, self._store = random.Random(seed), store
        self._storage = folder / "storage"
        self._storage.mkdir(parents=True)
        self.storage: Location = store.place(folder.name) if store else self._storage / "results"
        self._filler = self._storage / "filler"
        self.mounted = bool(faults) and store is None and _mount(self._storage)
        self._clock = folder / "clock"
        (folder / "python").mkdir()
        (folder / "python/sitecustomize.py").write_text(CLOCK.format(file=str(self._clock)))
        self._server = Server(folder, options.secured) if faults else NoServer(folder)
        self._driver: subprocess.Popen | None = None
        self._beside: list[subprocess.Popen] = []  # drivers that were suspended, or started beside the first
        self.problems: list[str] = []
        self._damaged: list[Location] = []
        self._in_the_way: Location | None = None  # a file for which the next driver must refuse to start
        self.faults: Counter[str] = Counter()
        self.starts = 0
        self._later: list[tuple[float, Callable[[], None]]] = []
        # When the newest driver was started, and until when one that starts may refuse for want of MLflow or storage.
        self._started = self._trouble = 0.0
        self._is_alone = True  # when it was started

    def run(self) -> None:
        """Until every cell is finished and all faults are through."""
        until = time.monotonic() + 60 * self._options.strike_for
        self._server.start()
        try:
            self._start()
            while True:
                self._do_what_is_due()
                status = self._driver.poll()
                if status == 0:
                    break
                if status is not None:
                    if status == 2 and not self._clear_the_way() and self._trouble < self._started and self._is_alone:
                        raise RuntimeError(f"the driver refused: see {self._folder}/driver.log")
                    self._start()
                elif self._left > 0 and time.monotonic() < until and self._strike():
                    self._left -= 1
                    self._pause(self._draw.uniform(0.5, 1.5) * self._options.interval)
                else:
                    time.sleep(0.2)
            self._do_what_is_due(all_of_it=True)
            for driver in self._beside:
                if driver.wait(600) not in BESIDE:
                    self.problems.append(f"a driver beside another ended with {driver.returncode}")
            told = (self._folder / "driver.log").read_text()
            self.problems += [f"a damaged {path} was not named" for path in self._damaged if _name(path) not in told]
            if self.faults:  # the last driver may have ended while MLflow was away: one more enters what is missing
                self._start()
                if self._driver.wait() != 0:
                    raise RuntimeError(f"the last start failed: see {self._folder}/driver.log")
        finally:
            for driver in filter(None, (self._driver, *self._beside)):
                if driver.poll() is None:
                    driver.kill()

    def close(self) -> None:
        self._server.stop()
        if self._server.database and self._server.database.runs:
            self._server.database.stop()
        if self.mounted:
            subprocess.run(["umount", str(self._storage)], check=True)

    @property
    def uri(self) -> str:
        return self._server.uri

    def _start(self) -> None:
        if not self._server.runs:  # a driver refuses to start without it, and that is no fault of the sweep
            self._do_what_is_due(all_of_it=True)
        self._started = time.monotonic()
        # A search that a driver beside this one holds is refused to it.
        self._is_alone = all(driver.poll() is not None for driver in self._beside)
        self._driver = self._drive(self.storage)

    def _drive(self, storage: Location, log: str = "driver.log") -> subprocess.Popen:
        self.starts += 1
        entry = "sweeps/hpo.py" if self._options.search else "sweeps/ablation.py"
        return subprocess.Popen(
            [
                *(sys.executable, str(ROOT / entry), "--address", self._nodes.address),
                *("--storage", str(storage), "--tracking-uri", self.uri),
                *("--data-root", str(self._folder.parent / "data")),
                *("--checkpoint-every", "2"),  # else so short a training has hardly any that could be gone on from
                *(argument for setting in self._options.set for argument in ("--set", setting)),
                *(("--tasks", self._options.tasks) if self._options.tasks else ()),
                *(SEARCH if self._options.search else ()),
            ],
            env=os.environ | {"PYTHONPATH": str(self._folder / "python")},
            stdout=(self._folder / log).open("a"),
            stderr=subprocess.STDOUT,
            cwd=self._folder,
        )

    def _clear_the_way(self) -> bool:
        """Remove what the driver had to refuse for. Whether there was something."""
        path, self._in_the_way = self._in_the_way, None
        if path is None:
            return False
        self._damaged.append(path)
        path.unlink()
        return True

    def _strike(self) -> bool:
        """Draw a fault. Whether there was something that it could strike; only then it counts."""
        alone = all(driver.poll() is not None for driver in self._beside)
        training = self._trains()
        database = self._server.database
        # What is left strikes a driver that starts, too.
        possible = dict.fromkeys(KINDS, training) | {
            "driver suspended and woken": training and alone,
            "second driver": training and alone,
            "driver of another storage": training and alone and self._store is None,
            "study damaged": training and not self._options.search,
            "node taken away": training and self._nodes.may_go,
            "clock jumps": True,
            "MLflow stopped": training and self._server.runs,
            "MLflow suspended": self._server.runs and not _is_stopped(self._server.pid),
            "PostgreSQL stopped": self._server.runs and database is not None and database.runs,
            "storage full": self.mounted and not self._filler.exists(),
            "object store away": self._store is not None,
        }
        chosen = {name: KINDS[name] for name in self._options.kinds or KINDS}
        weights = {name: weight for name, (weight, _) in chosen.items() if possible[name]}
        if not weights:
            return False
        if not training and not self._options.each and self._draw.random() < 0.8:  # most strike a study that trains
            self._pause(self._options.interval)
            return False
        kind = self._draw.choices(list(weights), list(weights.values()))[0]
        if self._options.each:
            missing = [name for name in weights if not self.faults[name]]
            if not missing and len(self.faults) < len(chosen) and not training:
                return False
            kind = missing[0] if missing else kind
        struck = {
            "trial killed": self._kill_a_trial,
            "trial suspended": self._suspend_a_trial,
            "driver killed": self._kill_the_driver,
            "driver stopped by Ray": self._stop_the_driver,
            "driver suspended and woken": self._suspend_the_driver,
            "second driver": self._start_another,
            "driver of another storage": self._start_elsewhere,
            "state damaged": self._damage_a_state,
            "study damaged": self._damage_a_study,
            "lease damaged": self._damage_a_lease,
            "node taken away": self._take_a_node,
            "newest checkpoint cut short": self._cut_a_checkpoint,
            "clock jumps": self._set_the_clock,
            "MLflow stopped": self._stop_mlflow,
            "MLflow suspended": self._suspend_mlflow,
            "PostgreSQL stopped": self._stop_postgres,
            "storage full": self._fill_the_storage,
            "object store away": self._shut_the_store,
        }[kind]()
        if struck:
            self.faults[kind] += 1
            print(f"{sum(self.faults.values()):4d} {kind}", flush=True)
        return struck

    def _trains(self) -> bool:
        """Whether the newest driver holds its cells and trials run, not only those of one that has just died."""
        with suppress(FileNotFoundError):
            leases = [path.read_text() for path in self.storage.glob("drivers/*.json")]
            return any(f"/{self._driver.pid}/" in lease for lease in leases) and bool(self._nodes.trials())
        return False

    def _kill_a_trial(self) -> bool:
        trials = self._nodes.trials()
        return bool(trials) and _kill(self._draw.choice(trials))

    def _kill_the_driver(self) -> bool:
        ran = self._driver.poll() is None
        self._driver.kill()
        self._driver.wait()
        return ran

    def _stop_the_driver(self) -> bool:
        """As `ray job stop`: a polite end, and after some seconds another."""
        ran = self._driver.poll() is None
        self._driver.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._driver.wait(STOPPED)
        self._driver.kill()
        self._driver.wait()
        return ran

    def _suspend_the_driver(self) -> bool:
        """It sleeps until another driver has its cells, wakes, and has to end without a word to anyone's files."""
        asleep = self._driver
        if asleep.poll() is not None:
            return False
        asleep.send_signal(signal.SIGSTOP)
        self._beside.append(asleep)
        self._start()
        self._after(TAKEN_OVER, lambda: asleep.send_signal(signal.SIGCONT))
        return True

    def _start_another(self) -> bool:
        self._beside.append(self._drive(self.storage))
        return True

    def _start_elsewhere(self) -> bool:
        other = self._drive(self._storage / "elsewhere", "elsewhere.log")
        self._after(20, lambda: (other.kill(), other.wait()))
        return True

    def _suspend_a_trial(self) -> bool:
        awake = [pid for pid in self._nodes.trials() if not _is_stopped(pid)]
        if not awake or not _signal(pid := self._draw.choice(awake), signal.SIGSTOP):
            return False
        self._after(self._draw.uniform(*SILENCE), lambda: _signal(pid, signal.SIGCONT))
        return True

    def _damage_a_state(self) -> bool:
        """The driver dies too. The next must name the file and go on without it."""
        path = self._struck("cells/*/state.json")
        if path is None:
            return False
        path.write_bytes(self._draw.choice(DAMAGE)(path.read_bytes()))
        self._damaged.append(path)
        return True

    def _damage_a_study(self) -> bool:
        path = self._struck("studies/*.json")
        if path is None:
            return False
        path.write_bytes(DAMAGE[0](path.read_bytes()))
        self._in_the_way = path
        return True

    def _damage_a_lease(self) -> bool:
        path = self._struck("drivers/*.json")
        if path is None:
            return False
        self._in_the_way = path.with_name("x.json")
        self._in_the_way.write_bytes(DAMAGE[0](path.read_bytes()))
        return True

    def _struck(self, pattern: str) -> Location | None:
        """One of the account's files, of a driver that has just been killed and beside which there is no other."""
        paths = sorted(self.storage.glob(pattern), key=str)
        beside = any(driver.poll() is None for driver in self._beside)
        if not paths or beside or self._in_the_way or not self._kill_the_driver():
            return None
        path = self._draw.choice(paths)
        return path if path.exists() else None

    def _take_a_node(self) -> bool:
        self._nodes.replace()
        return True

    def _cut_a_checkpoint(self) -> bool:
        """Half of the newest checkpoint of a cell that is being trained is lost, and its trial dies."""
        trials, path = self._nodes.trials(), self._newest_checkpoint()
        if not trials or path is None:
            return False
        try:
            if isinstance(path, Path):
                with path.open("r+b") as file:
                    file.truncate(path.stat().st_size // 2)
            else:
                path.write_bytes(DAMAGE[0](path.read_bytes()))
        except FileNotFoundError:  # a newer one has replaced it
            return False
        killed = [_kill(pid) for pid in trials]
        return any(killed)

    def _newest_checkpoint(self) -> Location | None:
        newest: dict[str, Location] = {}
        for path in sorted(self.storage.glob("cells/*/0*-*.pt"), key=str):
            newest[path.parent.name] = path
        return self._draw.choice(list(newest.values())) if newest else None

    def _set_the_clock(self) -> bool:
        scratch = self._clock.with_name("clock.new")
        scratch.write_text(str(self._draw.uniform(-3600, 3600)))
        scratch.replace(self._clock)
        return True

    def _stop_mlflow(self) -> bool:
        self._server.stop()
        self._after(self._options.outage, self._server.start, is_trouble=True)
        return True

    def _suspend_mlflow(self) -> bool:
        self._server.signal(signal.SIGSTOP)
        self._after(self._draw.uniform(*SILENCE), lambda: self._server.signal(signal.SIGCONT), is_trouble=True)
        return True

    def _stop_postgres(self) -> bool:
        self._server.database.stop()
        self._after(self._draw.uniform(*SILENCE), self._server.database.start, is_trouble=True)
        return True

    def _shut_the_store(self) -> bool:
        """As long as pyarrow itself tries again, and some longer."""
        self._store.shut()
        time.sleep(self._draw.uniform(1, 10))  # here, because nothing else can look at the store now
        self._store.open()
        self._trouble = time.monotonic()
        return True

    def _fill_the_storage(self) -> bool:
        with suppress(OSError), self._filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
        self._after(5, lambda: self._filler.unlink(missing_ok=True), is_trouble=True)
        return True

    def _after(self, seconds: float, call: Callable[[], None], is_trouble: bool = False) -> None:
        """Call later. is_trouble: a driver that starts before that may refuse because of this fault."""
        at = time.monotonic() + seconds
        self._later.append((at, call))
        if is_trouble:
            self._trouble = max(self._trouble, at + SETTLING)

    def _do_what_is_due(self, all_of_it: bool = False) -> None:
        due = [each for each in self._later if all_of_it or each[0] <= time.monotonic()]
        for each in due:
            self._later.remove(each)
            each[1]()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._driver.poll() is None:
            self._do_what_is_due()
            time.sleep(0.1)


def weights(storage: Location) -> dict[str, dict[str, torch.Tensor]]:
    """The final weights of every cell that has been tested."""
    folders = [path.parent for path in storage.glob("cells/*/final-*.pt")]
    return {
        folder.name: state["model"]
        for folder in folders
        if (folder / "history.json").exists() and (state := load_newest(folder, "cpu", print))
    }


def account(storage: Location) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """By cell, its rows and what its state says, without speeds and times."""
    found = {}
    for path in storage.glob("cells/*/history.json"):
        state = json.loads(path.with_name("state.json").read_text())
        known = {name: state[name] for name in ("state", "failure", "micro_batches", "data_fingerprint")}
        found[path.parent.name] = (list(map(_lasting, json.loads(path.read_text()))), known)
    return found


def _lasting(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in SPEEDS}


def trials(storage: Location) -> list[tuple[Any, ...]]:
    """A search's trials as its database has them: number, outcome, value, parameters."""
    if not isinstance(storage, Path) or not (storage / "optuna.db").exists():
        return []
    with closing(sqlite3.connect(storage / "optuna.db")) as database:
        return database.execute(
            "SELECT number, state, value, param_name, param_value FROM trials JOIN trial_values USING (trial_id) "
            "JOIN trial_params USING (trial_id) ORDER BY number, param_name"
        ).fetchall()


def tracked(client: MlflowClient, run_id: str, rows: list[dict[str, Any]]) -> list[str]:
    """The metrics of a run that are not, point by point, those of the rows."""
    expected: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            # The result shares its step with the last epoch, whose row has "epoch".
            if name != "phase" and not (name == "epoch" and row["phase"] == "test"):
                expected.setdefault(name, []).append((row["epoch"], float(value)))
    return [
        name
        for name, points in expected.items()
        if sorted((point.step, point.value) for point in client.get_metric_history(run_id, name)) != sorted(points)
    ]


def verify(quiet: Path, shaken: "Campaign") -> tuple[list[str], dict[str, int]]:
    """What is not as it must be, and how much was compared. quiet: the undisturbed run's storage path."""
    problems = list(shaken.problems)
    sound, kept = account(quiet), account(shaken.storage)
    if sound.keys() != kept.keys():
        problems.append(f"the account has {len(kept)} cells that have ended, and {len(sound)} without faults")
    for cell in sound.keys() & kept.keys():
        problems += [f"the history of {cell} differs"] * (sound[cell][0] != kept[cell][0])
        problems += [f"the state of {cell} is {kept[cell][1]}"] * (sound[cell][1] != kept[cell][1])
    if trials(quiet) != trials(shaken.storage):
        problems.append("the search's trials differ")
    client = MlflowClient(shaken.uri)
    experiment = client.get_experiment_by_name("relvit").experiment_id
    ours = f"tags.cell_id != '' and tags.storage = '{shaken.storage}'"
    runs = client.search_runs([experiment], ours)
    if len(runs) != len(sound):
        problems.append(f"{len(runs)} runs for {len(sound)} cells")
    if len({run.data.tags["cell_id"] for run in runs}) != len(runs):
        problems.append("a cell has two runs")
    for run in runs:
        rows, known = sound.get(run.data.tags["cell_id"], ([], {}))
        if run.info.status != ("FINISHED" if known.get("state") == "finished" else "KILLED"):
            problems.append(f"{run.info.run_name} is {run.info.status}")
        problems += [f"{run.info.run_name} has another {name}" for name in tracked(client, run.info.run_id, rows)]
    before, after = weights(quiet), weights(shaken.storage)
    if before.keys() != after.keys() or not before:
        problems.append(f"final weights of {len(after)} cells for {len(before)} without faults")
    for cell in before.keys() & after.keys():
        if any(not torch.equal(value, after[cell][name]) for name, value in before[cell].items()):
            problems.append(f"the final weights of {cell} differ")
    values = sum(len(row) - 1 for rows, _ in sound.values() for row in rows)
    return problems, dict(zip(COMPARED, (len(sound), values, len(before)), strict=True))


ADDED_UP = "<!-- What follows is written by benchmarks/chaos.py --add docs/chaos --report docs/chaos.md. -->"
COMPARED = ("cells", "values of rows", "final weights")
GOOD = (
    "one MLflow run for each cell, no step missing or twice; every metric of every row, the account's history and "
    "state, a search's trials with their parameters and values, and the final weights bit by bit as without faults"
)


def report(campaigns: list[dict[str, Any]]) -> str:
    """The table of docs/chaos.md, of any number of campaigns."""
    total: Counter[str] = Counter()
    for each in campaigns:
        total.update(each["faults"])
    problems = [problem for each in campaigns for problem in each["problems"]]
    compared = {name: sum(each["compared"].get(name, 0) for each in campaigns) for name in COMPARED}
    much = ", ".join(f"{count:,} {name}" for name, count in compared.items())
    lines = [
        f"{total.total():,} faults of {len(total)} kinds in {sum(each['rounds'] for each in campaigns)} rounds.",
        "",
        "| Fault | What it does | Times |",
        "| :-- | :-- | --: |",
        *(f"| {kind} | {KINDS[kind][1]} | {count} |" for kind, count in sorted(total.items())),
        f"| All | | {total.total():,} |",
        "",
        "| Study | Seeds | Sources | Driver started | Faults | Differs |",
        "| :-- | :-- | :-- | --: | --: | --: |",
        *(
            f"| {each['study']} | {each['seeds']} | {each['sources']} | {each['starts']} | "
            f"{sum(each['faults'].values())} | {len(each['problems'])} |"
            for each in campaigns
        ),
        "",
        f"Compared with undisturbed runs: {much}. Afterwards: {'; '.join(problems) or GOOD}.",
        "",
    ]
    return "\n".join(lines)


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={STORAGE_MEGABYTES}m", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


def _name(path: Location) -> str:
    return str(path).partition("?")[0]


def _kill(pid: int) -> bool:
    """End a process at once. Whether it was still there."""
    return _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _titles() -> list[tuple[int, bytes]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found.append((int(path.parent.name), path.read_bytes()))
    return found


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _is_stopped(pid: int) -> bool:
    return _stat(pid)[0] == "T"


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, from its state and its parent on."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return ["", "0"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


SEARCH = (
    *("--protocol", "joint", "--tasks", "none", "--name", "chaos", "--trials", "5", "--seeds", "0"),
    *("--scheduler", "none", "--searcher", "random", "--tune", "learning_rate,gradient_clip"),
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100, help="in a round, at most (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=0.0, help="begin another round while it is not so long yet")
    parser.add_argument(
        "--strike-for",
        type=float,
        default=float("inf"),
        metavar="MINUTES",
        help="in a round, at most (default: no limit)",
    )
    parser.add_argument(
        "--undisturbed", type=Path, metavar="FOLDER", help="keep the run without faults there, or take it"
    )
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two, on average")
    parser.add_argument("--outage", type=float, default=20.0, metavar="SECONDS", help="that MLflow is stopped for")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first round's draw of faults; the next has the next"
    )
    parser.add_argument("--tasks", help="cells of Table 4 (default: all 16)")
    parser.add_argument("--search", action="store_true", help="a hyperparameter search in place of the ablation")
    parser.add_argument("--secured", action="store_true", help="MLflow's server asks for a password, on PostgreSQL")
    parser.add_argument("--store", action="store_true", help="account and checkpoints are in an object store")
    parser.add_argument("--one-node", action="store_true", help="no nodes to take away, and less to start")
    parser.add_argument("--each", action="store_true", help="every kind of fault once before any comes again")
    parser.add_argument(
        "--kinds", type=lambda text: text.split(","), help=f"of {', '.join(KINDS)} these (default: all)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as of sweeps/ablation.py")
    parser.add_argument("--summary", type=Path, metavar="FOLDER", help="write what happened there too, as JSON")
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="no campaign: add up those of this folder")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="write the report there too, behind what the file begins with"
    )
    options = parser.parse_args()
    options.set = options.set or ["train_images=600", "pretrain_epochs=16", "epochs=16"]
    if wrong := [kind for kind in options.kinds or () if kind not in KINDS]:
        parser.error(f"no kind of fault: {', '.join(wrong)}; there are {', '.join(KINDS)}")
    if options.search and options.store:
        parser.error("--search keeps its trials in a file, which an object store cannot hold: leave out --store")
    return options


def main() -> int:
    options = parse_arguments()
    if options.add:
        campaigns = [json.loads(path.read_text()) for path in sorted(options.add.glob("*.json"))]
    else:
        campaigns = [campaign(options)]
        if options.summary:
            options.summary.mkdir(parents=True, exist_ok=True)
            name = f"{campaigns[0]['study'].replace(', ', '-').replace(' ', '-')}-{options.seed}.json"
            (options.summary / name).write_text(json.dumps(campaigns[0], indent=1) + "\n")
    text = report(campaigns)
    print(text)
    if options.report:
        before = options.report.read_text().partition(ADDED_UP)[0] if options.report.exists() else ""
        options.report.write_text(f"{before}{ADDED_UP}\n\n{text}")
    return 1 if any(each["problems"] for each in campaigns) else 0


def campaign(options: argparse.Namespace) -> dict[str, Any]:
    """The study undisturbed, then rounds under faults, each compared with it."""
    began = time.monotonic()
    if options.secured:
        os.environ |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": secrets.token_urlsafe(24)}
    folder = Path(tempfile.mkdtemp(prefix="relvit-chaos-"))
    nodes, store = Nodes(options.one_node), Store() if options.store else None
    told: dict[str, Any] = {"problems": [], "rounds": 0, "starts": 0}
    faults: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    try:
        quiet = undisturbed(options, nodes, folder)
        while not told["rounds"] or (time.monotonic() - began < 60 * options.minutes and not told["problems"]):
            seed = options.seed + told["rounds"]
            shaken = Campaign(options, nodes, folder / f"round-{seed}", options.faults, seed, store)
            try:
                shaken.run()
                problems, much = verify(quiet, shaken)
                compared.update(much)
            except (RuntimeError, subprocess.SubprocessError, OSError) as error:
                problems = [f"round {seed} broke off: {error}"]
            finally:
                shaken.close()
            told["problems"] += problems
            told["rounds"] += 1
            told["starts"] += shaken.starts
            faults.update(shaken.faults)
            print(
                f"round {seed}: {shaken.faults.total()} faults, {'; '.join(problems) or 'nothing differs'}", flush=True
            )
            if shaken.faults.total() < options.faults:
                print(f"it ended before {options.faults} faults: its cells could have more epochs, with --set")
            if not problems:
                shutil.rmtree(folder / f"round-{seed}", ignore_errors=True)
    finally:
        nodes.shutdown()
    if told["problems"]:
        print(f"the files are kept in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    study = ["search" if options.search else "ablation"]
    study += ["password and PostgreSQL"] * options.secured + ["object store"] * options.store
    last = options.seed + told["rounds"] - 1
    seeds = f"{options.seed} to {last}" if last > options.seed else str(last)
    return {
        "study": ", ".join(study),
        "settings": options.set,
        "seeds": seeds,
        "sources": source_digest(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        **told,
        "faults": dict(sorted(faults.items())),
        "compared": dict(compared),
    }


def undisturbed(options: argparse.Namespace, nodes: Nodes, folder: Path) -> Path:
    """The storage path of the study without faults, on a disk and without a server. One that was kept is taken."""
    what = json.dumps([options.search, options.tasks, options.set, source_digest()])
    kept = options.undisturbed and options.undisturbed / hashlib.sha256(what.encode()).hexdigest()[:12]
    if kept and kept.exists():
        return kept
    plain = argparse.Namespace(**vars(options) | {"secured": False, "store": False})
    quiet = Campaign(plain, nodes, folder / "quiet", 0, 0, None)
    try:
        quiet.run()
    finally:
        quiet.close()
    if not kept:
        return quiet.storage
    scratch = kept.with_name(f"{kept.name}.{os.getpid()}")
    shutil.copytree(quiet.storage, scratch)
    return scratch.rename(kept)


if __name__ == "__main__":
    sys.exit(main())
