"""A hyperparameter search over the cells of one space: what to train next, when to stop it, what came out.

No Ray, no MLflow: a search is asked for trials and hears their epochs and their outcome. Each trial is a cell; two
trials that draw the same cell are trained once and share the result. The objective is the validation accuracy of the
weights that would be tested; the test split is never looked at.

Optuna's samplers and pruners decide rather than Ray Tune's: their decisions follow from the study in the database
alone, so that a killed search continues as if it had not been, where Tune's schedulers keep their rungs in the driver's
memory, and its OptunaSearch leaves the trials of a dead driver RUNNING and never asks a pruner.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from relvit.cell import Cell, schedulable
from relvit.messages import unknown
from relvit.vocabulary import val_accuracy
from sweeps.search.optuna_study import MAXIMIZE, MINIMIZE, DurableStudy
from sweeps.search.space import Space, has_numbers, searched_fields

REDUCTION = 3  # of the trials at each rung, one in this many goes on to this many times the epochs
# A finite space is exhausted when this many draws in a row were trained before.
_REPEATS = 200


def _tpe(seed: int) -> BaseSampler:
    # `group` models the parameters that occur together as one, conditional ones on their own; running trials count as
    # bad ones meanwhile (`constant_liar`), so that parallel trials differ.
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _tpe,
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False),
    # Of two objectives: validation accuracy and seconds of training.
    "nsga2": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=20),
    "nsga3": lambda seed: optuna.samplers.NSGAIIISampler(seed=seed, population_size=20),
    "motpe": _tpe,
}
MULTI_OBJECTIVE = ("nsga2", "nsga3", "motpe")

SCHEDULERS = ("asha", "hyperband", "median", "none", "pbt")
_MEDIAN_STARTUP = 5
PBT = "pbt"  # sweeps/search/population.py
POPULATION = 8
# Attributes of a trial that is a fork of another: of which, after how many epochs of the last phase, in whose place.
PARENT, FORKED_AFTER, REPLACES = "parent", "forked_after", "replaces"


@dataclass(frozen=True)
class Budget:
    """What a search may spend: trials, hours of wall time while it runs, hours of GPUs. None: no limit."""

    trials: int | None = None
    hours: float | None = None
    gpu_hours: float | None = None

    def __str__(self) -> str:
        parts = [(self.trials, "trials"), (self.hours, "hours"), (self.gpu_hours, "GPU-hours")]
        return ", ".join(f"{amount:g} {unit}" for amount, unit in parts if amount is not None)


@dataclass(frozen=True)
class Method:
    """How a search goes about it.

    min_epochs: of the last phase, before which a scheduler stops nothing, and between which pbt does; population:
    trials that pbt trains side by side, 0 for the others.
    """

    sampler: str = "tpe"
    scheduler: str = "asha"
    min_epochs: int | None = None
    seed: int = 0
    population: int = 0

    def first_rung(self, epochs: int) -> int:
        """Epochs after which a trial may first be stopped, of `epochs`."""
        return self.min_epochs or max(1, epochs // REDUCTION**2)

    def rungs(self, epochs: int) -> list[int]:
        """The epochs after which ASHA compares trials that are to train for `epochs`."""
        first = self.first_rung(epochs)
        count = max(0, math.ceil(math.log(epochs / first, REDUCTION) - 1e-9))
        return [first * REDUCTION**rung for rung in range(count)]

    def pruner(self, epochs: int) -> BasePruner:
        """Optuna's pruner for trials of so many epochs."""
        first = self.first_rung(epochs)
        if self.scheduler == "asha":
            return SuccessiveHalvingPruner(min_resource=first, reduction_factor=REDUCTION)
        if self.scheduler == "hyperband":
            return HyperbandPruner(min_resource=first, max_resource=epochs, reduction_factor=REDUCTION)
        if self.scheduler == "median":
            return MedianPruner(n_startup_trials=_MEDIAN_STARTUP, n_warmup_steps=first - 1)
        return NopPruner()


def method_problems(method: Method, budget: Budget, space: Space) -> list[str]:
    """What cannot work together, one sentence each."""
    problems = []
    if method.sampler not in SAMPLERS:
        problems.append(unknown("searcher", method.sampler, SAMPLERS))
    if method.scheduler not in SCHEDULERS:
        problems.append(unknown("scheduler", method.scheduler, SCHEDULERS))
    if budget == Budget():
        problems.append("no budget: give at least one of --trials, --hours and --gpu-hours")
    if method.population and method.scheduler in SCHEDULERS and method.scheduler != PBT:
        problems.append(f"--population is for --scheduler pbt; {method.scheduler} has none")
    if problems:
        return problems
    if method.sampler in MULTI_OBJECTIVE and method.scheduler != "none":
        problems.append(
            f"--scheduler {method.scheduler} stops trials by one value, and --searcher {method.sampler} searches for "
            "two (validation accuracy, seconds of training): use --scheduler none, or one of "
            f"{', '.join(name for name in SAMPLERS if name not in MULTI_OBJECTIVE)}"
        )
    if method.sampler == "cmaes" and not has_numbers(space):
        problems.append("--searcher cmaes needs at least one range of numbers, and this space has choices alone")
    return problems + _bracket_problems(method, budget, space)


def _bracket_problems(method: Method, budget: Budget, space: Space) -> list[str]:
    epochs = int(space.base["epochs"])
    if method.scheduler == "none":
        return []
    if not 1 <= method.first_rung(epochs) < epochs:
        return [
            f"--scheduler {method.scheduler} stops trials between epoch {method.first_rung(epochs)} and the last of "
            f"{epochs}, and there is none between: train longer (--set epochs=N), or use a smaller --min-epochs, or "
            "--scheduler none"
        ]
    if method.scheduler == PBT:
        return _population_problems(method, budget, space)
    rungs = method.rungs(epochs)
    if method.scheduler == "asha":
        least, what = REDUCTION ** len(rungs), f"one bracket of asha, with rungs after {_listed(rungs)} of {epochs}"
    elif method.scheduler == "hyperband":
        brackets = math.floor(math.log(epochs / rungs[0], REDUCTION) + 1e-9) + 1
        each = [math.ceil(brackets * REDUCTION**s / (s + 1)) for s in range(brackets)]
        least, what = sum(each), f"the {brackets} brackets of hyperband from {rungs[0]} to {epochs}"
    else:
        least, what = (
            _MEDIAN_STARTUP + 1,
            f"median stopping, which lets {_MEDIAN_STARTUP} trials end first, of {epochs}",
        )
    if budget.trials is not None and budget.trials < least:
        return [
            f"--trials {budget.trials} is too few for {what} epochs: give at least {least}, or a larger --min-epochs, "
            "or --scheduler none"
        ]
    return []


def _population_problems(method: Method, budget: Budget, space: Space) -> list[str]:
    problems = []
    if method.population < 2:
        problems.append(f"--population {method.population} is no population: give at least 2")
    elif budget.trials is not None and budget.trials <= method.population:
        problems.append(
            f"--trials {budget.trials} leaves nothing beyond the {method.population} members that pbt begins with; "
            "each member that it replaces is one more trial: give more, or a smaller --population"
        )
    free = schedulable(space.base)
    if not any(name in free for name in space.domains):
        problems.append(
            f"--scheduler pbt changes parameters while it trains, and none of {', '.join(space.domains)} can change "
            f"within a phase: search one of {', '.join(free)}, or use another scheduler"
        )
    return problems


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


@dataclass
class ActiveTrial:
    """A trial that is being trained, or about to be."""

    search: "Search"
    trial: Trial
    cell: Cell
    duplicates: list[Trial] = field(default_factory=list)  # that drew the same cell and will have its result
    value: float = -math.inf
    seconds: float = 0.0
    epoch: int = 0  # of all phases
    state: TrialState | None = None
    # By pbt alone: after which epoch of all phases it is to stop for now, and that it has; whose checkpoint it goes on
    # from, and how many epochs of all phases that has seen.
    stop_after: int | None = None
    waits: bool = False
    forked: Cell | None = None
    forked_after: int = 0

    @property
    def number(self) -> int:
        """Optuna's number of the trial."""
        return self.trial.number

    def restart(self) -> None:
        """The training starts again, and reports from its first epoch."""
        self.value, self.seconds, self.epoch, self.state, self.waits = -math.inf, 0.0, 0, None, False


class Search:
    """One search. Its truth is the study in the database; call it from one thread of one driver."""

    def __init__(
        self,
        name: str,
        space: Space,
        method: Method,
        budget: Budget,
        url: str,
        points: Sequence[Mapping[str, Any]] = (),
        gpus: float = 0.0,
    ):
        """url: of the Optuna storage; points: values of parameters to try first; gpus: that each trial takes.

        Raises DatabaseError as `DurableStudy` does.
        """
        self.name, self.space, self.method, self.budget = name, space, method, budget
        self._gpus = gpus
        self.multi_objective = method.sampler in MULTI_OBJECTIVE
        self._study = DurableStudy(
            url,
            name,
            definition(space, method),
            directions=[MAXIMIZE, MINIMIZE] if self.multi_objective else [MAXIMIZE],
            sampler=lambda number: SAMPLERS[method.sampler](_seed(method.seed, number)),
            pruner=method.pruner(int(space.base["epochs"])),
        )
        self._points = self._study.attribute("points")
        if self._points is None:
            self._points = [dict(point) for point in points]
            self._study.set_attribute("points", self._points)
        self._spent_before = float(self._study.attribute("seconds", 0.0))
        self._started = time.monotonic()
        self._left_over: list[Trial] = []
        self._held: ActiveTrial | None = None
        self._live: dict[str, ActiveTrial] = {}  # by cell id
        self._ended: dict[str, FrozenTrial] = {}
        for trial in self._study.trials:
            if trial.state.is_finished():
                self._ended.setdefault(trial.user_attrs.get("cell_id", ""), trial)
        self._ended.pop("", None)
        self._repeats = 0
        self._take_up(self._study.running())

    def _take_up(self, running: list[Trial]) -> None:
        """Have those trials continued that another driver began and did not end."""
        self._left_over = running

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials so far, by number."""
        return self._study.trials

    @property
    def study(self) -> optuna.Study:
        """The study in memory, for Optuna's own plots."""
        return self._study.study

    @property
    def seconds(self) -> float:
        """Wall time that was spent searching, earlier drivers' included."""
        return self._spent_before + time.monotonic() - self._started

    @property
    def training_seconds(self) -> float:
        """Seconds of training of all trials that have ended."""
        return sum(trial.user_attrs.get("training_seconds", 0.0) for trial in self.trials if not is_duplicate(trial))

    @property
    def training_epochs(self) -> int:
        """Epochs of all trials that have ended."""
        return sum(trial.user_attrs.get("epochs", 0) for trial in self.trials if not is_duplicate(trial))

    @property
    def has_own_pretrainings(self) -> bool:
        """Whether each trial pre-trains for itself: anything is searched but the last phase's learning rate."""
        return set(self.space.domains) != {"learning_rate"}

    def start(self, write: Callable[..., None]) -> None:
        """Count wall time from here on, and have the database written by `write(call, *arguments)`, which keeps the
        order."""
        self._started = time.monotonic()
        self._study.write = write

    def exhausted(self) -> bool:
        """Whether the budget, or the space, allows no new trial."""
        budget = self.budget
        return (
            (budget.trials is not None and len(self.trials) >= budget.trials)
            or (budget.hours is not None and self.seconds >= budget.hours * 3600)
            or (
                budget.gpu_hours is not None
                and (self.training_seconds + sum(active.seconds for active in self._live.values())) * self._gpus
                >= budget.gpu_hours * 3600
            )
            or self._repeats >= _REPEATS
        )

    def next(self, may_start: Callable[[Cell], bool] = lambda cell: True) -> ActiveTrial | None:
        """The next trial to train; None where there is none now.

        may_start: whether a cell can be trained now, or must wait for another's pre-training; the search then holds it
        and asks again.
        """
        self._held = self._held or self._draw()
        if self._held is None or not may_start(self._held.cell):  # which may raise; nothing is lost then
            return None
        active, self._held = self._held, None
        self._live[active.cell.cell_id] = active
        return active

    def finished(self) -> bool:
        """Whether nothing is left to hand out."""
        return self._held is None and not self._left_over and self.exhausted()

    def _draw(self) -> ActiveTrial | None:
        """A trial with a cell that neither is nor was trained; settles the others on the way."""
        while self._left_over or not self.exhausted():
            continued = bool(self._left_over)
            if continued:
                trial = self._left_over.pop(0)
            else:
                number = len(self.trials)
                trial = self._study.ask(self._points[number] if number < len(self._points) else None)
            try:
                cell = self.space.suggest(trial)
            except ValueError as error:
                if not continued:
                    self._study.begin(trial)
                self._study.tell(trial, TrialState.FAIL, reason=str(error))
                continue
            cell_id = cell.cell_id
            if not continued:
                self._study.begin(trial, cell_id=cell_id)
            if not self._is_settled(trial, cell):
                self._repeats = 0
                return ActiveTrial(self, trial, cell)
        return None

    def _is_settled(self, trial: Trial, cell: Cell) -> bool:
        """Whether another trial trains the cell or did, so that this one copies its result, now or then."""
        if cell.cell_id in self._ended:
            self._copy_result(trial, self._ended[cell.cell_id])
        elif cell.cell_id in self._live:
            self._live[cell.cell_id].duplicates.append(trial)
        else:
            return False
        self._repeats += 1
        return True

    def report(self, active: ActiveTrial, row: Mapping[str, Any]) -> bool:
        """Take an epoch's row. Returns whether the trial ends with it: stopped, or at its last epoch."""
        cell = active.cell
        active.epoch = int(row["epoch"])
        if active.epoch > active.forked_after:
            active.seconds += float(row["epoch_seconds"])
        step = active.epoch - cell.pretrain_epochs
        if step < 1:
            return False
        accuracy = float(row[val_accuracy(cell.last_phase)])  # the phase that classifies
        active.value = max(active.value, accuracy) if cell.selection == "best_val" else accuracy
        ends = not self.multi_objective and self._study.report(active.trial, step, active.value)
        if active.epoch == cell.total_epochs:
            active.state = TrialState.COMPLETE
        elif ends:
            active.state = TrialState.PRUNED
        return active.state is not None

    def settle(self, active: ActiveTrial, reason: str = "") -> None:
        """Enter the outcome of a trial: as `report` left it, or failed for a reason."""
        state = TrialState.FAIL if reason else active.state
        assert state is not None, "a trial is settled when it has ended"
        values = None
        if state == TrialState.COMPLETE:
            values = [active.value, active.seconds] if self.multi_objective else [active.value]
        trained = active.epoch - active.forked_after
        attributes: dict[str, Any] = {"epochs": trained, "training_seconds": round(active.seconds, 3)}
        if reason:
            attributes["reason"] = reason[:2000]
        self._study.tell(active.trial, state, values, **attributes)
        self._live.pop(active.cell.cell_id, None)
        outcome = self.trials[active.number]
        self._ended[active.cell.cell_id] = outcome
        for duplicate in active.duplicates:
            self._copy_result(duplicate, outcome)
        self.keep_time()

    def wait(self, active: ActiveTrial) -> None:
        """Put a trial aside until it is handed out again: only a population's do."""
        raise NotImplementedError

    def take_outcomes(self) -> list[FrozenTrial]:
        """Trials that came to their end since the last time without a row of their own: what pbt replaces."""
        return []

    def keep_time(self) -> None:
        """Enter the wall time that was spent so far."""
        if self.budget.hours is not None:
            self._study.set_attribute("seconds", self.seconds)

    def _copy_result(self, trial: Trial, outcome: FrozenTrial) -> None:
        """Give a duplicate the result of the trial that trained the same cell."""
        for step, value in outcome.intermediate_values.items():
            self._study.report(trial, step, value)
        values = outcome.values if outcome.state == TrialState.COMPLETE else None
        self._study.tell(trial, outcome.state, values, same_as=outcome.number)

    def best(self) -> FrozenTrial | None:
        """The complete trial of the highest validation accuracy, the first of several; of two objectives, that of the
        Pareto front."""
        complete = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        return max(complete, key=lambda trial: (trial.values[0], -trial.number), default=None)

    def cell_of(self, trial: FrozenTrial) -> Cell:
        """The cell that a trial trained."""
        return self.space.suggest(optuna.trial.FixedTrial(trial.params))

    def fields_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """The values of the parameters that acted in a trial."""
        return searched_fields(self.cell_of(trial), self.space)

    def counts(self) -> dict[str, int]:
        """How many trials are in each state, by Optuna's names in lower case."""
        states = [trial.state.name.lower() for trial in self.trials]
        return {state: states.count(state) for state in ("complete", "pruned", "fail", "running") if state in states}


def is_duplicate(trial: FrozenTrial) -> bool:
    """Whether a trial copied the result of another one with the same cell, and was not trained."""
    return "same_as" in trial.user_attrs


def is_fork(trial: FrozenTrial) -> bool:
    """Whether a trial went on from another one's weights."""
    return PARENT in trial.user_attrs


def forked_epochs(trial: FrozenTrial, cell: Cell) -> int:
    """Epochs over all phases that the weights of a fork had seen before it; 0 of other trials."""
    return cell.pretrain_epochs + trial.user_attrs[FORKED_AFTER] if is_fork(trial) else 0


def definition(space: Space, method: Method) -> dict[str, Any]:
    """What makes a study another one if it changes: budgets and points may grow."""
    return {
        **{name: value for name, value in space.base.items() if name not in space.domains},
        "space": space.describe(),
        "searcher": method.sampler,
        "scheduler": method.scheduler,
        "first rung": method.first_rung(int(space.base["epochs"])) if method.scheduler != "none" else None,
        "search seed": method.seed,
        **({"population": method.population} if method.scheduler == PBT else {}),
    }


def point_problems(space: Space, point: Mapping[str, Any]) -> list[str]:
    """What is wrong with a point given by hand: names that the space lacks, values outside its ranges."""
    problems = [unknown("parameter", name, space.domains) for name in point if name not in space.domains]
    return problems + space.point(point)[1]


def _seed(seed: int, number: int) -> int:
    """A sampler's seed for one trial: the search's own and another for each trial, within 32 bits."""
    return (seed * 1_000_003 + number * 7919) % 2**32
