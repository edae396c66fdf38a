"""The 16 cells of Table 4 as a factorial: what pre-training adds at all, and what each task adds to the others.

Every function takes runs of one setting, as `analysis.stats.seeds` describes them, and returns one row an effect, in
percentage points: mean, and std, n, low, high, p and p_family of `analysis.stats.blocks.contrasts`. An effect is a
contrast, a weighted sum of cells whose weights add up to 0. A seed that lacks a cell still tells of the others; a cell
that no seed has leaves the effects that it has a weight in unknown.

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

ALL = "+".join(PAPER_TASKS)
_PRETRAINED = [cell for cell in task_combinations() if cell != NONE]
_FACTORIAL = [*PAPER_TASKS, *(":".join(pair) for pair in itertools.combinations(PAPER_TASKS, 2))]


def missing(runs: pd.DataFrame) -> pd.DataFrame:
    """The cells without a finished run, one row each: seed, for every seed that any run has (null if none), tasks.

    Raises analysis.stats.seeds.SeveralRuns.
    """
    seeds = sorted(int(seed) for seed in runs["seed"].dropna().unique())
    have = _factorial(runs).reindex(index=seeds).isna()
    rows = [(seed, tasks) for seed in seeds for tasks in task_combinations() if have.loc[seed, tasks]]
    if not seeds:
        rows = [(pd.NA, tasks) for tasks in task_combinations()]
    return pd.DataFrame(rows, columns=["seed", "tasks"]).astype({"seed": "Int64", "tasks": "string"})


def behind(runs: pd.DataFrame, cells: Sequence[str]) -> tuple[str, ...]:
    """The ids of the finished runs of these cells."""
    used = runs[(runs["status"] == "FINISHED") & runs["tasks"].isin(cells) & runs["seed"].notna()]
    return tuple(sorted(used["run_id"]))


def with_and_without(task: str) -> list[str]:
    """The cell of all four tasks, and that without one."""
    return [ALL, "+".join(name for name in PAPER_TASKS if name != task)]


def any_against_none(runs: pd.DataFrame) -> pd.DataFrame:
    """The mean of the 15 pre-trained cells less the supervised one: "any". Raises analysis.stats.seeds.SeveralRuns."""
    weights = pd.DataFrame({"any": {cell: -1.0 if cell == NONE else 1 / 15 for cell in task_combinations()}})
    return _named(contrasts(_factorial(runs), weights))


def main_effects_and_interactions(runs: pd.DataFrame) -> pd.DataFrame:
    """Main effect of each task ("sprel") and interaction of each pair ("sprel:dist"), within the 15 pre-trained cells.

    Twice the coefficients of the codes, +1 where a task is on and -1 where off, and of their products, of the model
    with both kinds that is fitted to the 15 cells by least squares. Of 16 cells the main effect would be the mean of
    those with the task minus that of those without, and the interaction half of what one task's effect gains where the
    other is on (Box, Hunter and Hunter, Statistics for Experimenters, chapter 5).
    Raises analysis.stats.seeds.SeveralRuns.
    """
    return _within(runs).loc[_FACTORIAL]


def leave_one_out(runs: pd.DataFrame) -> pd.DataFrame:
    """What each task adds to the three others: accuracy of all four minus that of the triple without it.

    It needs only two cells a row. Each is a pair of cells, and corrected as in Table 4, for all pairs of them.
    Raises analysis.stats.seeds.SeveralRuns.
    """
    compared = compare(
        by_seed(runs[runs["tasks"].isin(task_combinations())]), map(tuple, map(with_and_without, PAPER_TASKS))
    )
    return _named(compared.rename(columns={"difference": "estimate"}).set_axis(list(PAPER_TASKS)))


def shapley(runs: pd.DataFrame) -> pd.DataFrame:
    """The gain of all four tasks over the mean of the single ones, split by what a task adds in all orders of adding.

    Shapley values (A Value for n-Person Games, 1953) of the 16 cells, less the quarter that each has of the gain that
    any single task brings on average: what is left says which task matters. The means add up to accuracy(all four) -
    mean accuracy(one task). The further columns, share, share_low and share_high, are each mean's part of that gain
    with its 95 % interval; null where the gain may be 0. Raises analysis.stats.seeds.SeveralRuns.
    """
    wide = _factorial(runs)
    values = (
        _within(runs).loc[[f"shapley {task}" for task in PAPER_TASKS]].set_axis(list(PAPER_TASKS)).rename_axis("effect")
    )
    each = {task: _shapley_contrast(task) for task in PAPER_TASKS}
    gain = sum(each.values())
    columns = ["share", "share_low", "share_high"]
    return values.join(pd.DataFrame({task: share(wide, each[task], gain) for task in PAPER_TASKS}, index=columns).T)


def _factorial(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in percent, one row a seed, one column a combination in Table 4's order."""
    return by_seed(runs).reindex(columns=task_combinations())


def _within(runs: pd.DataFrame) -> pd.DataFrame:
    return _named(contrasts(_factorial(runs), family()))


def _named(found: pd.DataFrame) -> pd.DataFrame:
    columns = ["mean", "std", "n", "low", "high", "p", "p_family"]
    return found.rename(columns={"estimate": "mean"})[columns].rename_axis("effect")


@cache
def family() -> pd.DataFrame:
    """The contrasts within the 15: one row a cell, one column an effect."""
    on = {cell: [1.0 if task in parse_tasks(cell) else -1.0 for task in PAPER_TASKS] for cell in _PRETRAINED}
    codes = pd.DataFrame(on, index=list(PAPER_TASKS)).T
    products = {name: codes[name.split(":")].prod(axis=1) for name in _FACTORIAL}
    design = np.column_stack([np.ones(len(codes)), pd.DataFrame(products)])
    fitted = pd.DataFrame(2 * np.linalg.pinv(design)[1:].T, index=_PRETRAINED, columns=_FACTORIAL)
    values = pd.DataFrame({f"shapley {task}": _shapley_contrast(task) for task in PAPER_TASKS})
    return pd.concat([fitted, values], axis=1).reindex(task_combinations()).fillna(0.0)


def _shapley_contrast(task: str) -> pd.Series:
    """A subset S before `task` is added has the weight |S|! (4 - |S| - 1)! / 4!, the share of orders that begin so.

    The empty S, a quarter of the orders, counts as the mean of the single tasks: that takes the cell without any out.
    """
    weights = dict.fromkeys(task_combinations(), 0.0)
    for cell in _PRETRAINED:
        others = [name for name in parse_tasks(cell) if name != task]
        part = factorial(len(others)) * factorial(len(PAPER_TASKS) - len(others) - 1) / factorial(len(PAPER_TASKS))
        weights[cell] = part if task in parse_tasks(cell) else -part
    for single in PAPER_TASKS:
        weights[single] -= 1 / len(PAPER_TASKS) ** 2
    return pd.Series(weights)
