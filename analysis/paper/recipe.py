"""How the paper trained, section 3.1, for judging whether runs can be held against its numbers.

The recipe "paper" of `planning.recipes`, less epochs and number of images, which have reasons of their own. This
layer does not know that one; a test holds the two together. Sources are named there.
"""

from typing import Any

from relvit.cell import BACKBONES, ViTSpec

_ALL: dict[str, Any] = {
    "warmup_epochs": 10,
    "batch_size": 256,
    "pretrain_learning_rate": 5e-4,
    "learning_rate": 5e-4,
    "weight_decay": 0.0,
    "gradient_clip": 1.0,
    "drop_path": 0.0,
    "precision": "fp32",
    "selection": "best_val",
    "schedule": "none",
    "crop_padding": 4,
    "crop_min_area": 1.0,
    "flip_probability": 0.5,
    "pair_head": "bilinear",
    "sprel_weight": 1.0,
    "dist_weight": 1.0,
    "ang_weight": 1.0,
    "abspos_weight": 1.0,
    "drloc_weight": 0.5,
    "pretrain_position_embedding": False,
    "permute_patches": False,
    "patch_crop": 1 / 1.15,
    "jitter_probability": 0.8,
    "jitter_strength": 0.4,
    "greyscale_probability": 0.2,
    "mega_grid": 0,
}
_VARIANTS: dict[str, Any] = {
    "batch_size": 64,
    "patch_crop": 1.0,
    "jitter_probability": 0.0,
    "jitter_strength": 0.0,
    "greyscale_probability": 0.0,
}
_AT_224: dict[str, Any] = {"crop_padding": 0, "crop_min_area": 0.08}


def paper_recipe(backbone: str, image_size: float) -> dict[str, Any]:
    """The fields of a cell as section 3.1 has them, of this backbone at so many pixels."""
    fields = dict(_ALL)
    if backbone in BACKBONES and not isinstance(BACKBONES[backbone], ViTSpec):
        fields |= _VARIANTS
    if backbone.startswith("t2t"):
        fields |= {"drloc_weight": 0.1}
    return fields | _AT_224 if image_size >= 224 else fields
