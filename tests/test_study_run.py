"""The MLflow run that stands for a study: one, found again, and never taken for a cell's."""

from pathlib import Path

import pytest
from helpers.made_runs import planned
from mlflow import MlflowClient

from analysis.output.study_run import AttachError, attach
from sweeps.account.work import WorkItem
from sweeps.tracking.tracker import Tracker


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> tuple[str, MlflowClient, str]:
    """A tracking store with the run of one cell: URI, client, the experiment's id."""
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("relvit", artifact_location=(folder / "artifacts").as_uri())
    (cell,) = planned(folder, "table4", seeds=(0,), combinations=("sprel",))
    tracker = Tracker(uri, "relvit", folder)
    tracker.begin(WorkItem(cell, studies=("table4",)))
    tracker.finish(cell.cell_id)
    return uri, client, experiment


def study_runs(client: MlflowClient, experiment: str) -> list:
    return client.search_runs([experiment], "tags.kind = 'study'")


def content(client: MlflowClient, run_id: str, name: str, folder: Path) -> str:
    return Path(client.download_artifacts(run_id, f"analysis/{name}", str(folder))).read_text()


def test_later_calls_find_the_studys_run_and_renew_its_files(store, tmp_path):
    uri, client, experiment = store
    first, second = tmp_path / "table4.tex", tmp_path / "table4.html"
    first.write_text("one")
    run_id = attach(uri, "relvit", "table4", [first], description="See **table4.html**")
    first.write_text("two")
    second.write_text("page")
    assert attach(uri, "relvit", "table4", [first, second], tags={"git_commit": "0123"}) == run_id
    (run,) = study_runs(client, experiment)
    assert run.info.run_name == "table4"
    assert run.info.status == "FINISHED"
    assert run.data.tags["git_commit"] == "0123"
    assert content(client, run_id, "table4.tex", tmp_path / "back") == "two"
    assert content(client, run_id, "table4.html", tmp_path / "back") == "page"


def test_the_experiments_page_leads_to_the_studies_unless_somebody_has_described_it(store):
    uri, client, experiment = store
    runs = {name: attach(uri, "relvit", name, []) for name in ("table2", "table4")}
    note = client.get_experiment(experiment).tags["mlflow.note.content"]
    for name, run_id in runs.items():
        assert f"[{name}](#/experiments/{experiment}/runs/{run_id})" in note
    client.set_experiment_tag(experiment, "mlflow.note.content", "my own words")
    attach(uri, "relvit", "table3", [])
    assert client.get_experiment(experiment).tags["mlflow.note.content"] == "my own words"
    client.set_experiment_tag(experiment, "mlflow.note.content", note)


def test_it_is_no_cells_run_and_leaves_those_alone(store):
    uri, client, experiment = store
    attach(uri, "relvit", "table4", [], tags={"git_commit": "4567"})
    # What gathering asks for.
    (cells_run,) = client.search_runs([experiment], "tags.cell_id != ''")
    assert cells_run.data.params["tasks"] == "sprel"
    assert cells_run.data.tags["git_commit"] != "4567"
    assert "kind" not in cells_run.data.tags


def test_another_study_has_a_run_of_its_own_whatever_its_name(store):
    uri, client, experiment = store
    name = "it's \"mine\" or tags.study != ''"
    mine = attach(uri, "relvit", name, [])
    assert mine != attach(uri, "relvit", "table4", [])
    assert attach(uri, "relvit", name, []) == mine


def test_of_two_that_were_made_at_once_the_older_stays_in_use(store):
    uri, client, experiment = store
    older = client.create_run(experiment, start_time=1, tags={"kind": "study", "study": "table2"}).info.run_id
    client.create_run(experiment, start_time=2, tags={"kind": "study", "study": "table2"})
    assert attach(uri, "relvit", "table2", []) == older


def test_what_mlflow_does_not_take_is_said_with_the_name_of_the_study(store, tmp_path):
    uri, _, _ = store
    with pytest.raises(AttachError, match="no experiment 'other'"):
        attach(uri, "other", "table4", [])
    with pytest.raises(AttachError, match="did not take the outputs of table4"):
        attach(uri, "relvit", "table4", [tmp_path / "missing.pdf"])


def test_a_password_in_the_uri_is_not_printed(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(AttachError) as error:
        attach("http://user:s3cret@127.0.0.1:9", "relvit", "table4", [])
    assert "http://user:***@127.0.0.1:9 did not take the outputs of table4" in str(error.value)
    assert "s3cret" not in str(error.value)


def test_nothing_is_attached_to_where_a_database_was_before_it_was_moved(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    Tracker(f"sqlite:///{old}/mlflow.db", "relvit", old / "results")
    (old / "mlruns/relvit").mkdir(parents=True, exist_ok=True)
    old.rename(new)
    uri = f"sqlite:///{new}/mlflow.db"
    with pytest.raises(AttachError, match="was moved and would write to where it was, .*old/mlruns/relvit"):
        attach(uri, "relvit", "table4", [])
    assert not old.exists()
    Tracker(uri, "relvit", new / "results")  # as a sweep or sweeps/reconcile.py opens it
    assert attach(uri, "relvit", "table4", [])
