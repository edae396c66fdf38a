"""The train loop: phases, schedule, step, evaluate, checkpoint, report. It knows no Ray, no MLflow, no sweep.

`train` is a generator of one dict of named numbers per epoch. It always yields the whole history of its cell: what a
checkpoint already holds is yielded again without training, so that a resumed run cannot be told from one that was
never interrupted (apart from speeds).
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from relvit import checkpoint
from relvit.augment import Augmentation
from relvit.backbones import build_backbone, start_as_published
from relvit.batches import Batches
from relvit.cell import NONE, Cell, digest_of
from relvit.data import Dataset, Split
from relvit.evaluation import EVALUATION, evaluated
from relvit.features import STRENGTHS, Linear, fit_logistic, knn_accuracy
from relvit.files import Location, remove_leftovers, write_atomic
from relvit.messages import first_line
from relvit.metrics import accuracy
from relvit.model import CLASSIFICATION, LogisticProbe, RelViT
from relvit.step import Step, autocast
from relvit.tasks import TASKS

logger = logging.getLogger(__name__)

Row = dict[str, float | int | str]
LAST_RATE = 1.25e-6  # lr_end of the published code's DecayLR
_DEVICES = {"cpu": "a CPU", "cuda": "a GPU"}


class NotFiniteError(ArithmeticError):
    """A loss or a gradient became infinite or not a number; the message names it, the step and the cell."""


class Phase(NamedTuple):
    """One stretch of training with one objective. Metric names start with its name.

    position_embedding: whether the backbone has one; frozen: only a linear classifier is trained; mega_grid: cells a
    side that stand in for the image's patches, or 0; logistic: the classifier is fitted at once, by logistic
    regression; image_size: pixels a side.
    """

    name: str
    tasks: tuple[str, ...]
    classify: bool
    epochs: int
    learning_rate: float
    position_embedding: bool = True
    frozen: bool = False
    mega_grid: int = 0
    logistic: bool = False
    image_size: int = 0


def phases(cell: Cell) -> list[Phase]:
    """Section 3.2: pre-training then fine-tuning, or one joint phase ("downstream-only")."""
    if cell.protocol == "joint":
        return [Phase("joint", cell.task_list, True, cell.epochs, cell.learning_rate, image_size=cell.image_size)]
    first = Phase(
        "pretrain",
        cell.task_list,
        not cell.task_list,
        cell.pretrain_epochs,
        cell.pretrain_learning_rate,
        # A Swin Transformer's positions cannot be left out; its cells hold the neutral value, False.
        position_embedding=cell.pretrain_position_embedding,
        mega_grid=cell.mega_grid,
        image_size=cell.image_size,
    )
    if cell.protocol == "pretrain":
        return [first]
    last = Phase("finetune", (), True, cell.epochs, cell.learning_rate, image_size=cell.last_image_size)
    if cell.protocol == "pretrain_probe":
        # The features are probed as they were learned: with the position embedding that pre-training had.
        kept, logistic = first.position_embedding, cell.probe == "logistic"
        last = last._replace(name="probe", position_embedding=kept, frozen=True, logistic=logistic)
    return [first, last]


def learning_rates(
    maximum: float | np.ndarray, warmup_steps: int, steps: int, decay: str = "half_cosine"
) -> np.ndarray:
    """The learning rate of each step, float64 [steps]: linear warm-up to the maximum, then cosine to zero.

    maximum: one, or that of each step. decay: one of `relvit.cell.DECAYS`; "quarter_cosine" is the published code's, a
    quarter of a cosine that is counted from the first step, to LAST_RATE after the last.
    """
    step = np.arange(steps)
    if decay == "quarter_cosine":
        falling = LAST_RATE + (maximum - LAST_RATE) * np.cos(np.pi / 2 * step / max(1, steps))
        return np.where(step < warmup_steps, maximum * step / max(1, warmup_steps), falling)
    warmup = (step + 1) / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return maximum * np.where(step < warmup_steps, warmup, 0.5 * (1 + np.cos(np.pi * progress)))


def train(
    cell: Cell,
    dataset: Dataset,
    folder: Location,
    *,
    pretrain_dataset: Dataset | None = None,
    pretrained: Location | None = None,
    device: str = "cpu",
    checkpoint_every: int | None = 1,
    checkpoint_minutes: float | None = None,
    keep: int = 2,
    micro_batches: int = 1,
    compile: str = "auto",
    gpu_share: float = 1.0,
    test: bool = True,
    stop_after: int | None = None,
    forked: Location | None = None,
    permit: Callable[[], object] = lambda: None,
    note: Callable[[str], None] = logger.warning,
) -> Iterator[Row]:
    """Train a cell in `folder`, continuing from the newest whole checkpoint there.

    pretrain_dataset: of the first of two phases; None where it is `dataset`.
    pretrained: the folder of `cell.pretraining()`, which other cells may share. A finished state there is taken over
    instead of training the first phase, rows included, with the very same outcome; where there is none, this run
    leaves one when its first phase ends.
    checkpoint_every, checkpoint_minutes: a checkpoint is written once this many epochs or minutes have passed since
    the last, whichever comes first; None: not on that account. With both None one is written as soon as that costs at
    most 2 % of the time since the last, as writing the last took, and after ten minutes at the latest. One is written
    at the end of each phase in any case, before its row is yielded; others are written while the next epoch is
    trained, or with test False before their row is yielded too.
    keep: how many of the newest checkpoints are kept.
    micro_batches: parts in which a batch goes through the model, one after the other, its gradient being their sum:
    the same step in less memory, equal but for rounding (and for what drop path draws).
    compile: whether steps are compiled, one of `relvit.cell.COMPILE`: the same results but for rounding.
    gpu_share: of the device, where it is a GPU: an eighth of that memory may hold the images.
    test: False leaves the test split alone, as a hyperparameter search must: the run ends with the last epoch's row and
    no final checkpoint. The same call with True goes on from there to the result.
    stop_after: the run ends with the row of this epoch, counted over all phases, and its checkpoint; the same call with
    a later one, or with None, goes on from there.
    forked: the folder of a cell of which this one is a fork (`Cell.changed_after`). Its newest checkpoint is continued
    instead of training the same epochs again, rows included, if the two cells are one up to there.
    permit: called before each checkpoint is published. What it raises ends the run, which then has written nothing.

    Yields one row per epoch with "epoch" (1-based, over all phases), "phase" and the epoch's metrics, all floats:
    losses, accuracies in percent, squared errors times 100, learning_rate, images_per_second, epoch_seconds, and
    epoch_processor_seconds, this process's on all its cores, whatever else the machine does. The last row has phase
    "test" and holds the result, measured once on the test split: test_accuracy and, for each task, its metric at the
    end of its phase. How it did on each class is in the folder, as `relvit.evaluation` says.

    On resume: 1. a final checkpoint ends the run at once; 2. else the newest whole epoch's checkpoint is continued;
    3. else that of `forked`; 4. else `pretrained` is taken over; 5. else the cell starts from its seed. The outcome is
    the same bits whichever it is.

    Raises NotFiniteError; ValueError where a folder belongs to another cell, or its checkpoint to other images.
    """
    run = _Run(cell, dataset, pretrain_dataset or dataset, device, micro_batches, test, compile, gpu_share, note)
    with _reading(folder):
        state = checkpoint.load_newest(folder, device, note)
    if state is not None:
        with _reading(folder):
            if state["cell_id"] != cell.cell_id:
                raise ValueError(f"{folder} holds the checkpoints of {state['cell_id']}, not of {cell.cell_id}")
            run.require_same_images(state, folder)
            if run.lacks_first_results(state):  # trained by a search; what its first phase left is measured now
                run.take_over(_first_phase(state, pretrained, device, note), pretrained or folder)
                state["results"] = run.results
                if state["finished"]:  # the first phase is all there is
                    state |= {"finished": False, "history": run.history}
            told = [row for row in state["history"] if test or row["phase"] != "test"]
            if not state["finished"] and not run.done:
                run.restore(state)
        yield from told
        if state["finished"]:
            return
    elif forked is not None and (state := _state_to_fork(cell, forked, device, note)) is not None:
        run.require_same_images(state, forked)
        run.restore(state)
        checkpoint.save(run.state(), folder, run.epoch, keep, permit)
        yield from run.history
    elif pretrained is not None:
        shared = checkpoint.load_newest(pretrained, device, note)
        if shared is not None and (shared["finished"] or shared["cell_id"] != cell.pretraining().cell_id):
            run.take_over(shared, pretrained)
            yield from run.history
    due = _Due(checkpoint_every, checkpoint_minutes)
    last = cell.total_epochs if stop_after is None else stop_after
    with checkpoint.Writer(folder, keep, permit) as writer:
        while run.epoch < last:
            row = run.train_epoch()
            ends = run.at_end_of_phase or run.epoch == last
            # The pre-training first: a run that dies between the two trains one epoch again and still leaves it.
            if run.at_end_of_phase and not run.done and pretrained is not None:
                checkpoint.save(run.pretraining_state(), pretrained, None, keep, permit)
            if due.after_epoch(writer.took) or ends:
                writer.save(run.state(), run.epoch)
                due.written()
            # Whoever hears of such a row may continue from its checkpoint or, being a search, remove it.
            if ends or not test:
                writer.wait()
            yield row
    if not test or not run.done:
        return
    result = run.result()
    if run.evaluation:
        write_atomic(folder / EVALUATION, json.dumps(run.evaluation).encode(), permit)
    checkpoint.save(run.final_state(), folder, None, keep, permit)
    remove_leftovers(folder)
    yield result


@contextmanager
def _reading(folder: Location) -> Iterator[None]:
    """Where a checkpoint's bytes are whole, but not such as `train` writes, a ValueError that names its folder."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (AttributeError, EOFError, LookupError, RuntimeError, TypeError, UnpicklingError) as error:
        raise ValueError(
            f"the newest checkpoint in {folder} is none of this program's "
            f"({type(error).__name__}: {first_line(error)}); remove it, and the one before is continued"
        ) from error


class _Due:
    """When the next checkpoint is due: some epochs or some minutes after the last, or when it costs little enough."""

    SHARE, LATEST = 0.02, 600.0  # of the training time, which a checkpoint may cost; seconds of it, which may be lost

    def __init__(self, epochs: int | None, minutes: float | None):
        self._automatic = epochs is None and minutes is None
        self._epochs, self._seconds = epochs or math.inf, math.inf if minutes is None else 60 * minutes
        self._first = True
        self.written()

    def written(self) -> None:
        self._since, self._at = 0, time.monotonic()

    def after_epoch(self, took: float | None) -> bool:
        """Count one more epoch; whether a checkpoint is due now. took: seconds that the last one needed, where one has
        been written: the first is, after the first epoch, to know."""
        self._since += 1
        if self._automatic:
            first, self._first = self._first, False
            self._seconds = 0.0 if first else min(self.LATEST, math.inf if took is None else took / self.SHARE)
        return self._since >= self._epochs or time.monotonic() - self._at >= self._seconds


def _state_to_fork(cell: Cell, forked: Location, device: str, note: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest state under `forked`, if it is one that this cell passes through too."""
    state = checkpoint.load_newest(forked, device, note)
    if state is None or state["finished"] or phases(cell)[state["phase_index"]].name == "pretrain":
        return None
    epochs = state["phase_epoch"]
    if Cell(**state["cell"]).until(epochs) != cell.until(epochs):
        note(
            f"{forked} has trained past the point where {cell.cell_id} branches off, which is trained from the start, "
            "to the same bits"
        )
        return None
    return state


def _first_phase(
    state: dict[str, Any], pretrained: Location | None, device: str, note: Callable[[str], None]
) -> dict[str, Any]:
    """The final state of the first phase of a run that stands in `state`."""
    if state["finished"]:
        return state
    shared = checkpoint.load_newest(pretrained, device, note) if pretrained is not None else None
    if shared is None or not shared["finished"]:
        raise ValueError(
            f"{state['cell_id']} was trained by a search, without the test split, and its pre-training is gone: remove "
            "the cell's folder, and it is trained anew"
        )
    return shared


class _Run:
    """The state of one training and the steps that change it."""

    def __init__(
        self,
        cell: Cell,
        dataset: Dataset,
        pretrain_dataset: Dataset,
        device: str,
        micro_batches: int,
        test: bool,
        compile: str,
        gpu_share: float,
        note: Callable[[str], None],
    ):
        if not 1 <= micro_batches <= cell.batch_size:
            raise ValueError(
                f"micro_batches must be between 1 and the batch size {cell.batch_size}, not {micro_batches}"
            )
        if cell.tasks_digest != digest_of(cell.task_list):
            raise ValueError(
                f"{cell.cell_id} is of tasks in a file with digest {cell.tasks_digest}, and that which is known here "
                f"has {digest_of(cell.task_list) or 'none'}: bring the file of then back, or plan the cell anew"
            )
        self.cell, self.device, self.micro_batches, self.test = cell, device, micro_batches, test
        self.compile, self.note, self.batches = compile, note, Batches(device, gpu_share, note)
        self.phases = phases(cell)
        self.datasets = [pretrain_dataset if phase.name == "pretrain" else dataset for phase in self.phases]
        self.history: list[Row] = []
        self.results: dict[str, float] = {}
        self.evaluation: dict[str, Any] = {}  # of the classifier on the test split, class by class
        self.current = cell.after(0)  # the fields that hold now, of which a schedule may change some
        self._start_phase(0, None)

    def _start_phase(self, index: int, pretrained: dict[str, Tensor] | None) -> None:
        cell, phase, dataset = self.cell, self.phases[index], self.datasets[index]
        self.phase_index, self.phase, self.phase_epoch, self.dataset = index, phase, 0, dataset
        self.train_split, self.val_split = dataset.train_val(cell.seed, cell.train_images, cell.val_share)
        if phase.classify and not (phase.name == "pretrain" and cell.pretrain_dataset != cell.dataset):
            labels = cell.labels_per_class, cell.label_share
            self.train_split = dataset.labelled(self.train_split, cell.seed, *labels)
        self.steps_per_epoch = math.ceil(len(self.train_split) / cell.batch_size)
        # Each phase draws its fresh weights, its order and its augmentation from the seed alone, whatever happened
        # before it, so that a pre-training that was taken over leads to the same bits as one trained here.
        seed = 1000 * cell.seed + index
        torch.manual_seed(seed)
        self.order = torch.Generator().manual_seed(seed)
        self.draws = torch.Generator(self.device).manual_seed(seed)
        backbone = build_backbone(
            cell.backbone,
            phase.mega_grid * cell.patch_size or phase.image_size,
            position_embedding=phase.position_embedding,
            drop_path=cell.drop_path,
            dropout=cell.dropout,
        )
        classes = len(dataset.classes) if phase.classify else 0
        self.model = RelViT(
            backbone,
            phase.tasks,
            classes=classes,
            pair_head=cell.pair_head,
            probe=phase.frozen,
            logistic=phase.logistic,
        )
        if cell.initialisation == "published":
            start_as_published(backbone, self.model.classifier)
        if pretrained is not None:
            self._load_pretrained(pretrained)
        rates = phase.learning_rate if phase.name == "pretrain" else self._scheduled_rates(phase.epochs)
        self.schedule = learning_rates(
            rates, cell.warmup_epochs * self.steps_per_epoch, phase.epochs * self.steps_per_epoch, cell.decay
        )
        self.current = cell.after(0)
        self.step = Step(
            self.model,
            backbone.grid,
            phase_augmentation(cell, phase, mean=dataset.mean, std=dataset.std, training=True),
            device=self.device,
            learning_rate=phase.learning_rate,
            weight_decay=cell.weight_decay,
            gradient_clip=cell.gradient_clip,
            weights=self._weights,
            precision=cell.precision,
            micro_batches=self.micro_batches,
            compile=self.compile,
            note=self.note,
            label_smoothing=cell.label_smoothing,
        )
        is_last = index == len(self.phases) - 1
        # timm's, updated on the device; the average of no step yet are the weights that the phase starts from.
        self.average = ModelEmaV3(self.model, decay=cell.ema_decay) if cell.ema_decay and is_last else None
        plain = phase_augmentation(cell, phase, mean=dataset.mean, std=dataset.std, training=False)
        self.plain = plain.to(self.device)
        self.best: dict[str, Any] = {"accuracy": -1.0, "epoch": 0, "model": {}}
        self.known: tuple[dict[str, Tensor], Tensor] | None = None  # the training images' features

    def _load_pretrained(self, state: dict[str, Tensor]) -> None:
        """Start from the first phase's model: from its backbone, and from its classifier where the cell keeps it."""
        parts: dict[str, dict[str, Tensor]] = {"backbone": {}, "classifier": {}}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part in parts:
                parts[part][rest] = value
        self.model.load_backbone(parts["backbone"])
        if self.cell.keep_classifier:
            assert self.model.classifier is not None
            self.model.classifier.load_state_dict(parts["classifier"])

    def _scheduled_rates(self, epochs: int) -> np.ndarray:
        """The maximum that holds at each step of the last phase."""
        return np.repeat([self.cell.after(epoch).learning_rate for epoch in range(epochs)], self.steps_per_epoch)

    def _follow_schedule(self) -> None:
        """Let the fields hold that the cell's schedule sets for the epoch to come."""
        if self.phase.name == "pretrain" or self.cell.schedule == NONE:
            return
        self.current = self.cell.after(self.phase_epoch)
        mean, std = self.dataset.mean, self.dataset.std
        augment = phase_augmentation(self.current, self.phase, mean=mean, std=std, training=True)
        self.step.augment = augment.to(self.device)
        self.step.gradient_clip, self.step.weights = self.current.gradient_clip, self._weights

    @property
    def epoch(self) -> int:
        """Epochs done, over all phases."""
        return sum(phase.epochs for phase in self.phases[: self.phase_index]) + self.phase_epoch

    @property
    def at_end_of_phase(self) -> bool:
        return self.phase_epoch == self.phase.epochs

    @property
    def done(self) -> bool:
        return self.at_end_of_phase and self.phase_index == len(self.phases) - 1

    def train_epoch(self) -> Row:
        """One epoch of training and its validation; moves to the next phase first where the last one has ended."""
        if self.at_end_of_phase:
            self._start_phase(self.phase_index + 1, self.model.state_dict())
        self._follow_schedule()
        started, used = time.perf_counter(), time.process_time()
        losses = self._fit_probe() if self.phase.logistic else self._train_steps()
        trained = time.perf_counter()
        self.phase_epoch += 1
        with self._averaged():
            evaluated = self._evaluate(self.val_split, "val") if len(self.val_split) else {}
            if self.at_end_of_phase and evaluated:
                evaluated |= self._evaluate_features(self.val_split)
            last_phase = self.phase_index == len(self.phases) - 1
            if last_phase and self.cell.selection == "best_val" and evaluated["accuracy"] > self.best["accuracy"]:
                model = {name: value.clone() for name, value in self.model.state_dict().items()}
                self.best = {"accuracy": evaluated["accuracy"], "epoch": self.epoch, "model": model}
        if self.at_end_of_phase:
            self._measure_first_phase()
        prefix = self.phase.name
        row: Row = {
            "epoch": self.epoch,
            "phase": prefix,
            **{f"{prefix}_train_{name}": value for name, value in losses.items()},
            **{f"{prefix}_val_{name}": value for name, value in evaluated.items()},
            "learning_rate": float(self.schedule[self.phase_epoch * self.steps_per_epoch - 1]),
            "images_per_second": len(self.train_split) / (trained - started),
            "epoch_seconds": time.perf_counter() - started,
            "epoch_processor_seconds": time.process_time() - used,
        }
        self.history.append(row)
        return row

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with the moving average of its weights, where the cell has one."""
        if self.average is None:
            yield
            return
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def _train_steps(self) -> dict[str, float]:
        """An epoch's optimiser steps. Returns the mean of each loss and of the gradient's norm over the steps."""
        self.model.train()
        names: list[str] = []
        values: list[Tensor] = []
        first_step = self.phase_epoch * self.steps_per_epoch
        order = torch.randperm(len(self.train_split), generator=self.order)
        for number, (images, labels, aspects) in enumerate(
            self.batches.of(self.train_split, order, self.cell.batch_size), start=first_step
        ):
            self.step.set_rates(float(self.schedule[number]), self.current.weight_decay)
            measured = self.step(images, labels, self.draws, aspects)
            if self.average is not None:
                self.average.update(self.model)
            names = [name if name in ("loss", "gradient_norm") else f"{name}_loss" for name in measured]
            values.append(torch.stack(list(measured.values())))
        # One look at the numbers an epoch, not one a step, so that a GPU is not made to wait.
        by_step = torch.stack(values).cpu()
        self._require_finite(by_step, names, first_step)
        return dict(zip(names, by_step.mean(0).tolist()))

    def _require_finite(self, by_step: Tensor, names: list[str], first_step: int) -> None:
        bad = (~torch.isfinite(by_step)).nonzero()
        if len(bad):
            step, column = bad[0].tolist()
            raise NotFiniteError(
                f"{self.phase.name} {names[column]} is {by_step[step, column].item()} at step {first_step + step} "
                f"(epoch {self.epoch + 1}) of {self.cell.cell_id}; the checkpoint of the epoch before is kept"
            )

    @property
    def _weights(self) -> dict[str, float]:
        return {task: getattr(self.current, TASKS[task].weight_field) for task in self.phase.tasks}

    @torch.inference_mode()
    def _evaluate(self, split: Split, label: str, epoch: int | None = None) -> dict[str, float]:
        """Losses and metrics over a split without augmentation, patches in their places.

        epoch: the one that left the model's weights, where that is not the last; for the message of an error.
        """
        self.model.eval()
        # Mega-patches are drawn in evaluation too; always the same, so that epochs can be compared.
        draws = torch.Generator(self.device).manual_seed(self.cell.seed)
        sums: dict[str, Tensor] = {}
        for images, labels, aspects in self.batches.of(split, torch.arange(len(split)), self.cell.batch_size):
            for name, value in self.step.evaluate(images, labels, self.plain, draws, aspects).items():
                total = value * len(labels)
                sums[name] = sums[name] + total if name in sums else total
        means = {name: float(value) / len(split) for name, value in sums.items()}
        for name, mean in means.items():
            if not math.isfinite(mean):
                epoch = epoch or self.epoch
                step = (epoch - self.epoch + self.phase_epoch) * self.steps_per_epoch - 1
                raise NotFiniteError(
                    f"{self.phase.name} {label}_{name} is {mean} after step {step} (epoch {epoch}) "
                    f"of {self.cell.cell_id}"
                )
        return means

    def _plain_batches(self, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
        """A split without augmentation, for the model in evaluation: normalised images [b, 3, H, W] and labels [b]."""
        self.model.eval()
        draws = torch.Generator(self.device).manual_seed(self.cell.seed)
        for images, labels, aspects in self.batches.of(split, torch.arange(len(split)), self.cell.batch_size):
            batch, height, width, _ = images.shape
            yield self.plain.apply_draws(images, self.plain.draw(batch, height, width, draws, aspects)), labels

    @torch.no_grad()
    def _features(self, split: Split) -> tuple[dict[str, Tensor], Tensor]:
        """The pooled embedding and the mean of the patch tokens, [n, D] each, of a split without augmentation."""
        parts: dict[str, list[Tensor]] = {"pooled": [], "patches": []}
        labels = []
        for plain, classes in self._plain_batches(split):
            with autocast(torch.device(self.device).type, self.cell.precision):
                features = self.model.backbone(plain)
            parts["pooled"].append(features.pooled.float())
            parts["patches"].append(features.tokens.float().mean(1))
            labels.append(classes)
        return {name: torch.cat(values) for name, values in parts.items()}, torch.cat(labels)

    @torch.no_grad()
    def _answers(self, split: Split) -> tuple[Tensor, Tensor]:
        """The classifier's logits [n, K] on a split without augmentation, and the labels [n]."""
        logits, labels = [], []
        for plain, classes in self._plain_batches(split):
            with autocast(torch.device(self.device).type, self.cell.precision):
                logits.append(self.model(plain)[CLASSIFICATION].float())
            labels.append(classes)
        return torch.cat(logits), torch.cat(labels)

    def _evaluate_features(self, split: Split) -> dict[str, float]:
        """At the end of a phase: after a pre-training the accuracy of k-NN among the training images, and of a logistic
        probe those of both its classifiers. "knn_accuracy" and "patches_accuracy" are of the mean of the patch tokens,
        "knn_pooled_accuracy" and "pooled_accuracy" of the pooled embedding."""
        if self.phase.name == "pretrain":
            if self.known is None:
                self.known = self._features(self.train_split)
            (known, known_labels), (asked, labels) = self.known, self._features(split)
            suffixes = {"patches": "knn_accuracy", "pooled": "knn_pooled_accuracy"}
            return {
                suffixes[name]: knn_accuracy(known[name], known_labels, asked[name], labels, len(self.dataset.classes))
                for name in suffixes
            }
        probe = self.model.classifier
        if not isinstance(probe, LogisticProbe):
            return {}
        features, labels = self._features(split)
        with torch.no_grad():
            return {
                "pooled_accuracy": float(accuracy(probe.pooled(features["pooled"]), labels)),
                "patches_accuracy": float(accuracy(probe.patches(features["patches"]), labels)),
            }

    def _fit_probe(self) -> dict[str, float]:
        """Logistic regression on the pooled embedding and on the patches' mean, each with the strength and of both the
        one that are best on validation images, or, without those, that have the smaller loss. Returns its loss."""
        probe, classes = self.model.classifier, len(self.dataset.classes)
        assert isinstance(probe, LogisticProbe)
        known, known_labels = self._features(self.train_split)
        asked, labels = self._features(self.val_split) if len(self.val_split) else ({}, known_labels)
        best: dict[str, tuple[float, Linear]] = {}
        for name, values in known.items():
            for strength in STRENGTHS if asked else (1.0,):
                fitted = fit_logistic(values, known_labels, classes, strength)
                reached = float(accuracy(fitted(asked[name]), labels)) if asked else -fitted.loss
                if name not in best or reached > best[name][0]:
                    best[name] = (reached, fitted)
        with torch.no_grad():
            for name, (_, fitted) in best.items():
                linear = getattr(probe, name)
                linear.weight.copy_(fitted.weight)
                linear.bias.copy_(fitted.bias)
            probe.reads_patches.fill_(best["patches"][0] > best["pooled"][0])
        loss = best["patches" if probe.reads_patches else "pooled"][1].loss
        return {"loss": loss, "classification_loss": loss}

    def _measure_first_phase(self) -> None:
        """At the end of a pre-training on tasks, its metrics on the test split, unless they are there already."""
        if self.test and self.phase.name == "pretrain" and self.phase.tasks and not self.results:
            self._keep_results(self._evaluate(self.dataset.test, "test"))
            self._keep_results(self._evaluate_features(self.dataset.test))

    def lacks_first_results(self, state: dict[str, Any]) -> bool:
        """Whether `state` is past a first phase on tasks that was not measured on the test split, and should be."""
        first = self.phases[0]
        past = state["finished"] or state["phase_index"] > 0
        return self.test and past and first.name == "pretrain" and bool(first.tasks) and not state["results"]

    def _keep_results(self, evaluated: dict[str, float]) -> None:
        self.results |= {f"test_{name}": value for name, value in evaluated.items() if not name.endswith("_loss")}

    def result(self) -> Row:
        """The last row: the selected weights on the test split, looked at once."""
        selected_epoch = self.epoch
        if self.cell.selection == "best_val":
            self.model.load_state_dict(self.best["model"])
            selected_epoch = self.best["epoch"]
        elif self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        if self.phase.name != "pretrain":
            self._keep_results(self._evaluate(self.dataset.test, "test", selected_epoch))
            self.evaluation = evaluated(*self._answers(self.dataset.test), self.dataset.classes)
            self._keep_results(self._evaluate_features(self.dataset.test))
        row = self._result_row(selected_epoch)
        self.history.append(row)
        return row

    def _result_row(self, selected_epoch: int) -> Row:
        row: Row = {
            "epoch": self.epoch,
            "phase": "test",
            **self.results,
            "selected_epoch": selected_epoch,
            "training_seconds": sum(float(row["epoch_seconds"]) for row in self.history),
        }
        if all("epoch_processor_seconds" in each for each in self.history):  # of an older version they do not say
            row["training_processor_seconds"] = sum(float(each["epoch_processor_seconds"]) for each in self.history)
        return row

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        return {
            "cell_id": self.cell.cell_id,
            "cell": self.cell.as_dict(),
            "images": [dataset.fingerprint for dataset in self.datasets],
            "finished": False,
            "history": self.history,
            "results": self.results,
            "phase_index": self.phase_index,
            "phase_epoch": self.phase_epoch,
            "schedule": torch.from_numpy(self.schedule),
            "model": self.model.state_dict(),
            "optimizer": self.step.optimizer_state(),
            "best": self.best,
            **({"average": self.average.module.state_dict()} if self.average is not None else {}),
            "random": {
                "order": self.order.get_state(),
                "draws": self.draws.get_state(),
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.device(self.device).type == "cuda" else [],
            },
        }

    def final_state(self) -> dict[str, Any]:
        """What remains of a finished run: the tested weights and the history."""
        kept = ("cell_id", "cell", "images", "history", "results", "model")  # what `take_over` and a reader need
        return {**{name: value for name, value in self.state().items() if name in kept}, "finished": True}

    def require_same_images(self, state: dict[str, Any], folder: Location) -> None:
        """Raise ValueError where `state` was trained on other images than those that are there now. What an older
        version wrote does not say, and is taken at its word."""
        for dataset, known in zip(self.datasets, state.get("images", ())):
            if known and dataset.fingerprint and known != dataset.fingerprint:
                raise ValueError(
                    f"these are not the images of the checkpoint: {dataset.name} has other images, labels or splits "
                    f"now than {state['cell_id']} was trained on; bring those back, or remove {folder} to train it anew"
                )

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`, which was taken at the end of an epoch."""
        here, there = torch.device(self.device).type, "cuda" if state["random"]["cuda"] else "cpu"
        if here != there:  # a generator takes no state of another kind
            raise ValueError(
                f"{self.cell.cell_id} was begun on {_DEVICES[there]}, and {_DEVICES[here]} has other random numbers: "
                f"{'give its trial a GPU' if here == 'cpu' else 'use --gpus 0'}, or remove its folder to train it anew"
            )
        self._start_phase(state["phase_index"], None)
        self.phase_epoch = state["phase_epoch"]
        # A fork takes other rates from here on, in as many steps.
        passed = state["phase_epoch"] * self.steps_per_epoch
        known, ours = state["schedule"].cpu().numpy(), self.schedule
        if len(known) != len(ours) or not np.array_equal(known[:passed], ours[:passed]):
            raise ValueError(
                f"the checkpoint of {self.cell.cell_id} was made with another schedule: the data set has changed"
                f" since ({len(self.train_split)} training images now); use another storage path, or remove the cell"
            )
        self.history, self.results = list(state["history"]), dict(state["results"])
        self.best = {**state["best"], "accuracy": float(state["best"]["accuracy"])}
        self.model.load_state_dict(state["model"])
        self.step.restore_optimizer(state["optimizer"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        # Random states live on the CPU wherever the weights were mapped to.
        random = state["random"]
        self.order.set_state(random["order"].cpu())
        self.draws.set_state(random["draws"].cpu())
        torch.set_rng_state(random["torch"].cpu())
        for number, each in enumerate(random["cuda"][: torch.cuda.device_count()]):  # there may have been more
            torch.cuda.set_rng_state(each.cpu(), number)
        if self.at_end_of_phase:
            self._measure_first_phase()

    def pretraining_state(self) -> dict[str, Any]:
        """At the end of the first of two phases: the final state of `cell.pretraining()`, had it been trained alone."""
        cell = self.cell.pretraining()
        result = self._result_row(self.epoch)
        state = self.final_state()
        own = {"cell_id": cell.cell_id, "cell": cell.as_dict(), "images": state["images"][:1]}
        return {**state, **own, "history": [*self.history, result]}

    def take_over(self, state: dict[str, Any], folder: Location) -> None:
        """Stand where the first phase ends, from the final state of the cell that is that phase alone."""
        wanted = self.cell.pretraining().cell_id
        if state["cell_id"] != wanted or not state["finished"]:
            raise ValueError(f"{folder} does not hold the finished pre-training {wanted} but {state['cell_id']}")
        self.require_same_images(state, folder)
        # Its last row is its result as a cell of its own; `results` carries those numbers on.
        self.history, self.results = list(state["history"][:-1]), dict(state["results"])
        self.phase_epoch = self.phase.epochs
        self.model.load_state_dict(state["model"])
        self._measure_first_phase()


def phase_augmentation(
    cell: Cell, phase: Phase, *, mean: Sequence[float], std: Sequence[float], training: bool
) -> Augmentation:
    """The cell's augmentation of images and, for tasks, of patches; in evaluation the normalisation alone."""
    names = ["crop_padding", "crop_min_area", "flip_probability", "auto_augment", "erase_probability"]
    if phase.classify:
        names += ["mixup", "cutmix"]
    if phase.tasks:
        names += ["patch_crop", "jitter_probability", "jitter_strength", "greyscale_probability", "permute_patches"]
        names += ["augment_normalised"]
    fields = {name: getattr(cell, name) for name in names} if training else {}
    if cell.crops_whole_images:
        fields["output_size"] = phase.image_size
    return Augmentation(patch_size=cell.patch_size, mean=mean, std=std, mega_grid=phase.mega_grid, **fields)
