"""Section 3.1 for judging whether runs can be held against the paper's numbers."""

from typing import Any

from relvit.paper import section_3_1


def paper_recipe(backbone: str, image_size: float) -> dict[str, Any]:
    """The fields of a cell as section 3.1 has them, less epochs and number of images, set for other reasons."""
    own_reasons = ("train_images", "pretrain_epochs", "epochs")
    return {name: value for name, value in section_3_1(backbone, image_size).items() if name not in own_reasons}
