"""The table of any other study."""

from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.output.typeset import CROSS, DASH, UP, Column, Entry, Row, Table
from analysis.paper.cost import cost
from analysis.paper.curves import curves
from analysis.paper.entries import Entries, PaperTable, footnoted
from analysis.paper.numbers import how_to_read, measured, number_entry, recipe_sentence, task_column
from analysis.paper.task_effects import effects_of_swept_tasks
from analysis.runs.comparability import chosen_fields, deviations, is_engines
from analysis.runs.splits import split_of
from relvit.cell import FIELDS, TASKS


def layout_listing(entries: Entries, name: str) -> Table:
    """Any study: a row for each kind of cell, by the fields in which the study's cells differ, and its accuracy."""
    study, runs = entries.of.name, entries.runs.dropna(subset=["tasks", "seed"])
    acting = [chosen_fields(row) | {"tasks": row["tasks"]} for row in runs.to_dict("records")]
    values = {field: {fields[field] for fields in acting if field in fields} for field in FIELDS}
    varying = [field for field in FIELDS if len(values[field]) > 1] or ["tasks"]
    keys = runs[varying].astype(object).map(lambda value: DASH if pd.isna(value) else _plain(value))
    runs = runs.assign(label=keys.agg(" ".join, axis=1))
    newest = runs.assign(own=[is_engines(run) for run in runs.to_dict("records")]).sort_values(["own", "start_time"])
    newest = newest.drop_duplicates(["label", "seed", "status"], keep="last")
    seeds = sorted(int(seed) for seed in newest["seed"].unique())
    trained = {task for tasks in newest["tasks"].unique() for task in tasks.split("+")}
    own = {
        task.name: measured(newest, "label", f"test_{task.metric_name}", task.metric.higher_is_better)
        for task in TASKS.values()
        if task.name in trained and f"test_{task.metric_name}" in newest
    }
    columns = [Column(field, field.replace("_", " "), align="l") for field in varying]
    columns += map(task_column, own)
    # A pre-training alone is tested by k-NN, where it is.
    by_knn = (newest["protocol"] == "pretrain") & ("test_knn_accuracy" in newest)
    tests = {}
    if by_knn.any():
        tests["knn", "k-NN accuracy"] = measured(newest[by_knn], "label", "test_knn_accuracy")
    if not by_knn.all():
        tests["accuracy", f"{split_of(runs).capitalize()} accuracy"] = measured(
            newest[~by_knn], "label", "test_accuracy"
        )
    columns += [*(Column(*column, f"(Acc {UP})") for column in tests), Column("n", "n")]
    rows = []
    for key, place in zip(runs["label"], runs.index):
        if key in [row.key for row in rows]:
            continue
        texts = [Entry(keys.loc[place, field]) for field in varying]
        has = runs.loc[place, "tasks"].split("+")
        texts += [_plain_number(numbers.loc[key]) if task in has else Entry(CROSS) for task, numbers in own.items()]
        texts += [_plain_number(each.loc[key]) if key in each.index else Entry(CROSS) for each in tests.values()]
        runs_of_cell = next((each.loc[key, "runs"] for each in tests.values() if key in each.index), ())
        texts.append(Entry(f"{len(runs_of_cell)}/{len(seeds)}", runs=runs_of_cell, noted=False))
        rows.append(Row(key, tuple(texts)))
    told = {title: [row.entries[place] for row in rows] for place, (_, title) in enumerate(tests, -len(tests) - 1)}
    how = how_to_read("below it the", told)
    caption = f"{' and '.join(told)} in % of the cells of {study}. {recipe_sentence(runs)} {how}"
    made = Table(name, f"Study {study}", tuple(columns), tuple(rows), caption)
    return footnoted(made, runs, deviations(runs, varying))


def _plain_number(row: pd.Series) -> Entry:
    return replace(number_entry(row, interval=True), underline=False)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def table_of(study: str) -> PaperTable:
    """What stands for a study that is none of the paper's."""
    figures = {"-curves": curves, "-cost": cost}
    return PaperTable(
        name=study, title=f"Study {study}", layout=layout_listing, figures=figures, behind=effects_of_swept_tasks
    )
