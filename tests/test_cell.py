"""One cell: what makes it valid, what it is called, and how it is written on a command line."""

import dataclasses
import math

import pytest

from relvit.cell import (
    BACKBONES,
    FIELDS,
    LATER_FIELDS,
    PROTOCOLS,
    Cell,
    canonical_tasks,
    make_cell,
    parse_schedule,
    parse_tasks,
    parse_value,
    patch_crop_size,
    task_combinations,
)

ALL_TASKS = "sprel+dist+ang+abspos"
BACKBONE_NAMES = "vit_s4, vit_s8, vit_s32, swin_t, t2t_vit_14, vit_xs4, vit_xs8, swin_xs8, t2t_xs"

# A valid cell in which every field acts, but for drloc, which stands alone, and mega-patches, which
# are off.
BASE = {
    "dataset": "digits",
    "backbone": "vit_xs4",
    "protocol": "pretrain_finetune",
    "tasks": ALL_TASKS,
    "tasks_digest": "",
    "seed": 0,
    "pretrain_dataset": "digits",
    "image_size": 16,
    "train_images": 0,
    "labels_per_class": 0,
    "label_share": 1.0,
    "finetune_image_size": 0,
    "pretrain_epochs": 20,
    "epochs": 20,
    "warmup_epochs": 2,
    "batch_size": 64,
    "pretrain_learning_rate": 0.001,
    "learning_rate": 0.001,
    "weight_decay": 0.05,
    "gradient_clip": 1.0,
    "drop_path": 0.0,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "ema_decay": 0.0,
    "auto_augment": "none",
    "erase_probability": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "precision": "fp32",
    "selection": "best_val",
    "schedule": "none",
    "crop_from": "resized",
    "decay": "half_cosine",
    "initialisation": "timm",
    "val_share": 0.1,
    "keep_classifier": False,
    "probe": "sgd",
    "crop_padding": 0,
    "crop_min_area": 1.0,
    "flip_probability": 0.0,
    "pair_head": "bilinear",
    "sprel_weight": 1.0,
    "dist_weight": 1.0,
    "ang_weight": 1.0,
    "abspos_weight": 1.0,
    "drloc_weight": 0.0,
    "pretrain_position_embedding": False,
    "permute_patches": False,
    "patch_crop": 0.75,
    "jitter_probability": 0.8,
    "jitter_strength": 0.4,
    "greyscale_probability": 0.2,
    "augment_normalised": False,
    "mega_grid": 0,
}
# A supervised cell in two phases.
SUPERVISED = {
    "tasks": "none",
    "pair_head": "none",
    "sprel_weight": 0.0,
    "dist_weight": 0.0,
    "ang_weight": 0.0,
    "abspos_weight": 0.0,
    "patch_crop": 1.0,
    "jitter_probability": 0.0,
    "jitter_strength": 0.0,
    "greyscale_probability": 0.0,
}
LOGISTIC = {"protocol": "pretrain_probe", "epochs": 1, "learning_rate": 0.0, "selection": "last", "probe": "logistic"}

# What makes of it the rival of Table 3.
DRLOC = {
    "tasks": "drloc",
    "protocol": "joint",
    "pretrain_dataset": "none",
    "pretrain_epochs": 0,
    "pretrain_learning_rate": 0.0,
    "pair_head": "none",
    "sprel_weight": 0.0,
    "dist_weight": 0.0,
    "ang_weight": 0.0,
    "abspos_weight": 0.0,
    "drloc_weight": 1.0,
}

# For each field another valid value, with what has to follow from it.
OTHER = {
    "dataset": {"dataset": "cifar10"},
    "backbone": {"backbone": "vit_xs8"},
    "protocol": {
        "protocol": "joint",
        "pretrain_dataset": "none",
        "pretrain_epochs": 0,
        "pretrain_learning_rate": 0.0,
    },
    "tasks": {"tasks": "sprel+dist+ang", "abspos_weight": 0.0},
    "seed": {"seed": 1},
    "pretrain_dataset": {"pretrain_dataset": "cifar10"},
    "image_size": {"image_size": 32},
    "train_images": {"train_images": 100},
    "labels_per_class": {"labels_per_class": 10},
    "label_share": {"label_share": 0.1},
    "finetune_image_size": {"finetune_image_size": 32},
    "pretrain_epochs": {"pretrain_epochs": 21},
    "epochs": {"epochs": 21},
    "warmup_epochs": {"warmup_epochs": 3},
    "batch_size": {"batch_size": 65},
    "pretrain_learning_rate": {"pretrain_learning_rate": 0.002},
    "learning_rate": {"learning_rate": 0.002},
    "weight_decay": {"weight_decay": 0.0},
    "gradient_clip": {"gradient_clip": 0.0},
    "drop_path": {"drop_path": 0.1},
    "dropout": {"dropout": 0.1},
    "label_smoothing": {"label_smoothing": 0.1},
    "ema_decay": {"ema_decay": 0.99},
    "auto_augment": {"auto_augment": "trivialaugment"},
    "erase_probability": {"erase_probability": 0.25},
    "mixup": {"mixup": 0.8},
    "cutmix": {"cutmix": 1.0},
    "precision": {"precision": "bf16"},
    "selection": {"selection": "last"},
    "schedule": {"schedule": "5:learning_rate=0.002"},
    "decay": {"decay": "quarter_cosine"},
    "initialisation": {"initialisation": "published"},
    "val_share": {"val_share": 0.2},
    "keep_classifier": SUPERVISED | {"keep_classifier": True},
    "probe": LOGISTIC,
    "crop_padding": {"crop_padding": 1},
    "crop_min_area": {"crop_min_area": 0.5},
    "flip_probability": {"flip_probability": 0.5},
    "crop_from": {"crop_from": "original"},
    "pair_head": {"pair_head": "low_rank"},
    "sprel_weight": {"sprel_weight": 2.0},
    "dist_weight": {"dist_weight": 2.0},
    "ang_weight": {"ang_weight": 2.0},
    "abspos_weight": {"abspos_weight": 2.0},
    "drloc_weight": DRLOC | {"drloc_weight": 2.0},
    "pretrain_position_embedding": {"pretrain_position_embedding": True},
    "permute_patches": {"permute_patches": True},
    "patch_crop": {"patch_crop": 1.0},
    "jitter_probability": {"jitter_probability": 0.5},
    "jitter_strength": {"jitter_strength": 0.5},
    "greyscale_probability": {"greyscale_probability": 0.0},
    "augment_normalised": {"augment_normalised": True},
    "mega_grid": {"mega_grid": 2},
}


# Names


def test_the_cell_id_changes_with_every_field():
    assert {*OTHER, "tasks_digest"} == set(FIELDS) == set(BASE)  # which test_task_files.py has
    digests = {Cell(**BASE).cell_id.rsplit("-", 1)[1]}
    digests |= {Cell(**BASE | change).cell_id.rsplit("-", 1)[1] for change in OTHER.values()}
    assert len(digests) == len(FIELDS)
    # These cannot change alone in the cell above.
    for others, change in ((DRLOC, {"drloc_weight": 2.0}), (SUPERVISED, {"keep_classifier": True})):
        assert Cell(**BASE | others).cell_id != Cell(**BASE | others | change).cell_id
    probe = BASE | {"protocol": "pretrain_probe"} | {name: LOGISTIC[name] for name in ("epochs", "selection")}
    assert Cell(**probe | {"warmup_epochs": 0}).cell_id != Cell(**BASE | LOGISTIC | {"warmup_epochs": 0}).cell_id


def test_a_cell_of_before_a_field_came_is_the_cell_that_holds_its_default():
    before = {name: value for name, value in BASE.items() if name not in LATER_FIELDS}
    assert LATER_FIELDS == {
        "tasks_digest": "",
        "labels_per_class": 0,
        "label_share": 1.0,
        "finetune_image_size": 0,
        "dropout": 0.0,
        "label_smoothing": 0.0,
        "ema_decay": 0.0,
        "auto_augment": "none",
        "erase_probability": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "schedule": "none",
        "decay": "half_cosine",
        "initialisation": "timm",
        "val_share": 0.1,
        "keep_classifier": False,
        "probe": "sgd",
        "augment_normalised": False,
        "crop_from": "resized",
    }
    assert Cell(**before) == Cell(**BASE)


def test_the_cell_id_is_the_same_in_every_process_and_on_every_machine():
    # The first ten digits of the SHA-256 of the fields as compact JSON with sorted keys, worked out once: should they
    # change, every finished cell would be trained again.
    assert Cell(**BASE).cell_id == "digits-vit_xs4-pretrain_finetune-sprel+dist+ang+abspos-s0-6671deb5f4"


def test_the_cell_id_does_not_depend_on_the_order_of_the_fields():
    assert Cell(**dict(reversed(BASE.items()))).cell_id == Cell(**BASE).cell_id


def test_1_and_1_point_0_are_the_same_setting():
    whole = Cell(**BASE | {"gradient_clip": 1, "sprel_weight": 1, "weight_decay": 0})
    point = Cell(**BASE | {"gradient_clip": 1.0, "sprel_weight": 1.0, "weight_decay": 0.0})
    assert whole == point
    assert whole.cell_id == point.cell_id


def test_zero_and_minus_zero_are_the_same_setting():
    assert Cell(**BASE | {"weight_decay": -0.0}).cell_id == Cell(**BASE | {"weight_decay": 0.0}).cell_id


def test_a_cell_is_made_again_from_its_dictionary():
    cell = Cell(**BASE)
    assert cell.as_dict() == BASE
    assert list(cell.as_dict()) == list(FIELDS)
    assert Cell(**cell.as_dict()) == cell


def test_a_cell_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Cell(**BASE).seed = 1


def test_what_follows_from_the_fields():
    cell = Cell(**BASE | {"image_size": 24})
    assert cell.grid == (6, 6)
    assert cell.patch_size == 4
    assert cell.total_epochs == 40
    assert cell.task_list == ("sprel", "dist", "ang", "abspos")
    assert cell.method == "relvit"
    supervised = make_cell(**BASE | {"tasks": "none"})
    assert supervised.task_list == ()
    assert supervised.method == "supervised"


def test_a_token_of_each_backbone_sees_this_many_pixels_a_side():
    assert {name: spec.patch_size for name, spec in BACKBONES.items()} == {
        "vit_s4": 4,
        "vit_s8": 8,
        "vit_s32": 32,
        "swin_t": 32,  # patches of 4, merged in twos three times
        "t2t_vit_14": 32,  # soft splits of stride 4, 2 and 2, then pooling of stride 2
        "vit_xs4": 4,
        "vit_xs8": 8,
        "swin_xs8": 8,  # patches of 4, merged once
        "t2t_xs": 32,
    }


# Tasks


def test_there_are_16_combinations_in_the_order_of_table_4():
    assert task_combinations() == [
        "none",
        "sprel",
        "dist",
        "ang",
        "abspos",
        "sprel+dist",
        "sprel+ang",
        "sprel+abspos",
        "dist+ang",
        "dist+abspos",
        "ang+abspos",
        "sprel+dist+ang",
        "sprel+dist+abspos",
        "sprel+ang+abspos",
        "dist+ang+abspos",
        "sprel+dist+ang+abspos",
    ]


def test_tasks_have_one_spelling():
    assert parse_tasks("abspos+sprel") == ("sprel", "abspos")
    assert canonical_tasks("abspos+sprel") == "sprel+abspos"
    assert canonical_tasks("none") == "none"
    assert [canonical_tasks(tasks) for tasks in task_combinations()] == task_combinations()
    with pytest.raises(ValueError, match="tasks 'abspos\\+sprel' are written 'sprel\\+abspos'"):
        make_cell(**BASE | {"tasks": "abspos+sprel"})


def test_unknown_and_repeated_tasks_are_refused():
    with pytest.raises(
        ValueError, match="unknown task 'sprell': one of sprel, dist, ang, abspos, drloc, none; did you mean 'sprel'"
    ):
        parse_tasks("sprell+dist")
    with pytest.raises(ValueError, match="task 'dist' is named twice in 'dist\\+sprel\\+dist'"):
        parse_tasks("dist+sprel+dist")
    with pytest.raises(ValueError, match="unknown task 'none'"):
        parse_tasks("sprel+none")


# Values that are refused


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dataset", "../digits", "dataset '../digits' is not a plain folder name"),
        ("dataset", "", "dataset '' is not a plain folder name"),
        ("pretrain_dataset", "../digits", "pretrain_dataset '../digits' is not a plain folder name"),
        ("pretrain_dataset", "", "pretrain_dataset '' is not a plain folder name"),
        (
            "backbone",
            "vit_s5",
            f"unknown backbone 'vit_s5': one of {BACKBONE_NAMES}, timm/NAME;",
        ),
        (
            "protocol",
            "jiont",
            "unknown protocol 'jiont': one of joint, pretrain_finetune, pretrain_probe, pretrain; "
            "did you mean 'joint'\\?",
        ),
        ("tasks", "sprel+", "unknown task ''"),
        ("seed", -1, "seed must be at least 0, not -1"),
        ("seed", 1.0, "seed must be of type int, not 1.0"),
        ("seed", True, "seed must be of type int, not True"),
        ("image_size", 0, "image_size must be at least 1, not 0"),
        ("train_images", -1, "train_images must be at least 0, not -1"),
        ("pretrain_epochs", 0, "pretrain_epochs must be above 0 with protocol 'pretrain_finetune', not 0"),
        ("pretrain_epochs", -1, "pretrain_epochs must be above 0 with protocol 'pretrain_finetune', not -1"),
        ("epochs", 0, "(^|; )epochs must be above 0 with protocol 'pretrain_finetune', not 0"),
        ("warmup_epochs", 20, "warmup_epochs must be below the 20 epochs of the shortest phase, not 20"),
        ("warmup_epochs", -1, "warmup_epochs must be at least 0, not -1"),
        ("batch_size", 0, "batch_size must be at least 1, not 0"),
        ("batch_size", "64", "batch_size must be of type int, not '64'"),
        ("learning_rate", 0, "^learning_rate must be above 0 with protocol 'pretrain_finetune', not 0"),
        (
            "pretrain_learning_rate",
            0,
            "pretrain_learning_rate must be above 0 with protocol 'pretrain_finetune', not 0",
        ),
        ("pretrain_learning_rate", -1.0, "pretrain_learning_rate must be above 0 with protocol .*, not -1.0"),
        ("learning_rate", math.nan, "learning_rate must be finite, not nan"),
        ("learning_rate", math.inf, "learning_rate must be finite, not inf"),
        ("weight_decay", -0.1, "weight_decay must be at least 0, not -0.1"),
        ("gradient_clip", -1.0, "gradient_clip must be at least 0, not -1.0"),
        ("drop_path", 1.0, "drop_path must be at least 0 and below 1, not 1.0"),
        ("precision", "fp16", "unknown precision 'fp16': one of fp32, tf32, bf16"),
        ("selection", "best", "unknown selection 'best': one of best_val, last; did you mean 'best_val'?"),
        ("crop_padding", -1, "crop_padding must be at least 0, not -1"),
        ("crop_min_area", 0.0, "crop_min_area must be above 0 and at most 1, not 0.0"),
        ("crop_min_area", 1.1, "crop_min_area must be above 0 and at most 1, not 1.1"),
        ("flip_probability", 1.1, "flip_probability must be between 0 and 1, not 1.1"),
        ("pair_head", "linear", "unknown pair_head 'linear': one of bilinear, low_rank, none"),
        ("pair_head", "none", "pair_head must be one of bilinear, low_rank with tasks='sprel\\+dist\\+ang\\+abspos'"),
        ("sprel_weight", -1.0, "sprel_weight must be at least 0, not -1.0"),
        ("drloc_weight", -1.0, "drloc_weight must be at least 0, not -1.0"),
        ("sprel_weight", 0.0, "sprel_weight=0 switches a named task off: leave 'sprel' out of tasks instead"),
        ("pretrain_position_embedding", 1, "pretrain_position_embedding must be of type bool, not 1"),
        ("permute_patches", "true", "permute_patches must be of type bool, not 'true'"),
        ("patch_crop", 0.0, "patch_crop must be above 0 and at most 1, not 0.0"),
        ("patch_crop", 0.9, "patch_crop=0.9 takes 4 of the 4 pixels of a patch's side: .* set it to 1"),
        ("patch_crop", 0.1, "patch_crop=0.1 takes 0 of the 4 pixels of a patch's side: that is nothing"),
        ("jitter_probability", -0.1, "jitter_probability must be between 0 and 1, not -0.1"),
        ("jitter_strength", 1.5, "jitter_strength must be at most 1, not 1.5"),
        ("jitter_strength", 0.0, "jitter_probability above 0 with jitter_strength=0 changes nothing"),
        ("greyscale_probability", 2.0, "greyscale_probability must be between 0 and 1, not 2.0"),
        ("mega_grid", -1, "mega_grid must be at least 0, not -1"),
    ],
)
def test_an_invalid_value_is_refused_with_a_reason(field, value, message):
    with pytest.raises(ValueError, match=message):
        Cell(**BASE | {field: value})


def test_everything_that_is_wrong_stands_in_one_message():
    with pytest.raises(ValueError) as caught:
        Cell(**BASE | {"backbone": "vit_s", "epochs": 0, "learning_rate": -1.0, "tasks": "sprl"})
    assert str(caught.value).split("; ") == [
        f"unknown backbone 'vit_s': one of {BACKBONE_NAMES}, timm/NAME",
        "did you mean 'vit_s8'?",
        "unknown task 'sprl': one of sprel, dist, ang, abspos, drloc, none",
        "did you mean 'sprel'?",
        "epochs must be above 0 with protocol 'pretrain_finetune', not 0",
        "learning_rate must be above 0 with protocol 'pretrain_finetune', not -1.0",
    ]


def test_every_field_of_the_wrong_type_is_named():
    with pytest.raises(ValueError) as caught:
        Cell(**BASE | {"seed": "0", "tasks": None, "drop_path": True})
    assert str(caught.value) == (
        "tasks must be of type str, not None; seed must be of type int, not '0'; "
        "drop_path must be of type float, not True"
    )


@pytest.mark.parametrize("tasks", [None, ["sprel", "abspos"], 4])
def test_make_cell_refuses_tasks_that_are_no_text_as_cell_does(tasks):
    with pytest.raises(ValueError, match="tasks must be of type str"):
        make_cell(**BASE | {"tasks": tasks})


@pytest.mark.parametrize(
    ("backbone", "image_size", "message"),
    [
        ("vit_s4", 30, "patches of 4 pixels \\(vit_s4\\) do not divide an image_size of 30: try 28 or 32"),
        ("vit_s32", 100, "patches of 32 pixels \\(vit_s32\\) do not divide an image_size of 100: try 96 or 128"),
        # Below two patches only a larger size helps.
        ("vit_s32", 33, "do not divide an image_size of 33: try 64$"),
        ("vit_s32", 10, "do not divide an image_size of 10: try 64$"),
        ("vit_s32", 32, "image_size 32 is a single patch of vit_s32: at least 64 is needed"),
    ],
)
def test_an_image_size_that_gives_no_grid_is_refused_with_one_that_does(backbone, image_size, message):
    with pytest.raises(ValueError, match=message):
        Cell(**BASE | {"backbone": backbone, "image_size": image_size, "patch_crop": 1.0})


def test_two_ways_to_crop_are_refused():
    with pytest.raises(ValueError, match="crop_padding and crop_min_area are two ways to crop"):
        Cell(**BASE | {"crop_padding": 1, "crop_min_area": 0.5})


def test_the_published_patch_crop_takes_a_part_of_the_patch_of_every_backbone():
    # round(P / 1.15), worked out for P = 4, 8, 32.
    assert [patch_crop_size(size, 1 / 1.15) for size in (4, 8, 32)] == [3, 7, 28]
    for backbone, spec in BACKBONES.items():
        assert Cell(**BASE | {"backbone": backbone, "image_size": 2 * spec.patch_size, "patch_crop": 1 / 1.15})


# Fields that cannot act


OF_TASKS = {"sprel_weight": 0.0, "dist_weight": 0.0, "ang_weight": 0.0, "abspos_weight": 0.0, "pair_head": "none"}
OF_PRETRAINING = {
    "pretrain_dataset": "none",
    "pretrain_epochs": 0,
    "pretrain_learning_rate": 0.0,
    "pretrain_position_embedding": False,
}


@pytest.mark.parametrize(
    ("change", "neutral"),
    [
        (
            {"tasks": "none"},
            OF_TASKS
            | {
                "drloc_weight": 0.0,
                "patch_crop": 1.0,
                "jitter_probability": 0.0,
                "jitter_strength": 0.0,
                "greyscale_probability": 0.0,
                "permute_patches": False,
            },
        ),
        ({"tasks": "sprel+abspos"}, {"dist_weight": 0.0, "ang_weight": 0.0, "drloc_weight": 0.0}),
        (
            {"tasks": "abspos"},
            {"pair_head": "none", "sprel_weight": 0.0, "dist_weight": 0.0, "ang_weight": 0.0, "drloc_weight": 0.0},
        ),
        ({"protocol": "joint"}, OF_PRETRAINING | {"drloc_weight": 0.0}),
        ({"protocol": "joint", "tasks": "drloc"}, OF_PRETRAINING | OF_TASKS),
        (
            {"protocol": "pretrain", "pretrain_dataset": "cifar10"},
            {"dataset": "cifar10", "epochs": 0, "learning_rate": 0.0, "selection": "last", "drloc_weight": 0.0},
        ),
        ({"protocol": "pretrain_probe"}, {"drloc_weight": 0.0}),
        ({"jitter_probability": 0.0}, {"jitter_strength": 0.0, "drloc_weight": 0.0}),
        (
            {"jitter_probability": 0.0, "greyscale_probability": 0.0, "augment_normalised": True},
            {"jitter_strength": 0.0, "augment_normalised": False, "drloc_weight": 0.0},
        ),
        # Only a classifier of the same classes can be kept, and only a supervised first phase has one.
        ({"keep_classifier": True}, {"keep_classifier": False, "drloc_weight": 0.0}),
        (
            SUPERVISED | {"keep_classifier": True, "pretrain_dataset": "cifar10"},
            {"keep_classifier": False, "permute_patches": False, "drloc_weight": 0.0},
        ),
        ({"probe": "logistic"}, {"probe": "sgd", "drloc_weight": 0.0}),
        (
            {"protocol": "pretrain", "label_share": 0.5, "finetune_image_size": 32},
            {"label_share": 1.0, "finetune_image_size": 0, "epochs": 0, "learning_rate": 0.0, "selection": "last"}
            | {"drloc_weight": 0.0},
        ),
        # Logistic regression has no epochs, no rate, and nothing to select.
        (
            {"protocol": "pretrain_probe", "probe": "logistic"},
            {"epochs": 1, "learning_rate": 0.0, "selection": "last", "drloc_weight": 0.0},
        ),
        ({"backbone": "swin_xs8"}, {"pretrain_position_embedding": False, "drloc_weight": 0.0}),
        # Mega-patches go without position embeddings.
        (
            {"mega_grid": 2, "pretrain_position_embedding": False, "protocol": "joint"},
            {"mega_grid": 0, "pretrain_dataset": "none", "pretrain_epochs": 0, "pretrain_learning_rate": 0.0}
            | {"drloc_weight": 0.0},
        ),
        (
            {"mega_grid": 2, "pretrain_position_embedding": False, "tasks": "none", "patch_crop": 1.0}
            | {"jitter_probability": 0.0, "jitter_strength": 0.0, "greyscale_probability": 0.0}
            | {"permute_patches": False},
            OF_TASKS | {"mega_grid": 0, "drloc_weight": 0.0},
        ),
    ],
    ids=lambda change: " ".join(f"{name}={value}" for name, value in list(change.items())[:3]),
)
def test_a_field_that_cannot_act_is_refused_by_cell_and_filled_by_make_cell(change, neutral):
    # The recipe has a value that acts for every field.
    recipe = BASE | {"pretrain_position_embedding": True, "permute_patches": True, "drloc_weight": 0.5} | change
    made = make_cell(**recipe)
    assert made.as_dict() == recipe | neutral
    assert Cell(**recipe | neutral) == made
    for field in neutral:
        with pytest.raises(ValueError, match=f"{field}=.* has no effect with tasks=.*: it must be {neutral[field]!r}"):
            Cell(**recipe | neutral | {field: recipe[field]})


def test_a_jitter_strength_without_jitter_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="jitter_strength=0.4 has no effect .*jitter_probability=0: it must be 0.0"):
        Cell(**BASE | {"jitter_probability": 0.0})


def test_supervised_cells_that_differ_only_in_what_cannot_act_are_the_same_cell():
    one = make_cell(**BASE | {"tasks": "none", "pair_head": "low_rank", "sprel_weight": 3.0})
    other = make_cell(**BASE | {"tasks": "none", "pair_head": "bilinear", "sprel_weight": 0.5})
    assert one.cell_id == other.cell_id


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("tasks", task_combinations())
def test_every_combination_of_tasks_is_a_cell_in_every_protocol(tasks, protocol):
    assert make_cell(**BASE | {"tasks": tasks, "protocol": protocol}).tasks == tasks


def test_a_swin_transformer_holds_false_for_the_position_embedding_that_it_cannot_leave_out():
    swin = BASE | {"backbone": "swin_xs8"}
    assert Cell(**swin).pretrain_position_embedding is False
    with pytest.raises(ValueError, match="pretrain_position_embedding=True has no effect .*: it must be False"):
        Cell(**swin | {"pretrain_position_embedding": True})
    # A T2T-ViT has one.
    t2t = make_cell(**BASE | {"backbone": "t2t_xs", "image_size": 64, "pretrain_position_embedding": True})
    assert t2t.pretrain_position_embedding is True


# Dense relative localisation, the rival


def test_drloc_is_a_method_of_its_own():
    cell = Cell(**BASE | DRLOC)
    assert cell.task_list == ("drloc",)
    assert cell.method == "drloc"
    assert parse_tasks("drloc") == ("drloc",)


@pytest.mark.parametrize("tasks", ["sprel+drloc", "drloc+abspos", "sprel+dist+ang+abspos+drloc"])
def test_drloc_beside_tasks_is_refused(tasks):
    with pytest.raises(ValueError, match="drloc is the rival that the tasks are compared with .*, it stands alone"):
        parse_tasks(tasks)
    with pytest.raises(ValueError, match="drloc is the rival"):
        make_cell(**BASE | {"tasks": tasks, "protocol": "joint", "drloc_weight": 1.0})


@pytest.mark.parametrize("protocol", ["pretrain_finetune", "pretrain_probe", "pretrain"])
def test_drloc_in_a_phase_of_its_own_is_refused(protocol):
    fields = BASE | {"tasks": "drloc", "protocol": protocol, "drloc_weight": 1.0}
    with pytest.raises(ValueError, match="drloc is trained jointly with classification .*: protocol must be 'joint'"):
        make_cell(**fields)


def test_drloc_without_a_weight_is_refused():
    with pytest.raises(ValueError, match="drloc_weight=0 switches a named task off"):
        Cell(**BASE | DRLOC | {"drloc_weight": 0.0})


@pytest.mark.parametrize("tasks", [ALL_TASKS, "none"])
def test_supervised_is_no_protocol_and_the_message_says_how_it_is_written(tasks):
    message = "supervised training is tasks='none' with protocol 'joint' \\(one phase\\) or 'pretrain_finetune'"
    with pytest.raises(ValueError, match=message):
        make_cell(**BASE | {"tasks": tasks, "protocol": "supervised"})


# Mega-patches


@pytest.mark.parametrize("side", [2, 3])
def test_a_mega_grid_has_fewer_cells_than_the_image_has_patches(side):
    assert Cell(**BASE | {"mega_grid": side}).mega_grid == side
    assert Cell(**BASE | {"mega_grid": side, "protocol": "pretrain_probe"}).mega_grid == side


@pytest.mark.parametrize("side", [1, 4, 5])
def test_a_mega_grid_of_one_cell_or_of_all_patches_is_refused(side):
    message = f"mega_grid must be at least 2 and below the 4 patches a side, not {side}"
    with pytest.raises(ValueError, match=message):
        Cell(**BASE | {"mega_grid": side})


@pytest.mark.parametrize(("backbone", "size"), [("swin_xs8", 32), ("t2t_xs", 128)])
def test_a_mega_grid_needs_a_vit(backbone, size):
    fields = BASE | {"backbone": backbone, "image_size": size}
    assert Cell(**fields).grid == (4, 4)
    message = f"mega_grid needs a ViT, whose tokens are the image's patches, not {backbone}"
    with pytest.raises(ValueError, match=message):
        Cell(**fields | {"mega_grid": 2})


def test_a_mega_grid_goes_without_position_embeddings():
    with pytest.raises(ValueError, match="mega_grid changes the number of patches, so pre-training cannot have"):
        Cell(**BASE | {"mega_grid": 2, "pretrain_position_embedding": True})


# The first phase, which cells may share

# What only the phase that classifies depends on.
OF_FINE_TUNING = {"dataset", "epochs", "learning_rate", "selection", "schedule", "probe"}
OF_FINE_TUNING |= {"mixup", "cutmix", "label_smoothing", "ema_decay"}
OF_FINE_TUNING |= {"labels_per_class", "label_share", "finetune_image_size"}  # tasks need no label
# drloc_weight acts in no pre-training, and keep_classifier after a supervised one alone.
OF_THE_FIRST_PHASE = sorted(set(OTHER) - OF_FINE_TUNING - {"protocol", "drloc_weight", "keep_classifier"})


@pytest.mark.parametrize("field", [*sorted(OF_FINE_TUNING), "protocol"])
def test_cells_that_differ_in_their_second_phase_alone_have_one_pretraining(field):
    other = Cell(**BASE | (OTHER[field] if field != "protocol" else {"protocol": "pretrain_probe"}))
    assert other != Cell(**BASE)
    assert other.pretraining() == Cell(**BASE).pretraining()
    assert other.pretraining().cell_id == Cell(**BASE).pretraining().cell_id


@pytest.mark.parametrize("field", OF_THE_FIRST_PHASE)
def test_cells_that_differ_in_their_first_phase_have_two_pretrainings(field):
    assert Cell(**BASE | OTHER[field]).pretraining() != Cell(**BASE).pretraining()


def test_a_pretraining_is_shared_whether_or_not_its_classifier_is_kept():
    fresh, kept = (Cell(**BASE | SUPERVISED | {"keep_classifier": kept}) for kept in (False, True))
    assert fresh.pretraining() == kept.pretraining()


def test_a_swin_pretraining_on_tasks_has_nothing_that_starts_as_published():
    cells = [Cell(**BASE | {"backbone": "swin_xs8", "initialisation": each}) for each in ("timm", "published")]
    assert cells[0] != cells[1]
    assert cells[0].pretraining() == cells[1].pretraining()
    probe = {"backbone": "swin_xs8", "initialisation": "published", "protocol": "pretrain_probe", "probe": "logistic"}
    assert make_cell(**BASE | probe).initialisation == "timm"
    assert make_cell(**BASE | SUPERVISED | probe).initialisation == "published"


def test_without_validation_images_the_last_epoch_is_tested():
    assert Cell(**BASE | {"val_share": 0.0, "selection": "last"}).val_share == 0
    with pytest.raises(ValueError, match="selection='best_val' needs validation images: with val_share=0 it must be"):
        Cell(**BASE | {"val_share": 0.0})


def test_a_pretraining_is_a_cell_of_its_own():
    cell = Cell(**BASE | {"pretrain_dataset": "cifar10", "pretrain_epochs": 21})
    first = cell.pretraining()
    assert first.as_dict() == cell.as_dict() | {
        "protocol": "pretrain",
        "dataset": "cifar10",
        "epochs": 0,
        "learning_rate": 0.0,
        "selection": "last",
        "schedule": "none",
    }
    assert first.cell_id.startswith("cifar10-vit_xs4-pretrain-sprel+dist+ang+abspos-s0-")
    assert first.total_epochs == 21
    assert first.pretraining() == first
    assert [make_cell(**BASE | {"protocol": protocol}).has_pretraining for protocol in PROTOCOLS] == [
        protocol != "joint" for protocol in PROTOCOLS
    ]


# A schedule

JOINT = {"protocol": "joint", "pretrain_dataset": "none", "pretrain_epochs": 0, "pretrain_learning_rate": 0.0}
SCHEDULED = BASE | JOINT | {"schedule": "5:learning_rate=0.002,sprel_weight=2.0;12:learning_rate=0.0005"}


def test_a_schedule_says_what_holds_from_which_epoch_on():
    cell = Cell(**SCHEDULED)
    assert parse_schedule(cell.schedule) == [
        (5, {"learning_rate": 0.002, "sprel_weight": 2.0}),
        (12, {"learning_rate": 0.0005}),
    ]
    held = [(cell.after(epochs).learning_rate, cell.after(epochs).sprel_weight) for epochs in (0, 4, 5, 11, 12, 19)]
    assert held == [(0.001, 1.0), (0.001, 1.0), (0.002, 2.0), (0.002, 2.0), (0.0005, 2.0), (0.0005, 2.0)]
    assert cell.after(4) == Cell(**SCHEDULED | {"schedule": "none"})


def test_cells_are_one_until_their_schedules_part():
    cell, plain = Cell(**SCHEDULED), Cell(**SCHEDULED | {"schedule": "none"})
    other = Cell(**SCHEDULED | {"schedule": "5:learning_rate=0.002,sprel_weight=2.0"})
    assert cell.until(5) == plain
    assert cell.until(6) == cell.until(12) == other.until(12) == other
    assert cell.until(13) == cell


def test_a_fork_takes_what_differs_from_what_held():
    cell = Cell(**SCHEDULED)
    fork = cell.changed_after(8, {"learning_rate": 0.002, "sprel_weight": 0.5, "weight_decay": 0.1, "batch_size": 7})
    assert fork.schedule == "5:learning_rate=0.002,sprel_weight=2.0;8:weight_decay=0.1,sprel_weight=0.5"
    assert fork.until(8) == cell.until(8)
    assert cell.changed_after(8, {"learning_rate": 0.002}) == cell.until(8)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("5", "schedule entry '5' is not written EPOCH:FIELD=VALUE,FIELD=VALUE"),
        ("5:learning_rate", "is not written EPOCH:FIELD=VALUE,FIELD=VALUE"),
        ("-5:learning_rate=0.1", "is not written EPOCH:FIELD=VALUE,FIELD=VALUE"),
        ("5:learning_rat=0.1", "unknown field 'learning_rat': one of learning_rate, .*; did you mean 'learning_rate'"),
        ("5:batch_size=8", "unknown field 'batch_size': one of learning_rate"),
        ("5:learning_rate=fast", "learning_rate must be of type float, not 'fast'"),
        ("5:learning_rate=5e-4", "schedule '5:learning_rate=5e-4' is written '5:learning_rate=0.0005'"),
        ("5:sprel_weight=2.0,learning_rate=0.5", "is written '5:learning_rate=0.5,sprel_weight=2.0'"),
        ("0:learning_rate=0.5", "from at least 1 to below the 20 of the last phase, not 0"),
        ("20:learning_rate=0.5", "from at least 1 to below the 20 of the last phase, not 20"),
        ("9:learning_rate=0.5;5:learning_rate=0.2", "the epochs of a schedule must rise, .* not 9, 5"),
        ("5:learning_rate=0.001", "schedule entry 5: learning_rate is 0.001 before it already"),
        ("5:learning_rate=-1.0", "schedule entry 5: learning_rate must be above 0"),
        ("5:jitter_probability=0.0", "schedule entry 5: jitter_strength=0.4 has no effect"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused_with_a_reason(schedule, message):
    with pytest.raises(ValueError, match=message):
        Cell(**SCHEDULED | {"schedule": schedule})


def test_a_scheduled_field_that_cannot_act_in_the_last_phase_is_refused_by_cell_and_left_out_by_make_cell():
    schedule = "5:learning_rate=0.002,sprel_weight=2.0;12:sprel_weight=3.0"
    assert make_cell(**SCHEDULED | {"schedule": schedule}).schedule == schedule
    supervised = SCHEDULED | {"schedule": schedule, "tasks": "none"}
    assert make_cell(**supervised).schedule == "5:learning_rate=0.002"
    two_phases = BASE | {"schedule": schedule}
    assert make_cell(**two_phases).schedule == "5:learning_rate=0.002"
    with pytest.raises(ValueError, match="schedule=.* has no effect .*: it must be '5:learning_rate=0.002'"):
        Cell(**two_phases)


# The command line


def test_values_are_read_as_the_type_of_their_field():
    assert parse_value("seed", "3") == 3
    assert parse_value("learning_rate", "5e-4") == 0.0005
    assert parse_value("permute_patches", "true") is True
    assert parse_value("permute_patches", "False") is False
    assert parse_value("tasks", "sprel+abspos") == "sprel+abspos"
    rate = parse_value("weight_decay", "1")
    assert rate == 1
    assert isinstance(rate, float)


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("seed", "1.5", "seed must be of type int, not '1.5'"),
        ("learning_rate", "fast", "learning_rate must be of type float, not 'fast'"),
        ("permute_patches", "yes", "permute_patches must be true or false, not 'yes'"),
        ("learning_rat", "1", "unknown field 'learning_rat'; did you mean 'learning_rate'\\? One of dataset, "),
    ],
)
def test_a_value_that_cannot_be_read_is_refused_with_a_reason(field, text, message):
    with pytest.raises(ValueError, match=message):
        parse_value(field, text)
