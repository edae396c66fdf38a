"""Population-based training (Jaderberg et al., 2017, arXiv:1711.09846): hyperparameters that change while they train.

A population is trained side by side, a generation of some epochs at a time. After each generation the worst members are
replaced by forks of the best: a fork goes on from another member's weights with other values of what can change within
a phase. So that its outcome is a cell like any other, a fork is the cell whose `schedule` says what changed when: its
weights are, bit by bit, those of that cell trained from the start, and so can be trained again with other seeds.

A generation is waited for, so that every decision follows from the values in the database alone, however many trials
run at once and however often the search is interrupted.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial, FrozenTrial, Trial, TrialState
from ray.tune.search.sample import Domain

from relvit.cell import Cell, schedulable
from sweeps.search.search import FORKED_AFTER, PARENT, REPLACES, ActiveTrial, Search, forked_epochs, is_fork
from sweeps.search.space import distribution, draw

# Section 4.1.1 of the publication: truncation selection of a fifth; a perturbation by 1.2 or 0.8. A value is drawn anew
# instead once in four times, as in Ray Tune's PopulationBasedTraining.
QUANTILE = 0.2
FACTORS = (0.8, 1.2)
RESAMPLED = 0.25
_TRIES = 20

# Of a trial that waits for its generation: the seconds that it was trained for so far.
SECONDS = "seconds_so_far"
_SELECTED = "selected_after"  # of the study: after how many epochs members were replaced last


def boundaries(interval: int, epochs: int) -> list[int]:
    """After how many epochs of the last phase members are compared."""
    return list(range(interval, epochs, interval))


def replaced(population: int) -> int:
    """How many members a generation replaces."""
    return max(1, round(QUANTILE * population))


def select(values: Mapping[int, float], generator: random.Random) -> dict[int, int]:
    """For each member that is to be replaced one that it is replaced by, by their values; the higher the better.

    Of equal members the younger counts as the worse. Nobody is replaced where there are fewer than two.
    """
    if len(values) < 2:
        return {}
    ranked = sorted(values, key=lambda number: (-values[number], number))
    count = replaced(len(ranked))
    return {loser: generator.choice(ranked[:count]) for loser in ranked[-count:]}


def explore(value: Any, domain: Domain, generator: random.Random) -> Any:
    """Another value in the neighbourhood of one, now and then one from anywhere in the domain."""
    known = distribution(domain)
    if generator.random() < RESAMPLED:
        return draw(domain, generator)
    if isinstance(known, CategoricalDistribution):
        return _beside(value, known, generator)
    found = value * generator.choice(FACTORS)
    if known.step and abs(found - value) < known.step:
        found = value + generator.choice((-1, 1)) * known.step
    return _inside(found, known)


def _beside(value: Any, known: CategoricalDistribution, generator: random.Random) -> Any:
    """A choice next to this one, in order where they are numbers."""
    choices = list(known.choices)
    if not any(isinstance(choice, (bool, str)) for choice in choices):
        choices.sort()
    place = choices.index(value) + generator.choice((-1, 1))
    return choices[min(max(place, 0), len(choices) - 1)]


def _inside(value: float, known: FloatDistribution | IntDistribution) -> Any:
    """The nearest value of a range."""
    if known.step:
        value = known.low + round((value - known.low) / known.step) * known.step
    value = min(max(value, known.low), known.high)
    return round(value) if isinstance(known, IntDistribution) else value


class PopulationSearch(Search):
    """A search by population-based training. Each fork is a trial, and ends the one that it replaces as pruned."""

    def _take_up(self, running: list[Trial]) -> None:
        epochs = int(self.space.base["epochs"])
        self._ends = [*boundaries(self.method.first_rung(epochs), epochs), epochs]
        self._waiting = {trial.number: trial for trial in running}
        self._cells: dict[int, Cell] = {}
        # Forks that have not taken over their parent's checkpoint, which it would replace by going on.
        self._to_fork = {
            number for number in self._waiting if is_fork(self.trials[number]) and not self._reached(number)
        }
        self._outcomes: list[FrozenTrial] = []

    def next(self, may_start: Callable[[Cell], bool] = lambda cell: True) -> ActiveTrial | None:
        """The next member to train through its generation; None where all that is left must wait."""
        if self._held is not None or not (self._is_drawn() or self.exhausted()):
            active = super().next(may_start)
            if active is not None:
                active.stop_after = active.cell.pretrain_epochs + self._ends[0]
            return active
        self._select()
        ends = {number: self._next_end(number) for number in self._waiting}
        training = [(active.stop_after or 0) - active.cell.pretrain_epochs for active in self._live.values()]
        current = min([*ends.values(), *training], default=0)
        parents = {self._attribute(number, PARENT) for number in self._to_fork}
        for number in sorted(self._waiting, key=lambda number: (number not in self._to_fork, number)):
            cell = self.cell_of(self.trials[number])
            if ends[number] > current or number in parents or not may_start(cell):
                continue
            active = ActiveTrial(self, self._waiting.pop(number), cell)
            active.stop_after = cell.pretrain_epochs + current
            if is_fork(self.trials[number]):
                active.forked = self.cell_of(self.trials[self._attribute(number, PARENT)])
                active.forked_after = forked_epochs(self.trials[number], cell)
            self._live[cell.cell_id] = active
            return active
        return None

    def finished(self) -> bool:
        """Whether no member is left to be trained on, nor to be drawn."""
        return not self._members() and (self._is_drawn() or self.exhausted())

    def report(self, active: ActiveTrial, row: Mapping[str, Any]) -> bool:
        """Take an epoch's row. Returns whether the member stops with it: at the end of its generation, or for good."""
        self._to_fork.discard(active.number)
        ends = super().report(active, row)
        active.waits = not ends and active.epoch == active.stop_after
        return ends or active.waits

    def wait(self, active: ActiveTrial) -> None:
        """The member has reached the end of its generation and waits for the others."""
        self._live.pop(active.cell.cell_id)
        self._study.note(active.trial, **{SECONDS: round(active.seconds, 3)})
        self._waiting[active.number] = active.trial
        self.keep_time()

    def settle(self, active: ActiveTrial, reason: str = "") -> None:
        """Enter the outcome of a member, as `Search`."""
        self._to_fork.discard(active.number)
        super().settle(active, reason)

    def take_outcomes(self) -> list[FrozenTrial]:
        """The members that were replaced since the last time."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def cell_of(self, trial: FrozenTrial) -> Cell:
        """The cell that a trial trains: a fork's is its parent's, with what changed since."""
        if trial.number not in self._cells:
            cell = super().cell_of(trial)
            if PARENT in trial.user_attrs:
                parent = self.cell_of(self.trials[trial.user_attrs[PARENT]])
                cell = parent.changed_after(trial.user_attrs[FORKED_AFTER], cell.as_dict())
            self._cells[trial.number] = cell
        return self._cells[trial.number]

    def fields_of(self, trial: FrozenTrial) -> dict[str, Any]:
        """The values of the parameters with which a trial began, and its schedule."""
        cell = self.cell_of(trial)
        return {**super().fields_of(trial), "schedule": cell.schedule}

    # Members

    def _is_drawn(self) -> bool:
        """Whether the population is complete."""
        drawn = [trial for trial in self.trials if not is_fork(trial) and trial.state != TrialState.FAIL]
        return len(drawn) >= self.method.population

    def _members(self) -> list[FrozenTrial]:
        """Those that are in training, or wait."""
        return [trial for trial in self.trials if trial.state == TrialState.RUNNING]

    def _attribute(self, number: int, name: str) -> Any:
        return self.trials[number].user_attrs.get(name)

    def _reached(self, number: int) -> int:
        """Epochs of the last phase that the member has reported."""
        return max(self.trials[number].intermediate_values, default=0)

    def _done(self, number: int) -> int:
        """Epochs of the last phase that the member's weights have seen."""
        return max(self._reached(number), self._attribute(number, FORKED_AFTER) or 0)

    def _next_end(self, number: int) -> int:
        """After how many epochs of the last phase the next generation of a member that waits ends."""
        return next(end for end in self._ends if end > self._done(number))

    def _is_settled(self, trial: Trial, cell: Cell) -> bool:
        """A member that draws the cell of another is none."""
        if all(self.cell_of(other) != cell for other in self.trials[: trial.number]):
            return False
        self._repeats += 1
        self._study.tell(trial, TrialState.FAIL, reason="drew the cell of another member")
        return True

    # Selection

    def _select(self) -> None:
        """Replace members where a generation has ended, and finish what an interrupted search left half done."""
        done = int(self._study.attribute(_SELECTED, 0))
        for end in self._ends[:-1]:
            if end <= done:
                continue
            if self._live or any(self._done(trial.number) < end for trial in self._members()):
                return
            self._replace(end)
            self._study.set_attribute(_SELECTED, end)

    def _replace(self, end: int) -> None:
        """Fork the best members in place of the worst. Which these are follows from the values after `end` epochs."""
        values = {
            trial.number: trial.intermediate_values[end]
            for trial in self.trials
            if end in trial.intermediate_values and (trial.user_attrs.get(FORKED_AFTER) or 0) < end
        }
        forks = {
            trial.user_attrs[REPLACES] for trial in self.trials if trial.user_attrs.get(FORKED_AFTER) == end
        }  # made before an interruption
        for loser, winner in select(values, random.Random(f"{self.method.seed} {end}")).items():
            if loser not in forks and (self.exhausted() or not self._fork(winner, end, loser)):
                continue
            if self.trials[loser].state == TrialState.RUNNING:
                self._end_replaced(loser, end)

    def _fork(self, winner: int, end: int, loser: int) -> bool:
        """Enter a fork of the winner with other values; False where none is found that goes together."""
        values = self._explored(self.trials[winner], end, random.Random(f"{self.method.seed} {end} {loser}"))
        if values is None:
            return False
        trial = self._study.ask(values)
        changed = self.space.suggest(trial)
        cell = self.cell_of(self.trials[winner]).changed_after(end, changed.as_dict())
        attributes = {PARENT: winner, FORKED_AFTER: end, REPLACES: loser}
        self._study.begin(trial, cell_id=cell.cell_id, **attributes)
        self._waiting[trial.number] = trial
        self._to_fork.add(trial.number)
        return True

    def _explored(self, winner: FrozenTrial, end: int, generator: random.Random) -> dict[str, Any] | None:
        """The winner's parameters with other values of those that can change from one epoch to the next."""
        cell = self.cell_of(winner)
        free = schedulable(cell.as_dict())
        known = {self.cell_of(trial) for trial in self.trials if trial.state != TrialState.FAIL}
        for _ in range(_TRIES):
            values = {name: draw(domain, generator) for name, domain in self.space.domains.items()} | winner.params
            for name in winner.params:
                if name in free:
                    values[name] = explore(values[name], self.space.domains[name], generator)
            try:
                fork = cell.changed_after(end, self.space.suggest(FixedTrial(values)).as_dict())
            except ValueError:  # these do not go together
                continue
            if fork != cell.until(end) and fork not in known:
                return values
        return None

    def _end_replaced(self, loser: int, end: int) -> None:
        cell = self.cell_of(self.trials[loser])
        epochs = cell.pretrain_epochs + end - forked_epochs(self.trials[loser], cell)
        seconds = self._attribute(loser, SECONDS) or 0.0
        self._study.tell(self._waiting.pop(loser), TrialState.PRUNED, epochs=epochs, training_seconds=seconds)
        self._to_fork.discard(loser)
        self._ended[cell.cell_id] = self.trials[loser]
        self._outcomes.append(self.trials[loser])
