"""Draw the figures of a study into files."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg

from analysis.output import typeset
from analysis.output.typeset import Column, Entry, Row, Table
from analysis.paper.across import across_datasets
from analysis.paper.critical import critical_difference
from analysis.paper.drawing import STYLE, metrics_read
from analysis.paper.entries import Drawing, Entries, NothingToDraw, PaperTable
from analysis.paper.forest import forest
from analysis.stats.seeds import SeveralRuns

logger = logging.getLogger(__name__)

# What a table may name as its comparisons.
COMPARISONS: Mapping[str, Callable[[Entries], Drawing]] = {
    "forest": forest,
    "order": critical_difference,
    "across": across_datasets,
}


class Drawn(NamedTuple):
    """paths: a PDF and a PNG for each figure, in the order to be read. numbers: what each shows, as a table of the
    figure's name, for provenance."""

    paths: list[Path]
    numbers: list[Table]


def draw(
    table: PaperTable,
    runs: pd.DataFrame,
    metrics: pd.DataFrame,
    out: Path,
    note: Callable[[str], None] = logger.warning,
    name: str | None = None,
) -> Drawn:
    """Draw the figures of a table into the folder `out`.

    name: with which their files' names begin, where it is not the table's. A figure for which runs or metrics are
    missing is left out, and `note` is told why; a file that an earlier call left is not touched then.
    """
    out.mkdir(parents=True, exist_ok=True)
    metrics = metrics[(metrics["metric"].isin(metrics_read()) & metrics["run_id"].isin(set(runs["run_id"]))).to_numpy()]
    drawn = Drawn([], [])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # what the user's matplotlibrc says does not change a paper's figures
        matplotlib.rcParams.update(STYLE)
        builds = {suffix: partial(build, runs, metrics) for suffix, build in table.figures.items()}
        entries = Entries(table, runs)
        builds |= {f"-{each}": partial(COMPARISONS[each], entries) for each in table.comparisons}
        for suffix, build in builds.items():
            stem = typeset.label(name or table.name) + suffix
            try:
                drawing = build()
            except (NothingToDraw, SeveralRuns) as reason:
                note(f"{stem} is not drawn: {reason}")
                continue
            drawn.paths.extend(_save(drawing, out / stem))
            drawn.numbers.append(_as_table(stem, drawing))
    return drawn


def _as_table(name: str, drawing: Drawing) -> Table:
    columns = list(dict.fromkeys(column for row in drawing.numbers.values() for column in row))
    rows = [Row(key, tuple(row.get(each, Entry()) for each in columns)) for key, row in drawing.numbers.items()]
    return Table(name, name, tuple(Column(each, each) for each in columns), tuple(rows), drawing.caption)


def _save(drawing: Drawing, stem: Path) -> list[Path]:
    figure, caption, _ = drawing
    FigureCanvasAgg(figure)
    # The layout is worked out once for both files.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    title = stem.name
    metadata = {
        ".pdf": {"Title": title, "Subject": caption, "CreationDate": None},
        ".png": {"Title": title, "Description": caption, "Software": None},
    }
    paths = []
    for suffix, fields in metadata.items():
        path = stem.with_name(stem.name + suffix)
        scratch = path.with_name(f".{path.name}.tmp")
        figure.savefig(scratch, format=suffix[1:], metadata=fields)
        scratch.replace(path)
        paths.append(path)
    return paths
