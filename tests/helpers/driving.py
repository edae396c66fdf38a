"""A driver without Ray and MLflow: a reporter and its queue, fed with what trials would report."""

import threading
from pathlib import Path
from types import SimpleNamespace

from ray import cloudpickle

from sweeps.account.account import Account
from sweeps.account.failures import Setting
from sweeps.driver.options import Options
from sweeps.driver.reporter import Reporter
from sweeps.driver.trainable import FAILURE, FAILURE_CLASS, ROW, TRIAL, USAGE, WORKER


class Tracking:
    """Takes MLflow's place and remembers what it was told. tags: by cell id, of runs that were there before."""

    writers = 1
    origin, uri = {"git_commit": "0123abcd"}, "http://127.0.0.1:9"

    def __init__(self, tags=None):
        self.told, self.tags, self.kept, self.pages = [], tags or {}, [], {}

    def keep(self, cell_id, *row):
        self.kept.append((cell_id, *row))

    def write(self, cell_id, is_void):
        """Rows of a cell are told one by one, as `log`."""
        rows = [each for each in self.kept if each[0] == cell_id]
        self.told += [("log", *row) for row in rows]
        self.kept = [each for each in self.kept if each not in rows]

    def show_study(self, study, text):
        self.pages[study] = text

    def tag_of(self, cell_id, name):
        return self.tags.get(cell_id, {}).get(name)

    def __getattr__(self, name):
        return lambda *arguments, **more: self.told.append((name, *arguments))

    def names(self):
        return [name for name, *_ in self.told]


class Driving:
    """A driver at work. Trials start as its queue hands them out, and report what they are told to."""

    def __init__(self, source, account: Account, gpus: float = 0, tags=None, **options):
        self.source, self.account, self.tracking, self.notes = source, account, Tracking(tags), []
        self.hold = SimpleNamespace(name="this", is_lost=False, may_not_write=lambda: self.hold.is_lost)
        how = Options(Setting(1, gpus), account.storage / "data", **options)
        self.reporter = Reporter(source, account, self.tracking, how, self.notes.append, self.hold)
        self.trials = 0
        source.begin(self.reporter.enter)
        self.reporter.enter_endings()

    def start(self, comes_up: bool = True):
        """The next trial, or what the queue says instead. comes_up: whether its process does."""
        self.trials += 1
        trial = SimpleNamespace(trial_id=f"trial-{self.trials}", temporary_state=SimpleNamespace(ray_actor=None))
        answer = self.reporter.queue.suggest(trial.trial_id)
        if not isinstance(answer, dict):
            return answer
        trial.config = answer[TRIAL]
        trial.cell = self.reporter.queue.assignment(trial.trial_id).item.cell
        if comes_up:
            self.reporter.on_trial_start(0, [], trial)
        return trial

    def report(self, trial, *rows, worker=None) -> bool:
        """Report rows until the trial is stopped. Returns whether it was."""
        for row in rows:
            result = {ROW: row, WORKER: worker or {}, USAGE: {}}
            stops = self.reporter.stopper(trial.trial_id, result)
            self.reporter.on_trial_result(0, [], trial, result)
            if stops:
                return True
        return False

    def fail(self, trial, failure: str, reason: str) -> None:
        self.reporter.on_trial_result(0, [], trial, {FAILURE: reason, FAILURE_CLASS: failure})

    def die(self, trial, cause: str | BaseException, folder) -> None:
        """The trial's process ends; Tune keeps the text of it, and of Ray's errors the error too."""
        path = folder / f"{trial.trial_id}.txt"
        path.write_text(f"Failure # 1 (occurred at 12:00)\n{cause}\n")
        trial.error_file, trial.pickled_error_file = str(path), None
        if isinstance(cause, BaseException):
            trial.pickled_error_file = f"{path}.pkl"
            Path(trial.pickled_error_file).write_bytes(cloudpickle.dumps(cause))
        self.reporter.on_trial_error(0, [], trial)

    def drain(self) -> None:
        """Wait until the storage has all that was entered."""
        entered = threading.Event()
        self.reporter.enter(entered.set)
        assert entered.wait(60)

    def step(self, *trials) -> None:
        """What Tune does between two reports."""
        self.reporter.on_step_end(0, list(trials))
