"""The account of cells: what was planned, is running, is finished or failed, and why. The truth about what is done.

Under the storage path, a folder that every node sees or a place in an object store:
  account.json           says what this folder is, and in which form
  studies/STUDY.json     what was planned: every cell of the study that any command has asked for
  drivers/               who holds which cells now (sweeps/account/leases.py)
  cells/CELL_ID/cell.json     the cell's fields
  cells/CELL_ID/state.json    its state and the events that led to it, written by the driver that holds it
  cells/CELL_ID/history.json  the rows of metrics of a cell that has ended
  cells/CELL_ID/*.pt          its checkpoints, written by the trial that trains it
All but the checkpoints can be read without torch, Ray or MLflow.
"""

import json
import logging
import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from relvit.cell import FIELDS, LATER_FIELDS, TASKS, Cell
from relvit.files import Location, remove_leftovers, write_atomic
from relvit.messages import first_line
from relvit.vocabulary import LAST_PHASE, TEST
from sweeps.account import leases

_LOGGER = logging.getLogger(__name__)

PLANNED, RUNNING, FINISHED, FAILED = "planned", "running", "finished", "failed"
# What becomes of a trial of a hyperparameter search: stopped early, or trained to its last epoch but never tested.
PRUNED, SEARCHED = "pruned", "searched"
_WEIGHTS = {task.weight_field for task in TASKS.values()}
STATES = {PLANNED, RUNNING, FINISHED, FAILED, PRUNED, SEARCHED}

FORMAT_VERSION = 1  # of the files under a storage path; raised when older programs could not read them
_EVENTS_KEPT = 100

# What a folder may hold that is not yet an account: what the analysis, the plan or a benchmark left there first.
_HARMLESS = {"analysis", "benchmarks", "calibration.json", "drivers", "studies"}


def _is_text(value: Any) -> bool:
    # JSON can hold a lone surrogate, which nothing can write.
    return isinstance(value, str) and not any("\ud800" <= each <= "\udfff" for each in value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


# What state.json holds, by name.
_ENTRY: dict[str, Callable[[Any], bool]] = {
    "state": lambda value: isinstance(value, str) and value in STATES,
    "reason": _is_text,
    "failure": _is_text,
    "changed": _is_number,
    "micro_batches": lambda value: _is_count(value) and value > 0,
    "peak_gpu_bytes": _is_count,
    "data_fingerprint": _is_text,
    "origin": lambda value: isinstance(value, dict) and all(map(_is_text, (*value, *value.values()))),
    "events": lambda value: isinstance(value, list) and all(isinstance(event, list) for event in value),
}


_PHASES = (*LAST_PHASE.values(), TEST)


def _is_row(row: Any) -> bool:
    """Whether it is a row of metrics, as `relvit.train.train` yields it."""
    if not isinstance(row, dict) or not _is_count(row.get("epoch")) or row.get("phase") not in _PHASES:
        return False
    return all(name.isidentifier() and _is_number(value) for name, value in row.items() if name != "phase")


@dataclass(frozen=True)
class Status:
    """Where a cell stands.

    epoch: epochs in its newest checkpoint; reason and failure: why it failed and the class of that
    (sweeps/account/failures.py); changed: Unix time; micro_batches: parts of a batch that it is trained in;
    peak_gpu_bytes: the most GPU memory that its process was seen to hold, 0 if none or not known; data_fingerprint: of
    the images that it was trained on, "" if not known; origin: with which code, where and by which command it
    was trained, as the tags of its run, empty if not known.
    """

    state: str
    epoch: int = 0
    reason: str = ""
    failure: str = ""
    changed: float = 0.0
    micro_batches: int = 1
    peak_gpu_bytes: int = 0
    data_fingerprint: str = ""
    origin: Mapping[str, str] = field(default_factory=dict, hash=False)


def account_id(storage: Location) -> str:
    """That of the account under a storage path; empty where there is none, or one of an earlier version."""
    try:
        known = json.loads((storage / "account.json").read_text()).get("id", "")
    except (OSError, ValueError, AttributeError):
        return ""
    return known if isinstance(known, str) else ""


class Account:
    """The account under one storage path. A driver enters only what it holds: see `hold`."""

    def __init__(self, storage: Location):
        self.storage = storage.absolute()
        self._known: dict[str, dict[str, Any]] = {}

    def check(self) -> list[str]:
        """What is wrong with the storage path, one sentence each; makes the folder if it is not there."""
        problems = self.look()
        if problems:
            return problems
        try:
            self.storage.mkdir(parents=True, exist_ok=True)
            probe = self.storage / f".probe-{time.time_ns()}"
            write_atomic(probe, b"probe")
            probe.unlink()
            self._make()
        except OSError as error:
            return [f"the storage path {self.storage} cannot be written: {_cause(error)}; {remedy(error)}"]
        return self._shut_folders()

    def _make(self) -> None:
        marker = self.storage / "account.json"
        if not marker.exists():
            with self._alone_with("account"):
                if not marker.exists():  # else another driver has made it meanwhile
                    what = {"what": "relvit sweeps, account of cells", "form": FORMAT_VERSION, "id": uuid.uuid4().hex}
                    _write_json(marker, what)

    def discard_if_empty(self) -> None:
        """Remove what `check` made, where nothing was planned and nobody is at work: a request was refused."""
        entered = (self.storage.glob(pattern) for pattern in ("studies/*", "cells/*", "drivers/*.json"))
        if any(True for paths in entered for _ in paths):
            return
        with suppress(OSError):  # what cannot be removed does no harm
            (self.storage / "account.json").unlink(missing_ok=True)
            if isinstance(self.storage, Path):
                for folder in (self.storage / "drivers", self.storage):
                    if folder.is_dir():
                        folder.rmdir()

    def _shut_folders(self) -> list[str]:
        """Folders that another user made for himself alone: what lies there could not be continued."""
        if not isinstance(self.storage, Path):
            return []
        folders = [self.storage / "studies", self.storage / "drivers", *self.storage.glob("cells/*")]
        shut = [path for path in folders if path.is_dir() and not os.access(path, os.W_OK | os.X_OK)]
        if not shut:
            return []
        return [
            f"{len(shut)} folders under the storage path {self.storage} cannot be written by this user, among them "
            f"{shut[0]}: to share a storage path, give its folders to a group (chgrp -R GROUP {self.storage}; "
            f"chmod -R g+rwX {self.storage}; find {self.storage} -type d -exec chmod g+s {{}} +) and have each of its "
            "users set umask 002"
        ]

    def look(self) -> list[str]:
        """As `check`, but only as far as it shows without writing: nothing is made."""
        try:
            return self._foreign()
        except OSError as error:
            return [f"the storage path {self.storage} cannot be read: {_cause(error)}; {remedy(error)}"]

    def _foreign(self) -> list[str]:
        """Why the folder must be left alone: it is something else, or another version's. Nothing is written."""
        marker = self.storage / "account.json"
        if marker.exists():
            try:
                form = json.loads(marker.read_text())["form"]
            except (ValueError, LookupError, TypeError, IsADirectoryError):
                form = None
            if type(form) is not int:
                return [f"{marker} is not an account of cells; choose another place: --storage"]
            if form != FORMAT_VERSION:
                age = "a newer" if form > FORMAT_VERSION else "an older"
                return [
                    f"{marker} is the account of {age} version of this project (form {form}, this one writes "
                    f"{FORMAT_VERSION}); use that version, or another place: --storage"
                ]
        elif self.storage.is_dir():
            strangers = sorted(
                path.name
                for path in self.storage.iterdir()
                if path.name not in {"cells", *_HARMLESS} and not path.name.startswith(".")
            )
            if strangers:
                some = ", ".join(strangers[:3]) + (", ..." if len(strangers) > 3 else "")
                return [f"{self.storage} holds other files ({some}) and no account of cells; give another: --storage"]
        unreadable = leases.unreadable(self.storage / "drivers")
        if unreadable:
            return [
                f"{unreadable[0]} is not the lease of a driver that this version knows: remove it when no driver is "
                "running there, or use another place: --storage"
            ]
        return self._other_fields()

    def _other_fields(self) -> list[str]:
        """Cells that are not this version's: a sample of those that were begun, and all that were planned."""
        begun = next(iter(self.storage.glob("cells/*/cell.json")), None)
        for path in filter(None, (begun, *self.storage.glob("studies/*.json"))):
            try:
                content = json.loads(path.read_text())
                cells = [content] if path == begun else list(content.values())
                differing = set().union(*map(_differing, cells))
                if not differing:
                    [Cell(**cell) for cell in cells if _are_known(cell)]
            except (ValueError, AttributeError, TypeError, IsADirectoryError) as error:
                return [
                    f"{path} does not hold cells of this project ({first_line(error)}): remove it if it was damaged "
                    "(the same command enters again what was planned), or use another place: --storage"
                ]
            if differing:
                return [
                    f"{self.storage} holds cells of another version of this project ({path.parent.name}/{path.name}), "
                    f"which differ in {', '.join(sorted(differing))}; use that version, or another place: --storage"
                ]
        return []

    def hold(self, cells: Iterable[Cell], lost: Callable[[], None]) -> AbstractContextManager[leases.Hold]:
        """Hold the cells that no other living driver holds (sweeps/account/leases.py)."""
        return leases.hold(self.storage / "drivers", [cell.cell_id for cell in cells], lost)

    def apparently_held(self) -> set[str]:
        """Ids of the cells at which some driver seems to be at work now."""
        return leases.apparently_held(self.storage / "drivers")

    def plan(self, studies: Mapping[Cell, tuple[str, ...]]) -> None:
        """Enter what was asked for. studies: by cell, the names of its studies."""
        planned: dict[str, dict[str, Any]] = {}
        for cell, names in studies.items():
            for name in names:
                planned.setdefault(name, {})[cell.cell_id] = cell.as_dict()
        for name, cells in planned.items():
            path = self.storage / "studies" / f"{name}.json"
            if cells.keys() <= read_json(path, {}).keys():
                continue
            with self._alone_with(f"study {name}"):  # two drivers that start at once each add to what the other wrote
                _write_json(path, read_json(path, {}) | cells)

    def planned(self) -> dict[Cell, tuple[str, ...]]:
        """All that was ever asked for, as `plan` takes it, but for cells of tasks in a file that was not given here."""
        studies: dict[Cell, list[str]] = {}
        paths: list[Location] = [*self.storage.glob("studies/*.json")]
        for path in sorted(paths, key=lambda path: path.name):
            for fields in read_json(path, {}).values():
                if _are_known(fields):
                    studies.setdefault(Cell(**fields), []).append(path.stem)
        return {cell: tuple(names) for cell, names in studies.items()}

    @contextmanager
    def _alone_with(self, what: str) -> Iterator[None]:
        """No other driver is in such a block for the same thing."""
        while True:
            with leases.hold(self.storage / "drivers", [what], lost=lambda: None) as hold:
                if hold.held:
                    yield
                    return
            time.sleep(0.1)

    def folder(self, cell: Cell) -> Location:
        """Where the cell's files are."""
        return self.storage / "cells" / cell.cell_id

    def status(self, cell: Cell) -> Status:
        """Where the cell stands, by the account."""
        entry = self._entry(cell)
        if not entry:
            return Status(PLANNED)
        known = {name: entry[name] for name in Status.__dataclass_fields__ if name in entry}
        return Status(**{**known, "epoch": self._checkpointed_epoch(cell)})

    def statuses(self, cells: Iterable[Cell]) -> dict[Cell, Status]:
        """Where each of the cells stands."""
        cells = list(cells)
        if isinstance(self.storage, Path):
            return {cell: self.status(cell) for cell in cells}
        with ThreadPoolExecutor(32) as pool:  # a store answers slowly, and many at once
            return dict(zip(cells, pool.map(self.status, cells)))

    def mark(self, cell: Cell, state: str, reason: str = "", **details: Any) -> None:
        """Enter a new state. details: other fields of Status that are not to be neutral."""
        entry = asdict(Status(state, reason=reason, changed=time.time(), **details))
        event = [entry["changed"], state, reason, platform.node()]
        before = self._entry(cell)
        if not before:
            _keep_damaged(self.folder(cell) / "state.json")
        events = [*before.get("events", []), event][-_EVENTS_KEPT:]
        if not (self.folder(cell) / "cell.json").exists():
            _write_json(self.folder(cell) / "cell.json", cell.as_dict())
        entry = {**entry, "events": events}
        del entry["epoch"]  # the checkpoints tell
        _write_json(self.folder(cell) / "state.json", entry)
        self._known[cell.cell_id] = entry

    def keep_history(self, cell: Cell, history: list[dict[str, Any]]) -> None:
        """Keep the rows of metrics of a cell that has ended."""
        _write_json(self.folder(cell) / "history.json", history)

    def history(self, cell: Cell) -> list[dict[str, Any]]:
        """The rows of a cell that has ended; none where it ended without, or they are damaged."""
        path = self.folder(cell) / "history.json"
        rows = read_json(path, [])
        if not all(map(_is_row, rows)):
            _warn_of(path, "not all of it are rows of metrics")
            return []
        return rows

    def is_published(self, cell: Cell) -> bool:
        """Whether the weights of this pre-training are there to be taken over."""
        return any(True for _ in self.folder(cell).glob("final-*.pt"))

    def drop_pretraining(self, cell: Cell) -> None:
        """Remove the weights of a pre-training that no cell will take over any more."""
        folder = self.folder(cell)
        weights: list[Location] = [*folder.glob("final-*.pt")]
        for path in weights:
            path.unlink(missing_ok=True)
        remove_leftovers(folder)
        if isinstance(folder, Path) and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def pretraining_users(self) -> dict[Cell, list[Cell]]:
        """For each pre-training that is not itself a planned cell, the planned cells that take it over."""
        planned = self.planned()
        users: dict[Cell, list[Cell]] = {}
        for cell in planned:
            if cell.has_pretraining and cell.pretraining() not in planned:
                users.setdefault(cell.pretraining(), []).append(cell)
        return users

    def drop_unused_pretrainings(self, known: Mapping[Cell, Status] | None = None) -> None:
        """Remove the weights of every pre-training of which all planned users are finished, whoever trained them.

        known: statuses that were just read. While a search is at work the weights stay: its trials, which are not
        planned, may share them.
        """
        published = {path.parent.name for path in self.storage.glob("cells/*/final-*.pt")}
        users = {shared: cells for shared, cells in self.pretraining_users().items() if shared.cell_id in published}
        unused = [shared for shared, cells in users.items() if self.are_finished(cells, known)]
        if unused and not any(name.startswith("search ") for name in self.apparently_held()):
            for shared in unused:
                self.drop_pretraining(shared)

    def are_finished(self, cells: Iterable[Cell], known: Mapping[Cell, Status] | None = None) -> bool:
        """Whether all of the cells are finished. known: statuses that need not be read again."""
        known, cells = known or {}, list(cells)
        if any(known[cell].state != FINISHED for cell in cells if cell in known):
            return False
        rest = self.statuses(cell for cell in cells if cell not in known)
        return all(status.state == FINISHED for status in rest.values())

    def _entry(self, cell: Cell) -> dict[str, Any]:
        """The content of state.json, {} where it is damaged; of a cell that this driver has entered, what it entered
        last."""
        if cell.cell_id in self._known:
            return self._known[cell.cell_id]
        path = self.folder(cell) / "state.json"
        entry = read_json(path, {})
        wrong = [name for name, fits in _ENTRY.items() if name in entry and not fits(entry[name])]
        if wrong or (entry and "state" not in entry):
            _warn_of(path, f"{wrong[0]!r} cannot be {entry[wrong[0]]!r:.60}" if wrong else "it names no state")
            return {}
        return entry

    def _checkpointed_epoch(self, cell: Cell) -> int:
        stems = (path.stem.split("-")[0] for path in self.folder(cell).glob("*-*.pt"))
        return max((cell.total_epochs if stem == "final" else int(stem) for stem in stems), default=0)


def count_states(statuses: Iterable[Status]) -> dict[str, int]:
    """How many cells are in each state; the states of searches only where there are such cells."""
    counts = dict.fromkeys((FINISHED, RUNNING, FAILED, PLANNED), 0)
    for status in statuses:
        counts[status.state] = counts.get(status.state, 0) + 1
    return counts


def _are_known(cell: Mapping[str, Any]) -> bool:
    """Whether a cell's tasks are known here: a file of them may not have been given."""
    return not cell.get("tasks_digest") or set(cell["tasks"].split("+")) <= set(TASKS)


def _differing(cell: Mapping[str, Any]) -> set[str]:
    """Fields of a cell that this version has not, and those that it cannot do without."""
    fields = set(cell) if _are_known(cell) else {name for name in cell if not name.endswith("_weight")} | _WEIGHTS
    return (fields - set(FIELDS)) | (set(FIELDS) - set(LATER_FIELDS) - fields)


# What an object store says, and the remedy.
_REMEDIES = {
    "NETWORK_CONNECTION": "check endpoint_override and scheme (http or https) in --storage, and that this machine may "
    "reach the store",
    "NO_SUCH_BUCKET": "make the bucket, or name another with --storage",
    "INVALID_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID, or the key of the profile, is not one that the store knows",
    "HTTP status 400": "where the bucket and the region are right, the keys have expired: get new ones, "
    "AWS_SESSION_TOKEN among them",
    "SIGNATURE_DOES_NOT_MATCH": "AWS_SECRET_ACCESS_KEY, or the profile's, does not go with the key's id",
    "ACCESS_DENIED": "the store does not know the keys that it was given, or they may not do this: check "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the machine's role, and the bucket's policy",
}


def remedy(error: Exception) -> str:
    """What to do about a storage path that cannot be used."""
    return next((what for said, what in _REMEDIES.items() if said in str(error)), "choose another: --storage")


def _cause(error: OSError) -> str:
    return error.strerror or str(error)


def read_json(path: Location, empty: Any) -> Any:
    """What the file holds; `empty` where it is not there, or is damaged, of which a warning tells."""
    try:
        value = json.loads(path.read_text())
        if isinstance(value, type(empty)):
            return value
        why = f"it holds {type(value).__name__}, not {type(empty).__name__}"
    except FileNotFoundError:
        return empty
    except (ValueError, RecursionError, IsADirectoryError) as error:
        why = first_line(error)
    _warn_of(path, why)
    return empty


@cache
def _warn_of(path: Location, why: str) -> None:
    _LOGGER.warning("%s is damaged (%s) and is ignored; the files beside it are used", path, why)


def _keep_damaged(path: Location) -> None:
    """Before a file is written anew that could not be read: what is left of it stays, under another name."""
    if path.is_file():
        write_atomic(path.with_name(f"{path.name}.damaged"), path.read_bytes())


def _write_json(path: Location, value: Any) -> None:
    if isinstance(path, Path) and path.is_dir():  # which nothing of ours made, and no file can replace
        path.rename(path.with_name(f"{path.name}.{time.time_ns()}.damaged"))
    write_atomic(path, json.dumps(value, indent=1).encode())
