"""What runs are called in MLflow, by what tells them apart among the cells of their plan, and what is said of them."""

import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

from relvit.cell import FIELDS, NONE, Cell
from relvit.paper import named_value, telling_fields
from relvit.secrets import redacted
from sweeps.account.work import WorkItem

VISIBLE = 20  # characters of a name that MLflow's list of runs shows
_MOST_ORDERED = 4  # parts whose every order is tried


def name_alone(cell: Cell) -> str:
    """The name of a cell of which nothing else is known."""
    return f"{cell.tasks} · seed {cell.seed}"


def named(items: Sequence[WorkItem]) -> list[WorkItem]:
    """The items of a plan with name and note: "sprel+abspos · seed 0". Tasks and seed are always named, other fields
    where they differ; in an order, if there is one, in which the first 20 characters tell the cells of a seed apart."""
    cells = [item.cell for item in items]
    fields = ["tasks", *telling_fields([{name: getattr(cell, name) for name in FIELDS} for cell in cells])]
    orders = list(permutations(fields)) if len(fields) <= _MOST_ORDERED else [tuple(fields)]
    best = max(orders, key=lambda order: len({_name(cell, order)[:VISIBLE] for cell in cells}))
    command = repeat_command()
    result = []
    for item in items:
        only = ",".join(f"{field}={getattr(item.cell, field)}" for field in fields)
        again = f"{command} --seeds {item.cell.seed} --only {only}" if command else ""
        result.append(replace(item, name=_name(item.cell, best), note=note(item.cell, again)))
    return result


def _name(cell: Cell, order: Iterable[str]) -> str:
    parts = []
    for field in order:
        value = getattr(cell, field)
        plain = field in ("tasks", "dataset", "backbone", "protocol")
        parts.append(value if plain else named_value(field, value))
    return " · ".join([*parts, f"seed {cell.seed}"])


def note(cell: Cell, again: str = "") -> str:
    """What the run is, and the command that repeats it, where there is one, in Markdown."""
    text = f"{cell.backbone} on {cell.dataset}, {_training(cell)}; seed {cell.seed}."
    if again:
        text += f" Repeat it at the commit in its tag git_commit:\n\n```\n{again}\n```"
    return text


def _training(cell: Cell) -> str:
    tasks = "classes" if cell.tasks == NONE else cell.tasks
    if cell.protocol == "joint":
        both = "" if cell.tasks == NONE else f" and {tasks}"
        return f"trained from scratch on classes{both} at once for {cell.epochs} epochs"
    source = f" of {cell.pretrain_dataset}" if cell.pretrain_dataset not in (NONE, cell.dataset) else ""
    first = f"pre-trained on {tasks}{source} for {cell.pretrain_epochs} epochs"
    if cell.protocol == "pretrain":
        return first
    then = "fine-tuned" if cell.protocol == "pretrain_finetune" else "probed with its backbone frozen,"
    return f"{first}, then {then} for {cell.epochs} epochs"


def repeat_command() -> str:
    """The command line of the sweep that this process is, without secrets; "" where it is none."""
    entry = Path(sys.argv[0])
    if entry.name not in ("ablation.py", "hpo.py"):
        return ""
    return shlex.join(["python", f"sweeps/{entry.name}", *map(redacted, sys.argv[1:])])
