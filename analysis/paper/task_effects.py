"""What each task adds, of the 2^k combinations of the paper's tasks or of any."""

import numpy as np
import pandas as pd

from analysis.output.typeset import DASH, Column, Entry, Row, Table
from analysis.paper.entries import Entries
from analysis.paper.numbers import beside, interval_text, p_value, tested_numbers
from analysis.runs.splits import split_of
from analysis.stats import effects
from analysis.stats.seeds import ALPHA
from relvit.cell import PAPER_TASKS, TASKS, task_combinations

_COUNTED = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def task_effects(entries: Entries, name: str, tasks: tuple[str, ...] = PAPER_TASKS) -> Table | None:
    """Any task against none; main effects, interactions, what each task adds to the others, Shapley values."""
    runs, count = entries.runs, 2 ** len(tasks) - 1
    together, others = (_COUNTED.get(number, str(number)) for number in (len(tasks), len(tasks) - 1))
    missing = effects.missing(runs, tasks)
    parts = (
        ("any", "Any task against none", effects.any_against_none(runs, tasks)),
        ("main", "Main effect, interaction", effects.main_effects_and_interactions(runs, tasks)),
        ("added", f"Added to the {others} other{'s' if len(tasks) > 2 else ''}", effects.leave_one_out(runs, tasks)),
        ("shapley", "Shapley value", effects.shapley(runs, tasks)),
    )
    if not any(part["n"].any() for *_, part in parts):
        return None
    several = any(part["low"].notna().any() for *_, part in parts)
    everything = effects.behind(runs, task_combinations(tasks))
    columns = [Column("kind", "Effect", align="l"), Column("task", "Task", align="l"), Column("effect", "Points")]
    if several:
        columns += [Column("interval", "95 % interval"), Column("p_family", "p", "(all rows)")]
    columns += [Column("n", "Seeds"), Column("share", "Share")]
    rows = []
    for kind, heading, part in parts:
        for number, (effect, row) in enumerate(part.iterrows()):
            rests_on = everything if kind != "added" else effects.behind(runs, effects.with_and_without(effect, tasks))
            text = DASH if np.isnan(row["mean"]) else f"{row['mean']:+.2f}"
            numbers = tested_numbers(row["mean"], row)
            bold = bool(row["p_family"] < ALPHA)
            texts = [
                Entry("" if number else heading),
                Entry(" × ".join(TASKS[task].title for task in effect.split(":") if task in TASKS)),
                Entry(text, numbers=numbers if row["n"] else {}, runs=rests_on if row["n"] else (), bold=bold),
            ]
            if several:
                texts.append(beside(interval_text(row["low"], row["high"], "+"), rests_on))
                texts.append(beside(p_value(row["p_family"]), rests_on, row["p_family"]))
            texts.append(beside(str(int(row["n"])), rests_on))
            texts.append(beside(_share(row), rests_on, row["share"]) if kind == "shapley" else Entry())
            rows.append(Row(f"{kind}-{effect}", tuple(texts), rule=number == 0))
    lacking = f" {len(missing)} runs of the design have no result; least squares does without." * (len(missing) > 0)
    caption = (
        f"Effects of the tasks on {split_of(runs)} accuracy after fine-tuning, in percentage points. The supervised "
        "cell also differs in its position embedding, augmentation and labels: the first row is the mean of the "
        f"{count} others less that one, the rest is within the {count}. Main effect and interaction: least squares on "
        f"the tasks' codes and their products. Shapley: the gain of all {together} over the average single task, split "
        f"over all orders of adding, and each task's share of it where there is a gain.{lacking} "
        + (
            "95 % intervals with seeds as blocks; p corrected for all rows of main effects, interactions and Shapley "
            "values, and for all pairs of cells where two are compared; bold where it is below 5 %."
            if several
            else "One seed: no intervals."
        )
    )
    made = Table(name, "Effects of the tasks", tuple(columns), tuple(rows), caption)
    return entries.footnoted(made)


def _share(row: pd.Series) -> str:
    if pd.isna(row["share"]):
        return DASH
    return f"{100 * row['share']:.0f} % [{100 * row['share_low']:.0f}, {100 * row['share_high']:.0f}]"


def effects_of_swept_tasks(entries: Entries, name: str) -> list[Table | None]:
    """The table of effects, where a study's cells are the combinations of two tasks or more and differ in nothing
    else."""
    runs = entries.runs.dropna(subset=["tasks", "seed"])
    swept = {task for text in runs["tasks"] for task in text.split("+")} & TASKS.keys()
    tasks = tuple(task for task in TASKS if task in swept)
    whole = len(tasks) > 1 and set(task_combinations(tasks)) <= set(runs["tasks"])
    alone = not runs.duplicated(["tasks", "seed"]).any() and set(runs["protocol"]) <= {"pretrain_finetune"}
    return [task_effects(entries, f"{name}-effects", tasks)] if whole and alone else []
