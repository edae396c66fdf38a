"""One row per task: what it is called, what it predicts, how it is trained and measured. Standard library only.

A new task is one more row and the functions that it names; `relvit.cell.add_task` adds a row at run time. Its weight in
a cell, its value in recipes and search spaces, its metrics, columns and curves follow from the row. The paper's Table 4
keeps the combinations of PAPER_TASKS, whatever is added.

B batch, N patches, D channels, K outputs.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name
from typing import Any

PAIRS, PATCHES = "pairs", "patches"


@dataclass(frozen=True)
class Function:
    """The function at "MODULE:NAME", imported when it is first called: reading a row must not load torch."""

    path: str

    def __call__(self, *arguments: Any) -> Any:
        return _resolve(self.path)(*arguments)


_resolve = cache(resolve_name)


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a `Function` stands for, imported; any other as it is."""
    return _resolve(function.path) if isinstance(function, Function) else function


@dataclass(frozen=True)
class Metric:
    """What a task's head reaches. Called with predictions and target it gives a scalar, a mean over the batch's images.

    suffix: of its name in rows and columns, "accuracy" in "sprel_accuracy"; unit: in a table's heading; axis: in a
    figure's.
    """

    suffix: str
    unit: str
    axis: str
    higher_is_better: bool
    function: Callable[[Any, Any], Any]

    def __call__(self, prediction: Any, target: Any) -> Any:
        return self.function(prediction, target)


ACCURACY = Metric("accuracy", "Acc", "accuracy (%)", True, Function("relvit.metrics:accuracy"))
MSE = Metric("mse_x100", "MSE", "MSE × 100", False, Function("relvit.metrics:mse_x100"))
OFFSET_ERROR = Metric("error_x100", "Error", "offset error × 100", False, Function("relvit.metrics:offset_error_x100"))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A self-supervised objective over the patch tokens of one image.

    name: in cells, metrics and columns; title: in tables and figures.
    over: what gets a prediction and a target, PAIRS of patches or PATCHES.
    outputs: numbers predicted for each, of the head that goes with `over` (Eq. 8 or 9); 0: as many as patches.
    target: (height, width) of the grid to the target of images in order: [N, N] for PAIRS; [N], or [N, ...], for
        PATCHES. With of_images: (images [B, 3, H, W] as the model sees them, height, width) to that with [B] in front.
    loss: predictions [B, N, N, K] or [B, N, K], and the target, to a scalar.
    head: (D, N) to the module that predicts, where it is another than that of `over`.
    weight: of the loss in the sum, unless a recipe has another; section 2.2: "we minimize the sum of all the losses".
    weight_range: where a search looks for it.
    digest: of the file that the row comes from (`relvit.task_files`); "" for a row of this project.
    """

    name: str
    title: str
    over: str
    target: Callable[..., Any]
    loss: Callable[[Any, Any], Any]
    metric: Metric
    outputs: int = 0
    head: Callable[[int, int], Any] | None = None
    of_images: bool = False
    weight: float = 1.0
    weight_range: tuple[float, float] = (0.1, 10.0)
    digest: str = ""

    @property
    def weight_field(self) -> str:
        """The field of a cell that holds its weight."""
        return f"{self.name}_weight"

    @property
    def metric_name(self) -> str:
        """Its metric in rows and columns, without phase and split: "sprel_accuracy"."""
        return f"{self.name}_{self.metric.suffix}"

    @property
    def has_pair_head(self) -> bool:
        """Whether the field `pair_head` chooses its head."""
        return self.over == PAIRS and self.head is None


# What is known of a row without its functions, and of its metric.
_DESCRIBED = ("name", "title", "over", "outputs", "of_images", "weight", "weight_range", "digest")
_DESCRIBED_METRIC = ("suffix", "unit", "axis", "higher_is_better")


def describe(names: Iterable[str]) -> str:
    """The rows of these tasks without their functions, as text for `described`: enough to set their numbers."""
    rows = [TASKS[name] for name in names]
    return json.dumps(
        [{**{each: getattr(row, each) for each in _DESCRIBED}, "metric": _described_metric(row.metric)} for row in rows]
    )


def _described_metric(metric: Metric) -> dict[str, Any]:
    return {each: getattr(metric, each) for each in _DESCRIBED_METRIC}


def described(text: str) -> list[Task]:
    """Rows from `describe`'s text. Nothing can be trained with them: their functions are not here. Raises ValueError
    for what is no such text."""
    absent = Function("relvit.tasks:_absent")
    try:
        return [
            Task(
                **{each: fields[each] for each in _DESCRIBED} | {"weight_range": tuple(fields["weight_range"])},
                target=absent,
                loss=absent,
                metric=Metric(**{each: fields["metric"][each] for each in _DESCRIBED_METRIC}, function=absent),
            )
            for fields in json.loads(text)
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"no description of tasks: {text[:200]}") from error


def _absent(*arguments: Any) -> Any:
    raise ValueError("the functions of this task are in a file that was not given: --tasks-file")


_ROWS = (
    Task(
        name="sprel",
        title="SpRel",
        over=PAIRS,
        outputs=9,
        target=Function("relvit.targets:spatial_relations"),
        loss=Function("relvit.losses:spatial_relation_loss"),
        metric=ACCURACY,
    ),
    Task(
        name="dist",
        title="Dist",
        over=PAIRS,
        outputs=1,
        target=Function("relvit.targets:distances"),
        loss=Function("relvit.losses:distance_loss"),
        metric=MSE,
    ),
    Task(
        name="ang",
        title="Ang",
        over=PAIRS,
        outputs=1,
        target=Function("relvit.targets:angles"),
        loss=Function("relvit.losses:angle_loss"),
        metric=MSE,
    ),
    Task(
        name="abspos",
        title="AbsPos",
        over=PATCHES,
        target=Function("relvit.targets:positions"),
        loss=Function("relvit.losses:absolute_position_loss"),
        metric=ACCURACY,
    ),
    # The rival in Table 3: dense relative localisation (Liu et al., NeurIPS 2021). It stands alone, beside
    # classification.
    Task(
        name="drloc",
        title="L_drloc",
        over=PATCHES,
        head=Function("relvit.heads:PairOffsetHead"),
        target=Function("relvit.targets:coordinates"),
        loss=Function("relvit.losses:dense_relative_localisation_loss"),
        metric=OFFSET_ERROR,
        weight=0.5,  # lambda for Swin; T2T-ViT has another, in relvit.paper
        weight_range=(0.05, 1.0),
    ),
)
TASKS: dict[str, Task] = {task.name: task for task in _ROWS}
# The four tasks of section 2.1, in the column order of Table 4 read from right to left.
PAPER_TASKS = ("sprel", "dist", "ang", "abspos")
DRLOC = "drloc"


def __getattr__(name: str) -> Any:
    # What this module held before it could be read without torch.
    moved = {"Targets": "targets"} | dict.fromkeys(
        ("accuracy", "mse_x100", "offset_error_x100", "majority_rate"), "metrics"
    )
    if name not in moved:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resolve_name(f"relvit.{moved[name]}:{name}")
