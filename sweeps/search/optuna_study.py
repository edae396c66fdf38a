"""An Optuna study that is kept in a database and thought about in memory.

Samplers and pruners read the whole study again and again, and Optuna writes each parameter of a trial in a transaction
of its own. Here they work on a copy in memory, and the database gets each trial in one transaction, then a row a report
and the outcome: what a killed driver leaves is a study in which every trial is either decided or RUNNING with all its
parameters.
"""

import contextlib
import copy
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import sqlalchemy.orm
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages._rdb.models import TrialParamModel
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from relvit.cell import LATER_FIELDS
from relvit.files import sqlite_file
from relvit.secrets import redacted

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=ExperimentalWarning)

DEFINITION = "definition"  # the study's attribute that tells it from another of the same name
MAXIMIZE, MINIMIZE = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE


class DatabaseError(ValueError):
    """Why a database cannot hold this study. Nothing was changed."""


def require_usable(url: str, name: str, definition: Mapping[str, Any]) -> None:
    """Raise DatabaseError where a database cannot be used, or holds another study of that name. Makes nothing."""
    try:
        tables = set(sqlalchemy.inspect(sqlalchemy.create_engine(url)).get_table_names()) if _exists(url) else set()
        if not tables:
            return
        if "studies" not in tables:  # Optuna would add its tables to any database, MLflow's included
            raise DatabaseError(
                f"{redacted(url)} is another program's database (tables {', '.join(sorted(tables)[:3])}, ...): name "
                "one of its own with --optuna-storage"
            )
        database = optuna.storages.RDBStorage(url)
        if name in optuna.get_all_study_names(database):
            _require_same(optuna.load_study(study_name=name, storage=database), definition, url)
    except (OptunaError, sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError) as error:
        raise DatabaseError(f"the Optuna storage {redacted(url)} cannot be used: {error}") from error


class DurableStudy:
    """One driver's hold on a study. Numbers of trials are Optuna's."""

    def __init__(
        self,
        url: str,
        name: str,
        definition: Mapping[str, Any],
        *,
        directions: Sequence[StudyDirection],
        sampler: Callable[[int], BaseSampler],
        pruner: BasePruner,
    ):
        """sampler: makes the sampler that draws the trial of that number. A sampler has no state but the study's, so
        that a search draws the same trials whether or not it was interrupted.

        Raises DatabaseError as `require_usable`.
        """
        self._sampler = sampler
        require_usable(url, name, definition)
        try:
            _create_atomically(url)
            # Other programs, such as the dashboard, may read meanwhile.
            patience = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
            self._database = _Database(url, engine_kwargs=patience)
            known = name in optuna.get_all_study_names(self._database)
            stored = optuna.create_study(
                storage=self._database, study_name=name, directions=list(directions), load_if_exists=True
            )
        except (OptunaError, sqlalchemy.exc.SQLAlchemyError, ImportError, RuntimeError) as error:
            raise DatabaseError(f"the Optuna storage {redacted(url)} cannot be used: {error}") from error
        if url.startswith("sqlite"):
            _enable_wal(self._database)
        self._stored = stored
        if not known:
            stored.set_user_attr(DEFINITION, json.dumps(definition, sort_keys=True))
        # The same name, which Hyperband draws a trial's bracket from.
        self._attributes = dict(stored.user_attrs)
        self.study = optuna.create_study(study_name=name, directions=list(directions), pruner=pruner)
        self.write: Callable[..., None] = _at_once
        self._ids: dict[int, int] = {}  # by number, what the database calls the trial
        self._kept: dict[int, dict[str, Any]] = {}  # by trial, what of its system attributes the database has
        for trial in stored.get_trials(deepcopy=False):
            self.study.add_trial(trial)
            self._ids[trial.number] = trial._trial_id
            self._kept[trial.number] = dict(trial.system_attrs)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.study.get_trials(deepcopy=False)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the study."""
        return self._attributes.get(name, default)

    def set_attribute(self, name: str, value: Any) -> None:
        """Keep an attribute of the study."""
        self._attributes[name] = value
        self.write(self._stored.set_user_attr, name, value)

    def ask(self, point: Mapping[str, Any] | None = None) -> Trial:
        """A new trial, whose parameters the caller draws before it calls `begin`; those of `point` are given."""
        self.study.sampler = self._sampler(len(self.trials))
        if point is not None:
            self.study.enqueue_trial(dict(point))
        return self.study.ask()

    def begin(self, trial: Trial, **attributes: Any) -> None:
        """Enter a trial that `ask` gave, with its parameters, as RUNNING."""
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        frozen = copy.deepcopy(self.trials[trial.number])
        self._kept[trial.number] = dict(frozen.system_attrs)
        self.write(self._create, frozen)

    def _create(self, frozen: FrozenTrial) -> None:
        if frozen.number not in self._ids:  # else it was carried out and not answered
            made = self._database.create_new_trial(self._stored._study_id, template_trial=frozen)
            self._ids[frozen.number] = made

    def _write(self, method: Callable[..., Any], number: int, *arguments: Any) -> None:
        """Write what belongs to a trial; its id is known once it is made."""
        self.write(lambda: method(self._ids[number], *arguments))

    def running(self) -> list[Trial]:
        """The trials that another driver began and did not end, to be continued."""
        return [Trial(self.study, trial._trial_id) for trial in self.trials if trial.state == TrialState.RUNNING]

    def report(self, trial: Trial, step: int, value: float) -> bool:
        """Enter a value on the way. Returns whether the pruner ends the trial with it.

        A step that was entered before was decided before: the trial went on.
        """
        if step in self.trials[trial.number].intermediate_values:
            return False
        trial.report(value, step)
        ends = trial.should_prune()
        self._keep_system_attributes(trial.number)
        self._write(self._database.set_trial_intermediate_value, trial.number, step, value)
        return ends

    def note(self, trial: Trial, **attributes: Any) -> None:
        """Keep attributes of a trial."""
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
            self._write(self._database.set_trial_user_attr, trial.number, name, value)

    def tell(self, trial: Trial, state: TrialState, values: Sequence[float] | None = None, **attributes: Any) -> None:
        """Enter the outcome of a trial."""
        self.note(trial, **attributes)
        self.study.tell(trial, values=values, state=state)
        self._keep_system_attributes(trial.number)
        outcome = self.trials[trial.number]
        self._write(self._database.set_trial_state_values, trial.number, outcome.state, outcome.values)

    def _keep_system_attributes(self, number: int) -> None:
        """What samplers and pruners remember with a trial."""
        kept = self._kept[number]
        for name, value in self.trials[number].system_attrs.items():
            if kept.get(name) != value:
                self._write(self._database.set_trial_system_attr, number, name, value)
                kept[name] = value


def _at_once(call: Callable[..., Any], *arguments: Any) -> None:
    call(*arguments)


class _Database(optuna.storages.RDBStorage):
    """Optuna's storage, without two look-ups in the database for each parameter that a new trial brings: that the trial
    may be written, and that the range fits those of other trials. Both are known here; they are a third of all the time
    that a search takes. Should Optuna rename the method, it is slower and no less right.
    """

    def _set_trial_param_without_commit(
        self,
        session: sqlalchemy.orm.Session,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        *_: Any,
    ) -> None:
        text = distribution_to_json(distribution)
        session.add(
            TrialParamModel(
                trial_id=trial_id, param_name=param_name, param_value=param_value_internal, distribution_json=text
            )
        )


def _enable_wal(database: optuna.storages.RDBStorage) -> None:
    """Commits that append to a log, without waiting for the disk: a killed process loses nothing by it, and others can
    read meanwhile."""

    @sqlalchemy.event.listens_for(database.engine, "connect")
    def _(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    database.engine.dispose()


def _create_atomically(url: str) -> None:
    """Make a SQLite database with all of Optuna's tables in one step, so that a dashboard or another driver that opens
    it early does not find it half made and makes the rest itself."""
    path = sqlite_file(url)
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as aside:
        made = Path(aside) / path.name
        database = optuna.storages.RDBStorage(f"sqlite:///{made}")
        _enable_wal(database)
        with database.engine.connect():  # keeps the log's mode in the file
            pass
        database.engine.dispose()
        # Either another driver was faster, or the file system has no links and Optuna makes the file in its place.
        with contextlib.suppress(OSError):
            os.link(made, path)


def _exists(url: str) -> bool:
    """SQLite would make an empty file by being asked."""
    path = sqlite_file(url)
    return path is None or path.exists()


def _require_same(stored: optuna.Study, definition: Mapping[str, Any], url: str) -> None:
    if DEFINITION not in stored.user_attrs:
        raise DatabaseError(
            f"{redacted(url)} holds a study {stored.study_name!r} that this program did not make; choose another --name"
        )
    # A field of a cell that came later than a search had its default there.
    theirs = LATER_FIELDS | json.loads(stored.user_attrs[DEFINITION])
    ours = LATER_FIELDS | json.loads(json.dumps(definition))
    changed = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if changed:
        differences = "; ".join(f"{name} was {theirs.get(name)}, now {ours.get(name)}" for name in changed)
        raise DatabaseError(
            f"{redacted(url)} holds another study {stored.study_name!r}: {differences}. Give the same options to "
            "continue it, or another --name"
        )
