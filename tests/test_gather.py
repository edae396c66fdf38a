"""MLflow to Parquet: typed columns under the cell's own names, one row a cell, only what is new, never half."""

import shutil
import sqlite3
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from rich.console import Console

from analysis.runs import gather as module
from analysis.runs.gather import METRICS_SCHEMA, GatherError, gather, read_gathered
from analysis.runs.stores import Database
from relvit.cell import FIELDS, Cell
from sweeps.account.work import WorkItem
from sweeps.planning.plan import Request, plan_cells
from sweeps.tracking.tracker import Tracker

COMBINATIONS = ("none", "sprel", "dist", "ang")
TABLE4 = ("table4",)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory) -> Path:
    """Making MLflow's tables takes seconds; each store gets a copy."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_database, tmp_path) -> str:
    """A store with the runs of one finished, one failed and one interrupted cell."""
    (tmp_path / "store").mkdir()
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'store/mlflow.db')}"
    none, sprel, dist, _ = cells()
    tracking = tracker(uri)
    for cell in (none, sprel, dist):
        tracking.begin(WorkItem(cell, studies=TABLE4))
        tracking.log(cell.cell_id, [{"epoch": 1, "phase": "pretrain", "learning_rate": 0.5}], {"host": "node-7"})
    last = {"epoch": 2, "phase": "finetune", "learning_rate": 0.25, "finetune_val_accuracy": 91.0}
    tracking.log(none.cell_id, [last, {"epoch": 2, "phase": "test", "test_accuracy": 95.5, "selected_epoch": 2}])
    tracking.finish(none.cell_id)
    tracking.fail(sprel.cell_id, "loss is nan")
    tracking.interrupt(dist.cell_id, "interrupted by the user")
    return uri


def cells() -> list[Cell]:
    return plan_cells(Request("table4", "demo", Path("data"), combinations=COMBINATIONS))


def tracker(uri: str) -> Tracker:
    return Tracker(uri, "relvit", Path("results"))


def client_and_experiment(uri: str) -> tuple[MlflowClient, str]:
    client = MlflowClient(uri)
    return client, client.get_experiment_by_name("relvit").experiment_id


def run_id_of(uri: str, tasks: str) -> str:
    client, experiment = client_and_experiment(uri)
    (run,) = client.search_runs([experiment], f"params.tasks = '{tasks}'")
    return run.info.run_id


def artifact_of(uri: str, tasks: str) -> Path:
    run = MlflowClient(uri).get_run(run_id_of(uri, tasks))
    return Path(run.info.artifact_uri.removeprefix("file://"), "history.parquet")


def told(uri: str) -> set[tuple]:
    """Every point of the experiment as MLflow's client tells it, run by run and metric by metric."""
    client, experiment = client_and_experiment(uri)
    return {
        (run.info.run_id, run.data.tags["cell_id"], name, point.step, str(point.value), point.timestamp)
        for run in client.search_runs([experiment])
        for name in run.data.metrics
        for point in client.get_metric_history(run.info.run_id, name)
    }


def written(folder: Path) -> list[tuple]:
    """Every row of metrics.parquet in the same form."""
    frame = pd.read_parquet(folder / "metrics.parquet")
    times = frame["time"].dt.as_unit("ms").astype("int64")
    columns = (frame["run_id"], frame["cell_id"], frame["metric"], frame["step"], frame["value"].map(str), times)
    return list(zip(*columns))


def assert_whole(uri: str, folder: Path) -> None:
    """The tables hold what MLflow holds, once."""
    points = written(folder)
    assert len(points) == len(set(points))
    assert set(points) == told(uri)


# What is in the tables


def test_every_field_of_a_cell_comes_back_as_it_was(uri, tmp_path):
    runs = gather(uri, "relvit", tmp_path / "out").runs.set_index("cell_id")
    for cell in cells()[:3]:
        assert {name: runs.loc[cell.cell_id, name] for name in FIELDS} == cell.as_dict()


def test_columns_have_the_types_of_the_fields_whatever_the_values(uri, tmp_path):
    MlflowClient(uri).set_tag(run_id_of(uri, "dist"), "study", "figure2")
    gather(uri, "relvit", tmp_path)
    kinds = {int: pd.api.types.is_integer_dtype, float: pd.api.types.is_float_dtype, bool: pd.api.types.is_bool_dtype}
    # The second has no run with a result, the first is both together.
    for part in (tmp_path / "runs.parquet", tmp_path / "runs.parquet/study=figure2"):
        runs = pd.read_parquet(part)
        for name, kind in FIELDS.items():
            assert kinds.get(kind, pd.api.types.is_string_dtype)(runs[name]), name
        assert pd.api.types.is_float_dtype(runs["test_accuracy"])


def test_a_row_has_outcome_results_tags_and_times(uri, tmp_path):
    runs = gather(uri, "relvit", tmp_path).runs.set_index("tasks")
    assert runs["status"].to_dict() == {"none": "FINISHED", "sprel": "FAILED", "dist": "KILLED"}
    assert runs["reason"].to_dict() == {"none": "", "sprel": "loss is nan", "dist": "interrupted by the user"}
    assert runs.loc["none", ["test_accuracy", "selected_epoch", "finetune_val_accuracy"]].to_list() == [95.5, 2, 91]
    assert runs["test_accuracy"].isna().to_dict() == {"none": False, "sprel": True, "dist": True}
    assert set(runs["host"]) == {"node-7"}
    info = MlflowClient(uri).get_run(run_id_of(uri, "none")).info
    assert runs.loc["none", "start_time"] == pd.Timestamp(info.start_time, unit="ms", tz="UTC")
    assert runs.loc["none", "end_time"] == pd.Timestamp(info.end_time, unit="ms", tz="UTC")


def test_metrics_have_a_row_for_each_run_metric_and_step(uri, tmp_path):
    gathered = gather(uri, "relvit", tmp_path)
    finished = gathered.runs.set_index("tasks").loc["none", "run_id"]
    rates = gathered.history(["learning_rate"], [finished])
    assert list(zip(rates["step"], rates["value"])) == [(1, 0.5), (2, 0.25)]
    assert len(gathered.metrics) == len(written(tmp_path)) == 11
    assert_whole(uri, tmp_path)


def test_what_is_not_a_number_stays_so_by_either_way(uri, tmp_path):
    tracking, cell = tracker(uri), cells()[3]
    tracking.begin(WorkItem(cell, studies=TABLE4))
    tracking.log(cell.cell_id, [{"epoch": 1, "phase": "joint", "joint_train_loss": float("nan")}])
    gather(uri, "relvit", tmp_path / "running")
    tracking.finish(cell.cell_id)
    for folder in ("running", "finished"):
        gathered = gather(uri, "relvit", tmp_path / folder)
        assert gathered.history(["joint_train_loss"])["value"].isna().to_list() == [True]
        assert gathered.notes == []


def test_the_tables_are_as_documented(uri, tmp_path):
    gather(uri, "relvit", tmp_path)
    for table, required in (("runs", 6 + len(FIELDS)), ("metrics", 7)):
        documented = documented_columns(table)
        found = {field.name: str(field.type) for field in pq.read_schema(next(tmp_path.glob(f"{table}.parquet/*/*")))}
        found["study"] = "string"  # the folder's name
        found = {name: kind.removeprefix("large_") for name, kind in found.items()}
        assert len(documented) == required
        assert {name: found[name] for name in documented} == documented
    assert found.keys() == documented.keys()


def documented_columns(table: str) -> dict[str, str]:
    """Names and Arrow types from the section of docs/schema.md on a table."""
    text = (Path(__file__).parents[1] / "docs/schema.md").read_text()
    section = text.partition(f"## {table}.parquet\n")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    return {row[1].strip(" `"): row[2].strip(" `") for row in rows}


def test_strings_are_dictionary_encoded(uri, tmp_path):
    gather(uri, "relvit", tmp_path)
    for path in tmp_path.glob("*.parquet/*/*"):
        group = pq.read_metadata(path).row_group(0)
        columns = [group.column(index) for index in range(group.num_columns)]
        strings = [column for column in columns if column.physical_type == "BYTE_ARRAY"]
        assert strings
        assert all("RLE_DICTIONARY" in column.encodings for column in strings)


# How they open


def test_pandas_polars_and_duckdb_open_them_and_count_a_run_of_two_studies_once(uri, tmp_path):
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    # The second is a name that no folder can have.
    studies = {"none": "figure2,table4", "sprel": 'my "study" / 50%', "dist": ""}
    client = MlflowClient(uri)
    for tasks, study in studies.items():
        client.delete_tag(run_id_of(uri, tasks), "study")
        if study:
            client.set_tag(run_id_of(uri, tasks), "study", study)
    gathered = gather(uri, "relvit", tmp_path)
    assert gathered.notes == ["1 run without the tag 'study': in the tables, but in no study"]
    assert gathered.runs.set_index("tasks")["study"].fillna("").to_dict() == studies
    for table, counts in (("runs", [1, 1, 1]), ("metrics", [7, 2, 2])):
        folder = tmp_path / f"{table}.parquet"
        expected = dict(zip(studies.values(), counts))
        assert pd.read_parquet(folder)["study"].value_counts().to_dict() == expected
        by_polars = polars.read_parquet(folder)["study"].value_counts()
        assert dict(by_polars.iter_rows()) == expected
        by_duckdb = duckdb.sql(f"SELECT study, count(*) FROM '{folder}/*/*.parquet' GROUP BY study").fetchall()
        assert dict(by_duckdb) == expected


# Only what is new


def test_the_second_time_nothing_is_read_again(uri, tmp_path):
    assert gather(uri, "relvit", tmp_path).read == 3
    assert gather(uri, "relvit", tmp_path).read == 0
    assert_whole(uri, tmp_path)


def test_a_new_run_alone_is_read(uri, tmp_path):
    gather(uri, "relvit", tmp_path)
    cell = cells()[3]
    tracker(uri).rebuild(WorkItem(cell, studies=TABLE4), [{"epoch": 1, "phase": "joint", "learning_rate": 0.125}])
    gathered = gather(uri, "relvit", tmp_path)
    assert gathered.read == 1
    assert len(gathered.runs) == 4
    assert_whole(uri, tmp_path)


def test_a_run_that_was_taken_up_again_is_read_while_it_grows_and_when_it_ends(uri, tmp_path):
    gather(uri, "relvit", tmp_path)
    tracking, cell = tracker(uri), cells()[2]
    tracking.begin(WorkItem(cell, studies=TABLE4))
    reads = []
    for epoch in (2, 3):
        tracking.log(cell.cell_id, [{"epoch": epoch, "phase": "pretrain", "learning_rate": 0.5}])
        reads.append(gather(uri, "relvit", tmp_path).read)
        assert_whole(uri, tmp_path)
    tracking.finish(cell.cell_id)
    gathered = gather(uri, "relvit", tmp_path)
    assert [*reads, gathered.read] == [1, 1, 1]
    assert gathered.runs.set_index("tasks").loc["dist", "status"] == "FINISHED"
    assert gathered.notes == []
    assert_whole(uri, tmp_path)


def test_epochs_that_are_filled_in_before_the_last_one_are_seen_when_the_run_ends(uri, tmp_path):
    tracking, cell = tracker(uri), cells()[3]
    tracking.begin(WorkItem(cell, studies=TABLE4))
    for epoch in (1, 3):
        tracking.log(cell.cell_id, [{"epoch": epoch, "phase": "joint", "learning_rate": 0.5}])
    tracking.finish(cell.cell_id)
    gather(uri, "relvit", tmp_path)
    tracking.begin(WorkItem(cell, studies=TABLE4))
    tracking.log(cell.cell_id, [{"epoch": 2, "phase": "joint", "learning_rate": 0.5}])
    tracking.finish(cell.cell_id)
    assert gather(uri, "relvit", tmp_path).read == 1
    assert_whole(uri, tmp_path)


def test_a_finished_run_that_joins_another_study_moves_without_being_read(uri, tmp_path):
    gather(uri, "relvit", tmp_path)
    tracker(uri).tag_study(WorkItem(cells()[0], studies=("figure2",)))
    gathered = gather(uri, "relvit", tmp_path)
    assert gathered.read == 0
    assert gathered.runs.set_index("tasks").loc["none", "study"] == "figure2,table4"
    moved = pd.read_parquet(tmp_path / "metrics.parquet/study=figure2,table4")
    assert set(moved["run_id"]) == {run_id_of(uri, "none")}
    assert_whole(uri, tmp_path)


def test_a_deleted_run_is_gone_and_comes_back_when_it_is_restored(uri, tmp_path):
    gather(uri, "relvit", tmp_path)
    client, run_id = MlflowClient(uri), run_id_of(uri, "none")
    client.delete_run(run_id)
    assert set(gather(uri, "relvit", tmp_path).runs["tasks"]) == {"sprel", "dist"}
    assert_whole(uri, tmp_path)
    client.restore_run(run_id)
    assert set(gather(uri, "relvit", tmp_path).runs["tasks"]) == {"none", "sprel", "dist"}
    assert_whole(uri, tmp_path)


def test_of_two_runs_of_one_cell_the_finished_one_counts(uri, tmp_path):
    client, experiment = client_and_experiment(uri)
    original = run_id_of(uri, "none")
    client.create_run(experiment, tags={"cell_id": cells()[0].cell_id, "study": "table4"}, start_time=1)
    gathered = gather(uri, "relvit", tmp_path)
    assert len(gathered.runs) == 3
    assert original in set(gathered.runs["run_id"])
    assert gathered.notes == ["1 run left out of cells that have a finished or an older run too"]


def test_files_are_closed_when_they_are_full_and_small_ones_are_joined(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILE_POINTS", 4)
    monkeypatch.setattr(module, "BATCH", 1)
    gather(uri, "relvit", tmp_path)
    sizes = [len(pd.read_parquet(path)) for path in sorted(tmp_path.glob("metrics.parquet/*/*"))]
    assert sizes == [7, 4]  # a run of seven points fills one; two of two fill the next
    monkeypatch.setattr(module, "FILE_POINTS", 100)
    tracker(uri).rebuild(WorkItem(cells()[3], studies=TABLE4), [{"epoch": 1, "phase": "joint", "learning_rate": 0.125}])
    gather(uri, "relvit", tmp_path)
    assert len(list(tmp_path.glob("metrics.parquet/*/*"))) == 1
    assert_whole(uri, tmp_path)


# The artifact


def test_runs_with_their_artifact_are_read_without_asking_for_their_metrics(uri, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Database, "points", lambda *_: pytest.fail("asked for points"))
        assert gather(uri, "relvit", tmp_path).notes == []
    assert_whole(uri, tmp_path)


def test_runs_without_it_are_read_all_the_same(uri, tmp_path):
    for tasks in ("none", "sprel"):
        MlflowClient(uri).delete_tag(run_id_of(uri, tasks), "history_points")
        artifact_of(uri, tasks).unlink()
    gathered = gather(uri, "relvit", tmp_path)
    assert (gathered.read, gathered.notes) == (3, [])
    assert_whole(uri, tmp_path)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_a_point_less(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


def with_other_columns(path: Path) -> None:
    pq.write_table(pq.read_table(path).rename_columns(["name", "step", "timestamp", "value"]), path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (Path.unlink, "No such file"),
        (half, "Parquet"),
        (with_a_point_less, "it has 6 points, the run's tag says 7"),
        (with_other_columns, "metric"),
    ],
)
def test_a_damaged_artifact_is_named_and_mlflow_asked_instead(uri, tmp_path, damage, reason):
    damage(artifact_of(uri, "none"))
    gathered = gather(uri, "relvit", tmp_path)
    (note,) = gathered.notes
    assert note.startswith("1 run with an artifact history.parquet that cannot be used, read from MLflow itself")
    assert run_id_of(uri, "none") in note
    assert reason in note
    assert_whole(uri, tmp_path)


def test_an_artifact_that_the_run_has_outgrown_is_not_believed(uri, tmp_path):
    MlflowClient(uri).log_metric(run_id_of(uri, "none"), "finetune_val_accuracy", 93.0, step=3)
    (note,) = gather(uri, "relvit", tmp_path).notes
    assert "it does not end where the run does" in note
    assert_whole(uri, tmp_path)


# Old or whole


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", ["_write", "_publish"])
def test_whoever_is_killed_leaves_the_tables_of_last_time(uri, tmp_path, monkeypatch, at):
    gather(uri, "relvit", tmp_path)
    before = told(uri)
    tracker(uri).rebuild(WorkItem(cells()[3], studies=TABLE4), [{"epoch": 1, "phase": "joint", "learning_rate": 0.125}])

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, at, die)
        gather(uri, "relvit", tmp_path)
    assert set(written(tmp_path)) == before
    assert len(pd.read_parquet(tmp_path / "runs.parquet")) == 3
    # One that had no time to tidy up.
    (tmp_path / ".gathered/v000007/metrics.parquet").mkdir(parents=True)
    assert gather(uri, "relvit", tmp_path).read == 1
    assert_whole(uri, tmp_path)
    assert not (tmp_path / ".gathered/v000007").exists()


def test_whoever_reads_meanwhile_keeps_what_it_had_opened(uri, tmp_path):
    gather(uri, "relvit", tmp_path)
    opened = (tmp_path / "metrics.parquet").resolve()
    gather(uri, "relvit", tmp_path)
    assert (tmp_path / "metrics.parquet").resolve() != opened
    assert len(pd.read_parquet(opened)) == 11


def test_files_of_an_older_version_of_this_project_are_replaced(uri, tmp_path):
    for table in ("runs", "metrics"):  # single files, once
        pd.DataFrame({"run_id": ["0"]}).to_parquet(tmp_path / f"{table}.parquet")
    assert gather(uri, "relvit", tmp_path).read == 3
    assert_whole(uri, tmp_path)


def another_version(folder: Path) -> None:
    index = folder / ".gathered/current/index.json"
    index.write_text(index.read_text().replace('"version": "', '"version": "0.'))


def half_an_index(folder: Path) -> None:
    half(folder / ".gathered/current/index.json")


def a_file_lost(folder: Path) -> None:
    next(folder.glob("metrics.parquet/*/*")).unlink()


def a_column_lost(folder: Path) -> None:
    path = next(folder.glob("metrics.parquet/*/*"))
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns("time"), path)


@pytest.mark.parametrize("change", [another_version, half_an_index, a_file_lost, a_column_lost])
def test_tables_that_cannot_be_continued_are_made_anew(uri, tmp_path, change):
    gather(uri, "relvit", tmp_path)
    change(tmp_path)
    gathered = gather(uri, "relvit", tmp_path)
    assert gathered.read == 3
    (note,) = gathered.notes
    assert note.startswith("the previous tables cannot be extended")
    assert_whole(uri, tmp_path)


def test_metrics_that_cannot_be_read_now_stay_those_of_last_time_and_are_tried_again(uri, tmp_path, monkeypatch):
    gather(uri, "relvit", tmp_path)
    before = written(tmp_path)
    tracking, cell = tracker(uri), cells()[2]
    tracking.begin(WorkItem(cell, studies=TABLE4))
    tracking.log(cell.cell_id, [{"epoch": 2, "phase": "pretrain", "learning_rate": 0.5}])

    def refuse(*_: object) -> None:
        raise GatherError("database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "points", refuse)
        gathered = gather(uri, "relvit", tmp_path)
    assert gathered.read == 0
    assert "1 run whose metrics could not be read now" in gathered.notes[0]
    assert "database is locked" in gathered.notes[0]
    assert gathered.runs.set_index("tasks").loc["dist", "status"] == "RUNNING"
    assert sorted(written(tmp_path)) == sorted(before)
    assert gather(uri, "relvit", tmp_path).read == 1
    assert_whole(uri, tmp_path)


# What cannot be gathered


def test_a_database_that_does_not_exist_is_named_and_not_made(tmp_path):
    with pytest.raises(GatherError, match="no tracking database at .*nowhere.db"):
        gather(f"sqlite:///{tmp_path}/nowhere.db", "relvit", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_that_does_not_exist_is_answered_with_those_that_do(uri, tmp_path):
    with pytest.raises(GatherError, match="no experiment 'relvitt' in .*; there are: Default, relvit"):
        gather(uri, "relvitt", tmp_path)


def test_a_deleted_experiment_is_said_to_be_deleted(uri, tmp_path):
    client, experiment = client_and_experiment(uri)
    client.delete_experiment(experiment)
    with pytest.raises(GatherError, match="'relvit' .* was deleted; mlflow experiments restore"):
        gather(uri, "relvit", tmp_path)


def test_an_experiment_without_runs_is_said_to_be_empty_and_nothing_is_overwritten(uri, tmp_path):
    gather(uri, "relvit", tmp_path)
    with pytest.raises(GatherError, match="'Default' has no runs of cells yet$"):
        gather(uri, "Default", tmp_path)
    MlflowClient(uri).create_run("0", run_name="somebody else's")
    with pytest.raises(GatherError, match="no runs of cells yet; its 1 run.* carry no tag 'cell_id'"):
        gather(uri, "Default", tmp_path)
    assert_whole(uri, tmp_path)


def test_runs_of_others_are_left_out_and_counted(uri, tmp_path):
    client, experiment = client_and_experiment(uri)
    stranger = client.create_run(experiment, run_name="somebody else's")
    client.log_batch(stranger.info.run_id, [Metric("loss", 1.0, 0, 0)])
    client.create_run(experiment, tags={"duplicate_of": run_id_of(uri, "none")})
    console = Console(record=True, width=200, file=(tmp_path / "said").open("w"))
    gathered = gather(uri, "relvit", tmp_path, console)
    assert len(gathered.runs) == 3
    assert gathered.notes == ["1 run without the tag 'cell_id' left out"]  # of a duplicate the sweep has spoken
    assert "note: 1 run without the tag 'cell_id' left out" in console.export_text()


def test_a_parameter_that_is_not_ours_or_missing_is_null(uri, tmp_path):
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        for run_id, key, value in (("none", "batch_size", "many"), ("sprel", "batch_size", None)):
            where = "WHERE key = ? AND run_uuid = ?"
            if value:
                connection.execute(f"UPDATE params SET value = ? {where}", (value, key, run_id_of(uri, run_id)))
            else:
                connection.execute(f"DELETE FROM params {where}", (key, run_id_of(uri, run_id)))
    gathered = gather(uri, "relvit", tmp_path)
    assert gathered.runs.set_index("tasks")["batch_size"].isna().to_dict() == {
        "none": True,
        "sprel": True,
        "dist": False,
    }
    assert gathered.notes == [
        "a run's parameter was not written by this project and was left out: batch_size must be of type int, not 'many'"
    ]


def set_schema(uri: str, version: str | None) -> None:
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as connection:
        connection.execute("DELETE FROM alembic_version")
        if version:
            connection.execute("INSERT INTO alembic_version VALUES (?)", (version,))


def test_a_database_of_an_older_schema_is_left_alone_and_the_command_that_mends_it_given(uri, tmp_path):
    database = Path(uri.removeprefix("sqlite:///"))
    set_schema(uri, "451aebb31d03")  # MLflow 1.0
    before = database.read_bytes()
    with pytest.raises(GatherError, match=r"schema of an older MLflow \(451aebb31d03; .*run: mlflow db upgrade sqlite"):
        gather(uri, "relvit", tmp_path)
    assert database.read_bytes() == before


def test_a_database_of_a_newer_schema_asks_for_a_newer_mlflow(uri, tmp_path):
    set_schema(uri, "ffffffffffff")
    with pytest.raises(GatherError, match=r"newer MLflow \(schema ffffffffffff\).*pip install --upgrade mlflow"):
        gather(uri, "relvit", tmp_path)


def test_a_file_that_is_no_tracking_database_is_called_that(uri, tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE shopping (item)")
    with pytest.raises(GatherError, match="other.db is no tracking database of MLflow"):
        gather(f"sqlite:///{tmp_path}/other.db", "relvit", tmp_path)
    (tmp_path / "text.db").write_text("not a database at all" * 100)
    with pytest.raises(GatherError, match="text.db cannot be read: .*not a database"):
        gather(f"sqlite:///{tmp_path}/text.db", "relvit", tmp_path)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("http://127.0.0.1:9", "MLflow at http://127.0.0.1:9 cannot be read: .*failed"),
        ("htp://localhost", "MLflow at htp://localhost cannot be read: .*unsupported URI"),
        ("mlruns", "'mlruns' is not a tracking URI; a database or a server is named like sqlite:///PATH"),
        ("", "'' is not a tracking URI"),
        ("sqlite://mlflow.db", "'sqlite://mlflow.db' names no file; a database is named like sqlite:///PATH"),
        ("http://me:secret@127.0.0.1:9", r"MLflow at http://me:\*\*\*@127.0.0.1:9 cannot be read"),
    ],
)
def test_a_wrong_address_is_a_sentence(tmp_path, wrong, sentence):
    with pytest.raises(GatherError, match=sentence) as raised:
        gather(wrong, "relvit", tmp_path)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_database_given_as_a_plain_path_is_told_how_to_write_it(uri, tmp_path):
    path = uri.removeprefix("sqlite:///")
    with pytest.raises(GatherError, match=f"named like sqlite:///{path}"):
        gather(path, "relvit", tmp_path)


def test_the_metrics_schema_is_what_is_promised():
    """What others read by name; changing it needs another _VERSION."""
    assert METRICS_SCHEMA.names == ["run_id", "cell_id", "metric", "step", "value", "time"]


def test_a_copy_of_the_outputs_that_followed_the_links_is_brought_up_to_date(uri, tmp_path):
    gather(uri, "relvit", tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    assert not (tmp_path / "copy/runs.parquet").is_symlink()
    gather(uri, "relvit", tmp_path / "copy")
    assert_whole(uri, tmp_path / "copy")
    assert_whole(uri, tmp_path / "out")


def test_gathered_tables_are_read_again_without_their_store(uri, tmp_path):
    before = gather(uri, "relvit", tmp_path / "analysis")
    shutil.rmtree(tmp_path / "store")
    again = read_gathered(tmp_path / "analysis")
    pd.testing.assert_frame_equal(again.runs[list(before.runs.columns)], before.runs)
    pd.testing.assert_frame_equal(again.metrics, before.metrics)
    assert again.digests == before.digests


def test_where_nothing_was_gathered_that_is_said(tmp_path):
    with pytest.raises(GatherError, match="holds no gathered runs; gather them from their store first"):
        read_gathered(tmp_path)
