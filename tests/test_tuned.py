"""Tuned beside untuned: which runs are compared, by hand-made runs of three cells."""

import pandas as pd
from test_spaces import base

from analysis.tuned import TUNED, UNTUNED, beside, pairs
from relvit.cell import make_cell


def run(study, accuracy, tasks, seed, status="FINISHED", **fields):
    cell = make_cell(**base(tasks, seed=seed, **fields))
    tuned = {"tuned_by": f"table4/{tasks}", "tuning_budget": "27 trials, tpe with asha; spent 27 trials, 80 epochs"}
    tags = {**tuned, "search_space": "learning_rate, weight_decay"} if study.endswith("-tuned") else {}
    return {"status": status, "study": study, "test_accuracy": accuracy, **cell.as_dict(), **tags}


RUNS = pd.DataFrame(
    [
        run("table4", 80.0, "none", 0),
        run("table4", 82.0, "none", 1),
        run("table4", 85.0, "sprel", 0),
        run("table4", 10.0, "none", 0, epochs=3),  # other epochs, which the search did not choose: not comparable
        run("table4-tuned", 84.0, "none", 0, learning_rate=0.003),
        run("table4-tuned", 85.0, "none", 1, learning_rate=0.003),
        run("table4-tuned", 88.0, "sprel", 0, weight_decay=0.1),
        run("table4-tuned", 90.0, "sprel", 1, weight_decay=0.1),  # no untuned run of this seed
        # A search's own trials: neither finished nor of a table's study.
        run("table4/none-trials", None, "none", 1000, status="KILLED"),
        run("table4-tuned", None, "abspos", 0, status="KILLED"),
    ]
)
RUNS["run_id"] = [f"r{number}" for number in range(len(RUNS))]


def test_runs_are_paired_by_seed_and_by_all_that_the_search_left_alone():
    found = pairs(RUNS, "table4").set_index(["tasks", "seed"])
    assert found.index.tolist() == [("none", 0), ("none", 1), ("sprel", 0), ("sprel", 1)]
    assert found["tuned"].tolist() == [84.0, 85.0, 88.0, 90.0]
    assert found["untuned"].tolist()[:3] == [80.0, 82.0, 85.0]
    assert pd.isna(found["untuned"].iloc[3])


def test_means_and_differences_are_over_the_seeds_of_both_and_the_budget_is_in_the_caption():
    for study in ("table4", "table4-tuned"):
        (table,) = beside(RUNS, study)
        assert table.name == "table4-tuned-beside"
        assert table.texts(UNTUNED) == {"none": "81.00 ± 1.41", "sprel": "85.00"}
        assert table.texts(TUNED) == {"none": "84.50 ± 0.71", "sprel": "88.00"}
        assert table.texts("difference") == {"none": "+3.50", "sprel": "+3.00"}
        assert table.texts("n") == {"none": "2/2", "sprel": "1/2"}
        assert [table.entry(row, TUNED).bold for row in ("none", "sprel")] == [False, True]
        assert table.entry("none", "difference").runs == ("r4", "r5", "r0", "r1")
        assert "27 trials, tpe with asha, for each cell" in table.caption


def test_without_tuned_runs_there_is_no_such_table():
    plain = RUNS[RUNS["study"] == "table4"]
    assert beside(plain, "table4") == []
    assert beside(plain.drop(columns="tuned_by"), "table4") == []
