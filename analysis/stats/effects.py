"""The 16 cells of Table 4 as a factorial: what pre-training adds at all, and what each task adds to the others. So do
the 2^k combinations of any tasks.

Every function takes runs of one setting, as `analysis.stats.seeds` describes them, and returns one row an effect, in
percentage points: mean, and std, n, low, high, p and p_family of `analysis.stats.blocks.contrasts`. An effect is a
contrast, a weighted sum of cells whose weights add up to 0. A seed that lacks a cell still tells of the others; a cell
that no seed has leaves the effects that it has a weight in unknown. tasks: those that are combined, at least two.

The cell without any task is another treatment: it differs from the other 15 in its position embedding, augmentation and
labels as well. What tells it from them is one contrast, `any_against_none`; which tasks matter is asked within the 15.
The main effects, interactions and Shapley values are one family, corrected together.
"""

import itertools
from collections.abc import Sequence
from functools import cache
from math import factorial

import numpy as np
import pandas as pd

from analysis.stats.blocks import contrasts, share
from analysis.stats.seeds import by_seed, compare
from relvit.cell import NONE, PAPER_TASKS, parse_tasks, task_combinations

Tasks = tuple[str, ...]


def _pretrained(tasks: Tasks) -> list[str]:
    return [cell for cell in task_combinations(tasks) if cell != NONE]


def _factors(tasks: Tasks) -> list[str]:
    return [*tasks, *(":".join(pair) for pair in itertools.combinations(tasks, 2))]


def missing(runs: pd.DataFrame, tasks: Tasks = PAPER_TASKS) -> pd.DataFrame:
    """The cells without a finished run, one row each: seed, for every seed that any run has (null if none), tasks.

    Raises analysis.stats.seeds.SeveralRuns.
    """
    seeds = sorted(int(seed) for seed in runs["seed"].dropna().unique())
    have = _factorial(runs, tasks).reindex(index=seeds).isna()
    rows = [(seed, cell) for seed in seeds for cell in task_combinations(tasks) if have.loc[seed, cell]]
    if not seeds:
        rows = [(pd.NA, cell) for cell in task_combinations(tasks)]
    return pd.DataFrame(rows, columns=["seed", "tasks"]).astype({"seed": "Int64", "tasks": "string"})


def behind(runs: pd.DataFrame, cells: Sequence[str]) -> tuple[str, ...]:
    """The ids of the finished runs of these cells."""
    used = runs[(runs["status"] == "FINISHED") & runs["tasks"].isin(cells) & runs["seed"].notna()]
    return tuple(sorted(used["run_id"]))


def with_and_without(task: str, tasks: Tasks = PAPER_TASKS) -> list[str]:
    """The cell of all tasks, and that without one."""
    return ["+".join(tasks), "+".join(name for name in tasks if name != task)]


def any_against_none(runs: pd.DataFrame, tasks: Tasks = PAPER_TASKS) -> pd.DataFrame:
    """The mean of the pre-trained cells less the supervised one: "any". Raises analysis.stats.seeds.SeveralRuns."""
    cells = _pretrained(tasks)
    weights = pd.DataFrame({"any": {NONE: -1.0, **dict.fromkeys(cells, 1 / len(cells))}})
    return _named(contrasts(_factorial(runs, tasks), weights))


def main_effects_and_interactions(runs: pd.DataFrame, tasks: Tasks = PAPER_TASKS) -> pd.DataFrame:
    """Main effect of each task ("sprel") and interaction of each pair ("sprel:dist"), within the pre-trained cells.

    Twice the coefficients of the codes, +1 where a task is on and -1 where off, and of their products, of the model
    with both kinds that is fitted to these cells, Table 4's 15, by least squares. Of all 16 the main effect would be
    the mean of those with the task minus that of those without, and the interaction half of what one task's effect
    gains where the other is on (Box, Hunter and Hunter, Statistics for Experimenters, chapter 5).
    Raises analysis.stats.seeds.SeveralRuns.
    """
    return _within(runs, tasks).loc[_factors(tasks)]


def leave_one_out(runs: pd.DataFrame, tasks: Tasks = PAPER_TASKS) -> pd.DataFrame:
    """What each task adds to the others: accuracy of all minus that of all but it.

    It needs only two cells a row. Each is a pair of cells, and corrected as in Table 4, for all pairs of them.
    Raises analysis.stats.seeds.SeveralRuns.
    """
    pairs = [tuple(with_and_without(task, tasks)) for task in tasks]
    compared = compare(by_seed(runs[runs["tasks"].isin(task_combinations(tasks))]), pairs)
    return _named(compared.rename(columns={"difference": "estimate"}).set_axis(list(tasks)))


def shapley(runs: pd.DataFrame, tasks: Tasks = PAPER_TASKS) -> pd.DataFrame:
    """The gain of all tasks over the mean of the single ones, split by what a task adds in all orders of adding.

    Shapley values (A Value for n-Person Games, 1953) of the cells, less the equal part that each has of the gain that
    any single task brings on average: what is left says which task matters. The means add up to accuracy(all) -
    mean accuracy(one task). The further columns, share, share_low and share_high, are each mean's part of that gain
    with its 95 % interval; null where the gain may be 0. Raises analysis.stats.seeds.SeveralRuns.
    """
    wide = _factorial(runs, tasks)
    values = _within(runs, tasks).loc[[f"shapley {task}" for task in tasks]].set_axis(list(tasks))
    values = values.rename_axis("effect")
    each = {task: _shapley_contrast(task, tasks) for task in tasks}
    gain = sum(each.values())
    columns = ["share", "share_low", "share_high"]
    return values.join(pd.DataFrame({task: share(wide, each[task], gain) for task in tasks}, index=columns).T)


def _factorial(runs: pd.DataFrame, tasks: Tasks) -> pd.DataFrame:
    """Accuracy in percent, one row a seed, one column a combination in Table 4's order."""
    return by_seed(runs).reindex(columns=task_combinations(tasks))


def _within(runs: pd.DataFrame, tasks: Tasks) -> pd.DataFrame:
    return _named(contrasts(_factorial(runs, tasks), family(tasks)))


def _named(found: pd.DataFrame) -> pd.DataFrame:
    columns = ["mean", "std", "n", "low", "high", "p", "p_family"]
    return found.rename(columns={"estimate": "mean"})[columns].rename_axis("effect")


@cache
def family(tasks: Tasks = PAPER_TASKS) -> pd.DataFrame:
    """The contrasts within the pre-trained cells: one row a cell, one column an effect."""
    cells, factors = _pretrained(tasks), _factors(tasks)
    on = {cell: [1.0 if task in parse_tasks(cell) else -1.0 for task in tasks] for cell in cells}
    codes = pd.DataFrame(on, index=list(tasks)).T
    products = {name: codes[name.split(":")].prod(axis=1) for name in factors}
    design = np.column_stack([np.ones(len(codes)), pd.DataFrame(products)])
    fitted = pd.DataFrame(2 * np.linalg.pinv(design)[1:].T, index=cells, columns=factors)
    values = pd.DataFrame({f"shapley {task}": _shapley_contrast(task, tasks) for task in tasks})
    return pd.concat([fitted, values], axis=1).reindex(task_combinations(tasks)).fillna(0.0)


def _shapley_contrast(task: str, tasks: Tasks) -> pd.Series:
    """A subset S before `task` is added has the weight |S|! (k - |S| - 1)! / k!, the share of orders that begin so.

    The empty S, one in k of the orders, counts as the mean of the single tasks: that takes the cell without any out.
    """
    weights = dict.fromkeys(task_combinations(tasks), 0.0)
    for cell in _pretrained(tasks):
        others = [name for name in parse_tasks(cell) if name != task]
        part = factorial(len(others)) * factorial(len(tasks) - len(others) - 1) / factorial(len(tasks))
        weights[cell] = part if task in parse_tasks(cell) else -part
    for single in tasks:
        weights[single] -= 1 / len(tasks) ** 2
    return pd.Series(weights)
