"""A cluster of two real nodes is examined before a sweep starts on it, and the end of a study is told to a webhook."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from helpers import entries
from helpers.entries import ROOT

from sweeps.cluster import connection as cluster
from sweeps.cluster.nodes import node_problems

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def address():
    """Of a cluster of two nodes on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def examined(address: str, storage: Path, data_root: Path, needed_bytes: int = 0) -> list[str]:
    """By a driver that connects as a sweep's does."""
    with cluster.connected(address):
        return node_problems(storage, data_root, needed_bytes=needed_bytes)


def test_nodes_that_share_storage_have_no_problems_and_leave_nothing_behind(address, tmp_path):
    assert examined(address, tmp_path / "results", tmp_path / "data") == []
    assert list((tmp_path / "results").iterdir()) == []


def test_what_is_wrong_on_both_nodes_is_told_once_for_both(address, tmp_path):
    problems = examined(address, tmp_path / "results", tmp_path / "data", needed_bytes=10**18)
    assert len(problems) == 1
    assert problems[0].startswith("nodes ")
    assert problems[0].count("free under the storage path") == 1


class Receiving(BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_study_tells_the_webhook_how_it_ended(address, tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Receiving)
    server.received = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/s3cret"
    try:
        small = ("--set", "train_images=200", "--set", "pretrain_epochs=3", "--set", "epochs=3")
        arguments = ("--tasks", "none", "--address", address, *small)
        # In a process of its own, as a user's: this one has been the driver of other jobs on the cluster.
        result = entries.run("sweeps/ablation.py", tmp_path, *arguments, RELVIT_WEBHOOK=url)
    finally:
        server.shutdown()
        server.server_close()
    assert result.returncode == 0, result.stdout + result.stderr
    (told,) = server.received
    assert (told["study"], told["outcome"], told["exit_status"]) == ("table4", "finished", 0)
    assert told["counts"]["finished"] == 1
    assert "s3cret" not in result.stdout + result.stderr


def test_storage_that_is_not_shared_is_found(address, tmp_path):
    """A third node has a file system of its own mounted where the others have the storage. The last test of this
    cluster, which takes a while to miss the node."""
    storage = tmp_path / "results"
    storage.mkdir()
    alone = ["unshare", "--mount", "bash", "-c", f'mount -t tmpfs none {storage} && exec "$@"', "bash"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount in a namespace of one's own")
    start = [Path(sys.executable).with_name("ray"), "start", f"--address={address}", "--block", "--num-cpus=1"]
    node = subprocess.Popen(
        [*alone, *start], env=entries.environment(PYTHONPATH=str(ROOT)), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        problems: list[str] = []
        deadline = time.monotonic() + 300
        while not problems and time.monotonic() < deadline:  # until the node has joined
            problems = examined(address, storage, tmp_path / "data")
    finally:
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()
    # The two see each other but not the third, which sees neither of them.
    assert len(problems) == 2
    assert all(f"wrote under the storage path {storage}: it is not shared" in each for each in problems)
