"""Gathering from a real MLflow server, which also keeps the artifacts."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient

from analysis.runs.gather import GatherError, gather
from analysis.runs.stores import Client
from relvit.cell import FIELDS, Cell
from sweeps.account.work import WorkItem
from sweeps.planning.plan import Request, plan_cells
from sweeps.tracking.tracker import Tracker

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def server(tmp_path) -> Iterator[tuple[str, subprocess.Popen]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--host", "127.0.0.1", "--port", str(port)]
    options += ["--serve-artifacts", "--artifacts-destination", str(tmp_path / "artifacts"), "--workers", "1"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            cwd=tmp_path,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # as of serve_mlflow.py
            stdout=log,
            stderr=log,
        )
    uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health").close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        yield uri, process
    finally:
        process.terminate()
        process.wait()


def cells() -> list[Cell]:
    return plan_cells(Request("table4", "demo", Path("data"), combinations=("none", "sprel", "dist")))


def points(folder: Path) -> list[tuple]:
    frame = pd.read_parquet(folder / "metrics.parquet")
    return sorted(zip(frame["cell_id"], frame["metric"], frame["step"], frame["value"]))


def test_runs_come_by_their_artifacts_or_without_and_a_dead_server_costs_nothing(server, tmp_path, monkeypatch):
    uri, process = server
    none, sprel, dist = cells()
    tracking = Tracker(uri, "relvit", tmp_path / "results")
    expected = []
    for cell in (none, sprel):
        rows = [{"epoch": epoch, "phase": "joint", "learning_rate": 0.5**epoch} for epoch in (1, 2)]
        tracking.rebuild(WorkItem(cell, studies=("table4",)), rows)
        expected += [(cell.cell_id, name, row["epoch"], row[name]) for row in rows for name in row if name != "phase"]
    expected.sort()

    with monkeypatch.context() as patch:
        patch.setattr(Client, "points", lambda *_: pytest.fail("asked metric by metric"))
        gathered = gather(uri, "relvit", tmp_path / "out")
        assert (gathered.read, gathered.notes) == (2, [])
        assert points(tmp_path / "out") == expected
        assert gather(uri, "relvit", tmp_path / "out").read == 0
    fields = gathered.runs.set_index("cell_id").loc[none.cell_id, list(FIELDS)]
    assert fields.to_dict() == none.as_dict()
    # The same store by its file: nothing is new.
    assert gather(f"sqlite:///{tmp_path}/mlflow.db", "relvit", tmp_path / "out").read == 0

    client, run_ids = MlflowClient(uri), gathered.runs["run_id"]
    client.delete_tag(run_ids[0], "history_points")
    next((tmp_path / "artifacts").glob(f"*/{run_ids[1]}/artifacts/history.parquet")).write_bytes(b"PAR1")
    tracking.begin(WorkItem(dist, studies=("table4",)))
    tracking.log(dist.cell_id, [{"epoch": 1, "phase": "joint", "learning_rate": 0.5}])
    gathered = gather(uri, "relvit", tmp_path / "again")
    (note,) = gathered.notes
    assert note.startswith("1 run with an artifact history.parquet that cannot be used")
    assert gathered.runs["end_time"].isna().to_list() == [False, False, True]
    running = [(dist.cell_id, "epoch", 1, 1.0), (dist.cell_id, "learning_rate", 1, 0.5)]
    assert points(tmp_path / "again") == sorted(expected + running)

    process.terminate()
    process.wait()
    with pytest.raises(GatherError, match=f"MLflow at {uri} cannot be read"):
        gather(uri, "relvit", tmp_path / "out")
    assert points(tmp_path / "out") == expected
