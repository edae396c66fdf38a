"""Evaluations of a finished pre-training: few labels, another image size, and several that share one pre-training."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paper_runs import entries, row
from helpers.paper_runs import table as layout
from helpers.tiny import TINY, newest, without_speeds

from relvit import data
from relvit.backbones import build_backbone, fitted, resize_problem
from relvit.cell import make_cell
from relvit.data import DataError
from relvit.train import train
from sweeps.planning.plan import PlanError, Request, plan, plan_cells, prepare_data, shared_pretrainings
from sweeps.planning.studies import study

# Few labels


@pytest.mark.parametrize(("how", "expected"), [({"per_class": 3}, [3] * 10), ({"share": 0.1}, None)])
def test_labels_are_drawn_by_class(digits, how, expected):
    whole, _ = digits.train_val(0)
    counts = np.bincount(whole.labels)
    drawn = digits.labelled(whole, 0, **how)
    wanted = expected or [round(count * 0.1) for count in counts]
    assert np.bincount(drawn.labels).tolist() == wanted
    assert set(drawn.rows) < set(whole.rows)
    images, labels = drawn.read(np.arange(len(drawn)))
    place = {row: index for index, row in enumerate(whole.rows)}
    expected_images, expected_labels = whole.read(np.array([place[row] for row in drawn.rows]))
    assert np.array_equal(images, expected_images)
    assert np.array_equal(labels, expected_labels)


def test_the_draw_follows_the_seed_and_fewer_labels_are_among_more(digits):
    whole, _ = digits.train_val(0)
    few, again, more = (set(digits.labelled(whole, 4, count).rows) for count in (2, 2, 5))
    assert few == again
    assert few < more
    assert few != set(digits.labelled(whole, 5, 2).rows)
    assert digits.labelled(whole, 4) is whole


def test_a_share_leaves_each_class_at_least_one_label(digits):
    assert len(digits.labelled(digits.train_val(0)[0], 0, share=0.001)) == 10


def test_more_labels_than_a_class_has_images_are_refused_before_the_first_trial(small, tmp_path):
    with pytest.raises(DataError, match="labels_per_class=9, but class '[0-9]' of digits has [0-8] of the training"):
        small.labelled(small.train_val(0)[0], 0, 9)
    data.prepare("digits", tmp_path, 16)
    request = Request("table4", "demo", tmp_path, settings=("labels_per_class=200",))
    (problem,) = prepare_data(plan_cells(request), tmp_path)
    assert problem.startswith("labels_per_class=200, but class '")


def steps(folder: Path) -> int:
    return len(newest(folder)["schedule"])


FEW = TINY | {"labels_per_class": 2, "batch_size": 8, "pretrain_epochs": 1, "epochs": 1, "warmup_epochs": 0}


def test_tasks_pre_train_on_all_images_and_classes_are_learned_on_those_with_a_label(small, tmp_path):
    rows = train(make_cell(**FEW), small, tmp_path)
    next(rows)
    assert steps(tmp_path) == 9  # 72 images
    next(rows)
    assert steps(tmp_path) == 3  # two of each of ten classes


def test_a_supervised_cell_reads_its_labelled_images_alone_in_both_phases(small, tmp_path):
    rows = train(make_cell(**FEW | {"tasks": "none"}), small, tmp_path)
    for _ in range(2):
        next(rows)
        assert steps(tmp_path) == 3


def test_what_is_transferred_from_has_all_of_its_labels():
    supervised = FEW | {"tasks": "none", "pretrain_dataset": "shapes"}
    assert make_cell(**supervised).pretraining().labels_per_class == 0
    assert make_cell(**supervised | {"pretrain_dataset": "digits"}).pretraining().labels_per_class == 2


def test_cells_with_few_labels_share_the_pre_training_of_the_others_and_end_with_the_same_bits(small, tmp_path):
    shared = tmp_path / "shared"
    list(train(make_cell(**FEW | {"labels_per_class": 0}), small, tmp_path / "all", pretrained=shared))
    few = make_cell(**FEW)
    taken = list(train(few, small, tmp_path / "taken", pretrained=shared))
    alone = list(train(few, small, tmp_path / "alone"))
    assert without_speeds(taken) == without_speeds(alone)
    for name, value in newest(tmp_path / "alone")["model"].items():
        assert torch.equal(value, newest(tmp_path / "taken")["model"][name])


def test_two_ways_to_say_how_many_labels_are_refused():
    with pytest.raises(ValueError, match="labels_per_class and label_share are two ways to say one thing"):
        make_cell(**FEW | {"label_share": 0.5})


# Another image size


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """The small digits at 32 x 32."""
    whole = data.prepare("digits", tmp_path_factory.mktemp("data"), 32)
    return dataclasses.replace(whole, train=whole.train.part(np.arange(80)), test=whole.test.part(np.arange(40)))


def test_a_position_embedding_is_interpolated_to_the_larger_grid():
    """On a ramp over columns the larger embedding is one too, between the same ends, and the class token's stays."""
    small, large = (build_backbone("vit_xs4", size) for size in (16, 32))
    state = small.state_dict()
    state["vit.pos_embed"][:, 0] = 7
    state["vit.pos_embed"][0, 1:] = torch.arange(4.0).repeat(4)[:, None]
    found = fitted(state, large)["vit.pos_embed"]
    assert found.shape == (1, 65, 96)
    assert (found[0, 0] == 7).all()
    ramp = found[0, 1:, 0].view(8, 8)
    assert (ramp - ramp[:1]).abs().max() < 1e-5
    assert (ramp[0].diff() > 0).all()
    assert ramp.mean() == pytest.approx(1.5, abs=1e-4)


@pytest.mark.parametrize("embedding", [True, False])
def test_fine_tuning_at_another_size_trains_on_its_images_and_tests_there(small, larger, tmp_path, embedding):
    cell = make_cell(
        **TINY | {"backbone": "vit_xs4", "finetune_image_size": 32, "pretrain_position_embedding": embedding}
    )
    rows = list(train(cell, larger, tmp_path, pretrain_dataset=small))
    assert [row["phase"] for row in rows] == ["pretrain", "pretrain", "finetune", "finetune", "test"]
    assert newest(tmp_path)["model"]["backbone.vit.pos_embed"].shape == (1, 65, 96)


def test_a_run_interrupted_at_the_other_size_ends_with_the_same_bits(small, larger, tmp_path):
    cell = make_cell(**TINY | {"finetune_image_size": 32, "pretrain_position_embedding": True})
    whole = list(train(cell, larger, tmp_path / "whole", pretrain_dataset=small))
    for count in (2, 3):
        rows = train(cell, larger, tmp_path / str(count), pretrain_dataset=small)
        for _ in range(count):
            next(rows)
        rows.close()
        resumed = list(train(cell, larger, tmp_path / str(count), pretrain_dataset=small))
        assert without_speeds(resumed) == without_speeds(whole)


@pytest.mark.parametrize(
    ("backbone", "sizes", "said"),
    [
        ("vit_xs8", (16, 48), ""),
        ("t2t_xs", (64, 96), ""),
        ("timm/vit_tiny_patch16_224", (64, 96), ""),
        ("timm/cait_xxs24_224", (64, 96), ""),  # its embedding has no place for the class token
        ("timm/convnext_atto", (64, 96), ""),
        ("timm/resmlp_12_224", (64, 96), "blocks.0.linear_tokens.bias is [16] at one image size and [36]"),
    ],
)
def test_a_backbone_says_whether_its_image_size_can_change(backbone, sizes, said):
    problem = resize_problem(backbone, *sizes)
    assert (said in problem) if said else problem == ""


def test_an_image_size_that_cannot_follow_is_refused_in_the_plan(tmp_path):
    request = Request("table4", "demo", tmp_path, backbone="vit_xs4", evaluate=("finetune:finetune_image_size=30",))
    with pytest.raises(PlanError, match="do not divide a finetune_image_size of 30: try 28 or 32"):
        plan_cells(request)
    mixer = Request("table4", "demo", tmp_path, backbone="timm/resmlp_12_224", image_size=64)
    with pytest.raises(PlanError, match="timm/resmlp_12_224 cannot change its image size"):
        plan_cells(dataclasses.replace(mixer, evaluate=("finetune:finetune_image_size=96",)))


# Several evaluations of one pre-training


def evaluated(tmp_path, *evaluate, **changes):
    return plan(
        Request(**{"study": "table4", "recipe": "demo", "data_root": tmp_path, "evaluate": evaluate, **changes})
    )


def test_each_evaluation_is_a_cell_and_all_share_one_pre_training(tmp_path):
    wanted = ("knn", "probe", "finetune", "finetune:labels_per_class=10:epochs=50")
    planned = evaluated(tmp_path, *wanted, combinations=("sprel+abspos",))
    knn, probe, finetune, few = planned
    assert [cell.protocol for cell in planned] == ["pretrain", "pretrain_probe", *["pretrain_finetune"] * 2]
    assert (probe.probe, finetune.labels_per_class, few.labels_per_class, few.epochs) == ("logistic", 0, 10, 50)
    assert {cell.pretraining() for cell in (probe, finetune, few)} == {knn}
    assert set(shared_pretrainings(planned).values()) == {knn}
    # What the study has anyway stays its own as well.
    assert [planned[cell] for cell in planned] == [
        ("table4-evaluations",), ("table4-evaluations",), ("table4-evaluations", "table4"), ("table4-evaluations",)
    ]  # fmt: skip


def test_the_supervised_cell_has_no_knn_on_test_images(tmp_path):
    assert len(evaluated(tmp_path, "knn", "probe")) == 15 + 16


def test_transfer_keeps_the_pre_training_where_it_was(tmp_path):
    (cell,) = evaluated(tmp_path, "finetune:dataset=svhn", combinations=("sprel",))
    assert (cell.dataset, cell.pretrain_dataset) == ("svhn", "digits")
    assert cell.pretraining() == evaluated(tmp_path, "finetune", combinations=("sprel",)).popitem()[0].pretraining()


def test_a_study_file_names_its_evaluations(tmp_path):
    path = tmp_path / "mine.py"
    cells = [{"dataset": "digits", "backbone": "vit_xs4", "protocol": "pretrain_finetune", "tasks": "sprel"}]
    path.write_text(f"cells = {cells!r}\nevaluate = ['knn', 'finetune:label_share=0.1']")
    assert study(str(path)).evaluate == ("knn", "finetune:label_share=0.1")
    planned = plan(Request(str(path), "demo", tmp_path))
    assert [(cell.protocol, cell.label_share) for cell in planned] == [("pretrain", 1.0), ("pretrain_finetune", 0.1)]
    assert set(planned.values()) == {("mine",)}
    path.write_text(f"cells = {cells!r}\nevaluate = 'knn'")
    with pytest.raises(ValueError, match="`evaluate` must be a list of texts"):
        study(str(path))


@pytest.mark.parametrize(
    ("evaluate", "study_name", "message"),
    [
        ("fintune", "table4", "unknown evaluation 'fintune': one of knn, probe, finetune; did you mean 'finetune'?"),
        ("finetune:lables_per_class=1", "table4", "did you mean 'labels_per_class'?"),
        ("finetune:labels_per_class=few", "table4", "labels_per_class must be of type int, not 'few'"),
        ("finetune:labels_per_class", "table4", "'labels_per_class' is not written FIELD=VALUE"),
        ("finetune:protocol=joint", "table4", "protocol is not for an evaluation to say"),
        ("knn:labels_per_class=10", "table4", "labels_per_class=10 has no effect there"),
        ("probe:finetune_image_size=32", "table4", "finetune_image_size=32 has no effect there"),
        ("finetune:dataset=nowhere", "table4", "--evaluate finetune:dataset=nowhere: unknown data set 'nowhere'"),
        ("finetune:label_share=0", "table4", "--evaluate finetune:label_share=0: label_share must be above 0"),
        ("knn", "figure2", "--evaluate needs a pre-training, and cells of protocol 'joint' have none"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_with_the_reason(tmp_path, evaluate, study_name, message):
    with pytest.raises(PlanError) as error:
        evaluated(tmp_path, evaluate, study=study_name)
    assert message in str(error.value)


def test_wrong_evaluations_are_said_beside_a_wrong_study(tmp_path):
    with pytest.raises(PlanError) as error:
        evaluated(tmp_path, "probee", "finetune:epochs=many", study="tabel4")
    said = ["unknown study 'tabel4'", "unknown evaluation 'probee'", "epochs must be of type int, not 'many'"]
    assert [text in problem for text, problem in zip(said, error.value.problems, strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("evaluate", "changed"),
    [
        (["finetune", "finetune:weight_decay=0.1"], "weight_decay"),
        (["finetune:weight_decay=0.1", "finetune"], "weight_decay"),
        (["finetune:weight_decay=0.1"], "weight_decay"),  # of the study's own pre-training
        (["finetune:pair_head=low_rank"], "pair_head"),
    ],
)
def test_an_evaluation_does_not_change_the_pre_training(tmp_path, evaluate, changed):
    with pytest.raises(PlanError) as error:
        evaluated(tmp_path, *evaluate, combinations=("sprel",))
    (blamed,) = [text for text in evaluate if text != "finetune"]
    assert error.value.problems == [
        f"--evaluate {blamed}: {changed} changes the pre-training, which evaluations share; change it for all with "
        "--set"
    ]


def test_a_supervised_pre_training_alone_has_nothing_that_knn_could_measure(tmp_path):
    with pytest.raises(PlanError) as error:
        evaluated(tmp_path, "knn", combinations=("none",))
    assert error.value.problems == [
        "--evaluate knn: a supervised pre-training has no k-NN on test images: add finetune or probe, or choose tasks "
        "with --tasks"
    ]


# Their table


def test_the_table_of_evaluations_has_each_with_what_it_is_tested_by(tmp_path):
    wanted = ("knn", "probe", "finetune", "finetune:labels_per_class=10")
    planned = list(evaluated(tmp_path, *wanted, combinations=("sprel",)))
    found = (
        {"knn_accuracy": 41.5, "sprel_accuracy": 50.0},
        {"accuracy": 75.0, "knn_accuracy": 41.5, "sprel_accuracy": 50.0},
        {"accuracy": 90.0, "knn_accuracy": 41.5, "sprel_accuracy": 50.0},
        {"accuracy": 60.0, "knn_accuracy": 41.5, "sprel_accuracy": 50.0},
    )
    rows = [row(cell, **values) | {"study": "mine"} for cell, values in zip(planned, found)]
    table = layout("mine", rows)
    assert [column.key for column in table.columns] == [
        *("protocol", "labels_per_class", "sprel_accuracy", "knn", "accuracy", "n")
    ]
    assert [[entry.text for entry in each.entries] for each in table.rows] == [
        ["pretrain", "0", "50.00", "41.50", "×", "1/1"],
        ["pretrain_probe", "0", "50.00", "×", "75.00", "1/1"],
        ["pretrain_finetune", "0", "50.00", "×", "90.00", "1/1"],
        ["pretrain_finetune", "10", "50.00", "×", "60.00", "1/1"],
    ]
    assert table.caption.startswith("k-NN accuracy and Test accuracy in % of the cells of mine.")
    assert "10 labels a class" in table.caption


def test_a_recipe_beyond_the_papers_is_named_and_is_no_replication(tmp_path):
    cells = plan_cells(Request("table4", "paper", tmp_path, settings=("mixup=0.8",)))
    runs = entries("table4", [row(cell, accuracy=90.0) for cell in cells])
    assert "mixup 0.8 instead of 0" in runs.departures
    assert "fp32, mixup 0.8;" in layout("table4", [row(cell, accuracy=90.0) for cell in cells]).caption
