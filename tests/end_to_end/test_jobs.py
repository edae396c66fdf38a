"""A study submitted as a job to a real head with token authentication, from a fresh clone, to a real MLflow server with
a password; and everyone who lacks the token or the password."""

import base64
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from relvit.cell import Cell
from sweeps.account.work import WorkItem
from sweeps.planning.plan import Request, plan_cells
from sweeps.tracking.reachable import tracking_problems
from sweeps.tracking.tracker import Tracker, TrackingError

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SMALL = ("--tasks", "none", "--set", "train_images=200", "--set", "pretrain_epochs=3", "--set", "epochs=3")
CELLS = "tags.cell_id != ''"  # the runs of cells; that of the study aside
SECRET_NAMES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


@dataclass(frozen=True)
class Site:
    """A head and a tracking server of their own. environment: a user's who has the token."""

    folder: Path
    clone: Path
    ray: str
    mlflow: str
    token: str
    password: str
    environment: dict[str, str]


def without_secrets(home: Path) -> dict[str, str]:
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "MLFLOW_", "RELVIT_")) and name != "PYTHONPATH"
    }
    return {**ours, "HOME": str(home), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    """Until somebody answers, also with a refusal: the first answers of a server that has just started are slow."""
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=60).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.3)


@pytest.fixture(scope="module")
def site():
    # Not pytest's folder: Ray's sockets lie below, and their paths may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="rj-", dir="/tmp"))
    folder.chmod(0o755)  # a home that others may enter; what they reach in it is for a test to say
    head_port, dashboard, client, mlflow = free_ports(4)
    subprocess.run(["git", "clone", "--quiet", ROOT, folder / "clone"], check=True)
    # On the head the job's driver finds MLflow's password in ~/.mlflow/credentials, which the server makes.
    environment = {**without_secrets(folder), "RAY_AUTH_MODE": "token"}
    # As docs/cluster.md says: Ray's token, and a folder for its files that nobody else enters.
    token = subprocess.run(
        [BIN / "ray", "get-auth-token", "--generate"], env=environment, capture_output=True, text=True, check=True,
        umask=0o077,
    ).stdout.strip().splitlines()[-1]  # fmt: skip
    (folder / "r").mkdir(mode=0o700)
    head = [
        BIN / "ray", "start", "--head", "--block", f"--port={head_port}", f"--ray-client-server-port={client}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0",
        "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=1", f"--temp-dir={folder / 'r/ray'}",
        "--disable-usage-stats",
    ]  # fmt: skip
    jobs_environment = {
        "RELVIT_STORAGE": str(folder / "results"),
        "RELVIT_DATA_ROOT": str(folder / "data"),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow}",
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
    }
    server = [sys.executable, folder / "clone/sweeps/serve_mlflow.py", "--port", str(mlflow)]
    processes = []
    try:
        for name, command in (("head", head), ("mlflow", server)):
            with (folder / f"{name}.log").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        command,
                        cwd=folder,
                        env=environment | jobs_environment,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                        umask=0o077,
                    )  # fmt: skip
                )
        paths = ("api/version", "api/2.0/mlflow/experiments/search")
        for process, name, port, path in zip(processes, ("head", "mlflow"), (dashboard, mlflow), paths):
            wait_for(f"http://127.0.0.1:{port}/{path}", process, folder / f"{name}.log")
        password = (folder / ".mlflow/credentials").read_text().split("password = ")[1].strip()
        # Its first answer to somebody whom it knows is slower still than a refusal.
        known = base64.b64encode(f"admin:{password}".encode()).decode()
        search = urllib.request.Request(
            f"http://127.0.0.1:{mlflow}/api/2.0/mlflow/experiments/search",
            data=b'{"max_results": 1}',
            headers={"Content-Type": "application/json", "Authorization": f"Basic {known}"},
        )
        urllib.request.urlopen(search, timeout=180).close()
        yield Site(
            folder, folder / "clone", f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{mlflow}", token, password,
            environment,
        )  # fmt: skip
    finally:
        for process in processes:
            # Its own session, so that this ends what it started and nothing else.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def submit(site: Site, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """sweeps/submit.py of the clone, as a user calls it; fails if a secret can be seen in any process meanwhile."""
    command = [sys.executable, site.clone / "sweeps/submit.py", "--address", site.ray, "--", *arguments]
    process = subprocess.Popen(
        command, cwd=site.folder, env=environment or site.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while True:
        for line in command_lines():
            assert site.token not in line
            assert site.password not in line
        try:
            output, _ = process.communicate(timeout=0.5)
            return subprocess.CompletedProcess(command, process.returncode, output, "")
        except subprocess.TimeoutExpired:
            continue


def command_lines() -> list[str]:
    """What `ps` shows of every process."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().decode(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return lines


def study(*arguments: str) -> tuple[str, ...]:
    """Where everything is says the cluster's environment."""
    return ("python", "sweeps/ablation.py", *SMALL, *arguments)


def submitted(site: Site, *entrypoint: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """By Ray's own command."""
    command = [BIN / "ray", "job", "submit", "--address", site.ray, "--working-dir", ".", *options]
    return subprocess.run(
        [*command, "--", *entrypoint], cwd=site.clone, env=site.environment, capture_output=True, text=True
    )


def call(url: str, body: dict, headers: dict[str, str]) -> int:
    """The status of a POST."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def jobs(site: Site) -> list[dict]:
    request = urllib.request.Request(f"{site.ray}/api/jobs/", headers={"Authorization": f"Bearer {site.token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


@pytest.fixture
def client(site, monkeypatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", site.password)
    return MlflowClient(site.mlflow)


def test_a_study_from_a_fresh_clone_runs_on_the_cluster_and_its_run_leads_back_to_the_commit(site, client):
    result = submit(site, *study())
    assert result.returncode == 0, result.stdout
    assert "1 cell finished" in result.stdout
    (run,) = client.search_runs([client.get_experiment_by_name("relvit").experiment_id], CELLS)
    assert run.info.status == "FINISHED"
    head = subprocess.run(["git", "-C", site.clone, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert run.data.tags["git_commit"] == head.stdout.strip()
    assert run.data.tags["git_dirty"] == "false"
    for seen in (result.stdout, str(run.data.tags), str(run.data.params), json.dumps(jobs(site))):
        assert site.password not in seen
        assert site.token not in seen
    logs = [path.read_bytes() for path in (site.folder / "r/ray").rglob("*.log")] + [
        (site.folder / "mlflow.log").read_bytes()
    ]
    assert len(logs) > 3
    assert not any(secret.encode() in log for log in logs for secret in (site.password, site.token))


def test_a_request_that_is_wrong_fails_the_job_with_its_own_exit_status(site):
    result = submit(site, *study("--study", "tabel4"))
    assert result.returncode == 2
    assert "unknown study 'tabel4'" in result.stdout
    (job,) = [job for job in jobs(site) if "tabel4" in job["entrypoint"]]
    assert (job["status"], job["driver_exit_code"]) == ("FAILED", 2)


def test_rays_own_command_runs_the_same_study_which_is_done(site):
    result = submitted(site, *study())
    assert result.returncode == 0, result.stdout + result.stderr
    assert "the cell is finished; nothing to train" in result.stdout
    assert (site.folder / "results/account.json").exists()


def test_a_tracking_server_that_is_not_there_is_named_and_the_job_has_failed(site):
    (port,) = free_ports(1)
    result = submitted(site, *study("--tracking-uri", f"http://127.0.0.1:{port}", "--set", "train_images=300"))
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"no MLflow server answers at http://127.0.0.1:{port}" in result.stdout


def test_a_job_that_is_stopped_closes_every_run_with_a_reason_and_lets_go_of_its_cells(site, client):
    """Eight trials, an eighth of a CPU each."""
    more = ("--tasks", "none,sprel,dist,ang,abspos,sprel+dist,sprel+ang,sprel+abspos", "--cpus", "0.125")
    job = f"stopped-{secrets.token_hex(4)}"
    command = (*study(*more, "--seeds", "7", "--set", "pretrain_epochs=300"), "--experiment", job)
    assert submitted(site, *command, options=("--no-wait", "--submission-id", job)).returncode == 0
    runs = []
    while len(runs) < 8 or not all("epoch" in run.data.metrics for run in runs):
        assert next(each["status"] for each in jobs(site) if each["submission_id"] == job) in ("PENDING", "RUNNING")
        time.sleep(0.5)
        experiment = client.get_experiment_by_name(job)
        runs = client.search_runs([experiment.experiment_id], CELLS) if experiment else []
    began = time.monotonic()
    stop = [BIN / "ray", "job", "stop", "--address", site.ray, job]
    subprocess.run(stop, env=site.environment, check=True, capture_output=True)
    print(f"stopped in {time.monotonic() - began:.1f} s")
    assert next(each["status"] for each in jobs(site) if each["submission_id"] == job) == "STOPPED"
    runs = client.search_runs([experiment.experiment_id], CELLS)
    assert [(run.info.status, run.data.tags["reason"]) for run in runs] == [("KILLED", runs[0].data.tags["reason"])] * 8
    assert runs[0].data.tags["reason"]
    assert not list((site.folder / "results/drivers").iterdir())


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another account")
def test_another_account_reads_no_token_and_no_database_and_changes_no_job(site):
    """Who can enter the home of the one who started all this, on a cluster that was set up as docs/cluster.md says."""
    secret = [site.folder / ".ray/auth_token", site.folder / ".mlflow/credentials", *site.folder.rglob("*.db")]
    packages = list((site.folder / "r").rglob("working_dir_files"))
    assert len(secret) > 3 and packages and all(path.exists() for path in secret)
    (site.folder / "open").write_text("for everyone")
    (site.folder / "open").chmod(stat.S_IROTH | stat.S_IWOTH)

    def reached(*test: str) -> set[str]:
        command = ["find", site.folder, *test, "-not", "-type", "l"]
        found = subprocess.run(command, user=65534, group=65534, extra_groups=[], capture_output=True, text=True)
        return set(found.stdout.splitlines())

    readable, writable = reached("-readable", "-type", "f"), reached("-writable")
    assert str(site.folder / "open") in readable & writable  # it does look
    assert not readable & set(map(str, secret))
    assert not [path for path in readable if path.endswith((".db", "auth_token", "credentials", ".json"))
                and "clone" not in path]  # fmt: skip
    assert writable == {str(site.folder / "open")}


@pytest.mark.parametrize("token", [None, "not-the-token"])
def test_without_the_token_nothing_is_submitted(site, token, tmp_path):
    known = len(jobs(site))
    environment = {**without_secrets(tmp_path), **({"RAY_AUTH_TOKEN": token} if token else {})}
    result = submit(site, *study(), environment=environment)
    assert result.returncode == 2
    assert "refuses" in result.stdout
    assert "put the cluster's token into ~/.ray/auth_token" in result.stdout
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    assert call(f"{site.ray}/api/jobs/", {"entrypoint": "true"}, headers) == (403 if token else 401)
    assert len(jobs(site)) == known


@pytest.mark.parametrize("password", [None, "not-the-password"])
def test_without_the_password_no_run_is_written(site, client, password, tmp_path, monkeypatch):
    known = len(client.search_experiments())
    monkeypatch.setenv("HOME", str(tmp_path))
    if password:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    else:
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    (problem,) = tracking_problems(site.mlflow)
    assert f"the MLflow server at {site.mlflow} refuses" in problem
    with pytest.raises(TrackingError):
        Tracker(site.mlflow, "intruder", tmp_path)
    assert call(f"{site.mlflow}/api/2.0/mlflow/runs/create", {"experiment_id": "0"}, {}) == 401
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", site.password)
    assert len(MlflowClient(site.mlflow).search_experiments()) == known


def test_with_the_password_a_run_is_written(site, client, tmp_path):
    assert tracking_problems(site.mlflow) == []
    cell: Cell = plan_cells(Request("table4", "demo", tmp_path, combinations=("sprel",)))[0]
    tracker = Tracker(site.mlflow, "with-password", tmp_path)
    tracker.begin(WorkItem(cell, studies=("table4",)))
    (run,) = client.search_runs([client.get_experiment_by_name("with-password").experiment_id])
    assert run.data.tags["cell_id"] == cell.cell_id
