"""How a driver writes MLflow's SQLite file: readers are no hindrance, and afterwards it is one file again."""

import sqlite3
from contextlib import closing

import pytest
from mlflow import MlflowClient

from sweeps.tracking.write_ahead import write_ahead


@pytest.fixture
def database(tmp_path):
    """The file of an experiment with one run, closed as another process would leave it."""
    path = tmp_path / "mlflow.db"
    client = MlflowClient(f"sqlite:///{path}")
    client.create_run(client.create_experiment("relvit", artifact_location=f"{tmp_path}/mlruns"))
    return path


def client_and_run(database):
    client = MlflowClient(f"sqlite:///{database}")
    (run,) = client.search_runs([client.get_experiment_by_name("relvit").experiment_id])
    return client, run.info.run_id


def mode(database):
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("PRAGMA journal_mode").fetchone()[0]


def losses(database):
    with closing(sqlite3.connect(database)) as connection:
        return [value for (value,) in connection.execute("SELECT value FROM metrics WHERE key = 'loss'")]


def test_a_reader_in_the_middle_of_its_work_keeps_no_row_from_being_written(database):
    with write_ahead(f"sqlite:///{database}"), closing(sqlite3.connect(database)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM runs").fetchone()
        client, run = client_and_run(database)
        client.log_metric(run, "loss", 0.5)
        assert losses(database) == [0.5]


def test_afterwards_it_is_one_file_that_holds_everything(database):
    with write_ahead(f"sqlite:///{database}"):
        client, run = client_and_run(database)
        client.log_metric(run, "loss", 0.5)
        assert mode(database) == "wal"
    assert mode(database) == "delete"
    assert [path.name for path in database.parent.glob("mlflow.db*")] == ["mlflow.db"]
    assert losses(database) == [0.5]
    client.log_metric(run, "loss", 0.25)  # as before, by the same client
    assert mode(database) == "delete"


def test_another_program_that_has_it_open_keeps_the_log_and_loses_nothing(database):
    with closing(sqlite3.connect(database)) as other:
        other.execute("SELECT * FROM runs").fetchall()
        with write_ahead(f"sqlite:///{database}"):
            client, run = client_and_run(database)
            client.log_metric(run, "loss", 0.5)
            other.execute("SELECT * FROM runs").fetchall()
        assert other.execute("SELECT value FROM metrics WHERE key = 'loss'").fetchall() == [(0.5,)]
    with write_ahead(f"sqlite:///{database}"):
        pass
    assert mode(database) == "delete"


def test_a_file_that_another_program_holds_locked_is_written_as_before(database):
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with write_ahead(f"sqlite:///{database}"):
            other.execute("COMMIT")
            client, run = client_and_run(database)
            client.log_metric(run, "loss", 0.5)
            assert mode(database) == "delete"
    assert losses(database) == [0.5]


def test_a_server_is_left_alone():
    with write_ahead("http://127.0.0.1:9"):
        pass
