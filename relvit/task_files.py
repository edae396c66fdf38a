"""Tasks from a user's file: a list `tasks` of rows as in `relvit.tasks`, checked before anything is trained with them.

    from relvit.tasks import MSE, PATCHES, Task

    tasks = [Task(name="bright", title="Brightness", over=PATCHES, outputs=1, target=..., loss=..., metric=MSE)]

What the file holds is part of every cell that uses one of its tasks (field `tasks_digest`): another content, another
cell. It goes to other processes as text, so that it must be whole in itself: what it imports has to be installed there.
A tasks file is code and runs with your rights: read one before you run it.
"""

import hashlib
import itertools
import linecache
import math
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from relvit.cell import add_task, name_problem
from relvit.messages import nearest_file, said_of, unknown
from relvit.tasks import PAIRS, PATCHES, TASKS, Metric, Task

_SIDE, _BATCH, _DIM = 3, 2, 8  # of the grid and the features that rows are checked with
_SOURCES: dict[str, tuple[str, str]] = {}  # by digest, the name and the text of the files that were read


def add_tasks_file(path: Path) -> tuple[str, ...]:
    """Make the tasks of a file known; those of one that is known already stay. Returns their names.

    Raises ValueError with all that is wrong with them.
    """
    try:
        return add_tasks_source(path.name, path.read_text())
    except OSError as error:
        meant = nearest_file(path) if isinstance(error, FileNotFoundError) else ""
        raise ValueError(f"the tasks file {path} cannot be read: {error.strerror}{meant}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the tasks file {path} is no text: {error}") from error


def add_tasks_source(name: str, text: str) -> tuple[str, ...]:
    """As `add_tasks_file`, of a file of that name with this text."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    if digest not in _SOURCES:
        rows = _rows(name, text)
        problems = [problem for row in rows for problem in row_problems(row, name)]
        names = [str(row.name) for row in rows]
        problems += [f"{each!r} is named twice" for each in {*names} if names.count(each) > 1]
        if problems:
            raise ValueError(f"the tasks file {name}: {'; '.join(problems)}")
        for row in rows:
            add_task(replace(row, digest=digest))
        _SOURCES[digest] = name, text
    return tuple(task.name for task in TASKS.values() if task.digest == digest)


def sources_of(tasks_digest: str) -> list[tuple[str, str]]:
    """The files that a cell's tasks come from, for `add_tasks_source` in another process."""
    return [_SOURCES[digest] for digest in tasks_digest.split("+") if digest in _SOURCES]


def _rows(name: str, text: str) -> list[Any]:
    module = ModuleType(f"relvit_tasks_{Path(name).stem}")
    module.__file__ = name
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)  # for tracebacks, and torch.compile
    try:
        exec(compile(text, name, "exec"), module.__dict__)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever else a user's file may raise is what is wrong with it
        alone = "; a tasks file must be whole in itself: it may import installed packages alone"
        hint = alone if isinstance(error, ModuleNotFoundError) else ""
        raise ValueError(f"the tasks file {name} does not import{said_of(error, name)}{hint}") from error
    rows = getattr(module, "tasks", None)
    if not isinstance(rows, (list, tuple)) or not rows:
        raise ValueError(f"the tasks file {name} does not define `tasks`, a list of relvit.tasks.Task")
    strangers = [row for row in rows if not isinstance(row, Task)]
    if strangers:
        raise ValueError(f"the tasks file {name}: {strangers[0]!r} in `tasks` is no relvit.tasks.Task")
    return list(rows)


def row_problems(task: Task, file: str = "") -> list[str]:
    """What is wrong with a row, one sentence each. Its functions, of this file, are called on a small grid with random
    features."""
    problems = [name_problem(task)] if name_problem(task) else []
    if not isinstance(task.title, str) or not task.title:
        problems.append(f"{task.name}: title must be its name in tables, not {task.title!r}")
    if task.over not in (PAIRS, PATCHES):
        problems.append(f"{task.name}: {unknown('over', task.over, (PAIRS, PATCHES))}")
    if not isinstance(task.metric, Metric):
        problems.append(f"{task.name}: its metric must be a relvit.tasks.Metric, not {task.metric!r}")
    else:
        problems += [f"{task.name}: {problem}" for problem in _metric_problems(task.metric)]
    if type(task.outputs) is not int or task.outputs < 0:
        problems.append(f"{task.name}: outputs must be a whole number, at least 0, not {task.outputs!r}")
    if not _rises(0, task.weight):
        problems.append(f"{task.name}: weight must be a number above 0, not {task.weight!r}")
    ends = task.weight_range
    if not isinstance(ends, (list, tuple)) or len(ends) != 2 or not _rises(0, *ends):
        problems.append(f"{task.name}: weight_range must be two numbers that rise from above 0, not {ends!r}")
    return problems or _function_problems(task, file)


def _metric_problems(metric: Metric) -> list[str]:
    problems = []
    if not isinstance(metric.suffix, str) or not re.fullmatch("[a-z0-9_]+", metric.suffix):
        problems.append(f"its metric's suffix is written with small letters, digits and '_', not {metric.suffix!r}")
    problems += [
        f"its metric's {name} must be text, not {getattr(metric, name)!r}"
        for name in ("unit", "axis")
        if not isinstance(getattr(metric, name), str)
    ]
    if not isinstance(metric.higher_is_better, bool):
        problems.append(f"its metric's higher_is_better must be True or False, not {metric.higher_is_better!r}")
    return problems


def _rises(*values: Any) -> bool:
    if not all(type(value) in (int, float) for value in values):
        return False
    return all(low < high for low, high in itertools.pairwise((*values, math.inf)))


def _function_problems(task: Task, file: str) -> list[str]:
    import torch

    from relvit.heads import task_head

    patches, step = _SIDE**2, "target"
    leading = (patches, patches) if task.over == PAIRS else (patches,)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_BATCH, 3, 8 * _SIDE, 8 * _SIDE, generator=generator)
    tokens = torch.randn(_BATCH, patches, _DIM, generator=generator)
    try:
        with torch.random.fork_rng(devices=[]):
            target = task.target(images, _SIDE, _SIDE) if task.of_images else task.target(_SIDE, _SIDE)
            wanted = (_BATCH, *leading) if task.of_images else leading
            shape = tuple(target.shape) if isinstance(target, torch.Tensor) else None
            if shape is None or shape[: len(wanted)] != wanted:
                found = f"has the shape {list(shape)}" if shape is not None else f"is {target!r}"
                where = f"on a grid of {_SIDE} x {_SIDE}" + (f" and {_BATCH} images" if task.of_images else "")
                return [f"{task.name}: its target {found} {where}; it must be a tensor that begins {list(wanted)}"]
            step = "head"
            prediction = task_head(task, _DIM, patches, "bilinear")(tokens)
            batched = target if task.of_images else target.expand(_BATCH, *shape)  # as where patches are permuted
            for each in (target, batched):
                step = "loss"
                loss = task.loss(prediction, each)
                if not isinstance(loss, torch.Tensor) or loss.dim() or not torch.isfinite(loss):
                    return [f"{task.name}: its loss must be a finite scalar, not {_shown(loss)}"]
                if not loss.requires_grad:
                    return [f"{task.name}: its loss does not depend on the predictions: there is nothing to train"]
            step = "metric"
            value = task.metric(prediction, target)
            if not isinstance(value, torch.Tensor) or value.dim():
                return [f"{task.name}: its metric must be a scalar, not {_shown(value)}"]
    except Exception as error:  # whatever a user's function may raise is what is wrong with it
        return [f"{task.name}: its {step} fails{said_of(error, file)}"]
    return []


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value) if shape is None or not len(shape) else f"a tensor of shape {list(shape)}"
