"""What is found before the first trial, and the words that it is told in. Real nodes: end_to_end/test_nodes.py."""

import dataclasses
import io
import json
import socket
import threading
from contextlib import redirect_stdout
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from relvit.data import cached_fingerprint
from relvit.files import location, write_atomic
from sweeps.account import leases
from sweeps.account.account import Account
from sweeps.account.failures import NODE_LOST, STORAGE, NodeError, Setting, classify
from sweeps.account.work import WorkItem
from sweeps.cluster import nodes as preflight
from sweeps.cluster.nodes import (
    Report,
    examine,
    gpu_problem,
    judge,
    not_visible,
    this_driver,
    verify_node,
    versions,
)
from sweeps.driver.options import Checkpoints, Options
from sweeps.driver.trainable import TRIAL, CellTrainable, trial_config
from sweeps.planning.plan import Request, plan_cells
from sweeps.tracking import reachable
from sweeps.tracking.reachable import file_system_of, tracking_problems

OWN = {"Python": "3.11", "torch": "2.15.0", "timm": "1.0.31", "the project": "aaaaaaaaaaaa"}


def told(reports, unseen=None, needed_bytes=0) -> list[str]:
    return judge(reports, unseen or {}, OWN, "/shared/results", needed_bytes)


# The nodes


def test_nodes_that_agree_and_see_each_other_have_no_problems():
    assert told({"a": Report(OWN, 10**12), "b": Report(OWN, None)}, {"a": [], "b": []}) == []


def test_a_version_that_differs_is_named_with_both_and_once_for_all_nodes_that_have_it():
    other = {**OWN, "torch": "2.14.0"}
    assert told({"a": Report(OWN), "b": Report(other), "c": Report(other)}) == [
        "nodes b and c: has torch 2.14.0 and the driver 2.15.0: install the same version on every node"
    ]


def test_other_sources_of_the_project_are_a_mismatch_too():
    (sentence,) = told({"a": Report({**OWN, "the project": "bbbbbbbbbbbb"})})
    assert "sources bbbbbbbbbbbb" in sentence
    assert "sources aaaaaaaaaaaa" in sentence
    assert "sweeps/submit.py" in sentence


def test_storage_that_is_not_shared_names_who_does_not_see_whom():
    (sentence,) = told({"a": Report(OWN), "b": Report(OWN)}, {"a": ["b"], "b": []})
    assert sentence.startswith(
        "node a: does not see what b wrote under the storage path /shared/results: it is not shared"
    )


def test_two_sizes_that_differ_are_shown_to_differ():
    (sentence,) = told({"a": Report(OWN, 49_900_000)}, needed_bytes=50_000_000)
    assert "has 49.9 MB free" in sentence and "about 50.0 MB" in sentence


def test_room_is_compared_with_what_is_needed():
    assert told({"a": Report(OWN, 5 * 10**9)}, needed_bytes=5 * 10**9) == []
    (sentence,) = told({"a": Report(OWN, 5 * 10**9)}, needed_bytes=6 * 10**9)
    assert "node a: has 5.00 GB free" in sentence
    assert "needs about 6.00 GB" in sentence


def test_a_node_that_gives_no_answer_is_a_problem():
    assert told({"a": Report(OWN), "b": "gave no answer within 30 s"}) == ["node b: gave no answer within 30 s"]


def test_all_that_is_wrong_is_told_together():
    reports = {"a": Report({**OWN, "timm": "1.0.20", "Python": "3.13"}, 1, ["neither sees nor can make the data"])}
    assert len(told(reports, {"a": ["b"]}, needed_bytes=2)) == 5


def test_a_node_examines_itself(tmp_path):
    report = examine(str(tmp_path / "results"), str(tmp_path / "data"), [], ".proof", "node-7")
    assert report.versions == versions()
    assert report.free_bytes > 0
    assert report.problems == []
    assert (tmp_path / "results/.proof/node-7").read_bytes() == b"node-7"


def test_a_storage_path_that_cannot_be_written_is_said_with_the_cause(tmp_path):
    (tmp_path / "file").touch()
    (problem,) = examine(str(tmp_path / "file/results"), str(tmp_path), [], ".proof", "node-7").problems
    assert f"cannot write to the storage path {tmp_path}/file/results" in problem
    assert "Not a directory" in problem


def test_images_of_ones_own_must_be_on_every_node(tmp_path):
    (tmp_path / "flowers").mkdir()
    data = str(tmp_path)
    assert examine(str(tmp_path), data, ["flowers"], ".proof", "a").problems == []
    (problem,) = examine(str(tmp_path), data, ["flowers", "birds"], ".proof", "a").problems
    assert problem.startswith(f"does not see {tmp_path}/birds, which cannot be downloaded")


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path):
    (problem,) = examine(str(tmp_path), "/proc/data", [], ".proof", "a").problems
    assert problem.startswith("neither sees nor can make the data folder /proc/data")


def test_a_node_sees_what_was_written_and_says_what_it_does_not_see(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.cluster.nodes.VISIBLE_SECONDS", 0.1)
    examine(str(tmp_path), str(tmp_path), [], ".proof", "a")
    assert not_visible(str(tmp_path), ".proof", ["a"]) == []
    assert not_visible(str(tmp_path), ".proof", ["a", "b"]) == ["b"]


def test_a_file_that_a_network_file_system_shows_late_is_waited_for(tmp_path):
    writer = threading.Timer(0.3, examine, (str(tmp_path), str(tmp_path), [], ".proof", "late"))
    writer.start()
    assert not_visible(str(tmp_path), ".proof", ["late"]) == []
    writer.join()


def test_the_proof_works_in_an_object_store_and_says_what_a_store_refuses(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.cluster.nodes.VISIBLE_SECONDS", 0.1)
    place, _, options = bucket.partition("?")
    storage = f"{place}/preflight/results?{options}"
    report = examine(storage, str(tmp_path), [], ".proof", "10.0.0.7 (0123abcd)")
    assert (report.problems, report.free_bytes) == ([], None)
    assert not_visible(storage, ".proof", ["10.0.0.7 (0123abcd)", "10.0.0.8"]) == ["10.0.0.8"]
    assert (location(storage) / ".proof" / "10.0.0.7 (0123abcd)").exists()
    (problem,) = examine(f"s3://no-such-bucket/results?{options}", str(tmp_path), [], ".proof", "a").problems
    assert "cannot write to the storage path s3://no-such-bucket/results" in problem


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use this machine's GPU")


@needs_no_gpu
def test_a_gpu_that_torch_cannot_use_is_a_problem_of_its_node_with_what_torch_says(tmp_path):
    (problem,) = examine(str(tmp_path), str(tmp_path), [], ".proof", "a", ("fp32",)).problems
    assert problem.startswith(f"has a GPU that torch {torch.__version__} cannot use (")
    with pytest.raises((RuntimeError, AssertionError)) as torchs:
        torch.zeros(1, device="cuda")
    assert str(torchs.value).strip().splitlines()[0] in problem
    assert "--gpus 0" in problem


@pytest.fixture
def turing(monkeypatch):
    """A process that has an A100 and a T4, as torch tells them."""
    gpus = [((8, 0), "NVIDIA A100"), ((7, 5), "Tesla T4")]
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: gpus[gpu][0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda gpu: gpus[gpu][1])


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_a_gpu_that_is_too_old_for_the_plans_precision_is_a_problem_of_its_node(turing, precision):
    assert gpu_problem(["fp32"]) == ""
    assert gpu_problem(["fp32", precision]) == (
        f"has a Tesla T4 of compute capability 7.5, and precision={precision} needs 8.0 or later (A100, RTX 30 and "
        "newer): use precision=fp32"
    )


def test_a_node_is_asked_about_the_precisions_of_the_plan_in_the_process_that_sees_its_gpus(
    turing, tmp_path, monkeypatch
):
    def run(command, **how):
        said = io.StringIO()
        with redirect_stdout(said):
            exec(command[-1], {})
        return SimpleNamespace(returncode=0, stdout=said.getvalue())

    monkeypatch.setattr(preflight.subprocess, "run", run)
    report = lambda *precisions: examine(str(tmp_path), str(tmp_path), [], ".proof", "a", precisions)  # noqa: E731
    assert report("fp32").problems == []
    (problem,) = report("bf16", "fp32").problems
    assert problem.startswith("has a Tesla T4 of compute capability 7.5, and precision=bf16 needs 8.0")


# A node that joined later


def test_a_trial_on_a_late_node_whose_gpu_is_too_old_for_its_cell_leaves_the_cell_to_another_node(
    turing, tmp_path, late
):
    with leases.hold(tmp_path / "drivers", ["a cell"], lost=lambda: None):
        verify_node(str(tmp_path), this_driver(), "10.0.0.9", "fp32")
        with pytest.raises(NodeError, match="node 10.0.0.9: has a Tesla T4 of compute capability 7.5"):
            verify_node(str(tmp_path), this_driver(), "10.0.0.9", "bf16")


@needs_no_gpu
def test_a_trial_that_was_given_a_gpu_which_torch_cannot_use_fails_as_a_lost_node(tmp_path, late):
    with leases.hold(tmp_path / "drivers", ["a cell"], lost=lambda: None):
        with pytest.raises(NodeError, match="node 10.0.0.9: has a GPU that torch .* cannot use") as raised:
            verify_node(str(tmp_path), this_driver(), "10.0.0.9", "fp32")
    assert classify(raised.value) == NODE_LOST


@pytest.fixture
def late(monkeypatch):
    """A process that has examined nothing yet, and has little patience."""
    monkeypatch.setattr(preflight, "LATE_SECONDS", 0.1)
    monkeypatch.setattr(preflight, "examined", set())


def looked_again(monkeypatch) -> list[str]:
    """From now on: the places in which leases were looked for."""
    places = []
    monkeypatch.setattr(preflight.leases, "read", lambda folder: places.append(folder) or [])
    return places


def test_a_node_that_sees_the_drivers_lease_and_has_its_versions_is_fine_and_asked_once(tmp_path, late, monkeypatch):
    with leases.hold(tmp_path / "drivers", ["a cell"], lost=lambda: None):
        verify_node(str(tmp_path), this_driver(), "10.0.0.9")
        places = looked_again(monkeypatch)
        verify_node(str(tmp_path), this_driver(), "10.0.0.9")
        assert places == []
        with pytest.raises(NodeError):
            verify_node(str(tmp_path), {**this_driver(), "process": "the next driver"}, "10.0.0.9")
        assert set(places) == {tmp_path / "drivers"}


def write_lease(storage: Path, process: str) -> None:
    """What a driver under this storage path leaves there: its lease."""
    lease = leases.Lease("x", "a driver", process, 0.0, "holding", ())
    write_atomic(storage / "drivers/x.json", json.dumps(dataclasses.asdict(lease)).encode())


@pytest.mark.parametrize("somebody_elses", [True, False])
def test_a_node_with_a_folder_of_its_own_where_others_have_the_storage_is_named(tmp_path, late, somebody_elses):
    if somebody_elses:
        write_lease(tmp_path, "another boot/ns/7/1")
    with pytest.raises(NodeError, match="^node 10.0.0.9: does not see what the driver wrote .* it is not shared; name"):
        verify_node(str(tmp_path), this_driver(), "10.0.0.9")


def test_a_node_with_other_versions_is_named_with_both(tmp_path, late):
    theirs = {**this_driver(), "versions": {**versions(), "torch": "1.0.0", "the project": "aaaaaaaaaaaa"}}
    with leases.hold(tmp_path / "drivers", ["a cell"], lost=lambda: None):
        with pytest.raises(NodeError, match="node 10.0.0.9: has torch .* and the driver 1.0.0: install .*sources aaaa"):
            verify_node(str(tmp_path), theirs, "10.0.0.9")


def test_a_full_storage_is_told_as_one_which_is_waited_for(tmp_path, late, monkeypatch):
    monkeypatch.setattr(preflight, "MINIMUM_FREE_BYTES", 10**18)
    with leases.hold(tmp_path / "drivers", ["a cell"], lost=lambda: None):
        with pytest.raises(OSError, match="node 10.0.0.9: has .* GB free") as raised:
            verify_node(str(tmp_path), this_driver(), "10.0.0.9")
    assert classify(raised.value) == STORAGE


def test_what_mends_itself_soon_is_waited_for(tmp_path, late, monkeypatch):
    monkeypatch.setattr(preflight, "LATE_SECONDS", 30)
    writer = threading.Timer(0.3, write_lease, (tmp_path, this_driver()["process"]))
    writer.start()
    verify_node(str(tmp_path), this_driver(), "10.0.0.9")
    writer.join()


def test_a_trial_examines_its_node_before_it_trains(tmp_path, late):
    (cell,) = plan_cells(Request("table4", "demo", tmp_path, combinations=("none",)))
    options = Options(Setting(1, 0), tmp_path / "no data")
    config = trial_config(WorkItem(cell), Account(tmp_path / "results"), options.setting, options, "lease")
    trial = CellTrainable.__new__(CellTrainable)  # its constructor makes folders for Ray's loggers
    trial.setup({TRIAL: config})
    with pytest.raises(NodeError, match=f"under the storage path {tmp_path}/results"):
        trial.step()


def test_a_trial_says_on_which_images_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.driver.trainable.verify_node", lambda *arguments, **options: None)
    settings = ("pretrain_epochs=2", "epochs=2", "warmup_epochs=1", "train_images=40")
    (cell,) = plan_cells(Request("table4", "demo", tmp_path, combinations=("none",), settings=settings))
    options = Options(Setting(1, 0), tmp_path)
    trial = CellTrainable.__new__(CellTrainable)
    trial.setup({TRIAL: trial_config(WorkItem(cell), Account(tmp_path / "results"), options.setting, options, "lease")})
    report = trial.step()
    trial.cleanup()
    fingerprint = cached_fingerprint("digits", tmp_path, 16)
    assert len(fingerprint) == 16
    assert report["worker"]["data_fingerprint"] == fingerprint


def test_a_trial_writes_its_checkpoints_while_its_driver_holds_the_cell_and_no_longer(tmp_path):
    settings = ("pretrain_epochs=2", "epochs=2", "warmup_epochs=1", "train_images=40")
    (cell,) = plan_cells(Request("table4", "demo", tmp_path, combinations=("none",), settings=settings))
    account, options = Account(tmp_path / "results"), Options(Setting(1, 0), tmp_path, Checkpoints(every=1))
    trial = CellTrainable.__new__(CellTrainable)
    with account.hold([cell], lost=lambda: None) as hold:
        trial.setup({TRIAL: trial_config(WorkItem(cell), account, options.setting, options, hold.name)})
        rows = [trial.step()["row"], trial.step()["row"]]  # the second ends a phase, so that its checkpoint is whole
    before = sorted(account.folder(cell).iterdir())
    assert [row["epoch"] for row in rows] == [1, 2]
    assert len(before) == 2
    with pytest.raises(leases.LeaseLostError):
        for _ in range(3):
            trial.step()
    assert sorted(account.folder(cell).iterdir()) == before
    trial.cleanup()


# The tracking server


MOUNTS = """/dev/sda1 / ext4 rw 0 0
server:/export /mnt/shared nfs4 rw 0 0
/dev/sdb1 /mnt/shared/local xfs rw 0 0
//server/share /mnt/two\\040words cifs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/mlflow.db", "ext4"),
        ("/mnt/shared/mlflow.db", "nfs4"),
        ("/mnt/shared-not/mlflow.db", "ext4"),
        ("/mnt/shared/local/mlflow.db", "xfs"),
        ("/mnt/two words/mlflow.db", "cifs"),
    ],
)
def test_the_file_system_of_a_path_is_that_of_the_nearest_mount(path, kind):
    assert file_system_of(Path(path), MOUNTS) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.s3fs", "lustre"])
def test_sqlite_on_a_network_file_system_is_refused_with_the_reason(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.tracking.reachable.file_system_of", lambda path: kind)
    (problem,) = tracking_problems(f"sqlite:///{tmp_path}/mlflow.db")
    assert problem.startswith(f"{tmp_path}/mlflow.db is on a network file system ({kind}), where SQLite's locks")


def test_sqlite_on_a_local_disk_is_fine(tmp_path):
    assert tracking_problems(f"sqlite:///{tmp_path}/mlflow.db") == []


@pytest.mark.parametrize(
    "uri", ["http://me:hunter2@tracking:5000", "postgresql+psycopg2://me:hunter2@db/mlflow", "https://:hunter2@host"]
)
def test_a_password_in_the_tracking_uri_is_refused_and_not_repeated(uri):
    (problem,) = tracking_problems(uri)
    assert "MLFLOW_TRACKING_PASSWORD" in problem
    assert "hunter2" not in problem


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_tracking_server_that_is_not_there_is_named(scheme):
    address = f"127.0.0.1:{closed_port()}"
    (problem,) = tracking_problems(f"{scheme}://{address}")
    assert address in problem
    assert "refused" in problem
    assert "--tracking-uri" in problem


def test_a_tracking_server_that_accepts_and_stays_silent_is_named_in_time_for_all_else_to_be_looked_at(monkeypatch):
    # Half a minute is what a wrong request may take, imports included.
    assert reachable.CONNECT_SECONDS + reachable.ANSWER_SECONDS < 25
    monkeypatch.setattr(reachable, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        (problem,) = tracking_problems(f"http://{address}")
    assert f"no MLflow server answers at http://{address} (timed out)" in problem


class Answering(BaseHTTPRequestHandler):
    """Answers every POST with the status that the server was made with, and keeps what was sent."""

    def do_POST(self):
        self.server.authorization = self.headers.get("Authorization")
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """Start with a status; returns the URL."""
    servers = []

    def start(status: int) -> str:
        server = HTTPServer(("127.0.0.1", 0), Answering)
        server.status = status
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_server_that_answers_is_fine(server):
    assert tracking_problems(server(200)) == []


def test_a_server_that_wants_credentials_and_got_none(server):
    (problem,) = tracking_problems(server(401))
    assert "refuses a request without a user and password" in problem
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in problem


def test_a_server_that_refuses_the_credentials_names_the_user_and_not_the_password(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    (problem,) = tracking_problems(server(401))
    assert "refuses the password of 'me'" in problem
    assert "hunter2" not in problem


def test_what_is_no_mlflow_server_is_told_by_its_answer(server):
    (problem,) = tracking_problems(server(404))
    assert "does not answer as an MLflow server does: 404" in problem


def test_a_folder_in_place_of_a_database_is_refused_at_once(tmp_path):
    (problem,) = tracking_problems(f"sqlite:///{tmp_path}")
    assert problem.startswith(f"MLflow's database {tmp_path} is a folder: name a file")


def test_a_database_that_can_only_be_read_is_refused_before_every_run_is_lost_to_it(tmp_path, monkeypatch):
    database = tmp_path / "mlflow.db"
    database.touch()
    monkeypatch.setattr("os.access", lambda path, how: path != database)  # the tests may run as root
    (problem,) = tracking_problems(f"sqlite:///{database}")
    assert problem.startswith(f"MLflow's database {database} can only be read by this user")
