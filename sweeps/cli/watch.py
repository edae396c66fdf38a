"""A view of a sweep from another terminal or machine: what runs, what is done, the table so far. It reads the account
alone and writes nothing."""

import statistics
import time
from collections.abc import Collection, Mapping
from dataclasses import replace

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from relvit.cell import Cell
from relvit.vocabulary import TEST_ACCURACY, TEST_KNN_ACCURACY
from sweeps.account.account import FAILED, FINISHED, RUNNING, Account, Status
from sweeps.account.failures import CRASH
from sweeps.cli.console import SOME_FAILED, refuse
from sweeps.cli.plan_view import summary
from sweeps.cli.progress import duration, labels


def watch(console: Console, account: Account, studies: Collection[str], seconds: float) -> int:
    """Show where the studies stand, on a terminal again every so many seconds until nothing runs and nothing is left.

    Returns the exit status: that of a study which has ended so.
    """
    results: dict[Cell, float] = {}
    try:
        problems = account.look() or _absent(account, studies)
        if problems:
            return refuse(problems)
        if not console.is_terminal:
            shown, status = _look(account, studies, results)
            console.print(shown)
            return status or 0
        with Live(console=console, auto_refresh=False, screen=False) as live:
            while True:
                shown, status = _look(account, studies, results)
                live.update(shown, refresh=True)
                if status is not None:
                    return status
                time.sleep(seconds)
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        return refuse([f"the storage path {account.storage} cannot be read: {error}"])


def _absent(account: Account, studies: Collection[str]) -> list[str]:
    known = sorted({name for names in account.planned().values() for name in names})
    lacking = sorted(set(studies) - set(known))
    there = f"planned there are {', '.join(known)}" if known else "nothing was planned there yet"
    return [f"no cell of study {name!r} was planned under {account.storage}; {there}" for name in lacking]


def _look(account: Account, studies: Collection[str], results: dict[Cell, float]) -> tuple[Group, int | None]:
    """What is to be shown now, and the exit status once all has ended. results: of finished cells, as far as they were
    read before; what is new is added."""
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
    parts: list[Text | Table] = [Text(f"{summary(statuses.values())}; {len(running)} running, {len(failed)} failed")]
    if running:
        parts.append(_running(running, statuses, names))
    parts.append(_results(cells, results, names))
    parts += [
        Text(f"FAILED {names[cell]}  seed {cell.seed}: {status.failure or CRASH}: {status.reason}")
        for cell, status in failed.items()
    ]
    if left and not running:
        parts.append(Text("no driver is at work: the same command without --watch continues"))
    return Group(*parts), None if left else SOME_FAILED * bool(failed)


def _running(cells: list[Cell], statuses: Mapping[Cell, Status], names: Mapping[Cell, str]) -> Table:
    table = Table(title="running", title_justify="left", box=None)
    for heading in ("cell", "seed", "checkpoint", "for"):
        table.add_column(heading, justify="left" if heading == "cell" else "right")
    for cell in cells:
        status = statuses[cell]
        epochs = f"{status.epoch} of {cell.total_epochs}"
        table.add_row(names[cell], str(cell.seed), epochs, duration(max(0.0, time.time() - status.changed)))
    return table


def _results(cells: list[Cell], results: Mapping[Cell, float], names: Mapping[Cell, str]) -> Table:
    """A row for the cells that differ in their seeds alone."""
    rows: dict[Cell, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(replace(cell, seed=0), []).append(cell)
    table = Table(title="finished so far", title_justify="left", box=None)
    for heading in ("cell", "test accuracy", "spread", "seeds"):
        table.add_column(heading, justify="left" if heading == "cell" else "right")
    for members in rows.values():
        values = [results[cell] for cell in members if cell in results]
        mean = f"{statistics.fmean(values):.2f}" if values else "–"
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
        table.add_row(names[members[0]], mean, spread, f"{len(values)}/{len(members)}")
    return table
