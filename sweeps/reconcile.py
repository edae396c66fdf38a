"""Bring MLflow to what the account of cells says, step by step, without training anything.

    python sweeps/reconcile.py --storage results --tracking-uri sqlite:///mlflow.db

Closes the runs that a dead driver left RUNNING, marks duplicates, fills in missing steps and rebuilds missing runs, of
every cell that was ever planned under the storage path. Cells at which a driver is at work are left alone. Each sweep
does the same when it starts, by the last step of each run. Prints a line for each change. Exit status: 0 done, 2 the
storage or MLflow cannot be used.
"""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # runs from a checkout that is not installed

from relvit.messages import counted
from sweeps.account.account import Account
from sweeps.cli import options as shared
from sweeps.cli.console import exit_status, refuse
from sweeps.cluster.machine import keep_private

NOTHING = "nothing was changed"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = shared.new_parser("reconcile.py", __doc__)
    shared.add_storage(parser, "the sweep's")
    shared.add_tracking(parser)
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_arguments()
    account = Account(options.storage)
    problems = account.look()
    planned = {} if problems else account.planned()
    if not planned:
        return refuse(problems or [f"there is no account of cells under {options.storage}"], NOTHING)

    from sweeps.account.work import work_items
    from sweeps.tracking.reachable import tracking_problems
    from sweeps.tracking.reconciliation import reconcile
    from sweeps.tracking.tracker import Tracker, TrackingError

    keep_private([options.storage] if isinstance(options.storage, Path) else [])
    problems = tracking_problems(options.tracking_uri)
    if problems:
        return refuse(problems, NOTHING)
    try:
        tracker = Tracker(options.tracking_uri, options.experiment, account.storage)
        items = work_items(account, planned)
        changes = reconcile(items, account, tracker, alive=account.apparently_held(), thorough=True)
    except TrackingError as error:
        return refuse([str(error)], NOTHING)
    for change in changes:
        print(change)
    print(f"{counted(len(planned), 'cell')} checked, {counted(len(changes), 'change')}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
