"""From what a user asked for to the cells to train, with everything checked that can be checked without a cluster."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from relvit.cell import BACKBONES, FIELDS, NONE, TASKS, TIMM, Cell, canonical_tasks, make_cell, parse_tasks, parse_value
from relvit.data import DataError, DatasetNotDownloaded, cached_fingerprint, fingerprint_of, native_image_size, prepare
from relvit.messages import unknown
from relvit.task_files import add_tasks_file
from sweeps.account.account import FINISHED, Status
from sweeps.planning.recipes import Recipe, recipe
from sweeps.planning.studies import Spec, Study, StudyError, parse_evaluation, study

EVALUATED = "-evaluations"  # what the name of a study ends in whose pre-trainings --evaluate evaluates

# Fields that the study, or an option of its own, decides.
_DECIDED = {
    "dataset": "--dataset",
    "backbone": "--backbone",
    "image_size": "--image-size",
    "tasks": "--tasks",
    "seed": "--seeds",
    "protocol": "--study",
    "tasks_digest": "--tasks-file",
}


_Named = tuple[Spec, str]  # with the name of its study


class PlanError(ValueError):
    """All that is wrong with a request, as a list of sentences in `problems`; cells: those that are right nonetheless,
    whose data can be checked as well."""

    def __init__(self, problems: Iterable[str], cells: Iterable[Cell] = ()):
        self.problems, self.cells = list(dict.fromkeys(problems)), list(cells)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Request:
    """What a user asked for, as typed. None: as the study, the recipe or the data set says.

    study: one name, or several separated by commas; specs: cells of no study, which then take its place. evaluate: how
    each pre-training of the study is evaluated, instead of as the study says (`studies.parse_evaluation`); tasks_file:
    `relvit.task_files`.
    """

    study: str
    recipe: str
    data_root: Path
    dataset: str | None = None
    backbone: str | None = None
    image_size: int | None = None
    combinations: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0,)
    settings: tuple[str, ...] = ()  # "field=value"
    only: tuple[str, ...] = ()  # "field=value", all of which a cell must fit
    specs: tuple[Spec, ...] = ()
    evaluate: tuple[str, ...] = ()
    tasks_file: Path | None = None


def plan_cells(request: Request) -> list[Cell]:
    """The cells of the request, in the study's order, no cell twice. Raises PlanError with everything wrong."""
    return list(plan(request))


def plan(request: Request) -> dict[Cell, tuple[str, ...]]:
    """The cells as `plan_cells`, each with the names of the studies that it belongs to."""
    planner = _Planner(request)
    members, problems = planner.members(), planner.problems
    cells = [cell for cell in members if members[cell]]
    problems += _resize_problems(cells)
    if not problems and not cells:
        asked_for = ",".join(dict.fromkeys(text for texts in planner.evaluations.values() for text in texts))
        problems.append(
            f"--evaluate {asked_for}: a supervised pre-training has no k-NN on test images: add finetune or probe, or "
            "choose tasks with --tasks"
        )
    if not problems:
        cells = _select(cells, [each for each in request.only if _name(each) not in _OF_A_SPEC], problems)
        for name, value in planner.settings.items():
            if all(getattr(cell, name) != value for cell in cells):
                problems.append(f"--set {name}={value} has no effect in any cell of this plan")
    if problems:
        raise PlanError(problems, cells if planner.has_cells else ())
    ordered = sorted(cells, key=lambda cell: request.seeds.index(cell.seed))
    return {cell: tuple(dict.fromkeys(members[cell])) for cell in ordered}


class _Planner:
    """Makes cells of what was asked for. problems: all that is wrong with it, so far; each is told beside the others,
    so that what cannot be read has a stand-in. whole: whether all studies could be read."""

    def __init__(self, request: Request):
        self.request, self.problems = request, list[str]()
        if request.tasks_file:
            self.attempt(add_tasks_file, request.tasks_file)
        before = len(self.problems)
        named = {} if request.specs else {name: self.attempt(study, name) for name in request.study.split(",")}
        studies: dict[str, Study | None] = named or {request.study: Study(request.specs)}
        self.whole = len(self.problems) == before
        for text in request.evaluate:  # which may name tasks of a study's file
            self.attempt(parse_evaluation, text)
        self.evaluations = {name: request.evaluate or (each.evaluate if each else ()) for name, each in studies.items()}
        self._specs = [(spec, name) for name, each in studies.items() if each for spec in each.cells]
        self.has_cells = bool(self._specs)
        self._specs = self._specs or [(spec, "table4") for spec in study("table4").cells]
        self._recipe: Recipe = self.attempt(recipe, request.recipe) or recipe("demo")
        self.settings: dict[str, Any] = {}
        for setting in request.settings:
            self.settings |= self.attempt(_parse_setting, setting) or {}
        if len(set(request.seeds)) < len(request.seeds):
            self.problems.append(f"--seeds names a seed twice: {', '.join(map(str, request.seeds))}")
        # A folder without a row is read to learn its images' size: once, not once a cell.
        self._own_size = cache(lambda name: native_image_size(name, request.data_root))

    def attempt(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns; of a study file with mistakes what can be planned, else None."""
        try:
            return function(*arguments)
        except StudyError as error:
            self.problems.extend(error.problems)
            return error.study
        except ValueError as error:
            self.problems.append(str(error))
            return None

    def members(self) -> dict[Cell, list[str]]:
        """The cells, each with the names of its studies; with none where the size of its images is not known."""
        for choose in (self._with_tasks, self._with_names, self._with_one_replaced):
            self._specs = choose(self._specs)
        members: dict[Cell, list[str]] = {}
        sources: dict[tuple[str, Cell], Spec] = {}
        for spec, name in self._specs:
            resolved = self._resolved(spec)
            asked = self.attempt(self._image_size, resolved)
            size = asked or 224  # divisible by every patch, so that only what else is wrong is found
            for seed in self.request.seeds:
                cell = self.attempt(self._make, resolved, size, seed)
                if cell and self.evaluations.get(name):
                    for each, names in self._evaluated(cell, resolved, size, name):
                        members.setdefault(each, []).extend(names if asked else [])
                elif cell and asked:
                    if self.whole:
                        self.problems += _idle(spec, {**resolved, **self.settings}, cell, name)
                        first = sources.setdefault((name, cell), spec)
                        self.problems += _collapsed(first, spec, self.settings, name)
                    members.setdefault(cell, []).append(study_name(name))
        return members

    # Which of a study's cells

    def _with_tasks(self, specs: list[_Named]) -> list[_Named]:
        """Those with the combinations of tasks that were asked for."""
        if not self.request.combinations:
            return specs
        combinations = [self.attempt(canonical_tasks, text) for text in self.request.combinations]
        specs = [
            ({**spec, "tasks": self.attempt(canonical_tasks, spec["tasks"]) or spec["tasks"]}, name)
            for spec, name in specs
        ]
        chosen = [each for each in specs if each[0]["tasks"] in combinations]
        if None not in combinations and self.whole:
            for tasks in combinations:
                if not any(spec["tasks"] == tasks for spec, _ in chosen):
                    file = self.request.tasks_file
                    own = file and any(TASKS[each].digest for each in parse_tasks(tasks))
                    hint = f"; a tasks file is a study itself: --study {file}" if own else ""
                    self.problems.append(f"--tasks {tasks} is in no cell of {self.request.study}{hint}")
        return chosen or specs

    def _with_names(self, specs: list[_Named]) -> list[_Named]:
        """Those that fit the conditions on names, so that nothing else has to be right about the others."""
        for condition in self.request.only:
            name, _, text = condition.partition("=")
            if name not in _OF_A_SPEC:
                continue
            try:
                wanted = canonical_tasks(text) if name == "tasks" else text
            except ValueError as error:
                self.problems.append(f"--only {condition}: {error}")
                continue
            names = [(spec, {str(spec[name]), str(self._resolved(spec)[name])}) for spec, _ in specs]
            fitting = [each for each, (_, known) in zip(specs, names) if wanted in known]
            if not fitting:
                there = sorted(set().union(*(known for _, known in names)))
                self.problems.append(f"--only {condition} fits no cell; {name} is one of {', '.join(there)}")
            specs = fitting or specs
        return specs

    def _with_one_replaced(self, specs: list[_Named]) -> list[_Named]:
        """Check that --dataset and --backbone replace one name and do not fold a study of several into one."""
        request, problems = self.request, self.problems
        for option, name in (("dataset", request.dataset), ("backbone", request.backbone)):
            names = list(dict.fromkeys(spec[option] for spec, _ in specs))
            if name and len(names) > 1:
                problems.append(
                    f"--{option} replaces the one {option} of a study, but {request.study} has {', '.join(names)}; "
                    f"pick among them with --only {option}=NAME"
                )
        if request.backbone and not request.backbone.startswith(TIMM) and request.backbone not in BACKBONES:
            problems.append(unknown("backbone", request.backbone, (*BACKBONES, f"{TIMM}NAME")))
            return specs[:1]  # enough to find what else is wrong
        return specs

    # What of a study's cell is the request's or the recipe's

    def _resolved(self, spec: Spec) -> dict[str, Any]:
        """The spec with what the request or the recipe puts in the place of its data sets and backbone."""
        request, base = self.request, self._recipe
        resolved = {
            **spec,
            "dataset": request.dataset or base.stand_in("dataset", spec["dataset"]),
            "backbone": request.backbone or base.tuned.get("backbone") or base.stand_in("backbone", spec["backbone"]),
        }
        if "pretrain_dataset" in spec:
            resolved["pretrain_dataset"] = base.stand_in("dataset", spec["pretrain_dataset"])
        return resolved

    def _image_size(self, spec: Spec) -> int:
        """The side of the images: as asked for, as the study or the backbone has it, or the data set."""
        request, sizes = self.request, self._recipe.image_sizes
        if request.image_size is not None and request.image_size < 1:
            raise ValueError(f"--image-size must be at least 1, not {request.image_size}")
        own = self._own_size(spec["dataset"])  # also says whether there is such a data set
        backbone = BACKBONES.get(spec["backbone"])
        asked = request.image_size or spec.get("image_size")
        return asked or (backbone and backbone.image_size) or sizes.get(spec["dataset"]) or own

    def _make(self, spec: Spec, image_size: int, seed: int) -> Cell:
        try:
            tasks = canonical_tasks(spec["tasks"])
        except ValueError:
            tasks = spec["tasks"]  # Cell says what is wrong with it, and with the rest
        fields = {
            "pretrain_dataset": spec["dataset"],
            **self._recipe.for_backbone(spec["backbone"], image_size, spec["protocol"]),
            **spec,
            **self.settings,
            "tasks": tasks,
            "image_size": image_size,
            "seed": seed,
        }
        return make_cell(**fields)

    # How its pre-training is evaluated

    def _evaluated(self, cell: Cell, resolved: Spec, size: int, name: str) -> Iterator[tuple[Cell, list[str]]]:
        """The evaluations of the pre-training of a study's cell, each with the names of its studies."""
        found, made = self._evaluation_fields(self.evaluations[name], cell, resolved), dict[str, Cell]()
        for text, fields in found.items():
            try:
                made[text] = self._make(fields, size, cell.seed)
            except ValueError as error:
                self.problems.append(f"--evaluate {text}: {error}")
        self.problems += _evaluation_problems(cell, made, found)
        # What the study itself would train stays its own, beside the evaluations that were asked for here.
        for each in made.values():
            names = [f"{study_name(name)}{EVALUATED}"] * bool(self.request.evaluate)
            yield each, names + [study_name(name)] * (each == cell or not self.request.evaluate)

    def _evaluation_fields(self, texts: Iterable[str], cell: Cell, resolved: Spec) -> dict[str, dict[str, Any]]:
        """By evaluation, the fields of the cell that it makes of one of a study's, where it has any."""
        if not cell.has_pretraining:
            self.problems.append(
                f"--evaluate needs a pre-training, and cells of protocol {cell.protocol!r} have none: pick others with "
                "--only protocol=NAME, or leave it out"
            )
            return {}
        found: dict[str, dict[str, Any]] = {}
        for text in texts:
            try:
                fields = parse_evaluation(text)
            except ValueError as error:
                self.problems.append(str(error))
                continue
            if "dataset" in fields:  # transfer
                try:
                    self._own_size(fields["dataset"])  # says whether there is such a data set
                except ValueError as error:
                    self.problems.append(f"--evaluate {text}: {error}")
                    continue
                fields["pretrain_dataset"] = cell.pretrain_dataset
            if fields["protocol"] == "pretrain" and not cell.task_list:
                continue  # its features have no number on test images: see relvit.train
            found[text] = {**resolved, **fields}
        return found


def _evaluation_problems(studied: Cell, made: Mapping[str, Cell], wanted: Mapping[str, Spec]) -> list[str]:
    """What is wrong with the evaluations of a study's pre-training: settings that do not act, or change it."""

    def first_phase(cell: Cell) -> Cell:  # without the labels, which a supervised one reads
        return replace(cell.pretraining(), labels_per_class=0, label_share=1.0)

    problems = []
    for text, cell in made.items():
        own = parse_evaluation(text)
        problems += [
            f"--evaluate {text}: {name}={own[name]!r} has no effect there"
            for name in own
            if getattr(cell, name) != wanted[text][name]
        ]
        mine, shared = first_phase(cell), first_phase(studied)
        changed = [name for name in FIELDS if getattr(mine, name) != getattr(shared, name)]
        if changed:
            problems.append(
                f"--evaluate {text}: {', '.join(changed)} changes the pre-training, which evaluations share; change it "
                "for all with --set"
            )
    return problems


def _resize_problems(cells: Iterable[Cell]) -> list[str]:
    sizes = {(cell.backbone, cell.image_size, cell.finetune_image_size) for cell in cells if cell.finetune_image_size}
    if not sizes:
        return []
    from relvit.backbones import resize_problem  # loads torch

    return [problem for each in sorted(sizes) if (problem := resize_problem(*each))]


def _idle(spec: Spec, wanted: dict[str, Any], cell: Cell, study: str) -> list[str]:
    """Fields that a study gives a cell in which they do not act; an embedding that a stand-in for the study's backbone
    does not have is no fault of the study."""
    excepted = {"tasks", "image_size"}
    if cell.backbone != spec["backbone"]:
        excepted.add("pretrain_position_embedding")
    return [
        f"{study}: {name}={spec[name]!r} has no effect with tasks={cell.tasks!r}, protocol={cell.protocol!r}: leave it "
        "out"
        for name in spec
        if name not in excepted and getattr(cell, name) != wanted[name]
    ]


def _collapsed(first: Spec, second: Spec, settings: dict[str, Any], study: str) -> list[str]:
    """Why two of a study's cells are one, unless a recipe's stand-ins made them so."""
    differing = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    if set(differing) <= {"dataset", "backbone", "pretrain_dataset"}:
        return []
    swept = [name for name in differing if name in settings]
    if swept:
        return [
            f"--set {name}={settings[name]} makes one cell of several: {study} compares values of {name}; pick one "
            f"with --only {name}=VALUE"
            for name in swept
        ]
    texts = " and ".join(str({name: each[name] for name in differing if name in each}) for each in (first, second))
    return [f"{study} has one cell twice: {texts} train the same"]


def study_name(study: str) -> str:
    """How runs are tagged: the name of a study, a study file by its own name."""
    return Path(study).stem if study.endswith(".py") else study


def _parse_setting(setting: str) -> dict[str, Any]:
    name, separator, text = setting.partition("=")
    if not separator:
        raise ValueError(f"--set takes field=value, not {setting!r}; fields: {', '.join(FIELDS)}")
    if name in _DECIDED:
        raise ValueError(f"{name} is not set with --set but with {_DECIDED[name]}")
    return {name: parse_value(name, text)}


# What --only can tell by the study alone, under the name that the study or the recipe gives it.
_OF_A_SPEC = ("dataset", "backbone", "protocol", "tasks")


def _name(condition: str) -> str:
    return condition.partition("=")[0]


def _select(cells: list[Cell], only: Iterable[str], problems: list[str]) -> list[Cell]:
    """The cells that fit every condition "field=value"."""
    for condition in only:
        name, _, text = condition.partition("=")
        try:
            value = parse_value(name, text)
        except ValueError as error:
            problems.append(f"--only {condition}: {error}")
            continue
        fitting = [cell for cell in cells if getattr(cell, name) == value]
        if not fitting:
            there = sorted({str(getattr(cell, name)) for cell in cells})
            problems.append(f"--only {condition} fits no cell; {name} is one of {', '.join(there)}")
        cells = fitting or cells
    return cells


def by_row(cells: Iterable[Cell]) -> list[Cell]:
    """The cells with all seeds of a table's row together, rows in the plan's order: what is done when a budget ends is
    rows that can be printed."""
    cells = list(cells)
    first: dict[Cell, int] = {}
    for place, cell in enumerate(cells):
        first.setdefault(replace(cell, seed=0), place)
    return sorted(cells, key=lambda cell: first[replace(cell, seed=0)])


def shared_pretrainings(cells: Iterable[Cell]) -> dict[Cell, Cell]:
    """For each cell whose first phase another cell has too, that phase as a cell of its own, trained once for all."""
    users: dict[Cell, list[Cell]] = {}
    for cell in cells:
        if cell.has_pretraining and cell.protocol != "pretrain":
            users.setdefault(cell.pretraining(), []).append(cell)
    return {cell: shared for shared, sharing in users.items() if len(sharing) > 1 for cell in sharing}


def datasets_of(cells: Iterable[Cell]) -> list[tuple[str, int, bool]]:
    """Every data set that the cells need, with its image size and whether its images are kept whole."""
    wanted = (
        (name, size, cell.crops_whole_images)
        for cell in cells
        for name, size in ((cell.dataset, cell.last_image_size), (cell.pretrain_dataset, cell.image_size))
    )
    return [each for each in dict.fromkeys(wanted) if each[0] != NONE]


def other_images(statuses: Mapping[Cell, Status], data_root: Path) -> list[str]:
    """What is to be said of finished cells whose data sets have other images now, as far as they are decoded."""
    now = {
        cell: fingerprint_of(
            cached_fingerprint(name, data_root, size, whole) for name, size, whole in datasets_of([cell])
        )
        for cell, status in statuses.items()
        if status.state == FINISHED and status.data_fingerprint
    }
    others = [cell for cell, found in now.items() if found and found != statuses[cell].data_fingerprint]
    names = ", ".join(sorted({name for name, *_ in datasets_of(others)}))
    said = f"{len(others)} finished cells were trained on other images of {names} than are there now, and stay finished"
    return [f"{said}; remove their folders, as cells/{others[0].cell_id}, to train them again"] if others else []


def prepare_data(cells: list[Cell], data_root: Path, download: bool = True) -> list[str]:
    """Decode every data set of the plan on this machine. Returns what is wrong, one sentence each.

    download: False leaves out what would have to be downloaded.
    """
    problems = []
    for name, size, whole in datasets_of(cells):
        try:
            dataset = prepare(name, data_root, size, download, whole)
            if whole and dataset.image_size == size and np.all(dataset.train.aspects == 1):
                problems.append(
                    f"crop_from='original' changes nothing: the images of {name} are {size} x {size} pixels"
                )
            using = [cell for cell in cells if (name, size, whole) in datasets_of([cell])]
            train_val = cache(dataset.train_val)
            for cell in using:
                train, _ = train_val(cell.seed, cell.train_images, cell.val_share)
                if cell.dataset == name:
                    dataset.labelled(train, cell.seed, cell.labels_per_class, cell.label_share)
        except DatasetNotDownloaded as error:
            problems += [str(error)] if download else []
        except DataError as error:
            problems.append(str(error))
    return list(dict.fromkeys(problems))
