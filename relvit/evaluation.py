"""How a classifier did on each class of a split: confusion matrix, accuracy by class, top-5. n images, K classes.

`train` leaves it as a JSON file in the cell's folder, under the name EVALUATION:
  classes    their names
  confusion  [K][K] numbers of images, by true class and by the class that was answered
  top5       [K] numbers of images of each class that is among the five likeliest answers; absent with K <= 5

A driver reads it too, in which torch would take 300 MB: it is imported where it is needed.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

EVALUATION = "evaluation.json"
_TOP = 5


def evaluated(logits: "Tensor", labels: "Tensor", classes: Sequence[str]) -> dict[str, Any]:
    """logits: [n, K]; labels: int64 [n]."""
    import torch

    count = len(classes)
    pairs = labels * count + logits.argmax(1)
    confusion = torch.bincount(pairs, minlength=count**2).unflatten(0, (count, count))
    found: dict[str, Any] = {"classes": [str(name) for name in classes], "confusion": confusion.tolist()}
    if count > _TOP:
        among = (logits.topk(_TOP).indices == labels[:, None]).any(1)
        found["top5"] = torch.bincount(labels[among], minlength=count).tolist()
    return found


def by_class(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a class and one for all: class, images, accuracy and, where it is known, top5_accuracy, both in percent and
    None without images."""
    confusion, top5 = evaluation["confusion"], evaluation.get("top5")

    def row(name: str, images: int, right: int, among: int | None) -> dict[str, Any]:
        shares = {"accuracy": right} | ({} if among is None else {"top5_accuracy": among})
        return {"class": name, "images": images} | {
            key: 100 * value / images if images else None for key, value in shares.items()
        }

    rows = [
        row(name, sum(answers), answers[place], top5[place] if top5 else None)
        for place, (name, answers) in enumerate(zip(evaluation["classes"], confusion, strict=True))
    ]
    right = sum(answers[place] for place, answers in enumerate(confusion))
    return [*rows, row("all", sum(map(sum, confusion)), right, sum(top5) if top5 else None)]
