"""A search from its request to the exit status: check, hold, search, report, train and test the winners."""

from typing import TYPE_CHECKING

from rich.console import Console

from relvit.cell import Cell
from relvit.messages import counted
from sweeps.account import leases
from sweeps.account.account import FINISHED, Account
from sweeps.account.failures import Setting
from sweeps.account.work import work_items
from sweeps.cli.console import (
    BAD_REQUEST,
    INTERRUPTED,
    SOME_FAILED,
    begin,
    left_to,
    ray_and_mlflow,
    refuse,
    say,
    stop_for_another,
)
from sweeps.cli.options import lost_paths
from sweeps.driver.options import Checkpoints, Options
from sweeps.driver.session import Sweep, connected_problems, train_items, update_tracking
from sweeps.planning.plan import PlanError, prepare_data
from sweeps.search.request import Prepared, SearchRequest, base_cells, describe, open_searches, prepare, standing
from sweeps.search.results import finals, finals_study, report

if TYPE_CHECKING:
    from sweeps.search.search import Search
    from sweeps.tracking.tracker import Tracker


def search_and_test(request: SearchRequest, console: Console, only_plan: bool) -> int:
    """Search, then train the best configurations with other seeds and test them. Returns the exit status.

    only_plan: print the spaces and where they stand, and start nothing.
    """
    account = Account(request.places.storage)
    try:
        cells, problems = base_cells(request), []
    except PlanError as error:
        cells, problems = [], error.problems
    if not only_plan:
        begin(request.places, console)
    try:
        searches = prepare(request, cells, account)
    except PlanError as error:
        return refuse(problems + error.problems)
    if problems:
        return refuse(problems)
    if only_plan:
        for line in describe(searches):
            say(console, line)
        return 0
    problems = lost_paths(request.places)
    problems += account.check() + prepare_data(cells, request.places.data_root, download=not problems)
    if problems:
        account.discard_if_empty()
        return refuse(problems)
    names = [f"search {search.name}" for search in searches]
    with leases.hold(account.storage / "drivers", names, lost=lambda: stop_for_another(console)) as hold:
        if hold.others:
            return refuse([f"{name} is held by {who}; wait until it ends" for name, who in hold.others.items()])
        status = _start(request, console, account, searches, hold)
    if status == BAD_REQUEST:
        account.discard_if_empty()
    return status


def _start(
    request: SearchRequest, console: Console, account: Account, searches: list[Prepared], hold: leases.Hold
) -> int:
    """Ray and MLflow, which take seconds to start, come in here."""
    from sweeps.tracking.reachable import tracking_problems

    problems = tracking_problems(request.places.tracking_uri)
    if problems:
        return refuse(problems)
    try:
        with ray_and_mlflow(request.places, console, lambda: _cluster_problems(request, searches)) as tracker:
            return _search_and_test(request, console, account, searches, tracker, hold)
    except PlanError as error:
        return refuse(error.problems)


def _cluster_problems(request: SearchRequest, searches: list[Prepared]) -> list[str]:
    """What is wrong with the connected cluster, or with what is asked of it."""
    sweep = Sweep(request.places, request.cpus, request.gpus, gpu_hours=request.gpu_hours)
    return connected_problems(sweep, [search.base for search in searches], instead="--trials or --hours")


def _search_and_test(
    request: SearchRequest,
    console: Console,
    account: Account,
    prepared: list[Prepared],
    tracker: "Tracker",
    hold: leases.Hold,
) -> int:
    """The same on the connected cluster. Raises PlanError where it is not fit for the searches."""
    from sweeps.cluster import connection as cluster

    problems = _cluster_problems(request, prepared)
    if problems:
        return refuse(problems)
    gpus = cluster.gpus_per_trial(request.gpus)
    searches = open_searches(prepared, gpus)
    update_tracking(console, [], account, tracker)
    checkpoints, setting = Checkpoints(request.checkpoint_every), Setting(request.cpus, gpus)
    options = Options(setting, request.places.data_root, checkpoints, request.compile)
    say(console, standing(searches))
    if not all(search.finished() for search in searches):
        left = _search(searches, console, account, tracker, options, hold)
        if left or not all(search.finished() for search in searches):
            say(console, f"interrupted with {left} trials to continue; run the same command")
            return INTERRUPTED
    without = [search.name for search in searches if search.best() is None]
    for name in without:
        say(console, f"FAILED {name}: no trial was trained to its end, so there is no best configuration")
    winners = finals(request, searches, account)
    study = (finals_study(request, searches),)
    studies: dict[Cell, tuple[str, ...]] = {cell: study for cells in winners.values() for cell in cells}
    account.plan(studies)
    failed, interrupted = _test(studies, console, account, tracker, options)
    if interrupted:
        say(console, f"interrupted with {interrupted} cells to go; run the same command")
        return INTERRUPTED
    update_tracking(console, work_items(account, studies), account, tracker)
    for line in report(request.places, searches, winners, account, tracker):
        say(console, line)
    return SOME_FAILED if failed or without else 0


def _search(
    searches: list["Search"],
    console: Console,
    account: Account,
    tracker: "Tracker",
    options: Options,
    hold: leases.Hold,
) -> int:
    """Search until every budget is spent or the user interrupts. Returns how many trials have not ended."""
    from sweeps.driver.driver import run
    from sweeps.search.source import SearchSource

    source = SearchSource(searches, account, lambda line: say(console, line))
    source.enter_left_out(tracker)
    outcome = run(source, account, tracker, options, lambda note: say(console, f"note: {note}"), hold)
    if outcome.untracked:
        refused = counted(outcome.untracked, "write")
        say(console, f"note: MLflow did not accept {refused} about trials; the Optuna storage has them all")
    return len(outcome.interrupted)


def _test(
    studies: dict[Cell, tuple[str, ...]], console: Console, account: Account, tracker: "Tracker", options: Options
) -> tuple[int, int]:
    """Train and test the winners that are not finished, and that no other driver is training. Returns how many failed
    and how many are to go."""
    with account.hold(studies, lost=lambda: stop_for_another(console)) as hold:
        items = work_items(account, studies)
        wanted = [item for item in items if item.status.state != FINISHED]
        to_train = [item for item in wanted if item.cell.cell_id in hold.held]
        left = len(wanted) - len(to_train)
        if left:
            say(console, left_to(left, hold.others.values()))
        if not to_train:
            return 0, left
        say(console, f"training {counted(len(to_train), 'cell')} of the best configurations, to be tested")
        source, outcome = train_items(items, to_train, console, account, tracker, options, hold)
    return len(source.failed), len(outcome.interrupted) + left
