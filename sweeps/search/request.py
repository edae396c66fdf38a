"""From what a user asked `sweeps/hpo.py` for to searches that can be opened."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relvit.cell import NONE, Cell
from relvit.files import sqlite_file
from relvit.secrets import holds_password, redacted
from sweeps.account.account import Account
from sweeps.cli.options import Places
from sweeps.planning.plan import PlanError, Request, plan, study_name
from sweeps.planning.recipes import recipe
from sweeps.planning.studies import BEST, Spec
from sweeps.search.optuna_study import DatabaseError, require_usable
from sweeps.search.population import PopulationSearch, boundaries, replaced
from sweeps.search.search import (
    MULTI_OBJECTIVE,
    PBT,
    POPULATION,
    Budget,
    Method,
    Search,
    definition,
    method_problems,
    point_problems,
)
from sweeps.search.space import Space, SpaceError, make_space, text
from sweeps.tracking.reachable import network_problem

# Earlier runs that --warm-start mlflow takes.
_EARLIER = 5


@dataclass(frozen=True)
class SearchRequest:
    """What a user asked for, as typed. None: as the recipe, the study or the method says.

    per_cell: a study whose cells are all searched, else one cell of `tasks` and `protocol`; seeds: of the tested cells;
    cpus, gpus: of a trial.
    """

    places: Places
    recipe: str = "demo"
    settings: tuple[str, ...] = ()
    per_cell: str | None = None
    tasks: str | None = None
    protocol: str | None = None
    dataset: str | None = None
    backbone: str | None = None
    image_size: int | None = None
    tasks_file: Path | None = None
    space: Path | None = None
    tune: str | None = None
    trials: int | None = None
    hours: float | None = None
    gpu_hours: float | None = None
    searcher: str = "tpe"
    scheduler: str | None = None
    population: int | None = None
    min_epochs: int | None = None
    search_seed: int = 1000
    warm_start: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    name: str | None = None
    optuna_storage: str | None = None
    cpus: float = 1.0
    gpus: float | None = None
    checkpoint_every: int = 1
    compile: str = "auto"


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


def base_cells(request: SearchRequest) -> list[Cell]:
    """The recipe's cell for each search, with the search's seed. Raises PlanError."""
    combinations, specs = None, list[Spec]()
    if request.per_cell:
        combinations = tuple(request.tasks.split(",")) if request.tasks else None
    else:
        tasks = request.tasks or BEST
        protocol = request.protocol or "pretrain_finetune"
        # As in the paper, a supervised baseline keeps its position embedding.
        embedding = {"pretrain_position_embedding": True} if tasks == NONE and protocol != "joint" else {}
        spec = {"dataset": "cifar10", "backbone": "vit_s4", "protocol": protocol, "tasks": tasks, **embedding}
        specs = [spec]
    problems = _contradictions(request)
    what = (request.per_cell or "--tasks", request.recipe, request.places.data_root)
    where = (request.dataset, request.backbone, request.image_size)
    how = (combinations, (request.search_seed,), request.settings)
    asked = Request(*what, *where, *how, specs=tuple(specs), tasks_file=request.tasks_file)
    try:
        cells = list(plan(asked))
    except PlanError as error:
        raise PlanError([*error.problems, *problems]) from error
    problems += [f"--protocol {cell.protocol} has no phase that classifies" for cell in cells if not cell.epochs]
    if not all(cell.val_share for cell in cells):
        problems.append("val_share=0 leaves no validation images, by which a search decides: it must be above 0")
    if problems:
        raise PlanError(problems)
    return cells


def _contradictions(request: SearchRequest) -> list[str]:
    problems = []
    if request.per_cell and request.protocol:
        problems.append("--protocol and --per-cell contradict each other: a study says its cells' protocols")
    if request.search_seed in request.seeds:
        problems.append(
            f"--seeds {request.search_seed} is the search's own seed: its winner was selected on this seed, and "
            "testing on it is optimistically biased; train with others, or change --search-seed"
        )
    if len(set(request.seeds)) < len(request.seeds):
        problems.append(f"--seeds names a seed twice: {', '.join(map(str, request.seeds))}")
    return problems


def prepare(request: SearchRequest, cells: list[Cell], account: Account) -> list[Prepared]:
    """A search for each base cell, with all checked that can be checked without a cluster. Raises PlanError."""
    problems: list[str] = []
    if request.name and not re.fullmatch(r"[A-Za-z0-9_.+-]+", request.name):
        problems.append(f"--name {request.name!r} names files too: letters, digits, '_', '.', '+' and '-' alone")
    scheduler = request.scheduler or ("none" if request.searcher in MULTI_OBJECTIVE else "asha")
    population = request.population or (POPULATION if scheduler == PBT else 0)
    method = Method(request.searcher, scheduler, request.min_epochs, request.search_seed, population)
    budget = Budget(request.trials, request.hours, request.gpu_hours)
    names = request.tune.split(",") if request.tune else None
    try:
        url = storage_url(request, account)
    except PlanError as error:
        url, problems = "", problems + error.problems
    spaces: list[Space] = []
    for cell in cells:
        try:
            spaces.append(make_space(cell.as_dict(), request.space, names))
        except SpaceError as error:
            problems += error.problems
    if len(spaces) < len(cells) or not cells:
        if not cells:  # the rest of what is wrong is said without a space too
            problems += [] if budget != Budget() else ["no budget: give at least one of --trials, --hours, --gpu-hours"]
        raise PlanError(problems)
    warm = _warm_points(request, cells, spaces, problems)
    prepared = []
    for cell, name, space, points in zip(cells, search_names(request, cells), spaces, warm):
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


def storage_url(request: SearchRequest, account: Account) -> str:
    """Where the searches' state is kept. Raises PlanError where it has no place."""
    given = request.optuna_storage
    if given is None and not isinstance(account.storage, Path):
        raise PlanError([f"{account.storage} cannot hold a database: give one with --optuna-storage"])
    if given and given != os.environ.get("OPTUNA_STORAGE") and holds_password(given):
        raise PlanError(
            [
                f"--optuna-storage {redacted(given)} holds a password, which ps and logs would show: "
                "set OPTUNA_STORAGE to the whole URL, or leave the password to what the database's client reads "
                "(PGPASSWORD or ~/.pgpass)"
            ]
        )
    url = given or f"sqlite:///{account.storage}/optuna.db"
    path = sqlite_file(url)
    problem = network_problem(path) if path else ""
    if problem:
        raise PlanError([f"{problem}: name a file on a local disk of this machine, or a server, with --optuna-storage"])
    return url


def search_names(request: SearchRequest, cells: list[Cell]) -> list[str]:
    """The name of each search: of --per-cell the study's, with what tells its cells apart."""
    if not request.per_cell:
        return [request.name or f"{cell.dataset}-{cell.backbone}-{cell.protocol}-{cell.tasks}" for cell in cells]
    prefix = group(request, cells)
    fields = [cell.as_dict() for cell in cells]
    told = [name for name in ("dataset", "backbone", "protocol") if len({each[name] for each in fields}) > 1]
    names = ["-".join(str(each[name]) for name in [*told, "tasks"]) for each in fields]
    twice = {name for name in names if names.count(name) > 1}
    # What the study itself varies beyond these is told by a part of the cell's digest.
    return [f"{prefix}/{n}-{cell.cell_id[-10:-4]}" if n in twice else f"{prefix}/{n}" for n, cell in zip(names, cells)]


def group(request: SearchRequest, cells: list[Cell]) -> str:
    """The name of the whole command."""
    return request.name or (study_name(request.per_cell) if request.per_cell else search_names(request, cells)[0])


# Warm start


def _warm_points(
    request: SearchRequest, cells: list[Cell], spaces: list[Space], problems: list[str]
) -> list[list[dict[str, Any]]]:
    """For each search the configurations to begin with, besides the recipe's own."""
    points: list[list[dict[str, Any]]] = [[] for _ in cells]
    anywhere = {name for space in spaces for name in space.domains}
    for source in request.warm_start:
        if source == "mlflow":
            for cell, space, into in zip(cells, spaces, points):
                into += _earlier_points(request, cell, space)
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


def _earlier_points(request: SearchRequest, cell: Cell, space: Space) -> list[dict[str, Any]]:
    """Configurations of the best earlier runs of the same data set, backbone, protocol and tasks, by validation
    accuracy, as far as they lie in the space."""
    from sweeps.tracking.search_runs import earlier_runs

    same = {name: getattr(cell, name) for name in ("dataset", "backbone", "protocol", "tasks")}
    found = earlier_runs(request.places.tracking_uri, request.places.experiment, same)
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


def open_searches(prepared: list[Prepared], gpus: float) -> list[Search]:
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
