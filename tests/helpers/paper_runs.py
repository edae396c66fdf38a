"""Runs as gathered, with results that a test gives or that the paper publishes, and what a table makes of them."""

from pathlib import Path

import pandas as pd

from analysis.output.typeset import Table
from analysis.paper.entries import Entries
from analysis.paper.published import published
from analysis.paper.registry import find
from analysis.runs.comparability import conform
from relvit.cell import Cell
from sweeps.planning.plan import Request, plan_cells


def row(cell: Cell, status: str = "FINISHED", started: int = 0, **results: float) -> dict:
    """A gathered run of a cell with these test results."""
    return {
        **cell.as_dict(),
        "cell_id": cell.cell_id,
        "run_id": f"run-of-{cell.cell_id}",
        "status": status,
        "start_time": pd.Timestamp(started, unit="s", tz="UTC"),
        "study": "table4",
        "git_commit": "0123456789abcdef",
        "git_dirty": "false",
        **{f"test_{name}": value for name, value in results.items()},
    }


def planned(tmp_path: Path, **changes) -> dict[tuple[str, int], Cell]:
    cells = plan_cells(Request(**{"study": "table4", "recipe": "demo", "data_root": tmp_path, **changes}))
    return {(cell.tasks, cell.seed): cell for cell in cells}


def published_as_runs(tmp_path: Path, *studies: str) -> list[dict]:
    """The paper's own figures of these tables, as if they were ours: seed 0, the paper's recipe."""
    rows = []
    for study in studies:
        cells = {
            (cell.dataset, cell.backbone, cell.protocol, cell.tasks): cell
            for cell in plan_cells(Request(study=study, recipe="paper", data_root=tmp_path))
        }
        results: dict[Cell, dict[str, float]] = {}
        for entry in published(study).to_dict("records"):
            tasks = "drloc" if entry["method"] == "drloc" else entry["tasks"]
            cell = cells[entry["dataset"], entry["backbone"], entry["protocol"], tasks]
            results.setdefault(cell, {})[entry["metric"]] = entry["value"]
        rows += [row(cell, **values) | {"study": study} for cell, values in results.items()]
    return rows


def line(table: Table, key: str) -> list[str]:
    """What a row prints."""
    (found,) = [row for row in table.rows if row.key == key]
    return [entry.text for entry in found.entries]


def entries(study: str, runs: list[dict] | pd.DataFrame) -> Entries:
    """Runs of one setting as the entries of a study's table; of several settings those of the first."""
    conformed = conform(pd.DataFrame(runs))
    table = find(study, conformed)
    return Entries(table, table.split(conformed)[0])


def table(study: str, runs: list[dict] | pd.DataFrame, name: str | None = None) -> Table:
    """The table of a study, of the first setting of its runs."""
    found = entries(study, runs)
    return found.of.layout(found, name or study)
