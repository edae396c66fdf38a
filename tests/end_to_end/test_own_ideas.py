"""What a user brings along, from one file to a number's provenance: a task of their own, and several evaluations."""

import pandas as pd
import pytest
from helpers import entries
from helpers.entries import ROOT

pytestmark = pytest.mark.end_to_end

SMALL = ("--set", "pretrain_epochs=1", "--set", "epochs=1", "--set", "warmup_epochs=0", "--set", "train_images=100")


def test_one_file_with_a_task_gives_a_plan_trained_cells_a_column_and_its_provenance(tmp_path):
    study = ("--study", str(ROOT / "examples/colour_statistics.py"))
    planned = entries.run("sweeps/ablation.py", tmp_path, *study, "--plan", *SMALL)
    assert "32 cells: 0 finished, 0 to continue, 32 to start" in planned.stdout, planned.stderr
    trained = entries.run("sweeps/ablation.py", tmp_path, *study, "--tasks", "none,colour,abspos+colour", *SMALL)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    # The tables need no file of tasks: the runs say what is to be known of them, here to processes of their own, since
    # tasks stay known to a process for good.
    made = entries.run("analysis/make_tables.py", tmp_path, "--study", "colour_statistics")
    assert made.returncode == 0, made.stdout + made.stderr
    found = pd.read_parquet(tmp_path / "results/analysis/runs.parquet")
    assert sorted(found["tasks"]) == ["abspos+colour", "colour", "none"]
    runs = found[found["tasks"] != "none"]
    assert set(runs["colour_weight"]) == {1.0}
    assert runs["tasks_digest"].nunique() == 1
    assert (runs["test_colour_mse_x100"] > 0).all()
    table = (tmp_path / "results/analysis/colour_statistics.md").read_text()
    assert "Colour (MSE ↓)" in table
    wanted = "colour_statistics:abspos+colour:colour_mse_x100"
    explained = entries.run("analysis/make_tables.py", tmp_path, "--explain", wanted)
    assert "seed 0" in explained.stdout, explained.stderr
    # Nor does a plan of other cells in the same storage.
    other = entries.run("sweeps/ablation.py", tmp_path, "--tasks", "dist", "--plan", *SMALL)
    assert "1 cell: 0 finished" in other.stdout, other.stderr


def test_evaluations_of_a_pre_training_train_it_once(tmp_path):
    wanted = ("--tasks", "sprel", "--evaluate", "knn,probe,finetune,finetune:labels_per_class=2")
    done = entries.run("sweeps/ablation.py", tmp_path, *wanted, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = entries.call("analysis/make_tables.py", tmp_path, "--study", "table4-evaluations")
    assert runs.returncode == 0, runs.stdout + runs.stderr
    table = pd.read_parquet(tmp_path / "results/analysis/runs.parquet")
    assert table["protocol"].value_counts().to_dict() == {"pretrain_finetune": 2, "pretrain_probe": 1, "pretrain": 1}
    metrics = pd.read_parquet(tmp_path / "results/analysis/metrics.parquet")
    # Rows of one training, taken over by the others: as long to the microsecond.
    seconds = metrics[(metrics["metric"] == "epoch_seconds") & (metrics["step"] == 1)]["value"]
    assert len(seconds) == 4
    assert seconds.nunique() == 1
    seen = entries.call("sweeps/ablation.py", tmp_path, *wanted, "--watch")
    assert "4 cells: 4 finished" in seen.stdout, seen.stderr
