"""What the paper did and how it writes the names of things. Standard library only, for planning and analysis alike.

Each value says where it comes from: [3.1] is a section of the paper, [code] the scripts and loaders published with
it, [9] Liu et al. (NeurIPS 2021), [ours] a choice of this project.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from relvit.cell import FIELDS
from relvit.specs import BACKBONES, ViTSpec
from relvit.tasks import TASKS

# Fields of relvit.cell.Cell under the paper's settings for ViT. The tasks' weights are in their rows: relvit.tasks.
VIT: dict[str, Any] = {
    "train_images": 0,  # all
    "pretrain_epochs": 100,  # [3.1]
    "epochs": 100,  # [3.1]
    "warmup_epochs": 10,  # [3.1]
    "batch_size": 256,  # [3.1], for ViT
    "pretrain_learning_rate": 5e-4,  # [3.1]
    "learning_rate": 5e-4,  # [3.1]
    "weight_decay": 0.0,  # [3.1] "we avoid the use of dropout, drop-path, weight decay, and label smoothing"
    "gradient_clip": 1.0,  # [code] --grad_clip_val 1.0
    "drop_path": 0.0,  # [3.1]
    "precision": "fp32",  # [code] Lightning's default
    "selection": "best_val",  # [code] best epoch; there by the test split, here by the validation split
    "schedule": "none",  # [3.1] has no other schedule than that of the learning rate
    "crop_padding": 4,  # [code] RandomCrop(size, padding=4) for the 32 and 64 pixel sets; [3.1] says "resized crops"
    "crop_min_area": 1.0,  # off, but see AT_224
    "crop_from": "resized",  # [code] crops the original; [ours] as cells did before there was a choice
    "flip_probability": 0.5,  # [3.1] "random horizontal flipping"
    "pair_head": "bilinear",  # Eq. 8
    "pretrain_position_embedding": False,  # [3.2] "we removed the positional encodings in the pre-training"
    "permute_patches": False,  # [3.3] "the shuffling is optional"
    "patch_crop": 1 / 1.15,  # [code] RandomCrop(round(P / 1.15)) of each patch, resized back to P
    "jitter_probability": 0.8,  # [code] RandomApply(ColorJitter(0.4, 0.4, 0.4, 0.1), p=0.8)
    "jitter_strength": 0.4,
    "greyscale_probability": 0.2,  # [code] RandomGrayscale(p=0.2)
    "mega_grid": 0,  # off; [code] has it in upstream_MEGApatch.sh
}

# What differs with Swin and T2T-ViT: [3.1] names patch augmentation "when using ViT backbone and SSL tasks"; [3.1]
# batch size 64 for the variants.
VARIANT: dict[str, Any] = {
    "batch_size": 64,
    "patch_crop": 1.0,
    "jitter_probability": 0.0,
    "jitter_strength": 0.0,
    "greyscale_probability": 0.0,
}
T2T: dict[str, Any] = {
    "drloc_weight": 0.1,  # [9]
    "drop_path": 0.0,  # [code] --drop_path_rate reaches ViT alone: T2T-ViT keeps its default of 0, Swin its own of 0.1
}

# [code] RandomResizedCrop, with torchvision's default area, where images have 224 pixels.
AT_224: dict[str, Any] = {"crop_padding": 0, "crop_min_area": 0.08}

BEST = "sprel+abspos"  # the combination that section 3.2 and Tables 2 and 3 use throughout
VIT_OF = {  # Table 2: the ViT that fits each data set's images
    "cifar10": "vit_s4",
    "svhn": "vit_s4",
    "cifar100": "vit_s4",
    "flowers102": "vit_s32",
    "tiny_imagenet": "vit_s8",
}
TABLE3_DATASETS = ("cifar10", "svhn", "cifar100", "flowers102")

# Names as its tables print them.
DATASET_NAMES = {
    "cifar10": "CIFAR-10",
    "svhn": "SVHN",
    "cifar100": "CIFAR-100",
    "flowers102": "Flower-102",
    "tiny_imagenet": "TinyImagenet",
}
BACKBONE_NAMES = {name: spec.title for name, spec in BACKBONES.items()}
FAMILIES = {"vit": "ViT", "swin": "Swin", "t2t": "T2T-ViT"}
METHODS = {"supervised": "Supervised", "drloc": "L_drloc", "relvit": "RelViT"}

_SHORT = {  # as Figure 2 names them
    ("pretrain_position_embedding", True): "PE",
    ("pretrain_position_embedding", False): "no PE",
    ("permute_patches", True): "Perm",
    ("permute_patches", False): "no Perm",
}


def dataset_name(dataset: str) -> str:
    """ "CIFAR-10" for cifar10; a user's own data set keeps its name."""
    return DATASET_NAMES.get(dataset, dataset)


def backbone_name(backbone: str) -> str:
    """ "ViT-S/4" for vit_s4; what is none of ours keeps its name."""
    return BACKBONE_NAMES.get(backbone, backbone)


def named_value(field: str, value: Any) -> str:
    """ "no PE", as the paper's Figure 2 has it, or "epochs=30"."""
    return _SHORT.get((field, value), f"{field}={value}")


def telling_fields(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """As few fields as tell cells apart whose tasks are named anyhow, seeds aside. rows: by field, what is known of
    each cell."""
    found = {name: {row[name] for row in rows if name in row} for name in FIELDS if name not in ("tasks", "seed")}
    chosen = [name for name, values in found.items() if len(values) > 1]

    def apart(by: Sequence[str]) -> int:
        return len({(row.get("tasks"), *(row.get(name) for name in by)) for row in rows})

    wanted = apart(chosen)
    for name in reversed(chosen):
        fewer = [other for other in chosen if other != name]
        chosen = fewer if apart(fewer) == wanted else chosen
    return chosen


def section_3_1(
    backbone: str, image_size: float, fields: Mapping[str, Any] = VIT, variant: Mapping[str, Any] = VARIANT
) -> dict[str, Any]:
    """The fields of a cell as section 3.1 has them, with this backbone and images of so many pixels a side.

    fields, variant: those of another recipe with the same exceptions for Swin, T2T-ViT and large images.
    """
    result = {task.weight_field: task.weight for task in TASKS.values()} | dict(fields)
    if backbone in BACKBONES and not isinstance(BACKBONES[backbone], ViTSpec):
        result |= variant
    if backbone.startswith("t2t"):
        result |= T2T
    return result | AT_224 if image_size >= 224 else result
