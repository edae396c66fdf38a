"""A plan as a person reads it: each cell's state, what is left, and what that will cost."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

from relvit.cell import Cell, TimmSpec, backbone_spec
from relvit.data import DataError
from relvit.messages import counted
from sweeps.account.account import FAILED, FINISHED, PLANNED, PRUNED, RUNNING, SEARCHED, Account, Status, count_states
from sweeps.account.failures import CRASH
from sweeps.cli.console import refuse, say
from sweeps.cli.progress import duration
from sweeps.planning.plan import other_images, shared_pretrainings


def show_plan(
    console: Console, account: Account, cells: list[Cell], data_root: Path, cpus: float, gpus: float | None
) -> int:
    """List the cells and what they will cost on this machine; nothing is written, started or downloaded.

    gpus: of a trial; None: one where there is any. Returns the exit status.
    """
    try:
        problems = account.look()
        if problems:
            return refuse(problems)
        statuses = account.statuses(cells)
        _print_states(console, statuses, account.apparently_held())
        for note in other_images(statuses, data_root):
            say(console, f"note: {note}")
        _print_cost(console, account, statuses, data_root, cpus, gpus)
    except DataError as error:
        return refuse([str(error)])
    except OSError as error:
        return refuse([f"the storage path {account.storage} cannot be read: {error}"])
    return 0


def summary(statuses: Iterable[Status]) -> str:
    """ "16 cells: 3 finished, 1 to continue, 12 to start"."""
    statuses = list(statuses)
    counts = count_states(statuses)
    resumable = sum(status.state != FINISHED and status.epoch > 0 for status in statuses)
    fresh = len(statuses) - counts[FINISHED] - resumable
    return f"{counted(len(statuses), 'cell')}: {counts[FINISHED]} finished, {resumable} to continue, {fresh} to start"


def _print_states(console: Console, statuses: Mapping[Cell, Status], busy: set[str]) -> None:
    width = max(len(cell.cell_id) for cell in statuses)
    for cell, status in statuses.items():
        progress = f"epoch {status.epoch} of {cell.total_epochs}"
        state = {
            FINISHED: "finished",
            FAILED: f"failed ({status.failure or CRASH}), {progress}: {status.reason}",
            RUNNING: f"{'running' if cell.cell_id in busy else 'interrupted'}, {progress}",
            PLANNED: "to start",
            PRUNED: f"pruned by a search, {progress}",
            SEARCHED: "trained by a search and not tested",
        }[status.state]
        say(console, f"{cell.cell_id:<{width}}  {state}")
    say(console, summary(statuses.values()))
    for name, size in dict.fromkeys((cell.backbone, cell.image_size) for cell in statuses):
        spec = backbone_spec(name, size)
        if isinstance(spec, TimmSpec):
            side = size // spec.patch_size
            tokens = f"{side} x {side} tokens of {spec.dim} channels at {size} pixels"
            say(console, f"{name}: {spec.parameters:,} parameters without heads, {tokens}")


def _print_cost(
    console: Console,
    account: Account,
    statuses: Mapping[Cell, Status],
    data_root: Path,
    cpus: float,
    gpus: float | None,
) -> None:
    saved = shared_pretrainings(statuses)
    if saved:
        trainings = len(set(saved.values()))
        saves = f"that saves {counted(len(saved) - trainings, 'training')}"
        say(console, f"{counted(len(saved), 'cell')} share {counted(trainings, 'pre-training')}: {saves}")
    if all(status.state == FINISHED for status in statuses.values()):
        return

    from sweeps.planning.cost import estimate, has_gpu

    if gpus and not has_gpu():
        say(
            console,
            "the cost is unknown: torch sees no GPU here; run the same command where there is one",
        )
        return
    cost = estimate(statuses, account, data_root, cpus, gpus)

    def span(interval: tuple[float, float], unit: float) -> str:
        low, high = (value / unit for value in interval)
        return f"{low:,.2g} to {high:,.2g}" if high < 10 else f"{low:,.0f} to {high:,.0f}"

    say(
        console,
        f"on this machine, {counted(cost.slots, 'trial')} at once: "
        f"{duration(cost.seconds[0])} to {duration(cost.seconds[1])}; "
        f"{span(cost.trial_seconds, 3600)} trial-hours, {span(cost.gpu_hours, 1)} GPU-hours; a trial's peak memory "
        f"{span(cost.memory_bytes, 1e9)} GB; disk {span(cost.disk_bytes, 1e9)} GB, data sets aside",
    )
    say(
        console,
        f"estimated for {cost.measured} kinds of phases from finished cells, for {cost.calibrated} by calibration",
    )
    unknown = [precision for precision, seconds in cost.otherwise.items() if seconds is None]
    for precision, seconds in cost.otherwise.items():
        if seconds is not None:
            taken = f"{span(seconds, 3600)} trial-hours instead of {span(cost.trial_seconds, 3600)}"
            say(console, f"with --set precision={precision}: {taken}, by finished cells")
    if unknown:
        say(
            console,
            f"what precision {' or '.join(unknown)} would save is unknown until cells of each kind have finished here "
            f"in both precisions (--set precision={unknown[0]})",
        )
    for (name, size, whole), (occupied, is_there) in cost.decoded.items():
        what = f"whole images for crops of {size} pixels" if whole else f"images of {size} pixels"
        state = "already decoded" if is_there else "still to be decoded"
        say(console, f"{name}: {'' if is_there else 'at most '}{occupied / 1e9:,.2g} GB of {what}, {state}")
