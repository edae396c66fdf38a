"""What the driver does with what it hears of a plan's trials, without Ray: trials and MLflow are stand-ins."""

import time
from dataclasses import replace

import pytest
from helpers.accounts import events, finish
from helpers.driving import Driving
from ray.exceptions import ActorDiedError
from ray.tune.search import Searcher

from relvit.cell import Cell
from sweeps.account.account import FAILED, FINISHED, RUNNING, Account
from sweeps.account.failures import CRASH, GPU_OOM, NOT_FINITE, NOT_STARTED, STORAGE, pause
from sweeps.account.work import work_items
from sweeps.driver import queue, watchdog
from sweeps.driver.plan_source import PlanSource
from sweeps.driver.watchdog import FIRST_REPORT_SECONDS, STALL_SECONDS, UNKNOWN_SECONDS, Budget, Watchdog
from sweeps.planning.plan import Request, plan_cells

TWO_AND_TWO = ("pretrain_epochs=2", "epochs=2", "warmup_epochs=1")


def planned(tmp_path, *combinations: str) -> list[Cell]:
    return plan_cells(Request("table4", "demo", tmp_path, combinations=combinations, settings=TWO_AND_TWO))


def driving(folder, cells: list[Cell], **options) -> Driving:
    account, studies = Account(folder), dict.fromkeys(cells, ("table4",))
    account.plan(studies)
    source = PlanSource(work_items(account, studies), account, options.get("keep_pretrainings", False))
    return Driving(source, account, **options)


def rows(cell: Cell, seconds: float = 1.0) -> list[dict]:
    """All that a cell reports."""
    epochs = [
        {"epoch": epoch, "phase": "pretrain" if epoch <= cell.pretrain_epochs else "finetune", "epoch_seconds": seconds}
        for epoch in range(1, cell.total_epochs + 1)
    ]
    return [*epochs, {"epoch": cell.total_epochs, "phase": "test", "test_accuracy": 50.0, "training_seconds": 4.0}]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    """A full storage is tried again at once."""
    monkeypatch.setattr("sweeps.driver.reporter.pause", lambda failure, times: 0.0)


# Silence


def test_a_trial_that_continues_is_judged_by_the_epochs_that_it_yields_again(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    watch = Watchdog()
    watch.started("a", cell)
    watch.reported("a", cell, rows(cell, seconds=600)[0])
    assert watch.limit("a") == watchdog.STALL_FACTOR * 600


def test_until_an_epoch_of_its_kind_was_seen_a_trial_has_hours(tmp_path):
    slow, other = planned(tmp_path, "sprel", "dist")
    watch = Watchdog()
    watch.started("a", slow)
    assert watch.limit("a") == UNKNOWN_SECONDS >= 3600
    for row in rows(slow)[:2]:
        watch.reported("a", slow, row)
    # The second phase may be another data set.
    assert watch.limit("a") == UNKNOWN_SECONDS
    watch.started("b", other)
    assert watch.limit("b") == FIRST_REPORT_SECONDS
    watch.reported("a", slow, rows(slow)[2])
    assert watch.limit("a") == STALL_SECONDS


def test_a_trial_that_falls_silent_is_ended_and_tried_again(tmp_path, monkeypatch):
    (cell,) = planned(tmp_path, "sprel")
    sweep, killed = driving(tmp_path, [cell]), []
    monkeypatch.setattr("sweeps.driver.reporter.ray.kill", killed.append)
    monkeypatch.setattr(watchdog, "STALL_SECONDS", -1.0)
    monkeypatch.setattr(watchdog, "STALL_FACTOR", -1.0)
    trial = sweep.start()
    trial.temporary_state.ray_actor = "its process"
    sweep.report(trial, rows(cell)[0])
    sweep.step(trial)
    assert killed == ["its process"]
    sweep.die(trial, "The actor died", tmp_path)
    assert "was stuck and is started again from its newest checkpoint" in sweep.notes[-1]
    assert sweep.start().cell == cell


# What fails


def test_too_little_gpu_memory_leads_to_a_gpu_alone_then_to_micro_batches_that_the_run_tells(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    sweep = driving(tmp_path, [cell], gpus=0.5)
    trial = sweep.start()
    assert (trial.config["gpus"], trial.config["micro_batches"]) == (0.5, 1)
    assert trial.config["pretrained"] is not None
    sweep.fail(trial, GPU_OOM, "out of memory")
    trial = sweep.start()
    assert (trial.config["gpus"], trial.config["micro_batches"]) == (1.0, 1)
    sweep.fail(trial, GPU_OOM, "out of memory")
    trial = sweep.start()
    assert (trial.config["gpus"], trial.config["micro_batches"]) == (1.0, 2)
    assert trial.config["pretrained"] is None  # a deviation is neither shared nor taken over
    sweep.report(trial, *rows(cell))
    sweep.reporter.close()
    begun = [(told[1].studies, told[2]) for told in sweep.tracking.told if told[0] == "begin"]
    assert begun == [(("table4",), ""), (("table4",), "micro_batches=2")]
    assert Account(tmp_path).status(cell).micro_batches == 2


def test_the_account_remembers_on_which_images_where_and_by_which_code_a_cell_was_finished(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    sweep = driving(tmp_path, [cell])
    sweep.report(sweep.start(), *rows(cell), worker={"data_fingerprint": "0123456789abcdef", "device": "cpu"})
    sweep.reporter.close()
    status = Account(tmp_path).status(cell)
    assert (status.state, status.data_fingerprint) == (FINISHED, "0123456789abcdef")
    assert status.origin == {"git_commit": "0123abcd", "device": "cpu"}  # the first by the tracker


def test_a_process_that_dies_again_and_again_fails_its_cell_with_the_last_reason(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    sweep = driving(tmp_path, [cell])
    for _ in range(4):
        sweep.die(sweep.start(), "The actor died", tmp_path)
    assert sweep.start() == Searcher.FINISHED
    sweep.reporter.close()
    status = Account(tmp_path).status(cell)
    assert (status.state, status.failure, status.reason) == (FAILED, CRASH, "The actor died (for the 4th time)")


# As Ray 2.60 puts it.
NEVER_RAN = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: CellTrainable\n\tpid: 28638\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called.\n"
    "The actor never ran - it was cancelled before it started running."
)


def test_a_cell_whose_process_never_starts_waits_between_tries_and_has_a_run_that_says_why(tmp_path, monkeypatch):
    (cell,) = planned(tmp_path, "sprel")
    sweep, waits = driving(tmp_path, [cell]), []
    waited = lambda failure, times: waits.append(pause(failure, times)) or 0.0  # noqa: E731
    monkeypatch.setattr("sweeps.driver.reporter.pause", waited)
    died = ActorDiedError()
    died.error_msg = NEVER_RAN
    for _ in range(7):
        sweep.die(sweep.start(comes_up=False), died, tmp_path)
    assert waits == [2, 4, 8, 16, 32, 60]
    sweep.reporter.close()
    status = Account(tmp_path).status(cell)
    assert (status.state, status.failure) == (FAILED, NOT_STARTED)
    assert status.reason == (
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
        "Worker unexpectedly exits with a connection error code 2. End of file. (for the 7th time)"
    )
    assert [name for name in sweep.tracking.names() if name in ("begin", "fail")] == ["begin", "fail"]


def test_a_cell_that_failed_while_the_storage_is_away_is_put_in_again_all_the_same(tmp_path, monkeypatch):
    (cell,) = planned(tmp_path, "sprel")
    sweep = driving(tmp_path, [cell])
    trial = sweep.start()

    def away(cell):
        raise OSError("AWS Error NETWORK_CONNECTION during ListObjectsV2 operation")

    monkeypatch.setattr(queue, "PAUSE", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(sweep.account, "is_published", away)
        sweep.fail(trial, STORAGE, "OSError: AWS Error NETWORK_CONNECTION")
        assert sweep.start() is None
    assert sweep.start().cell == cell


def test_what_the_storage_does_not_take_waits_until_it_does(tmp_path, monkeypatch):
    (cell,) = planned(tmp_path, "sprel")
    monkeypatch.setattr("sweeps.tracking.outbox.FIRST_PAUSE", 0.01)
    sweep = driving(tmp_path, [cell])
    mark, full = sweep.account.mark, [True]

    def sometimes(*arguments, **details):
        if full:
            raise OSError(28, "No space left on device")
        mark(*arguments, **details)

    monkeypatch.setattr(sweep.account, "mark", sometimes)
    sweep.report(sweep.start(), *rows(cell))
    full.clear()
    assert sweep.reporter.close() == 0
    assert Account(tmp_path).status(cell).state == FINISHED
    assert Account(tmp_path).history(cell) == rows(cell)


def test_a_run_is_interrupted_also_where_its_cell_waits_to_be_tried_again(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    sweep = driving(tmp_path, [cell])
    sweep.fail(sweep.start(), STORAGE, "OSError: No space left on device")
    assert sweep.reporter.stop() == [cell]
    sweep.reporter.close()
    assert sweep.tracking.told[-1] == ("interrupt", cell.cell_id, "the sweep was stopped")


# What is left of a cell that failed


def test_the_rows_of_a_cell_that_failed_are_kept_with_those_that_no_checkpoint_held(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    sweep = driving(tmp_path, [cell])
    reported = rows(cell)
    trial = sweep.start()
    sweep.report(trial, *reported[:3])
    sweep.fail(trial, STORAGE, "OSError: No space left on device")  # tried again
    trial = sweep.start()
    sweep.report(trial, *reported[:2])  # the newest whole checkpoint's
    sweep.fail(trial, NOT_FINITE, "finetune loss is nan")
    sweep.reporter.close()
    assert Account(tmp_path).status(cell).state == FAILED
    assert Account(tmp_path).history(cell) == reported[:3]


def test_a_cell_that_fails_before_its_first_row_leaves_the_rows_of_an_earlier_start(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    Account(tmp_path).keep_history(cell, rows(cell)[:1])
    sweep = driving(tmp_path, [cell])
    sweep.fail(sweep.start(), NOT_FINITE, "finetune loss is nan")
    sweep.reporter.close()
    assert Account(tmp_path).history(cell) == rows(cell)[:1]


def test_a_finished_cell_has_each_row_once_in_order(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    sweep = driving(tmp_path, [cell])
    trial = sweep.start()
    sweep.report(trial, *rows(cell)[:3])
    sweep.fail(trial, STORAGE, "OSError: No space left on device")
    sweep.report(sweep.start(), *rows(cell))
    sweep.reporter.close()
    assert Account(tmp_path).history(cell) == rows(cell)
    assert sweep.source.training_seconds == 4.0  # an epoch that was trained twice counts once
    page = sweep.tracking.pages["table4"]
    assert page.startswith("**1 cell: 1 finished, 0 to continue, 0 to start; 0 running, 0 failed**")
    assert "\n| sprel | 50.00 |" in page


# Pre-trainings that nobody needs any more


def publish(account: Account, cell: Cell) -> None:
    account.folder(cell).mkdir(parents=True)
    (account.folder(cell) / "final-0123456789abcdef.pt").touch()


def test_of_two_drivers_that_split_the_users_of_a_pretraining_the_last_drops_it(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    other, shared = replace(cell, learning_rate=2 * cell.learning_rate), cell.pretraining()
    account = Account(tmp_path)
    account.plan({cell: ("table4",), other: ("table4",)})
    publish(account, shared)
    first, second = driving(tmp_path, [cell]), driving(tmp_path, [other])
    first.report(first.start(), *rows(cell))
    first.reporter.close()
    assert account.is_published(shared)
    second.report(second.start(), *rows(other))
    second.reporter.close()
    assert not account.is_published(shared)


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_killed_driver_left_is_dropped_by_the_next(tmp_path, keep):
    cell, left = planned(tmp_path, "sprel", "dist")
    account = Account(tmp_path)
    account.plan({left: ("table4",)})
    finish(account, left, rows(left))
    publish(account, left.pretraining())
    sweep = driving(tmp_path, [cell], keep_pretrainings=keep)
    sweep.reporter.close()
    assert account.is_published(left.pretraining()) is keep


# Another driver takes over


def test_a_driver_that_was_replaced_leaves_runs_and_account_to_the_other(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    sweep = driving(tmp_path, [cell])
    trial = sweep.start()
    sweep.report(trial, rows(cell)[0])
    assert sweep.reporter.close() == 0
    assert sweep.tracking.names() == ["begin", "log"]
    entered = events(Account(tmp_path), cell)

    sweep = driving(tmp_path, [cell])
    trial = sweep.start()
    sweep.drain()
    sweep.hold.is_lost = True
    assert sweep.report(trial, *rows(cell)[:2])  # stopped with its first row
    assert sweep.reporter.stop() == [cell]
    assert sweep.reporter.close() == 0
    assert "log" not in sweep.tracking.names() and "interrupt" not in sweep.tracking.names()
    assert [state for state, _ in events(Account(tmp_path), cell)[len(entered) :]] == [RUNNING]


def test_a_sweep_that_was_interrupted_does_not_wait_long_for_a_tracking_server_that_is_away(tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.driver.reporter.HURRIED_PATIENCE", 0.1)
    (cell,) = planned(tmp_path, "sprel")
    sweep = driving(tmp_path, [cell])

    def away(*_):
        raise ConnectionError("no answer")

    sweep.tracking.begin = away
    sweep.start()
    assert sweep.reporter.stop() == [cell]
    assert sweep.reporter.close(is_hurried=True) > 0  # else it would wait for minutes


def test_a_pre_training_alone_finishes_with_what_its_tasks_came_to(tmp_path):
    cell = planned(tmp_path, "sprel")[0].pretraining()
    sweep, said = driving(tmp_path, [cell]), []
    sweep.source.progress = Progress(said)
    rows = [{"epoch": epoch, "phase": "pretrain", "epoch_seconds": 1.0} for epoch in (1, 2)]
    result = {"epoch": 2, "phase": "test", "test_sprel_accuracy": 48.5, "selected_epoch": 2, "training_seconds": 2.0}
    sweep.report(sweep.start(), *rows, result)
    sweep.reporter.close()
    assert sweep.account.status(cell).state == FINISHED
    assert said == ["sprel_accuracy 48.50  2 s"]


class Progress:
    """Keeps what a person is told of cells that have ended."""

    def __init__(self, said):
        self.said = said

    def running(self, cell):
        pass

    def epoch(self, kind, seconds):
        pass

    def ended(self, cell, outcome, failed):
        self.said.append(outcome)


# The budget


def test_hours_are_counted_from_the_start_and_gpu_hours_while_trials_hold_gpus(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    hours, gpu_hours = Budget(2.0, None), Budget(None, 1.0)
    gpu_hours.started("a", 0.5)
    now[0] = 3600.0
    gpu_hours.ended("a")  # half a GPU-hour
    gpu_hours.started("b", 1.0)
    assert not hours.is_spent() and not gpu_hours.is_spent()
    now[0] = 3600.0 * 1.5
    assert gpu_hours.is_spent() and not hours.is_spent()
    now[0] = 3600.0 * 2
    assert hours.is_spent()
