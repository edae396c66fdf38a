"""The main job as a user runs it: real Ray, real MLflow, real processes, on the embedded digits."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import entries
from helpers.entries import ROOT, histories, runs_by_tasks, steps, wait_for_checkpoint

from relvit import checkpoint
from relvit.cell import Cell

pytestmark = pytest.mark.end_to_end

# Epochs long enough (a second or less) that a test that kills something between two of them meets it alive, each with a
# checkpoint that the test can wait for.
SMALL = ("--set", "train_images=600", "--set", "pretrain_epochs=3", "--set", "epochs=3", "--checkpoint-every", "1")
# Where nothing is killed; after SMALL, as the later of two settings counts.
FEW = ("--set", "train_images=120")
ABLATION = "sweeps/ablation.py"


def ablation(folder: Path, *arguments: str) -> entries.Result:
    """Run sweeps/ablation.py in `folder`, where its storage, database and data then are."""
    return entries.call(ABLATION, folder, *SMALL, *arguments)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The same in a process of its own, which can be killed."""
    return entries.start(ABLATION, folder, *SMALL, *arguments, output=subprocess.PIPE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which a sweep of three cells has run to its end."""
    folder = tmp_path_factory.mktemp("finished")
    result = entries.run(ABLATION, folder, *SMALL, "--tasks", "none,sprel,sprel+abspos")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_each_cell_has_one_finished_run_with_every_step_once(finished):
    found = runs_by_tasks(finished)
    assert set(found) == {"none", "sprel", "sprel+abspos"}
    for run in found.values():
        assert run.info.status == "FINISHED"
        assert steps(finished, run, "epoch") == [1, 2, 3, 4, 5, 6]
        assert steps(finished, run, "test_accuracy") == [6]
        for metric in run.data.metrics:
            found_steps = steps(finished, run, metric)
            assert len(set(found_steps)) == len(found_steps), metric
    assert steps(finished, found["sprel"], "pretrain_val_sprel_accuracy") == [1, 2, 3]
    assert steps(finished, found["sprel"], "finetune_val_accuracy") == [4, 5, 6]


def test_a_run_leads_back_to_its_cell_its_code_and_its_machine(finished):
    run = runs_by_tasks(finished)["sprel"]
    cells = [json.loads(path.read_text()) for path in finished.glob("results/cells/*sprel-s0*/cell.json")]
    assert [Cell(**cell).cell_id for cell in cells] == [run.data.tags["cell_id"]]
    assert {name: str(value) for name, value in cells[0].items()} == run.data.params
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert run.data.tags["git_commit"] == (head or "unknown")
    assert run.data.tags["study"] == "table4"
    assert {"torch_version", "timm_version", "ray_version", "host", "device", "git_dirty"} <= set(run.data.tags)


def test_the_same_command_again_trains_nothing_and_changes_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.glob("results/cells/*/*")}
    result = ablation(finished, "--tasks", "none,sprel,sprel+abspos")
    assert result.returncode == 0
    assert "all 3 cells are finished; nothing to train" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.glob("results/cells/*/*")} == before


def test_the_plan_says_which_cells_are_done_and_starts_nothing(finished):
    result = ablation(finished, "--tasks", "none,dist", "--plan")
    assert result.returncode == 0
    states = {line.split("-")[3]: line.split("  ")[-1] for line in result.stdout.splitlines() if "-s0-" in line}
    assert states == {"none": "finished", "dist": "to start"}
    assert "2 cells: 1 finished, 0 to continue, 1 to start" in result.stdout
    assert set(runs_by_tasks(finished)) == {"none", "sprel", "sprel+abspos"}


def test_a_plan_that_is_refused_makes_nothing(tmp_path):
    result = ablation(tmp_path, "--tasks", "sprell", "--plan")
    assert result.returncode == 2
    assert "unknown task 'sprell'" in result.stderr
    assert not (tmp_path / "results").exists()


def test_a_lost_tracking_database_is_rebuilt_from_the_account(finished, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = ablation(finished, "--tasks", "sprel", "--tracking-uri", uri)
    assert result.returncode == 0
    assert "rebuilt the run" in result.stdout
    assert runs_by_tasks(tmp_path)["sprel"].info.status == "FINISHED"
    assert steps(tmp_path, runs_by_tasks(tmp_path)["sprel"], "epoch") == [1, 2, 3, 4, 5, 6]


def test_make_tables_writes_the_numbers_of_the_runs(finished):
    result = entries.call("analysis/make_tables.py", finished)
    assert result.returncode == 0, result.stderr
    frame = pd.read_parquet(finished / "results/analysis/runs.parquet").set_index("tasks")
    accuracies = {tasks: run.data.metrics["test_accuracy"] for tasks, run in runs_by_tasks(finished).items()}
    assert frame["test_accuracy"].to_dict() == accuracies
    latex = (finished / "results/analysis/table4.tex").read_text()
    for accuracy in accuracies.values():
        assert f"{accuracy:.2f}" in latex
    metrics = pd.read_parquet(finished / "results/analysis/metrics.parquet")
    assert sorted(metrics.query("metric == 'finetune_val_accuracy'")["run_id"].value_counts()) == [3, 3, 3]


def test_a_driver_killed_in_the_middle_loses_nothing(finished, tmp_path):
    arguments = ("--tasks", "none,sprel,sprel+abspos")
    driver = start(tmp_path, *arguments)
    wait_for_checkpoint(tmp_path, "00000[2-5]-*.pt", driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert "RUNNING" in {run.info.status for run in runs_by_tasks(tmp_path).values()}

    # A widened grid is added; what was begun is continued.
    result = ablation(tmp_path, "--tasks", "none,sprel,sprel+abspos,dist")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "left RUNNING by a driver that died" in result.stdout
    found = runs_by_tasks(tmp_path)
    assert {tasks: run.info.status for tasks, run in found.items()} == dict.fromkeys(
        ("none", "sprel", "sprel+abspos", "dist"), "FINISHED"
    )
    for run in found.values():
        assert steps(tmp_path, run, "epoch") == [1, 2, 3, 4, 5, 6]
        assert steps(tmp_path, run, "test_accuracy") == [6]
    killed = histories(tmp_path)
    for cell_id, history in histories(finished).items():
        assert killed[cell_id] == history


@pytest.fixture(scope="module")
def beside(tmp_path_factory) -> tuple[Path, subprocess.Popen, str, entries.Result]:
    """A folder in which a sweep lost one of its two trials and a second driver was started meanwhile; the first one
    with what it said, and the outcome of the second."""
    folder = tmp_path_factory.mktemp("beside")
    first = start(folder, "--tasks", "none,sprel")
    wait_for_checkpoint(folder, "000001-*.pt", first)
    while not (trials := trials_of(first)):
        assert first.poll() is None
    wait_for_checkpoint(folder, "000002-*.pt", first)
    os.kill(trials[0], signal.SIGKILL)
    second = ablation(folder, "--tasks", "none,sprel,sprel+abspos")
    output, _ = first.communicate()
    return folder, first, output, second


def trials_of(driver: subprocess.Popen) -> list[int]:
    """The processes that train for a driver at this moment: Ray names one after its class while a call is at work in
    it, and otherwise between two calls."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # ended since it was listed
            continue
        if title.startswith(b"ray::ResourceTrainable") and driver.pid in ancestors(int(path.parent.name)):
            found.append(int(path.parent.name))
    return found


def ancestors(pid: int) -> list[int]:
    """The processes above one, nearest first."""
    found = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except FileNotFoundError:
            break
        found.append(pid)
    return found


def test_a_second_driver_leaves_alone_what_the_first_is_at_work_on(beside, finished):
    folder, first, output, second = beside
    assert second.returncode == 4, second.stdout + second.stderr
    assert f"2 cells left to process {first.pid} on" in second.stdout
    assert first.returncode == 0, output
    assert histories(folder) == histories(finished)


def test_a_trial_that_dies_is_continued_from_its_checkpoint(beside, finished):
    folder, first, output, _ = beside
    assert first.returncode == 0, output
    assert "died and is started again from its newest checkpoint" in output
    assert histories(folder) == histories(finished)
    for run in runs_by_tasks(folder).values():
        assert run.info.status == "FINISHED"
        assert steps(folder, run, "epoch") == [1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def over_budget(tmp_path_factory) -> tuple[Path, entries.Result]:
    """A folder in which the budget of a sweep of two cells was spent at once, and the outcome of that."""
    folder = tmp_path_factory.mktemp("budget")
    return folder, ablation(folder, *FEW, "--tasks", "none,dist", "--hours", "1e-6")


def test_a_spent_budget_stops_cleanly(over_budget):
    _, result = over_budget
    assert result.returncode == 3, result.stdout + result.stderr
    assert "the budget is spent with 2 cells to go; run the same command to continue" in result.stdout


def test_the_same_command_goes_on_and_a_cell_that_fails_is_named_and_the_others_finish(over_budget):
    folder, _ = over_budget
    plan = ablation(folder, *FEW, "--tasks", "none,dist", "--plan").stdout.split()
    broken, sound = (next(word for word in plan if f"-{tasks}-s0-" in word) for tasks in ("none", "dist"))
    # The checkpoint of another cell makes one cell fail and leaves the other alone.
    cell = folder / "results/cells" / broken
    checkpoint.save({"cell_id": "another", "finished": False, "history": []}, cell, 5, 2)
    result = ablation(folder, *FEW, "--tasks", "none,dist")
    assert result.returncode == 1
    assert f"FAILED {broken}: ValueError: {cell} holds the checkpoints of another" in result.stdout
    assert "--tasks none --seeds 0" in result.stdout
    found = runs_by_tasks(folder)
    assert found["none"].info.status == "FAILED"
    assert "holds the checkpoints of another" in found["none"].data.tags["reason"]
    assert found["dist"].info.status == "FINISHED"
    assert (folder / "results/cells" / sound / "history.json").exists()


def test_ctrl_c_while_ray_and_mlflow_start_stops_before_the_first_trial(tmp_path):
    driver = start(tmp_path, "--tasks", "none")
    while not (tmp_path / "mlflow.db").exists():
        assert driver.poll() is None
        time.sleep(0.02)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate()
    assert driver.returncode == 130, output
    assert "stopping as soon as Ray and MLflow have started" in output
    assert "interrupted; nothing is lost: run the same command to continue" in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("results/cells/*"))


def test_all_that_is_wrong_is_said_at_once_before_anything_starts(tmp_path):
    result = ablation(
        tmp_path,
        *("--study", "tabel4", "--recipe", "papper", "--tasks", "sprel+dits,none", "--backbone", "vit_s5"),
        *("--dataset", "digit", "--set", "epocs=3", "--storage", "/proc/nowhere", "--gpus", "1", "--cpus", "4096"),
    )
    assert result.returncode == 2
    for sentence in (
        "unknown study 'tabel4': one of table2, table3, table4, figure2, full, probe, mega; did you mean 'table4'?",
        "unknown recipe 'papper': one of paper, reference, liu2021, demo, cpu; did you mean 'paper'?",
        "unknown task 'dits': one of sprel, dist, ang, abspos, drloc, none; did you mean 'dist'?",
        "unknown backbone 'vit_s5'",
        "unknown data set 'digit': one of digits, cifar10, cifar100, svhn, flowers102, tiny_imagenet; did you mean",
        "unknown field 'epocs'",
        "the storage path /proc/nowhere cannot be written",
        "a trial asks for 1 GPUs and 4096 CPUs, but no node of the cluster has both",
    ):
        assert sentence in result.stderr
    assert result.stderr.startswith("nothing was started:")
    assert not list(tmp_path.glob("results"))


def test_a_submitted_job_is_refused_paths_that_ray_removes_with_its_working_directory(tmp_path):
    copy = tmp_path / "runtime_resources" / "working_dir_files"
    copy.mkdir(parents=True)
    result = entries.run(ABLATION, copy, "--data-root", str(tmp_path / "data"))
    assert result.returncode == 2
    assert "--storage is a relative path" in result.stderr
    assert "--tracking-uri is a relative path" in result.stderr
    assert "--data-root" not in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use this machine's GPU")
def test_a_gpu_that_torch_cannot_use_is_refused_before_the_first_trial(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1, "include_dashboard": False})
    try:
        result = ablation(tmp_path, "--tasks", "none", "--gpus", "0.5", "--address", cluster.address)
    finally:
        cluster.shutdown()
    assert result.returncode == 2, result.stdout + result.stderr
    assert "has a GPU that torch" in result.stderr
    assert not list(tmp_path.glob("results/cells/*"))
