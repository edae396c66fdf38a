"""Tuned beside untuned: which runs are compared, by hand-made runs of three cells."""

import pandas as pd
import pytest
from helpers.searches import base
from rich.console import Console

from analysis import make_tables
from analysis.output.typeset import Table
from analysis.paper import tuned
from analysis.paper.tuned import TUNED, UNTUNED
from analysis.runs.comparability import NotComparable, conform
from analysis.runs.gather import Gathered
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


def pairs(runs: pd.DataFrame, study: str) -> pd.DataFrame:
    return tuned.pairs(conform(runs), study)


def beside(runs: pd.DataFrame, study: str) -> list[Table]:
    return tuned.beside(conform(runs), study)


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
        # One seed of sprel, which no test can tell from the other cell.
        assert [table.entry(row, TUNED).bold for row in ("none", "sprel")] == [True, True]
        shown = {run for row in table.rows for entry in row.entries for run in entry.runs}
        assert shown == {"r0", "r1", "r2", "r4", "r5", "r6"}
        assert table.entry("none", "difference").runs == ("r4", "r5", "r0", "r1")
        assert "27 trials, tpe with asha, for each cell" in table.caption


def three_seeds(none=(80.0, 82.0, 81.0), sprel=(85.0, 87.5, 86.0), dist=(85.5, 86.5, 86.3), gain=1.0, **fields):
    """Three seeds of three cells, untuned and tuned; the tuned ones gain alike, but for a tenth in the last seed."""
    rows = [
        run(study, value + more + 0.1 * (more and seed == 2), tasks, seed, **changed)
        for study, more, changed in (("table4", 0, {}), ("table4-tuned", gain, {"learning_rate": 0.003}))
        for tasks, values in (("none", none), ("sprel", sprel), ("dist", dist))
        for seed, value in enumerate(values)
    ]
    runs = pd.DataFrame(rows).assign(git_commit="0123456789", git_dirty="false", **fields)
    return runs.assign(run_id=[f"r{number}" for number in range(len(runs))])


def test_bold_is_what_was_not_shown_to_be_worse_and_the_difference_where_it_was_shown():
    (table,) = beside(three_seeds(), "table4")
    for column in (UNTUNED, TUNED):
        # sprel 86.17, dist 86.10: the highest mean alone is no proof.
        assert [table.entry(row, column).bold for row in ("none", "sprel", "dist")] == [False, True, True]
    # Differences 1, 1, 1.1: mean 1.0333, deviation 0.0577; 4.3027 * 0.0577 / sqrt(3) = 0.1434. t = 31, p = 0.00104.
    difference = table.entry("none", "difference")
    assert (difference.text, difference.below) == ("+1.03", "[+0.89, +1.18]")
    assert difference.numbers["p_family"] == pytest.approx(3 * 0.00104, rel=0.01)
    assert difference.bold
    assert table.entry("none", UNTUNED).below == "[78.52, 83.48]"  # 81 and 4.3027 * 1 / sqrt(3) = 2.48 either way
    assert "bold: the best, with all that were not shown to be worse than another" in table.caption
    (alike,) = beside(three_seeds(none=(85.4, 86.9, 86.1)), "table4")
    assert "Nothing was shown to be worse, so all is bold: Untuned, Tuned." in alike.caption


def test_runs_that_differ_in_more_than_the_search_was_free_to_change_have_a_footnote():
    (table,) = beside(three_seeds(), "table4")
    assert table.notes == ()
    runs = three_seeds()
    runs.loc[runs["run_id"] == "r10", "deviation"] = "micro_batches=4"  # a tuned run of none
    runs.loc[runs["run_id"] == "r0", "git_commit"] = "fedcba9876"
    (table,) = beside(runs, "table4")
    notes = [note for _, note in table.notes]
    assert notes[0] == "code of commit fedcba9876 instead of 0123456789 (seed 0)"
    assert notes[1] == "micro_batches=4 (seed 1)"
    assert [bool(table.entry("none", name).marks) for name in (UNTUNED, TUNED, "difference", "n")] == [
        *[True] * 3,
        False,
    ]


def test_strict_refuses_a_tuned_run_that_cannot_be_compared_though_the_study_s_own_table_has_none(tmp_path):
    runs = three_seeds()
    runs.loc[runs["run_id"] == "r10", "deviation"] = "micro_batches=4"
    options = make_tables.parse_arguments(["--study", "table4", "--strict", "--out", str(tmp_path / "out")])
    with pytest.raises(NotComparable, match="table4-tuned-beside: micro_batches=4"):
        make_tables.make(options, Console(), Gathered(runs, tmp_path, len(runs), []), ["markdown"])
    assert not (tmp_path / "out").exists()


def test_of_two_tuned_runs_of_one_cell_and_seed_the_newer_counts():
    runs = three_seeds().assign(start_time=pd.Timestamp(0, unit="s", tz="UTC"))
    again = runs[runs["run_id"] == "r9"].assign(
        run_id="again", test_accuracy=99.0, learning_rate=0.01, start_time=pd.Timestamp(9, unit="s", tz="UTC")
    )
    found = pairs(pd.concat([again, runs]), "table4").set_index(["tasks", "seed"])
    assert len(found) == 9
    assert found.loc[("none", 0), ["run_id", TUNED]].tolist() == ["again", 99.0]
    assert len(beside(pd.concat([again, runs]), "table4")) == 1


def test_data_sets_have_a_best_each():
    digits = three_seeds()
    svhn = three_seeds(none=(60.0, 62.0, 61.0), sprel=(65.0, 67.5, 66.0), dist=(55.5, 56.5, 56.3)).assign(
        dataset="svhn", pretrain_dataset="svhn", run_id=[f"s{number}" for number in range(18)]
    )
    (table,) = beside(pd.concat([digits, svhn]), "table4")
    bold = [row.key for row in table.rows if table.entry(row.key, TUNED).bold]
    assert bold == ["digits/sprel", "digits/dist", "svhn/sprel"]


def test_tuned_runs_without_any_untuned_have_dashes_beside_them():
    runs = three_seeds()
    (table,) = beside(runs[runs["study"] == "table4-tuned"], "table4")
    assert set(table.texts(UNTUNED).values()) == set(table.texts("difference").values()) == {"–"}
    assert table.texts("n") == {"none": "0/3", "sprel": "0/3", "dist": "0/3"}
    assert len({run for row in table.rows for entry in row.entries for run in entry.runs}) == 9


def test_without_tuned_runs_there_is_no_such_table():
    plain = RUNS[RUNS["study"] == "table4"]
    assert beside(plain, "table4") == []
    assert beside(plain.drop(columns="tuned_by"), "table4") == []
