"""One cell of a sweep: what is trained and how, as one flat, frozen record. Standard library only.

The field names are the only names these data have: in search spaces, Ray, MLflow parameters, Parquet columns and
tables. A field that cannot act in a given cell must hold its neutral value (`Cell` refuses anything else, and
`make_cell` fills the neutral values in), so that two cells that train the same thing are the same record.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_type_hints

from relvit.messages import unknown
from relvit.specs import (  # noqa: F401  (part of this module for its users)
    BACKBONES,
    TIMM,
    Spec,
    SwinSpec,
    T2TSpec,
    TimmSpec,
    ViTSpec,
    backbone_spec,
)
from relvit.tasks import DRLOC, PAPER_TASKS, TASKS, Task, described
from relvit.vocabulary import LAST_PHASE

NONE = "none"  # no tasks, no pair head, no pre-training data set

# joint: one phase on classification and the tasks together, the paper's "downstream-only" (Table 3).
# pretrain_finetune: train on the tasks (without tasks: on classification), then on classification (Tables 2 and 4).
# pretrain_probe: the same first phase, then a linear classifier on frozen features (not in the paper).
# pretrain: the first phase alone; what cells with the same first phase share.
PROTOCOLS = tuple(LAST_PHASE)

HEADS = ("bilinear", "low_rank")
# tf32: float32 whose matrix products have 10 bits of mantissa, on GPUs alone; bf16: matrix products in bfloat16.
PRECISIONS = ("fp32", "tf32", "bf16")
# How steps are compiled, which is no field, as results are the same but for rounding. auto: on a GPU, eager where that
# fails and on a CPU, with a note; always: compiled or refused; never: eager.
COMPILE = ("auto", "always", "never")
# What crops are taken from: images that were brought to image_size before, or whole images at their own size.
CROP_SOURCES = ("resized", "original")
# Which weights of the last phase are tested: those of the best validation accuracy, or the last ones.
SELECTIONS = ("best_val", "last")
# half_cosine: from the end of the warm-up to 0. quarter_cosine: of the published code, counted from the first step.
DECAYS = ("half_cosine", "quarter_cosine")
# timm: as timm starts backbones. published: as the published code does (`relvit.backbones.start_as_published`).
INITIALISATIONS = ("timm", "published")
# How a linear classifier on frozen features is fitted. sgd: on the patches' mean, trained as in fine-tuning. logistic:
# logistic regression run to convergence, on the pooled embedding and on the patches' mean.
PROBES = ("sgd", "logistic")
# Of whole images, one of torchvision's 14 operations each (trivialaugment), or two of fixed magnitude (randaugment).
AUTO_AUGMENTS = (NONE, "trivialaugment", "randaugment")
_OF_PATCHES = ("permute_patches", "patch_crop", "jitter_probability", "jitter_strength", "greyscale_probability")
# What a schedule may change from one epoch to the next: neither the weights' shapes nor the steps an epoch.
SCHEDULABLE = [
    *("learning_rate", "weight_decay", "gradient_clip", "crop_padding", "crop_min_area", "flip_probability"),
    *("sprel_weight", "dist_weight", "ang_weight", "abspos_weight", "drloc_weight"),
    *_OF_PATCHES,
]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is trained and how. Raises ValueError on construction with everything that is wrong, in one message.

    Epochs, not steps; learning rates are the schedule's maximum; probabilities in [0, 1]; sizes in pixels.
    """

    # What is trained.
    dataset: str
    backbone: str
    protocol: str
    tasks: str  # canonical: names of TASKS joined by "+" in their order there; "none": supervised
    tasks_digest: str = ""  # of the files that tasks come from which are not this project's; "": all are
    seed: int  # weights, order, augmentation, and the validation split where the data set has none
    pretrain_dataset: str  # of the first of two phases, usually `dataset`; "none" where there is one phase

    # Images.
    image_size: int
    train_images: int  # how many training images are used, drawn by seed, the same share of each class; 0: all
    # Where classes of `dataset` are learned, as many of these images of each class as have a label, drawn by seed.
    # Pre-training on tasks needs none and uses all.
    labels_per_class: int = 0  # 0: all
    label_share: float = 1.0  # at least one of each class; 1: all
    finetune_image_size: int = 0  # of fine-tuning, a position embedding being interpolated; 0: image_size

    # Optimisation.
    pretrain_epochs: int  # 0 where the protocol is joint
    epochs: int  # of the phase that classifies; 0 where there is pre-training alone
    warmup_epochs: int  # in each phase
    batch_size: int
    pretrain_learning_rate: float  # of the first of two phases; 0 where there is none
    learning_rate: float  # of the phase that classifies; 0 where there is pre-training alone
    weight_decay: float
    gradient_clip: float  # maximum norm; 0: none
    drop_path: float
    dropout: float = 0.0  # after the position embedding, attention and MLP of every block
    label_smoothing: float = 0.0  # where classes are learned by steps, as are mixup and cutmix
    ema_decay: float = 0.0  # of the moving average of the last phase's weights, which is validated and tested; 0: none
    precision: str
    selection: str
    # Changes within the phase that classifies: "8:learning_rate=0.0004,weight_decay=0.1;16:..." sets these fields once
    # 8 of its epochs are done. Fields are SCHEDULABLE ones in their order there; "none": they hold throughout.
    schedule: str = NONE
    decay: str = "half_cosine"  # of the learning rate after the warm-up, in each phase
    initialisation: str = "timm"
    val_share: float = 0.1  # of train, held out for val where the data set has no val split; 0: none is
    keep_classifier: bool = False  # fine-tune a supervised pre-training's classifier, not a fresh one
    probe: str = "sgd"

    # Augmentation of whole images, in every phase.
    crop_padding: int  # black border around the image before a random crop of its own size; 0: no crop
    crop_min_area: float  # random resized crop of at least this share of the area; 1: none
    flip_probability: float
    crop_from: str = CROP_SOURCES[0]
    auto_augment: str = NONE
    erase_probability: float = 0.0  # of a random box of each image
    mixup: float = 0.0  # of Beta(mixup, mixup), by which a batch is blended with itself in reverse; 0: none
    cutmix: float = 0.0  # of Beta(cutmix, cutmix), by which boxes are cut out of each other; with both, at random

    # Self-supervised tasks. Neutral where tasks is "none".
    pair_head: str  # Eq. 8: "bilinear", or "low_rank" as in the published code; "none" without pair tasks
    sprel_weight: float  # weights of Eq. 10-13 in the sum; 0 exactly where the task is off
    dist_weight: float
    ang_weight: float
    abspos_weight: float
    drloc_weight: float
    pretrain_position_embedding: bool  # in the first of two phases; False where there is one phase
    permute_patches: bool  # shuffle patches, and labels with them, while tasks are trained
    patch_crop: float  # each patch is cropped to this share of its side and resized back; 1: none
    jitter_probability: float  # of colour jitter on each patch; 0: none
    jitter_strength: float  # of brightness, contrast and saturation; hue gets a quarter of it
    greyscale_probability: float  # of each patch
    augment_normalised: bool = False  # jitter and grey after normalisation, jittered patches clamped to [0, 1]
    mega_grid: int  # pre-train on this many random cells a side, each resized to one patch; 0: on the image's patches

    def __post_init__(self):
        errors = validate(dataclasses.asdict(self))
        if errors:
            raise ValueError("; ".join(errors))
        for name, kind in FIELDS.items():
            if kind is float:  # 1, 1.0 and (for zero) -0.0 are the same setting and must give the same cell_id
                object.__setattr__(self, name, float(getattr(self, name)) + 0.0)

    @property
    def task_list(self) -> tuple[str, ...]:
        """The tasks in canonical order; empty for a supervised cell."""
        return parse_tasks(self.tasks)

    @property
    def method(self) -> str:
        """The name of the row in the paper's tables: "relvit", "drloc", or "supervised" without tasks."""
        if self.tasks == DRLOC:
            return DRLOC
        return "relvit" if self.task_list else "supervised"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def last_image_size(self) -> int:
        """Pixels a side in the phase after which the cell is tested."""
        return self.finetune_image_size or self.image_size

    @property
    def crops_whole_images(self) -> bool:
        """Whether its data sets are kept whole, as `relvit.data.prepare` takes it."""
        return self.crop_from == "original"

    @property
    def patch_size(self) -> int:
        """Pixels a side of a patch."""
        return backbone_spec(self.backbone, self.image_size).patch_size

    @cached_property
    def _schedule_segments(self) -> list[tuple[int, "Cell"]]:
        """From how many epochs of the last phase on, and what holds then."""
        segments = [(0, dataclasses.replace(self, schedule=NONE))]
        for epoch, changes in parse_schedule(self.schedule):
            segments.append((epoch, dataclasses.replace(segments[-1][1], **changes)))
        return segments

    def after(self, epochs: int) -> "Cell":
        """What holds once so many epochs of the last phase are done: the cell without a schedule."""
        return next(cell for start, cell in reversed(self._schedule_segments) if start <= epochs)

    def until(self, epochs: int) -> "Cell":
        """The cell that this one is through so many epochs of its last phase: without what is scheduled after them."""
        kept = [(epoch, changes) for epoch, changes in parse_schedule(self.schedule) if epoch < epochs]
        return dataclasses.replace(self, schedule=format_schedule(kept))

    def changed_after(self, epochs: int, changes: Mapping[str, Any]) -> "Cell":
        """This cell through so many epochs of its last phase, and then with these values of SCHEDULABLE fields.

        Values that hold already are left out; equal to `until(epochs)` where nothing is left. Raises ValueError as
        `Cell` does.
        """
        before = self.until(epochs)
        holds = before.after(epochs)
        new = {name: changes[name] for name in SCHEDULABLE if name in changes and changes[name] != getattr(holds, name)}
        entries = [*parse_schedule(before.schedule), *([(epochs, new)] if new else [])]
        return dataclasses.replace(before, schedule=format_schedule(entries))

    @property
    def has_pretraining(self) -> bool:
        """Whether there is a first phase that other cells may share."""
        return self.protocol != "joint"

    @property
    def last_phase(self) -> str:
        """The phase after which the cell is tested."""
        return LAST_PHASE[self.protocol]

    def phase_of(self, epoch: int) -> str:
        """The phase of an epoch, counted from 1 over all phases."""
        return "pretrain" if self.has_pretraining and epoch <= self.pretrain_epochs else self.last_phase

    def pretraining(self) -> "Cell":
        """The first phase alone: equal for all cells that could share it. Only where `has_pretraining`."""
        return self._pretraining

    @cached_property
    def _pretraining(self) -> "Cell":
        # Labels are those of `dataset`; what is transferred from has all of its own.
        labels = {"labels_per_class": 0, "label_share": 1.0}
        transfer = labels if self.pretrain_dataset != self.dataset else {}
        return make_cell(**{**self.as_dict(), "protocol": "pretrain", **transfer})

    @property
    def total_epochs(self) -> int:
        """Epochs over all phases."""
        return self.pretrain_epochs + self.epochs

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, in order of declaration; without the weights of a file's tasks that are off, so
        that a cell without them is read where that file is not."""
        off = {task.weight_field for task in TASKS.values() if task.digest and task.name not in self.task_list}
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in off}

    @cached_property
    def cell_id(self) -> str:
        """A readable prefix and a digest of every field: the same content has the same name everywhere.

        Fields that came later are left out at their default, so that cells of before keep their names.
        """
        fields = {name: value for name, value in self.as_dict().items() if LATER_FIELDS.get(name) != value}
        content = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(content.encode()).hexdigest()[:10]
        backbone = self.backbone.replace("/", ".")  # the id is the name of a folder
        return f"{self.dataset}-{backbone}-{self.protocol}-{self.tasks}-s{self.seed}-{digest}"


FIELDS: dict[str, type] = get_type_hints(Cell)
# Fields that cells of earlier versions lack, with the value that these had in effect.
LATER_FIELDS: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(Cell) if field.default is not dataclasses.MISSING
}


def add_task(task: Task) -> None:
    """Make a task known, for cells that are planned, trained or read from here on; a row that is known already is none.

    `tasks` may name it then, and cells have its weight, 0 where it is off: every older cell keeps its id. Raises
    ValueError where its name is no name, or is taken.
    """
    if TASKS.get(task.name) == task:
        return
    problem = name_problem(task)
    if problem:
        raise ValueError(problem)
    TASKS[task.name] = task
    _add_weight(task)


def add_described(text: str) -> None:
    """Make the tasks of `relvit.tasks.describe`'s text known, for cells that are read and not trained; those that are
    known stay as they are. Raises ValueError for what is no such text."""
    for task in described(text):
        if task.name not in TASKS:
            add_task(task)


def name_problem(task: Task) -> str:
    """Why a task cannot be added under its name; "" where it can."""
    if not re.fullmatch("[a-z][a-z0-9_]*", str(task.name)):
        return f"a task's name is written with small letters, digits and '_', not {task.name!r}"
    if task.name in (*TASKS, NONE, "classification") or task.weight_field in FIELDS:
        return f"the name {task.name!r} of a task is taken: known are {', '.join(TASKS)}"
    return ""


def digest_of(tasks: Iterable[str]) -> str:
    """The field `tasks_digest` of a cell with these tasks, as they are known here."""
    return "+".join(sorted({TASKS[task].digest for task in tasks} - {""}))


def _add_weight(task: Task) -> None:
    """Give `Cell` the field in place: other modules hold the class already."""
    wider = dataclasses.make_dataclass(
        "Cell", [(task.weight_field, float, 0.0)], bases=(Cell,), frozen=True, kw_only=True
    )
    setattr(Cell, task.weight_field, 0.0)
    for name in ("__dataclass_fields__", "__init__", "__repr__", "__eq__", "__hash__"):
        setattr(Cell, name, getattr(wider, name))
    FIELDS[task.weight_field], LATER_FIELDS[task.weight_field] = float, 0.0
    SCHEDULABLE.append(task.weight_field)


for _task in TASKS.values():
    if _task.weight_field not in FIELDS:
        _add_weight(_task)


def make_cell(**fields: Any) -> Cell:
    """A cell from fields of which some may not apply: those take their neutral value.

    This is how a recipe, which knows a value for every field, serves supervised and joint cells too.
    Raises ValueError as `Cell` does.
    """
    fields = {**fields, **neutral_fields(fields)}
    if not fields.get("tasks_digest") and isinstance(fields.get("tasks"), str):
        fields["tasks_digest"] = digest_of(set(fields["tasks"].split("+")) & TASKS.keys())
    return Cell(**fields)


def task_combinations(tasks: Sequence[str] = PAPER_TASKS) -> list[str]:
    """All subsets of some tasks in Table 4's order: none, the singles, pairs, triples and so on; 16 of the paper's."""
    return [
        "+".join(subset) or NONE for size in range(len(tasks) + 1) for subset in itertools.combinations(tasks, size)
    ]


def parse_tasks(text: str) -> tuple[str, ...]:
    """The tasks named in "sprel+abspos" in canonical order; "none" gives none.

    Raises ValueError for an unknown or repeated task, with the valid ones and the nearest.
    """
    if text == NONE:
        return ()
    names = text.split("+")
    problems = [unknown("task", name, (*TASKS, NONE)) for name in names if name not in TASKS]
    problems += [f"task {name!r} is named twice in {text!r}" for name in TASKS if names.count(name) > 1]
    if DRLOC in names and len(set(names)) > 1:
        problems.append(f"{text!r}: drloc is the rival that the tasks are compared with (Table 3), it stands alone")
    if problems:
        raise ValueError("; ".join(problems))
    return tuple(task for task in TASKS if task in names)


def canonical_tasks(text: str) -> str:
    """The one spelling of a combination: "abspos+sprel" becomes "sprel+abspos". Raises as `parse_tasks`."""
    return "+".join(parse_tasks(text)) or NONE


def parse_schedule(text: str) -> list[tuple[int, dict[str, Any]]]:
    """The entries of a schedule: after how many epochs of the last phase, and what is set then; "none" gives none.

    Raises ValueError for what is no schedule; whether the values suit a cell is for the cell to say.
    """
    if text == NONE:
        return []
    entries: list[tuple[int, dict[str, Any]]] = []
    for part in text.split(";"):
        epoch, colon, settings = part.partition(":")
        pairs = [setting.partition("=") for setting in settings.split(",")]
        if not colon or not epoch.isdecimal() or not all(equals for _, equals, _ in pairs):
            raise ValueError(f"schedule entry {part!r} is not written EPOCH:FIELD=VALUE,FIELD=VALUE")
        for name, _, _ in pairs:
            if name not in SCHEDULABLE:
                raise ValueError(f"schedule entry {part!r}: {unknown('field', name, SCHEDULABLE)}")
        entries.append((int(epoch), {name: parse_value(name, value) for name, _, value in pairs}))
    return entries


def format_schedule(entries: Iterable[tuple[int, Mapping[str, Any]]]) -> str:
    """The one spelling of a schedule: what `parse_schedule` reads."""
    parts = [
        f"{epoch}:" + ",".join(f"{name}={changes[name]!r}" for name in SCHEDULABLE if name in changes)
        for epoch, changes in entries
    ]
    return ";".join(parts) or NONE


def patch_crop_size(patch_size: int, patch_crop: float) -> int:
    """Side in pixels of the crop of a patch: the published code's round(P / 1.15) for patch_crop = 1 / 1.15."""
    return round(patch_size * patch_crop)


def parse_value(field: str, text: str) -> Any:
    """The value of a field as typed on a command line. Raises ValueError for an unknown field or a bad value."""
    if field not in FIELDS:
        raise ValueError(unknown("field", field, FIELDS))
    kind = FIELDS[field]
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{field} must be true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{field} must be of type {kind.__name__}, not {text!r}") from None


def validate(fields: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with the fields of a cell, one sentence each."""
    errors = type_errors(fields)
    if errors:
        return errors
    errors = _name_errors(fields)
    errors += _range_errors(fields)
    if not errors:
        errors += _neutrality_errors(fields)
    if not errors:
        errors += _schedule_errors(fields)
    return errors


def type_errors(fields: Mapping[str, Any]) -> list[str]:
    """What is wrong with the types of those fields of a cell that are given, one sentence each."""

    def fits(value: Any, kind: type) -> bool:
        if kind is float:
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        return type(value) is kind

    return [
        f"{name} must be of type {kind.__name__}, not {fields[name]!r}"
        for name, kind in FIELDS.items()
        if name in fields and not fits(fields[name], kind)
    ]


def _name_errors(fields: Mapping[str, Any]) -> list[str]:
    errors = []
    vocabulary = {
        "protocol": PROTOCOLS,
        "pair_head": (*HEADS, NONE),
        "precision": PRECISIONS,
        "selection": SELECTIONS,
        "crop_from": CROP_SOURCES,
        "auto_augment": AUTO_AUGMENTS,
        "decay": DECAYS,
        "initialisation": INITIALISATIONS,
        "probe": PROBES,
    }
    for field, valid in vocabulary.items():
        if fields[field] not in valid:
            errors.append(unknown(field, fields[field], valid))
    try:
        for field in ("image_size", "finetune_image_size"):
            if fields[field] >= 1:
                backbone_spec(fields["backbone"], fields[field])
    except ValueError as error:
        errors.append(str(error))
    if fields["protocol"] == "supervised":
        errors.append("supervised training is tasks='none' with protocol 'joint' (one phase) or 'pretrain_finetune'")
    for field in ("dataset", "pretrain_dataset"):
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", fields[field]):
            errors.append(f"{field} {fields[field]!r} is not a plain folder name (letters, digits, '_', '.', '-')")
    try:
        canonical = canonical_tasks(fields["tasks"])
        if canonical != fields["tasks"]:
            errors.append(f"tasks {fields['tasks']!r} are written {canonical!r}")
    except ValueError as error:
        errors.append(str(error))
    return errors


def _range_errors(fields: Mapping[str, Any]) -> list[str]:
    errors = []

    def require(condition: bool, field: str, expectation: str) -> None:
        if not condition:
            errors.append(f"{field} must be {expectation}, not {fields[field]!r}")

    for field, kind in FIELDS.items():
        if kind is float and not math.isfinite(fields[field]):
            errors.append(f"{field} must be finite, not {fields[field]!r}")
    two_phases = fields["protocol"] in ("pretrain_finetune", "pretrain_probe")
    first = two_phases or fields["protocol"] == "pretrain"
    last = two_phases or fields["protocol"] == "joint"
    stepwise = last and fields["probe"] != "logistic"  # whether the last phase takes the optimiser's steps
    positive = [*(["pretrain_epochs", "pretrain_learning_rate"] * first), *(["epochs"] * last)]
    positive += ["learning_rate"] * stepwise
    for field in ("batch_size", "image_size"):
        require(fields[field] >= 1, field, "at least 1")
    for field in positive:
        require(fields[field] > 0, field, f"above 0 with protocol {fields['protocol']!r}")
    weights = [task.weight_field for task in TASKS.values()]
    counts = ("seed", "train_images", "labels_per_class", "finetune_image_size", "warmup_epochs", "crop_padding")
    for field in (*counts, "mega_grid", "weight_decay", *weights):
        require(fields[field] >= 0, field, "at least 0")
    require(fields["seed"] < 2**32, "seed", "below 2**32")
    for field in ("gradient_clip", "jitter_strength", "mixup", "cutmix"):
        require(fields[field] >= 0, field, "at least 0")
    for field in ("flip_probability", "jitter_probability", "greyscale_probability", "erase_probability"):
        require(0 <= fields[field] <= 1, field, "between 0 and 1")
    for field in ("crop_min_area", "patch_crop", "label_share"):
        require(0 < fields[field] <= 1, field, "above 0 and at most 1")
    for field in ("drop_path", "val_share", "dropout", "label_smoothing", "ema_decay"):
        require(0 <= fields[field] < 1, field, "at least 0 and below 1")
    if last and not fields["val_share"] and fields["selection"] == "best_val":
        errors.append("selection='best_val' needs validation images: with val_share=0 it must be 'last'")
    require(fields["jitter_strength"] <= 1, "jitter_strength", "at most 1")

    phases = [fields["pretrain_epochs"]] * first + [fields["epochs"]] * stepwise
    if phases and min(phases) > 0:
        shortest = f"below the {min(phases)} epochs of the shortest phase"
        require(fields["warmup_epochs"] < min(phases), "warmup_epochs", shortest)
    if fields["crop_padding"] and fields["crop_from"] == "original":
        errors.append("crop_from='original' crops whole images, which have no border: set crop_padding=0")
    if fields["crop_padding"] and fields["crop_min_area"] < 1:
        errors.append("crop_padding and crop_min_area are two ways to crop: set crop_padding=0 or crop_min_area=1")
    if fields["mixup"] or fields["cutmix"]:
        if fields["batch_size"] == 1:
            errors.append(
                "mixup and cutmix mix the images of a batch: batch_size must be above 1, or mixup=0 and cutmix=0"
            )
        if fields["permute_patches"] and fields["protocol"] == "joint":
            errors.append(
                "mixup and cutmix give a place patches of two images, which with permute_patches have two labels for "
                "the tasks trained beside: set permute_patches=false, or mixup=0 and cutmix=0"
            )
    if fields["labels_per_class"] and fields["label_share"] < 1:
        errors.append("labels_per_class and label_share are two ways to say one thing: set 0 or 1 for one of them")
    if fields["finetune_image_size"] and fields["finetune_image_size"] == fields["image_size"]:
        errors.append("finetune_image_size is image_size anyway: leave it at 0")

    spec = _spec(fields)
    for field in ("image_size", "finetune_image_size"):
        if spec and fields[field] >= 1:
            errors += _grid_errors(fields["backbone"], field, fields[field])
    if spec and fields["mega_grid"]:
        side = fields["image_size"] // spec.patch_size
        if not isinstance(spec, ViTSpec):
            errors.append(f"mega_grid needs a ViT, whose tokens are the image's patches, not {fields['backbone']}")
        elif not 2 <= fields["mega_grid"] < side:
            errors.append(
                f"mega_grid must be at least 2 and below the {side} patches a side, not {fields['mega_grid']}"
            )
        if fields["pretrain_position_embedding"]:
            errors.append("mega_grid changes the number of patches, so pre-training cannot have position embeddings")
    if spec and 0 < fields["patch_crop"] < 1:
        crop = patch_crop_size(spec.patch_size, fields["patch_crop"])
        if not 1 <= crop < spec.patch_size:
            errors.append(
                f"patch_crop={fields['patch_crop']} takes {crop} of the {spec.patch_size} pixels of a patch's side: "
                f"that is {'everything, so set it to 1' if crop else 'nothing'}"
            )
    return errors


def _grid_errors(backbone: str, field: str, size: int) -> list[str]:
    """Why images of `size` pixels a side are no grid of the backbone's patches, at least 2 x 2."""
    try:
        patch = backbone_spec(backbone, size).patch_size
    except ValueError:  # said where names are checked
        return []
    side, rest = divmod(size, patch)
    if rest:
        near = " or ".join(map(str, sorted({max(side, 2) * patch, max(side + 1, 2) * patch})))
        named = f"{'an' if field == 'image_size' else 'a'} {field} of {size}"
        return [f"patches of {patch} pixels ({backbone}) do not divide {named}: try {near}"]
    if side < 2:
        return [f"{field} {size} is a single patch of {backbone}: at least {2 * patch} is needed"]
    return []


def _spec(fields: Mapping[str, Any], ask_timm: bool = True) -> Spec | None:
    """The backbone's sizes, or None where its name or the images' size is wrong, which `validate` says."""
    if not ask_timm and str(fields["backbone"]).startswith(TIMM):
        return None
    try:
        return backbone_spec(fields["backbone"], fields["image_size"])
    except (ValueError, AttributeError):
        return None


def neutral_fields(fields: Mapping[str, Any], ask_timm: bool = True) -> dict[str, Any]:
    """The fields that cannot act in a cell, with the value that they must hold there.

    ask_timm: whether a model of timm is asked what acts in it, for which torch is imported; False for readers of cells.
    """
    try:
        tasks = parse_tasks(fields["tasks"])
    except (ValueError, AttributeError):  # unknown tasks, or no text at all: `validate` says which
        return {}
    neutral: dict[str, Any] = {TASKS[task].weight_field: 0.0 for task in TASKS if task not in tasks}
    if not tasks:
        # Supervised training keeps the standard augmentation of whole images (section 3.1).
        neutral |= {
            "permute_patches": False,
            "patch_crop": 1.0,
            "jitter_probability": 0.0,
            "greyscale_probability": 0.0,
            "mega_grid": 0,
        }
    if tasks or fields["protocol"] != "pretrain_finetune" or fields["pretrain_dataset"] != fields["dataset"]:
        neutral["keep_classifier"] = False
    if fields["protocol"] != "pretrain_finetune":
        neutral["finetune_image_size"] = 0
    if fields["protocol"] == "pretrain" and tasks:
        neutral |= {"labels_per_class": 0, "label_share": 1.0}
    if fields["protocol"] != "pretrain_probe":
        neutral["probe"] = "sgd"
    elif fields.get("probe") == "logistic":  # run to convergence at once, and all there is to select
        neutral |= {"epochs": 1, "learning_rate": 0.0, "selection": "last", "schedule": NONE}
    if not digest_of(tasks):
        neutral["tasks_digest"] = ""
    if not any(TASKS[task].has_pair_head for task in tasks):
        neutral["pair_head"] = NONE
    if fields["protocol"] == "joint":
        neutral |= {
            "pretrain_dataset": NONE,
            "pretrain_epochs": 0,
            "pretrain_learning_rate": 0.0,
            "pretrain_position_embedding": False,
            "mega_grid": 0,
        }
    if fields["protocol"] == "pretrain":
        neutral |= {
            "dataset": fields["pretrain_dataset"],
            "epochs": 0,
            "learning_rate": 0.0,
            "selection": "last",
            "schedule": NONE,
        }
    spec = _spec(fields, ask_timm)
    if isinstance(spec, SwinSpec) or (isinstance(spec, TimmSpec) and not spec.has_position_embedding):
        # A Swin Transformer's positions, for one, are biases inside attention; there is no embedding to leave out.
        neutral["pretrain_position_embedding"] = False
    if isinstance(spec, TimmSpec):
        neutral |= {} if spec.has_drop_path else {"drop_path": 0.0}
        neutral |= {} if spec.has_dropout else {"dropout": 0.0}
    logistic = neutral.get("epochs") == 1  # the last phase takes no steps
    if logistic or fields["protocol"] == "pretrain":
        neutral["ema_decay"] = 0.0
        if tasks:
            neutral |= {"mixup": 0.0, "cutmix": 0.0, "label_smoothing": 0.0}
    # Swin starts otherwise in its classifier alone, and logistic regression does not start anywhere.
    classifies = not tasks or not (fields["protocol"] == "pretrain" or logistic)
    if isinstance(spec, TimmSpec) or (isinstance(spec, SwinSpec) and not classifies):
        neutral["initialisation"] = "timm"
    if not {**fields, **neutral}["jitter_probability"]:
        neutral["jitter_strength"] = 0.0
        if not {**fields, **neutral}["greyscale_probability"]:
            neutral["augment_normalised"] = False
    return {**_acting_schedule(fields), **neutral}


def schedulable(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields that a schedule can change in a cell with these fields: those of SCHEDULABLE that act in its last
    phase, where tasks are trained with protocol "joint" alone. Raises as `parse_tasks`."""
    tasks = parse_tasks(fields["tasks"]) if fields["protocol"] == "joint" else ()
    idle = {TASKS[task].weight_field for task in TASKS if task not in tasks}
    if not tasks:
        idle |= set(_OF_PATCHES)
    return tuple(name for name in SCHEDULABLE if name not in idle)


def _acting_schedule(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule without the fields that cannot act, where it has any: a tuned recipe serves other cells too."""
    try:
        entries = parse_schedule(fields.get("schedule", NONE))
    except (ValueError, AttributeError):  # `validate` says what is wrong
        return {}
    acting = schedulable(fields)
    if all(name in acting for _, changes in entries for name in changes):
        return {}
    kept = [(epoch, {name: value for name, value in changes.items() if name in acting}) for epoch, changes in entries]
    return {"schedule": format_schedule((epoch, changes) for epoch, changes in kept if changes)}


def _neutrality_errors(fields: Mapping[str, Any]) -> list[str]:
    errors = [
        f"{field}={fields[field]!r} has no effect with tasks={fields['tasks']!r}, protocol={fields['protocol']!r}"
        f"{', jitter_probability=0' if field == 'jitter_strength' else ''}: it must be {value!r}"
        for field, value in neutral_fields(fields).items()
        if fields[field] != value
    ]
    tasks = parse_tasks(fields["tasks"])
    errors += [
        f"{TASKS[task].weight_field}=0 switches a named task off: leave {task!r} out of tasks instead"
        for task in tasks
        if fields[TASKS[task].weight_field] == 0
    ]
    if digest_of(tasks) and not fields["tasks_digest"]:
        errors.append(f"tasks_digest must say from which file the tasks {fields['tasks']!r} come")
    if fields["pair_head"] == NONE and any(TASKS[task].has_pair_head for task in tasks):
        errors.append(f"pair_head must be one of {', '.join(HEADS)} with tasks={fields['tasks']!r}")
    if fields["jitter_probability"] and not fields["jitter_strength"]:
        errors.append("jitter_probability above 0 with jitter_strength=0 changes nothing: set both or neither")
    if DRLOC in tasks and fields["protocol"] != "joint":
        errors.append(
            "drloc is trained jointly with classification (Liu et al., NeurIPS 2021): protocol must be 'joint'"
        )
    return errors


def _schedule_errors(fields: Mapping[str, Any]) -> list[str]:
    try:
        entries = parse_schedule(fields["schedule"])
    except ValueError as error:
        return [str(error)]
    if not entries:
        return []
    if format_schedule(entries) != fields["schedule"]:
        return [f"schedule {fields['schedule']!r} is written {format_schedule(entries)!r}"]
    errors = []
    starts = [epoch for epoch, _ in entries]
    if starts != sorted(set(starts)) or not 0 < starts[0] <= starts[-1] < fields["epochs"]:
        errors.append(
            f"the epochs of a schedule must rise, from at least 1 to below the {fields['epochs']} of the last phase, "
            f"not {', '.join(map(str, starts))}"
        )
    holds = {**fields, "schedule": NONE}
    for epoch, changes in entries:
        same = [name for name, value in changes.items() if holds[name] == value]
        errors += [f"schedule entry {epoch}: {name} is {holds[name]!r} before it already" for name in same]
        holds |= changes
        errors += [f"schedule entry {epoch}: {error}" for error in validate(holds)]
    return errors
