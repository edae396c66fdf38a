"""What decides the next training: the interface between the driver and a plan, a search or a population."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from relvit.cell import Cell
from sweeps.account.work import WorkItem


class Verdict(Enum):
    """What becomes of a trial after a row: it trains on, has ended, or stops until its source hands it out again."""

    CONTINUE = "continue"
    STOP = "stop"
    WAIT = "wait"


@dataclass(frozen=True)
class Ending:
    """What became of a cell, as the account and MLflow are to hear of it.

    state: of the account; empty where the cell only waits. failure: its class; tags: of the run. then: calls that
    follow in the account once the state is entered. taken_up: the studies of a run that has to be taken up first and
    given `rows`, because this driver did not train the cell.
    """

    cell: Cell
    state: str = ""
    reason: str = ""
    failure: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    then: tuple[Callable[[], Any], ...] = ()
    taken_up: tuple[str, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()


class Source(ABC):
    """Says what to train next and hears what comes of it, in the driver's one thread."""

    draws_late = False  # True: nothing is handed out before there is room for it
    studies: frozenset[str] = frozenset()  # those whose pages in MLflow show how far they are

    @abstractmethod
    def begin(self, write: Callable[..., None]) -> None:
        """Called before the first trial. `write(call, *arguments)` carries out changes of the storage in order, and
        again while the storage does not take them."""

    @abstractmethod
    def next(self, may_start: Callable[[WorkItem], bool]) -> WorkItem | None:
        """The next item, None while there is none or all must wait. Raises OSError, and loses nothing, while the
        storage is away."""

    @abstractmethod
    def is_done(self) -> bool:
        """Whether nothing is left to hand out, now or later."""

    @abstractmethod
    def started(self, item: WorkItem) -> None:
        """A trial of the item has started, for the first time or again; its rows come from the first epoch on."""

    @abstractmethod
    def heard(self, item: WorkItem, row: dict[str, Any]) -> Verdict:
        """Take a row and decide."""

    def waits(self, item: WorkItem) -> Ending:
        """The trial has stopped after Verdict.WAIT."""
        raise NotImplementedError

    @abstractmethod
    def ended(self, item: WorkItem, row: dict[str, Any], failure: str = "", reason: str = "") -> Ending:
        """The trial has ended after Verdict.STOP, or failed for good. row: the last, empty where there was none."""

    def take_endings(self) -> Iterable[Ending]:
        """Endings since the last time of cells that no trial trains now."""
        return ()

    @abstractmethod
    def stopped(self) -> list[Cell]:
        """The driver stops. Returns the cells that have not ended."""

    def stop_reason(self, item: WorkItem) -> str:
        """Why a trial that is stopped with the driver has not ended."""
        return "the sweep was stopped"
