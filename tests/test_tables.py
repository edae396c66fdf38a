"""The paper's tables, from runs made up so that every number can be worked out by hand."""

import numpy as np
import pandas as pd
import pytest
from helpers.paper_runs import entries, line, planned, published_as_runs, row
from helpers.paper_runs import table as layout

from analysis.output.typeset import Table
from analysis.paper.appendix import differences
from analysis.paper.numbers import listed
from analysis.paper.published import published
from analysis.paper.registry import tables_of
from analysis.paper.settings import Setting, settings
from analysis.paper.table1 import vit_parameters
from analysis.runs.comparability import conform
from relvit.cell import BACKBONES, PAPER_TASKS, task_combinations
from sweeps.planning.plan import Request, plan_cells

ALL = "+".join(PAPER_TASKS)


def only_setting(rows: list[dict]) -> Setting:
    (setting,) = settings(conform(pd.DataFrame(rows)))
    return setting


def marked(table: Table, column: str, how: str) -> list[str]:
    """The rows that are bold, or underlined, in a column."""
    return [row.key for row in table.rows if getattr(table.entry(row.key, column), how)]


# The paper's numbers as ours


def test_the_papers_table_4_as_runs_gives_the_papers_table_4(tmp_path):
    table = layout("table4", (published_as_runs(tmp_path, "table4")))
    # Three rows as the paper prints them: supervised, SpRel + AbsPos, all four.
    assert line(table, "none") == ["Supervised", "×", "×", "×", "×", "85.38", "1/1", "×", "×", "×", "×", "85.38"]
    best = ["15.73", "×", "×", "48.53", "90.13"]
    assert line(table, "sprel+abspos") == ["RelViT", *best, "1/1", *best]
    everything = ["16.07", "12.54", "10.39", "48.74", "90.06"]
    assert line(table, ALL) == ["RelViT", *everything, "1/1", *everything]
    for metric in ("accuracy", "sprel_accuracy", "dist_mse_x100", "ang_mse_x100", "abspos_accuracy"):
        assert table.texts(metric) == table.texts(f"paper_{metric}")
    assert len(table.rows) == 16


def test_every_published_number_of_table_4_is_in_it(tmp_path):
    table = layout("table4", (published_as_runs(tmp_path, "table4")))
    for entry in published("table4").to_dict("records"):
        assert table.entry(entry["tasks"], entry["metric"]).text == f"{entry['value']:.2f}"


def test_the_best_of_each_column_of_table_4_is_bold_and_nothing_is_underlined(tmp_path):
    table = layout("table4", (published_as_runs(tmp_path, "table4")))
    best = {
        "abspos_accuracy": [ALL],
        "ang_mse_x100": ["sprel+dist+ang"],
        "dist_mse_x100": ["sprel+dist+ang"],
        "sprel_accuracy": ["sprel+dist+ang"],
        "accuracy": ["sprel+abspos"],
    }
    for metric, rows in best.items():
        assert marked(table, metric, "bold") == marked(table, f"paper_{metric}", "bold") == rows
    assert not any(entry.underline for each in table.rows for entry in each.entries)


# As the text of the paper prints them.
TABLE2 = {
    "cifar10": ["CIFAR-10", "ViT-S/4", "85.38", "90.13", "+4.75 ↑"],
    "svhn": ["SVHN", "ViT-S/4", "96.07", "97.15", "+1.08 ↑"],
    "cifar100": ["CIFAR-100", "ViT-S/4", "58.01", "64.46", "+6.45 ↑"],
    "flowers102": ["Flower-102", "ViT-S/32", "41.67", "45.49", "+3.82 ↑"],
    "tiny_imagenet": ["TinyImagenet", "ViT-S/8", "42.09", "52.10", "+10.01 ↑"],
}


def test_the_papers_table_2_as_runs_gives_the_papers_table_2(tmp_path):
    table = layout("table2", (published_as_runs(tmp_path, "table2")))
    assert {row.key: line(table, row.key) for row in table.rows} == {
        key: [*texts, *texts[2:]] for key, texts in TABLE2.items()
    }
    assert marked(table, "relvit", "bold") == list(TABLE2)
    assert marked(table, "supervised", "bold") == []
    assert not any(entry.underline for each in table.rows for entry in each.entries)


# By line, for CIFAR-10, SVHN, CIFAR-100 and Flower-102, with two decimals throughout (the paper prints 71.6 and +3.8).
TABLE3 = {
    "vit-backbone": ["ViT-S/4", "ViT-S/4", "ViT-S/4", "ViT-S/32"],
    "vit-supervised": ["85.18", "96.02", "58.11", "40.59"],
    "vit-relvit": ["88.98", "95.86", "62.04", "44.61"],
    "vit-improvement": ["+3.80 ↑", "-0.16 ↓", "+3.93 ↑", "+4.02 ↑"],
    "swin-backbone": ["Swin-T"] * 4,
    "swin-supervised": ["59.47", "71.60", "53.28", "34.51"],
    "swin-drloc": ["83.89", "94.23", "66.23", "39.37"],
    "swin-relvit": ["92.17", "96.55", "69.97", "59.22"],
    "swin-improvement": ["+8.28 ↑", "+2.32 ↑", "+3.74 ↑", "+19.85 ↑"],
    "t2t-backbone": ["T2T-ViT-14"] * 4,
    "t2t-supervised": ["84.19", "95.36", "65.16", "31.73"],
    "t2t-drloc": ["87.56", "96.49", "68.03", "34.35"],
    "t2t-relvit": ["91.08", "96.52", "66.27", "50.59"],
    "t2t-improvement": ["+3.52 ↑", "+0.03 ↑", "-1.76 ↓", "+16.24 ↑"],
}
DATASETS = ("cifar10", "svhn", "cifar100", "flowers102")


@pytest.fixture
def table3(tmp_path) -> Table:
    return layout("table3", (published_as_runs(tmp_path, "table3")))


def test_the_papers_table_3_as_runs_gives_the_papers_table_3(table3):
    for source in ("", "paper_"):
        printed = {row.key: [table3.entry(row.key, source + name).text for name in DATASETS] for row in table3.rows}
        assert printed == TABLE3
    assert [row.key for row in table3.rows if row.rule] == ["vit-backbone", "swin-backbone", "t2t-backbone"]


def test_of_each_group_of_table_3_the_best_is_bold_and_the_second_underlined(table3):
    # RelViT leads but on SVHN with ViT and on CIFAR-100 with T2T-ViT.
    for source in ("", "paper_"):
        bold = {name: marked(table3, source + name, "bold") for name in DATASETS}
        assert bold == {
            "cifar10": ["vit-relvit", "swin-relvit", "t2t-relvit"],
            "svhn": ["vit-supervised", "swin-relvit", "t2t-relvit"],
            "cifar100": ["vit-relvit", "swin-relvit", "t2t-drloc"],
            "flowers102": ["vit-relvit", "swin-relvit", "t2t-relvit"],
        }
        underlined = {name: marked(table3, source + name, "underline") for name in DATASETS}
        assert underlined == {
            "cifar10": ["vit-supervised", "swin-drloc", "t2t-drloc"],
            "svhn": ["vit-relvit", "swin-drloc", "t2t-drloc"],
            "cifar100": ["vit-supervised", "swin-drloc", "t2t-relvit"],
            "flowers102": ["vit-supervised", "swin-drloc", "t2t-drloc"],
        }


def test_what_the_papers_text_shows_of_underlines(table3):
    # The text that we have of the paper kept no bold, and two underlines: 39.37 (Swin, Flower-102) and 68.03 (T2T-ViT,
    # CIFAR-100). The first is a second place. The second is a first place, which the rule makes bold: whether the
    # paper underlines the rival there as everywhere, or set it bold too, the text cannot tell.
    assert table3.entry("swin-drloc", "paper_flowers102").underline
    assert table3.entry("t2t-drloc", "paper_cifar100").bold


def test_table_1_is_the_papers_computed_beside_published():
    table = layout("table1", [])
    expected = {
        "vit_s4-32": ("ViT-S/4", ["(32, 32)", "12", "6", "384", "65", "21.3M"]),
        "vit_s8-64": ("ViT-S/8", ["(64, 64)", "12", "6", "384", "65", "21.4M"]),
        "vit_s32-224": ("ViT-S/32", ["(224, 224)", "12", "6", "384", "50", "22.5M"]),
    }
    lines = {key: [model, *values, *values] for key, (model, values) in expected.items()}  # ours, the paper's
    assert {row.key: line(table, row.key) for row in table.rows} == lines


@pytest.mark.parametrize(("backbone", "size"), [("vit_xs4", 16), ("vit_xs8", 32), ("vit_s4", 32)])
def test_the_parameters_of_table_1_are_those_of_the_model(backbone, size):
    from relvit.backbones import build_backbone

    model = build_backbone(backbone, size)
    assert vit_parameters(BACKBONES[backbone], size) == sum(each.numel() for each in model.parameters())


# Several seeds


def test_several_seeds_give_mean_sample_deviation_interval_and_n(tmp_path):
    cells = planned(tmp_path, seeds=(0, 1, 2))
    setting = only_setting([row(cells["dist", seed], accuracy=value) for seed, value in enumerate((90.0, 92.0, 97.0))])
    # mean 93; squared deviations 9, 1, 16; 26 / 2 = 13, whose root is 3.606; t(0.975, 2) = 4.30265: half the interval
    # is 4.30265 x sqrt(13 / 3) = 8.957
    table = layout("table4", setting.runs)
    numbers = table.entry("dist", "accuracy").numbers
    assert numbers["value"] == 93.0
    assert numbers["std"] == pytest.approx(13**0.5)
    assert table.entry("dist", "accuracy").text == "93.00 ± 3.61"
    assert table.entry("dist", "interval").text == "[84.04, 101.96]"
    assert table.entry("dist", "n").text == "3/3"


def spread(cells, values: dict[str, list[float]]) -> list[dict]:
    return [
        row(cells[tasks, seed], accuracy=value) for tasks, each in values.items() for seed, value in enumerate(each)
    ]


def test_bold_is_the_group_that_cannot_be_told_from_the_best(tmp_path):
    cells = planned(tmp_path, seeds=(0, 1, 2, 3))
    values = {"dist": [90.0, 91.0, 90.5, 91.5], "ang": [90.1, 90.8, 90.7, 91.3], "sprel": [80.0, 81.2, 80.4, 81.6]}
    table = layout("table4", (spread(cells, values)))
    assert marked(table, "accuracy", "bold") == ["dist", "ang"]


def test_a_best_that_is_distinguishable_is_alone_in_bold(tmp_path):
    cells = planned(tmp_path, seeds=(0, 1, 2, 3))
    values = {"dist": [90.0, 91.0, 90.5, 91.5], "ang": [85.1, 85.8, 85.7, 86.3], "sprel": [80.0, 81.2, 80.4, 81.6]}
    table = layout("table4", (spread(cells, values)))
    assert marked(table, "accuracy", "bold") == ["dist"]


def test_bold_and_the_differences_give_one_answer_on_a_pair(tmp_path):
    cells = planned(tmp_path, seeds=(0, 1, 2))
    generator = np.random.default_rng(3)
    values = {tasks: list(90 + 0.2 * generator.normal(size=3)) for tasks in task_combinations()}
    values |= {"none": [85.0, 85.1, 84.9], "ang": [84.0, 90.0, 78.0], "dist": [83.1, 82.9, 83.0]}
    runs = spread(cells, values)
    shown = differences(entries("table4", runs), "differences")
    table = layout("table4", runs)
    called = {row.key: row.entries[1] for row in shown.rows}
    # The wild cell's own seeds do not tell it from any; its spread hides nothing of the others.
    apart = [tasks for tasks, entry in called.items() if entry.bold]
    assert set(apart) == set(task_combinations()) - {"none", "ang"}
    assert set(marked(table, "accuracy", "bold")) == set(task_combinations()) - {"none", "dist"}
    assert called["dist"].numbers["value"] < 0 < called["sprel"].numbers["value"]


@pytest.mark.parametrize("study", ["table4", "mine"])
def test_a_run_that_somebody_logged_by_hand_replaces_none_of_the_engines(study, tmp_path):
    cells = planned(tmp_path, seeds=(0, 1))
    own = [row(cells["dist", seed], accuracy=90.0 + seed) for seed in (0, 1)]
    by_hand = own[0] | {"run_id": "by-hand", "cell_id": "mine", "test_accuracy": 12.0, "git_commit": None}
    by_hand |= {"start_time": pd.Timestamp(99, unit="s", tz="UTC")}  # the newest
    table = layout(study, [*own, by_hand])
    assert table.entry("dist", "accuracy").text == "90.50 ± 0.71"
    ((letter, note),) = table.notes
    assert note == "a run that the engine did not log is left out: by-hand (seed 0)"
    assert table.entry("dist", "accuracy").marks == (letter,)
    # Alone it is shown.
    assert layout(study, [own[1], by_hand]).entry("dist", "n").text == "2/2"


def test_nan_results_do_not_count_as_seeds(tmp_path):
    cells = planned(tmp_path, seeds=(0, 1, 2))
    table = layout("table4", spread(cells, {"dist": [90.0, float("nan"), 92.0], "ang": [89.0, 89.5, 89.1]}))
    assert (table.entry("dist", "accuracy").text, table.entry("dist", "n").text) == ("91.00 ± 1.41", "2/3")


def test_the_caption_names_what_is_bold_throughout(tmp_path):
    cells = planned(tmp_path, seeds=(0, 1, 2))
    near = {"dist": [90.0, 91.0, 90.5], "sprel+abspos": [90.1, 90.8, 90.7], "none": [89.9, 91.1, 90.4]}
    words = "Nothing was shown to be worse, so all is bold: "
    assert f"{words}Finetuning." in layout("table4", (spread(cells, near))).caption
    assert f"{words}digits." in layout("table2", (spread(cells, near))).caption
    apart = near | {"none": [80.0, 81.1, 80.4]}
    assert words not in layout("table4", (spread(cells, apart))).caption
    assert words not in layout("table2", (spread(cells, apart))).caption
    alone = layout("table4", (spread(cells, {"dist": near["dist"]})))
    assert words not in alone.caption
    joint = plan_cells(Request(study="table3", recipe="cpu", data_root=tmp_path, seeds=(0, 1, 2)))
    levels = {"none": near["none"], "drloc": near["dist"], "sprel+abspos": near["sprel+abspos"]}
    rows = [row(cell, accuracy=levels[cell.tasks][cell.seed]) for cell in joint if cell.dataset == "svhn"]
    assert f"{words}SVHN with ViT, SVHN with Swin, SVHN with T2T-ViT." in layout("table3", (rows)).caption


def test_of_errors_the_smallest_is_the_best(tmp_path):
    cells = planned(tmp_path, seeds=(0, 1, 2))
    rows = [
        row(cells[tasks, seed], dist_mse_x100=mean + (0.1, 0.0, -0.1)[seed] * scale)
        for tasks, mean, scale in (("dist", 12.0, 1.0), ("sprel+dist", 10.0, 0.5))
        for seed in range(3)
    ]
    table = layout("table4", (rows))
    assert marked(table, "dist_mse_x100", "bold") == ["sprel+dist"]


def test_improvements_are_paired_over_common_seeds(tmp_path):
    cells = planned(tmp_path, seeds=(0, 1, 2))
    values = {"none": [80.0, 81.0, 95.0], "sprel+abspos": [82.0, 84.0]}
    rows = [
        row(cells[tasks, seed], accuracy=value) for tasks, each in values.items() for seed, value in enumerate(each)
    ]
    table = layout("table2", (rows))
    # Differences 2 and 3: mean 2.5, deviation 0.7071; 12.706 x 0.7071 / sqrt(2) = 6.35. Seed 2 has no partner.
    improvement = table.entry("digits", "improvement")
    assert (improvement.text, improvement.below) == ("+2.50 ↑", "[-3.85, +8.85]")
    assert len(improvement.runs) == 5  # all of both cells
    assert table.entry("digits", "relvit").below.endswith("n = 2/3")


def test_what_is_missing_or_unfinished_is_a_dash_and_not_a_crash(tmp_path):
    cells = planned(tmp_path, seeds=(0, 1))
    rows = [
        row(cells["none", 0], accuracy=95.0),
        row(cells["sprel", 0], accuracy=96.0, sprel_accuracy=50.0),
        row(cells["sprel", 1], status="KILLED", accuracy=1.0),
        row(cells["dist", 0], status="FAILED"),
    ]
    table = layout("table4", (rows))
    assert line(table, "sprel")[:7] == ["RelViT", "×", "×", "×", "50.00", "96.00", "1/2"]
    assert line(table, "dist")[:7] == ["RelViT", "×", "×", "–", "×", "–", "0/2"]
    assert line(table, "ang")[:7] == ["RelViT", "×", "–", "×", "×", "–", "0/2"]
    assert marked(table, "accuracy", "bold") == ["sprel"]


def test_with_nothing_finished_there_is_still_a_table(tmp_path):
    failed = [row(planned(tmp_path)["dist", 0], status="FAILED")]
    table = layout("table4", (failed))
    assert set(table.texts("accuracy").values()) == {"–"}
    assert marked(table, "accuracy", "bold") == []
    for study in ("table2", "table3", "table4", "figure2"):
        assert layout(study, failed).rows
        assert layout(study, pd.DataFrame(columns=["status"])).rows


def test_one_seed_says_that_nothing_is_tested(tmp_path):
    one, two = planned(tmp_path), planned(tmp_path, seeds=(0, 1))
    single = layout("table4", ([row(one["dist", 0], accuracy=90.0)]))
    assert "One seed: numbers without intervals, nothing is tested" in single.caption
    assert "interval" not in [column.key for column in single.columns]
    several = layout("table4", ([row(two["dist", s], accuracy=90.0 + s) for s in (0, 1)]))
    assert "95 % t interval" in several.caption


@pytest.mark.parametrize("status", ["RUNNING", "FAILED"])
def test_a_seed_that_is_not_finished_is_none_that_was_tested(tmp_path, status):
    cells = planned(tmp_path, seeds=(0, 1, 2))
    waiting = [row(cells["dist", seed], status=status) for seed in (1, 2)]
    table = layout("table4", ([row(cells["dist", 0], accuracy=90.0), *waiting]))
    assert table.texts("n")["dist"] == "1/3"
    assert "One seed: numbers without intervals, nothing is tested" in table.caption


def test_the_caption_says_what_the_numbers_are(tmp_path):
    cells = planned(tmp_path, seeds=(4, 7))
    caption = layout("table4", ([row(cells["dist", seed], accuracy=90.0) for seed in (4, 7)])).caption
    parts = ("digits", "ViT-XS/4", "20 + 20 epochs", "batches of 64", "learning rate 0.002", "fp32")
    for part in (*parts, "best validation epoch", "test split", "2 seeds (4, 7)", "commit 0123456789"):
        assert part in caption


# Settings


def test_runs_of_other_settings_are_kept_out_and_the_newest_setting_is_last(tmp_path):
    old, new = planned(tmp_path), planned(tmp_path, settings=("epochs=30",))
    rows = [row(old["dist", 0], accuracy=80.0, started=1), row(new["dist", 0], accuracy=90.0, started=2)]
    rows += [row(old["none", 0], accuracy=70.0, started=1)]
    older, newer = settings(conform(pd.DataFrame(rows)))
    assert (older.fields["epochs"], newer.fields["epochs"]) == (20, 30)
    newest, other = (one.table.texts("accuracy") for one in tables_of("table4", conform(pd.DataFrame(rows))))
    assert {key: text for key, text in newest.items() if text != "–"} == {"dist": "90.00"}
    assert {key: text for key, text in other.items() if text != "–"} == {"none": "70.00", "dist": "80.00"}


def test_a_setting_that_has_only_what_another_lacks_fills_its_gaps(tmp_path):
    usual, other = planned(tmp_path), planned(tmp_path, settings=("epochs=30",))
    rows = [row(usual[tasks, 0], accuracy=80.0) for tasks in task_combinations() if tasks != "ang"]
    setting = only_setting([*rows, row(other["ang", 0], accuracy=90.0)])
    table = layout("table4", setting.runs)
    assert table.entry("ang", "accuracy").text == "90.00"
    assert table.notes == (("a", "epochs 30 instead of 20"),)
    assert [key for key in table.texts("accuracy") if table.entry(key, "accuracy").marks] == ["ang"]


def test_the_supervised_cell_stands_in_each_table_whose_tasks_differ_only_in_how_patches_are_augmented(tmp_path):
    weak, strong = (planned(tmp_path, settings=(f"jitter_strength={strength}",)) for strength in (0.2, 0.6))
    assert weak["none", 0] == strong["none", 0]
    rows = [row(cells["dist", 0], accuracy=90.0) for cells in (weak, strong)] + [row(weak["none", 0], accuracy=70.0)]
    both = settings(conform(pd.DataFrame(rows)))
    assert [sorted(setting.runs["tasks"]) for setting in both] == [["dist", "none"], ["dist", "none"]]


def test_a_task_that_needs_no_pair_head_belongs_to_the_table_of_those_that_do(tmp_path):
    cells = planned(tmp_path)
    setting = only_setting([row(cells[tasks, 0]) for tasks in ("none", "abspos", "sprel", "dist+abspos")])
    assert len(setting.runs) == 4


def test_a_store_of_an_older_schema_still_gives_its_table(tmp_path):
    rows = [row(planned(tmp_path)[tasks, 0], accuracy=90.0) for tasks in ("none", "dist")]
    unknown = ["drloc_weight", "mega_grid", "jitter_probability", "git_dirty", "start_time", "run_id", "study"]
    setting = only_setting([{name: value for name, value in each.items() if name not in unknown} for each in rows])
    table = layout("table4", setting.runs)
    assert table.entry("dist", "accuracy").text == "90.00"
    assert table.notes == ()


def test_a_run_that_a_crash_left_without_its_tasks_is_left_out(tmp_path):
    whole = row(planned(tmp_path)["dist", 0], accuracy=90.0)
    setting = only_setting([whole, {**whole, "run_id": "half", "tasks": None}])
    assert list(setting.runs["run_id"]) == [whole["run_id"]]


# Figure 2 and others


def test_figure_2_has_its_five_settings(tmp_path):
    cells = plan_cells(Request(study="figure2", recipe="demo", data_root=tmp_path))
    rows = [row(cell, accuracy=80.0 + number, sprel_accuracy=50.0) for number, cell in enumerate(cells)]
    table = layout("figure2", (rows))
    assert table.texts("accuracy") == {
        "embedding": "80.00",
        "embedding, permuted": "81.00",
        "no embedding": "82.00",
        "no embedding, permuted": "83.00",
        "random": "84.00",
    }
    assert line(table, "embedding, permuted") == ["SpRel", "yes", "yes", "50.00", "81.00"]
    assert table.notes == ()


def test_a_study_of_ones_own_is_listed_by_the_fields_in_which_its_cells_differ(tmp_path):
    cells = [
        cell
        for head in ("bilinear", "low_rank")
        for cell in planned(tmp_path, combinations=("sprel",), settings=(f"pair_head={head}",)).values()
    ]
    rows = [row(cell, accuracy=value) for cell, value in zip(cells, (90.0, 91.0))]
    table = layout("heads", rows)
    assert [line(table, key) for key in ("bilinear", "low_rank")] == [
        ["bilinear", "90.00", "1/1"],
        ["low_rank", "91.00", "1/1"],
    ]
    assert marked(table, "accuracy", "bold") == ["low_rank"]


def test_arms_that_have_learning_rates_of_their_own_go_by_their_tasks_the_supervised_one_first(tmp_path):
    rates = {"sprel": "learning_rate=0.002", "none": "learning_rate=0.001"}
    cells = [planned(tmp_path, combinations=(tasks,), settings=(rate,))[tasks, 0] for tasks, rate in rates.items()]
    table = layout("arms", [row(cell, accuracy=value) for cell, value in zip(cells, (90.0, 91.0))])
    assert [each.key for each in table.rows] == ["none", "sprel"]
    assert line(table, "none") == ["none", "0.001", "91.00", "1/1"]


def test_a_listing_is_bold_within_each_data_set_and_has_no_column_for_its_own_pre_training(tmp_path):
    rows = []
    for dataset, values in (("digits", (90.0, 91.0)), ("svhn", (50.0, 40.0))):
        for tasks, value in zip(("none", "sprel"), values):
            cell = planned(tmp_path)[tasks, 0]
            rows.append(row(cell, accuracy=value) | {"dataset": dataset, "pretrain_dataset": dataset})
            rows[-1] |= {"run_id": f"{dataset}-{tasks}"}
    table = layout("mine", rows)
    assert [column.key for column in table.columns] == ["dataset", "tasks", "accuracy", "n"]
    assert marked(table, "accuracy", "bold") == ["digits sprel", "svhn none"]
    assert "Bold within one data set and protocol." in table.caption
    transfer = [*rows, rows[0] | {"pretrain_dataset": "svhn", "run_id": "transfer"}]
    assert "pretrain_dataset" in [column.key for column in layout("mine", transfer).columns]


def test_many_seeds_are_listed_as_a_range():
    assert listed([3, 0, 2, 1, 7, 8]) == "0 to 3, 7, 8"
    assert listed(range(125)) == "0 to 124"
    assert listed([0, 1, 2]) == "0, 1, 2"
