"""Verdicts on the paper's sentences: on its own numbers, and on runs made up so that each verdict is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.paper.entries import Claim, Entries, PaperTable
from analysis.paper.entries import departures as departures_of
from analysis.paper.published import published as published_rows
from analysis.paper.published import published_runs
from analysis.paper.registry import TABLES, of_study
from analysis.paper.rules import all_above, all_similar, fixed, level_above, no_help, stated_gains
from analysis.paper.verdicts import MARGIN, ROUNDING, margin_of, published_numbers, sentences
from analysis.runs.comparability import conform
from analysis.stats.seeds import compare, seeds_for_power
from relvit.cell import FIELDS, PAPER_TASKS, task_combinations
from sweeps.planning.plan import Request, plan_cells

BEST = "sprel+abspos"

# With the paper's own numbers. Figure 2 prints none.
PUBLISHED_VERDICTS = {
    "best-single-task": "contradicted",  # SpRel 89.02, AbsPos 89.39, Dist 89.27
    "best-combination": "holds",  # 90.13, closest 90.12
    "single-tasks-similar": "holds",  # within 0.64 points of each other, less than the 1 that counts as similar
    "single-tasks-improve": "holds",
    "single-tasks-gain": "contradicted",  # (89.02 + 89.27 + 88.75 + 89.39) / 4 - 85.38 = 3.7275, not 3.00
    "finetuning-every-dataset": "holds",
    "finetuning-gains": "holds",
    "joint-almost-all-datasets": "holds",  # all but SVHN
    "joint-gains": "contradicted",  # CIFAR-10: 88.98 - 85.18 = 3.80, not 3.71
    "joint-every-dataset": "contradicted",  # SVHN: 95.86 - 96.02 = -0.16
    "variants-above-supervised": "holds",
    "variants-above-drloc": "contradicted",  # T2T-ViT on CIFAR-100: 66.27 - 68.03 = -1.76
    "variants-gains": "holds",
    "embedding-solves-sprel": "undecided",
    "embedding-does-not-help": "undecided",
    "shuffling-helps": "undecided",
    "no-embedding-is-best": "undecided",
    "shuffling-is-optional": "undecided",
}

# Deviations of four seeds: mean 0, and of different patterns so that differences between cells have a spread.
NOISE = ([0.1, -0.1, 0.2, -0.2], [0.2, 0.1, -0.1, -0.2], [-0.1, 0.2, -0.2, 0.1])


CLAIMS: list[Claim] = [claim for table in TABLES.values() for claim in table.claims]


def entries(runs: pd.DataFrame, study: str) -> Entries:
    """Those of the paper's table, whatever their settings."""
    return Entries(TABLES[study], conform(of_study(runs, study)))


def verdicts(runs: pd.DataFrame, margin: float = MARGIN, printed: bool = False) -> pd.DataFrame:
    """Every sentence of the paper, judged on the runs of its table."""
    found = [sentences(entries(runs, name), margin, printed) for name, table in TABLES.items() if table.claims]
    return pd.concat(found)


def departures(runs: pd.DataFrame, study: str) -> list[str]:
    return departures_of(conform(runs), TABLES[study])


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    return verdicts(published_runs(), ROUNDING, printed=True)


def judged(claim: str, runs: pd.DataFrame, **options) -> pd.Series:
    return verdicts(runs, **options).loc[claim]


def run(**fields) -> dict:
    """A finished run with the paper's recipe."""
    return {
        "study": "table4",
        "dataset": "cifar10",
        "backbone": "vit_s4",
        "protocol": "pretrain_finetune",
        "tasks": "sprel",
        "seed": 0,
        "status": "FINISHED",
        "pretrain_epochs": 100,
        "epochs": 100,
        "train_images": 0,
        "pretrain_position_embedding": False,
        "permute_patches": False,
        "git_dirty": "false",
        **fields,
    }


def frame(rows: list[dict]) -> pd.DataFrame:
    columns = [*run(), *(name for name in [*FIELDS, "deviation", "images_of_test"] if name not in run())]
    columns += ["test_accuracy", "test_sprel_accuracy"]
    return pd.DataFrame(rows).reindex(columns=columns).astype({"seed": "Int64", "test_accuracy": "Float64"})


def table4(seeds: int = 1, **accuracies: float) -> pd.DataFrame:
    """Runs of Table 4 by tasks ("sprel_abspos"), each seed a little off the mean that is given."""
    rows = []
    for number, (name, mean) in enumerate(accuracies.items()):
        noise = NOISE[number % 3][:seeds] if seeds > 1 else [0.0]
        rows += [
            run(tasks=name.replace("_", "+"), seed=seed, test_accuracy=mean + deviation)
            for seed, deviation in enumerate(noise)
        ]
    return frame(rows)


# The paper against itself


def test_every_verdict_on_the_papers_own_numbers(published):
    assert published["verdict"].to_dict() == PUBLISHED_VERDICTS


@pytest.mark.parametrize(
    ("claim", "numbers"),
    [
        ("best-single-task", "below SpRel against Dist: -0.25 (n = 1); SpRel against AbsPos: -0.37 (n = 1)"),
        ("best-combination", "closest SpRel + AbsPos against SpRel + Ang: +0.01 (n = 1)"),
        ("single-tasks-improve", "closest Ang against Supervised: +3.37 (n = 1)"),
        ("single-tasks-gain", "mean of the single tasks: stated +3.00, +3.73 (n = 1)"),
        ("finetuning-every-dataset", "closest SVHN, RelViT against SVHN, Supervised: +1.08 (n = 1)"),
        ("joint-gains", "CIFAR-10: stated +3.71, +3.80 (n = 1)"),
        ("joint-every-dataset", "below SVHN, ViT, RelViT against SVHN, ViT, Supervised: -0.16 (n = 1)"),
        (
            "variants-above-supervised",
            "closest CIFAR-100, T2T-ViT, RelViT against CIFAR-100, T2T-ViT, Supervised: +1.11 (n = 1)",
        ),
        ("variants-above-drloc", "below CIFAR-100, T2T-ViT, RelViT against CIFAR-100, T2T-ViT, L_drloc: -1.76 (n = 1)"),
    ],
)
def test_the_numbers_that_decide_are_named(published, claim, numbers):
    assert published.loc[claim, "numbers"] == numbers


def test_exceptions_are_named_where_almost_all_is_claimed(published):
    assert published.loc["joint-almost-all-datasets", "numbers"].endswith(
        "except SVHN, ViT, RelViT against SVHN, ViT, Supervised: -0.16 (n = 1)"
    )


def test_the_papers_numbers_are_taken_as_printed_and_figure_2_has_none(published):
    from_tables = published["table"] != "figure2"
    assert published.loc[from_tables, "note"].str.startswith("the numbers as printed").all()
    assert (published.loc[~from_tables, "note"] == "no finished run has a result to compare").all()
    assert sum(from_tables) == 13
    assert published.loc["joint-gains", "note"].endswith("; the same within 0.015 points")


def test_the_paper_is_comparable_with_itself(published):
    assert set(published["not_comparable"]) == {""}


def test_the_published_runs_are_all_accuracies_of_the_three_tables():
    runs = published_runs()
    assert runs["study"].value_counts().to_dict() == {"table3": 32, "table4": 16, "table2": 10}
    assert set(runs.query("protocol == 'joint'")["tasks"]) == {"none", "drloc", BEST}
    rival = runs.query("tasks == 'drloc' and dataset == 'svhn' and backbone == 'swin_t'")
    assert rival["test_accuracy"].tolist() == [94.23]


def test_every_claim_has_its_own_name_and_quotes_its_place():
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS) == len(PUBLISHED_VERDICTS)
    assert {name for name, table in TABLES.items() if table.claims} == {"table2", "table3", "table4", "figure2"}
    assert all(claim.where.startswith("section ") for claim in CLAIMS)


# Table 4 from several seeds


@pytest.mark.parametrize(
    ("sprel", "verdict"),
    [
        (91.0, "holds"),  # 2 points above the others, the differences' deviation about 0.2
        (89.05, "undecided"),  # 0.05 above
        (87.0, "contradicted"),
    ],
)
def test_from_several_seeds_only_significant_differences_count(sprel, verdict):
    # Between NOISE[0] and itself (abspos) there is no spread: the other cells know it.
    row = judged("best-single-task", table4(seeds=4, sprel=sprel, dist=89.0, ang=89.0, abspos=89.0))
    assert row["verdict"] == verdict


@pytest.mark.parametrize("sprel", [99.0, 89.05, 70.0])
def test_one_seed_decides_nothing_and_says_how_far_it_is(sprel):
    row = judged("best-single-task", table4(sprel=sprel, dist=89.0, ang=89.0, abspos=89.0))
    assert (row["verdict"], row["needs"]) == ("undecided", "2 or more")
    assert row["numbers"].startswith(f"open SpRel against Dist: {sprel - 89:+.2f} (n = 1); ")
    assert row["note"] == "one seed: nothing is tested"


def test_one_task_significantly_above_contradicts_whatever_the_others_say():
    runs = table4(seeds=4, sprel=89.0, dist=91.0, ang=80.0, none=70.0, abspos=89.0)
    row = judged("best-single-task", runs)
    assert row["verdict"] == "contradicted"
    assert row["numbers"].startswith("below SpRel against Dist: -2.00 [-")
    assert row["note"] == "t tests over seeds"


def test_a_difference_below_that_is_significant_only_alone_contradicts_nothing():
    level = [89.0, 90.0, 88.0, 89.0]
    offsets = {"sprel": [0.0] * 4, "dist": [1.0, 0.1, 0.7, 0.5], "ang": [1.0, -1.1, 0.9, -1.0], "abspos": NOISE[0]}
    rows = [
        run(tasks=tasks, seed=seed, test_accuracy=level[seed] + offset)
        for tasks, values in offsets.items()
        for seed, offset in enumerate(values)
    ]
    runs = frame(rows)
    wide = runs.pivot(index="seed", columns="tasks", values="test_accuracy").astype(float)
    alone = compare(wide, [("sprel", "dist")]).iloc[0]
    assert alone["p_family"] > 0.05
    assert judged("best-single-task", runs)["verdict"] == "undecided"


def test_a_sentence_that_needs_all_of_fourteen_needs_each_at_five_per_cent():
    # SpRel + AbsPos is 0.6 above 14 rivals that scatter by 0.3 around 89: with five seeds p is some 0.01 each, which
    # Holm over 14 would not let pass, nor bold, whose question is another: which of 16 cells are worse than any.
    generator = np.random.default_rng(21)
    values = {tasks: 89 + 0.3 * generator.normal(size=5) for tasks in task_combinations()}
    values = {tasks: each - each.mean() + 89 for tasks, each in values.items()}
    values["none"], values[BEST] = values["none"] - 4, values[BEST] + 0.6
    rows = [
        run(tasks=tasks, seed=seed, test_accuracy=value)
        for tasks, each in values.items()
        for seed, value in enumerate(each)
    ]
    assert judged("best-combination", frame(rows))["verdict"] == "holds"
    wide = pd.DataFrame(values)
    rivals = [tasks for tasks in values if tasks not in ("none", BEST)]
    corrected = compare(wide, [(BEST, tasks) for tasks in rivals])
    assert (corrected["p"] < 0.05).all()
    assert (corrected["p_family"] > 0.05).any()


def test_what_is_missing_keeps_a_claim_from_holding_and_is_named():
    row = judged("best-single-task", table4(seeds=4, sprel=90.0, dist=89.0, ang=89.0))
    assert row["verdict"] == "undecided"
    assert row["numbers"] == "missing SpRel against AbsPos"


def test_what_is_missing_does_not_keep_a_claim_from_being_contradicted():
    row = judged("best-single-task", table4(seeds=4, sprel=90.0, dist=91.0))
    assert row["verdict"] == "contradicted"
    assert "missing SpRel against Ang; SpRel against AbsPos" in row["numbers"]


def test_equal_single_numbers_are_undecided():
    runs = table4(sprel=90.0, dist=90.0, ang=89.0, abspos=89.0)
    assert judged("best-single-task", runs, printed=True)["verdict"] == "undecided"


def test_unfinished_runs_do_not_count():
    runs = table4(seeds=4, sprel=90.0, dist=91.0, ang=89.0, abspos=89.0)
    assert judged("best-single-task", runs)["verdict"] == "contradicted"
    runs.loc[runs["tasks"] == "dist", "status"] = "RUNNING"
    assert judged("best-single-task", runs)["verdict"] == "undecided"


def test_the_best_combination_must_beat_all_fourteen_others():
    accuracies = {tasks: 80.0 + number / 10 for number, tasks in enumerate(task_combinations())}
    runs = [run(tasks=tasks, test_accuracy=value) for tasks, value in accuracies.items()]
    beaten = frame([{**row, "test_accuracy": 99.0} if row["tasks"] == BEST else row for row in runs])
    assert judged("best-combination", beaten, printed=True)["verdict"] == "holds"
    row = judged("best-combination", frame(runs), printed=True)
    assert row["verdict"] == "contradicted"
    assert row["numbers"].count("against") == 15 - task_combinations().index(BEST)  # the combinations after it


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([2.9, 3.0, 3.1, 3.0], "holds"),  # mean 3.0, deviation 0.08: equivalent within 0.5
        ([1.0, 5.0, 2.0, 4.2], "undecided"),  # mean 3.05, but anything between 0 and 6
        ([3.5, 3.8, 3.6, 3.8], "undecided"),  # mean 3.675, deviation 0.15: single runs may have stated 3.0
        ([4.6, 4.8, 4.7, 4.8], "contradicted"),
        ([1.0, 1.1, 0.9, 1.1], "contradicted"),
    ],
)
def test_the_mean_gain_of_single_tasks_over_seeds(gains, verdict):
    rows = [run(tasks="none", seed=seed, test_accuracy=80.0) for seed in range(4)]
    # Two tasks a point above the mean and two below: only the mean is what the sentence states.
    rows += [
        run(tasks=task, seed=seed, test_accuracy=80.0 + gain + offset)
        for seed, gain in enumerate(gains)
        for task, offset in zip(PAPER_TASKS, (1.0, -1.0, 1.0, -1.0))
    ]
    assert judged("single-tasks-gain", frame(rows))["verdict"] == verdict


def test_a_stated_gain_rests_on_its_own_cells_alone():
    runs = table4(none=80.0, sprel=83.0, dist=83.0, ang=83.0, abspos=83.0, sprel_dist=84.0, dist_ang=85.0)
    runs = runs.assign(run_id=runs["tasks"])
    assert judged("single-tasks-gain", runs)["runs"] == ("abspos", "ang", "dist", "none", "sprel")


def test_a_mean_of_single_tasks_that_lacks_one_is_not_taken():
    runs = table4(none=80.0, sprel=83.0, dist=83.0, ang=83.0)
    row = judged("single-tasks-gain", runs)
    assert (row["verdict"], row["numbers"]) == ("undecided", "mean of the single tasks: stated +3.00, missing")


def test_the_margin_is_the_callers():
    runs = table4(seeds=4, none=80.0, sprel=84.4, dist=84.4, ang=84.4, abspos=84.4)
    assert judged("single-tasks-gain", runs, margin=2.0)["verdict"] == "holds"
    assert judged("single-tasks-gain", runs, margin=0.3)["verdict"] == "contradicted"


@pytest.mark.parametrize(
    ("abspos", "verdict"), [(89.2, "holds"), (91.0, "contradicted"), (89.9, "undecided")]
)  # others at 89.0: the differences' interval is about 0.25 either way
def test_tasks_are_similar_within_a_point_of_each_other(abspos, verdict):
    runs = table4(seeds=4, sprel=89.0, dist=89.1, ang=89.0, abspos=abspos)
    # Its noise is that of sprel; without a spread of its own the two could not be compared.
    runs.loc[runs["tasks"] == "abspos", "test_accuracy"] += [0.1, 0.1, -0.1, -0.1]
    row = judged("single-tasks-similar", runs)
    assert row["verdict"] == verdict
    assert len(row["runs"]) == 16
    assert bool(row["needs"]) == (verdict == "undecided")


def test_runs_of_two_settings_leave_a_claim_undecided_and_the_others_judged():
    twice = pd.concat([published_runs(), table4(sprel=12.0)])
    table = verdicts(twice, ROUNDING, printed=True)
    assert table.loc["best-single-task", "verdict"] == "undecided"
    assert "several finished runs of sprel with seed 0" in table.loc["best-single-task", "note"]
    assert table.loc["joint-gains", "verdict"] == "contradicted"


def test_runs_of_other_studies_do_not_count():
    elsewhere = table4(sprel=1.0, dist=99.0).assign(study="probe", protocol="pretrain_probe")
    runs = pd.concat([published_runs(), elsewhere])
    assert verdicts(runs, ROUNDING, printed=True)["verdict"].to_dict() == PUBLISHED_VERDICTS


def test_a_run_counts_for_every_study_that_it_belongs_to():
    runs = table4(seeds=4, sprel=90.0, dist=91.0).assign(study="figure2,table4")
    assert judged("best-single-task", runs)["verdict"] == "contradicted"


def test_without_runs_every_claim_is_undecided():
    table = verdicts(frame([]))
    assert len(table) == len(CLAIMS)
    assert set(table["verdict"]) == {"undecided"}


# Data sets


def test_a_data_set_of_ones_own_is_compared_too():
    runs = published_runs()
    own = runs.query("study == 'table2' and dataset == 'svhn'").assign(dataset="digits", test_accuracy=[98.0, 97.0])
    row = judged("finetuning-every-dataset", pd.concat([runs, own]), printed=True)
    assert row["verdict"] == "contradicted"
    assert "digits, RelViT against digits, Supervised: -1.00" in row["numbers"]
    assert row["not_comparable"] == "data set digits is not in the paper's Table 2"


def test_two_exceptions_are_not_almost_all():
    runs = published_runs()
    lowered = (runs["study"] == "table3") & (runs["dataset"] == "cifar10") & (runs["tasks"] == BEST)
    runs.loc[lowered & (runs["backbone"] == "vit_s4"), "test_accuracy"] = 60.0
    assert judged("joint-almost-all-datasets", runs, printed=True)["verdict"] == "contradicted"


def test_cells_of_different_data_sets_have_errors_of_their_own():
    # CIFAR-10's seeds are as steady as they are wild on SVHN, which says nothing of CIFAR-10.
    rows = [
        run(study="table2", dataset=dataset, tasks=tasks, seed=seed, test_accuracy=mean + gain + scale * noise)
        for dataset, mean, scale in (("cifar10", 90.0, 1.0), ("svhn", 95.0, 100.0))
        for tasks, gain, noises in ((BEST, 1.0, NOISE[0]), ("none", 0.0, NOISE[1]))
        for seed, noise in enumerate(noises)
    ]
    numbers = judged("finetuning-every-dataset", frame(rows))["numbers"]
    assert "SVHN, RelViT against SVHN, Supervised" in numbers
    assert "CIFAR-10, RelViT" not in numbers  # that one is above


@pytest.mark.parametrize("below", [1, 2])
def test_one_contradiction_of_four_data_sets_is_corrected_for_their_number(below):
    # Each of so many data sets is below with a p of 0.03, four of which would come by chance in 11 %.
    rows = []
    for number, dataset in enumerate(("cifar10", "svhn", "cifar100", "flowers102")):
        sign = -1.0 if number < below else 1.0
        for seed, noise in enumerate(NOISE[0]):
            common = {"study": "table2", "dataset": dataset, "seed": seed}
            rows.append(run(**common, tasks="none", test_accuracy=80.0))
            rows.append(run(**common, tasks=BEST, test_accuracy=80.0 + sign * (0.36 + noise)))
    row = judged("finetuning-every-dataset", frame(rows))
    assert stats.ttest_1samp(0.36 + np.array(NOISE[0]), 0).pvalue == pytest.approx(0.03, abs=0.01)
    assert row["verdict"] == "undecided"


# Figure 2

FIGURE2 = {(True, False): 80.0, (True, True): 82.0, (False, False): 84.0, (False, True): 84.0}


def figure2(random: list[float], sprel: list[float], accuracies: dict = FIGURE2) -> pd.DataFrame:
    """Runs of Figure 2 with as many seeds as `random` has; sprel: SpRel accuracy with embeddings, not permuted."""
    rows = [
        run(
            study="figure2",
            seed=seed,
            pretrain_position_embedding=embedding,
            permute_patches=permuted,
            test_accuracy=mean + NOISE[number % 3][seed],
            test_sprel_accuracy=sprel[seed] if (embedding, permuted) == (True, False) else 50.0,
        )
        for number, ((embedding, permuted), mean) in enumerate(accuracies.items())
        for seed in range(len(random))
    ]
    rows += [
        run(study="figure2,table3", protocol="joint", tasks="none", pretrain_epochs=0, seed=seed, test_accuracy=value)
        for seed, value in enumerate(random)
    ]
    return frame(rows)


@pytest.mark.parametrize(
    ("sprel", "verdict"),
    [
        ([99.0, 99.5, 99.2, 99.9], "holds"),
        ([85.0, 99.9, 99.9, 99.9], "undecided"),  # mean 96.2, but a wide interval
        ([80.0, 99.9, 99.9, 99.9], "undecided"),  # mean 94.9
        ([60.0, 61.0, 60.5, 59.0], "contradicted"),
        ([100.0, 100.0, 100.0], "holds"),  # no spread: every seed says the same
        ([90.0, 90.0, 90.0], "contradicted"),
        ([100.0], "undecided"),
        ([60.0], "undecided"),
        ([float("nan")] * 3, "undecided"),
    ],
)
def test_sprel_is_solved_above_95_per_cent(sprel, verdict):
    row = judged("embedding-solves-sprel", figure2([80.0] * len(sprel), sprel))
    assert row["verdict"] == verdict
    assert row["numbers"].startswith("SpRel, embedding: " if sprel[0] == sprel[0] else "")
    assert bool(row["numbers"]) == (sprel[0] == sprel[0])


@pytest.mark.parametrize(
    ("random", "verdict"),
    [
        ([80.3, 79.9, 80.0, 80.1], "holds"),  # differences -0.2, 0, 0.2, -0.3: less than half a point
        ([82.3, 81.9, 82.0, 82.1], "holds"),  # worse than random is no help either
        ([78.3, 77.9, 78.0, 78.1], "contradicted"),  # 2 points of help
        ([75.0, 84.0, 79.0, 81.0], "undecided"),
        ([79.7], "undecided"),
        ([70.0], "undecided"),
    ],
)
def test_embeddings_do_not_help_where_they_gain_less_than_the_margin(random, verdict):
    assert judged("embedding-does-not-help", figure2(random, [99.0] * len(random)))["verdict"] == verdict


def test_shuffling_helps_and_no_embedding_is_best():
    runs = figure2([80.0, 80.1, 79.9, 80.2], [99.0] * 4)
    table = verdicts(runs)
    assert table.loc[["shuffling-helps", "no-embedding-is-best"], "verdict"].tolist() == ["holds", "holds"]
    worse = figure2([80.0, 80.1, 79.9, 80.2], [99.0] * 4, {**FIGURE2, (True, True): 79.0, (False, False): 78.0})
    table = verdicts(worse)
    assert table.loc[["shuffling-helps", "no-embedding-is-best"], "verdict"].tolist() == ["contradicted"] * 2


@pytest.mark.parametrize(
    ("permuted", "verdict"),
    # NOISE[2] - NOISE[0] is -0.2, 0.3, -0.4, 0.3: mean 0, deviation 0.356. With four seeds the interval is 0.566 either
    # way, and 0.419 at 90 %.
    [(84.0, "holds"), (84.3, "undecided"), (86.0, "contradicted"), (82.0, "contradicted")],
)
def test_the_shuffling_is_optional_where_it_changes_nothing_without_embeddings(permuted, verdict):
    accuracies = {**FIGURE2, (False, True): permuted}
    runs = figure2([80.0, 80.1, 79.9, 80.2], [99.0] * 4, accuracies)
    assert judged("shuffling-is-optional", runs)["verdict"] == verdict


# Comparability


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dataset": "digits"}, "data set digits is not in the paper's Table 4"),
        ({"backbone": "vit_xs8"}, "ViT-XS/8 stands in for ViT-S/4 on CIFAR-10"),
        ({"backbone": "swin_t"}, "Swin-T stands in for ViT-S/4 on CIFAR-10"),
        ({"epochs": 20}, "20 epochs of classification instead of 100"),
        ({"pretrain_epochs": 20}, "20 epochs of pre-training instead of 100"),
        ({"train_images": 2000}, "2,000 training images instead of all"),
        ({"images_of_test": "359"}, "359 test images of CIFAR-10 instead of 10,000"),
        ({"git_dirty": "true"}, "uncommitted changes in the code"),
        ({"git_dirty": "unknown"}, "unknown state of the code"),
        ({"git_dirty": None}, "unknown state of the code"),
        ({"deviation": "micro_batches=4"}, "micro_batches=4"),
        ({"learning_rate": 0.01}, "learning_rate 0.01 instead of 0.0005"),
        ({"pretrain_learning_rate": 0.01}, "pretrain_learning_rate 0.01 instead of 0.0005"),
        ({"weight_decay": 0.1}, "weight_decay 0.1 instead of 0"),
        ({"batch_size": 1024}, "batch_size 1024 instead of 256"),
        ({"precision": "bf16"}, "precision bf16 instead of fp32"),
        ({"warmup_epochs": 0}, "warmup_epochs 0 instead of 10"),
        ({"pair_head": "low_rank"}, "pair_head low_rank instead of bilinear"),
        ({"selection": "last"}, "selection last instead of best_val"),
        ({"jitter_probability": 0.0}, "jitter_probability 0 instead of 0.8"),
        ({"schedule": "9:learning_rate=0.1"}, "schedule 9:learning_rate=0.1 instead of none"),
        ({"image_size": 64}, "image_size 64 instead of 32"),
        ({"pretrain_dataset": "svhn"}, "pretrain_dataset svhn instead of cifar10"),
        ({"pretrain_position_embedding": True}, "pretrain_position_embedding True instead of False"),
        ({"permute_patches": True}, "permute_patches True instead of False"),
    ],
)
def test_each_departure_from_the_paper_is_a_reason(change, reason):
    runs = frame([run(), run(tasks="dist", **change)])
    assert departures(runs, "table4") == [reason]


def test_a_field_that_does_not_act_is_no_departure():
    supervised = run(tasks="none", pair_head="low_rank", sprel_weight=3.0, jitter_probability=0.0)
    assert departures(frame([supervised, run(images_of_test="10000")]), "table4") == []


@pytest.mark.parametrize("unknown", [None, pd.NA, float("nan")])
def test_what_an_older_store_does_not_know_is_no_departure(unknown):
    runs = table4(sprel=89.0)
    for name in ("image_size", "batch_size", "pair_head", "pretrain_dataset"):
        runs[name] = pd.array([unknown], dtype=object)
    assert departures(runs, "table4") == []
    assert judged("best-single-task", runs)["not_comparable"] == ""


def test_what_figure_2_varies_is_no_departure_there():
    runs = frame([run(study="figure2", pretrain_position_embedding=True, permute_patches=True)])
    assert departures(runs, "figure2") == []


@pytest.mark.parametrize("study", ["table2", "table3", "table4", "figure2"])
def test_runs_that_are_planned_with_the_papers_recipe_have_no_departures(tmp_path, study):
    cells = plan_cells(Request(study=study, recipe="paper", data_root=tmp_path))
    planned = pd.DataFrame([cell.as_dict() | {"status": "FINISHED", "git_dirty": "false"} for cell in cells])
    assert departures(planned, study) == []


def test_on_another_data_set_a_backbone_of_the_paper_is_no_second_reason():
    own = run(dataset="digits")
    assert departures(frame([own]), "table4") == ["data set digits is not in the paper's Table 4"]
    assert departures(frame([{**own, "backbone": "vit_xs4"}]), "table4") == [
        "data set digits is not in the paper's Table 4",
        "backbone ViT-XS/4 is not in the paper's Table 4",
    ]


def test_the_papers_recipe_has_no_departures():
    assert departures(frame([run()]), "table4") == []


def test_a_joint_run_has_no_pretraining_to_be_too_short():
    joint = run(study="table3", protocol="joint", pretrain_epochs=0, backbone="t2t_vit_14", dataset="flowers102")
    assert departures(frame([joint]), "table3") == []
    small = frame([{**joint, "backbone": "t2t_xs"}])
    assert departures(small, "table3") == ["T2T-ViT-XS stands in for T2T-ViT-14 on Flower-102"]


def test_figure_2_has_table_4s_data_set_and_backbone():
    assert departures(frame([run(study="figure2")]), "figure2") == []
    assert departures(frame([run(study="figure2", dataset="svhn")]), "figure2") != []


def test_unfinished_runs_give_no_reasons():
    assert departures(frame([run(status="RUNNING", epochs=1)]), "table4") == []


def test_every_reason_travels_with_the_verdict():
    runs = table4(seeds=4, sprel=90.0, dist=89.0, ang=89.0, abspos=89.0).assign(epochs=20, train_images=2000)
    row = judged("best-single-task", runs)
    assert row["verdict"] == "holds"
    expected = "20 epochs of classification instead of 100; 2,000 training images instead of all"
    assert row["not_comparable"] == expected


# Runs of other studies, mixed settings, and how many seeds decide


def test_runs_of_the_full_study_count_where_their_cell_fits():
    runs = table4(seeds=4, sprel=90.0, dist=91.0, ang=89.0, abspos=89.0).assign(study="full")
    assert judged("best-single-task", runs)["verdict"] == "contradicted"
    permuted = runs.assign(permute_patches=True)
    assert judged("best-single-task", permuted)["note"] == "no finished run has a result to compare"


def test_a_run_of_another_table_stands_in_only_where_the_table_has_none_of_its_own():
    tagged, other = table4(none=80.0), table4(none=70.0, sprel=90.0).assign(study="table2,full")
    chosen = of_study(pd.concat([tagged, other]), "table4")
    assert chosen.set_index("tasks")["test_accuracy"].to_dict() == {"none": 80.0, "sprel": 90.0}


def test_another_backbone_on_the_same_data_set_is_no_entry_of_table_4():
    runs = table4(sprel=90.0).assign(study="full", backbone="swin_t")
    assert of_study(runs, "table4").empty


def test_runs_of_mixed_recipes_decide_nothing_and_the_odd_ones_are_named():
    runs = table4(sprel=90.0, dist=91.0, ang=89.0, abspos=89.0)
    runs.loc[runs["tasks"] == "dist", "epochs"] = 300
    row = judged("best-single-task", runs)
    assert row["verdict"] == "undecided"
    assert row["note"] == "runs of mixed settings: dist with seed 0: epochs 300 instead of 100"


def test_an_undecided_claim_says_how_many_seeds_would_decide_it():
    row = judged("best-single-task", table4(seeds=4, sprel=89.15, dist=89.0, none=80.0, ang=85.0, abspos=87.0))
    assert row["verdict"] == "undecided"
    # Above by 0.15: at 5 %, 80 % power, and the spread that the comparison rests on.
    runs = table4(seeds=4, sprel=89.15, dist=89.0, none=80.0, ang=85.0, abspos=87.0)
    wide = runs.pivot(index="seed", columns="tasks", values="test_accuracy").astype(float)
    expected = seeds_for_power(0.15, compare(wide, [("sprel", "dist")])["std"].item())
    assert f"SpRel against Dist: {expected}" in row["needs"]
    assert judged("best-single-task", table4(seeds=4, sprel=90.0, dist=91.0))["needs"] == ""


# By judge: the tests that decide it, from their definition, for many draws of (differences, one draw a row).
def _above_zero(draws):
    return stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05


def _beyond_level(draws):
    return stats.ttest_1samp(draws, 95.0, axis=1).pvalue < 0.05


def _within_or_beyond_margin(draws):
    less = stats.ttest_1samp(draws, 0.5, axis=1, alternative="less").pvalue < 0.05
    more = (stats.ttest_1samp(draws, 0.5, axis=1).pvalue < 0.05) & (draws.mean(axis=1) > 0.5)
    return less | more


def _equal_or_beyond(draws):
    not_below = stats.ttest_1samp(draws, -0.5, axis=1, alternative="greater").pvalue
    not_above = stats.ttest_1samp(draws, 0.5, axis=1, alternative="less").pvalue
    low, high = stats.ttest_1samp(draws, 0.0, axis=1).confidence_interval(0.95)
    return (np.maximum(not_below, not_above) < 0.05) | (low > 0.5) | (high < -0.5)


def _equivalent_or_beyond_a_draw(draws):
    # What is stated is one draw of the cell, so the interval is that of a prediction.
    not_below = stats.ttest_1samp(draws, 2.5, axis=1, alternative="greater").pvalue
    not_above = stats.ttest_1samp(draws, 3.5, axis=1, alternative="less").pvalue
    n = draws.shape[1]
    half = stats.t.isf(0.025, n - 1) * draws.std(axis=1, ddof=1) * np.sqrt(1 + 1 / n)
    return (np.maximum(not_below, not_above) < 0.05) | (np.abs(draws.mean(axis=1) - 3) - half > 0.5)


by_tasks = PaperTable(name="pair", title="Pair", layout=lambda *_: None, label=lambda run: run["tasks"])
NEEDS = [
    (all_above(fixed(("cell", "base"))), 0.4, 0.9, _above_zero),
    (level_above("test_sprel_accuracy", "cell", 95.0), 96.2, 2.5, _beyond_level),
    (level_above("test_sprel_accuracy", "cell", 95.0), 93.0, 3.5, _beyond_level),
    (no_help("cell", "base"), 0.07, 0.74, _within_or_beyond_margin),
    (no_help("cell", "base"), 0.8, 0.5, _within_or_beyond_margin),
    (stated_gains({"gain": (("cell",), "base", 3.0)}), 3.1, 0.7, _equivalent_or_beyond_a_draw),
    (stated_gains({"gain": (("cell",), "base", 3.0)}), 5.0, 0.55, _equivalent_or_beyond_a_draw),
    (all_similar(("cell", "base"), 0.5), 0.8, 0.25, _equal_or_beyond),
]


@pytest.mark.parametrize(("judge", "mean", "std", "decided"), NEEDS)
def test_the_seeds_needed_decide_in_four_of_five_simulated_sweeps(judge, mean, std, decided):
    def made(values) -> Entries:
        """Runs of two cells, by seed, in whatever metric the judge reads."""
        levels = pd.DataFrame({"cell": values, "base": 0.0}).rename_axis("seed").melt(ignore_index=False).reset_index()
        runs = levels.assign(
            tasks=levels["variable"], test_accuracy=levels["value"], status="FINISHED", dataset="digits"
        )
        runs = runs.assign(test_sprel_accuracy=runs["value"], backbone="vit_xs4", protocol="joint")
        return Entries(by_tasks, runs)

    generator = np.random.default_rng(11)
    shape = np.array([-1.0, 0.2, 1.1, -0.3])
    seen = judge(made(mean + std * (shape - shape.mean()) / shape.std(ddof=1)), 0.5)
    assert seen.verdict == "undecided"
    seeds = int(seen.needs.rpartition(": ")[2])
    # Of 4,000 draws 80 % within three standard errors, 0.019; upwards also what the last seed adds.
    draws = generator.normal(mean, std, (4000, seeds))
    one_less = decided(draws[:, :-1]).mean()
    assert 0.78 < decided(draws).mean() < 0.82 + (decided(draws).mean() - one_less)
    assert one_less < 0.82
    for draw in draws[:25]:
        assert (judge(made(draw), 0.5).verdict != "undecided") == decided(draw[None])[0]


# The published figures


def figure_of(runs: pd.DataFrame, cell: str) -> pd.Series:
    judged = published_numbers(entries(runs, "table4"))
    return judged[(judged["cell"] == cell) & (judged["metric"] == "accuracy")].iloc[0]


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([89.0, 89.1, 88.9, 89.0], "reproduced"),  # mean 89.00 against 89.02, deviation 0.08
        ([89.5, 88.0, 90.5, 88.4], "within noise"),
        ([92.0, 92.1, 91.9, 92.0], "above"),
        ([80.0, 80.1, 79.9, 80.0], "below"),
        # Off by 0.98. The number is one draw of deviation 0.08 and of 10,000 images at 89 %, which is 0.31: 3.18 of
        # both together are 1.05, beyond the margin of 0.5.
        ([90.0, 90.1, 89.9, 90.0], "within noise"),
        ([89.3], "undecided"),
        ([99.0], "undecided"),
        ([], "undecided"),
    ],
)
def test_each_published_number_has_a_verdict(values, verdict):
    rows = [run(tasks="sprel", seed=seed, test_accuracy=value) for seed, value in enumerate(values)]
    assert figure_of(frame([*rows, run(tasks="dist", test_accuracy=89.0)]), "sprel")["verdict"] == verdict


def test_a_published_number_is_not_comparable_where_the_recipe_departs_from_the_papers():
    row = figure_of(frame([run(epochs=20, test_accuracy=50.0)]), "sprel")
    assert (row["verdict"], row["seen"]) == ("not comparable", "undecided")
    assert row["why"] == "20 epochs of classification instead of 100"


def test_a_task_s_metric_is_held_against_half_the_spread_of_its_published_column():
    found = (
        published_numbers(entries(table4(sprel=89.0), "table4")).drop_duplicates("metric").set_index("metric")["margin"]
    )
    # Dist 10.28 to 10.54, Ang 12.49 to 13.08, SpRel 48.53 to 48.98, AbsPos 15.24 to 16.07.
    expected = {"dist_mse_x100": 0.13, "ang_mse_x100": 0.295, "sprel_accuracy": 0.225, "abspos_accuracy": 0.415}
    assert found.to_dict() == pytest.approx({"accuracy": 0.5, **expected})


def test_the_equivalence_test_agrees_with_its_definition():
    # Two one-sided tests by their definition, from t's distribution alone: t = (m - bound) / (s / sqrt(n)).
    from scipy.stats import t

    values = pd.Series([89.0, 89.4, 88.8, 89.1])
    low = t.sf((values.mean() - (89.02 - 0.5)) / values.sem(), 3)
    high = t.cdf((values.mean() - (89.02 + 0.5)) / values.sem(), 3)
    rows = [run(seed=seed, test_accuracy=value) for seed, value in enumerate(values)]
    assert figure_of(frame(rows), "sprel")["p_equivalence"] == pytest.approx(max(low, high))


# Where published numbers come from


def provenance(study: str, cell: str) -> pd.Series:
    runs = published_runs()
    judged = published_numbers(entries(runs[runs["study"] == study], study)).set_index("cell")
    return judged.loc[cell]


@pytest.mark.parametrize(
    ("study", "cell", "why"),
    [
        ("table2", "cifar10 relvit", ""),
        ("table2", "flowers102 relvit", "published on the 1,020 images of the val split"),
        ("table3", "flowers102 swin relvit", "published on the 1,020 images of the val split"),
        ("table3", "cifar100 t2t drloc", "trained by Liu et al. with another recipe, tested on 10,000 images"),
        (
            "table3",
            "flowers102 t2t supervised",
            "trained by Liu et al. with another recipe on train and val, tested on 6,149 images",
        ),
        (
            "table3",
            "cifar10 swin supervised",
            "trained by Liu et al. with another recipe, tested on 10,000 images; its author later got 86.17; "
            "others got 75 to 82 with its code",
        ),
        (
            "table3",
            "cifar10 swin drloc",
            "trained by Liu et al. with another recipe, tested on 10,000 images; its author later got 88.29",
        ),
    ],
)
def test_a_published_number_of_another_recipe_or_split_is_not_comparable_and_says_why(study, cell, why):
    row = provenance(study, cell)
    assert row["why"] == row["remark"] == why
    assert row["verdict"] == ("not comparable" if why else "undecided")


def test_published_accuracies_are_ratios_of_their_number_of_images():
    # To two decimals, of images that can be counted; 59.22 cannot be had of 6,149.
    rows = pd.concat([published_rows(name) for name in ("table2", "table3", "table4")])
    rows = rows[rows["metric"] == "accuracy"]
    nearest = (rows["value"] / 100 * rows["images"]).round() / rows["images"] * 100
    assert (nearest - rows["value"]).abs().max() <= 0.005 + 1e-9
    assert abs(round(0.5922 * 6149) / 6149 * 100 - 59.22) > 0.005
    ours = rows[(rows["dataset"] == "flowers102") & (rows["trained_by"] == "Camporese et al.")]
    assert sorted(ours["value"]) == [40.59, 41.67, 44.61, 45.49, 50.59, 59.22]
    assert set(ours["images"]) == {1020}


def test_a_margin_is_no_less_than_what_the_test_images_leave_in_a_difference():
    # sqrt(2 x 0.5 x 0.5 / 1,020) = 2.2 points; of 10,000 images at 90 % it is 0.42.
    margins = margin_of(pd.Series([50.0, 90.0]), pd.Series([1020, 10_000]))
    assert margins.tolist() == pytest.approx([2.2140, 0.5], abs=1e-4)


def test_a_gain_that_is_stated_of_other_images_is_not_held_against_the_runs():
    table = verdicts(published_runs())
    reason = table.loc["variants-gains", "not_comparable"]
    assert "trained by Liu et al. with another recipe on train and val, tested on 6,149 images" in reason
    assert "published on the 1,020 images of the val split" in reason
    assert table.loc["finetuning-gains", "not_comparable"] == ""
    # What our own runs say of an order of our own cells needs no published number.
    assert table.loc["variants-above-drloc", "not_comparable"] == ""
    assert "its author later got 88.29" in table.loc["variants-above-drloc", "remark"]
