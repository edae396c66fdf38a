"""One command from an MLflow store to tables, figures and a page, all attached to one run that stands for the study."""

from pathlib import Path

import pytest
from helpers import entries
from helpers.made_runs import made_runs, planned
from mlflow import MlflowClient

from sweeps.account.work import WorkItem
from sweeps.tracking.tracker import Tracker

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a store in which figure2 is finished with two seeds, its metrics made up."""
    folder = tmp_path_factory.mktemp("study")
    cells = planned(folder, "figure2", seeds=(0, 1))
    runs, metrics = made_runs(cells, "figure2")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "relvit", folder)
    for cell, run in zip(cells, runs.to_dict("records")):
        rows = [
            {"epoch": step, "phase": "made up", **dict(zip(points["metric"], points["value"]))}
            for step, points in metrics[metrics["run_id"] == run["run_id"]].groupby("step")
        ]
        result = {"epoch": cell.total_epochs, "phase": "test", "test_sprel_accuracy": 50.0}
        result |= {name: run[name] for name in ("test_accuracy", "training_seconds")}
        tracker.rebuild(WorkItem(cell, studies=("figure2",)), [*rows, result])
    return folder


def make_tables(folder: Path, *arguments: str) -> entries.Result:
    return entries.call("analysis/make_tables.py", folder, *arguments)


def study_runs(folder: Path) -> list:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    return client.search_runs([client.get_experiment_by_name("relvit").experiment_id], "tags.kind = 'study'")


def test_all_outputs_are_attached_to_one_run_that_later_calls_renew(folder):
    left_out = make_tables(folder, "--no-attach")
    assert left_out.returncode == 0, left_out.stderr
    assert study_runs(folder) == []
    first = make_tables(folder)
    assert first.returncode == 0, first.stderr
    second = make_tables(folder)
    (run,) = study_runs(folder)
    assert run.info.run_id in first.stdout
    assert run.info.run_id in second.stdout
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    attached = {Path(each.path).name for each in client.list_artifacts(run.info.run_id, "analysis")}
    expected = {"figure2.tex", "figure2a.pdf", "figure2b.png", "figure2-cost.pdf", "figure2-report.html", "report.tex"}
    assert expected <= attached
    assert "figure2-report.html" in run.data.tags["mlflow.note.content"]
    for name in expected:
        local = Path(client.download_artifacts(run.info.run_id, f"analysis/{name}"))
        assert local.read_bytes() == (folder / "results/analysis" / name).read_bytes()
    # It is not taken for one of the study's ten runs, and what was attached is what the data give.
    assert "10 of 10 runs finished" in (folder / "results/analysis/figure2-report.html").read_text()
    check = make_tables(folder, "--check")
    assert check.returncode == 0, check.stderr
