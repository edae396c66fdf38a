"""A run's history as one artifact: what MLflow holds, whenever the run ends."""

import logging
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from relvit.vocabulary import HISTORY, HISTORY_POINTS
from sweeps.tracking.history import SCHEMA, attach_history, create_experiment


@pytest.fixture(scope="module")
def uri(tmp_path_factory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('history')}/mlflow.db"


@pytest.fixture
def run_id(uri, request) -> str:
    """A run with three points, logged out of order."""
    client = MlflowClient(uri)
    run_id = client.create_run(create_experiment(client, request.node.name)).info.run_id
    points = [Metric("loss", 0.5, 2000, 2), Metric("loss", math.nan, 1000, 1), Metric("accuracy", 90.0, 2000, 2)]
    client.log_batch(run_id, points)
    return run_id


def artifact(uri: str, run_id: str) -> pa.Table:
    return pq.read_table(MlflowClient(uri).download_artifacts(run_id, HISTORY))


def rows(table: pa.Table) -> list[tuple]:
    times = table["timestamp"].cast(pa.int64())
    values = map(str, table["value"].to_pylist())  # nan, as text, equals itself
    return list(zip(table["metric"].to_pylist(), table["step"].to_pylist(), times.to_pylist(), values))


def test_it_holds_every_point_sorted_under_the_documented_schema(uri, run_id):
    attach_history(MlflowClient(uri), run_id)
    table = artifact(uri, run_id)
    assert table.schema.equals(SCHEMA)
    assert rows(table) == [("accuracy", 2, 2000, "90.0"), ("loss", 1, 1000, "nan"), ("loss", 2, 2000, "0.5")]
    assert MlflowClient(uri).get_run(run_id).data.tags[HISTORY_POINTS] == "3"


def test_a_run_that_went_on_gets_it_anew(uri, run_id):
    client = MlflowClient(uri)
    attach_history(client, run_id)
    client.log_batch(run_id, [Metric("loss", 0.25, 3000, 3)])
    attach_history(client, run_id)
    assert rows(artifact(uri, run_id))[-1] == ("loss", 3, 3000, "0.25")
    assert client.get_run(run_id).data.tags[HISTORY_POINTS] == "4"


def test_a_run_without_points_has_an_empty_one(uri):
    client = MlflowClient(uri)
    experiment = create_experiment(client, "empty")
    run_id = client.create_run(experiment).info.run_id
    attach_history(client, run_id)
    assert artifact(uri, run_id).num_rows == 0


def test_it_lies_beside_the_database_wherever_the_sweep_was_started(uri, run_id, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attach_history(MlflowClient(uri), run_id)
    assert len(list(Path(uri.removeprefix("sqlite:///")).parent.glob(f"mlruns/*/{run_id}/artifacts/{HISTORY}"))) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_that_cannot_be_written_is_a_warning(uri, run_id, caplog):
    client = MlflowClient(uri)
    folder = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, logger="sweeps.tracking.history"):
        attach_history(client, run_id)
    assert f"run {run_id} ends without the artifact {HISTORY}" in caplog.text
    assert HISTORY_POINTS not in client.get_run(run_id).data.tags
