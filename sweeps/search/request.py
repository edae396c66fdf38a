"""From what a user asked `sweeps/hpo.py` for to searches, and from ended searches to recipes, cells and reports."""

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from relvit.cell import Cell
from relvit.files import write_atomic
from sweeps.account.account import FINISHED, Account
from sweeps.account.secrets import holds_password, redacted
from sweeps.cli.progress import duration
from sweeps.planning.plan import PlanError, study_name
from sweeps.planning.recipes import recipe, recipe_file
from sweeps.search.optuna_study import DatabaseError, require_usable
from sweeps.search.population import PopulationSearch, boundaries, replaced
from sweeps.search.search import PBT, POPULATION, Budget, Method, Search, definition, method_problems, point_problems
from sweeps.search.space import Space, SpaceError, make_space, text

# Earlier runs that --warm-start mlflow takes.
_EARLIER = 5


@dataclass(frozen=True)
class Prepared:
    """A search that can be opened."""

    name: str
    base: Cell
    space: Space
    method: Method
    budget: Budget
    url: str
    points: list[dict[str, Any]]
    notes: list[str]


def prepare(options: argparse.Namespace, cells: list[Cell], account: Account) -> list[Prepared]:
    """A search for each base cell, with all checked that can be checked without a cluster. Raises PlanError."""
    problems: list[str] = []
    if options.name and not re.fullmatch(r"[A-Za-z0-9_.+-]+", options.name):
        problems.append(f"--name {options.name!r} names files too: letters, digits, '_', '.', '+' and '-' alone")
    scheduler = options.scheduler or ("none" if options.searcher in ("nsga2", "nsga3", "motpe") else "asha")
    population = options.population or (POPULATION if scheduler == PBT else 0)
    method = Method(options.searcher, scheduler, options.min_epochs, options.search_seed, population)
    budget = Budget(options.trials, options.hours, options.gpu_hours)
    names = options.tune.split(",") if options.tune else None
    try:
        url = storage_url(options, account)
    except PlanError as error:
        url, problems = "", problems + error.problems
    spaces: list[Space] = []
    for cell in cells:
        try:
            spaces.append(make_space(cell.as_dict(), options.space, names))
        except SpaceError as error:
            problems += error.problems
    if len(spaces) < len(cells) or not cells:
        if not cells:  # the rest of what is wrong is said without a space too
            problems += [] if budget != Budget() else ["no budget: give at least one of --trials, --hours, --gpu-hours"]
        raise PlanError(problems)
    warm = _warm_points(options, cells, spaces, problems)
    prepared = []
    for cell, name, space, points in zip(cells, search_names(options, cells), spaces, warm):
        problems += method_problems(method, budget, space)
        own, outside = space.point(cell.as_dict())
        notes = [f"the recipe's own {each}; the first trial draws it" for each in outside]
        own = {field: value for field, value in own.items() if not space.point({field: value})[1]}
        points = [own, *points]
        if budget.trials is not None and budget.trials < len(points):
            problems.append(f"--trials {budget.trials} is fewer than the {len(points)} configurations to begin with")
        try:
            if not problems:
                require_usable(url, name, definition(space, method))
        except DatabaseError as error:
            problems.append(str(error))
        prepared.append(Prepared(name, cell, space, method, budget, url, points, notes))
    if problems:
        raise PlanError(problems)
    return prepared


def storage_url(options: argparse.Namespace, account: Account) -> str:
    """Where the searches' state is kept. Raises PlanError where it has no place."""
    if options.optuna_storage is None and not isinstance(account.storage, Path):
        raise PlanError([f"{account.storage} cannot hold a database: give one with --optuna-storage"])
    if options.optuna_storage != os.environ.get("OPTUNA_STORAGE") and holds_password(options.optuna_storage):
        raise PlanError(
            [
                f"--optuna-storage {redacted(options.optuna_storage)} holds a password, which ps and logs would show: "
                "set OPTUNA_STORAGE to the whole URL, or leave the password to what the database's client reads "
                "(PGPASSWORD or ~/.pgpass)"
            ]
        )
    return options.optuna_storage or f"sqlite:///{account.storage}/optuna.db"


def search_names(options: argparse.Namespace, cells: list[Cell]) -> list[str]:
    """The name of each search: of --per-cell the study's, with what tells its cells apart."""
    if not options.per_cell:
        return [options.name or f"{cell.dataset}-{cell.backbone}-{cell.protocol}-{cell.tasks}" for cell in cells]
    prefix = group(options, cells)
    fields = [cell.as_dict() for cell in cells]
    told = [name for name in ("dataset", "backbone", "protocol") if len({each[name] for each in fields}) > 1]
    names = ["-".join(str(each[name]) for name in [*told, "tasks"]) for each in fields]
    twice = {name for name in names if names.count(name) > 1}
    # What the study itself varies beyond these is told by a part of the cell's digest.
    return [f"{prefix}/{n}-{cell.cell_id[-10:-4]}" if n in twice else f"{prefix}/{n}" for n, cell in zip(names, cells)]


def group(options: argparse.Namespace, cells: list[Cell]) -> str:
    """The name of the whole command."""
    return options.name or (study_name(options.per_cell) if options.per_cell else search_names(options, cells)[0])


def finals_study(options: argparse.Namespace, searches: list[Search]) -> str:
    """The study that the tested cells belong to: of --per-cell, "table4-tuned" beside "table4"."""
    name = searches[0].name.partition("/")[0]
    return f"{name}-tuned" if options.per_cell else f"hpo-{name}"


# Warm start


def _warm_points(
    options: argparse.Namespace, cells: list[Cell], spaces: list[Space], problems: list[str]
) -> list[list[dict[str, Any]]]:
    """For each search the configurations to begin with, besides the recipe's own."""
    points: list[list[dict[str, Any]]] = [[] for _ in cells]
    anywhere = {name for space in spaces for name in space.domains}
    for source in options.warm_start:
        if source == "mlflow":
            for cell, space, into in zip(cells, spaces, points):
                into += _earlier_points(options, cell, space)
            continue
        try:
            given = _points_in(Path(source))
        except ValueError as error:
            problems.append(str(error))
            continue
        for number, (point, by_hand) in enumerate(given):
            for space, into in zip(spaces, points):
                # A recipe has fields that are not searched, and a parameter need not act in every cell of a study.
                own = {name: value for name, value in point.items() if name in space.domains}
                wrong = point_problems(space, {**own, **(_not_in(point, anywhere) if by_hand else {})})
                problems += [f"--warm-start {source}, point {number}: {error}" for error in wrong]
                into.append(own)
    return [_distinct(each) for each in points]


def _not_in(point: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name not in names}


def _points_in(path: Path) -> list[tuple[dict[str, Any], bool]]:
    """The points of a file, each with whether it is given by hand."""
    if not path.is_file():
        raise ValueError(f"--warm-start {path}: there is no such file; give a file, or mlflow")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"--warm-start {path} is not JSON: {error}") from error
    if isinstance(content, dict) and "fields" in content:
        return [(dict(recipe(str(path)).tuned), False)]
    points = content if isinstance(content, list) else [content]
    if not points or not all(isinstance(point, dict) for point in points):
        raise ValueError(f"--warm-start {path} must hold a recipe, or a list of {{field: value}}")
    return [(point, True) for point in points]


def _earlier_points(options: argparse.Namespace, cell: Cell, space: Space) -> list[dict[str, Any]]:
    """Configurations of the best earlier runs of the same data set, backbone, protocol and tasks, by validation
    accuracy, as far as they lie in the space."""
    from sweeps.tracking.search_runs import earlier_runs

    same = {name: getattr(cell, name) for name in ("dataset", "backbone", "protocol", "tasks")}
    found = earlier_runs(options.tracking_uri, options.experiment, same)
    inside = []
    for fields in found:
        point, outside = space.point(fields)
        if not outside and point:
            inside.append(point)
    return _distinct(inside)[:_EARLIER]


def _distinct(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [point for number, point in enumerate(points) if point not in points[:number]]


# Searching


def describe(searches: list[Prepared]) -> Iterator[str]:
    """What would be searched, and how."""
    for each in searches:
        base = each.base
        yield f"{each.name}: {base.dataset}, {base.backbone}, {base.protocol}, tasks {base.tasks}"
        width = max(map(len, each.space.domains))
        for name, domain in each.space.domains.items():
            yield f"  {name:<{width}}  {text(domain)}   recipe: {getattr(base, name)}"
        yield from (f"  note: {note}" for note in each.notes)
        stops = ""
        if each.method.scheduler in ("asha", "hyperband"):
            stops = f", rungs after {', '.join(map(str, each.method.rungs(base.epochs)))} of {base.epochs} epochs"
        elif each.method.scheduler == PBT:
            ends = boundaries(each.method.first_rung(base.epochs), base.epochs)
            count = replaced(each.method.population)
            stops = (
                f", {each.method.population} members, {count} of them replaced after {', '.join(map(str, ends))} of "
                f"{base.epochs} epochs"
            )
        yield f"  {each.method.sampler} with {each.method.scheduler}{stops}; {each.budget}; begins with " + (
            f"{len(each.points)} given configurations" if len(each.points) > 1 else "the recipe's configuration"
        )


def open_searches(options: argparse.Namespace, prepared: list[Prepared], account: Account, gpus: float) -> list[Search]:
    """The searches, taken up from the database. Raises PlanError."""
    try:
        return [
            (PopulationSearch if each.method.scheduler == PBT else Search)(
                each.name, each.space, each.method, each.budget, each.url, each.points, gpus
            )
            for each in prepared
        ]
    except DatabaseError as error:
        raise PlanError([str(error)]) from error


def standing(searches: list[Search]) -> str:
    """ "2 searches of 40 trials each: 12 complete, 20 pruned, 2 to continue"."""
    counts: dict[str, int] = {}
    for search in searches:
        for state, count in search.counts().items():
            counts[state] = counts.get(state, 0) + count
    words = {"complete": "complete", "pruned": "pruned", "fail": "failed", "running": "to continue"}
    known = ", ".join(f"{counts[state]} {word}" for state, word in words.items() if state in counts) or "none begun yet"
    many = f"{len(searches)} searches" if len(searches) > 1 else f"search {searches[0].name}"
    return f"{many}, budget {searches[0].budget}{' each' if len(searches) > 1 else ''}: {known}"


# What comes out


def folder(search: Search, account: Account) -> Path:
    """Where the results of a search are."""
    local = account.storage if isinstance(account.storage, Path) else Path("results")
    return local / "hpo" / search.name


def finals(options: argparse.Namespace, searches: list[Search], account: Account) -> dict[str, list[Cell]]:
    """Write each search's recipe. Returns by search the cells of its best configuration, one a seed."""
    found = {}
    for search in searches:
        best = search.best()
        if best is None:
            continue
        cell = search.cell_of(best)
        fields = {**{name: search.space.base[name] for name in _settings(options, search)}, **search.fields_of(best)}
        content = {
            **recipe_file(options.recipe, fields),
            "tuned_for": {name: getattr(cell, name) for name in ("dataset", "backbone", "protocol", "tasks")},
            "search": {
                "name": search.name,
                "budget": budget_text(search),
                "trial": best.number,
                "val_accuracy": best.values[0],
                "cell_id": cell.cell_id,
            },
        }
        write_atomic(folder(search, account) / "recipe.json", json.dumps(content, indent=2).encode() + b"\n")
        found[search.name] = [dataclasses.replace(cell, seed=seed) for seed in options.seeds]
    return found


def _settings(options: argparse.Namespace, search: Search) -> list[str]:
    """Fields that differ from the recipe by --set, or by a plain value in a space file."""
    set_here = [setting.partition("=")[0] for setting in options.settings]
    original = recipe(options.recipe).for_backbone(search.space.base["backbone"], search.space.base["image_size"])
    changed = [
        name
        for name, value in search.space.base.items()
        if name in original and name not in search.space.domains and options.space and value != original[name]
    ]
    return [name for name in dict.fromkeys([*set_here, *changed]) if name in original]


def budget_text(search: Search) -> str:
    """What a search was allowed and spent, for a caption."""
    return (
        f"{search.budget}, {search.method.sampler} with {search.method.scheduler}; spent {len(search.trials)} trials, "
        f"{search.training_epochs} epochs"
    )


def unfinished(cells: list[Cell], account: Account) -> list[Cell]:
    """The cells that are yet to be trained or tested."""
    return [cell for cell in cells if account.status(cell).state != FINISHED]


def report(
    options: argparse.Namespace,
    searches: list[Search],
    finals: Mapping[str, list[Cell]],
    account: Account,
    tracker: Any,
) -> Iterator[str]:
    """Write each search's report, attach it to an MLflow run that stands for the search, tag the tested cells with the
    budget. Yields a line for each search."""
    from sweeps.search.report import write_report
    from sweeps.tracking.search_runs import stand_for_search

    for search in searches:
        tests = []
        for cell in finals.get(search.name, []):
            if account.status(cell).state == FINISHED:
                tests.append(account.history(cell)[-1]["test_accuracy"])
                tracker.tag(
                    cell.cell_id,
                    {
                        "tuned_by": search.name,
                        "tuning_budget": budget_text(search),
                        "search_space": ", ".join(search.space.domains),
                    },
                )
        into = folder(search, account)
        write_report(search, into, budget_text(search), tests)
        best = search.best()
        params = {
            "searcher": search.method.sampler,
            "scheduler": search.method.scheduler,
            "search_seed": str(search.method.seed),
            **{f"space.{name}": text(domain) for name, domain in search.space.domains.items()},
            **{name: str(value) for name, value in search.space.base.items() if name not in search.space.domains},
        }
        numbers = {f"trials_{state}": float(count) for state, count in search.counts().items()}
        numbers |= {"epochs_spent": float(search.training_epochs), "training_seconds": search.training_seconds}
        if best is not None:
            numbers["best_val_accuracy"] = best.values[0]
        if tests:
            numbers["tuned_test_accuracy"] = sum(tests) / len(tests)
        where = (options.tracking_uri, options.experiment, account.storage)
        stand_for_search(*where, search.name, params, {"tuning_budget": budget_text(search)}, numbers, into)
        yield _summary(search, tests, into)


def _summary(search: Search, tests: list[float], into: Path) -> str:
    best = search.best()
    if best is None:
        return f"{search.name}: no complete trial; report in {into}"
    recipe_trial = search.trials[0]
    stopped = " when it was stopped" if recipe_trial.state == TrialState.PRUNED else ""
    own = f", the recipe's own {recipe_trial.values[0]:.2f} %{stopped}" if recipe_trial.values else ""
    tested = f"; test accuracy {sum(tests) / len(tests):.2f} % over {len(tests)} seeds" if tests else ""
    return (
        f"{search.name}: best validation accuracy {best.values[0]:.2f} % (trial {best.number}{own}){tested}; "
        f"{search.training_epochs} epochs, {duration(search.training_seconds)} of training; {into}/recipe.json"
    )
