"""RelViT: a backbone, a head for each task over its patch tokens, and a classifier over its pooled embedding."""

from typing import Any

import torch
from torch import Tensor, nn

from relvit.backbones import Backbone, Features, fitted, is_position_embedding
from relvit.heads import task_head
from relvit.tasks import TASKS

CLASSIFICATION = "classification"


class LogisticProbe(nn.Module):
    """Two linear classifiers, of the pooled embedding and of the mean of the patch tokens, of which one is chosen."""

    reads_patches: Tensor

    def __init__(self, pooled: int, patches: int, classes: int):
        super().__init__()
        self.pooled, self.patches = nn.Linear(pooled, classes), nn.Linear(patches, classes)
        self.register_buffer("reads_patches", torch.tensor(False))

    def forward(self, features: Features) -> Tensor:
        """The chosen classifier's logits, [B, K]."""
        return torch.where(self.reads_patches, self.patches(features.tokens.mean(1)), self.pooled(features.pooled))


class RelViT(nn.Module):
    """Section 2.2. Holds only what is trained: no classifier where `classes` is 0, no head for a task left out.

    With probe=True the backbone is frozen, in evaluation mode, and a linear classifier reads the mean of its patch
    tokens: pre-training on tasks optimises those, and leaves the class token without a loss of its own. With
    logistic=True as well it is a `LogisticProbe`, for `relvit.features.fit_logistic` to fit.
    """

    def __init__(
        self,
        backbone: Backbone,
        tasks: tuple[str, ...] = (),
        *,
        classes: int = 0,
        pair_head: str = "bilinear",
        probe: bool = False,
        logistic: bool = False,
    ):
        super().__init__()
        if not tasks and not classes:
            raise ValueError("nothing to train: give at least one task, or the number of classes")
        self.backbone = backbone.requires_grad_(not probe)
        self.probe = probe
        patches = backbone.grid[0] * backbone.grid[1]
        heads = {task: task_head(TASKS[task], backbone.dim, patches, pair_head) for task in tasks}
        self.heads = nn.ModuleDict(heads)
        embedded = backbone.pooled_dim or backbone.dim
        self.classifier: nn.Linear | LogisticProbe | None = None
        if classes and logistic:
            self.classifier = LogisticProbe(embedded, backbone.dim, classes)
        elif classes:
            self.classifier = nn.Linear(backbone.dim if probe else embedded, classes)

    def train(self, mode: bool = True) -> "RelViT":
        """As torch's; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.probe:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Any]:
        """images: float [B, 3, H, W], normalised. Returns each task's prediction, and "classification" [B, K]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.probe):
            features = self.backbone(images)
        predictions = {task: head(features.tokens) for task, head in self.heads.items()}
        if self.classifier is not None:
            predictions[CLASSIFICATION] = self._classify(features)
        return predictions

    def _classify(self, features: Features) -> Tensor:
        if isinstance(self.classifier, LogisticProbe):
            return self.classifier(features)
        assert self.classifier is not None
        return self.classifier(features.tokens.mean(1) if self.probe else features.pooled)

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Start the backbone from a pre-trained one's state.

        A position embedding that pre-training left out stays as freshly initialised; one that it had is taken
        over, interpolated where the grid is another. Raises ValueError if anything else does not match.
        """
        missing, unexpected = self.backbone.load_state_dict(fitted(state, self.backbone), strict=False)
        missing = [name for name in missing if not is_position_embedding(name)]
        if missing or unexpected:
            raise ValueError(f"the pre-trained backbone lacks {missing} and has unknown {unexpected}")
