"""A campaign of faults against the ablation on a cluster of two nodes on this machine, and what is left of it.

    python benchmarks/chaos.py --faults 100 --report docs/chaos.md

First the study runs undisturbed. Then it runs again while faults are drawn at random: a trial killed or suspended, the
driver killed, stopped as `ray job stop` does it, or suspended until another has taken its cells over, a second driver
started beside it, a node taken away (and given back), the newest checkpoint cut short, a cell's state damaged, MLflow's
server stopped, the storage full. The driver is started again, by the same command, whenever it has ended. In the end
there must be one finished MLflow run per cell, every step once, and every metric of every row, the account's history
and state, and the final weights of every cell equal to those without faults. Exit status 1 where that is not so.
Filling the storage needs the right to mount a tmpfs; without it that fault is left out, and the report says so.
"""

import argparse
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
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
from relvit.vocabulary import SPEEDS

STORAGE_MEGABYTES = 400
TAKEN_OVER = 50.0  # seconds after which a suspended driver's lease has expired and another holds its cells
STOPPED = 3.0  # seconds that Ray gives a job which it stops, before it kills it
# How a driver may end beside another: 2 where MLflow is away when it starts, 4 where the cells are the other's.
BESIDE = {0, 1, 2, 4, 130}


class Nodes:
    """A head without CPUs, and two nodes that may go away, a trial each."""

    def __init__(self):
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(2)]
        self.address = self._cluster.address

    def replace_one(self, draw: random.Random) -> None:
        """Take a node away with all that runs on it, and add another."""
        node = self._nodes.pop(draw.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._cluster.add_node(num_cpus=1))

    def trials(self) -> list[int]:
        """The processes that train now."""
        raylets = {
            info.process.pid
            for node in self._nodes
            for info in node.all_processes.get("raylet", [])
            if info.process.poll() is None
        }
        return [
            pid for pid, title in _titles() if title.startswith(b"ray::ResourceTrainable") and _parent(pid) in raylets
        ]

    def shutdown(self) -> None:
        self._cluster.shutdown()


class Server:
    """MLflow's server on a SQLite file."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._port = _free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen | None = None
        self.stopped_until = 0.0

    def start(self) -> None:
        # One worker process, which ends with this one and can be stopped as a whole.
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)),
                *("--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--workers", "1"),
                *("--artifacts-destination", str(self._folder / "artifacts")),
            ],
            stdout=(self._folder / "mlflow.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            time.sleep(0.2)
        raise RuntimeError(f"MLflow's server did not start; see {self._folder}/mlflow.log")

    def stop(self) -> None:
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def runs(self) -> bool:
        return self._process is not None


class Campaign:
    """One run of the study under faults."""

    def __init__(self, options: argparse.Namespace, nodes: Nodes, folder: Path, faults: int):
        self._options, self._nodes, self._folder, self._left = options, nodes, folder, faults
        self._draw = random.Random(options.seed)
        self._storage = folder / "storage"
        self._storage.mkdir(parents=True)
        self.mounted = bool(faults) and _mount(self._storage)
        self._server = Server(folder)
        self._driver: subprocess.Popen | None = None
        self._beside: list[subprocess.Popen] = []  # drivers that were suspended, or started beside the first
        self.problems: list[str] = []
        self._damaged: list[Path] = []
        self.faults: Counter[str] = Counter()
        self.starts = 0
        self.seconds = 0.0
        self._later: list[tuple[float, Callable[[], None]]] = []

    def run(self) -> None:
        """Until every cell is finished and all faults are through."""
        started = time.monotonic()
        self._server.start()
        try:
            self._start()
            while True:
                self._do_what_is_due()
                status = self._driver.poll()
                if status == 0:
                    break
                if status is not None:
                    if status == 2:
                        raise RuntimeError(f"the driver refused: see {self._folder}/driver.log")
                    self._start()
                elif self._left > 0 and self._nodes.trials() and self._strike():
                    self._left -= 1
                    self._pause(self._draw.uniform(0.5, 1.5) * self._options.interval)
                else:
                    time.sleep(0.2)
            self._do_what_is_due(all_of_it=True)
            for driver in self._beside:
                if driver.wait(600) not in BESIDE:
                    self.problems.append(f"a driver beside another ended with {driver.returncode}")
            told = (self._folder / "driver.log").read_text()
            self.problems += [f"a damaged {path} was not named" for path in self._damaged if str(path) not in told]
            # The last driver may have ended while MLflow was away: one more start enters what is missing.
            self._start()
            if self._driver.wait() != 0:
                raise RuntimeError(f"the last start failed: see {self._folder}/driver.log")
        finally:
            for driver in filter(None, (self._driver, *self._beside)):
                if driver.poll() is None:
                    driver.kill()
            self.seconds = time.monotonic() - started

    def close(self) -> None:
        self._server.stop()
        if self.mounted:
            subprocess.run(["umount", str(self._storage)], check=True)

    @property
    def uri(self) -> str:
        return self._server.uri

    @property
    def storage(self) -> Path:
        return self._storage / "results"

    def _start(self) -> None:
        if not self._server.runs:  # a driver refuses to start without it, and that is no fault of the sweep
            self._do_what_is_due(all_of_it=True)
        self._driver = self._drive()

    def _drive(self) -> subprocess.Popen:
        self.starts += 1
        return subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "sweeps/ablation.py"), "--address", self._nodes.address),
                *("--storage", str(self.storage), "--tracking-uri", self.uri),
                *("--data-root", str(self._folder.parent / "data")),
                *(argument for setting in self._options.set for argument in ("--set", setting)),
                *(("--tasks", self._options.tasks) if self._options.tasks else ()),
            ],
            stdout=(self._folder / "driver.log").open("a"),
            stderr=subprocess.STDOUT,
            cwd=self._folder,
        )

    def _strike(self) -> bool:
        """Draw a fault. Whether there was something that it could strike; only then it counts."""
        alone = all(driver.poll() is not None for driver in self._beside)
        kinds = {
            "trial killed": 12,
            "trial suspended": 2,
            "driver killed": 3,
            "driver stopped by Ray": 1,
            "driver suspended and woken": 1 if alone else 0,
            "second driver": 1 if alone else 0,
            "state damaged": 1,
            "node taken away": 2,
            "newest checkpoint cut short": 4,
            "MLflow stopped": 1 if self._server.runs else 0,
            "storage full": 1 if self.mounted else 0,
        }
        kind = self._draw.choices(list(kinds), list(kinds.values()))[0]
        if self._options.each:
            missing = [name for name, weight in kinds.items() if weight and not self.faults[name]]
            kind = missing[0] if missing else kind
        struck = {
            "trial killed": self._kill_a_trial,
            "trial suspended": self._suspend_a_trial,
            "driver killed": self._kill_the_driver,
            "driver stopped by Ray": self._stop_the_driver,
            "driver suspended and woken": self._suspend_the_driver,
            "second driver": self._start_another,
            "state damaged": self._damage_a_state,
            "node taken away": self._take_a_node,
            "newest checkpoint cut short": self._cut_a_checkpoint,
            "MLflow stopped": self._stop_mlflow,
            "storage full": self._fill_the_storage,
        }[kind]()
        if struck:
            self.faults[kind] += 1
            print(f"{sum(self.faults.values()):4d} {kind}", flush=True)
        return struck

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
        self._later.append((time.monotonic() + TAKEN_OVER, lambda: asleep.send_signal(signal.SIGCONT)))
        return True

    def _start_another(self) -> bool:
        self._beside.append(self._drive())
        return True

    def _suspend_a_trial(self) -> bool:
        trials = self._nodes.trials()
        if not trials or not _signal(trials[0], signal.SIGSTOP):
            return False
        self._later.append((time.monotonic() + 10, lambda: _signal(trials[0], signal.SIGCONT)))
        return True

    def _damage_a_state(self) -> bool:
        """A cell's state is cut short, and the driver dies. The next must name the file and go on without it."""
        paths = sorted(self.storage.glob("cells/*/state.json"))
        if not paths:
            return False
        path = self._draw.choice(paths)
        self._kill_the_driver()
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        self._damaged.append(path)
        return True

    def _take_a_node(self) -> bool:
        self._nodes.replace_one(self._draw)
        return True

    def _cut_a_checkpoint(self) -> bool:
        """Half of the newest checkpoint of a cell that is being trained is lost, and its trial dies."""
        trials, path = self._nodes.trials(), self._newest_checkpoint()
        if not trials or path is None:
            return False
        try:
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)
        except FileNotFoundError:  # a newer one has replaced it
            return False
        killed = [_kill(pid) for pid in trials]
        return any(killed)

    def _newest_checkpoint(self) -> Path | None:
        times: dict[Path, int] = {}
        for path in self.storage.glob("cells/*/0*-*.pt"):
            with suppress(FileNotFoundError):
                times[path] = path.stat().st_mtime_ns
        return max(times, key=times.__getitem__, default=None)

    def _stop_mlflow(self) -> bool:
        self._server.stop()
        self._later.append((time.monotonic() + self._options.outage, self._server.start))
        return True

    def _fill_the_storage(self) -> bool:
        filler = self._storage / "filler"
        with suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(1 << 20))
        self._later.append((time.monotonic() + 5, lambda: filler.unlink(missing_ok=True)))
        return True

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


def weights(storage: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The final weights of every cell."""
    return {
        folder.name: state["model"]
        for folder in storage.glob("cells/*")
        if (folder / "history.json").exists() and (state := load_newest(folder, "cpu", print))
    }


def account(storage: Path) -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """By cell, its rows and what its state says, without speeds and times."""
    found = {}
    for path in storage.glob("cells/*/history.json"):
        state = json.loads(path.with_name("state.json").read_text())
        known = {name: state[name] for name in ("state", "reason", "failure", "micro_batches")}
        found[path.parent.name] = (list(map(_lasting, json.loads(path.read_text()))), known)
    return found


def _lasting(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in SPEEDS}


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


def verify(quiet: "Campaign", shaken: "Campaign", cells: int) -> list[str]:
    """What is not as it must be."""
    problems = [*quiet.problems, *shaken.problems]
    sound, kept = account(quiet.storage), account(shaken.storage)
    if sound.keys() != kept.keys() or len(sound) != cells:
        problems.append(f"the account has {len(kept)} finished cells, and {len(sound)} without faults")
    for cell in sound.keys() & kept.keys():
        problems += [f"the history of {cell} differs"] * (sound[cell][0] != kept[cell][0])
        problems += [f"the state of {cell} is {kept[cell][1]}"] * (sound[cell][1] != kept[cell][1])
    client = MlflowClient(shaken.uri)
    experiment = client.get_experiment_by_name("relvit").experiment_id
    runs = client.search_runs([experiment], "tags.cell_id != ''")
    if len(runs) != cells:
        problems.append(f"{len(runs)} runs for {cells} cells")
    if len({run.data.tags["cell_id"] for run in runs}) != len(runs):
        problems.append("a cell has two runs")
    for run in runs:
        if run.info.status != "FINISHED":
            problems.append(f"{run.info.run_name} is {run.info.status}")
        rows, _ = sound.get(run.data.tags["cell_id"], ([], {}))
        problems += [f"{run.info.run_name} has another {name}" for name in tracked(client, run.info.run_id, rows)]
    before, after = weights(quiet.storage), weights(shaken.storage)
    if before.keys() != after.keys() or len(before) != cells:
        problems.append(f"final weights of {len(after)} cells for {len(before)} without faults")
    for cell in before.keys() & after.keys():
        if any(not torch.equal(value, after[cell][name]) for name, value in before[cell].items()):
            problems.append(f"the final weights of {cell} differ")
    return problems


def report(options: argparse.Namespace, quiet: Campaign, shaken: Campaign, problems: list[str], cells: int) -> str:
    faults = sum(shaken.faults.values())
    good = (
        f"one finished MLflow run for each of the {cells} cells, no step missing or twice; every metric of every row, "
        "the account's history and state as without faults; and the final weights of every cell equal bit by bit to "
        "those without faults"
    )
    lines = [
        "# Faults against a running sweep",
        "",
        f"`{' '.join(['python', 'benchmarks/chaos.py', *sys.argv[1:]])}`",
        "",
        f"{cells} cells on two Ray nodes of one CPU each on one machine, {', '.join(options.set)}. {faults} faults, "
        f"drawn with seed {options.seed}, about one every {options.interval:g} s of training; MLflow was away for "
        f"{options.outage:g} s each time.",
        "",
        "| Fault | Times |",
        "| :-- | --: |",
        *(f"| {kind} | {count} |" for kind, count in sorted(shaken.faults.items())),
        f"| All | {faults} |",
        "",
        *([] if shaken.mounted else ["The storage was never full: no tmpfs could be mounted here.", ""]),
        f"The driver was started {shaken.starts} times, always by the same command. Without faults the study took "
        f"{quiet.seconds:.0f} s, with them {shaken.seconds:.0f} s.",
        "",
        f"Afterwards: {'; '.join(problems) or good}.",
        "",
    ]
    return "\n".join(lines)


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={STORAGE_MEGABYTES}m", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


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
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100, help="how many (default: %(default)s)")
    parser.add_argument("--interval", type=float, default=4.0, metavar="SECONDS", help="between two, on average")
    parser.add_argument("--outage", type=float, default=60.0, metavar="SECONDS", help="that MLflow is away")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of faults")
    parser.add_argument("--tasks", help="cells of Table 4 (default: all 16)")
    parser.add_argument("--each", action="store_true", help="every kind of fault once before any comes again")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="as of sweeps/ablation.py")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the report there too")
    options = parser.parse_args()
    options.set = options.set or ["train_images=600", "pretrain_epochs=16", "epochs=16"]
    return options


def main() -> int:
    options = parse_arguments()
    cells = len(options.tasks.split(",")) if options.tasks else 16
    folder = Path(tempfile.mkdtemp(prefix="relvit-chaos-"))
    nodes = Nodes()
    quiet = Campaign(options, nodes, folder / "quiet", faults=0)
    shaken = Campaign(options, nodes, folder / "shaken", faults=options.faults)
    try:
        quiet.run()
        shaken.run()
        problems = verify(quiet, shaken, cells)
    finally:
        quiet.close()
        shaken.close()
        nodes.shutdown()
    text = report(options, quiet, shaken, problems, cells)
    print(text)
    if options.report:
        options.report.write_text(text)
    if sum(shaken.faults.values()) < options.faults:
        print(f"the study ended before {options.faults} faults: give its cells more epochs with --set")
    if problems:
        print(f"the files are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
