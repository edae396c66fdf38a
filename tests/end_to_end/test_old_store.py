"""What an earlier version left, in a folder that has been moved since, is read, set as a table and gone on with."""

import io
import json
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path
from statistics import mean

import optuna
import pandas as pd
import pytest
from helpers import entries
from helpers.entries import ROOT
from helpers.tiny import newest, silent
from rich.console import Console

from analysis.runs.gather import gather
from relvit import data
from relvit.cell import FIELDS, Cell
from relvit.train import train

pytestmark = pytest.mark.end_to_end

OLD = "a9496b5"
FEW = (
    *("--set", "pretrain_epochs=2", "--set", "epochs=3", "--set", "warmup_epochs=1"),
    *("--set", "train_images=200", "--set", "batch_size=50"),
)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The store as it is read by more than one test."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(ROOT / f"tests/stores/{OLD}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def moved(unpacked, tmp_path) -> Path:
    """A copy that a test may change, whose artifacts are where MLflow says since the database was told of the move."""
    folder = shutil.copytree(unpacked, tmp_path / "moved")
    with sqlite3.connect(folder / "mlflow.db") as database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            database.execute(f"update {table} set {column} = replace({column}, '/home/old', ?)", (str(folder),))
    database.close()
    return folder


def accounts(folder: Path, *states: str) -> dict[str, Cell]:
    """The cells by their ids that the account says are in these states."""
    return {
        path.parent.name: Cell(**json.loads(path.with_name("cell.json").read_text()))
        for path in folder.glob("results/cells/*/state.json")
        if json.loads(path.read_text())["state"] in states
    }


def history(folder: Path, cell_id: str) -> list[dict]:
    return json.loads((folder / "results/cells" / cell_id / "history.json").read_text())


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_cell_keeps_its_id(unpacked):
    cells = accounts(unpacked, "finished", "running", "searched", "pruned")
    assert len(cells) == 20
    assert all(cell.cell_id == cell_id for cell_id, cell in cells.items())


def test_its_runs_are_gathered_with_what_its_account_says_of_them(moved, tmp_path):
    gathered = gather(f"sqlite:///{moved}/mlflow.db", "relvit", tmp_path / "out", Console(file=io.StringIO()))
    frame = gathered.runs.set_index("cell_id")
    points = pd.read_parquet(tmp_path / "out/metrics.parquet")
    finished = accounts(moved, "finished")
    assert len(finished) == 8
    for cell_id, cell in finished.items():
        rows = history(moved, cell_id)
        assert frame.loc[cell_id, list(FIELDS)].to_dict() == cell.as_dict()
        assert frame.loc[cell_id, "status"] == "FINISHED"
        assert frame.loc[cell_id, "test_accuracy"] == rows[-1]["test_accuracy"]
        own = points[points["cell_id"] == cell_id]
        rates = own[own["metric"] == "learning_rate"].sort_values("step")["value"].tolist()
        assert rates == [row["learning_rate"] for row in rows[:-1]]


def test_artifacts_that_stayed_behind_change_nothing_in_what_is_gathered(unpacked, moved, tmp_path):
    found = []
    for folder in (unpacked, moved):
        out = tmp_path / f"out-{len(found)}"
        gather(f"sqlite:///{folder}/mlflow.db", "relvit", out, Console(file=io.StringIO()))
        points = pd.read_parquet(out / "metrics.parquet")
        columns = [points[name].astype(str) for name in ("run_id", "metric")] + [points["step"], points["value"]]
        found.append((pd.read_parquet(out / "runs.parquet"), sorted(zip(*columns, strict=True))))
    pd.testing.assert_frame_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] != []


def test_its_table_has_the_means_of_its_cells(moved):
    result = entries.call("analysis/make_tables.py", moved, "--study", "table4", "--where", "train_images=200")
    assert result.returncode == 0, result.stderr
    lines = (moved / "results/analysis/table4.md").read_text().splitlines()
    accuracies: dict[str, list[float]] = {}
    for cell_id, cell in accounts(moved, "finished").items():
        if cell.train_images == 200:
            accuracies.setdefault(cell.tasks, []).append(history(moved, cell_id)[-1]["test_accuracy"])
    assert {tasks: len(values) for tasks, values in accuracies.items()} == {
        "none": 2, "sprel": 2, "sprel+abspos": 2, "abspos": 1,
    }  # fmt: skip
    for tasks, values in accuracies.items():
        n = f"{len(values)}/2"  # of the seeds that any of its cells has
        assert any(f"{mean(values):.2f}" in line and n in line for line in lines), (tasks, lines)


def test_its_finished_cells_are_not_trained_again(moved):
    before = contents(moved / "results/cells")
    same = (*FEW, "--tasks", "none,sprel,sprel+abspos", "--seeds", "0,1")
    plan = entries.call("sweeps/ablation.py", moved, *same, "--plan")
    assert "6 cells: 6 finished, 0 to continue, 0 to start" in plan.stdout
    again = entries.call("sweeps/ablation.py", moved, *same)
    assert again.returncode == 0, again.stderr
    assert "all 6 cells are finished; nothing to train" in again.stdout
    assert contents(moved / "results/cells") == before


def test_its_interrupted_cell_is_planned_to_be_gone_on_with(moved):
    longer = ("--set", "pretrain_epochs=2", "--set", "epochs=9", "--set", "warmup_epochs=1")
    (cell_id,) = [cell_id for cell_id, cell in accounts(moved, "running").items() if cell.tasks == "abspos"]
    plan = entries.call("sweeps/ablation.py", moved, *longer, "--tasks", "abspos", "--plan")
    assert cell_id in plan.stdout
    assert "1 cell: 0 finished, " in plan.stdout


def test_its_search_still_has_its_trials(moved):
    found = optuna.load_study(study_name="old", storage=f"sqlite:///{moved}/results/optuna.db").trials
    assert [trial.number for trial in found] == list(range(12))
    assert [trial.state.name for trial in found].count("RUNNING") == 2
    ended = {trial.user_attrs["cell_id"]: trial for trial in found if trial.state.is_finished()}
    cells = accounts(moved, "searched", "pruned")
    assert cells.keys() == ended.keys()
    for cell_id, cell in cells.items():
        fields = cell.as_dict()
        drawn = {name: value for name, value in ended[cell_id].params.items() if name in fields}
        assert drawn and drawn.items() <= fields.items()


def test_its_search_is_gone_on_with_by_the_same_command(moved):
    def trials() -> list[optuna.trial.FrozenTrial]:
        return optuna.load_study(study_name="old", storage=f"sqlite:///{moved}/results/optuna.db").trials

    before = trials()
    result = entries.run(
        "sweeps/hpo.py", moved, *FEW, "--tasks", "sprel", "--name", "old", "--trials", "12", "--seeds", "none"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "5 complete, 5 pruned, 2 to continue" in result.stdout
    after = trials()
    assert [(trial.params, trial.user_attrs["cell_id"]) for trial in after] == [
        (trial.params, trial.user_attrs["cell_id"]) for trial in before
    ]
    assert [trial.values for trial in after[:10]] == [trial.values for trial in before[:10]]
    assert all(trial.state.is_finished() and trial.state.name != "FAIL" for trial in after[10:])
    assert accounts(moved, "searched", "pruned").keys() == {trial.user_attrs["cell_id"] for trial in after}
    best = max((trial for trial in after if trial.values), key=lambda trial: trial.values[0])
    assert json.loads((moved / "results/hpo/old/recipe.json").read_text())["search"]["trial"] == best.number


# The version that the store is of, in its own words: one cell whole, and the same cell stopped after three epochs.
OLD_TRAINING = """
import sys
from itertools import islice
from pathlib import Path
from relvit import data
from relvit.train import train
from sweeps.account import RUNNING, Account
from sweeps.plan import Request, plan
folder = Path(sys.argv[1])
settings = ("pretrain_epochs=2", "epochs=3", "warmup_epochs=1", "train_images=200", "batch_size=50")
studies = plan(Request("table4", "demo", folder / "data", combinations=("sprel",), settings=settings))
((cell, study),) = studies.items()
digits = data.prepare("digits", folder / "data", 16)
list(train(cell, digits, folder / "whole"))
account = Account(folder / "results")
account.plan(studies)
account.mark(cell, RUNNING)
rows = train(cell, digits, account.folder(cell))
list(islice(rows, 3))
rows.close()
print(cell.cell_id)
"""


def test_a_cell_that_the_old_code_was_stopped_in_ends_with_the_bits_that_the_old_code_would_have_given(tmp_path):
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "cat-file", "-e", f"{OLD}^{{commit}}"], capture_output=True).returncode:
        pytest.skip(f"needs commit {OLD} in this repository: a clone with its history")
    archived = subprocess.run([*git, "archive", OLD, "relvit", "sweeps"], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archived)) as archive:
        archive.extractall(tmp_path / "old", filter="data")
    command = [sys.executable, "-c", OLD_TRAINING, str(tmp_path)]
    old = subprocess.run(command, cwd=tmp_path / "old", env=entries.environment(), capture_output=True, text=True)
    assert old.returncode == 0, old.stderr
    cell_id = old.stdout.split()[-1]
    cell_folder = tmp_path / "results/cells" / cell_id
    assert len(newest(cell_folder)["history"]) == 3

    plan = entries.call("sweeps/ablation.py", tmp_path, *FEW, "--tasks", "sprel", "--plan")
    assert "1 cell: 0 finished, 1 to continue, 0 to start" in plan.stdout
    (cell,) = accounts(tmp_path, "running").values()
    list(train(cell, data.prepare("digits", tmp_path / "data", 16), cell_folder, note=silent))
    expected, resumed = newest(tmp_path / "whole")["model"], newest(cell_folder)["model"]
    assert list(resumed) == list(expected)
    assert all(resumed[name].equal(value) for name, value in expected.items())
