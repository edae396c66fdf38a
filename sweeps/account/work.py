"""What a driver is to train: a cell with what the account says of it, read once and handed on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from relvit.cell import Cell
from sweeps.account.account import FINISHED, PLANNED, Account, Status


@dataclass(frozen=True)
class WorkItem:
    """A cell, its status when its driver took hold of it, the studies that its run is tagged with, and the run's name
    and description; empty where the tracker is to find a name.

    What only a search does: test=False ends the training with the last epoch and leaves the test split alone;
    stop_after ends it with this epoch, counted over all phases; forked: the cell whose checkpoint it goes on from;
    tags: of its run, beside the usual ones.
    """

    cell: Cell
    status: Status = Status(PLANNED)
    studies: tuple[str, ...] = ()
    test: bool = True
    stop_after: int | None = None
    forked: Cell | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    note: str = ""

    @property
    def is_foreign(self) -> bool:
        """Whether an ablation has finished this cell: a search reads its rows and leaves account and run alone."""
        return not self.test and self.status.state == FINISHED

    @property
    def is_past_first_phase(self) -> bool:
        """Whether its checkpoints show that it needs no pre-training any more."""
        return self.forked is not None or self.status.epoch >= self.cell.pretrain_epochs


def work_items(account: Account, studies: Mapping[Cell, tuple[str, ...]]) -> list[WorkItem]:
    """An item for each cell; reads the status of each once. studies: as `Account.plan` takes them."""
    return [WorkItem(cell, status, studies[cell]) for cell, status in account.statuses(studies).items()]
