"""What a plan will cost, worked out by hand from a cost per image that is given instead of measured."""

import json

import pytest

import relvit.calibrate
from relvit.calibrate import Cost
from sweeps.account import Account
from sweeps.estimate import estimate
from sweeps.plan import Request, plan_cells

# 1,438 training images less 144 for val, trained at 10 to 20 ms and validated at 2 ms each.
LOW_EPOCH = 1294 * 0.010 + 144 * 0.002
HIGH_EPOCH = (1294 * 0.020 + 144 * 0.002) * 1.5


@pytest.fixture(autouse=True)
def given_cost(monkeypatch):
    cost = Cost(
        (0.010, 0.020, 0.015), 0.002, parameters=1_000_000, trained_parameters=1_000_000, saved_bytes_per_image=1e6
    )
    monkeypatch.setattr(relvit.calibrate, "measure", lambda *arguments, **options: cost)


def cells(tmp_path, study, tasks):
    return plan_cells(Request(study, "demo", tmp_path / "data", combinations=tasks))


def test_both_phases_of_a_cell_are_counted(tmp_path):
    cost = estimate(cells(tmp_path, "table4", ("sprel",)), Account(tmp_path), tmp_path / "data", 1, 0)
    assert cost.trial_seconds == pytest.approx((40 * LOW_EPOCH, 40 * HIGH_EPOCH))
    assert cost.seconds == pytest.approx(tuple(seconds / cost.slots for seconds in cost.trial_seconds))
    assert cost.gpu_hours == (0, 0)


def test_a_pre_training_that_two_cells_share_is_counted_once(tmp_path):
    both = cells(tmp_path, "table4,probe", ("sprel",))
    assert len(both) == 2
    cost = estimate(both, Account(tmp_path), tmp_path / "data", 1, 0)
    assert cost.trial_seconds[0] == pytest.approx(60 * LOW_EPOCH)


def test_gpu_hours_are_trial_hours_times_the_gpus_of_a_trial(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    cost = estimate(cells(tmp_path, "table4", ("sprel",)), Account(tmp_path), tmp_path / "data", 0.25, 0.5)
    assert cost.gpu_hours[0] == pytest.approx(40 * LOW_EPOCH / 3600 * 0.5)
    assert cost.slots == 4


def test_memory_is_weights_gradients_moments_and_activations_of_a_batch(tmp_path):
    cost = estimate(cells(tmp_path, "table4", ("sprel",)), Account(tmp_path), tmp_path / "data", 1, 0)
    # 16 bytes a parameter, 1 MB an image in a batch of 64, 1.2 GB for the process.
    assert cost.memory_bytes[0] == pytest.approx(16e6 + 64e6 + 1.2e9)


def test_what_is_finished_costs_nothing_and_tells_what_the_rest_will_cost(tmp_path):
    done, other = plan_cells(Request("table4", "demo", tmp_path / "data", combinations=("sprel",), seeds=(0, 1)))
    account = Account(tmp_path)
    rows = [{"epoch": epoch, "phase": "pretrain", "epoch_seconds": 2.0 + epoch % 2} for epoch in range(1, 21)]
    rows += [{"epoch": epoch, "phase": "finetune", "epoch_seconds": 1.0} for epoch in range(21, 41)]
    account.finish(done, [*rows, {"epoch": 40, "phase": "test", "test_accuracy": 90.0}])
    assert json.loads((account.folder(done) / "history.json").read_text())[-1]["test_accuracy"] == 90.0
    cost = estimate([done, other], account, tmp_path / "data", 1, 0)
    assert cost.trial_seconds == pytest.approx((20 * 2.0 + 20 * 1.0, 20 * 3.0 + 20 * 1.0))
    assert (cost.measured, cost.calibrated) == (2, 0)
