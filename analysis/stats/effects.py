"""The 16 cells of Table 4 as a full 2^4 factorial: what each task adds to accuracy, alone and with others.

Every function takes runs of one setting, as `analysis.stats.seeds` describes them, and returns one row an effect with
mean, std, n, low and high over seeds in percentage points (`analysis.stats.seeds.describe`). An effect is a contrast,
a weighted sum of cells whose weights add up to 0, and is taken within each seed that has all the cells it needs.
A seed that lacks one gives nothing, because a contrast of what is left would be biased; `missing` says what is lacking.
"""

import itertools
from collections.abc import Sequence
from math import factorial

import pandas as pd

from analysis.stats.seeds import by_seed, describe
from relvit.cell import PAPER_TASKS, parse_tasks, task_combinations

ALL = "+".join(PAPER_TASKS)


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


def complete(runs: pd.DataFrame, cells: Sequence[str]) -> tuple[str, ...]:
    """The ids of the finished runs of these cells with the seeds that have them all: what their contrast rests on.

    Raises analysis.stats.seeds.SeveralRuns.
    """
    seeds = by_seed(runs).reindex(columns=list(cells)).dropna().index
    used = runs[(runs["status"] == "FINISHED") & runs["tasks"].isin(cells) & runs["seed"].isin(seeds)]
    return tuple(sorted(used["run_id"]))


def with_and_without(task: str) -> list[str]:
    """The cell of all four tasks, and that without one."""
    return [ALL, "+".join(name for name in PAPER_TASKS if name != task)]


def main_effects_and_interactions(runs: pd.DataFrame) -> pd.DataFrame:
    """Main effect of each task ("sprel") and interaction of each pair ("sprel:dist").

    Main effect: mean accuracy of the 8 cells with the task minus that of the 8 without. Interaction: half of the
    effect of one task where the other is on, minus half of its effect where it is off; equally, the mean of the cells
    that have both or neither, minus that of those which have one. Box, Hunter and Hunter, Statistics for
    Experimenters, chapter 5. Raises analysis.stats.seeds.SeveralRuns.
    """
    names = [*PAPER_TASKS, *(":".join(pair) for pair in itertools.combinations(PAPER_TASKS, 2))]
    return _over_seeds(runs, pd.DataFrame({name: _factorial_contrast(name.split(":")) for name in names}))


def leave_one_out(runs: pd.DataFrame) -> pd.DataFrame:
    """What each task adds to the three others: accuracy of all four minus that of the triple without it.

    It needs only two cells a row, so n may differ between rows. Raises analysis.stats.seeds.SeveralRuns.
    """
    contrasts = {task: dict(zip(with_and_without(task), (1.0, -1.0))) for task in PAPER_TASKS}
    rows = [_over_seeds(runs, pd.DataFrame({task: contrast})) for task, contrast in contrasts.items()]
    return pd.concat(rows)


def shapley(runs: pd.DataFrame) -> pd.DataFrame:
    """The gain of all four tasks over none, split: what a task adds, averaged over all orders of adding the four.

    Exact over the 16 subsets; the means add up to accuracy(all four) - accuracy(none). The further column, share, is
    each mean's part of that gain; null where there is no gain to share. Shapley, A Value for n-Person Games (1953).
    Raises analysis.stats.seeds.SeveralRuns.
    """
    values = _over_seeds(runs, pd.DataFrame({task: _shapley_contrast(task) for task in PAPER_TASKS}))
    gain = values["mean"].sum()
    return values.assign(share=values["mean"] / gain if gain > 0 else float("nan"))


def _factorial(runs: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in percent, one row a seed, one column a combination in Table 4's order."""
    return by_seed(runs).reindex(columns=task_combinations())


def _over_seeds(runs: pd.DataFrame, contrasts: pd.DataFrame) -> pd.DataFrame:
    """contrasts: weights, one row a cell, one column an effect."""
    complete = _factorial(runs)[contrasts.index].dropna()
    return describe(complete @ contrasts).rename_axis("effect")


def _factorial_contrast(tasks: list[str]) -> pd.Series:
    """The product of the tasks' codes, +1 where on and -1 where off, over half the number of cells."""
    weights = {}
    for cell in task_combinations():
        off = sum(task not in parse_tasks(cell) for task in tasks)
        weights[cell] = (-1.0) ** off / 2 ** (len(PAPER_TASKS) - 1)
    return pd.Series(weights)


def _shapley_contrast(task: str) -> pd.Series:
    """A subset S before `task` is added has the weight |S|! (4 - |S| - 1)! / 4!, the share of orders that begin so."""
    weights = {}
    for cell in task_combinations():
        others = [name for name in parse_tasks(cell) if name != task]
        share = factorial(len(others)) * factorial(len(PAPER_TASKS) - len(others) - 1) / factorial(len(PAPER_TASKS))
        weights[cell] = share if task in parse_tasks(cell) else -share
    return pd.Series(weights)
