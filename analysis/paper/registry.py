"""The tables of a study."""

from collections.abc import Sequence

import pandas as pd

from analysis.output.typeset import Table
from analysis.paper.figure2 import figure2_entries, layout_figure2
from analysis.paper.listing import layout_listing
from analysis.paper.published import published
from analysis.paper.settings import settings
from analysis.paper.table1 import layout_table1
from analysis.paper.table2 import entries_of, layout_table2
from analysis.paper.table3 import layout_table3
from analysis.paper.table4 import layout_table4
from analysis.runs.comparability import conform


def tables_of(
    study: str, runs: pd.DataFrame, name: str | None = None, papers_first: bool = False
) -> Sequence[tuple[Table, pd.DataFrame]]:
    """The tables of a study, the one to show first, each with the runs that it is made of.

    Where Table 4's runs have several settings, each has its table; that of the newest comes first, with papers_first
    one on the paper's data set and backbone.
    """
    name = name or study
    if study == "table1":
        return [(layout_table1(runs, name), runs)]
    if study == "table4":
        found = list(reversed(settings(runs)))
        if papers_first:
            (place,) = published("table4")[["dataset", "backbone"]].drop_duplicates().itertuples(index=False, name=None)
            found.sort(key=lambda one: (one.fields.get("dataset"), one.fields.get("backbone")) != place)
        return [
            (layout_table4(setting, f"{name}-older-{number}" if number else name), setting.runs)
            for number, setting in enumerate(found)
        ]
    if study == "table2":
        return [(layout_table2(runs, name), entries_of(runs, study))]
    if study == "table3":
        return [(layout_table3(runs, name), entries_of(runs, study))]
    if study == "figure2":
        return [(layout_figure2(runs, name), figure2_entries(runs))]
    return [(layout_listing(runs, study, name), conform(runs))]
