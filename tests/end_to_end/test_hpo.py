"""The search as a user runs it, killed once: real Ray, MLflow and Optuna storage, on the embedded digits."""

import json
import os
import signal
import time
from pathlib import Path

import optuna
import pytest
from helpers import entries
from helpers.entries import tracked
from mlflow import MlflowClient

pytestmark = pytest.mark.end_to_end

SMALL = (
    *("--protocol", "joint", "--tasks", "none", "--name", "small", "--trials", "10", "--seeds", "0,1"),
    *("--set", "train_images=200", "--set", "epochs=4", "--set", "warmup_epochs=0"),
)


def trials(folder: Path, name: str = "small") -> list[optuna.trial.FrozenTrial]:
    path = folder / "results/optuna.db"
    if not path.exists() or name not in optuna.get_all_study_names(f"sqlite:///{path}"):
        return []
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path}").trials


def kill_when(reached, folder: Path, *arguments: str) -> None:
    """Start a search and kill its driver once `reached()`."""
    driver = entries.start("sweeps/hpo.py", folder, *arguments)
    deadline = time.monotonic() + 600
    while not reached():
        assert time.monotonic() < deadline and driver.poll() is None
        time.sleep(0.3)  # to look at the trials is work
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A folder in which a search was killed in its middle and then run to its end; what it had decided is kept."""
    folder = tmp_path_factory.mktemp("searched")
    kill_when(lambda: sum(trial.state.is_finished() for trial in trials(folder)) >= 2, folder, *SMALL)
    before = [(trial.number, trial.params, trial.state, trial.values) for trial in trials(folder)]
    (folder / "before.json").write_text(json.dumps(len(before)))
    result = entries.run("sweeps/hpo.py", folder, *SMALL)
    assert result.returncode == 0, result.stdout + result.stderr
    after = [(trial.number, trial.params, trial.state, trial.values) for trial in trials(folder)]
    for was, now in zip(before, after):
        assert was[:2] == now[:2]  # also those that were running: continued as what they were
        assert was == now or not was[2].is_finished()
    return folder


POPULATION = (
    *("--protocol", "joint", "--tasks", "none", "--name", "members", "--trials", "7", "--seeds", "0"),
    *("--scheduler", "pbt", "--population", "4", "--searcher", "random", "--min-epochs", "1"),
    *("--set", "train_images=200", "--set", "epochs=4", "--set", "warmup_epochs=0"),
)


def test_a_population_that_was_killed_goes_on_and_its_best_member_is_a_cell_that_can_be_trained_again(tmp_path):
    kill_when(lambda: any("parent" in trial.user_attrs for trial in trials(tmp_path, "members")), tmp_path, *POPULATION)
    result = entries.run("sweeps/hpo.py", tmp_path, *POPULATION)
    assert result.returncode == 0, result.stdout + result.stderr
    found = trials(tmp_path, "members")
    forks = [trial for trial in found if "parent" in trial.user_attrs]
    assert len(forks) == 3 and len(found) == 7
    assert [trial.state.name for trial in found].count("COMPLETE") == 4
    for fork in forks:
        fields = json.loads((tmp_path / "results/cells" / fork.user_attrs["cell_id"] / "cell.json").read_text())
        assert f"{fork.user_attrs['forked_after']}:" in fields["schedule"]
    tags = {run.data.tags["cell_id"]: run.data.tags for run in tracked(tmp_path) if "trial" in run.data.tags}
    assert {tags[trial.user_attrs["cell_id"]]["trial_state"] for trial in found} == {"complete", "pruned"}
    # The winner again, from the start and with another seed: the recipe's cell, schedule included.
    content = json.loads((tmp_path / "results/hpo/members/recipe.json").read_text())
    (tested,) = [run for run in tracked(tmp_path) if "test_accuracy" in run.data.metrics]
    assert tested.data.params["schedule"] == content["fields"]["schedule"]
    assert tested.data.params["seed"] == "0"


def test_every_trial_is_decided_once_and_no_cell_is_trained_by_two(searched):
    found = trials(searched)
    assert [trial.number for trial in found] == list(range(10))
    assert {trial.state.name for trial in found} == {"COMPLETE", "PRUNED"}
    own = [trial.user_attrs["cell_id"] for trial in found if "same_as" not in trial.user_attrs]
    assert len(set(own)) == len(own)
    of_trials = [run for run in tracked(searched) if "trial" in run.data.tags]
    assert sorted(run.data.tags["cell_id"] for run in of_trials) == sorted(own)


def test_no_trial_was_tested_nor_passes_for_finished(searched):
    for run in tracked(searched):
        if "trial" not in run.data.tags:
            continue
        assert run.info.status == "KILLED"
        assert run.data.tags["trial_state"] in ("complete", "pruned")
        assert 1 <= int(run.data.tags["stopped_epoch"]) <= 4
        assert not any(name.startswith("test_") for name in run.data.metrics)
        state = json.loads((searched / "results/cells" / run.data.tags["cell_id"] / "state.json").read_text())
        assert state["state"] == {"complete": "searched", "pruned": "pruned"}[run.data.tags["trial_state"]]
        assert run.data.tags["reason"] == state["reason"] != ""


def test_the_best_configuration_is_tested_with_other_seeds_and_is_a_recipe(searched):
    recipe = searched / "results/hpo/small/recipe.json"
    content = json.loads(recipe.read_text())
    best = max((trial for trial in trials(searched) if trial.values), key=lambda trial: trial.values[0])
    assert content["search"]["trial"] == best.number
    tested = [run for run in tracked(searched) if "test_accuracy" in run.data.metrics]
    assert sorted(run.data.params["seed"] for run in tested) == ["0", "1"]
    assert {run.data.tags["study"] for run in tested} == {"hpo-small"}
    for name, value in content["fields"].items():
        if name in best.params:
            assert {run.data.params[name] for run in tested} == {str(value)}
    # The same cells by the recipe: an ablation finds them finished.
    study = searched / "joint.py"
    study.write_text('cells = [{"dataset": "digits", "backbone": "vit_xs4", "protocol": "joint", "tasks": "none"}]')
    plan = ("--study", str(study), "--image-size", "16", "--recipe", str(recipe), "--seeds", "0,1", "--plan")
    result = entries.call("sweeps/ablation.py", searched, *plan)
    assert "2 cells: 2 finished" in result.stdout, result.stdout + result.stderr


def test_the_report_is_there_as_files_and_as_artifacts_of_the_search_s_run(searched):
    expected = {"report.md", "recipe.json", "trials.csv", "importance.csv", "history.png"}
    folder = searched / "results/hpo/small"
    assert expected <= {path.name for path in folder.iterdir()}
    (stands,) = [run for run in tracked(searched) if run.data.tags.get("search_run") == "small"]
    client = MlflowClient(f"sqlite:///{searched}/mlflow.db")
    assert expected <= {file.path for file in client.list_artifacts(stands.info.run_id)}
    assert stands.data.metrics["trials_complete"] + stands.data.metrics["trials_pruned"] == 10


def test_all_that_is_wrong_is_said_at_once_before_anything_starts(tmp_path):
    (tmp_path / "mine.py").write_text("from ray import tune\nspace = {'learning_rat': tune.uniform(0.1, 1.0)}")
    wrong = ("--searcher", "tpe", "--trials", "4", "--search-seed", "0", "--seeds", "0", "--space", "mine.py")
    result = entries.call("sweeps/hpo.py", tmp_path, *wrong, "--dataset", "digit")
    assert result.returncode == 2
    assert result.stderr.startswith("nothing was started:")
    assert "unknown data set 'digit'" in result.stderr
    assert "--seeds 0 is the search's own seed" in result.stderr
    result = entries.call("sweeps/hpo.py", tmp_path, "--trials", "4", "--space", "mine.py")
    assert "did you mean 'learning_rate'" in result.stderr
    assert not list(tmp_path.glob("results"))
