"""What a plan will cost, worked out by hand from a cost per image that is given instead of measured."""

import dataclasses
import json

import pytest
from helpers.accounts import finish
from rich.console import Console

import relvit.calibrate
from relvit.calibrate import Cost
from relvit.data import decoded_bytes, prepare
from sweeps.account.account import PLANNED, Account, Status
from sweeps.cli.plan_view import show_plan
from sweeps.planning.cost import estimate, slots_here
from sweeps.planning.plan import Request, plan_cells

# 1,438 training images less 144 for val, trained at 10 to 20 ms and validated at 2 ms each.
LOW_EPOCH = 1294 * 0.010 + 144 * 0.002
HIGH_EPOCH = (1294 * 0.020 + 144 * 0.002) * 1.5
# At the end of a pre-training its metrics and k-NN: 359 test images twice, the training and validation images once. At
# the end of a fine-tuning the accuracy and each class's, on the test images.
LOW_AFTER_TASKS = (2 * 359 + 1294 + 144) * 0.002
LOW_AFTER_LABELS = 2 * 359 * 0.002
LOW_AFTER = LOW_AFTER_TASKS + LOW_AFTER_LABELS


@pytest.fixture(autouse=True)
def given_cost(monkeypatch):
    cost = Cost(
        (0.010, 0.020, 0.015), 0.002, parameters=1_000_000, trained_parameters=1_000_000, saved_bytes_per_image=1e6
    )
    monkeypatch.setattr(relvit.calibrate, "measure", lambda *arguments, **options: cost)


def cells(tmp_path, study, tasks):
    return plan_cells(Request(study, "demo", tmp_path / "data", combinations=tasks))


def unknown(cells):
    """Cells of which no account knows anything."""
    return dict.fromkeys(cells, Status(PLANNED))


def finished_rows():
    """The history of a cell whose pre-training took 2 and 3 seconds an epoch by turns, and its fine-tuning 1. The last
    epoch of pre-training holds what is measured after it."""
    rows = [{"epoch": epoch, "phase": "pretrain", "epoch_seconds": 2.0 + epoch % 2} for epoch in range(1, 20)]
    rows += [{"epoch": 20, "phase": "pretrain", "epoch_seconds": 90.0}]
    rows += [{"epoch": epoch, "phase": "finetune", "epoch_seconds": 1.0} for epoch in range(21, 41)]
    return [*rows, {"epoch": 40, "phase": "test", "test_accuracy": 90.0}]


def test_both_phases_of_a_cell_are_counted(tmp_path):
    cost = estimate(
        Account(tmp_path).statuses(cells(tmp_path, "table4", ("sprel",))), Account(tmp_path), tmp_path / "data", 1, 0
    )
    assert cost.trial_seconds == pytest.approx((40 * LOW_EPOCH + LOW_AFTER, 40 * HIGH_EPOCH + 1.5 * LOW_AFTER))
    assert cost.seconds == pytest.approx(tuple(seconds / cost.slots for seconds in cost.trial_seconds))
    assert cost.gpu_hours == (0, 0)


def test_a_pre_training_that_two_cells_share_is_counted_once(tmp_path):
    both = cells(tmp_path, "table4,probe", ("sprel",))
    assert len(both) == 2
    cost = estimate(unknown(both), Account(tmp_path), tmp_path / "data", 1, 0)
    # 20 epochs of pre-training once, 20 of fine-tuning, and one pass for the logistic probe.
    assert cost.trial_seconds[0] == pytest.approx(41 * LOW_EPOCH + LOW_AFTER_TASKS + 2 * LOW_AFTER_LABELS)


def test_supervised_pre_training_is_measured_after_fine_tuning_alone(tmp_path):
    cost = estimate(unknown(cells(tmp_path, "table4", ("none",))), Account(tmp_path), tmp_path / "data", 1, 0)
    assert cost.trial_seconds[0] == pytest.approx(40 * LOW_EPOCH + LOW_AFTER_LABELS)


def test_where_nothing_is_held_out_no_epoch_is_validated(tmp_path):
    settings = ("val_share=0", "selection=last", "train_images=200")
    (cell,) = plan_cells(Request("table4", "demo", tmp_path / "data", combinations=("none",), settings=settings))
    cost = estimate(unknown([cell]), Account(tmp_path), tmp_path / "data", 1, 0)
    assert cost.trial_seconds[0] == pytest.approx(40 * 200 * 0.010 + LOW_AFTER_LABELS)


def test_gpu_hours_are_trial_hours_times_the_gpus_of_a_trial(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    cost = estimate(
        Account(tmp_path).statuses(cells(tmp_path, "table4", ("sprel",))),
        Account(tmp_path),
        tmp_path / "data",
        0.25,
        0.5,
    )
    assert cost.gpu_hours[0] == pytest.approx((40 * LOW_EPOCH + LOW_AFTER) / 3600 * 0.5)
    assert cost.slots == 4


def test_memory_is_weights_gradients_moments_and_activations_of_a_batch(tmp_path):
    cost = estimate(
        Account(tmp_path).statuses(cells(tmp_path, "table4", ("sprel",))), Account(tmp_path), tmp_path / "data", 1, 0
    )
    # 16 bytes a parameter, 1 MB an image in a batch of 64, 1.2 GB for the process.
    assert cost.memory_bytes[0] == pytest.approx(16e6 + 64e6 + 1.2e9)


def test_what_is_finished_costs_nothing_and_tells_what_the_rest_will_cost(tmp_path):
    done, other = plan_cells(Request("table4", "demo", tmp_path / "data", combinations=("sprel",), seeds=(0, 1)))
    account = Account(tmp_path)
    finish(account, done, finished_rows())
    assert json.loads((account.folder(done) / "history.json").read_text())[-1]["test_accuracy"] == 90.0
    cost = estimate(account.statuses([done, other]), account, tmp_path / "data", 1, 0)
    expected = (20 * 2.0 + 20 * 1.0 + LOW_AFTER, 20 * 3.0 + 20 * 1.0 + 1.5 * LOW_AFTER)
    assert cost.trial_seconds == pytest.approx(expected)
    assert (cost.measured, cost.calibrated) == (2, 0)


def test_another_precision_is_compared_where_finished_cells_tell_of_both(tmp_path, capsys):
    def planned(seed, *settings):
        request = Request("table4", "demo", tmp_path / "data", combinations=("sprel",), seeds=(seed,))
        return plan_cells(dataclasses.replace(request, settings=settings))

    (known,), (in_bf16,), rest = planned(0), planned(0, "precision=bf16"), planned(1)
    account = Account(tmp_path)
    finish(account, known, finished_rows())
    judged = lambda: estimate(account.statuses(rest), account, tmp_path / "data", 1, 0).otherwise  # noqa: E731

    def said():
        assert show_plan(Console(width=200), account, rest, tmp_path / "data", 1, 0) == 0
        return capsys.readouterr().out.splitlines()[-2]  # the last is of the data

    assert judged() == {"bf16": None}  # and no tf32 on a CPU
    assert said() == (
        "what precision bf16 would save is unknown until cells of each kind have finished here in both precisions "
        "(--set precision=bf16)"
    )
    finish(account, in_bf16, [{**row, "epoch_seconds": row.get("epoch_seconds", 0) / 2} for row in finished_rows()])
    # Half of 20 epochs of 2 to 3 s and 20 of 1 s, and what is measured after them.
    assert judged() == {"bf16": pytest.approx((30.0 + LOW_AFTER, 40.0 + 1.5 * LOW_AFTER))}
    assert said().startswith("with --set precision=bf16: 0.0099 to 0.014 trial-hours instead of 0.018 to 0.025")
    assert estimate(unknown(planned(1, "mega_grid=2")), account, tmp_path / "data", 1, 0).otherwise == {"bf16": None}


PLAIN_PATCHES = ("patch_crop=1", "jitter_probability=0", "greyscale_probability=0")


@pytest.mark.parametrize(
    ("settings", "measured"),
    [
        ((), 2),
        (("mega_grid=2",), 1),
        (PLAIN_PATCHES, 1),
        (("pair_head=low_rank",), 1),
        (("pretrain_epochs=10",), 2),
    ],
    ids=str,
)
def test_a_finished_cell_tells_nothing_of_phases_that_train_otherwise(tmp_path, settings, measured):
    # Fine-tuning is the same in all of them; what differs acts in pre-training alone.
    (done,) = cells(tmp_path, "table4", ("sprel",))
    other = plan_cells(
        Request("table4", "demo", tmp_path / "data", combinations=("sprel",), seeds=(1,), settings=settings)
    )
    account = Account(tmp_path)
    finish(account, done, finished_rows())
    cost = estimate(account.statuses(other), account, tmp_path / "data", 1, 0)
    assert (cost.measured, cost.calibrated) == (measured, 2 - measured)


def test_a_cell_that_was_trained_on_a_gpu_tells_nothing_of_training_without(tmp_path, monkeypatch):
    done, other = plan_cells(Request("table4", "demo", tmp_path / "data", combinations=("sprel",), seeds=(0, 1)))
    account = Account(tmp_path)
    finish(account, done, finished_rows(), peak_gpu_bytes=2_000_000_000)
    assert estimate(account.statuses([other]), account, tmp_path / "data", 1, 0).measured == 0
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert estimate(account.statuses([other]), account, tmp_path / "data", 1, 1).measured == 2


def test_calibrations_with_and_without_augmented_patches_are_kept_apart(tmp_path, monkeypatch):
    measured = []
    given = relvit.calibrate.measure
    monkeypatch.setattr(
        relvit.calibrate, "measure", lambda cell, phase, **options: measured.append(phase.name) or given()
    )
    for settings in ((), PLAIN_PATCHES):
        request = Request("table4", "demo", tmp_path / "data", combinations=("sprel",), settings=settings)
        estimate(unknown(plan_cells(request)), Account(tmp_path), tmp_path / "data", 1, 0)
    assert measured == ["pretrain", "finetune", "pretrain"]


@pytest.mark.parametrize(
    ("gpus_there", "gpus_each", "slots"),
    [(4, 0.3, 12), (4, 0.3333, 12), (1, 0.6, 1), (2, 1, 2), (5, 2, 2), (1, 0.1, 10), (1, 2, 1)],
)
def test_trials_at_once_share_one_gpu_or_have_whole_ones(monkeypatch, gpus_there, gpus_each, slots):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus_there)
    monkeypatch.setattr("sweeps.planning.cost.available_cpus", lambda: 64)
    assert slots_here(1, gpus_each) == (slots, gpus_each)


def test_the_plan_says_what_the_decoded_images_will_take_or_that_they_are_there(tmp_path, capsys):
    (cell,) = cells(tmp_path, "table4", ("none",))

    def said() -> str:
        assert show_plan(Console(width=200), Account(tmp_path / "results"), [cell], tmp_path / "data", 1, 0) == 0
        return capsys.readouterr().out.splitlines()[-1]

    # 1,797 images of 16 x 16 pixels in three channels.
    assert decoded_bytes("digits", tmp_path / "data", 16, whole=False, images=1797) == (1797 * 768, False)
    assert said() == "digits: at most 0.0014 GB of images of 16 pixels, still to be decoded"
    prepare("digits", tmp_path / "data", 16)
    assert said() == "digits: 0.0014 GB of images of 16 pixels, already decoded"
    # Three times the side at most, where crops are taken from whole images.
    assert decoded_bytes("digits", tmp_path / "data", 16, whole=True, images=1797) == (1797 * 768 * 9, False)


def test_a_plan_for_gpus_where_there_is_none_says_that_it_knows_no_cost(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (cell,) = cells(tmp_path, "table4", ("none",))
    assert show_plan(Console(width=200), Account(tmp_path / "results"), [cell], tmp_path / "data", 1, 0.5) == 0
    assert "the cost is unknown: torch sees no GPU here" in capsys.readouterr().out
