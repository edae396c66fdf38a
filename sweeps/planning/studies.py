"""Studies: each is a list of the cells that a table or figure shows. Pure Python, no Ray.

A study names what is trained: a dict for each cell with dataset, backbone, protocol and tasks, and any other field of
`relvit.cell.Cell` that it wants to fix. The recipe fills in the rest, the plan multiplies by seeds. A study of your own
is a Python file with such a list:

    cells = [
        {"dataset": "cifar10", "backbone": "vit_s4", "protocol": "pretrain_finetune", "tasks": "sprel",
         "pair_head": head}
        for head in ("bilinear", "low_rank")
    ]

    python sweeps/ablation.py --study heads.py

`tasks_file = "mytasks.py"` in it names a file of further tasks (`relvit.task_files`), beside the study file. Such a
file is a study itself: of the combinations of the paper's tasks and its own, on Table 4's data set and backbone.

A study file is code and runs with your rights: read one before you run it.
"""

import runpy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relvit.cell import FIELDS, NONE, PAPER_TASKS, TASKS, parse_value, task_combinations, type_errors
from relvit.messages import nearest_file, said_of, unknown
from relvit.paper import BEST, TABLE3_DATASETS, VIT_OF
from relvit.task_files import add_tasks_file

Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """cells: what is trained, without the seed; evaluate: how each pre-training is evaluated (`parse_evaluation`),
    instead of as the cells' protocols say."""

    cells: tuple[Spec, ...]
    evaluate: tuple[str, ...] = ()


class StudyError(ValueError):
    """What is wrong with a study file, in `problems`; study: what of it can be planned nonetheless, to be checked."""

    def __init__(self, problems: list[str], study: Study):
        self.problems, self.study = problems, study
        super().__init__("; ".join(problems))


def _cell(dataset: str, backbone: str, protocol: str, tasks: str, **fields: Any) -> dict[str, Any]:
    return {"dataset": dataset, "backbone": backbone, "protocol": protocol, "tasks": tasks, **fields}


def _two_phases(dataset: str, backbone: str, tasks: str, **fields: Any) -> dict[str, Any]:
    """Pre-training then fine-tuning. The supervised baseline pre-trains on classification, with its embedding."""
    embedding = {"pretrain_position_embedding": True} if tasks == NONE else {}
    return _cell(dataset, backbone, "pretrain_finetune", tasks, **embedding, **fields)


def _table2() -> list[dict[str, Any]]:
    """Supervised against RelViT, pre-trained and fine-tuned, on five data sets."""
    return [_two_phases(dataset, vit, tasks) for dataset, vit in VIT_OF.items() for tasks in (NONE, BEST)]


def _table3() -> list[dict[str, Any]]:
    """One phase on classification: supervised, with drloc (not for ViT), with the tasks; three backbones."""
    return [
        _cell(dataset, backbone or VIT_OF[dataset], "joint", tasks)
        for backbone in (None, "swin_t", "t2t_vit_14")
        for dataset in TABLE3_DATASETS
        for tasks in ((NONE, BEST) if backbone is None else (NONE, "drloc", BEST))
    ]


def _table4() -> list[dict[str, Any]]:
    """The supervised cell and the 15 combinations of tasks on CIFAR-10."""
    return [_two_phases("cifar10", "vit_s4", tasks) for tasks in task_combinations()]


def _figure2() -> list[dict[str, Any]]:
    """SpRel pre-training with and without position embeddings and permuted patches, and no pre-training at all."""
    settings = [
        _two_phases("cifar10", "vit_s4", "sprel", pretrain_position_embedding=embedding, permute_patches=permuted)
        for embedding in (True, False)
        for permuted in (False, True)
    ]
    return [*settings, _cell("cifar10", "vit_s4", "joint", NONE)]


def _full() -> list[dict[str, Any]]:
    """All 16 combinations on every data set, with each backbone in the protocol in which the paper compares it."""
    vit = [_two_phases(dataset, vit, tasks) for dataset, vit in VIT_OF.items() for tasks in task_combinations()]
    variants = [
        _cell(dataset, backbone, "joint", tasks)
        for backbone in ("swin_t", "t2t_vit_14")
        for dataset in VIT_OF
        for tasks in task_combinations()
    ]
    return vit + variants


def _probe() -> list[dict[str, Any]]:
    """Beyond the paper: how good the features of each pre-training are before any fine-tuning."""
    return [spec | {"protocol": "pretrain_probe", "probe": "logistic"} for spec in _table4()]


def _mega() -> list[dict[str, Any]]:
    """Ours: mega-patches, an idea of the published code, on Table 4's data. Its own experiment is another: ImageNet-100
    with some 6 of 7 patches a side."""
    return [_two_phases("cifar10", "vit_s4", BEST, mega_grid=side) for side in (0, 2, 3)]


STUDIES: dict[str, Study] = {
    "table2": Study(tuple(_table2())),
    "table3": Study(tuple(_table3())),
    "table4": Study(tuple(_table4())),
    "figure2": Study(tuple(_figure2())),
    "full": Study(tuple(_full())),
    "probe": Study(tuple(_probe())),
    "mega": Study(tuple(_mega())),
}


def study(name: str) -> Study:
    """The study of that name, or that in a Python file. Raises ValueError where there is none or it is malformed."""
    if name in STUDIES:
        return STUDIES[name]
    if name.endswith(".py"):
        if Path(name).stem in STUDIES:  # their runs would be tagged alike, and set in one table
            raise ValueError(f"the study file {name} has the name of the study {Path(name).stem!r}: give it another")
        return _from_file(Path(name))
    raise ValueError(f"{unknown('study', name, STUDIES)}; or a Python file that defines `cells`")


EVALUATIONS: dict[str, Spec] = {
    "knn": {"protocol": "pretrain"},
    "probe": {"protocol": "pretrain_probe", "probe": "logistic"},
    "finetune": {"protocol": "pretrain_finetune"},
}


def parse_evaluation(text: str) -> dict[str, Any]:
    """The fields of a cell that "NAME" or "NAME:FIELD=VALUE:FIELD=VALUE" sets, NAME being one of EVALUATIONS.

    Raises ValueError with the valid names and the nearest.
    """
    name, *settings = text.split(":")
    if name not in EVALUATIONS:
        raise ValueError(f"--evaluate {text}: {unknown('evaluation', name, EVALUATIONS)}")
    fields = dict(EVALUATIONS[name])
    for setting in settings:
        field, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--evaluate {text}: {setting!r} is not written FIELD=VALUE")
        if field in (*fields, "seed", "tasks", "backbone", "image_size", "pretrain_dataset"):
            raise ValueError(f"--evaluate {text}: {field} is not for an evaluation to say")
        try:
            fields[field] = parse_value(field, value)
        except ValueError as error:
            raise ValueError(f"--evaluate {text}: {error}") from None
    return fields


def run_file(path: Path, kind: str) -> dict[str, Any]:
    """What a user's Python file defines. Raises ValueError where there is none, or with what it raises and where."""
    if not path.is_file():
        raise ValueError(f"the {kind} file {path} does not exist{nearest_file(path)}")
    try:
        return runpy.run_path(str(path))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever else a user's file may raise is what is wrong with it
        raise ValueError(f"the {kind} file {path} does not import{said_of(error, str(path))}") from error


def _from_file(path: Path) -> Study:
    defined = run_file(path, "study")
    if "tasks" in defined and "cells" not in defined:
        names = add_tasks_file(path)
        cells = [_two_phases("cifar10", "vit_s4", tasks) for tasks in task_combinations((*PAPER_TASKS, *names))]
        return Study(tuple(cells))
    problems, cells = list[str](), list[Any]()
    if "tasks_file" in defined:
        named = defined["tasks_file"]
        try:
            if not isinstance(named, (str, Path)):
                raise ValueError(f"the study file {path}: `tasks_file` must be the name of a file, not {named!r}")
            add_tasks_file(path.parent / named)
        except ValueError as error:
            problems.append(str(error))
    tasks_known, wrong = not problems, list[str]()
    if "cells" not in defined:
        problems.append(f"the study file {path} does not define `cells`, a list of dicts with fields of a cell")
    elif not isinstance(defined["cells"], Iterable):
        wrong.append(f"`cells` must be a list of dicts, not {defined['cells']!r}")
    else:
        cells = list(defined["cells"])
        wrong += _malformed(cells, tasks_known)
    evaluate = defined.get("evaluate", ())
    if not isinstance(evaluate, (list, tuple)) or not all(isinstance(each, str) for each in evaluate):
        wrong.append(f"`evaluate` must be a list of texts as --evaluate takes them, not {evaluate!r}")
        evaluate = ()
    for text in evaluate:
        try:
            parse_evaluation(text)
        except ValueError as error:
            wrong.append(str(error))
            evaluate = [each for each in evaluate if each != text]
    problems += [f"the study file {path}: {'; '.join(wrong)}"] if wrong else []
    if problems:
        raise StudyError(problems, Study(tuple(_mended(cells, tasks_known)), tuple(evaluate)))
    return Study(tuple(cells), tuple(evaluate))


_NEEDED = ("dataset", "backbone", "protocol", "tasks")


def _malformed(cells: list[Any], tasks_known: bool) -> Iterable[str]:
    """What is wrong with a study file's cells; where tasks are missing, beside their weights."""
    if not cells:
        yield "`cells` is empty"
    for number, spec in enumerate(cells):
        if not isinstance(spec, Mapping):
            yield f"cell {number} is not a dict but {spec!r}"
            continue
        missing = [name for name in _NEEDED if name not in spec]
        if missing:
            yield f"cell {number} lacks {', '.join(missing)}"
        strangers = [name for name in spec if name not in FIELDS and (tasks_known or not str(name).endswith("_weight"))]
        yield from (f"cell {number}: {unknown('field', name, FIELDS)}" for name in strangers)
        yield from (
            f"cell {number}: {error}" for error in type_errors({name: spec[name] for name in spec if name in FIELDS})
        )
        if "seed" in spec:
            yield f"cell {number} sets seed, which --seeds does"
        if cells.index(spec) < number:
            yield f"cell {number} is the same as cell {cells.index(spec)}"


def _mended(cells: list[Any], tasks_known: bool) -> Iterable[Spec]:
    """The cells with what can be checked of them, so that all that is wrong is said at once."""
    for spec in cells:
        kept = dict(spec) if isinstance(spec, Mapping) else {}
        kept = {name: kept[name] for name in kept if name in FIELDS and name != "seed"}
        kept = {name: value for name, value in kept.items() if not type_errors({name: value})}
        if all(name in kept for name in _NEEDED):
            if not tasks_known:
                kept["tasks"] = "+".join(task for task in kept["tasks"].split("+") if task in TASKS) or NONE
            yield kept
