"""The train loop: schedule, phases, what it reports, and that an interrupted run ends as if it had not been.

A stop is a generator that is closed, or a folder whose files were damaged; a new generator on the same folder resumes.
"""

import dataclasses
import itertools
import math
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.tiny import TINY, newest, silent, take, unreadable, without_speeds
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from relvit import checkpoint, data
from relvit.backbones import build_backbone
from relvit.cell import make_cell
from relvit.data import Dataset, Split
from relvit.model import RelViT
from relvit.pictures import trained_backbone
from relvit.targets import spatial_relations
from relvit.train import NotFiniteError, Phase, learning_rates, phases, train
from relvit.vocabulary import SPEEDS

# Schedule and phases


def test_the_learning_rate_warms_up_linearly_and_falls_as_a_cosine():
    # Two steps of warm-up, then cosines of 0, 45, 90 and 135 degrees.
    cosine = math.cos(math.pi / 4)
    expected = [0.5, 1, 1, (1 + cosine) / 2, 0.5, (1 - cosine) / 2]
    np.testing.assert_allclose(learning_rates(1.0, 2, 6), expected)
    np.testing.assert_allclose(learning_rates(0.001, 2, 6), np.array(expected) / 1000)


def test_without_warm_up_the_learning_rate_starts_at_its_maximum():
    np.testing.assert_allclose(learning_rates(2.0, 0, 2), [2, 1])


def test_a_long_schedule_has_one_peak_and_ends_near_zero():
    rates = learning_rates(0.001, 100, 1000)
    assert rates.shape == (1000,)
    assert rates.dtype == np.float64
    assert rates[0] == pytest.approx(0.001 / 100)
    assert rates.max() == rates[99] == rates[100] == 0.001
    assert (np.diff(rates[:100]) > 0).all()
    assert (np.diff(rates[100:]) < 0).all()
    assert 0 < rates[-1] < 1e-8


def test_the_phases_of_each_protocol():
    tasks = ("sprel", "abspos")
    rates = {"pretrain_learning_rate": 0.25, "learning_rate": 0.5}
    alone = Phase("pretrain", tasks, False, 5, 0.25, position_embedding=False, frozen=False, mega_grid=0, image_size=16)
    classes = Phase("finetune", (), True, 7, 0.5, position_embedding=True, frozen=False, mega_grid=0, image_size=16)
    fields = TINY | {"pretrain_epochs": 5, "epochs": 7} | rates
    assert phases(make_cell(**fields)) == [alone, classes]
    assert phases(make_cell(**fields | {"protocol": "pretrain"})) == [alone]
    # A linear probe reads the features as they were learned, with the position embedding that pre-training had.
    probe = classes._replace(name="probe", frozen=True)
    for embedding in (False, True):
        assert phases(
            make_cell(**fields | {"protocol": "pretrain_probe", "pretrain_position_embedding": embedding})
        ) == [alone._replace(position_embedding=embedding), probe._replace(position_embedding=embedding)]
    assert phases(make_cell(**fields | {"backbone": "vit_xs4", "mega_grid": 3})) == [
        alone._replace(mega_grid=3),
        classes,
    ]
    assert phases(make_cell(**fields | {"tasks": "none", "pretrain_position_embedding": True})) == [
        Phase("pretrain", (), True, 5, 0.25, position_embedding=True, frozen=False, mega_grid=0, image_size=16),
        classes,
    ]
    assert phases(make_cell(**fields | {"protocol": "joint"})) == [
        Phase("joint", tasks, True, 7, 0.5, position_embedding=True, frozen=False, mega_grid=0, image_size=16)
    ]
    assert phases(make_cell(**fields | {"protocol": "joint", "tasks": "none"})) == [
        Phase("joint", (), True, 7, 0.5, position_embedding=True, frozen=False, mega_grid=0, image_size=16)
    ]


# What is reported

OF_AN_EPOCH = {"epoch", "phase", "learning_rate", *SPEEDS[:3]}
OF_THE_END = {"epoch", "phase", "selected_epoch", *SPEEDS[3:]}
KNN = {"test_knn_accuracy", "test_knn_pooled_accuracy"}


def knn_of(row):
    """The names of k-NN accuracies in a row: where a pre-training ends, after 2 epochs, and nowhere else."""
    return {"pretrain_val_knn_accuracy", "pretrain_val_knn_pooled_accuracy"} if row["epoch"] == 2 else set()


def test_tasks_then_classification_report_these_names(small, tmp_path):
    rows = list(train(make_cell(**TINY | {"backbone": "vit_xs4"}), small, tmp_path))
    assert [(row["epoch"], row["phase"]) for row in rows] == [
        (1, "pretrain"),
        (2, "pretrain"),
        (3, "finetune"),
        (4, "finetune"),
        (4, "test"),
    ]
    for row in rows[:2]:
        assert set(row) - knn_of(row) == OF_AN_EPOCH | {
            "pretrain_train_loss",
            "pretrain_train_sprel_loss",
            "pretrain_train_abspos_loss",
            "pretrain_train_gradient_norm",
            "pretrain_val_sprel_loss",
            "pretrain_val_abspos_loss",
            "pretrain_val_sprel_accuracy",
            "pretrain_val_abspos_accuracy",
        }
    for row in rows[2:4]:
        assert set(row) == OF_AN_EPOCH | {
            "finetune_train_loss",
            "finetune_train_classification_loss",
            "finetune_train_gradient_norm",
            "finetune_val_classification_loss",
            "finetune_val_accuracy",
        }
    assert set(rows[4]) == OF_THE_END | KNN | {"test_sprel_accuracy", "test_abspos_accuracy", "test_accuracy"}
    assert knn_of(rows[1]) <= set(rows[1])
    assert all(math.isfinite(value) for row in rows for name, value in row.items() if name != "phase")


def test_classification_in_both_phases_reports_these_names(small, tmp_path):
    rows = list(train(make_cell(**TINY | {"tasks": "none"}), small, tmp_path))
    assert [row["phase"] for row in rows] == ["pretrain", "pretrain", "finetune", "finetune", "test"]
    for row in rows[:4]:
        prefix = row["phase"]
        assert set(row) - knn_of(row) == OF_AN_EPOCH | {
            f"{prefix}_train_loss",
            f"{prefix}_train_classification_loss",
            f"{prefix}_train_gradient_norm",
            f"{prefix}_val_classification_loss",
            f"{prefix}_val_accuracy",
        }
    assert set(rows[4]) == OF_THE_END | {"test_accuracy"}  # of a pre-training on classes k-NN is taken on val alone
    assert rows[4]["selected_epoch"] in (3, 4)  # only the last phase is selected from


def test_joint_training_reports_these_names(small, tmp_path):
    rows = list(train(make_cell(**TINY | {"protocol": "joint", "tasks": "dist+ang"}), small, tmp_path))
    assert [row["phase"] for row in rows] == ["joint", "joint", "test"]
    for row in rows[:2]:
        assert set(row) == OF_AN_EPOCH | {
            "joint_train_loss",
            "joint_train_dist_loss",
            "joint_train_ang_loss",
            "joint_train_classification_loss",
            "joint_train_gradient_norm",
            "joint_val_dist_loss",
            "joint_val_ang_loss",
            "joint_val_classification_loss",
            "joint_val_dist_mse_x100",
            "joint_val_ang_mse_x100",
            "joint_val_accuracy",
        }
        assert row["joint_val_dist_mse_x100"] == pytest.approx(100 * row["joint_val_dist_loss"])
    assert set(rows[2]) == OF_THE_END | {"test_dist_mse_x100", "test_ang_mse_x100", "test_accuracy"}


def test_the_loss_is_the_weighted_sum_of_its_parts_and_the_learning_rate_that_of_the_last_step(small, tmp_path):
    cell = make_cell(**TINY | {"protocol": "joint", "sprel_weight": 3.0, "abspos_weight": 0.25})
    first, second = take(2, train(cell, small, tmp_path))
    for row in (first, second):
        assert row["joint_train_loss"] == pytest.approx(
            3 * row["joint_train_sprel_loss"]
            + 0.25 * row["joint_train_abspos_loss"]
            + row["joint_train_classification_loss"],
            rel=1e-5,
        )
    # Three steps of warm-up end at the maximum; of the three that follow the last is two thirds down the cosine.
    assert first["learning_rate"] == pytest.approx(0.001)
    assert second["learning_rate"] == pytest.approx(0.001 * (1 + math.cos(2 / 3 * math.pi)) / 2)


def test_the_test_metrics_are_those_of_the_saved_weights_on_the_test_images(small, tmp_path):
    cell = make_cell(**TINY | {"protocol": "joint", "tasks": "sprel", "backbone": "vit_xs4"})
    rows = list(train(cell, small, tmp_path))
    model = RelViT(build_backbone("vit_xs4", 16), ("sprel",), classes=10)
    model.load_state_dict(newest(tmp_path)["model"])
    images, labels = small.test.read(np.arange(40))
    pixels = (torch.from_numpy(images) / 255 - torch.tensor(small.mean)) / torch.tensor(small.std)
    with torch.inference_mode():
        predictions = model.eval()(pixels.permute(0, 3, 1, 2))
    right = (predictions["classification"].argmax(1).numpy() == labels).mean()
    assert rows[-1]["test_accuracy"] == pytest.approx(100 * right)
    pairs_right = (predictions["sprel"].argmax(-1) == spatial_relations(4, 4)).double().mean().item()
    assert rows[-1]["test_sprel_accuracy"] == pytest.approx(100 * pairs_right, rel=1e-5)


def test_the_metric_of_a_task_is_that_of_the_end_of_its_phase(small, tmp_path):
    short = list(train(make_cell(**TINY), small, tmp_path / "short"))[-1]
    long = list(train(make_cell(**TINY | {"epochs": 3}), small, tmp_path / "long"))[-1]
    assert short["test_sprel_accuracy"] == long["test_sprel_accuracy"]
    assert short["test_abspos_accuracy"] == long["test_abspos_accuracy"]


def test_the_same_cell_gives_the_same_rows_and_another_seed_others(small, tmp_path):
    one = take(2, train(make_cell(**TINY), small, tmp_path / "one"))
    same = take(2, train(make_cell(**TINY), small, tmp_path / "same"))
    other = take(2, train(make_cell(**TINY | {"seed": 1}), small, tmp_path / "other"))
    assert without_speeds(one) == without_speeds(same)
    assert one[0]["pretrain_train_loss"] != other[0]["pretrain_train_loss"]


def test_training_learns(small, tmp_path):
    cell = make_cell(
        **TINY
        | {"protocol": "joint", "tasks": "none", "epochs": 12, "learning_rate": 2e-3, "selection": "last"}
        | {"crop_padding": 0, "flip_probability": 0.0}
    )
    rows = list(train(cell, small, tmp_path))
    assert rows[11]["joint_train_loss"] < 0.5 * rows[0]["joint_train_loss"]
    assert rows[-1]["test_accuracy"] > 50  # one in ten is chance


# Selection


@pytest.mark.parametrize("options", [{"test": False}, {"stop_after": 2}])
def test_a_row_after_which_a_search_decides_has_its_checkpoint_already(options, small, tmp_path, monkeypatch):
    write_atomic = checkpoint.write_atomic

    def on_a_slow_disk(path, payload, permit):
        time.sleep(0.5)
        write_atomic(path, payload, permit)

    monkeypatch.setattr(checkpoint, "write_atomic", on_a_slow_disk)
    cell = make_cell(**TINY | {"protocol": "joint", "epochs": 3})
    rows = train(cell, small, tmp_path, **options)
    for row in rows:
        if options == {"test": False} or row["epoch"] == 2:
            assert newest(tmp_path)["phase_epoch"] == row["epoch"]


def test_best_val_tests_the_weights_of_the_first_epoch_of_the_highest_validation_accuracy(small, digits, tmp_path):
    # With every validation label wrong the accuracy falls while the model learns, so that the best epoch is early.
    rest = digits.train.part(np.arange(800, 1438))
    val = dataclasses.replace(rest, labels=(rest.labels + 1) % 10)
    dataset = dataclasses.replace(small, train=digits.train.part(np.arange(800)), val=val)
    cell = make_cell(
        **TINY
        | {"protocol": "joint", "tasks": "none", "epochs": 4, "warmup_epochs": 0}
        | {"crop_padding": 0, "flip_probability": 0.0}
    )
    weights = {}
    for epoch in range(1, 5):
        list(train(cell, dataset, tmp_path / "by epoch", stop_after=epoch, test=False))
        weights[epoch] = newest(tmp_path / "by epoch")["model"]
    rows = list(train(cell, dataset, tmp_path / "whole"))
    accuracies = [row["joint_val_accuracy"] for row in rows[:4]]
    selected = rows[-1]["selected_epoch"]
    assert selected == 1 + accuracies.index(max(accuracies))
    assert selected < 4, "the best epoch has to be before the last, or this shows nothing"
    tested = newest(tmp_path / "whole")["model"]
    assert all(tested[name].equal(value) for name, value in weights[selected].items())


def test_of_epochs_of_equal_accuracy_the_first_is_selected(small, tmp_path):
    # A learning rate that changes nothing.
    cell = make_cell(**TINY | {"protocol": "joint", "epochs": 3, "learning_rate": 1e-20})
    rows = list(train(cell, small, tmp_path))
    assert len({row["joint_val_accuracy"] for row in rows[:3]}) == 1
    assert rows[-1]["selected_epoch"] == 1


def test_last_tests_the_last_weights(small, tmp_path):
    cell = make_cell(**TINY | {"protocol": "joint", "epochs": 3, "learning_rate": 1e-20, "selection": "last"})
    assert list(train(cell, small, tmp_path))[-1]["selected_epoch"] == 3


def test_both_selections_train_alike(small, tmp_path):
    best = list(train(make_cell(**TINY), small, tmp_path / "best"))
    last = list(train(make_cell(**TINY | {"selection": "last"}), small, tmp_path / "last"))
    assert without_speeds(best[:-1]) == without_speeds(last[:-1])


# Resuming

VARIANTS = {
    "tasks then classification": {},
    "permuted patches with position embeddings": {"permute_patches": True, "pretrain_position_embedding": True},
    # Drop path draws from torch's global generator.
    "classification twice with drop path": {"tasks": "none", "drop_path": 0.3},
    "joint with resized crops": {"protocol": "joint", "epochs": 4, "crop_padding": 0, "crop_min_area": 0.5},
    # So does drloc, for its pairs.
    "drloc on a Swin Transformer": {"protocol": "joint", "tasks": "drloc", "backbone": "swin_xs8", "epochs": 4},
    "mega-patches then a probe": {"backbone": "vit_xs4", "mega_grid": 2, "protocol": "pretrain_probe"},
}


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS)
def uninterrupted(request, small, tmp_path_factory):
    """A cell of four epochs, its rows and its tested weights."""
    cell = make_cell(**TINY | request.param)
    folder = tmp_path_factory.mktemp("uninterrupted")
    rows = list(train(cell, small, folder))
    return cell, rows, newest(folder)["model"]


@pytest.fixture(scope="module")
def stopped(uninterrupted, small, tmp_path_factory):
    """Fills a folder with what the same cell leaves that is stopped after every epoch, as of so many epochs."""
    cell, rows, _ = uninterrupted
    folder = tmp_path_factory.mktemp("stopped")
    for count in (1, 2, 3, 4):
        assert without_speeds(take(count, train(cell, small, folder / "cell"))) == without_speeds(rows[:count])
        shutil.copytree(folder / "cell", folder / str(count))
    return lambda count, target: shutil.copytree(folder / str(count), target, dirs_exist_ok=True)


def assert_ends_as(uninterrupted, rows, folder):
    _, expected_rows, expected_weights = uninterrupted
    assert without_speeds(rows) == without_speeds(expected_rows)
    weights = newest(folder)["model"]
    assert list(weights) == list(expected_weights)
    assert all(value.equal(expected_weights[name]) for name, value in weights.items())


# What is stopped before its test was stopped after every epoch on the way.
@pytest.mark.parametrize(
    "stopped_after",
    [
        pytest.param(1, id="in the first phase"),
        pytest.param(2, id="at the seam of two phases"),
        pytest.param(3, id="in the last phase"),
        pytest.param(4, id="before the test"),
    ],
)
def test_a_stopped_run_ends_bit_for_bit_as_if_it_had_not_been(uninterrupted, stopped, small, tmp_path, stopped_after):
    stopped(stopped_after, tmp_path)
    assert without_speeds(newest(tmp_path)["history"]) == without_speeds(uninterrupted[1][:stopped_after])
    assert_ends_as(uninterrupted, list(train(uninterrupted[0], small, tmp_path, note=silent)), tmp_path)


def test_a_run_that_fails_before_its_first_checkpoint_starts_from_its_seed(uninterrupted, small, tmp_path):
    cell = uninterrupted[0]
    with pytest.raises(OSError, match="the disk has gone"):
        next(train(cell, dataclasses.replace(small, train=unreadable(small.train)), tmp_path))
    assert newest(tmp_path) is None
    assert_ends_as(uninterrupted, list(train(cell, small, tmp_path, note=silent)), tmp_path)


def test_a_run_that_fails_while_it_is_tested_resumes_at_the_test(uninterrupted, stopped, small, tmp_path):
    cell = uninterrupted[0]
    # The test split is read at the end of a phase of tasks too, so that it is taken away only after the seam.
    stopped(4, tmp_path)
    gone = dataclasses.replace(small, test=unreadable(small.test))
    with pytest.raises(OSError, match="the disk has gone"):
        list(train(cell, gone, tmp_path))
    assert len(newest(tmp_path)["history"]) == 4
    assert_ends_as(uninterrupted, list(train(cell, small, tmp_path, note=silent)), tmp_path)


def test_a_truncated_newest_checkpoint_costs_an_epoch_and_nothing_else(uninterrupted, stopped, small, tmp_path):
    cell = uninterrupted[0]
    stopped(4, tmp_path)
    path = max(tmp_path.glob("*.pt"))
    assert path.name.startswith("000004-")
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / f".{path.name}.4711.tmp").touch()  # what a killed process was writing
    notes = []
    rows = list(train(cell, small, tmp_path, note=notes.append))
    assert len(notes) == 1
    assert path.name in notes[0]
    assert_ends_as(uninterrupted, rows, tmp_path)
    assert sorted(left.name.split("-")[0] for left in tmp_path.iterdir()) == ["evaluation.json", "final"]


@pytest.mark.parametrize("uninterrupted", [{}], indirect=True)
def test_with_all_checkpoints_truncated_the_cell_starts_from_its_seed(uninterrupted, stopped, small, tmp_path):
    cell = uninterrupted[0]
    stopped(3, tmp_path)
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    notes = []
    rows = list(train(cell, small, tmp_path, note=notes.append))
    assert len(notes) == 2
    assert_ends_as(uninterrupted, rows, tmp_path)


def test_what_was_begun_on_a_gpu_is_refused_on_a_cpu_with_what_helps(small, tmp_path):
    cell = make_cell(**TINY)
    take(1, train(cell, small, tmp_path))
    state = newest(tmp_path)
    state["random"]["cuda"] = [torch.zeros(16, dtype=torch.uint8)]
    checkpoint.save(state, tmp_path, 1, keep=1)
    with pytest.raises(ValueError) as caught:
        next(train(cell, small, tmp_path))
    assert str(caught.value) == (
        f"{cell.cell_id} was begun on a GPU, and a CPU has other random numbers: give its trial a GPU, or remove its "
        "folder to train it anew"
    )


@pytest.mark.parametrize("uninterrupted", [{}], indirect=True)
def test_rarer_checkpoints_change_nothing_and_the_end_of_a_phase_always_has_one(uninterrupted, small, tmp_path):
    cell = uninterrupted[0]
    # Four epochs in two phases.
    for stopped_after, epochs in ((1, []), (3, ["000002"]), (4, ["000002", "000004"])):
        take(stopped_after, train(cell, small, tmp_path, checkpoint_every=100))
        assert sorted(path.name.split("-")[0] for path in tmp_path.glob("*.pt")) == epochs
    assert_ends_as(uninterrupted, list(train(cell, small, tmp_path, checkpoint_every=100)), tmp_path)


def test_a_finished_cell_is_reported_again_without_reading_an_image(small, tmp_path):
    cell = make_cell(**TINY)
    rows = list(train(cell, small, tmp_path))
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["evaluation.json", "final"]
    gone = dataclasses.replace(small, train=unreadable(small.train), test=unreadable(small.test))
    assert list(train(cell, gone, tmp_path)) == rows  # speeds included


def test_the_newest_checkpoints_are_kept_as_asked(small, tmp_path):
    take(4, train(make_cell(**TINY), small, tmp_path, keep=3))
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["000002", "000003", "000004"]


def test_fine_tuning_starts_from_the_pretrained_backbone(small, tmp_path):
    # The weights at the seam are replaced by ones that no initialisation would give, and hardly trained after that.
    cell = make_cell(**TINY | {"learning_rate": 1e-6})
    take(2, train(cell, small, tmp_path))
    state = newest(tmp_path)
    generator = torch.Generator().manual_seed(0)
    planted = {name: torch.rand(value.shape, generator=generator) for name, value in state["model"].items()}
    for path in tmp_path.glob("*.pt"):
        path.unlink()
    checkpoint.save(state | {"model": planted}, tmp_path, 2, keep=2)
    list(train(cell, small, tmp_path))
    tested = newest(tmp_path)["model"]
    kept = [name for name in planted if name.startswith("backbone.")]
    assert set(tested) == {*kept, "backbone.vit.pos_embed", "classifier.weight", "classifier.bias"}
    for name in kept:
        torch.testing.assert_close(tested[name], planted[name], atol=1e-4, rtol=0)


def test_the_checkpoints_of_another_cell_are_refused(small, tmp_path):
    cell, other = make_cell(**TINY), make_cell(**TINY | {"seed": 1})
    take(2, train(cell, small, tmp_path))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError) as caught:
        next(train(other, small, tmp_path))
    assert str(caught.value) == f"{tmp_path} holds the checkpoints of {cell.cell_id}, not of {other.cell_id}"
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_of_a_data_set_that_has_grown_is_refused(small, digits, tmp_path):
    cell = make_cell(**TINY)
    take(2, train(cell, small, tmp_path))
    grown = dataclasses.replace(small, train=digits.train.part(np.arange(300)))
    with pytest.raises(ValueError, match="the data set has changed since \\(270 training images now\\)"):
        list(train(cell, grown, tmp_path))


def test_a_checkpoint_of_other_images_is_refused_and_one_that_does_not_say_is_continued(small, tmp_path):
    cell, other = make_cell(**TINY), dataclasses.replace(small, fingerprint="f" * 16)
    rows = take(2, train(cell, small, tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError) as caught:
        next(train(cell, other, tmp_path))
    assert str(caught.value) == (
        "these are not the images of the checkpoint: digits has other images, labels or splits now than "
        f"{cell.cell_id} was trained on; bring those back, or remove {tmp_path} to train it anew"
    )
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    # As an older version wrote it.
    state = newest(tmp_path)
    assert state.pop("images") == [small.fingerprint, small.fingerprint]
    checkpoint.save(state, tmp_path, 2, 1)
    assert take(2, train(cell, other, tmp_path)) == rows


@pytest.mark.parametrize(
    ("name", "value"), [("history", None), ("optimizer", {}), ("model", {}), ("cell", Path("here"))]
)
def test_a_whole_checkpoint_that_no_training_wrote_is_told_by_its_folder_and_left_alone(small, tmp_path, name, value):
    cell = make_cell(**TINY)
    take(1, train(cell, small, tmp_path))
    checkpoint.save({**newest(tmp_path), name: value}, tmp_path, 2, 2)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"the newest checkpoint in {tmp_path} is none of this program's"):
        list(train(cell, small, tmp_path))
    assert sorted(tmp_path.iterdir()) == before


def test_a_pre_training_on_other_images_is_not_taken_over(small, tmp_path):
    cell, left = make_cell(**TINY), tmp_path / "left"
    take(2, train(cell, small, tmp_path / "own", pretrained=left))
    other = dataclasses.replace(small, fingerprint="f" * 16)
    with pytest.raises(ValueError, match=f"not the images of the checkpoint: .* or remove {left} to train it anew"):
        next(train(cell, other, tmp_path / "other", pretrained=left))
    # Only its own phase's images count.
    assert newest(left)["images"] == [small.fingerprint]
    rows = train(cell, other, tmp_path / "third", pretrain_dataset=small, pretrained=left)
    assert take(2, rows)[1]["epoch"] == 2


# A linear probe


def test_a_probe_reports_these_names(small, tmp_path):
    rows = list(train(make_cell(**TINY | {"protocol": "pretrain_probe"}), small, tmp_path))
    assert [row["phase"] for row in rows] == ["pretrain", "pretrain", "probe", "probe", "test"]
    for row in rows[2:4]:
        assert set(row) == OF_AN_EPOCH | {
            "probe_train_loss",
            "probe_train_classification_loss",
            "probe_train_gradient_norm",
            "probe_val_classification_loss",
            "probe_val_accuracy",
        }
    assert set(rows[4]) == OF_THE_END | KNN | {"test_sprel_accuracy", "test_abspos_accuracy", "test_accuracy"}


@pytest.mark.parametrize("embedding", [False, True])
@pytest.mark.parametrize("tasks", ["sprel+abspos", "none"])
def test_a_probe_leaves_every_bit_of_the_pretrained_backbone_as_it_is(small, tmp_path, tasks, embedding):
    cell = make_cell(
        **TINY
        | {"protocol": "pretrain_probe", "tasks": tasks, "pretrain_position_embedding": embedding}
        | {"drop_path": 0.3, "learning_rate": 0.1, "selection": "last"}
    )
    rows = train(cell, small, tmp_path)
    take_two = list(itertools.islice(rows, 2))
    assert [row["phase"] for row in take_two] == ["pretrain"] * 2
    pretrained = {name: value for name, value in newest(tmp_path)["model"].items() if name.startswith("backbone.")}
    list(rows)
    probed = newest(tmp_path)["model"]
    assert set(probed) == {*pretrained, "classifier.weight", "classifier.bias"}
    assert all(probed[name].equal(value) for name, value in pretrained.items())
    assert ("backbone.vit.pos_embed" in probed) == embedding
    # Its classifier starts fresh, and a learning rate of 0.1 takes it far from a Linear's start within 1 / sqrt(96).
    assert probed["classifier.weight"].abs().max() > 2 / math.sqrt(96)


# The rival and mega-patches


def test_drloc_is_trained_beside_classification_and_reports_these_names(small, tmp_path):
    cell = make_cell(
        **TINY | {"protocol": "joint", "tasks": "drloc", "backbone": "swin_xs8", "image_size": 16, "drloc_weight": 0.25}
    )
    rows = list(train(cell, small, tmp_path))
    assert [row["phase"] for row in rows] == ["joint", "joint", "test"]
    for row in rows[:2]:
        assert set(row) == OF_AN_EPOCH | {
            "joint_train_loss",
            "joint_train_drloc_loss",
            "joint_train_classification_loss",
            "joint_train_gradient_norm",
            "joint_val_drloc_loss",
            "joint_val_drloc_error_x100",
            "joint_val_classification_loss",
            "joint_val_accuracy",
        }
        assert row["joint_train_loss"] == pytest.approx(
            0.25 * row["joint_train_drloc_loss"] + row["joint_train_classification_loss"], rel=1e-5
        )
        assert row["joint_val_drloc_error_x100"] == pytest.approx(100 * row["joint_val_drloc_loss"])
    assert set(rows[2]) == OF_THE_END | {"test_drloc_error_x100", "test_accuracy"}
    assert all(math.isfinite(value) for row in rows for name, value in row.items() if name != "phase")


@pytest.mark.parametrize("side", [2, 3])
def test_mega_patches_are_pre_trained_on_and_the_image_s_own_patches_fine_tuned_on(small, tmp_path, side):
    cell = make_cell(**TINY | {"backbone": "vit_xs4", "mega_grid": side, "permute_patches": True})
    rows = train(cell, small, tmp_path)
    first = list(itertools.islice(rows, 2))
    # One place for each cell of the mega-grid.
    assert newest(tmp_path)["model"]["heads.abspos.weight"].shape == (side**2, 96)
    rest = list(rows)
    assert newest(tmp_path)["model"]["backbone.vit.pos_embed"].shape == (1, 1 + 4**2, 96)
    assert [row["phase"] for row in first + rest] == ["pretrain", "pretrain", "finetune", "finetune", "test"]
    assert set(rest[-1]) == OF_THE_END | KNN | {"test_sprel_accuracy", "test_abspos_accuracy", "test_accuracy"}
    assert all(math.isfinite(value) for row in first + rest for name, value in row.items() if name != "phase")


def test_epochs_on_mega_patches_are_evaluated_on_the_same_cells(small, tmp_path):
    # A learning rate that changes nothing, so that only other cells could change what is measured.
    cell = make_cell(**TINY | {"backbone": "vit_xs4", "mega_grid": 3, "pretrain_learning_rate": 1e-20})
    one, two = take(2, train(cell, small, tmp_path))
    assert one["pretrain_val_sprel_loss"] == two["pretrain_val_sprel_loss"]
    assert one["pretrain_val_abspos_loss"] == two["pretrain_val_abspos_loss"]
    assert one["pretrain_train_abspos_loss"] != two["pretrain_train_abspos_loss"]


# A schedule, and forks

JOINT = TINY | {"protocol": "joint", "epochs": 4}


def finished(cell, dataset, folder, **options):
    """The rows and the final state of a cell."""
    return without_speeds(train(cell, dataset, folder, **options)), newest(folder)


def test_a_schedule_changes_the_rate_and_the_weights_of_losses_from_its_epoch_on(small, tmp_path):
    cell = make_cell(**JOINT | {"schedule": "2:learning_rate=0.004,sprel_weight=3.0"})
    rows = take(4, train(cell, small, tmp_path))
    # Three steps of warm-up, then a cosine over nine: the epochs end at its 0th, 3rd, 6th and 9th step, less one.
    shape = [1, *((1 + math.cos(math.pi * step / 9)) / 2 for step in (2, 5, 8))]
    maxima = [0.001, 0.001, 0.004, 0.004]
    assert [row["learning_rate"] for row in rows] == pytest.approx([a * b for a, b in zip(shape, maxima)])
    for row, weight in zip(rows, (1, 1, 3, 3)):
        parts = weight * row["joint_train_sprel_loss"] + row["joint_train_abspos_loss"]
        assert row["joint_train_loss"] == pytest.approx(parts + row["joint_train_classification_loss"], rel=1e-5)


def test_scheduled_weight_decay_clipping_and_augmentation_act(small, tmp_path):
    plain = finished(make_cell(**JOINT), small, tmp_path / "plain")[0]
    changes = ("weight_decay=0.9", "gradient_clip=0.01", "flip_probability=0.0", "jitter_probability=0.1")
    for number, change in enumerate(changes):
        rows = finished(make_cell(**JOINT | {"schedule": f"2:{change}"}), small, tmp_path / str(number))[0]
        assert rows[:2] == plain[:2]
        assert rows[2] != plain[2], change


def test_a_cell_with_a_schedule_that_is_interrupted_anywhere_ends_with_the_same_bits(small, tmp_path):
    # The weight decay returns to what it was, which a checkpoint from in between must not carry on.
    cell = make_cell(**JOINT | {"schedule": "1:weight_decay=0.9;3:weight_decay=0.05"})
    rows, state = finished(cell, small, tmp_path / "whole")
    for epochs in (1, 2, 3):
        folder = tmp_path / str(epochs)
        take(epochs, train(cell, small, folder))
        assert finished(cell, small, folder)[0] == rows
        assert all(newest(folder)["model"][name].equal(value) for name, value in state["model"].items())


def test_a_run_that_stops_after_an_epoch_leaves_its_checkpoint_and_goes_on_from_there(small, tmp_path):
    cell = make_cell(**TINY)
    rows, state = finished(cell, small, tmp_path / "whole")
    stops = [
        without_speeds(train(cell, small, tmp_path / "parts", stop_after=epoch, checkpoint_every=100))
        for epoch in (1, 3)
    ]
    assert stops == [rows[:1], rows[:3]]
    assert finished(cell, small, tmp_path / "parts")[0] == rows
    assert all(newest(tmp_path / "parts")["model"][name].equal(value) for name, value in state["model"].items())


@pytest.mark.parametrize("fields", [JOINT, TINY | {"epochs": 4}], ids=["joint", "pretrain_finetune"])
def test_a_fork_continues_another_cell_s_checkpoint_and_ends_as_if_trained_from_the_start(small, tmp_path, fields):
    cell = make_cell(**fields)
    fork = cell.changed_after(2, {"learning_rate": 0.004, "weight_decay": 0.5})
    rows, state = finished(fork, small, tmp_path / "alone")
    list(train(cell, small, tmp_path / "cell", stop_after=cell.pretrain_epochs + 2))
    started = train(fork, small, tmp_path / "fork", forked=tmp_path / "cell", note=silent)
    first = next(started)
    started.close()
    # From here on it stands on its own, whatever becomes of the cell that it left.
    list(train(cell, small, tmp_path / "cell"))
    assert without_speeds([first]) == rows[:1]
    assert newest(tmp_path / "fork")["phase_epoch"] == 2
    assert finished(fork, small, tmp_path / "fork", forked=tmp_path / "cell", note=silent)[0] == rows
    assert all(newest(tmp_path / "fork")["model"][name].equal(value) for name, value in state["model"].items())


def test_a_fork_of_a_cell_that_has_gone_on_is_trained_from_the_start_and_says_so(small, tmp_path):
    cell = make_cell(**JOINT)
    fork = cell.changed_after(2, {"learning_rate": 0.004})
    list(train(cell, small, tmp_path / "cell", stop_after=3))
    notes = []
    rows = finished(fork, small, tmp_path / "fork", forked=tmp_path / "cell", note=notes.append)[0]
    assert rows == finished(fork, small, tmp_path / "alone")[0]
    (note,) = notes
    assert "has trained past the point where" in note


# A pre-training on another data set


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Three classes of coloured noise as class folders, 16 x 16: 40 training images each and 10 test images."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for channel, label in enumerate(("blue", "green", "red")):
            (root / "shapes" / split / label).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 100, (16, 16, 3), dtype=np.uint8)
                pixels[:, :, 2 - channel] += 100
                Image.fromarray(pixels).save(root / "shapes" / split / label / f"{number}.png")
    return data.prepare("shapes", root, 16)


ELSEWHERE = TINY | {"pretrain_dataset": "shapes"}


def test_the_first_phase_sees_the_one_data_set_and_the_second_the_other(small, shapes, tmp_path):
    cell = make_cell(**ELSEWHERE)
    blind = dataclasses.replace(small, train=unreadable(small.train), test=unreadable(small.test))
    rows = train(cell, blind, tmp_path, pretrain_dataset=shapes)
    assert [row["phase"] for row in itertools.islice(rows, 2)] == ["pretrain", "pretrain"]
    with pytest.raises(OSError, match="the disk has gone"):
        next(rows)
    gone = dataclasses.replace(shapes, train=unreadable(shapes.train), test=unreadable(shapes.test))
    rows = list(train(cell, small, tmp_path, pretrain_dataset=gone))
    assert [row["phase"] for row in rows] == ["pretrain", "pretrain", "finetune", "finetune", "test"]


def test_each_phase_has_the_classes_and_the_number_of_images_of_its_own_data_set(small, shapes, tmp_path):
    cell = make_cell(**ELSEWHERE | {"tasks": "none", "selection": "last"})
    rows = train(cell, small, tmp_path, pretrain_dataset=shapes)
    first = list(itertools.islice(rows, 2))
    state = newest(tmp_path)
    assert state["model"]["classifier.weight"].shape == (3, 96)
    assert len(state["schedule"]) == 2 * 4  # 108 images in batches of 32, two epochs
    take(1, rows)
    state = newest(tmp_path)
    assert state["model"]["classifier.weight"].shape == (10, 96)
    assert len(state["schedule"]) == 2 * 3  # 72 images
    assert first[0]["pretrain_val_accuracy"] >= 0


def test_the_metrics_of_the_tasks_are_measured_on_the_data_set_of_the_pre_training(small, shapes, tmp_path):
    cell = make_cell(**ELSEWHERE)
    result = list(train(cell, small, tmp_path / "two", pretrain_dataset=shapes))[-1]
    alone = list(train(cell.pretraining(), shapes, tmp_path / "alone"))[-1]
    for name in ("test_sprel_accuracy", "test_abspos_accuracy"):
        assert result[name] == alone[name]
    assert "test_accuracy" not in alone


def test_a_pre_training_elsewhere_resumes_in_both_of_its_phases(small, shapes, tmp_path):
    cell = make_cell(**ELSEWHERE)
    expected = list(train(cell, small, tmp_path / "whole", pretrain_dataset=shapes))
    weights = newest(tmp_path / "whole")["model"]
    for stopped_after in (1, 2, 3):
        folder = tmp_path / str(stopped_after)
        take(stopped_after, train(cell, small, folder, pretrain_dataset=shapes))
        assert_ends_as((cell, expected, weights), list(train(cell, small, folder, pretrain_dataset=shapes)), folder)


# A pre-training that cells share

SHARED = {
    "tasks": {},
    "classification with drop path": {"tasks": "none", "drop_path": 0.3},
    "permuted mega-patches": {"backbone": "vit_xs4", "mega_grid": 3, "permute_patches": True},
}
# What changes the second phase alone.
SECOND = {
    "a probe": {"protocol": "pretrain_probe"},
    "another learning rate": {"learning_rate": 0.003},
    "another selection and length": {"selection": "last", "epochs": 3},
}


@pytest.fixture(scope="module", params=SHARED.values(), ids=SHARED)
def shared(request, small, tmp_path_factory):
    """The fields of a cell, its rows, its folder, and the folder where it left its pre-training."""
    fields = TINY | request.param
    folder, pretrained = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("pretrained")
    rows = list(train(make_cell(**fields), small, folder, pretrained=pretrained, note=silent))
    return fields, rows, folder, pretrained


def assert_same(rows, folder, expected_rows, expected_folder):
    assert_ends_as((None, expected_rows, newest(expected_folder)["model"]), rows, folder)


def test_a_pre_training_that_is_left_for_others_changes_nothing(shared, small, tmp_path):
    fields, rows, folder, _ = shared
    assert_same(rows, folder, list(train(make_cell(**fields), small, tmp_path)), tmp_path)


def test_a_finished_pre_training_is_left_where_there_was_none(shared):
    fields, rows, _, pretrained = shared
    assert [path.name.split("-")[0] for path in pretrained.iterdir()] == ["final"]
    state = newest(pretrained)
    assert state["finished"]
    assert state["cell"] == make_cell(**fields).pretraining().as_dict()
    assert state["history"][:2] == rows[:2]


def test_the_pre_training_trained_as_a_cell_of_its_own_is_the_same(shared, small, tmp_path):
    fields, _, _, pretrained = shared
    rows = list(train(make_cell(**fields).pretraining(), small, tmp_path))
    assert [row["phase"] for row in rows] == ["pretrain", "pretrain", "test"]
    state = newest(pretrained)
    assert_same(state["history"], pretrained, rows, tmp_path)
    assert state.keys() == newest(tmp_path).keys()
    for name in ("cell_id", "cell", "finished", "results"):
        assert state[name] == newest(tmp_path)[name], name


@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)
def test_a_cell_that_takes_a_pre_training_over_ends_bit_for_bit_as_without(shared, small, tmp_path, second):
    fields, _, _, pretrained = shared
    cell = make_cell(**fields | second)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in pretrained.iterdir())
    # The first phase is not trained again: its images cannot even be read.
    gone = dataclasses.replace(small, train=unreadable(small.train), test=unreadable(small.test))
    rows = list(train(cell, small, tmp_path / "taken", pretrain_dataset=gone, pretrained=pretrained, note=silent))
    alone = list(train(cell, small, tmp_path / "alone"))
    assert len(rows) == cell.total_epochs + 1
    assert_same(rows, tmp_path / "taken", alone, tmp_path / "alone")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in pretrained.iterdir()) == before


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 4])
def test_a_cell_that_took_over_resumes_without_the_shared_pre_training(shared, small, tmp_path, stopped_after):
    fields, expected, folder, pretrained = shared
    cell = make_cell(**fields)
    take(stopped_after, train(cell, small, tmp_path, pretrained=pretrained))
    rows = list(train(cell, small, tmp_path, pretrained=tmp_path / "gone", note=silent))
    assert_same(rows, tmp_path, expected, folder)


def test_a_run_resumed_in_its_first_phase_leaves_the_same_pre_training(shared, small, tmp_path):
    fields, _, _, pretrained = shared
    cell = make_cell(**fields)
    take(1, train(cell, small, tmp_path / "own", pretrained=tmp_path / "left"))
    assert newest(tmp_path / "left") is None
    take(2, train(cell, small, tmp_path / "own", pretrained=tmp_path / "left"))
    state = newest(tmp_path / "left")
    assert_same(state["history"], tmp_path / "left", newest(pretrained)["history"], pretrained)
    assert state["results"] == newest(pretrained)["results"]


def test_the_pre_training_is_there_for_others_before_its_last_row_is_handed_out(small, tmp_path):
    take(2, train(make_cell(**TINY), small, tmp_path / "own", pretrained=tmp_path / "left"))
    assert newest(tmp_path / "left")["finished"]


def test_a_damaged_pre_training_is_reported_trained_anew_and_left_whole(small, tmp_path):
    left = tmp_path / "left"
    expected = list(train(make_cell(**TINY), small, tmp_path / "own", pretrained=left))
    (path,) = left.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    notes = []
    rows = list(train(make_cell(**TINY), small, tmp_path / "other", pretrained=left, note=notes.append))
    assert len(notes) == 1
    assert path.name in notes[0]
    assert_same(rows, tmp_path / "other", expected, tmp_path / "own")
    assert newest(left)["finished"]


def test_the_pre_training_of_other_cells_is_refused(small, tmp_path):
    left, cell, other = tmp_path / "left", make_cell(**TINY), make_cell(**TINY | {"seed": 1})
    take(2, train(cell, small, tmp_path / "own", pretrained=left))
    before = sorted(left.iterdir())
    with pytest.raises(ValueError) as caught:
        next(train(other, small, tmp_path / "other", pretrained=left))
    wanted, there = other.pretraining().cell_id, cell.pretraining().cell_id
    assert str(caught.value) == f"{left} does not hold the finished pre-training {wanted} but {there}"
    assert sorted(left.iterdir()) == before
    assert newest(tmp_path / "other") is None


def test_a_pre_training_that_is_not_finished_is_trained_here_and_left_finished(small, tmp_path):
    cell = make_cell(**TINY)
    take(1, train(cell.pretraining(), small, tmp_path / "left"))
    rows = list(train(cell, small, tmp_path / "own", pretrained=tmp_path / "left"))
    assert without_speeds(rows) == without_speeds(list(train(cell, small, tmp_path / "alone")))
    assert newest(tmp_path / "left")["finished"]


# Numbers that are not finite


def test_an_absurd_learning_rate_raises_with_quantity_step_and_cell(small, tmp_path):
    cell = make_cell(**TINY | {"protocol": "joint", "learning_rate": 1e30, "warmup_epochs": 0})
    with pytest.raises(NotFiniteError) as caught:
        list(train(cell, small, tmp_path))
    assert "joint loss is nan at step 1 (epoch 1) of " + cell.cell_id in str(caught.value)


def test_infinite_weights_raise_at_their_first_step_and_the_checkpoint_before_is_kept(small, tmp_path):
    cell = make_cell(**TINY)
    take(1, train(cell, small, tmp_path))
    state = newest(tmp_path)
    for path in tmp_path.glob("*.pt"):
        path.unlink()
    state["model"]["heads.abspos.weight"][:] = math.inf
    planted = checkpoint.save(state, tmp_path, 1, keep=2)
    rows = train(cell, small, tmp_path)
    assert next(rows)["epoch"] == 1
    # Three steps an epoch, counted from 0 in each phase.
    with pytest.raises(NotFiniteError, match="pretrain loss is nan at step 3 \\(epoch 2\\) of digits-vit_xs8-"):
        next(rows)
    assert list(tmp_path.iterdir()) == [planted]


def test_a_last_step_that_ruins_the_weights_raises_too(small, tmp_path):
    # One step in all: its own loss is finite, and only the validation sees the weights that it left.
    cell = make_cell(
        **TINY
        | {"protocol": "joint", "tasks": "none", "epochs": 1, "warmup_epochs": 0}
        | {"batch_size": 72, "learning_rate": 1e30}
    )
    with pytest.raises(NotFiniteError) as caught:
        list(train(cell, small, tmp_path))
    assert str(caught.value) == f"joint val_classification_loss is nan after step 0 (epoch 1) of {cell.cell_id}"


def test_weights_that_fail_the_test_split_are_named_by_the_step_that_left_them(small, tmp_path):
    cell = make_cell(**TINY)
    take(4, train(cell, small, tmp_path))
    state = newest(tmp_path)
    # The best of the last phase's two epochs is said to be its first, three steps of fine-tuning.
    state["best"]["epoch"] = 3
    state["best"]["model"]["classifier.weight"][:] = math.inf
    checkpoint.save(state, tmp_path, 4, keep=1)
    with pytest.raises(NotFiniteError) as caught:
        list(train(cell, small, tmp_path))
    assert str(caught.value) == f"finetune test_classification_loss is nan after step 2 (epoch 3) of {cell.cell_id}"


# Settings and real images


@pytest.mark.parametrize(
    "settings",
    [
        {"permute_patches": True, "pretrain_position_embedding": True},
        {"permute_patches": True, "protocol": "joint", "tasks": "sprel+dist+ang+abspos"},
        {"pair_head": "low_rank", "tasks": "sprel+dist+ang"},
        {"precision": "bf16", "train_images": 32},
        {"gradient_clip": 0.0, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_these_settings_train_to_finite_numbers(small, tmp_path, settings):
    cell = make_cell(**TINY | {"pretrain_epochs": 1, "epochs": 1, "warmup_epochs": 0} | settings)
    rows = list(train(cell, small, tmp_path))
    assert len(rows) == cell.total_epochs + 1
    assert all(math.isfinite(value) for row in rows for name, value in row.items() if name != "phase")


@pytest.mark.parametrize("embedding", [False, True])
def test_shuffled_patches_are_labelled_by_where_they_came_from(tmp_path, embedding):
    # Every image is the same four colours, so that a patch's colour tells its place, however it is shuffled. Labels
    # that stayed in place while the pixels moved could not be learnt: the loss would stay at log 4 = 1.39.
    images = np.zeros((100, 16, 16, 3), dtype=np.uint8)
    images[:, :8, 8:, 0] = images[:, 8:, :8, 1] = images[:, 8:, 8:, 2] = 255
    everything = Split(images, np.arange(100), np.arange(100) % 10)
    colours = Dataset("colours", 16, tuple("0123456789"), (0.5,) * 3, (0.5,) * 3, everything, everything, everything)
    cell = make_cell(
        **TINY
        | {
            "dataset": "colours",
            "pretrain_position_embedding": embedding,
            "pretrain_epochs": 8,
            "pretrain_learning_rate": 3e-3,
            "permute_patches": True,
        }
        | {"crop_padding": 0, "flip_probability": 0.0, "patch_crop": 1.0}
        | {"jitter_probability": 0.0, "jitter_strength": 0.0, "greyscale_probability": 0.0}
    )
    last = take(8, train(cell, colours, tmp_path))[-1]
    assert last["pretrain_train_abspos_loss"] < 0.2
    assert last["pretrain_train_sprel_loss"] < 0.2
    assert last["pretrain_val_abspos_accuracy"] == last["pretrain_val_sprel_accuracy"] == 100


def test_real_cifar10_images_train_for_an_epoch(cifar10_part_root, tmp_path):
    part = data.prepare("cifar10", cifar10_part_root, 32)
    cell = make_cell(
        **TINY
        | {"dataset": "cifar10", "backbone": "vit_xs8", "image_size": 32, "tasks": "sprel+dist+ang+abspos"}
        | {"pretrain_epochs": 1, "epochs": 1, "warmup_epochs": 0, "crop_padding": 4, "patch_crop": 1 / 1.15}
    )
    rows = list(train(cell, part, tmp_path))
    assert [row["phase"] for row in rows] == ["pretrain", "finetune", "test"]
    assert all(math.isfinite(value) for row in rows for name, value in row.items() if name != "phase")
    assert 0 <= rows[-1]["test_accuracy"] <= 100


# Micro-batches


def test_micro_batches_take_the_same_steps_but_for_rounding(small, tmp_path):
    cell = make_cell(**{**TINY, "permute_patches": True})
    whole = list(train(cell, small, tmp_path / "whole"))
    parts = list(train(cell, small, tmp_path / "parts", micro_batches=3))
    for one, other in zip(whole, parts, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - set(SPEEDS) - {"phase"}:
            assert other[name] == pytest.approx(one[name], rel=2e-3, abs=1e-3), name


def test_a_batch_of_which_less_is_left_than_there_are_micro_batches_is_still_trained(small, tmp_path):
    # The last batch of an epoch has 8 images.
    cell = make_cell(**{**TINY, "tasks": "none", "protocol": "joint", "epochs": 2})
    assert list(train(cell, small, tmp_path, micro_batches=16))[-1]["phase"] == "test"


@pytest.mark.parametrize("micro_batches", [0, 33])
def test_micro_batches_outside_of_a_batch_are_refused(small, tmp_path, micro_batches):
    with pytest.raises(ValueError, match="between 1 and the batch size 32"):
        next(train(make_cell(**TINY), small, tmp_path, micro_batches=micro_batches))


# When checkpoints are due


def epochs_kept(folder):
    return [path.name.split("-")[0] for path in sorted(folder.glob("0*-*.pt"))]


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({"checkpoint_every": 1}, [1, 2, 3, 4]),
        ({"checkpoint_every": 3}, [3, 4]),
        ({"checkpoint_every": 100}, [4]),
        ({"checkpoint_every": None, "checkpoint_minutes": 0.0}, [1, 2, 3, 4]),
        ({"checkpoint_every": 3, "checkpoint_minutes": 60.0}, [3, 4]),
        ({"checkpoint_every": 1, "keep": 1}, [4]),
    ],
)
def test_checkpoints_are_written_by_epochs_or_minutes_and_kept_in_number(small, tmp_path, options, written):
    cell = make_cell(**{**TINY, "pretrain_epochs": 4})
    rows = train(cell, small, tmp_path, **{"keep": 100, **options})
    take(4, rows)
    rows.close()
    assert epochs_kept(tmp_path) == [f"{epoch:06d}" for epoch in written]


@pytest.mark.parametrize(
    ("epoch_seconds", "writing_seconds", "written"),
    [
        # At most 2 %: 1 s of writing wants 50 s of training, three epochs of 20 s. The first tells what writing takes.
        (20, 1, [1, 4, 7, 9]),
        (60, 1, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        # Ten minutes at the latest, whatever it costs.
        (200, 100, [1, 4, 7, 9]),
        (1, 1, [1, 9]),
    ],
)
def test_unless_told_otherwise_checkpoints_cost_at_most_2_percent(
    small, tmp_path, monkeypatch, epoch_seconds, writing_seconds, written
):
    """Clocks of the test's own: training advances the one, writing the other. 9 is the end of the phase."""
    trained, spent = [0.0], [0.0]
    publish = checkpoint.write_atomic

    def slow(path, payload, permit):
        publish(path, payload, permit)
        spent[0] += writing_seconds

    monkeypatch.setattr(checkpoint, "write_atomic", slow)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(perf_counter=lambda: spent[0]))
    clock = SimpleNamespace(
        monotonic=lambda: trained[0], perf_counter=time.perf_counter, process_time=time.process_time
    )
    monkeypatch.setattr("relvit.train.time", clock)
    cell = make_cell(**{**TINY, "pretrain_epochs": 9})
    rows = train(cell, small, tmp_path, checkpoint_every=None, keep=100)
    for count in range(1, 10):
        trained[0] = epoch_seconds * count
        next(rows)
        # What is written beside training is done before the test goes on.
        while count in written and f"{count:06d}" not in epochs_kept(tmp_path):
            time.sleep(0.01)
    rows.close()
    assert epochs_kept(tmp_path) == [f"{epoch:06d}" for epoch in written]


# Features, protocols


def features_of(cell, folder, split):
    """The tested backbone's pooled embedding and mean of patch tokens, [n, D], and the labels, of a split in order."""
    _, backbone = trained_backbone(folder)
    pixels, labels = split.read(np.arange(len(split)))
    images = (torch.tensor(pixels).permute(0, 3, 1, 2) / 255 - cell["mean"]) / cell["std"]
    with torch.no_grad():
        features = backbone(images)
    return features.pooled, features.tokens.mean(1), labels


def normalisation(dataset):
    return {name: torch.tensor(getattr(dataset, name))[:, None, None] for name in ("mean", "std")}


def test_knn_looks_among_the_training_images_of_a_pretraining_alone(small, tmp_path):
    rows = list(train(make_cell(**TINY | {"protocol": "pretrain"}), small, tmp_path))
    train_split, val_split = small.train_val(0)
    known, asked = (features_of(normalisation(small), tmp_path, split) for split in (train_split, small.test))
    neighbours = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    for name, place in (("knn_pooled_accuracy", 0), ("knn_accuracy", 1)):
        fitted = neighbours.fit(known[place], known[2])
        assert rows[-1][f"test_{name}"] == pytest.approx(100 * fitted.score(asked[place], asked[2]))
        val = features_of(normalisation(small), tmp_path, val_split)
        assert rows[-2][f"pretrain_val_{name}"] == pytest.approx(100 * fitted.score(val[place], val[2]))


PROBED = {"protocol": "pretrain_probe", "probe": "logistic"}


@pytest.mark.parametrize("tasks", ["sprel+abspos", "none"])
def test_a_logistic_probe_is_within_2_points_of_scikit_learns_on_the_same_features(digits, tmp_path, tasks):
    # 600 of the digits, a pre-training of two epochs: features that are neither useless nor perfect.
    small = dataclasses.replace(digits, train=digits.train.part(np.arange(600)))
    rows = list(train(make_cell(**TINY | PROBED | {"tasks": tasks}), small, tmp_path))
    assert [row["phase"] for row in rows] == ["pretrain", "pretrain", "probe", "test"]
    known = features_of(normalisation(small), tmp_path, small.train_val(0)[0])
    asked = features_of(normalisation(small), tmp_path, small.test)
    for place, name in enumerate(("pooled_accuracy", "patches_accuracy")):
        scaler = StandardScaler().fit(known[place])
        scores = []
        for strength in (0.01, 0.1, 1.0, 10.0):
            theirs = LogisticRegression(C=strength, max_iter=5000).fit(scaler.transform(known[place]), known[2])
            scores.append(100 * theirs.score(scaler.transform(asked[place]), asked[2]))
        assert min(scores) - 2 <= rows[-1][f"test_{name}"] <= max(scores) + 2
    better = max("pooled", "patches", key=lambda name: rows[-2][f"probe_val_{name}_accuracy"])
    assert rows[-1]["test_accuracy"] == pytest.approx(rows[-1][f"test_{better}_accuracy"], abs=1e-4)


def test_a_logistic_probe_that_was_interrupted_ends_with_the_same_numbers(small, tmp_path):
    cell = make_cell(**TINY | PROBED)
    whole = list(train(cell, small, tmp_path / "whole"))
    take(3, train(cell, small, tmp_path / "parts"))
    assert without_speeds(train(cell, small, tmp_path / "parts")) == without_speeds(whole)


def test_without_validation_images_all_training_images_train_and_nothing_is_validated(small, tmp_path):
    cell = make_cell(**TINY | {"val_share": 0.0, "selection": "last"})
    assert [len(split) for split in small.train_val(0, 0, 0.0)] == [80, 0]
    rows = list(train(cell, small, tmp_path))
    assert not [name for row in rows for name in row if "_val_" in name]
    assert rows[-1]["test_accuracy"] >= 0
    assert rows[-1]["selected_epoch"] == 4


def test_fine_tuning_starts_from_the_supervised_classifier_where_the_cell_keeps_it(small, tmp_path):
    fields = TINY | {"tasks": "none", "learning_rate": 1e-9, "pretrain_epochs": 2, "warmup_epochs": 0}
    fields |= {"pretrain_position_embedding": True}
    kept, fresh = (
        list(train(make_cell(**fields | {"keep_classifier": each}), small, tmp_path / str(each)))
        for each in (True, False)
    )
    # With next to no learning rate the first epoch of fine-tuning validates what pre-training left.
    name = "val_classification_loss"
    assert kept[2][f"finetune_{name}"] == pytest.approx(kept[1][f"pretrain_{name}"], rel=1e-4)
    assert fresh[2][f"finetune_{name}"] != pytest.approx(kept[1][f"pretrain_{name}"], rel=1e-2)


def test_the_published_learning_rates_by_hand():
    rates = learning_rates(5e-4, 100, 1000, "quarter_cosine")
    assert rates[[0, 50, 99]] == pytest.approx([0.0, 2.5e-4, 4.95e-4])
    assert rates[100] == pytest.approx(0.988 * 5e-4, rel=1e-3)  # 98.8 % of the maximum right after the warm-up
    assert rates[500] == pytest.approx(1.25e-6 + (5e-4 - 1.25e-6) / math.sqrt(2))
    assert rates[999] == pytest.approx(2.03e-6, rel=1e-2)
    assert rates.sum() / learning_rates(5e-4, 100, 1000).sum() == pytest.approx(1.17, abs=0.01)
