"""How cells are trained, and what came of it."""

from dataclasses import dataclass, field
from pathlib import Path

from relvit.cell import Cell
from sweeps.account.failures import Setting


@dataclass(frozen=True)
class Checkpoints:
    """When checkpoints are written and how many are kept, as `relvit.train.train` takes it."""

    every: int | None = None
    minutes: float | None = None
    keep: int = 2


@dataclass(frozen=True)
class Options:
    """How cells are trained. compile: of steps, as `relvit.train.train` takes it; hours, gpu_hours: the budget,
    None for no limit; keep_pretrainings: whether the weights of a pre-training stay when no planned cell needs them any
    more."""

    setting: Setting
    data_root: Path
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    compile: str = "auto"
    hours: float | None = None
    gpu_hours: float | None = None
    keep_pretrainings: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a sweep: cells that were interrupted or never begun; whether the budget stopped it; how many
    writes MLflow did not take."""

    interrupted: list[Cell]
    seconds: float
    out_of_budget: bool = False
    untracked: int = 0
