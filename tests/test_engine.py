"""What the driver does with what it hears of trials, without Ray: trials, MLflow and the progress are stand-ins."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from relvit.cell import Cell
from sweeps.account.account import FAILED, Account
from sweeps.account.failures import NOT_FINITE, STORAGE, Setting
from sweeps.driver import driver as engine
from sweeps.driver.driver import FIRST_REPORT_SECONDS, STALL_SECONDS, UNKNOWN_SECONDS, Options
from sweeps.driver.trainable import FAILURE, FAILURE_CLASS, ROW, TRIAL, USAGE, WORKER
from sweeps.planning.plan import Request, plan_cells

TWO_AND_TWO = ("pretrain_epochs=2", "epochs=2", "warmup_epochs=1")


def planned(tmp_path, *combinations: str) -> list[Cell]:
    return plan_cells(Request("table4", "demo", tmp_path, combinations=combinations, settings=TWO_AND_TWO))


class Tracking:
    """Takes MLflow's place and remembers what it was told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *arguments: self.told.append((name, *arguments))


class Sweep:
    """A reporter in the middle of a sweep of these cells."""

    def __init__(self, folder, cells: list[Cell], **options):
        self.account, self.tracking, self.notes, self.again = Account(folder), Tracking(), [], []
        self.account.plan(dict.fromkeys(cells, "table4"))
        progress = SimpleNamespace(note=self.notes.append, **dict.fromkeys(("running", "epoch", "ended"), _nothing))
        how = Options(Setting(1, 0), folder / "data", **options)
        self.is_lost = False
        work = engine._Work(cells, self.account)
        self.reporter = engine._Reporter(self.account, self.tracking, progress, cells, work, how, lambda: self.is_lost)
        self.reporter.queue = SimpleNamespace(release=_nothing, again=self.again.append)

    def start(self, cell: Cell) -> SimpleNamespace:
        trial = SimpleNamespace(trial_id=cell.cell_id, config={TRIAL: {"cell": cell.as_dict()}})
        self.reporter.on_trial_start(0, [], trial)
        return trial

    def report(self, trial: SimpleNamespace, *rows: dict) -> None:
        for row in rows:
            self.reporter.on_trial_result(0, [], trial, {ROW: row, WORKER: {}, USAGE: {}})

    def fail(self, trial: SimpleNamespace, failure: str, reason: str) -> None:
        self.reporter.on_trial_result(0, [], trial, {FAILURE: reason, FAILURE_CLASS: failure})

    def limit(self, trial: SimpleNamespace) -> float:
        return self.reporter._watch.limit(trial)


def _nothing(*arguments, **named):
    pass


def rows(cell: Cell, seconds: float = 1.0) -> list[dict]:
    """All that a cell reports."""
    epochs = [
        {"epoch": epoch, "phase": "pretrain" if epoch <= cell.pretrain_epochs else "finetune", "epoch_seconds": seconds}
        for epoch in range(1, cell.total_epochs + 1)
    ]
    return [*epochs, {"epoch": cell.total_epochs, "phase": "test", "test_accuracy": 50.0, "training_seconds": 4.0}]


# Silence


def test_a_trial_that_continues_is_judged_by_the_epochs_that_it_yields_again(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    checkpoint = Account(tmp_path).folder(cell) / "000002-0123456789abcdef.pt"
    Account(tmp_path).mark(cell, "running")
    checkpoint.touch()
    sweep = Sweep(tmp_path, [cell])
    trial = sweep.start(cell)
    sweep.report(trial, rows(cell, seconds=600)[0])
    assert sweep.limit(trial) == engine.STALL_FACTOR * 600


def test_until_an_epoch_of_its_kind_was_seen_a_trial_has_hours(tmp_path):
    slow, other = planned(tmp_path, "sprel", "dist")
    sweep = Sweep(tmp_path, [slow, other])
    trial = sweep.start(slow)
    assert sweep.limit(trial) == UNKNOWN_SECONDS >= 3600
    sweep.report(trial, *rows(slow)[:2])
    # The second phase may be another data set.
    assert sweep.limit(trial) == UNKNOWN_SECONDS
    assert sweep.limit(sweep.start(other)) == FIRST_REPORT_SECONDS
    sweep.report(trial, rows(slow)[2])
    assert sweep.limit(trial) == STALL_SECONDS


# The storage goes away


def test_a_cell_that_failed_while_the_storage_is_away_is_put_in_again_all_the_same(tmp_path, monkeypatch):
    (cell,) = planned(tmp_path, "sprel")
    sweep = Sweep(tmp_path, [cell])
    trial = sweep.start(cell)

    def away(cell):
        raise OSError("AWS Error NETWORK_CONNECTION during ListObjectsV2 operation")

    monkeypatch.setattr(sweep.account, "status", away)
    sweep.fail(trial, STORAGE, "OSError: AWS Error NETWORK_CONNECTION")
    (entry,) = sweep.again
    assert entry.config[TRIAL]["cell"] == cell.as_dict()
    # Not known to be past its first phase, it goes the way of those that are not.
    assert entry.pretraining == sweep.account.folder(cell.pretraining())


# What is left of a cell that failed


def test_the_rows_of_a_cell_that_failed_are_kept_with_those_that_no_checkpoint_held(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    sweep = Sweep(tmp_path, [cell])
    reported = rows(cell)
    trial = sweep.start(cell)
    sweep.report(trial, *reported[:3])
    sweep.fail(trial, STORAGE, "OSError: No space left on device")  # tried again
    trial = sweep.start(cell)
    sweep.report(trial, *reported[:2])  # the newest whole checkpoint's
    sweep.fail(trial, NOT_FINITE, "finetune loss is nan")
    sweep.reporter.close()
    assert Account(tmp_path).status(cell).state == FAILED
    assert Account(tmp_path).history(cell) == reported[:3]


def test_a_cell_that_fails_before_its_first_row_leaves_the_rows_of_an_earlier_start(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    Account(tmp_path).keep_history(cell, rows(cell)[:1])
    sweep = Sweep(tmp_path, [cell])
    sweep.fail(sweep.start(cell), NOT_FINITE, "finetune loss is nan")
    sweep.reporter.close()
    assert Account(tmp_path).history(cell) == rows(cell)[:1]


def test_a_finished_cell_has_each_row_once_in_order(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    sweep = Sweep(tmp_path, [cell])
    trial = sweep.start(cell)
    sweep.report(trial, *rows(cell)[:3])
    sweep.fail(trial, STORAGE, "OSError: No space left on device")
    sweep.report(sweep.start(cell), *rows(cell))
    sweep.reporter.close()
    assert Account(tmp_path).history(cell) == rows(cell)


# Pre-trainings that nobody needs any more


def test_of_two_drivers_that_split_the_users_of_a_pretraining_the_last_drops_it(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    other, shared = replace(cell, learning_rate=2 * cell.learning_rate), cell.pretraining()
    account = Account(tmp_path)
    account.plan({cell: "table4", other: "table4"})
    account.folder(shared).mkdir(parents=True)
    (account.folder(shared) / "final-0123456789abcdef.pt").touch()
    first, second = Sweep(tmp_path, [cell]), Sweep(tmp_path, [other])
    first.report(first.start(cell), *rows(cell))
    first.reporter.close()
    assert account.is_published(shared)
    second.report(second.start(other), *rows(other))
    second.reporter.close()
    assert not account.is_published(shared)


@pytest.mark.parametrize("keep", [False, True])
def test_what_a_killed_driver_left_is_dropped_by_the_next(tmp_path, keep):
    cell, left = planned(tmp_path, "sprel", "dist")
    account = Account(tmp_path)
    account.plan({left: "table4"})
    account.finish(left, rows(left))
    account.folder(left.pretraining()).mkdir(parents=True)
    (account.folder(left.pretraining()) / "final-0123456789abcdef.pt").touch()
    sweep = Sweep(tmp_path, [cell], keep_pretrainings=keep)
    sweep.reporter.drop_unused_pretrainings()
    sweep.reporter.close()
    assert account.is_published(left.pretraining()) is keep


# Another driver takes over


def test_a_driver_that_was_replaced_leaves_runs_and_account_to_the_other(tmp_path):
    (cell,) = planned(tmp_path, "sprel")
    sweep = Sweep(tmp_path, [cell])
    trial = sweep.start(cell)
    sweep.report(trial, rows(cell)[0])
    assert sweep.reporter._tracking.close(30) == sweep.reporter._accounting.close(30) == 0
    told, entered = list(sweep.tracking.told), Account(tmp_path).events(cell)

    sweep = Sweep(tmp_path, [cell])
    sweep.is_lost = True
    sweep.report(sweep.start(cell), *rows(cell)[:2])
    assert sweep.reporter.interrupt_rest() == [cell]
    assert sweep.reporter.close() == 0
    assert [name for name, *_ in told] == ["begin", "log"]
    assert sweep.tracking.told == []
    assert Account(tmp_path).events(cell) == entered


def test_a_pre_training_alone_finishes_with_what_its_tasks_came_to(tmp_path):
    cell = planned(tmp_path, "sprel")[0].pretraining()
    sweep, said = Sweep(tmp_path, [cell]), []
    sweep.reporter._progress.ended = lambda cell, text, failed: said.append(text)
    rows = [{"epoch": epoch, "phase": "pretrain", "epoch_seconds": 1.0} for epoch in (1, 2)]
    result = {"epoch": 2, "phase": "test", "test_sprel_accuracy": 48.5, "selected_epoch": 2, "training_seconds": 2.0}
    sweep.report(sweep.start(cell), *rows, result)
    sweep.reporter.close()
    assert sweep.account.status(cell).state == "finished"
    assert said == ["sprel_accuracy 48.50  2 s"]
