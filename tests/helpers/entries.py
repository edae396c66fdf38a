"""The entries as a user calls them, in a process of their own or in this one, and what they leave behind.

A call in this process does the same and starts in no time, because everything has been imported; a test needs a process
of its own where it kills one or where the process itself is what it looks at.
"""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from mlflow import MlflowClient
from mlflow.entities import Run

from relvit.vocabulary import SPEEDS

ROOT = Path(__file__).resolve().parents[2]
_USERS_OWN = (
    *("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "OPTUNA_STORAGE", "RELVIT_WEBHOOK", "RELVIT_WEBHOOK_FILE"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
)


class Result(NamedTuple):
    """What a command gave; named as subprocess.CompletedProcess names it."""

    returncode: int
    stdout: str
    stderr: str


def environment(**more: str) -> dict[str, str]:
    """That of a user who has no cluster, no tracking server and no webhook, and `more`."""
    return {name: value for name, value in os.environ.items() if name not in _USERS_OWN} | more


def command(entry: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / entry), *arguments]


def run(entry: str, folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The entry in a process of its own, to its end. `more`: environment variables."""
    return subprocess.run(
        command(entry, *arguments), cwd=folder, env=environment(**more), capture_output=True, text=True
    )


def start(entry: str, folder: Path, *arguments: str, output: Any = subprocess.DEVNULL) -> subprocess.Popen[str]:
    """The entry in a process of its own, which goes on; `output`: where it writes both."""
    return subprocess.Popen(
        command(entry, *arguments), cwd=folder, env=environment(), stdout=output, stderr=subprocess.STDOUT, text=True
    )


def call(entry: str, folder: Path, *arguments: str, **more: str) -> Result:
    """The entry in this process, with its runs in folder/mlflow.db. `more`: environment variables.

    MLflow keeps what it has opened by its name, so that the default, a relative one, would lead to another folder's.
    """
    more = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", **more}
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "path", list(sys.path)),  # an entry puts its checkout first
        mock.patch.object(sys, "argv", [entry, *arguments]),
        mock.patch.dict(os.environ, environment(**more), clear=True),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        module = importlib.import_module(entry.removesuffix(".py").replace("/", "."))
        try:
            status = importlib.import_module("sweeps.cli.console").exit_status(module.main)
        except SystemExit as error:  # argparse's, of a wrong option
            status = error.code
    return Result(status, out.getvalue(), err.getvalue())


def tracked(folder: Path) -> list[Run]:
    """Every run of the experiment `relvit` in folder/mlflow.db but those that stand for studies."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("relvit").experiment_id], max_results=1000)
    return [run for run in found if run.data.tags.get("kind") != "study"]


def runs_by_tasks(folder: Path) -> dict[str, Run]:
    """The runs of cells by their tasks; fails if a cell has two."""
    found = [run for run in tracked(folder) if run.data.tags.get("cell_id")]
    assert len({run.data.tags["cell_id"] for run in found}) == len(found)
    return {run.data.params["tasks"]: run for run in found}


def steps(folder: Path, run: Run, metric: str) -> list[int]:
    """The steps at which a run has points of a metric, as they were logged."""
    history = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_metric_history(run.info.run_id, metric)
    return [point.step for point in history]


def histories(folder: Path) -> dict[str, list[dict]]:
    """What each finished cell's account says of its training, without what depends on the machine's speed."""
    return {
        path.parent.name: [
            {name: value for name, value in row.items() if name not in SPEEDS} for row in json.loads(path.read_text())
        ]
        for path in folder.glob("results/cells/*/history.json")
    }


def wait_for_checkpoint(folder: Path, pattern: str, driver: subprocess.Popen) -> None:
    """Until some cell under `folder` has a checkpoint of that name."""
    deadline = time.monotonic() + 600
    while not list(folder.glob(f"results/cells/*/{pattern}")):
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.02)
