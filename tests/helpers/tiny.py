"""A training of seconds, and how a test stops it, damages what it left and compares what it reported."""

import itertools

from relvit import checkpoint
from relvit.data import Split
from relvit.vocabulary import SPEEDS

# 72 of the small digits below in batches of 32: two full ones and one of 8. Four patches each.
TINY = {
    "dataset": "digits",
    "backbone": "vit_xs8",
    "protocol": "pretrain_finetune",
    "tasks": "sprel+abspos",
    "seed": 0,
    "pretrain_dataset": "digits",
    "image_size": 16,
    "train_images": 0,
    "pretrain_epochs": 2,
    "epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 32,
    "pretrain_learning_rate": 0.001,
    "learning_rate": 0.001,
    "weight_decay": 0.05,
    "gradient_clip": 1.0,
    "drop_path": 0.0,
    "precision": "fp32",
    "selection": "best_val",
    "schedule": "none",
    "crop_padding": 1,
    "crop_min_area": 1.0,
    "flip_probability": 0.5,
    "pair_head": "bilinear",
    "sprel_weight": 1.0,
    "dist_weight": 1.0,
    "ang_weight": 1.0,
    "abspos_weight": 1.0,
    "drloc_weight": 1.0,
    "pretrain_position_embedding": False,
    "permute_patches": False,
    "patch_crop": 0.75,
    "jitter_probability": 0.8,
    "jitter_strength": 0.4,
    "greyscale_probability": 0.2,
    "mega_grid": 0,
}


class Unreadable(Split):
    """A split on a disk that has gone."""

    def read(self, index):
        raise OSError("the disk has gone")

    def part(self, index):
        return Unreadable(self.images, self.rows[index], self.labels[index])


def unreadable(split):
    return Unreadable(split.images, split.rows, split.labels)


def take(count, rows):
    """The first rows of a run that is stopped after them."""
    taken = list(itertools.islice(rows, count))
    rows.close()
    return taken


def without_speeds(rows):
    return [{name: value for name, value in row.items() if name not in SPEEDS} for row in rows]


def silent(message):
    raise AssertionError(f"nothing to report, but: {message}")


def newest(folder):
    return checkpoint.load_newest(folder, "cpu", silent)
