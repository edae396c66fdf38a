"""Pictures of finished runs as a user asks for them, from real trainings in an account and a real MLflow store."""

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import entries
from helpers.made_runs import planned
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from relvit.cell import Cell
from relvit.data import DataError
from relvit.train import train
from sweeps import pictures as entry
from sweeps.account.account import Account
from sweeps.account.work import WorkItem
from sweeps.tracking.tracker import Tracker

pytestmark = pytest.mark.end_to_end

TINY = ("pretrain_epochs=1", "epochs=1", "warmup_epochs=0", "train_images=100")


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory) -> tuple[Path, list[Cell]]:
    """A folder with storage and store as a sweep leaves them: two finished cells, and one whose weights are gone."""
    folder = tmp_path_factory.mktemp("finished")
    cells = planned(folder, "table4", seeds=(0,), combinations=("none", "sprel", "dist"), settings=TINY)
    account = Account(folder / "results")
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "relvit", account.storage)
    for cell in cells:
        rows = [] if cell.tasks == "dist" else list(train(cell, digits, account.folder(cell)))
        tracker.rebuild(WorkItem(cell, studies=("table4",)), rows)
    return folder, cells


def pictures(folder: Path, *arguments: str) -> entries.Result:
    """Run the entry in `folder`, with the data set that scikit-learn brings."""
    entry.first_test_images.cache_clear()
    return entries.call("sweeps/pictures.py", folder, *arguments)


def test_each_finished_run_gets_its_pictures_once(finished):
    folder, cells = finished
    first = pictures(folder, "--study", "table4", "--images", "3")
    assert first.returncode == 1  # of one run the weights are missing, which holds up no other
    assert first.stdout.count("logged position_similarity, patch_filters, attention, confusion") == 2
    assert "has no final weights" in first.stderr
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("relvit").experiment_id])
    logged = {
        run.data.params["tasks"]: run.info.run_id for run in runs if client.list_artifacts(run.info.run_id, "pictures")
    }
    assert set(logged) == {"none", "sprel"}
    for run_id in logged.values():
        for name in ("position_similarity", "patch_filters", "attention", "confusion"):
            path = client.download_artifacts(run_id, f"pictures/{name}.png", str(folder))
            with Image.open(path) as image:
                assert np.asarray(image.convert("L")).std() > 5  # not a blank sheet
    again = pictures(folder, "--study", "table4")
    assert again.stdout.count("has its pictures") == 2


def test_what_keeps_one_run_from_its_pictures_is_said_and_tried_again_and_holds_up_no_other(
    tmp_path, digits, monkeypatch, capsys
):
    cells = planned(tmp_path, "table4", seeds=(0,), combinations=("none", "sprel"), settings=TINY)
    account = Account(tmp_path / "results")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(uri, "relvit", account.storage)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("relvit").experiment_id
    # The first in MLflow's order, of another program or an older version: no cell can be made of it.
    old = client.create_run(experiment, tags={"cell_id": "old", "study": "table4"}).info.run_id
    client.log_param(old, "dataset", "digits")
    client.set_terminated(old)
    for cell in cells:
        tracker.rebuild(WorkItem(cell, studies=("table4",)), list(train(cell, digits, account.folder(cell))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--images", "2", "--tracking-uri", uri])

    def broken(*arguments):
        raise DataError("the data set is not here yet")

    def refused(self, run_id, path, folder=None):
        if path.endswith("patch_filters.png"):
            raise MlflowException("the disk is full")

    def drawn() -> list[int]:
        runs = client.search_runs([experiment], "params.tasks != ''")
        return [len(client.list_artifacts(run.info.run_id, "pictures")) for run in runs]

    entry.first_test_images.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(entry.data, "load", broken)
        assert entry.main() == 1
        assert drawn() == [0, 0]  # a run gets all that it can have, or is tried again
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "log_artifact", refused)
        assert entry.main() == 1
    said = capsys.readouterr()
    assert said.err.count("not drawn: the data set is not here yet") == 2
    assert said.err.count("MLflow did not take its pictures: the disk is full") == 2
    assert said.err.count("old: not drawn: its run lacks parameters") == 2
    assert entry.main() == 1
    assert drawn() == [4, 4]
    assert entry.main() == 1
    assert capsys.readouterr().out.count("has its pictures") == 2


def test_nothing_to_draw_is_said_and_nothing_is_made(finished, tmp_path, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--study", "figure2"])
    assert entry.main() == 2
    assert "no finished runs of study 'figure2'" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert entry.main() == 2
    assert "there is no tracking database at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
