"""Recipes: how a cell is trained unless told otherwise, one value for every field that a study leaves open.

Each value says where it comes from: [3.1] is a section of the paper, [code] the scripts and loaders published with
it, [9] Liu et al. (NeurIPS 2021), [9 code] what they published with it, [ours] a choice of this project.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from relvit import paper
from relvit.cell import FIELDS, type_errors
from relvit.messages import unknown
from relvit.paper import section_3_1

# What is trained, which a recipe leaves open; but for a backbone that a search has chosen.
_NOT_A_RECIPES = ("dataset", "protocol", "tasks", "seed", "pretrain_dataset", "image_size")


@dataclass(frozen=True)
class Recipe:
    """fields: of every cell. stand_ins: by field, what takes the place of a data set or backbone of the paper.

    image_sizes: by data set, the side of its images where that is not the data set's own. variants: what differs with
    Swin and T2T-ViT; joint: what differs with protocol "joint"; tuned: what a search found, which goes before all of
    these.
    """

    fields: Mapping[str, Any]
    stand_ins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    image_sizes: Mapping[str, int] = field(default_factory=dict)
    variants: Mapping[str, Any] = field(default_factory=lambda: paper.VARIANT)
    joint: Mapping[str, Any] = field(default_factory=dict)
    tuned: Mapping[str, Any] = field(default_factory=dict)

    def stand_in(self, name: str, value: str) -> str:
        """The data set or backbone that this recipe uses for that of the paper."""
        return self.stand_ins.get(name, {}).get(value, value)

    def for_backbone(self, backbone: str, image_size: int, protocol: str = "") -> dict[str, Any]:
        """The fields of a cell with this backbone, these images and this protocol."""
        joint = self.joint if protocol == "joint" else {}
        return {**section_3_1(backbone, image_size, self.fields, self.variants), **joint, **self.tuned}


_CPU_SIZES = {"flowers102": 64}  # [ours] 8 x 8 patches of vit_xs8
_CPU_BACKBONES = {
    "vit_s4": "vit_xs8",
    "vit_s8": "vit_xs8",
    "vit_s32": "vit_xs8",
    "swin_t": "swin_xs8",
    "t2t_vit_14": "t2t_xs",
}

RECIPES: dict[str, Recipe] = {
    "paper": Recipe(paper.VIT),
    # What the scripts published with the paper do where they differ from its section 3.1, as far as fields of a cell
    # can say it; the rest (the split that selects, the checkpoint of the pre-training): docs/reproduction.md.
    "reference": Recipe(
        paper.VIT
        | {
            "weight_decay": 0.1,  # [code] README's commands: --weight_decay 0.1
            "drop_path": 0.1,  # [code] README's commands: --drop_path_rate 0.1; for T2T-ViT see paper.T2T
            "pair_head": "low_rank",  # [code] MultiHeadAttentionScores: queries and keys of D // K channels
            "decay": "quarter_cosine",  # [code] cos_anneal_warmup
            "augment_normalised": True,  # [code] patch transforms come after the loader's normalisation
            "keep_classifier": True,  # [code] load_from_checkpoint(strict=False) loads it
            "initialisation": "published",  # [code] trunc_normal_ of the class token, _init_weights
        },
        joint={  # [code] --patch_trans is not used where classes are learned
            "patch_crop": 1.0,
            "jitter_probability": 0.0,
            "greyscale_probability": 0.0,
        },
    ),
    # Liu et al.'s own, with which 16 rows of Table 3 were trained, as far as fields of a cell can say it; the rest:
    # docs/reproduction.md.
    "liu2021": Recipe(
        paper.VIT
        | {
            "epochs": 100,  # [9] section 5.2; their code stops after epoch 100 of a schedule of 300
            "warmup_epochs": 20,  # [9 code] TRAIN.WARMUP_EPOCHS
            "batch_size": 128,  # [9 code] --batch-size 128, here on one GPU as in the author's later logs
            "pretrain_learning_rate": 1.25e-4,
            "learning_rate": 1.25e-4,  # [9 code] TRAIN.BASE_LR 5e-4 for a batch of 512, scaled to 128
            "weight_decay": 0.05,  # [9 code] TRAIN.WEIGHT_DECAY
            "gradient_clip": 5.0,  # [9 code] TRAIN.CLIP_GRAD
            "drop_path": 0.2,  # [9 code] Swin-T's; T2T-ViT is built without, see paper.T2T
            "label_smoothing": 0.1,  # [9 code] MODEL.LABEL_SMOOTHING
            "auto_augment": "randaugment",  # [9 code] AUG.AUTO_AUGMENT rand-m9-mstd0.5-inc1, timm's form of it
            "erase_probability": 0.25,  # [9 code] AUG.REPROB
            "mixup": 0.8,  # [9 code] AUG.MIXUP
            "cutmix": 1.0,  # [9 code] AUG.CUTMIX
            "patch_crop": 1.0,  # [9] knows no augmentation of patches
            "jitter_probability": 0.0,
            "jitter_strength": 0.0,
            "greyscale_probability": 0.0,
        },
        variants={},  # all backbones alike
    ),
    # All 16 cells of Table 4 on the embedded digits in minutes on two cores. Not the paper's numbers: its experiment.
    "demo": Recipe(
        paper.VIT
        | {
            "pretrain_epochs": 20,  # [ours] SpRel accuracy is near its plateau
            "epochs": 20,  # [ours] the supervised cell passes 95 %
            "warmup_epochs": 2,  # [3.1]'s tenth of a phase
            "batch_size": 64,  # [ours] 1,294 training images: 21 steps an epoch
            "pretrain_learning_rate": 2e-3,  # [ours] of 1e-3 and 2e-3 the better for a small model and few steps
            "learning_rate": 2e-3,
            "crop_padding": 1,  # [3.1]'s eighth of the image, scaled to strokes two pixels wide
            "flip_probability": 0.0,  # [ours] a mirrored digit is another sign
        },
        stand_ins={"dataset": {"cifar10": "digits"}, "backbone": _CPU_BACKBONES | {"vit_s4": "vit_xs4"}},
        image_sizes=_CPU_SIZES,
    ),
    # A study on real 32 x 32 images that two cores can pay: few images, many epochs, which is also where pre-training
    # pays over equally long supervised training.
    "cpu": Recipe(
        paper.VIT
        | {
            "train_images": 2000,  # [ours] supervised training saturates
            "batch_size": 128,  # [ours] 16 steps an epoch
            "pretrain_learning_rate": 1e-3,  # [ours] a small model takes a higher rate
            "learning_rate": 1e-3,
        },
        stand_ins={"backbone": _CPU_BACKBONES},
        image_sizes=_CPU_SIZES,
        variants=paper.VARIANT | {"batch_size": 128},
    ),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name, or that in a file, FILE.json. Raises ValueError with the valid ones and the nearest.

    A file holds {"recipe": a name, "fields": what differs from it}, as `sweeps/hpo.py` writes it, or a person.
    """
    if name.endswith(".json"):
        return _from_file(Path(name))
    if name not in RECIPES:
        raise ValueError(unknown("recipe", name, RECIPES))
    return RECIPES[name]


def recipe_file(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of a recipe holds that is the recipe `name`, which may be a file itself, with these fields."""
    if name.endswith(".json"):
        return {
            "recipe": json.loads(Path(name).read_text("utf-8-sig"))["recipe"],
            "fields": {**recipe(name).tuned, **fields},
        }
    return {"recipe": name, "fields": dict(fields)}


def _from_file(path: Path) -> Recipe:
    try:
        content = json.loads(path.read_text("utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise ValueError(f"the recipe file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"the recipe file {path} is not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("fields"), dict) or "recipe" not in content:
        raise ValueError(f'the recipe file {path} must hold {{"recipe": NAME, "fields": {{FIELD: VALUE, ...}}}}')
    fields = content["fields"]
    problems = [unknown("field", name, FIELDS) for name in fields if name not in FIELDS]
    problems += [
        f"{name} is no part of a recipe, a study or an option decides it" for name in fields if name in _NOT_A_RECIPES
    ]
    problems += type_errors({name: value for name, value in fields.items() if name in FIELDS})
    if content["recipe"] not in RECIPES:
        problems.append(unknown("recipe", content["recipe"], RECIPES))
    if problems:
        raise ValueError(f"the recipe file {path}: {'; '.join(problems)}")
    return replace(RECIPES[content["recipe"]], tuned=fields)
