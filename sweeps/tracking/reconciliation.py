"""Brings MLflow to what the account says: orphans closed, duplicates marked, gaps filled, lost runs rebuilt.

The account holds the rows of cells that have ended. Those of a cell that was interrupted are in its checkpoint, and are
yielded again when it is continued.
"""

from collections.abc import Container, Iterable

from relvit.vocabulary import DATA_FINGERPRINT
from sweeps.account.account import FAILED, FINISHED, Account, Status
from sweeps.account.failures import Setting
from sweeps.account.work import WorkItem
from sweeps.tracking.outbox import line_of
from sweeps.tracking.tracker import Tracker, TrackingError, is_passing


def reconcile(
    items: Iterable[WorkItem], account: Account, tracker: Tracker, alive: Container[str] = (), thorough: bool = False
) -> list[str]:
    """Returns a sentence for each change. alive: ids of cells that a driver is at work on, which are left alone.

    thorough: ask MLflow for the steps of every finished run (a request a run) instead of its last one alone.
    Raises TrackingError where MLflow goes away meanwhile, or its database is locked for longer than MLflow waits.
    """
    try:
        return _reconcile(items, account, tracker, alive, thorough)
    except Exception as error:
        if not is_passing(error):
            raise
        raise TrackingError(
            f"MLflow takes no writes now ({line_of(error)}), so it may lack what the account has"
        ) from error


def _reconcile(
    items: Iterable[WorkItem], account: Account, tracker: Tracker, alive: Container[str], thorough: bool
) -> list[str]:
    changes = [
        f"closed the run of {cell_id}, left RUNNING by a driver that died" for cell_id in tracker.close_orphans(alive)
    ]
    changes += [f"marked run {run_id} as a duplicate" for run_id in tracker.mark_duplicates()]
    for item in items:
        cell, status = item.cell, item.status
        if cell.cell_id in alive:
            continue
        if status.state == FINISHED:
            changes += _finished(item, account, tracker, thorough)
        elif status.state == FAILED and tracker.status(cell.cell_id) != "FAILED":
            tracker.begin(item, _deviation(status), status.origin)
            tracker.log(cell.cell_id, account.history(cell))
            tracker.fail(cell.cell_id, status.reason, status.failure)
            changes.append(f"entered the failure of {cell.cell_id}")
    return changes


def _finished(item: WorkItem, account: Account, tracker: Tracker, thorough: bool) -> list[str]:
    cell = item.cell
    if not tracker.is_finished(cell) and not account.history(cell):
        return [
            f"could not rebuild the run of {cell.cell_id}: its rows in {account.folder(cell)}/history.json are lost"
        ]
    if tracker.is_finished(cell):
        missing = tracker.missing_epochs(cell) if thorough else []
        if not missing:
            tracker.tag_study(item)
            return []
        change = f"filled {len(missing)} missing steps of the run of {cell.cell_id}"
    elif tracker.status(cell.cell_id) is None:
        change = f"rebuilt the run of {cell.cell_id} from the account"
    else:
        change = f"completed the run of {cell.cell_id} from the account"
    tracker.rebuild(item, account.history(cell), _deviation(item.status), account.folder(cell))
    if item.status.data_fingerprint:
        tracker.tag(cell.cell_id, {DATA_FINGERPRINT: item.status.data_fingerprint})
    return [change]


def _deviation(status: Status) -> str:
    return Setting(0, 0, status.micro_batches).deviation
