"""The main job as a user runs it: real Ray, real MLflow, real processes, on the embedded digits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from relvit.cell import Cell

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).resolve().parents[2]
# Epochs long enough (a second or less) that a test that kills something between two of them meets it alive.
SMALL = ("--set", "train_images=1000", "--set", "pretrain_epochs=3", "--set", "epochs=3")


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "sweeps/ablation.py"), *SMALL, *arguments]


def ablation(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run sweeps/ablation.py in `folder`, where its storage, database and data then are."""
    return subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, env=environment())


def environment() -> dict[str, str]:
    """A user's: no address of a cluster, no tracking server, no installed project."""
    return {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}


def runs(folder: Path) -> dict[str, object]:
    """Every run of the sweep by its cell's tasks; fails if a cell has two."""
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("relvit").experiment_id], "tags.cell_id != ''")
    assert len({run.data.tags["cell_id"] for run in found}) == len(found)
    return {run.data.params["tasks"]: run for run in found}


def steps(folder: Path, run: object, metric: str) -> list[int]:
    history = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_metric_history(run.info.run_id, metric)
    return [point.step for point in history]


def histories(folder: Path) -> dict[str, list[dict]]:
    """What each finished cell's account says of its training, without what depends on the machine's speed."""
    speeds = ("images_per_second", "epoch_seconds", "training_seconds")
    return {
        path.parent.name: [
            {name: value for name, value in row.items() if name not in speeds} for row in json.loads(path.read_text())
        ]
        for path in folder.glob("results/cells/*/history.json")
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which a sweep of three cells has run to its end."""
    folder = tmp_path_factory.mktemp("finished")
    result = ablation(folder, "--tasks", "none,sprel,sprel+abspos")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_each_cell_has_one_finished_run_with_every_step_once(finished):
    found = runs(finished)
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
    run = runs(finished)["sprel"]
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
    assert set(runs(finished)) == {"none", "sprel", "sprel+abspos"}


def test_a_lost_tracking_database_is_rebuilt_from_the_account(finished, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    result = ablation(finished, "--tasks", "sprel", "--tracking-uri", uri)
    assert result.returncode == 0
    assert "rebuilt the run" in result.stdout
    assert runs(tmp_path)["sprel"].info.status == "FINISHED"
    assert steps(tmp_path, runs(tmp_path)["sprel"], "epoch") == [1, 2, 3, 4, 5, 6]


def test_make_tables_writes_the_numbers_of_the_runs(finished):
    result = subprocess.run(
        [sys.executable, str(ROOT / "analysis/make_tables.py")],
        cwd=finished,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert result.returncode == 0, result.stderr
    frame = pd.read_parquet(finished / "results/analysis/runs.parquet").set_index("tasks")
    accuracies = {tasks: run.data.metrics["test_accuracy"] for tasks, run in runs(finished).items()}
    assert frame["test_accuracy"].to_dict() == accuracies
    latex = (finished / "results/analysis/table4.tex").read_text()
    for accuracy in accuracies.values():
        assert f"{accuracy:.2f}" in latex
    metrics = pd.read_parquet(finished / "results/analysis/metrics.parquet")
    assert sorted(metrics.query("metric == 'finetune_val_accuracy'")["run_id"].value_counts()) == [3, 3, 3]


def wait_for_checkpoint(folder: Path, pattern: str, driver: subprocess.Popen) -> None:
    """Until some cell under `folder` has a checkpoint of that name."""
    deadline = time.monotonic() + 600
    while not list(folder.glob(f"results/cells/*/{pattern}")):
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.02)


def test_a_driver_killed_in_the_middle_loses_nothing(finished, tmp_path):
    arguments = ("--tasks", "none,sprel,sprel+abspos")
    driver = subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_checkpoint(tmp_path, "00000[2-5]-*.pt", driver)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert "RUNNING" in {run.info.status for run in runs(tmp_path).values()}

    # A widened grid is added; what was begun is continued.
    result = ablation(tmp_path, "--tasks", "none,sprel,sprel+abspos,dist")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "left RUNNING by a driver that died" in result.stdout
    found = runs(tmp_path)
    assert {tasks: run.info.status for tasks, run in found.items()} == dict.fromkeys(
        ("none", "sprel", "sprel+abspos", "dist"), "FINISHED"
    )
    for run in found.values():
        assert steps(tmp_path, run, "epoch") == [1, 2, 3, 4, 5, 6]
        assert steps(tmp_path, run, "test_accuracy") == [6]
    killed = histories(tmp_path)
    for cell_id, history in histories(finished).items():
        assert killed[cell_id] == history


def test_a_trial_that_dies_is_continued_from_its_checkpoint(finished, tmp_path):
    driver = subprocess.Popen(
        command("--tasks", "sprel"), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    wait_for_checkpoint(tmp_path, "000001-*.pt", driver)
    while not (trials := trials_of(driver)):
        assert driver.poll() is None
    (trial,) = trials
    wait_for_checkpoint(tmp_path, "000002-*.pt", driver)
    os.kill(trial, signal.SIGKILL)
    output, _ = driver.communicate()
    assert driver.returncode == 0, output
    assert "died and is started again from its newest checkpoint" in output
    (cell_id,) = histories(tmp_path)
    assert histories(tmp_path)[cell_id] == histories(finished)[cell_id]
    assert steps(tmp_path, runs(tmp_path)["sprel"], "epoch") == [1, 2, 3, 4, 5, 6]


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


def test_a_cell_that_fails_is_named_and_the_others_finish(tmp_path):
    plan = ablation(tmp_path, "--tasks", "none,dist", "--plan").stdout.split()
    broken, sound = (next(word for word in plan if f"-{tasks}-s0-" in word) for tasks in ("none", "dist"))
    # The checkpoint of another cell makes one cell fail and leaves the other alone.
    script = (
        "import sys; from pathlib import Path; from relvit import checkpoint; "
        "checkpoint.save({'cell_id': 'another', 'finished': False, 'history': []}, Path(sys.argv[1]), 1, 2)"
    )
    folder = tmp_path / "results/cells" / broken
    subprocess.run([sys.executable, "-c", script, folder], cwd=ROOT, check=True)
    result = ablation(tmp_path, "--tasks", "none,dist")
    assert result.returncode == 1
    assert f"FAILED {broken}: ValueError: {folder} holds the checkpoints of another" in result.stdout
    assert "--tasks none --seeds 0" in result.stdout
    found = runs(tmp_path)
    assert found["none"].info.status == "FAILED"
    assert "holds the checkpoints of another" in found["none"].data.tags["reason"]
    assert found["dist"].info.status == "FINISHED"
    assert (tmp_path / "results/cells" / sound / "history.json").exists()


def test_ctrl_c_while_ray_and_mlflow_start_stops_before_the_first_trial(tmp_path):
    driver = subprocess.Popen(
        command("--tasks", "none"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "mlflow.db").exists():
        assert driver.poll() is None
        time.sleep(0.02)
    driver.send_signal(signal.SIGINT)
    output, errors = driver.communicate()
    assert driver.returncode == 130, output + errors
    assert "stopping as soon as Ray and MLflow have started" in output
    assert "interrupted; nothing is lost: run the same command to continue" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("results/cells/*"))


def test_a_second_driver_leaves_alone_what_the_first_is_at_work_on(finished, tmp_path):
    first = subprocess.Popen(
        command("--tasks", "none,sprel"), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    )
    wait_for_checkpoint(tmp_path, "000001-*.pt", first)
    second = ablation(tmp_path, "--tasks", "none,sprel,sprel+abspos")
    assert second.returncode == 4, second.stdout + second.stderr
    assert f"2 cells are left to process {first.pid} on" in second.stdout
    output, _ = first.communicate()
    assert first.returncode == 0, output
    found = runs(tmp_path)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    for run in found.values():
        assert steps(tmp_path, run, "epoch") == [1, 2, 3, 4, 5, 6]
    assert histories(tmp_path) == histories(finished)


def test_a_spent_budget_stops_cleanly_and_the_same_command_goes_on(tmp_path):
    stopped = ablation(tmp_path, "--tasks", "none", "--hours", "1e-6")
    assert stopped.returncode == 3, stopped.stdout + stopped.stderr
    assert "the budget is spent with 1 cells to go; run the same command to continue" in stopped.stdout
    assert ablation(tmp_path, "--tasks", "none").returncode == 0
    assert runs(tmp_path)["none"].info.status == "FINISHED"


def test_all_that_is_wrong_is_said_at_once_before_anything_starts(tmp_path):
    result = ablation(
        tmp_path,
        *("--study", "tabel4", "--recipe", "papper", "--tasks", "sprel+dits,none", "--backbone", "vit_s5"),
        *("--dataset", "digit", "--set", "epocs=3", "--storage", "/proc/nowhere", "--gpus", "64"),
    )
    assert result.returncode == 2
    for sentence in (
        "unknown study 'tabel4': one of table2, table3, table4, figure2, full, probe, mega; did you mean 'table4'?",
        "unknown recipe 'papper': one of paper, reference, demo, cpu; did you mean 'paper'?",
        "unknown task 'dits': one of sprel, dist, ang, abspos, drloc, none; did you mean 'dist'?",
        "unknown backbone 'vit_s5'",
        "unknown data set 'digit': one of digits, cifar10, cifar100, svhn, flowers102, tiny_imagenet; did you mean",
        "unknown field 'epocs'",
        "the storage path /proc/nowhere cannot be written",
        "a trial asks for 64 GPUs and 1 CPUs",
    ):
        assert sentence in result.stderr
    assert result.stderr.startswith("nothing was started:")
    assert not list(tmp_path.glob("results"))


def test_a_submitted_job_is_refused_paths_that_ray_removes_with_its_working_directory(tmp_path):
    copy = tmp_path / "runtime_resources" / "working_dir_files"
    copy.mkdir(parents=True)
    result = ablation(copy, "--data-root", str(tmp_path / "data"))
    assert result.returncode == 2
    assert "--storage is a relative path" in result.stderr
    assert "--tracking-uri is a relative path" in result.stderr
    assert "--data-root" not in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use this machine's GPU")
def test_a_gpu_that_torch_cannot_use_is_refused_before_the_first_trial(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    try:
        result = ablation(tmp_path, "--tasks", "none", "--gpus", "0.5", "--address", cluster.address)
    finally:
        cluster.shutdown()
    assert result.returncode == 2, result.stdout + result.stderr
    assert "has a GPU that torch" in result.stderr
    assert not list(tmp_path.glob("results/cells/*"))
