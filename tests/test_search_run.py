"""What a search's driver does with what it hears of trials, without Ray: trials and MLflow are stand-ins."""

import time
from types import SimpleNamespace

import pytest
import sqlalchemy.exc
from helpers.accounts import events, finish
from helpers.driving import Driving
from helpers.searches import FEW, base, opened, row, run
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from ray.tune.search import Searcher

from sweeps.account.account import FAILED, PRUNED, RUNNING, SEARCHED, Account
from sweeps.account.failures import CRASH, GPU_OOM, NOT_FINITE, STORAGE
from sweeps.account.work import WorkItem
from sweeps.driver import watchdog
from sweeps.search.population import PopulationSearch
from sweeps.search.search import Budget, Method
from sweeps.search.source import SearchSource
from sweeps.search.space import make_space


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    """Four trials fit; a full storage is tried again at once."""
    monkeypatch.setattr("sweeps.driver.queue.slots", lambda setting: 4)
    monkeypatch.setattr("sweeps.driver.reporter.pause", lambda failure, times: 0.0)
    monkeypatch.setattr("sweeps.tracking.outbox.FIRST_PAUSE", 0.01)


def driving(folder, *searches, **options) -> Driving:
    account = Account(folder / "results")
    lines = []
    driver = Driving(SearchSource(list(searches), account, lines.append), account, **options)
    driver.lines = lines
    return driver


def rows(cell, last=None) -> list[dict]:
    return [row(cell, epoch) | {"phase": "joint"} for epoch in range(1, (last or cell.total_epochs) + 1)]


def stored(folder, name="a"):
    """The trials as the database has them."""
    return opened(folder, name=name).trials


# Trials


def test_a_trial_is_trained_without_the_test_split_and_its_decision_goes_everywhere(tmp_path):
    driver = driving(tmp_path, opened(tmp_path, trials=1))
    trial = driver.start()
    assert trial.config["test"] is False
    assert driver.report(trial, *rows(trial.cell))
    checkpoint = driver.account.folder(trial.cell) / "000009-0123.pt"
    assert driver.start() == Searcher.FINISHED
    assert driver.reporter.close() == 0
    assert stored(tmp_path)[0].state == TrialState.COMPLETE
    account = Account(tmp_path / "results")
    assert account.status(trial.cell).state == SEARCHED and not checkpoint.exists()
    assert account.history(trial.cell) == rows(trial.cell)
    assert driver.tracking.names() == ["begin", "tag", *["log"] * 9, "interrupt", "tag"]
    _, begun, deviation = driver.tracking.told[0]
    assert (begun.studies, deviation, begun.name) == (("a-trials",), "", "trial 0 · a")
    tags = {"search": "a", "trial": "0", "trial_state": "complete", "stopped_epoch": "9"}
    assert driver.tracking.told[-1] == ("tag", trial.cell.cell_id, tags)
    assert driver.lines[0].startswith("a [1/1] trial 0  validation accuracy")


def test_a_trial_that_the_scheduler_stops_is_pruned_and_its_checkpoints_go(tmp_path):
    driver = driving(tmp_path, opened(tmp_path, method=Method("random", "asha"), trials=9))
    ended = []
    while (trial := driver.start()) not in (None, Searcher.FINISHED):
        folder = driver.account.folder(trial.cell)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "000001-0123.pt").touch()
        assert driver.report(trial, *rows(trial.cell))
        ended.append(trial.cell)
    driver.reporter.close()
    account = Account(tmp_path / "results")
    states = [account.status(cell).state for cell in ended]
    assert set(states) == {PRUNED, SEARCHED} and states.count(PRUNED) == driver_counts(tmp_path)["pruned"]
    assert not list((tmp_path / "results").glob("cells/*/*.pt"))


def driver_counts(folder):
    return opened(folder, method=Method("random", "asha"), trials=9).counts()


def test_no_more_is_drawn_than_can_run(tmp_path):
    search = opened(tmp_path)
    driver = driving(tmp_path, search)
    trials = [driver.start() for _ in range(4)]
    assert driver.start() is None
    assert len(search.trials) == 4  # what is drawn early is drawn without what runs now
    driver.report(trials[0], *rows(trials[0].cell))
    assert driver.start().cell == search.cell_of(search.trials[4])


def test_a_cell_that_an_ablation_has_finished_is_read_and_left_alone(tmp_path):
    account, search = Account(tmp_path / "results"), opened(tmp_path, trials=1)
    cell = opened(tmp_path, name="same draws", trials=1).next().cell
    finish(account, cell, rows(cell))
    before = events(account, cell)
    driver = driving(tmp_path, search)
    trial = driver.start()
    assert trial.cell == cell
    driver.report(trial, *rows(cell))
    driver.reporter.close()
    assert search.counts() == {"complete": 1}
    assert driver.tracking.told == [] and events(Account(tmp_path / "results"), cell) == before


# What a search survives


def test_too_little_gpu_memory_leads_to_a_gpu_alone_then_to_micro_batches_that_the_run_tells(tmp_path):
    driver = driving(tmp_path, opened(tmp_path, trials=1), gpus=0.5)
    for setting in ((0.5, 1), (1.0, 1)):
        trial = driver.start()
        assert (trial.config["gpus"], trial.config["micro_batches"]) == setting
        driver.report(trial, *rows(trial.cell, last=2))
        driver.fail(trial, GPU_OOM, "OutOfMemoryError: CUDA out of memory")
    trial = driver.start()
    assert trial.config["micro_batches"] == 2
    driver.report(trial, *rows(trial.cell))
    driver.reporter.close()
    assert stored(tmp_path)[0].user_attrs["epochs"] == 9
    assert "with each batch in 2 parts" in driver.notes[-1]
    assert [told[2] for told in driver.tracking.told if told[0] == "begin"] == ["", "micro_batches=2"]
    assert Account(tmp_path / "results").status(trial.cell).micro_batches == 2


def test_a_trial_that_falls_silent_is_ended_and_tried_again(tmp_path, monkeypatch):
    driver, killed = driving(tmp_path, opened(tmp_path, trials=1)), []
    monkeypatch.setattr("sweeps.driver.reporter.ray.kill", killed.append)
    monkeypatch.setattr(watchdog, "STALL_SECONDS", -1.0)
    monkeypatch.setattr(watchdog, "STALL_FACTOR", -1.0)
    trial = driver.start()
    trial.temporary_state.ray_actor = "its process"
    driver.report(trial, *rows(trial.cell, last=1))
    driver.step(trial)
    assert killed == ["its process"]
    driver.die(trial, "The actor died", tmp_path)
    again = driver.start()
    assert again.cell == trial.cell
    driver.report(again, *rows(trial.cell))
    driver.reporter.close()
    assert [each.state for each in stored(tmp_path)] == [TrialState.COMPLETE]


def test_a_storage_that_is_full_for_a_while_loses_neither_trials_nor_decisions(tmp_path, monkeypatch):
    driver = driving(tmp_path, opened(tmp_path, trials=2))
    full = [True]

    def failing(call, error):
        def sometimes(*arguments, **details):
            if full:
                raise error
            return call(*arguments, **details)

        return sometimes

    no_room = OSError(28, "No space left on device")
    monkeypatch.setattr(driver.account, "mark", failing(driver.account.mark, no_room))
    monkeypatch.setattr(driver.account, "keep_history", failing(driver.account.keep_history, no_room))
    locked = sqlalchemy.exc.OperationalError("INSERT", {}, Exception("database or disk is full"))
    monkeypatch.setattr(RDBStorage, "create_new_trial", failing(RDBStorage.create_new_trial, locked))
    trial = driver.start()
    driver.fail(trial, STORAGE, "OSError: [Errno 28] No space left on device")
    trial = driver.start()
    assert driver.report(trial, *rows(trial.cell))
    other = driver.start()
    while not any(
        "is not accepting writes, which are queued" in note for note in driver.notes
    ):  # another thread writes
        time.sleep(0.01)
    full.clear()
    driver.report(other, *rows(other.cell))
    assert driver.reporter.close() == 0
    monkeypatch.undo()
    assert [each.state for each in stored(tmp_path)] == [TrialState.COMPLETE] * 2
    account = Account(tmp_path / "results")
    for cell in (trial.cell, other.cell):
        assert account.status(cell).state == SEARCHED and account.history(cell) == rows(cell)
    assert any("accepts writes again" in note for note in driver.notes)


def test_a_process_that_dies_again_and_again_fails_its_trial_and_the_search_goes_on(tmp_path):
    driver = driving(tmp_path, opened(tmp_path, trials=2))
    for _ in range(4):
        trial = driver.start()
        driver.die(trial, "The actor died", tmp_path)
    other = driver.start()
    driver.report(other, *rows(other.cell))
    driver.reporter.close()
    assert [each.state for each in stored(tmp_path)] == [TrialState.FAIL, TrialState.COMPLETE]
    assert stored(tmp_path)[0].user_attrs["reason"] == "The actor died (for the 4th time)"
    status = Account(tmp_path / "results").status(trial.cell)
    assert (status.state, status.failure) == (FAILED, CRASH)


def test_a_loss_that_is_not_finite_is_not_tried_again(tmp_path):
    driver = driving(tmp_path, opened(tmp_path, trials=1))
    trial = driver.start()
    driver.fail(trial, NOT_FINITE, "ArithmeticError: loss is nan")
    assert driver.start() == Searcher.FINISHED
    driver.reporter.close()
    assert ("fail", trial.cell.cell_id, "ArithmeticError: loss is nan", NOT_FINITE) in driver.tracking.told


def test_while_the_storage_is_away_the_search_waits_and_draws_nothing_twice(tmp_path, monkeypatch):
    search = opened(tmp_path, trials=1)
    driver = driving(tmp_path, search)
    monkeypatch.setattr("sweeps.driver.queue.PAUSE", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(driver.account, "status", lambda cell: (_ for _ in ()).throw(OSError("away")))
        assert driver.start() is None
        assert driver.start() is None
    assert driver.start().cell == search.cell_of(search.trials[0])
    assert len(search.trials) == 1


def test_a_driver_that_was_replaced_writes_nothing_more(tmp_path):
    search = opened(tmp_path, trials=2)
    driver = driving(tmp_path, search)
    trial = driver.start()
    driver.report(trial, *rows(trial.cell, last=2))
    driver.drain()
    driver.hold.is_lost = True
    assert driver.report(trial, rows(trial.cell)[2])  # stopped
    assert driver.reporter.stop() == [trial.cell]
    driver.reporter.close()
    (left,) = stored(tmp_path)
    assert left.state == TrialState.RUNNING
    assert 3 not in left.intermediate_values
    assert "interrupt" not in driver.tracking.names()


def test_a_search_that_is_stopped_leaves_its_trials_to_be_continued(tmp_path):
    driver = driving(tmp_path, opened(tmp_path, trials=2))
    trial = driver.start()
    driver.report(trial, *rows(trial.cell, last=2))
    assert driver.reporter.stop() == [trial.cell]
    driver.reporter.close()
    assert driver.tracking.told[-1] == ("interrupt", trial.cell.cell_id, "search a was stopped")
    again = driving(tmp_path, opened(tmp_path, trials=2)).start()
    assert again.cell == trial.cell


# A population


def test_members_wait_for_each_other_and_the_replaced_one_is_entered_as_pruned(tmp_path):
    space = make_space(base("none", protocol="joint", epochs=4), names=["learning_rate"])
    method, url = Method("random", "pbt", 2, 0, 2), f"sqlite:///{tmp_path}/optuna.db"
    search = PopulationSearch("a", space, method, Budget(trials=3), url)
    driver = driving(tmp_path, search)
    first, second = driver.start(), driver.start()
    assert first.config["stop_after"] == 2
    assert driver.report(first, *rows(first.cell))
    assert driver.start() is None
    assert driver.report(second, *rows(second.cell))
    fork = driver.start()
    assert fork.config["forked"] is not None
    driver.step()
    driver.reporter.close()
    states = {cell: Account(tmp_path / "results").status(cell).state for cell in (first.cell, second.cell)}
    assert sorted(states.values()) == [PRUNED, RUNNING]
    assert sum(told[0] == "interrupt" and "waits after epoch 2" in told[2] for told in driver.tracking.told) == 2


# What an earlier driver left out


@pytest.fixture
def ended(tmp_path):
    """A search of four trials that have ended, and its account, which has all of that."""
    search = opened(tmp_path, space=FEW, trials=4)
    run(search)
    account = Account(tmp_path / "results")
    for trial in search.trials:
        if "epochs" in trial.user_attrs:
            account.mark(search.cell_of(trial), SEARCHED)
    return search, account


def entered(search, account, tags):
    source = SearchSource([search], account, print)
    source.enter_left_out(SimpleNamespace(tag_of=lambda cell_id, name: tags.get(cell_id, {}).get(name)))
    driver = Driving(source, account)
    driver.reporter.close()
    return driver.tracking.told


def test_what_an_earlier_driver_entered_is_left_alone(ended):
    search, account = ended
    tags = {trial.user_attrs["cell_id"]: {"trial_state": "complete"} for trial in search.trials}
    assert entered(search, account, tags) == []


def test_a_trial_of_which_mlflow_has_not_heard_the_end_is_entered_with_its_rows(ended):
    search, account = ended
    trial = search.trials[0]
    cell, cell_id = search.cell_of(trial), trial.user_attrs["cell_id"]
    known = rows(cell, 2)
    account.keep_history(cell, known)
    tags = {each.user_attrs["cell_id"]: {"trial_state": "complete"} for each in search.trials}
    calls = entered(search, account, tags | {cell_id: {"trial_state": "running"}})
    begin = ("begin", WorkItem(cell, studies=("a-trials",)))
    assert calls[:2] == [begin, ("log", cell_id, tuple(known))]
    assert [name for name, *_ in calls[2:]] == ["interrupt", "tag"]
    assert calls[-1][2] == {"search": "a", "trial": "0", "trial_state": "complete", "stopped_epoch": "9"}


def test_a_trial_of_which_the_account_has_not_heard_the_end_has_its_rows_from_its_checkpoint(ended):
    from relvit import checkpoint

    search, account = ended
    cell = search.cell_of(search.trials[0])
    account.mark(cell, RUNNING)
    known = rows(cell, 9)
    checkpoint.save({"history": known}, account.folder(cell), 9, 2)
    tags = {each.user_attrs["cell_id"]: {"trial_state": "complete"} for each in search.trials}
    entered(search, account, tags)
    assert account.status(cell).state in (SEARCHED, PRUNED)
    assert account.history(cell) == known
    assert not list(account.folder(cell).glob("*.pt"))
