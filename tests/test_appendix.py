"""What stands behind a table: differences, effects and verdicts, with dashes for what cannot be said."""

import pandas as pd
import pytest
from helpers.paper_runs import entries, line, planned, published_as_runs, row

from analysis.output.typeset import Table
from analysis.paper.appendix import appendix
from analysis.paper.published import published
from analysis.paper.registry import TABLES
from analysis.paper.verdicts import paper_against_itself
from relvit.cell import task_combinations


def of(study: str, rows: list[dict]) -> dict[str, Table]:
    return {table.name: table for table in appendix(entries(study, rows))}


@pytest.fixture
def additive(tmp_path) -> list[dict]:
    """Each task adds its own amount and nothing else: 1, 2, 3 and 4 points over 80."""
    cells, gains = planned(tmp_path), {"sprel": 1.0, "dist": 2.0, "ang": 3.0, "abspos": 4.0}
    return [
        row(cells[tasks, 0], accuracy=80.0 + sum(gains.get(task, 0.0) for task in tasks.split("+")))
        for tasks in task_combinations()
    ]


def test_one_seed_gives_differences_and_effects_without_intervals(additive):
    made = of("table4", additive)
    assert line(made["table4-differences"], "sprel+abspos") == ["SpRel + AbsPos", "+5.00", "1", "2 or more"]
    effects = made["table4-effects"]
    # 80 + 10 x 8 / 15 = 85.33 is the mean of the 15: each task is on in 8 of them.
    assert line(effects, "any-any") == ["Any task against none", "", "+5.33", "1", ""]
    assert line(effects, "main-abspos") == ["", "AbsPos", "+4.00", "1", ""]
    assert line(effects, "main-sprel:dist") == ["", "SpRel × Dist", "+0.00", "1", ""]
    # Of 3 points less the quarter of 2.5, the average single task's gain. One seed cannot tell the whole from nothing.
    assert line(effects, "shapley-ang") == ["", "Ang", "+2.38", "1", "–"]
    assert "One seed: nothing is tested" in made["table4-differences"].caption


def test_a_number_names_every_run_that_it_rests_on(additive):
    made = of("table4", additive)
    assert len(made["table4-effects"].entry("main-abspos", "effect").runs) == 16
    assert len(made["table4-effects"].entry("added-ang", "effect").runs) == 2
    assert len(made["table4-differences"].entry("dist", "difference").runs) == 2
    # SpRel against each of the three other single tasks.
    assert len(made["table4-verdicts"].entry("best-single-task", "verdict").runs) == 4


def test_two_seeds_give_intervals_and_the_seeds_that_would_decide(tmp_path):
    cells = planned(tmp_path, seeds=(0, 1))
    rows = [row(cells["none", seed], accuracy=80.0) for seed in (0, 1)]
    rows += [row(cells["dist", seed], accuracy=value) for seed, value in enumerate((81.0, 83.0))]
    # Differences 1 and 3: mean 2, deviation sqrt(2), t(0.975, 1) = 12.706, half width 12.706 * sqrt(2) / sqrt(2).
    # t = 2 / (sqrt(2) / sqrt(2)) = 2; with one degree of freedom p = 1 - 2 atan(2) / pi = 0.295.
    # Power by the noncentral t distribution: 0.789 with 6 seeds, 0.874 with 7.
    assert line(of("table4", rows)["table4-differences"], "dist") == [
        "Dist",
        "+2.00",
        "[-10.71, +14.71]",
        "0.295",
        "0.295",
        "2",
        "7",
    ]


def test_without_the_supervised_cell_there_are_no_differences_and_the_rest_is_there(tmp_path):
    made = of("table4", [row(planned(tmp_path)["dist", 0], accuracy=80.0)])
    assert set(made) == {"table4-published", "table4-verdicts", "table4-models"}


def test_missing_cells_of_the_design_are_counted(tmp_path):
    cells = planned(tmp_path)
    rows = [row(cells[tasks, 0], accuracy=80.0) for tasks in ("sprel+dist+ang+abspos", "dist+ang+abspos")]
    effects = of("table4", rows)["table4-effects"]
    assert "14 runs of the design have no result" in effects.caption
    assert line(effects, "main-sprel")[2] == "–"
    assert line(effects, "added-sprel")[2] == "+0.00"


# The paper against itself


def test_the_papers_numbers_as_runs_are_one_seeds_and_those_of_another_split_or_recipe_say_so(tmp_path):
    for study in ("table2", "table3", "table4"):
        made = of(study, published_as_runs(tmp_path, study))[f"{study}-published"]
        assert len(made.rows) == len(published(study))
        assert made.texts("published") == made.texts("ours")
        undecided, elsewhere = "one seed: +0.00, undecided", "not comparable (one seed: +0.00, undecided)"
        counts = pd.Series(made.texts("verdict")).value_counts().to_dict()
        # Of Flower-102 the paper's two in Table 2 and four in Table 3, where 16 more are Liu et al.'s.
        others = {"table2": 2, "table3": 4 + 16, "table4": 0}[study]
        assert counts == {undecided: len(made.rows) - others} | ({elsewhere: others} if others else {})
        reasons = [note for _, note in made.notes]
        assert ("published on the 1,020 images of the val split" in reasons) == (study != "table4")
        assert any("Liu et al." in note for note in reasons) == (study == "table3")
        assert ("its author later got 86.17" in made.caption) == (study == "table3")


def test_the_papers_numbers_as_runs_decide_nothing_and_as_printed_what_they_say(tmp_path):
    # As runs they are one seed, which decides nothing; the last column takes them as they are printed.
    for study in ("table2", "table3", "table4"):
        made = of(study, published_as_runs(tmp_path, study))[f"{study}-verdicts"]
        own = paper_against_itself(TABLES[study])["verdict"]
        stated = {"joint-gains", "variants-gains"}  # on Flower-102, of other images than ours
        for claim, verdict in made.texts("verdict").items():
            here = "one seed: undecided"
            assert verdict == (f"not comparable (here: {here})" if claim in stated else here)
            assert made.entry(claim, "paper").text.startswith(own[claim])
            assert not made.entry(claim, "verdict").bold


def test_verdicts_that_were_tested_are_bold_and_the_rule_with_its_margins_is_in_the_captions(tmp_path):
    cells = planned(tmp_path, recipe="paper", seeds=(0, 1, 2))
    paper = published("table4").pivot(index="tasks", columns="metric", values="value")
    # Means are the paper's; every seed is off as a whole, and Dist's a little more, so that gains have a spread too.
    rows = [
        row(cell, **(results.dropna() + (0.02 + 0.01 * (tasks == "dist")) * (seed - 1)))
        for (tasks, seed), cell in cells.items()
        for results in [paper.loc[tasks]]
    ]
    made = of("table4", rows)
    assert made["table4-verdicts"].entry("single-tasks-gain", "verdict").text == "contradicted"
    assert made["table4-verdicts"].entry("single-tasks-gain", "verdict").bold
    assert set(made["table4-published"].texts("verdict").values()) == {"reproduced"}
    caption = made["table4-published"].caption
    assert "one draw, from a test set of known size (95 % prediction interval); within noise where neither" in caption
    # Half of what Table 4 spreads over: 15.24 to 16.07, 12.49 to 13.08, 10.28 to 10.54, 48.53 to 48.98.
    of_tasks = "SpRel (Acc) 0.225, Dist (MSE) 0.13, Ang (MSE) 0.295, AbsPos (Acc) 0.415"
    assert f"0.5 points of accuracy; of a task's metric half the spread of its published column ({of_tasks})" in caption
    assert "One seed" not in caption


def test_a_number_of_one_seed_beside_others_of_several_says_so(tmp_path):
    cells = planned(tmp_path, recipe="paper", seeds=(0, 1, 2))
    rows = [row(cells["dist", seed], accuracy=89.2 + 0.1 * seed) for seed in (0, 1, 2)]
    made = of("table4", [*rows, row(cells["sprel", 0], accuracy=89.0)])["table4-published"]
    verdicts = made.texts("verdict")
    assert (verdicts["dist accuracy"], verdicts["sprel accuracy"]) == ("reproduced", "one seed: -0.02, undecided")
    assert "One seed: how far it is off; nothing is tested" in made.caption


def test_it_is_said_where_the_paper_contradicts_itself(tmp_path):
    made = of("table4", published_as_runs(tmp_path, "table4"))["table4-verdicts"]
    assert made.entry("best-single-task", "paper").text == (
        "contradicted: below SpRel against Dist: -0.25 (n = 1); SpRel against AbsPos: -0.37 (n = 1)"
    )
    assert made.entry("best-combination", "paper").text == "holds"


def test_what_is_not_comparable_says_so_and_why(additive):
    made = of("table4", additive)
    assert (
        made["table4-published"].entry("sprel accuracy", "verdict").text
        == "not comparable (one seed: -8.02, undecided)"
    )
    assert "data set digits is not in the paper's Table 4" in made["table4-published"].caption
    verdict = made["table4-verdicts"].entry("best-single-task", "verdict").text
    assert verdict == "not comparable (here: one seed: undecided)"


def test_a_study_of_ones_own_decides_no_sentence_of_the_paper(additive):
    assert set(of("heads", additive)) == {"heads-differences", "heads-models", "heads-effects"}


def test_a_study_of_ones_own_has_its_differences_to_the_supervised_cell(additive):
    """Those of Table 4, where its cells are Table 4's."""
    own, table4 = (of(name, additive)[f"{name}-differences"] for name in ("heads", "table4"))
    assert {row.key: row.entries[1].text for row in own.rows} == {row.key: row.entries[1].text for row in table4.rows}
    assert own.title == "Differences to the supervised cell"


def test_each_entry_of_several_settings_has_the_supervised_one_of_its_own(additive):
    more = [
        each | {"epochs": 40, "run_id": each["run_id"] + "-long", "test_accuracy": each["test_accuracy"] + 5}
        for each in additive
    ]
    both = [each | {"study": "heads"} for each in [*additive, *more] if each["tasks"] in ("none", "sprel")]
    made = of("heads", both)["heads-differences"]
    short, long = (row.entries[1].text for row in made.rows)
    assert [row.key for row in made.rows] == ["sprel 20", "sprel 40"]
    assert short == long == of("table4", additive)["table4-differences"].entry("sprel", "difference").text


def test_without_a_supervised_cell_a_study_of_one_field_is_compared_with_its_first(additive):
    low = [each for each in additive if each["tasks"] == "sprel"]
    three = [each | {"pair_head": "low_rank", "run_id": "low", "test_accuracy": 50.0} for each in low]
    made = of("heads", [*low, *three])["heads-differences"]
    assert made.title == "Differences to the first cell"
    assert [row.entries[1].text for row in made.rows] == [f"{50.0 - low[0]['test_accuracy']:+.2f}"]


def test_a_study_of_all_combinations_of_its_tasks_has_their_effects(additive):
    """Those of Table 4 where they are the paper's four; of three tasks no other cell has a part in them."""
    own, table4 = (of(name, additive)[f"{name}-effects"] for name in ("heads", "table4"))
    assert [[entry.text for entry in row.entries] for row in own.rows] == [
        [entry.text for entry in row.entries] for row in table4.rows
    ]
    three = [cell for cell in additive if "abspos" not in cell["tasks"]]
    rows = of("heads", three)["heads-effects"].rows
    assert [row.key for row in rows if row.key.startswith("main-")] == [
        *("main-sprel", "main-dist", "main-ang", "main-sprel:dist", "main-sprel:ang", "main-dist:ang")
    ]
    assert "heads-effects" not in of("heads", three[:-1])  # a cell was never begun


def test_an_entry_without_a_supervised_one_of_its_own_data_set_and_backbone_is_compared_with_none(additive):
    some = [each for each in additive if each["tasks"] in ("none", "sprel")]
    elsewhere = [
        each | {name: value, "pretrain_dataset": value if name == "dataset" else "digits", "run_id": value}
        for each in some[1:]
        for name, value in (("dataset", "svhn"), ("backbone", "vit_xs8"))
    ]
    made = of("heads", [*some, *elsewhere])["heads-differences"]
    assert [row.key for row in made.rows] == ["digits vit_xs4 sprel"]


def test_data_sets_are_not_compared_with_each_other(additive):
    (one,) = [each for each in additive if each["tasks"] == "sprel"]
    other = one | {"dataset": "svhn", "pretrain_dataset": "svhn", "run_id": "svhn"}
    assert "heads-differences" not in of("heads", [one, other])


def test_pre_trainings_alone_are_compared_by_k_nn(additive):
    gains = {"none": 60.0, "sprel": 72.5}
    some = [each for each in additive if each["tasks"] in gains]
    alone = [
        each | {"protocol": "pretrain", "run_id": f"knn-{each['tasks']}", "test_knn_accuracy": gains[each["tasks"]]}
        for each in some
    ]
    for each in alone:
        del each["test_accuracy"]
    made = of("heads", [*some, *alone])["heads-differences"]
    assert {row.key: row.entries[1].text for row in made.rows} == {
        "pretrain_finetune sprel": "+1.00",
        "pretrain sprel": "+12.50",
    }
    assert "test accuracy (of a pre-training alone k-NN's)" in made.caption


def test_effects_name_the_split_that_they_are_of(additive):
    assert "on test accuracy" in of("table4", additive)["table4-effects"].caption
    assert "on val accuracy" in of("table4", [each | {"split": "val"} for each in additive])["table4-effects"].caption


@pytest.mark.parametrize("study", ["table4", "figure2"])
def test_results_that_are_no_numbers_are_dashes_and_counted_in_a_sentence(tmp_path, study):
    cells = planned(tmp_path, study=study, seeds=(0, 1, 2)) if study == "table4" else planned(tmp_path, study=study)
    values = [float("nan"), float("inf"), None]
    rows = [row(cell, accuracy=values[number % 3]) | {"study": study} for number, cell in enumerate(cells.values())]
    found = entries(study, rows)
    table = found.of.layout(found, study)
    assert set(table.texts("accuracy").values()) == {"–"}
    assert f" {len(rows)} finished runs without a test accuracy: not counted." in table.caption
    for behind in appendix(found):
        for each in behind.rows:
            assert not {"nan", "inf"} & {entry.text for entry in each.entries}
    judged = of(study, rows)[f"{study}-verdicts"]
    assert "No finished run has a result to compare" in judged.rows[0].entries[2].text
    if study == "table4":
        rows[0]["test_accuracy"] = 80.0
        verdicts = set(of(study, rows)["table4-published"].texts("verdict").values())
        assert verdicts == {"no result", "not comparable (one seed: -5.38, undecided)"}


def test_seeds_that_all_reach_100_have_their_number_and_no_difference_is_tested(tmp_path):
    cells = planned(tmp_path, seeds=(0, 1, 2))
    rows = [row(cell, accuracy=100.0) for cell in cells.values()]
    found = entries("table4", rows)
    table = found.of.layout(found, "table4")
    assert set(table.texts("accuracy").values()) == {"100.00 ± 0.00"}
    assert set(table.texts("n").values()) == {"3/3"}
    made = {each.name: each for each in appendix(found)}
    assert line(made["table4-differences"], "sprel")[:2] == ["SpRel", "+0.00"]
    # All seeds agree: a published number is then judged as if they scattered by one of its 10,000 images.
    assert "above" in made["table4-published"].entry("sprel accuracy", "verdict").text
    assert made["table4-published"].entry("sprel accuracy", "n").text == "3"
