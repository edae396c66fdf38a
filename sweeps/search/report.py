"""A search's report: pictures, the importance of each hyperparameter with its spread, all trials as a table."""

import csv
import random
import statistics
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
import optuna
from matplotlib.ticker import MaxNLocator, NullFormatter
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as pictures

from relvit.cell import parse_schedule
from sweeps.search.search import FORKED_AFTER, PARENT, Search, is_duplicate, is_fork
from sweeps.search.space import distribution, text

# Importance is judged this often, each time on a bootstrap sample of the trials and with another forest.
_RESAMPLES = 10
_TREES = 32
# Below this many trials a forest has nothing to split.
_FEWEST = 8
_COLOUR = "#3b6ea5"


class Importance(NamedTuple):
    """The share of the variance of the objective that a parameter explains, over bootstrap samples of the trials:
    mean, lowest and highest, in [0, 1]; n: the distinct trials that have the parameter."""

    name: str
    mean: float
    low: float
    high: float
    n: int


def write_report(search: Search, folder: Path, budget: str, tests: list[float]) -> None:
    """Write report.md, trials.csv, importance.csv and the pictures into `folder`; replaces an earlier report.

    tests: test accuracies in percent of the retrained best configuration, one a seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_trials(search, folder / "trials.csv")
    step, judged = comparable(search)
    spread = importances(search, judged)
    _write_csv(folder / "importance.csv", list(Importance._fields), [list(each) for each in spread])
    drawn = [_history(search, folder)]
    if spread:
        drawn.append(_importance_picture(spread, step, folder))
    if judged:
        drawn.append(_slices(search, judged, step, folder))
    drawn += _optunas_pictures(search, folder)
    (folder / "report.md").write_text(_markdown(search, budget, tests, spread, step, [name for name in drawn if name]))


def comparable(search: Search) -> tuple[int | None, list[FrozenTrial]]:
    """Trials that can be held against each other, each with the value of the same epoch.

    Without a scheduler these are the complete ones, with their outcome (None as the epoch). With one that would be the
    few that survived: there, all trials that reached the first epoch at which one was stopped, with its value. A fork
    has the values of its parent up to there, and other parameters.
    """
    own = [trial for trial in search.trials if not is_duplicate(trial) and not is_fork(trial)]
    stopped = [trial for trial in own if trial.state == TrialState.PRUNED and trial.intermediate_values]
    complete = [trial for trial in own if trial.state == TrialState.COMPLETE]
    if search.multi_objective or not stopped:
        return None, [_with_value(trial, trial.values[0]) for trial in complete]
    step = min(max(trial.intermediate_values) for trial in stopped)
    reached = [trial for trial in stopped + complete if step in trial.intermediate_values]
    return step, [_with_value(trial, trial.intermediate_values[step]) for trial in reached]


def _with_value(trial: FrozenTrial, value: float) -> FrozenTrial:
    return optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=value)


def importances(search: Search, trials: list[FrozenTrial], resamples: int = _RESAMPLES) -> list[Importance]:
    """fANOVA (Hutter et al., ICML 2014) with its spread, the most important first.

    Parameters that only some trials have are judged on those, beside the parameters that all have; the shares of
    different parameters then come from different trials.
    """
    if len(trials) < _FEWEST or len({trial.value for trial in trials}) < 2:
        return []
    everywhere = [name for name in search.space.domains if all(name in trial.params for trial in trials)]
    found = _bootstrap(trials, everywhere, everywhere, resamples)
    for name in search.space.domains:
        having = [trial for trial in trials if name in trial.params]
        if name not in everywhere and len(having) >= _FEWEST:
            found += _bootstrap(having, [*everywhere, name], [name], resamples)
    return sorted(found, key=lambda each: -each.mean)


def _bootstrap(trials: list[FrozenTrial], beside: list[str], wanted: list[str], resamples: int) -> list[Importance]:
    shares: dict[str, list[float]] = {name: [] for name in wanted}
    for number in range(resamples):
        sample = random.Random(number).choices(trials, k=len(trials))
        # A parameter or an outcome without a difference cannot be judged on this sample.
        varying = [name for name in beside if len({trial.params[name] for trial in sample}) > 1]
        if len({trial.value for trial in sample}) < 2 or not varying:
            continue
        study = optuna.create_study(direction="maximize")
        study.add_trials(sample)
        evaluator = FanovaImportanceEvaluator(seed=number, n_trees=_TREES)
        result = evaluator.evaluate(study, params=varying)
        for name in wanted:
            shares[name].append(result.get(name, 0.0))
    return [
        Importance(name, statistics.fmean(values), min(values), max(values), len(trials))
        for name, values in shares.items()
        if values
    ]


def _write_trials(search: Search, path: Path) -> None:
    names = list(search.space.domains)
    kept = ["epochs", "training_seconds", "same_as", "reason", PARENT, FORKED_AFTER]
    rows = []
    for trial in search.trials:
        values = trial.values or [None]
        attributes = [trial.user_attrs.get(name) for name in kept]
        last = trial.intermediate_values[max(trial.intermediate_values)] if trial.intermediate_values else values[0]
        row = [trial.number, trial.state.name.lower(), last, *attributes, trial.user_attrs.get("cell_id")]
        rows.append([*row, *(trial.params.get(name) for name in names)])
    head = ["trial", "state", "val_accuracy", *kept, "cell_id", *names]
    _write_csv(path, head, rows)


def _write_csv(path: Path, head: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)


# Pictures


def _history(search: Search, folder: Path) -> str:
    """Validation accuracy of each trial against the epochs spent until it ended."""
    ended = [trial for trial in search.trials if trial.state.is_finished() and not is_duplicate(trial)]
    ended.sort(key=lambda trial: trial.datetime_complete or datetime.max)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    spent, best, line = 0, float("-inf"), []
    points: dict[TrialState, list[tuple[int, float]]] = {TrialState.COMPLETE: [], TrialState.PRUNED: []}
    for trial in ended:
        spent += trial.user_attrs.get("epochs", 0)
        if trial.state not in points:
            continue
        value = trial.values[0] if trial.values else trial.intermediate_values[max(trial.intermediate_values)]
        points[trial.state].append((spent, value))
        if trial.state == TrialState.COMPLETE:
            best = max(best, value)
            line.append((spent, best))
    for state, marker, colour in ((TrialState.COMPLETE, "o", _COLOUR), (TrialState.PRUNED, "x", "#999999")):
        if points[state]:
            epochs, values = zip(*points[state])
            axes.scatter(epochs, values, marker=marker, color=colour, s=28, label=state.name.lower())
    if line:
        axes.step(*zip(*line), where="post", color=_COLOUR, linewidth=1.5, label="best complete")
    axes.set(xlabel="epochs trained by all trials", ylabel="validation accuracy in %", title=search.name)
    axes.grid(alpha=0.3)
    if points[TrialState.COMPLETE] or points[TrialState.PRUNED]:
        axes.legend()
    return _save(figure, folder / "history.png")


def _importance_picture(spread: list[Importance], step: int | None, folder: Path) -> str:
    figure, axes = plt.subplots(figsize=(7, 0.3 * len(spread) + 1.2), layout="constrained")
    rows = spread[::-1]
    errors = [[each.mean - each.low for each in rows], [each.high - each.mean for each in rows]]
    axes.barh([each.name for each in rows], [each.mean for each in rows], xerr=errors, color=_COLOUR, ecolor="#444444")
    axes.set(xlabel=f"share of the variance of validation accuracy {_when(step)} (fANOVA; bars: bootstrap samples)")
    axes.set_xlim(left=0)
    return _save(figure, folder / "importance.png")


def _slices(search: Search, trials: list[FrozenTrial], step: int | None, folder: Path) -> str:
    """Validation accuracy against each parameter, of all trials that can be compared; Optuna's own has one row and the
    complete trials alone."""
    names = [name for name in search.space.domains if any(name in trial.params for trial in trials)]
    rows = -(-len(names) // 4)
    figure, grid = plt.subplots(rows, 4, figsize=(12, 2.4 * rows), sharey=True, squeeze=False, layout="constrained")
    for axes, name in zip(grid.flat, names):
        known = distribution(search.space.domains[name])
        having = [trial for trial in trials if name in trial.params]
        values = [trial.params[name] for trial in having]
        if isinstance(known, CategoricalDistribution):
            values = [known.choices.index(value) for value in values]
            axes.set_xticks(range(len(known.choices)), [_short(choice) for choice in known.choices])
            axes.set_xlim(-0.5, len(known.choices) - 0.5)
        elif known.log:
            axes.set_xscale("log")
            if known.high >= 10 * known.low:  # powers of ten are enough: labels between them run into each other
                axes.set_xlim(known.low / 1.2, known.high * 1.2)
                axes.xaxis.set_minor_formatter(NullFormatter())
        elif isinstance(known, IntDistribution):
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.scatter(values, [trial.value for trial in having], s=18, alpha=0.7, color=_COLOUR)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(names) :]:
        axes.set_visible(False)
    figure.supylabel(f"validation accuracy in %, {_when(step)}")
    return _save(figure, folder / "slices.png")


def _when(step: int | None) -> str:
    return "at the end" if step is None else f"at epoch {step}"


def _optunas_pictures(search: Search, folder: Path) -> list[str]:
    """Parallel coordinates of the complete trials, and the Pareto front of two objectives."""
    drawn: list[str] = []
    complete = [trial for trial in search.trials if trial.state == TrialState.COMPLETE and not is_duplicate(trial)]
    if len(complete) < 2:
        return drawn
    study, many = search.study, search.multi_objective
    of = (lambda trial: trial.values[0]) if many else None
    kinds: dict[str, Callable[[], Any]] = {
        "parallel": lambda: pictures.plot_parallel_coordinate(study, target=of, target_name="validation accuracy"),
    }
    if many:
        names = ["validation accuracy in %", "seconds of training"]
        kinds["pareto"] = lambda: pictures.plot_pareto_front(study, target_names=names)
    for name, draw in kinds.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna says of each picture that its interface may change
            axes = draw()
        first = axes.flat[0] if hasattr(axes, "flat") else axes
        figure = first.figure
        if name == "parallel":
            figure.set_size_inches(max(7, 1.1 * len(search.space.domains) + 2), 5)
            for label in [each for one in figure.axes for each in one.get_xticklabels()]:
                label.set(rotation=30, ha="right")
        drawn.append(_save(figure, folder / f"{name}.png"))
    return drawn


def _save(figure: Any, path: Path) -> str:
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    return path.name


# Text


def _markdown(
    search: Search, budget: str, tests: list[float], spread: list[Importance], step: int | None, drawn: list[str]
) -> str:
    base, best = search.space.base, search.best()
    counts = ", ".join(f"{count} {state}" for state, count in search.counts().items())
    lines = [
        f"# Search {search.name}",
        "",
        f"{base['dataset']}, {base['backbone']}, {base['protocol']}, tasks {base['tasks']}. Budget: {budget}. "
        f"Trials: {counts}. The objective is accuracy on the validation split; no trial looked at the test split.",
        "",
    ]
    if best is None:
        lines += ["No trial was trained to its end.", ""]
    else:
        lines += [f"Best: trial {best.number}, validation accuracy {best.values[0]:.2f} %.", ""]
        if tests:
            spread_of_tests = f" ± {statistics.stdev(tests):.2f}" if len(tests) > 1 else ""
            lines += [
                f"Trained anew with {len(tests)} other seeds, on the test split: {statistics.fmean(tests):.2f}"
                f"{spread_of_tests} %.",
                "",
            ]
        lines += ["| parameter | range | recipe | best |", "| --- | --- | --- | --- |"]
        fields = search.fields_of(best)
        lines += [
            f"| {name} | {text(domain)} | {_short(base[name])} | {_short(fields.get(name, 'idle'))} |"
            for name, domain in search.space.domains.items()
        ]
        lines += [""]
        changes = parse_schedule(search.cell_of(best).schedule)
        lines += [
            f"- after {epochs} epochs of the last phase: " + ", ".join(f"{each} = {_short(new[each])}" for each in new)
            for epochs, new in changes
        ]
        lines += [""] if changes else []
    if spread:
        when = _when(step) if step is None else f"{_when(step)} of the last phase, where all these trials were"
        lines += [
            f"Importance: the share of the variance of validation accuracy {when}; mean and range over {_RESAMPLES} "
            "bootstrap samples of the trials, each with another forest.",
            "",
            "| parameter | importance | from | to | trials |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [f"| {e.name} | {e.mean:.3f} | {e.low:.3f} | {e.high:.3f} | {e.n} |" for e in spread]
        lines += [""]
    else:
        lines += [f"Importance: not judged on fewer than {_FEWEST} comparable trials that differ.", ""]
    lines += [f"![{name}]({name})" for name in drawn]
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
