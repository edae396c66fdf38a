"""The table of any other study."""

from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.output.typeset import DASH, UP, Column, Entry, Row, Table
from analysis.paper.cost import cost
from analysis.paper.curves import curves
from analysis.paper.entries import Entries, PaperTable, footnoted
from analysis.paper.numbers import how_to_read, measured, number_entry, recipe_sentence
from analysis.runs.comparability import chosen_fields, deviations
from relvit.cell import FIELDS


def layout_listing(entries: Entries, name: str) -> Table:
    """Any study: a row for each kind of cell, by the fields in which the study's cells differ, and its accuracy."""
    study, runs = entries.of.name, entries.runs.dropna(subset=["tasks", "seed"])
    acting = [chosen_fields(row) | {"tasks": row["tasks"]} for row in runs.to_dict("records")]
    values = {field: {fields[field] for fields in acting if field in fields} for field in FIELDS}
    varying = [field for field in FIELDS if len(values[field]) > 1] or ["tasks"]
    keys = runs[varying].astype(object).map(lambda value: DASH if pd.isna(value) else _plain(value))
    runs = runs.assign(label=keys.agg(" ".join, axis=1))
    newest = runs.sort_values("start_time").drop_duplicates(["label", "seed", "status"], keep="last")
    seeds = sorted(int(seed) for seed in newest["seed"].unique())
    accuracy = measured(newest, "label", "test_accuracy")
    columns = [Column(field, field.replace("_", " "), align="l") for field in varying]
    columns += [Column("accuracy", "Test accuracy", f"(Acc {UP})"), Column("n", "n")]
    rows = []
    for key, place in zip(runs["label"], runs.index):
        if key in [row.key for row in rows]:
            continue
        texts = [Entry(keys.loc[place, field]) for field in varying]
        texts.append(replace(number_entry(accuracy.loc[key], interval=True), underline=False))
        runs_of_cell = accuracy.loc[key, "runs"]
        texts.append(Entry(f"{len(runs_of_cell)}/{len(seeds)}", runs=runs_of_cell, noted=False))
        rows.append(Row(key, tuple(texts)))
    how = how_to_read(newest, "below it the", {"Test accuracy": [each.entries[-2] for each in rows]})
    caption = f"Test accuracy in % of the cells of {study}. {recipe_sentence(runs)} {how}"
    made = Table(name, f"Study {study}", tuple(columns), tuple(rows), caption)
    return footnoted(made, runs, deviations(runs, varying))


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def table_of(study: str) -> PaperTable:
    """What stands for a study that is none of the paper's."""
    figures = {"-curves": curves, "-cost": cost}
    return PaperTable(name=study, title=f"Study {study}", layout=layout_listing, figures=figures)
