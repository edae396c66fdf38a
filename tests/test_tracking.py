"""One MLflow run per cell for ever: found, continued, no step twice, none left RUNNING."""

import contextlib
import math
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from helpers.accounts import finish
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import (
    BAD_REQUEST,
    PERMISSION_DENIED,
    RESOURCE_DOES_NOT_EXIST,
    TEMPORARILY_UNAVAILABLE,
)

from relvit.cell import Cell
from relvit.files import artifacts_beside, moved_from
from sweeps.account.account import FAILED, FINISHED, Account, Status
from sweeps.account.code_version import source_digest
from sweeps.account.work import WorkItem, work_items
from sweeps.planning.plan import Request, plan_cells
from sweeps.tracking.points import Points
from sweeps.tracking.reconciliation import reconcile
from sweeps.tracking.tracker import Tracker, TrackingError, is_passing

TABLE4 = ("table4",)
WORKER = {"host": "node-7", "device": "cpu (test)"}
ROWS = [
    {"epoch": 1, "phase": "pretrain", "pretrain_train_loss": 2.0, "learning_rate": 0.1},
    {"epoch": 2, "phase": "finetune", "finetune_val_accuracy": 40.0, "learning_rate": 0.2},
    {"epoch": 2, "phase": "test", "test_accuracy": 45.0, "selected_epoch": 2},
]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory) -> Path:
    """Making MLflow's tables takes seconds; each test gets a copy."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_database, tmp_path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def cell(tmp_path) -> Cell:
    two_epochs = ("pretrain_epochs=1", "epochs=1", "warmup_epochs=0")
    return plan_cells(Request("table4", "demo", tmp_path, combinations=("sprel",), settings=two_epochs))[0]


def tracker(uri: str, tmp_path: Path) -> Tracker:
    return Tracker(uri, "relvit", tmp_path / "results")


def steps_by_metric(uri: str) -> dict[str, list[int]]:
    (run,) = all_runs(uri)
    return {metric: [step for step, _ in points(uri, metric)] for metric in run.data.metrics}


def all_runs(uri: str) -> list:
    client = MlflowClient(uri)
    return client.search_runs([client.get_experiment_by_name("relvit").experiment_id])


def points(uri: str, metric: str) -> list[tuple[int, float]]:
    (run,) = all_runs(uri)
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run.info.run_id, metric)]


def test_a_row_is_logged_at_its_epoch_under_its_own_names(uri, tmp_path, cell):
    tracking = tracker(uri, tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4))
    tracking.log(cell.cell_id, ROWS, WORKER)
    tracking.finish(cell.cell_id)
    (run,) = all_runs(uri)
    assert run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in cell.as_dict().items()}
    assert run.data.tags["host"] == "node-7"
    assert run.data.tags["source_digest"] == source_digest()
    assert run.data.tags["cell_id"] == cell.cell_id
    assert run.info.run_name == "sprel · seed 0"
    assert points(uri, "learning_rate") == [(1, 0.1), (2, 0.2)]
    assert points(uri, "test_accuracy") == [(2, 45.0)]


def test_a_run_has_its_data_sets_as_inputs_by_name_and_fingerprint(uri, tmp_path, cell):
    tracking = tracker(uri, tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4))
    worker = WORKER | {"data_fingerprint": "0123456789abcdef"}
    tracking.log(cell.cell_id, ROWS, worker)
    again = tracker(uri, tmp_path)  # the next driver logs them no second time
    again.begin(WorkItem(cell, studies=TABLE4))
    again.log(cell.cell_id, [ROWS[0] | {"epoch": 3}], worker)
    (run,) = all_runs(uri)
    (known,) = run.inputs.dataset_inputs
    assert (known.dataset.name, known.dataset.digest) == ("digits", "0123456789abcdef")


@pytest.mark.parametrize(("refusals", "logged"), [(2, 1), (3, 0)])
def test_data_sets_that_another_run_enters_at_the_same_moment_are_entered_again_and_never_cost_a_row(
    uri, tmp_path, cell, monkeypatch, refusals, logged
):
    # What a server on PostgreSQL answers then.
    answers, log_inputs = iter([MlflowException("duplicate key", BAD_REQUEST)] * refusals), MlflowClient.log_inputs

    def refuse(*what):
        for error in answers:
            raise error
        return log_inputs(*what)

    monkeypatch.setattr(MlflowClient, "log_inputs", refuse)
    tracking = tracker(uri, tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4))
    tracking.log(cell.cell_id, ROWS, WORKER | {"data_fingerprint": "0123456789abcdef"})
    (run,) = all_runs(uri)
    assert len(run.inputs.dataset_inputs) == logged
    assert points(uri, "learning_rate") == [(1, 0.1), (2, 0.2)]


def test_a_description_is_the_users_once_there_is_one_and_a_name_follows_the_plan(uri, tmp_path, cell):
    tracking = tracker(uri, tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4, name="sprel · seed 0", note="what it is"))
    (run,) = all_runs(uri)
    assert run.data.tags["mlflow.note.content"] == "what it is"
    MlflowClient(uri).set_tag(run.info.run_id, "mlflow.note.content", "odd: look at epoch 3")
    tracker(uri, tmp_path).begin(WorkItem(cell, studies=TABLE4, name="digits · sprel · seed 0", note="what it is"))
    (run,) = all_runs(uri)
    assert run.data.tags["mlflow.note.content"] == "odd: look at epoch 3"
    assert run.info.run_name == "digits · sprel · seed 0"


def test_the_next_driver_continues_the_run_and_logs_no_step_twice(uri, tmp_path, cell):
    first = tracker(uri, tmp_path)
    first.begin(WorkItem(cell, studies=TABLE4))
    first.log(cell.cell_id, ROWS[:1], WORKER)
    # The first driver dies here. The next one's trial yields its whole history again.
    second = tracker(uri, tmp_path)
    assert second.close_orphans() == [cell.cell_id]
    assert all_runs(uri)[0].info.status == "KILLED"
    second.begin(WorkItem(cell, studies=TABLE4))
    assert all_runs(uri)[0].info.status == "RUNNING"
    second.log(cell.cell_id, [*ROWS, *ROWS], WORKER)
    second.finish(cell.cell_id)
    assert points(uri, "epoch") == [(1, 1.0), (2, 2.0)]
    assert points(uri, "test_accuracy") == [(2, 45.0)]
    assert all_runs(uri)[0].info.status == "FINISHED"


def test_the_result_row_repeats_no_step_of_the_last_epoch_s_row(uri, tmp_path, cell):
    tracking = tracker(uri, tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4))
    for used, row in enumerate(ROWS):
        tracking.keep(cell.cell_id, row, WORKER, {"host_memory_bytes": 1e9 + used, "gpu_memory_bytes": 2e9})
        tracking.write(cell.cell_id)
    tracking.finish(cell.cell_id)
    steps = steps_by_metric(uri)
    assert [metric for metric, found in steps.items() if len(set(found)) < len(found)] == []
    assert steps["gpu_memory_bytes"] == [1, 2]
    assert points(uri, "host_memory_bytes") == [(1, 1e9), (2, 1e9 + 1)]


def test_the_result_of_a_pre_training_alone_is_logged_once_too(uri, tmp_path, cell):
    # It has no test accuracy, only its tasks'.
    pretraining = cell.pretraining()
    rows = [ROWS[0], {"epoch": 1, "phase": "test", "test_sprel_accuracy": 30.0, "selected_epoch": 1}]
    for _ in range(2):
        tracker(uri, tmp_path).rebuild(WorkItem(pretraining, studies=TABLE4), rows)
    assert points(uri, "test_sprel_accuracy") == [(1, 30.0)]


def test_a_run_that_ended_since_the_tracker_was_opened_is_no_orphan(uri, tmp_path, cell):
    one = tracker(uri, tmp_path)
    one.begin(WorkItem(cell, studies=TABLE4))
    other = tracker(uri, tmp_path)  # reads that it is RUNNING
    one.log(cell.cell_id, ROWS, WORKER)
    one.finish(cell.cell_id)
    assert one.close_orphans() == other.close_orphans() == []
    (run,) = all_runs(uri)
    assert (run.info.status, run.data.tags["reason"]) == ("FINISHED", "")
    for tracking in (one, other):
        assert tracking.is_finished(cell)


def test_what_a_tracker_ended_itself_keeps_its_reason(uri, tmp_path, cell):
    tracking = tracker(uri, tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4))
    tracking.interrupt(cell.cell_id, "trained for a search")
    assert tracking.close_orphans() == []
    assert all_runs(uri)[0].data.tags["reason"] == "trained for a search"


def test_runs_under_another_storage_path_are_not_orphans_of_this_one(uri, tmp_path, cell):
    (tmp_path / "elsewhere").mkdir()
    Tracker(uri, "relvit", tmp_path / "elsewhere").begin(WorkItem(cell, studies=TABLE4))
    assert tracker(uri, tmp_path).close_orphans() == []


def test_two_users_with_storage_paths_of_their_own_write_into_runs_of_their_own(uri, tmp_path, cell):
    storages = [tmp_path / "ann", tmp_path / "bob"]
    for storage in storages:
        storage.mkdir()
    ann, bob = (Tracker(uri, "relvit", storage) for storage in storages)
    for tracking in (ann, bob):  # at once: neither has seen the other's run
        tracking.begin(WorkItem(cell, studies=TABLE4))
        tracking.log(cell.cell_id, ROWS[:1], WORKER)
    late = Tracker(uri, "relvit", storages[1])
    assert late.mark_duplicates() == []
    assert late.close_orphans() == [cell.cell_id]
    by_storage = {run.data.tags["storage"]: run for run in all_runs(uri)}
    assert {storage: run.info.status for storage, run in by_storage.items()} == {
        str(storages[0]): "RUNNING",
        str(storages[1]): "KILLED",
    }
    assert all(run.data.tags["cell_id"] == cell.cell_id for run in by_storage.values())


def test_a_server_that_lets_this_user_read_alone_is_refused_before_every_run_is_lost_to_it(tmp_path, monkeypatch):
    def denied(*_):
        raise MlflowException("Permission denied", PERMISSION_DENIED)

    known = SimpleNamespace(lifecycle_stage="active", experiment_id="7")
    client = SimpleNamespace(get_experiment_by_name=lambda name: known, set_experiment_tag=denied)
    monkeypatch.setattr("sweeps.tracking.tracker.MlflowClient", lambda uri: client)
    with pytest.raises(TrackingError, match="accepts no runs from this user: .*Permission denied.* permission EDIT"):
        Tracker("http://127.0.0.1:5000", "relvit", tmp_path)


def test_two_machines_with_an_account_each_at_one_path_write_into_runs_of_their_own(uri, tmp_path, cell):
    storage = tmp_path / "results"
    assert Account(storage).check() == []
    tracker(uri, tmp_path).rebuild(WorkItem(cell, studies=TABLE4), ROWS)
    assert tracker(uri, tmp_path).is_finished(cell)
    shutil.rmtree(storage)  # as the other machine sees the path, before it has made an account there
    assert Account(storage).check() == []
    elsewhere = tracker(uri, tmp_path)
    assert elsewhere.status(cell.cell_id) is None
    elsewhere.begin(WorkItem(cell, studies=TABLE4))
    first, second = sorted(all_runs(uri), key=lambda run: run.info.status)
    assert (first.info.status, second.info.status) == ("FINISHED", "RUNNING")
    assert first.data.tags["storage"] == second.data.tags["storage"]
    assert first.data.tags["account_id"] != second.data.tags["account_id"]


def test_the_runs_of_a_storage_folder_that_was_moved_are_found(uri, tmp_path, cell):
    (tmp_path / "results").mkdir()
    tracker(uri, tmp_path).rebuild(WorkItem(cell, studies=TABLE4), ROWS)
    (tmp_path / "results").rename(tmp_path / "moved")
    assert Tracker(uri, "relvit", tmp_path / "moved").is_finished(cell)


def test_a_project_that_was_copied_writes_its_artifacts_beside_its_own_database(empty_database, tmp_path, cell, caplog):
    first, second = tmp_path / "first", tmp_path / "a copy"
    first.mkdir()
    shutil.copy(empty_database, first / "mlflow.db")
    Tracker(f"sqlite:///{first}/mlflow.db", "relvit", first / "results").rebuild(WorkItem(cell, studies=TABLE4), ROWS)
    shutil.copytree(first, second)
    uri = f"sqlite:///{second}/mlflow.db"
    copied = Tracker(uri, "relvit", second / "results")
    assert f"not in {first.as_uri()}/mlruns/relvit" in caplog.text
    copied.rebuild(WorkItem(cell.pretraining(), studies=TABLE4), ROWS[:1])
    assert all(run.info.artifact_uri.startswith(f"{second.as_uri()}/mlruns/relvit/") for run in all_runs(uri))
    assert len(list(first.glob("mlruns/relvit/*"))) == 1
    assert len(list(second.glob("mlruns/relvit/*/artifacts/history.parquet"))) == 2
    (run,) = [run for run in all_runs(uri) if run.data.tags["cell_id"] == cell.cell_id]
    assert MlflowClient(uri).list_artifacts(run.info.run_id)[0].path == "history.parquet"
    caplog.clear()
    Tracker(uri, "relvit", second / "results")
    assert caplog.text == ""


@pytest.mark.parametrize("experiment", ["relvit", "ann's sweeps/2", "100 %"])
def test_a_database_that_was_moved_is_known_whatever_its_experiment_is_called(tmp_path, experiment):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    old, new = (artifacts_beside(f"sqlite:///{tmp_path}/{name}/mlflow.db", experiment) for name in ("old", "new"))
    assert moved_from(uri, experiment, old.as_uri()) == ""  # its artifacts were not moved with it
    new.mkdir(parents=True)
    assert moved_from(uri, experiment, old.as_uri()) == old.as_uri()
    assert moved_from(uri, experiment, new.as_uri()) == ""
    assert moved_from(uri, experiment, "file:///chosen") == ""
    assert moved_from("http://127.0.0.1:5000", experiment, old.as_uri()) == ""


@pytest.mark.parametrize("continued", [False, True])
def test_a_run_that_one_driver_logged_whole_is_not_read_back_when_it_ends(uri, tmp_path, cell, continued, monkeypatch):
    if continued:
        first = tracker(uri, tmp_path)
        first.begin(WorkItem(cell, studies=TABLE4))
        first.log(cell.cell_id, ROWS[:1], WORKER)
    asked = []
    read = MlflowClient.get_metric_history
    monkeypatch.setattr(MlflowClient, "get_metric_history", lambda *what: asked.append(what[-1]) or read(*what))
    tracking = tracker(uri, tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4))
    for row in ROWS:
        tracking.keep(cell.cell_id, row, WORKER, {"host_memory_bytes": 1e9})
        tracking.write(cell.cell_id)
    tracking.finish(cell.cell_id)
    assert bool(asked) is continued
    (run,) = all_runs(uri)
    kept = pq.read_table(MlflowClient(uri).download_artifacts(run.info.run_id, "history.parquet")).to_pylist()
    held = [(metric, *point) for metric in run.data.metrics for point in points(uri, metric)]
    assert sorted((point["metric"], point["step"], point["value"]) for point in kept) == sorted(held)
    assert run.data.tags["history_points"] == str(len(kept))


def test_runs_of_cells_that_another_driver_holds_are_not_orphans(uri, tmp_path, cell):
    tracker(uri, tmp_path).begin(WorkItem(cell, studies=TABLE4))
    assert tracker(uri, tmp_path).close_orphans(alive={cell.cell_id}) == []
    assert all_runs(uri)[0].info.status == "RUNNING"


def test_a_request_whose_answer_was_lost_and_is_made_again_with_more_rows_leaves_each_point_once(
    uri, tmp_path, cell, monkeypatch
):
    tracking = tracker(uri, tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4))
    tracking.keep(cell.cell_id, ROWS[0], WORKER)
    carry_out = MlflowClient.log_batch

    def unanswered(*what, **more):
        carry_out(*what, **more)
        raise ConnectionError("the answer was lost")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", unanswered)
        with pytest.raises(ConnectionError):
            tracking.write(cell.cell_id)
    tracking.keep(cell.cell_id, ROWS[1], WORKER)
    tracking.write(cell.cell_id)
    assert points(uri, "epoch") == [(1, 1.0), (2, 2.0)]
    assert points(uri, "learning_rate") == [(1, 0.1), (2, 0.2)]


def many_rows(count: int, metrics: int) -> list[dict]:
    """Rows of this many metrics beside the epoch, each of which has its own value in each row."""
    return [
        {"epoch": epoch, "phase": "pretrain", **{f"metric_{index}": epoch + index / 64 for index in range(metrics)}}
        for epoch in range(1, count + 1)
    ]


@pytest.mark.parametrize(
    ("metrics", "requests"),
    [(8, 2), (14, 2), (29, 4)],  # rows of 9: 60, the most, and 40; of 15: 900 metrics are 60; of 30: 30, 30, 30, 10
)
def test_rows_that_wait_are_logged_together_and_give_what_they_give_one_by_one(
    uri, tmp_path, cell, metrics, requests, monkeypatch
):
    sent, send = [], Points.log
    together, one_by_one = tracker(uri, tmp_path), Tracker(uri, "alone", tmp_path / "results")
    for each in (together, one_by_one):
        each.begin(WorkItem(cell, studies=TABLE4))
    monkeypatch.setattr(Points, "log", lambda *what: sent.append(len(what[2])) or send(*what))
    rows = many_rows(100, metrics)
    for row in rows:
        together.keep(cell.cell_id, row, WORKER, {"host_memory_bytes": 1e9})
    together.write(cell.cell_id)
    assert len(sent) == requests
    assert max(sent) <= 1000 - 100  # what MLflow takes, less the tags
    monkeypatch.undo()
    for row in rows:
        one_by_one.keep(cell.cell_id, row, WORKER, {"host_memory_bytes": 1e9})
        one_by_one.write(cell.cell_id)
    client = MlflowClient(uri)
    runs = [client.search_runs([client.get_experiment_by_name(name).experiment_id])[0] for name in ("relvit", "alone")]
    assert runs[0].data.metrics == runs[1].data.metrics
    assert runs[0].data.tags["phase"] == runs[1].data.tags["phase"] == "pretrain"
    assert runs[0].data.tags["host"] == "node-7"
    for name in runs[0].data.metrics:
        first, second = (
            [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)] for run in runs
        )
        assert first == second


def test_what_goes_into_a_sqlite_file_around_mlflows_client_is_what_its_client_would_have_left(uri):
    client = MlflowClient(uri)
    experiment = client.create_experiment("points")
    ours, theirs = (client.create_run(experiment).info.run_id for _ in range(2))
    points, names = Points(client, uri), ("a", "b", "c")
    odd = [
        *(
            Metric("a", math.nan, 5, 5),
            Metric("b", math.inf, 5, 5),
            Metric("b", -math.inf, 5, 4),
            Metric("b", 1.0, 5, 5),
        ),
        *(Metric("c", 2.0, 1, 9), Metric("c", 3.0, 1, 9), Metric("c", 3.0, 1, 9), Metric("c", 9.0, 0, 9)),
    ]
    in_order = [Metric(name, step / 4, 1000 * step, step) for step in range(3, 6) for name in names]
    new_names = [Metric(name, 1.0, 0, 0) for name in names]
    for batch in (new_names, odd, in_order, odd, [Metric("a", 7.0, 1, 1)]):
        points.log(ours, batch, {"phase": "pretrain"})
        client.log_batch(theirs, batch, tags=[RunTag("phase", "pretrain")])
    assert client.get_run(ours).data.tags["phase"] == "pretrain"
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        for table in ("metrics", "latest_metrics"):
            asked = f"SELECT key, value, timestamp, step, is_nan FROM {table} WHERE run_uuid = ? ORDER BY 1, 4, 3, 2"
            found, expected = (database.execute(asked, [run]).fetchall() for run in (ours, theirs))
            assert found == expected
            assert len(found) == (20 if table == "metrics" else 3)
    client.delete_run(ours)
    with pytest.raises(MlflowException, match="must be in the 'active' state"):
        points.log(ours, in_order, {})


def test_of_rows_that_are_logged_together_the_one_that_mlflow_refuses_is_left_out_alone(uri, tmp_path, cell):
    tracking = tracker(uri, tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4))
    for row in (ROWS[0], {**ROWS[0], "epoch": 3, "not/a:name?": 1.0}, ROWS[1]):
        tracking.keep(cell.cell_id, row, WORKER)
    with pytest.raises(MlflowException, match="not/a:name"):
        tracking.write(cell.cell_id)
    assert points(uri, "epoch") == [(1, 1.0), (2, 2.0)]
    tracking.write(cell.cell_id)  # it is not tried again
    tracking.finish(cell.cell_id)
    (run,) = all_runs(uri)
    kept = pq.read_table(MlflowClient(uri).download_artifacts(run.info.run_id, "history.parquet")).to_pylist()
    assert [point["step"] for point in kept if point["metric"] == "epoch"] == [1, 2]


def test_what_waits_is_not_logged_any_more_once_another_driver_has_the_cell(uri, tmp_path, cell):
    # 130 rows are three requests; the lease is lost after the first.
    tracking, answers = tracker(uri, tmp_path), iter([False, True])
    tracking.begin(WorkItem(cell, studies=TABLE4))
    for row in many_rows(130, 1):
        tracking.keep(cell.cell_id, row)
    tracking.write(cell.cell_id, lambda: next(answers))
    assert len(points(uri, "epoch")) == 60


def test_an_epoch_that_is_reported_twice_while_rows_wait_is_logged_as_it_came_first(uri, tmp_path, cell):
    # A trial that continues yields again what its checkpoint holds.
    tracking = tracker(uri, tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4))
    for row in (ROWS[0], {**ROWS[0], "learning_rate": 9.0}, ROWS[1], ROWS[2], ROWS[2]):
        tracking.keep(cell.cell_id, row, WORKER)
    tracking.write(cell.cell_id)
    assert points(uri, "learning_rate") == [(1, 0.1), (2, 0.2)]
    assert points(uri, "test_accuracy") == [(2, 45.0)]


def test_a_run_whose_making_was_not_answered_is_found_and_not_made_again(uri, tmp_path, cell):
    late = tracker(uri, tmp_path)  # looked before the run was there
    tracker(uri, tmp_path).begin(WorkItem(cell, studies=TABLE4))
    late.begin(WorkItem(cell, studies=TABLE4))
    assert len(all_runs(uri)) == 1


def test_of_several_runs_for_a_cell_the_finished_one_stands_for_it(uri, tmp_path, cell):
    tracking = tracker(uri, tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4))
    client, (first,) = MlflowClient(uri), all_runs(uri)
    second = client.create_run(first.info.experiment_id, tags={"cell_id": cell.cell_id})
    client.set_terminated(second.info.run_id, "FINISHED")
    assert tracker(uri, tmp_path).mark_duplicates() == [first.info.run_id]
    duplicate = client.get_run(first.info.run_id)
    assert duplicate.data.tags["duplicate_of"] == second.info.run_id
    assert "cell_id" not in duplicate.data.tags
    assert duplicate.info.status == "KILLED"
    assert tracker(uri, tmp_path).mark_duplicates() == []


def test_a_deviation_from_the_cells_settings_is_a_tag(uri, tmp_path, cell):
    tracker(uri, tmp_path).begin(WorkItem(cell, studies=TABLE4), "micro_batches=4")
    assert all_runs(uri)[0].data.tags["deviation"] == "micro_batches=4"


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (MlflowException("API request to http://... failed: connection refused"), True),
        (MlflowException("database is locked", TEMPORARILY_UNAVAILABLE), True),
        (ConnectionRefusedError(), True),
        (MlflowException("no such run", RESOURCE_DOES_NOT_EXIST), False),
        (KeyError("a mistake of ours"), False),
    ],
)
def test_only_what_may_pass_is_tried_again(error, passing):
    assert is_passing(error) is passing


def test_a_failed_cell_has_its_reason_and_loses_it_when_it_is_run_again(uri, tmp_path, cell):
    tracking = tracker(uri, tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4))
    tracking.fail(cell.cell_id, "pretrain loss is nan at step 3")
    (run,) = all_runs(uri)
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "pretrain loss is nan at step 3")
    tracking.begin(WorkItem(cell, studies=TABLE4))
    (run,) = all_runs(uri)
    assert (run.info.status, run.data.tags["reason"]) == ("RUNNING", "")


def test_a_finished_cell_that_mlflow_lost_is_rebuilt_from_its_rows(uri, tmp_path, cell):
    tracking = tracker(uri, tmp_path)
    assert not tracking.is_finished(cell)
    tracking.rebuild(WorkItem(cell, studies=TABLE4), ROWS)
    assert points(uri, "finetune_val_accuracy") == [(2, 40.0)]
    assert tracker(uri, tmp_path).is_finished(cell)


def test_a_failed_cell_whose_rows_waited_when_the_driver_died_gets_them_from_the_account(uri, tmp_path, cell):
    account = Account(tmp_path / "results")
    account.keep_history(cell, ROWS[:2])
    account.mark(cell, FAILED, "finetune loss is nan", failure="not_finite")
    assert reconcile(work_items(account, {cell: TABLE4}), account, tracker(uri, tmp_path)) == [
        f"entered the failure of {cell.cell_id}"
    ]
    (run,) = all_runs(uri)
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "not_finite")
    assert points(uri, "learning_rate") == [(1, 0.1), (2, 0.2)]
    assert reconcile(work_items(account, {cell: TABLE4}), account, tracker(uri, tmp_path), thorough=True) == []


def test_a_run_that_is_rebuilt_names_the_code_that_trained_it_and_not_the_one_that_rebuilds_it(uri, tmp_path, cell):
    account = Account(tmp_path / "results")
    finish(account, cell, ROWS, data_fingerprint="d1", origin={"git_commit": "0123abcd", "images_of_test": "359"})
    older = cell.pretraining()
    finish(account, older, [ROWS[0], {"epoch": 1, "phase": "test", "selected_epoch": 1}])  # by an earlier version
    reconcile(work_items(Account(tmp_path / "results"), {cell: TABLE4, older: TABLE4}), account, tracker(uri, tmp_path))
    tags = {run.data.tags["cell_id"]: run.data.tags for run in all_runs(uri)}
    known = ("git_commit", "images_of_test", "data_fingerprint", "source_digest", "torch_version")
    assert [tags[cell.cell_id].get(name) for name in known] == ["0123abcd", "359", "d1", None, None]
    assert [tags[older.cell_id].get(name) for name in known] == ["unknown", *[None] * 4]


def test_a_description_that_the_account_has_is_a_lost_runs_and_leaves_alone_what_a_person_wrote(uri, tmp_path, cell):
    kept = {"git_commit": "0123abcd", "mlflow.note.content": "by the engine"}
    item = WorkItem(cell, Status(FINISHED, origin=kept), TABLE4)
    for written in ("by the engine", "by a person"):
        tracker(uri, tmp_path).rebuild(item, ROWS)
        (run,) = all_runs(uri)
        assert run.data.tags["mlflow.note.content"] == written
        MlflowClient(uri).set_tag(run.info.run_id, "mlflow.note.content", "by a person")


def test_a_cell_that_a_second_study_has_too_is_one_run_tagged_with_both(uri, tmp_path, cell):
    tracker(uri, tmp_path).rebuild(WorkItem(cell, studies=TABLE4), ROWS)
    Tracker(uri, "relvit", tmp_path / "results").tag_study(WorkItem(cell, studies=("figure2",)))
    (run,) = all_runs(uri)
    assert run.data.tags["study"] == "figure2,table4"


def test_a_tracking_uri_that_cannot_be_used_is_named(tmp_path):
    with pytest.raises(TrackingError, match="sqlite:////proc/nowhere/mlflow.db cannot be used"):
        tracker("sqlite:////proc/nowhere/mlflow.db", tmp_path)


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "bad.db").write_text("no database " * 100)
    with pytest.raises(TrackingError, match="bad.db cannot be used: .*file is not a database"):
        Tracker(f"sqlite:///{tmp_path}/bad.db", "relvit", tmp_path)


def test_a_database_whose_driver_is_not_installed_is_named_without_its_password(tmp_path):
    with pytest.raises(TrackingError, match=r"postgresql\+nodriver://me:\*\*\*@host/runs cannot be used") as error:
        Tracker("postgresql+nodriver://me:hunter2@host/runs", "relvit", tmp_path)
    assert "hunter2" not in str(error.value)


def test_a_deleted_experiment_is_refused_with_how_it_comes_back(uri, tmp_path):
    client = MlflowClient(uri)
    experiment = client.create_experiment("gone")
    client.delete_experiment(experiment)
    with pytest.raises(TrackingError, match=f"was deleted .* restore it .*--experiment-id {experiment}"):
        Tracker(uri, "gone", tmp_path)


def test_a_studys_page_begins_with_how_far_it_is_and_keeps_what_it_said(uri, tmp_path):
    tracking = tracker(uri, tmp_path)
    tracking.show_study("table4", "1 of 16")
    (run,) = all_runs(uri)
    assert run.data.tags["kind"] == "study"
    assert (run.info.run_name, run.data.tags["study"], run.info.status) == ("table4", "table4", "FINISHED")
    assert run.data.tags["mlflow.note.content"] == "### So far\n\n1 of 16"
    MlflowClient(uri).set_tag(run.info.run_id, "mlflow.note.content", "The table.")  # analysis/make_tables.py
    tracking.show_study("table4", "2 of 16")
    tracker(uri, tmp_path).show_study("table4", "3 of 16")  # a later driver
    (run,) = all_runs(uri)
    assert run.data.tags["mlflow.note.content"] == "### So far\n\n3 of 16\n\n---\n\nThe table."
