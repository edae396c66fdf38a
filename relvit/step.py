"""One step of training and of evaluation, on the device where the images are: nothing in it is made on the host or
waits for the device.

Draws are taken from generators; what follows from them (augmentation, the model with its losses) is pure, has static
shapes and can be compiled. The optimiser is torch's fused AdamW.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from relvit.augment import Augmentation, Draws
from relvit.losses import classification_loss, total_loss
from relvit.messages import first_line
from relvit.metrics import accuracy
from relvit.model import CLASSIFICATION, RelViT
from relvit.strong import mixed_labels
from relvit.targets import Targets
from relvit.tasks import TASKS, plain

# For torch.compile. Random numbers in the graph (drop path, sampled pairs) are those that it would draw uncompiled.
INDUCTOR: Mapping[str, Any] = {"options": {"fallback_random": True}}


class Step:
    """Steps of one model on its tasks and, where it has a classifier, on classification.

    augment, weights (of the losses, by name) and gradient_clip (0: none) may be changed between steps.
    compiled: whether steps are compiled; False from the first attempt on where that fails, for which `note` gives the
    reason in one line. With compile "always" that raises ValueError instead.
    """

    def __init__(
        self,
        model: RelViT,
        grid: tuple[int, int],
        augment: Augmentation,
        *,
        device: str,
        learning_rate: float,
        weight_decay: float,
        gradient_clip: float,
        weights: Mapping[str, float],
        precision: str = "fp32",
        micro_batches: int = 1,
        compile: str = "never",
        note: Callable[[str], None] = lambda text: None,
        compiler: Mapping[str, Any] = INDUCTOR,
        label_smoothing: float = 0.0,
    ):
        check_precision(precision, device)
        self.model = model.to(device)
        self.targets = Targets(tuple(model.heads), grid).to(device)
        rows = [TASKS[task] for task in self.targets.tasks]
        # Imported here, since a graph cannot hold an import.
        self._loss_of = {row.name: plain(row.loss) for row in rows}
        self._metric_of = {row.name: (row.metric_name, plain(row.metric.function)) for row in rows}
        self.augment = augment.to(device)
        self.gradient_clip, self.weights = gradient_clip, weights
        self._device, self._precision, self._micro_batches = torch.device(device), precision, micro_batches
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # On a GPU the rate is a tensor there, so that a captured step can be given another.
        self._rate = torch.tensor(learning_rate, device=device) if self._device.type == "cuda" else None
        rate = learning_rate if self._rate is None else self._rate
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate, weight_decay=weight_decay, fused=True)
        self._smoothing = label_smoothing
        self._classes = model.classifier.out_features if isinstance(model.classifier, nn.Linear) else 0
        self._compile, self._note, self._proven = compile, note, False
        self._captured = bool(compiler.get("options", {}).get("triton.cudagraphs"))
        self.compiled = compile == "always" or (compile == "auto" and gains_by_compiling(self._device))
        if self.compiled:
            torch.compiler.reset()  # of another phase, or of another cell in this process
            whole = partial(torch.compile, fullgraph=True, dynamic=False, **compiler)
            self._apply_compiled, self._losses_compiled = whole(_apply), whole(self._losses)
            self._evaluate_compiled = whole(self._evaluate)

    def __call__(
        self, images: Tensor, labels: Tensor, draws: Generator, aspects: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One step on uint8 images [B, H, W, 3] with labels int64 [B], and where images are whole their aspects.

        Returns means over the batch: "loss", each part of it by its name, and "gradient_norm" before clipping.
        """
        drawn = self.augment.draw(images.shape[0], images.shape[1], images.shape[2], draws, aspects)
        if drawn.mix is not None:
            labels = mixed_labels(labels, self._classes, drawn.mix)
        if self.compiled and not self._proven:
            self._prove(images, labels, drawn)
        # Shapes are compiled one by one: the short batch at the end of an epoch is not worth it.
        compiled = self.compiled and len(images) == self._full
        self.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(self._applied(images, drawn, compiled), labels, drawn.permutation, compiled)
        norm = nn.utils.clip_grad_norm_(self.trained, self.gradient_clip or math.inf)
        self.optimizer.step()
        return {**losses, "gradient_norm": norm}

    def set_rates(self, learning_rate: float, weight_decay: float) -> None:
        """Those of the steps to come."""
        if self._rate is not None:
            self._rate.fill_(learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate if self._rate is None else self._rate
            group["weight_decay"] = weight_decay

    def optimizer_state(self) -> dict[str, Any]:
        """The optimiser's state with its rates as plain numbers, as `restore_optimizer` takes it on any device."""
        state = self.optimizer.state_dict()
        groups = [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    def restore_optimizer(self, state: dict[str, Any]) -> None:
        """Go on from `optimizer_state`. The next `set_rates` says the learning rate."""
        self.optimizer.load_state_dict(state)

    def evaluate(
        self, images: Tensor, labels: Tensor, plain: Augmentation, draws: Generator, aspects: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Means over a batch of each loss, "NAME_loss", and of each metric by its name, with `plain` in place of the
        augmentation. The model must be in evaluation mode and gradients off."""
        drawn = plain.draw(images.shape[0], images.shape[1], images.shape[2], draws, aspects)
        images = plain.apply_draws(images, drawn)
        if self.compiled and self._proven and len(images) == self._full:
            try:
                return {name: value.clone() for name, value in self._evaluate_compiled(images, labels).items()}
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self._give_up(error)
        return self._evaluate(images, labels)

    def _applied(self, images: Tensor, drawn: Draws, compiled: bool) -> Tensor:
        images = (self._apply_compiled if compiled else _apply)(self.augment, images, drawn)
        # A CUDA graph's output lies in memory that the next graph takes: that of the losses, which reads it.
        return images.clone() if compiled and self._captured else images

    def _backward(
        self, images: Tensor, labels: Tensor, permutation: Tensor | None, compiled: bool
    ) -> dict[str, Tensor]:
        """Add the gradient of the batch's total loss, one micro-batch after the other. Returns "loss" and its parts,
        means over the batch."""
        micro = self._micro_batches
        permutations = permutation.chunk(micro) if permutation is not None else [None] * micro
        parts = list(zip(images.chunk(micro), labels.chunk(micro), permutations))
        means: dict[str, Tensor] = {}
        for part, part_labels, shuffled in parts:
            same = compiled and len(part) == len(parts[0][0])
            losses = (self._losses_compiled if same else self._losses)(part, part_labels, shuffled)
            loss = total_loss(losses, self.weights)
            share = len(part_labels) / len(labels)
            (share * loss).backward()
            for name, value in {"loss": loss, **losses}.items():
                means[name] = means.get(name, 0) + share * value.detach()
        return means

    def _losses(self, images: Tensor, labels: Tensor, permutation: Tensor | None) -> dict[str, Tensor]:
        targets = self.targets(permutation, images)
        return self._losses_of(self._predictions(images), labels, targets, self._smoothing)

    def _evaluate(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        predictions, targets = self._predictions(images), self.targets(None, images)
        values = {f"{name}_loss": loss for name, loss in self._losses_of(predictions, labels, targets).items()}
        for task, (name, metric) in self._metric_of.items():
            values[name] = metric(predictions[task], targets[task])
        if CLASSIFICATION in predictions:
            values["accuracy"] = accuracy(predictions[CLASSIFICATION], labels)
        return values

    def _predictions(self, images: Tensor) -> dict[str, Any]:
        with autocast(self._device.type, self._precision):
            return self.model(images)

    def _losses_of(
        self, predictions: dict[str, Any], labels: Tensor, targets: dict[str, Tensor], smoothing: float = 0.0
    ) -> dict[str, Tensor]:
        losses = {task: loss(predictions[task], targets[task]) for task, loss in self._loss_of.items()}
        if CLASSIFICATION in predictions:
            losses[CLASSIFICATION] = classification_loss(predictions[CLASSIFICATION], labels, smoothing)
        return losses

    def _prove(self, images: Tensor, labels: Tensor, drawn: Draws) -> None:
        """Compile on the first batch, the full one, and throw its gradient away; else the steps are eager."""
        self._full, self._proven = len(images), True
        devices = [torch.cuda.current_device()] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            try:
                self._backward(self._applied(images, drawn, True), labels, drawn.permutation, True)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever dynamo, inductor and the C++ or Triton compiler raise
                self._give_up(error)
        self.optimizer.zero_grad(set_to_none=True)

    def _give_up(self, error: Exception) -> None:
        text = f"the step cannot be compiled here ({type(error).__name__}: {first_line(error)})"
        if self._compile == "always":
            raise ValueError(f"{text}; nothing was trained: use --compile auto or never") from error
        self._note(f"{text}: it runs eagerly, with the same results but for rounding")
        self.compiled = False


def _apply(augment: Augmentation, images: Tensor, drawn: Draws) -> Tensor:
    return augment.apply_draws(images, drawn)


def gains_by_compiling(device: torch.device) -> bool:
    """Whether "auto" compiles there. A CPU's time is in matrix products, which compiling leaves as they are."""
    return device.type == "cuda"


def autocast(device_type: str, precision: str) -> AbstractContextManager:
    """bfloat16 for matrix products where the precision says so."""
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16")


def check_precision(precision: str, device: str) -> None:
    """Set how float32 matrix products are taken on a GPU; ValueError where the device has no such numbers."""
    on_gpu = torch.device(device).type == "cuda"
    if precision == "tf32" and not on_gpu:
        raise ValueError("precision=tf32 is of GPUs, and this trial has none: use precision=fp32, or give it a GPU")
    if on_gpu:
        if problem := too_old_for(precision, torch.cuda.current_device()):
            raise ValueError(f"this trial {problem}")
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"


def too_old_for(precision: str, gpu: int) -> str:
    """Why this process's GPU of this number cannot calculate in a precision, as a predicate; empty if it can."""
    capability = torch.cuda.get_device_capability(gpu)
    if precision == "fp32" or capability >= (8, 0):
        return ""
    return (
        f"has a {torch.cuda.get_device_name(gpu)} of compute capability {capability[0]}.{capability[1]}, and "
        f"precision={precision} needs 8.0 or later (A100, RTX 30 and newer): use precision=fp32"
    )
