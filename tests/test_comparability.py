"""In what runs of one table differ, one reason each."""

import pandas as pd
import pytest
from helpers.paper_runs import planned, row

from analysis.runs.comparability import conform, deviations, of_recipe
from relvit.cell import FIELDS
from sweeps.planning.plan import Request, plan_cells


def reasons(rows: list[dict], varying=()) -> dict[str, tuple[str, ...]]:
    found = deviations(conform(pd.DataFrame(rows)), varying)
    names = {each["run_id"]: each["tasks"] for each in rows}
    return {names[run]: why for run, why in found.items()}


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    cells = planned(tmp_path)
    return [row(cells[tasks, 0], accuracy=80.0) for tasks in ("none", "sprel", "dist", "ang")]


def test_runs_of_one_sweep_do_not_differ(rows):
    # The supervised run has other values where its fields cannot act: that is no difference.
    assert reasons(rows) == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"epochs": 30}, "epochs 30 instead of 20"),
        ({"pretrain_epochs": 5}, "pretrain_epochs 5 instead of 20"),
        ({"weight_decay": 0.1}, "weight_decay 0.1 instead of 0"),
        ({"train_images": 500}, "train_images 500 instead of 0"),
        ({"precision": "bf16"}, "precision bf16 instead of fp32"),
        ({"selection": "last"}, "selection last instead of best_val"),
        # Two uncommitted edits of one commit, and a job whose commit nobody knows.
        ({"source_digest": "bbbb"}, "code with sources bbbb (commit 0123456789) instead of aaaa"),
        ({"source_digest": "bbbb", "git_commit": "unknown"}, "code with sources bbbb instead of aaaa"),
        ({"source_digest": None, "git_commit": "fedcba9876543210"}, "code of commit fedcba9876 instead of 0123456789"),
        ({"deviation": "micro_batches=4"}, "micro_batches=4"),
        ({"data_fingerprint": "b"}, "other images under the data set's name"),
    ],
)
def test_each_difference_is_a_reason(rows, change, reason):
    rows = [{**each, "data_fingerprint": "a", "source_digest": "aaaa"} for each in rows]
    rows[2] |= change
    assert reasons(rows) == {"dist": (reason,)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"git_commit": "fedcba9876543210"}, "code of commit fedcba9876 instead of 0123456789"),
        ({"git_dirty": "true"}, "code of commit 0123456789+changes instead of 0123456789"),
    ],
)
def test_a_commit_is_a_difference_where_the_sources_are_not_known_to_be_the_same(rows, change, reason):
    rows[2] |= change
    assert reasons(rows) == {"dist": (reason,)}
    assert reasons([{**each, "source_digest": "aaaa"} for each in rows]) == {}


def test_what_most_runs_have_is_right_and_of_two_the_newer(rows):
    rows[1]["epochs"] = rows[2]["epochs"] = rows[3]["epochs"] = 30
    assert reasons(rows) == {"none": ("epochs 20 instead of 30",)}
    two = [{**rows[0], "start_time": pd.Timestamp(2, unit="s", tz="UTC")}, rows[1]]
    assert reasons(two) == {"sprel": ("epochs 30 instead of 20",)}


def test_a_deviation_counts_even_where_all_have_it(rows):
    assert set(reasons([{**each, "deviation": "micro_batches=2"} for each in rows])) == {"none", "sprel", "dist", "ang"}
    assert reasons([{**each, "deviation": ""} for each in rows]) == {}


def test_unfinished_runs_and_unknown_values_are_not_held_against_anything(rows):
    rows[1] |= {"epochs": 30, "status": "FAILED"}
    rows[2] |= {"epochs": None, "git_commit": None, "git_dirty": None}
    assert reasons(rows) == {}


def test_fields_that_vary_by_design_are_not_compared(tmp_path):
    cells = plan_cells(Request(study="table3", recipe="paper", data_root=tmp_path))
    rows = [row(cell, accuracy=80.0) for cell in cells]
    # Section 3.1: another batch size, no patch augmentation and, at 224 pixels, another crop.
    assert reasons(rows, ("dataset", "backbone")) == {}
    odd = next(each for each in rows if each["backbone"] == "swin_t" and each["tasks"] == "drloc")
    odd["batch_size"] = 16
    assert reasons(rows, ("dataset", "backbone")) == {"drloc": ("batch_size 16 instead of 64",)}


def test_recipe_and_code_are_told_apart():
    assert of_recipe(("epochs 30 instead of 20", "code of commit a instead of b", "micro_batches=4")) == (
        "epochs 30 instead of 20",
    )


def test_an_older_schema_is_filled_with_nulls():
    runs = conform(pd.DataFrame({"tasks": ["none"], "status": ["FINISHED"]}))
    assert set(FIELDS) <= set(runs.columns)
    assert runs["epochs"].isna().all()
    assert list(runs["run_id"]) == ["run-0"]
    assert conform(conform(runs)).equals(conform(runs))
    assert deviations(runs) == {}
