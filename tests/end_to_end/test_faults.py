"""Trials that fail in every way, in one sweep of real processes: each class by its rule, and the others finish."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import entries
from helpers.entries import ROOT, runs_by_tasks
from mlflow import MlflowClient

pytestmark = pytest.mark.end_to_end

SMALL = ("--set", "train_images=120", "--set", "pretrain_epochs=2", "--set", "epochs=2", "--set", "warmup_epochs=1")

# A driver whose trials fail: `sprel` for lack of GPU memory until its batches go in two parts, `dist` by falling silent
# once, `ang` on a storage that is full once, `abspos` on a loss that is not finite; `none` is sound.
DRIVER = """
import errno, sys, time
from pathlib import Path
sys.argv[0] = "{root}/sweeps/ablation.py"
sys.path[0] = "{root}"
import sweeps.driver.driver as driver
import sweeps.driver.watchdog as watchdog
from sweeps.driver.trainable import CellTrainable

class Faulty(CellTrainable):
    def _train(self, config):
        rows, folder = super()._train(config), Path(config["folder"])
        yield next(rows)
        tasks, first = config["cell"]["tasks"], not (folder / "faulty").exists()
        (folder / "faulty").touch()
        if tasks == "sprel" and config["micro_batches"] < 2:
            import torch
            raise torch.OutOfMemoryError("CUDA out of memory")
        if tasks == "dist" and first:
            time.sleep(10_000)
        if tasks == "ang" and first:
            raise OSError(errno.ENOSPC, "No space left on device")
        if tasks == "abspos":
            raise ArithmeticError("loss is nan")
        yield from rows

driver.CellTrainable = Faulty
watchdog.STALL_SECONDS = 5.0
import sweeps.ablation as ablation
sys.exit(ablation.main())
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """The folder and the outcome of a sweep in which four of five cells fail at first."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "driver.py").write_text(DRIVER.format(root=ROOT))
    command = [sys.executable, "driver.py", *SMALL, "--tasks", "none,sprel,dist,ang,abspos"]
    return folder, subprocess.run(command, cwd=folder, env=entries.environment(), capture_output=True, text=True)


def states(folder: Path) -> dict[str, dict]:
    return {
        json.loads(path.read_text())["tasks"]: json.loads(path.with_name("state.json").read_text())
        for path in folder.glob("results/cells/*/cell.json")
    }


def test_what_can_be_mended_finishes_and_what_cannot_is_named(sweep):
    folder, result = sweep
    assert result.returncode == 1, result.stdout + result.stderr
    assert {tasks: state["state"] for tasks, state in states(folder).items()} == {
        "none": "finished",
        "sprel": "finished",
        "dist": "finished",
        "ang": "finished",
        "abspos": "failed",
    }
    assert states(folder)["abspos"]["failure"] == "not_finite"
    assert "ArithmeticError: loss is nan" in result.stdout


def test_too_little_gpu_memory_leads_to_micro_batches_and_the_run_says_so(sweep):
    folder, result = sweep
    assert "ran out of GPU memory and is started again" in result.stdout
    assert "with each batch in 2 parts" in result.stdout
    assert states(folder)["sprel"]["micro_batches"] == 2
    assert runs_by_tasks(folder)["sprel"].data.tags["deviation"] == "micro_batches=2"
    assert runs_by_tasks(folder)["none"].data.tags["deviation"] == ""


def test_a_trial_that_falls_silent_is_ended_and_continued(sweep):
    folder, result = sweep
    assert "was stuck and is started again from its newest checkpoint" in result.stdout


def test_a_full_storage_is_waited_for(sweep):
    folder, result = sweep
    assert "could not write its checkpoint and is started again" in result.stdout


def test_every_run_has_every_step_once(sweep):
    folder, _ = sweep
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    for tasks, run in runs_by_tasks(folder).items():
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "epoch")]
        assert steps == ([1] if tasks == "abspos" else [1, 2, 3, 4])
        assert run.data.metrics["host_memory_bytes"] > 50e6
    assert runs_by_tasks(folder)["abspos"].info.status == "FAILED"
    assert runs_by_tasks(folder)["abspos"].data.tags["failure"] == "not_finite"


def test_the_next_start_leaves_alone_what_it_is_not_told_to_try_again(sweep):
    folder, _ = sweep
    again = (*SMALL, "--tasks", "none,abspos", "--retry", "oom,crash")
    result = entries.call("sweeps/ablation.py", folder, *again)
    assert result.returncode == 1
    assert "left alone" in result.stdout and "not_finite: ArithmeticError" in result.stdout


def test_runs_that_mlflow_lost_or_holds_twice_are_mended_by_reconcile(sweep):
    folder, _ = sweep
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    before = runs_by_tasks(folder)
    lost, doubled = before["dist"], before["none"]
    client.delete_run(lost.info.run_id)
    copy = client.create_run(doubled.info.experiment_id, tags={"cell_id": doubled.data.tags["cell_id"]})

    def reconcile() -> str:
        result = entries.call("sweeps/reconcile.py", folder)
        assert result.returncode == 0, result.stderr
        return result.stdout

    said = reconcile()
    assert f"rebuilt the run of {lost.data.tags['cell_id']}" in said
    assert f"marked run {copy.info.run_id} as a duplicate" in said
    assert "5 cells checked, 2 changes" in said
    client.delete_run(copy.info.run_id)
    after = runs_by_tasks(folder)
    assert after["none"].info.run_id == doubled.info.run_id
    rebuilt = after["dist"].data
    assert rebuilt.metrics["test_accuracy"] == lost.data.metrics["test_accuracy"]
    # What trained it, on what, and how to repeat it, is known as before. What its process used is not.
    assert int(rebuilt.tags["history_points"]) < int(lost.data.tags["history_points"])
    assert {"mlflow.note.content", "source_digest", "images_of_test"} <= set(lost.data.tags)
    same = {name: value for name, value in lost.data.tags.items() if name != "history_points"}
    assert {name: rebuilt.tags.get(name) for name in same} == same
    assert "5 cells checked, 0 changes" in reconcile()
