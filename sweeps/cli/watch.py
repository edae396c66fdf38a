"""A view of a sweep while it trains, of the account alone: what runs, what is done, the table so far. On a terminal or
another machine by `watch`, which writes nothing; as Markdown for the page of a study in MLflow by its driver."""

import statistics
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from relvit.cell import Cell
from relvit.vocabulary import TEST_ACCURACY, TEST_KNN_ACCURACY
from sweeps.account.account import FAILED, FINISHED, RUNNING, Account, Status
from sweeps.account.failures import CRASH
from sweeps.cli.console import SOME_FAILED, refuse
from sweeps.cli.plan_view import summary
from sweeps.cli.progress import duration, labels

NOTHING = "nothing to show"  # how a refusal begins
RUNNING_HEADINGS = ("cell", "seed", "checkpoint", "for")
RESULT_HEADINGS = ("cell", "test accuracy", "spread", "seeds")


@dataclass(frozen=True)
class Standing:
    """Where studies stand. running, results: rows of text under RUNNING_HEADINGS and RESULT_HEADINGS, a result for the
    cells that differ in their seeds alone; remarks: what failed, and whether nobody is at work; exit_status: of
    studies that have ended, else None."""

    summary: str
    running: list[tuple[str, ...]]
    results: list[tuple[str, ...]]
    remarks: list[str]
    exit_status: int | None


def watch(console: Console, account: Account, studies: Collection[str], seconds: float) -> int:
    """Show where the studies stand, on a terminal again every so many seconds until nothing runs and nothing is left.

    Returns the exit status: that of a study which has ended so.
    """
    results: dict[Cell, float] = {}
    try:
        problems = account.look() or _absent(account, studies)
        if problems:
            return refuse(problems, NOTHING)
        if not console.is_terminal:
            standing = stand(account, studies, results)
            console.print(_shown(standing))
            return standing.exit_status or 0
        with Live(console=console, auto_refresh=False, screen=False) as live:
            while True:
                standing = stand(account, studies, results)
                live.update(_shown(standing), refresh=True)
                if standing.exit_status is not None:
                    return standing.exit_status
                time.sleep(seconds)
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        return refuse([f"the storage path {account.storage} cannot be read: {error}"], NOTHING)


def _absent(account: Account, studies: Collection[str]) -> list[str]:
    known = sorted({name for names in account.planned().values() for name in names})
    lacking = sorted(set(studies) - set(known))
    there = f"planned there are {', '.join(known)}" if known else "nothing was planned there yet"
    return [f"no cell of study {name!r} was planned under {account.storage}; {there}" for name in lacking]


def stand(account: Account, studies: Collection[str], results: dict[Cell, float]) -> Standing:
    """Where the studies stand now. results: of finished cells, as far as they were read before; what is new is
    added."""
    cells = [cell for cell, names in account.planned().items() if set(names) & set(studies)]
    statuses = account.statuses(cells)
    for cell, status in statuses.items():
        if status.state == FINISHED and cell not in results:
            row = (account.history(cell) or [{}])[-1]
            results[cell] = float(row.get(TEST_ACCURACY, row.get(TEST_KNN_ACCURACY, float("nan"))))
    held = account.apparently_held()
    running = [cell for cell, status in statuses.items() if status.state == RUNNING and cell.cell_id in held]
    left = [cell for cell, status in statuses.items() if status.state not in (FINISHED, FAILED)]
    failed = {cell: status for cell, status in statuses.items() if status.state == FAILED}
    names = labels(cells)
    remarks = [
        f"FAILED {names[cell]}  seed {cell.seed}: {status.failure or CRASH}: {status.reason}"
        for cell, status in failed.items()
    ]
    if left and not any(cell.cell_id in held for cell in left):
        remarks.append("no driver is running: the same command without --watch continues")
    return Standing(
        f"{summary(statuses.values())}; {len(running)} running, {len(failed)} failed",
        [_running(cell, statuses[cell], names[cell]) for cell in running],
        _results(cells, results, names),
        remarks,
        None if left else SOME_FAILED * bool(failed),
    )


def _running(cell: Cell, status: Status, name: str) -> tuple[str, ...]:
    since = duration(max(0.0, time.time() - status.changed))
    return name, str(cell.seed), f"{status.epoch} of {cell.total_epochs}", since


def _results(cells: list[Cell], results: Mapping[Cell, float], names: Mapping[Cell, str]) -> list[tuple[str, ...]]:
    rows: dict[Cell, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(replace(cell, seed=0), []).append(cell)
    shown: list[tuple[str, ...]] = []
    for members in rows.values():
        values = [results[cell] for cell in members if cell in results]
        mean = f"{statistics.fmean(values):.2f}" if values else "–"
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
        shown.append((names[members[0]], mean, spread, f"{len(values)}/{len(members)}"))
    return shown


def _shown(standing: Standing) -> Group:
    parts: list[str | Table] = [standing.summary]
    for title, headings, rows in _tables(standing):
        table = Table(title=title, title_justify="left", box=None)
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "cell" else "right")
        for row in rows:
            table.add_row(*map(escape, row))
        parts.append(table)
    return Group(*(escape(part) if isinstance(part, str) else part for part in (*parts, *standing.remarks)))


def _tables(standing: Standing) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    if standing.running:
        yield "running", RUNNING_HEADINGS, standing.running
    yield "finished so far", RESULT_HEADINGS, standing.results


def markdown(standing: Standing, most: int) -> str:
    """The same for a page, in at most so many characters: what has no room is left out at the end, and counted."""
    lines = [f"**{standing.summary}**", ""]
    for title, headings, rows in _tables(standing):
        lines += [f"{title}:", "", _row(headings), _row(["---"] + ["---:"] * (len(headings) - 1)), *map(_row, rows), ""]
    lines += [f"- {remark}" for remark in standing.remarks]
    kept = len(lines)
    while sum(map(len, lines[:kept])) + kept > most - 40:
        kept -= 1
    cut = ["", f"... and {len(lines) - kept} more lines"] if kept < len(lines) else []
    return "\n".join(lines[:kept] + cut)


def _row(texts: Collection[str]) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in texts)} |"
