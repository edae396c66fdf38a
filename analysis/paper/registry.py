"""The paper's tables and figures, one module each, and which runs a study's tables show."""

from functools import partial
from importlib import import_module
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.output.typeset import Table
from analysis.paper import listing
from analysis.paper.entries import Entries, PaperTable

# Modules of this package, each with its `TABLE`, in the order in which study "full" shows them.
_MODULES = (
    "table4",
    "table2",
    "table3",
    "figure2",
    "table1",
)
TABLES: dict[str, PaperTable] = {
    table.name: table for table in (import_module(f"analysis.paper.{name}").TABLE for name in _MODULES)
}
FULL = "full"  # the study of all cells of Tables 2 to 4


class Made(NamedTuple):
    """A table of a study and the runs that it shows. first: whether it is not of one of Table 4's further settings."""

    table: Table
    entries: Entries
    first: bool


def find(study: str, runs: pd.DataFrame) -> PaperTable:
    """The paper's table of that name; of any other study a list of the cells that these runs trained."""
    return TABLES.get(study) or listing.table_of(study, runs)


def of_study(runs: pd.DataFrame, study: str) -> pd.DataFrame:
    """The runs whose tag "study", names joined by commas, has this study; all of them for Table 1.

    For a table or figure of the paper also those that were planned for another or for "full", where their cell is one
    of this table's and no run of the study itself stands for it.
    """
    table = TABLES.get(study)
    if table and table.of_all_runs:
        return runs
    names = [set(text.split(",")) for text in runs["study"].fillna("")]
    tagged = np.array([study in each for each in names], dtype=bool)
    if not table:
        return runs[tagged]

    def place(run: dict) -> tuple:
        return (*(str(run.get(name)) for name in ("dataset", "backbone", "seed")), table.label_of(run))

    rows = runs.to_dict("records")
    taken = {place(row) for row, own in zip(rows, tagged) if own}
    fitting = [
        bool(own) or bool(tags & {*TABLES, FULL}) and table.fits(row, FULL in tags) and place(row) not in taken
        for row, tags, own in zip(rows, names, tagged)
    ]
    return runs[np.array(fitting, dtype=bool)]


def tables_of(study: str, runs: pd.DataFrame, name: str | None = None) -> list[Made]:
    """The tables of a study, the one to show first; name: with which those of their files begin.

    Where Table 4's runs have several settings, each has its table; that of the newest comes first. Study "full" has
    those of the tables whose cells it trains, and first one on the paper's data set and backbone.
    """
    if study != FULL:
        table = find(study, runs)
        return _set(table, table.split(runs), name or study)
    made = []
    for table in TABLES.values():
        part = of_study(runs, table.name)
        if table.in_full and (part["status"] == "FINISHED").any():
            made += _set(
                table, sorted(table.split(part), key=partial(_is_others, table)), f"{name or FULL}-{table.name}"
            )
    if made:
        return made
    table = listing.table_of(study, runs)
    return _set(table, table.split(runs), study)


def _set(table: PaperTable, parts: list[pd.DataFrame], name: str) -> list[Made]:
    made = []
    for number, rows in enumerate(parts):
        entries = Entries(table, rows)
        made.append(Made(table.layout(entries, f"{name}-older-{number}" if number else name), entries, not number))
    return made


def _is_others(table: PaperTable, runs: pd.DataFrame) -> bool:
    """Whether no run is on a data set and backbone of the paper's table."""
    paper = table.paper_backbones()
    pairs = runs[["dataset", "backbone"]].drop_duplicates().itertuples(index=False, name=None)
    return not any(backbone in paper.get(dataset, {}).values() for dataset, backbone in pairs)
