"""What a search survives, in one search of real processes: a full storage, silence, too little GPU memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).resolve().parents[2]
SMALL = (
    *("--protocol", "joint", "--tasks", "none", "--name", "faulty", "--trials", "4", "--seeds", "none"),
    *("--scheduler", "none", "--searcher", "random", "--tune", "learning_rate"),
    *("--set", "train_images=120", "--set", "epochs=3", "--set", "warmup_epochs=0"),
)

# A driver whose first trials fail after their first epoch, each in its own way: one for lack of GPU memory until its
# batches go in two parts, one by falling silent once, one on a storage that is full once. While that one fails, the
# storage takes no entry in the account either. The fourth trial is sound.
DRIVER = """
import errno, sys, time
from pathlib import Path
sys.argv[0] = "{root}/sweeps/hpo.py"
sys.path[0] = "{root}"
import sweeps.driver.driver as driver
import sweeps.driver.watchdog as watchdog
from sweeps.account.account import Account
from sweeps.driver.trainable import CellTrainable

def fault_of(folder):
    # The first trials that come take one fault each, and keep it.
    for kind in ("memory", "silence", "storage"):
        claim = folder.parent.parent / f"fault-{{kind}}"
        try:
            claim.touch(exist_ok=False)
            claim.write_text(folder.name)
        except FileExistsError:
            pass
        if claim.read_text() == folder.name:
            return kind

class Faulty(CellTrainable):
    def _train(self, config):
        rows, folder = super()._train(config), Path(config["folder"])
        yield next(rows)
        kind, first = fault_of(folder), not (folder / "faulty").exists()
        (folder / "faulty").touch()
        if kind == "memory" and config["micro_batches"] < 2:
            import torch
            raise torch.OutOfMemoryError("CUDA out of memory")
        if kind == "silence" and first:
            time.sleep(10_000)
        if kind == "storage" and first:
            raise OSError(errno.ENOSPC, "No space left on device")
        yield from rows

mark, refused = Account.mark, []

def full_for_a_while(self, cell, state, *arguments, **details):
    if state == "searched" and len(refused) < 3:
        refused.append(cell)
        raise OSError(errno.ENOSPC, "No space left on device")
    mark(self, cell, state, *arguments, **details)

Account.mark = full_for_a_while
driver.CellTrainable = Faulty
watchdog.STALL_SECONDS = 5.0
import sweeps.hpo as hpo
sys.exit(hpo.main())
"""


@pytest.fixture(scope="module")
def search(tmp_path_factory) -> tuple[Path, str]:
    """The folder and the output of a search in which three of four trials fail at first."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "driver.py").write_text(DRIVER.format(root=ROOT))
    ours = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "OPTUNA_STORAGE")
    result = subprocess.run(
        [sys.executable, "driver.py", *SMALL],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in ours},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout


def faulty(folder: Path, kind: str) -> tuple[optuna.trial.FrozenTrial, dict, object]:
    """The trial with this fault, the account's state of its cell, and its run."""
    cell_id = (folder / f"results/fault-{kind}").read_text()
    found = optuna.load_study(study_name="faulty", storage=f"sqlite:///{folder}/results/optuna.db").trials
    (trial,) = [trial for trial in found if trial.user_attrs["cell_id"] == cell_id]
    state = json.loads((folder / "results/cells" / cell_id / "state.json").read_text())
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("relvit").experiment_id
    (run,) = client.search_runs([experiment], f"tags.cell_id = '{cell_id}'")
    return trial, state, run


@pytest.mark.parametrize("kind", ["memory", "silence", "storage"])
def test_every_trial_is_trained_to_its_end_once(search, kind):
    folder, _ = search
    trial, state, run = faulty(folder, kind)
    assert trial.state == optuna.trial.TrialState.COMPLETE
    assert (trial.user_attrs["epochs"], list(trial.intermediate_values)) == (3, [1, 2, 3])
    assert state["state"] == "searched"
    assert (run.info.status, run.data.tags["trial_state"]) == ("KILLED", "complete")
    history = MlflowClient(f"sqlite:///{folder}/mlflow.db").get_metric_history(run.info.run_id, "epoch")
    assert [point.step for point in history] == [1, 2, 3]


def test_a_search_survives_a_storage_that_is_full_for_a_while(search):
    folder, said = search
    assert "could not write its checkpoint and is started again" in said
    assert "the storage is not accepting writes, which are queued: [Errno 28] No space left on device" in said
    assert "the storage accepts writes again" in said
    assert not list(folder.glob("results/cells/*/*.pt"))  # what was decided is not trained on, and its files are gone


def test_a_search_survives_a_trial_that_falls_silent(search):
    _, said = search
    assert "has reported nothing for" in said
    assert "was stuck and is started again from its newest checkpoint" in said


def test_a_search_survives_a_gpu_out_of_memory_by_micro_batches_that_the_run_tells(search):
    folder, said = search
    assert "ran out of GPU memory and is started again" in said
    assert "with each batch in 2 parts" in said
    _, state, run = faulty(folder, "memory")
    assert state["micro_batches"] == 2
    assert run.data.tags["deviation"] == "micro_batches=2"
    _, _, sound = faulty(folder, "storage")
    assert sound.data.tags["deviation"] == ""
