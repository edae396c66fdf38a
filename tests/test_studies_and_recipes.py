"""Studies and recipes: which cells feed which table of the paper, how they are trained, and a study of one's own."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from relvit.cell import FIELDS
from sweeps.planning import plan as planning
from sweeps.planning.plan import PlanError, Request, datasets_of, plan_cells, shared_pretrainings
from sweeps.planning.recipes import RECIPES, recipe
from sweeps.planning.studies import STUDIES, study

PUBLISHED = Path(__file__).resolve().parents[1] / "analysis" / "paper" / "published.csv"
# The tasks of a published row that names none.
TASKS_OF = {"supervised": "none", "drloc": "drloc"}


def plan(name, recipe="paper", **changes):
    # No data set is looked for: the data root does not exist.
    return plan_cells(Request(**{"study": name, "recipe": recipe, "data_root": Path("/nowhere"), **changes}))


def problems(name, recipe="paper", **changes):
    with pytest.raises(PlanError) as error:
        plan(name, recipe, **changes)
    return error.value.problems


def published(table):
    """(data set, backbone, method, protocol, tasks) of every row of a table of the paper."""
    with PUBLISHED.open() as file:
        return [
            (row["dataset"], row["backbone"], row["method"], row["protocol"], row["tasks"] or TASKS_OF[row["method"]])
            for row in csv.DictReader(file)
            if row["table"] == table
        ]


def described(cell):
    return cell.dataset, cell.backbone, cell.method, cell.protocol, cell.tasks


def write_study(tmp_path, text):
    path = tmp_path / "heads.py"
    path.write_text(text)
    return path


# A cell as a study file writes it.
ONE = '{"dataset": "cifar10", "backbone": "vit_s4", "protocol": "joint", "tasks": "sprel"}'


# The paper's tables


@pytest.mark.parametrize(
    ("name", "cells"),
    [("table2", 10), ("table3", 32), ("table4", 16), ("figure2", 5), ("full", 240), ("probe", 16), ("mega", 3)],
)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_study_has_its_cells_in_every_recipe(name, cells, recipe):
    planned = plan(name, recipe)
    assert len(planned) == len({cell.cell_id for cell in planned}) == cells


def test_there_is_no_study_beside_these():
    assert list(STUDIES) == ["table2", "table3", "table4", "figure2", "full", "probe", "mega"]


@pytest.mark.parametrize(("table", "rows"), [("table2", 10), ("table3", 32), ("table4", 48)])
def test_every_row_of_a_published_table_has_exactly_one_cell_and_every_cell_a_row(table, rows):
    wanted = published(table)
    assert len(wanted) == rows
    cells = Counter(described(cell) for cell in plan(table))
    assert set(cells) == set(wanted)
    assert set(cells.values()) == {1}
    protocol = {"table2": "pretrain_finetune", "table3": "joint", "table4": "pretrain_finetune"}[table]
    assert {row[3] for row in wanted} == {protocol}


def test_table3_has_no_drloc_for_vit():
    methods = Counter((cell.backbone, cell.method) for cell in plan("table3"))
    assert methods == {
        ("vit_s4", "supervised"): 3,
        ("vit_s4", "relvit"): 3,
        ("vit_s32", "supervised"): 1,
        ("vit_s32", "relvit"): 1,
        ("swin_t", "supervised"): 4,
        ("swin_t", "drloc"): 4,
        ("swin_t", "relvit"): 4,
        ("t2t_vit_14", "supervised"): 4,
        ("t2t_vit_14", "drloc"): 4,
        ("t2t_vit_14", "relvit"): 4,
    }


def test_figure2_is_sprel_with_and_without_embeddings_and_permutation_and_no_pre_training():
    *pretrained, scratch = plan("figure2")
    settings = [(cell.pretrain_position_embedding, cell.permute_patches) for cell in pretrained]
    assert settings == [(True, False), (True, True), (False, False), (False, True)]
    assert {(cell.tasks, cell.protocol) for cell in pretrained} == {("sprel", "pretrain_finetune")}
    assert (scratch.tasks, scratch.protocol) == ("none", "joint")
    assert {(cell.dataset, cell.backbone) for cell in [*pretrained, scratch]} == {("cifar10", "vit_s4")}


def test_full_is_all_16_combinations_for_every_data_set_and_backbone_of_the_paper():
    counts = Counter((cell.dataset, cell.backbone, cell.protocol) for cell in plan("full"))
    vit = {"cifar10": "vit_s4", "svhn": "vit_s4", "cifar100": "vit_s4", "flowers102": "vit_s32"}
    vit["tiny_imagenet"] = "vit_s8"
    assert counts == {(dataset, backbone, "pretrain_finetune"): 16 for dataset, backbone in vit.items()} | {
        (dataset, backbone, "joint"): 16 for dataset in vit for backbone in ("swin_t", "t2t_vit_14")
    }


def test_the_probe_has_the_first_phases_of_table4():
    for probe, cell in zip(plan("probe"), plan("table4"), strict=True):
        assert probe.protocol == "pretrain_probe"
        assert probe.pretraining() == cell.pretraining()


def test_mega_is_the_paper_s_combination_over_cells_a_side():
    cells = plan("mega")
    assert [(cell.mega_grid, cell.tasks) for cell in cells] == [(side, "sprel+abspos") for side in (0, 2, 3)]
    assert cells[0] in plan("table4")


def test_the_supervised_baseline_of_two_phases_pre_trains_with_its_position_embedding():
    for name in ("table2", "table4", "probe"):
        assert all(cell.pretrain_position_embedding == (cell.tasks == "none") for cell in plan(name))


# Cells of several tables


def test_the_cifar10_cells_of_table2_are_those_of_table4():
    table4 = {cell.cell_id for cell in plan("table4")}
    cifar10 = [cell for cell in plan("table2") if cell.dataset == "cifar10"]
    assert [cell.tasks for cell in cifar10] == ["none", "sprel+abspos"]
    assert {cell.cell_id for cell in cifar10} < table4


def test_figure2_shares_its_random_initialisation_with_table3_and_its_published_setting_with_table4():
    figure2, table3, table4 = (set(plan(name)) for name in ("figure2", "table3", "table4"))
    (scratch,) = figure2 & table3
    assert described(scratch) == ("cifar10", "vit_s4", "supervised", "joint", "none")
    (published_setting,) = figure2 & table4
    assert published_setting.tasks == "sprel"


def test_studies_are_joined_by_commas_and_a_cell_of_two_is_planned_once():
    merged = plan("table2,table3,table4,figure2")
    # 10 + 32 + 16 + 5, less the two cells of Table 2 in Table 4 and the two of Figure 2 in Tables 3 and 4.
    assert len(merged) == len(set(merged)) == 59
    one_by_one = [cell for name in ("table2", "table3", "table4", "figure2") for cell in plan(name)]
    assert merged == list(dict.fromkeys(one_by_one))


def test_a_cell_names_every_study_that_it_belongs_to(tmp_path):
    path = write_study(tmp_path, f"cells = [{ONE} | {{'protocol': 'pretrain_finetune'}}]")
    request = Request(study=f"table2,table4,figure2,{path}", recipe="paper", data_root=Path("/nowhere"))
    members = planning.plan(request)
    assert list(members) == plan_cells(request)
    assert {cell.tasks: names for cell, names in members.items() if len(names) > 1} == {
        "none": ("table2", "table4"),
        "sprel+abspos": ("table2", "table4"),
        "sprel": ("table4", "figure2", "heads"),
    }
    alone = {("table2",), ("table4",), ("figure2",)}
    assert set(members.values()) == alone | {("table2", "table4"), ("table4", "figure2", "heads")}


def test_an_unknown_name_among_several_is_refused():
    (problem,) = problems("table2,tabel3")
    assert problem.startswith("unknown study 'tabel3': one of table2, table3, table4, figure2, full, probe, mega; did")
    assert "did you mean 'table3'?" in problem


def test_table4_and_the_probe_train_16_pretrainings_once_instead_of_twice():
    cells = plan("table4,probe")
    shared = shared_pretrainings(cells)
    assert set(shared) == set(cells)
    assert len(cells) == 32
    assert len(cells) - len(set(shared.values())) == 16
    assert set(Counter(shared.values()).values()) == {2}
    assert all(shared[cell] == cell.pretraining() for cell in cells)


def test_a_pretraining_that_one_cell_alone_has_is_not_shared():
    assert shared_pretrainings(plan("table2,table3,table4,figure2")) == {}
    # One of the three mega-grids, 0, is the probe's too.
    shared = shared_pretrainings(plan("mega,probe"))
    assert {(cell.protocol, cell.tasks, cell.mega_grid) for cell in shared} == {
        ("pretrain_finetune", "sprel+abspos", 0),
        ("pretrain_probe", "sprel+abspos", 0),
    }
    assert len(set(shared.values())) == 1


def test_seeds_share_no_pretraining():
    shared = shared_pretrainings(plan("table4,probe", seeds=(0, 1)))
    assert len(shared) == 64
    assert len(set(shared.values())) == 32


def test_the_data_sets_of_a_plan_at_all_their_sizes():
    assert datasets_of(plan("table3")) == [
        ("cifar10", 32, False),
        ("svhn", 32, False),
        ("cifar100", 32, False),
        ("flowers102", 224, False),
        ("cifar10", 224, False),
        ("svhn", 224, False),
        ("cifar100", 224, False),
    ]
    elsewhere = plan("table4", combinations=("sprel",), settings=("pretrain_dataset=svhn",))
    assert datasets_of(elsewhere) == [("cifar10", 32, False), ("svhn", 32, False)]
    whole = plan("table4", combinations=("none",), settings=("crop_from=original", "crop_padding=0"))
    assert datasets_of(whole) == [("cifar10", 32, True)]


# Picking cells


def test_only_picks_the_cells_that_fit_every_condition():
    cells = plan("table3", only=("backbone=swin_t", "tasks=abspos+sprel"))
    assert [described(cell)[:3] for cell in cells] == [
        (dataset, "swin_t", "relvit") for dataset in ("cifar10", "svhn", "cifar100", "flowers102")
    ]
    assert [cell.permute_patches for cell in plan("figure2", only=("permute_patches=true",))] == [True, True]


def test_only_refuses_what_fits_no_cell_and_names_what_there_is():
    assert problems("table3", only=("backbone=vit_s8",)) == [
        "--only backbone=vit_s8 fits no cell; backbone is one of swin_t, t2t_vit_14, vit_s32, vit_s4"
    ]
    # Each condition fits cells, but no cell fits both.
    assert problems("table3", only=("backbone=vit_s4", "tasks=drloc")) == [
        "--only tasks=drloc fits no cell; tasks is one of none, sprel+abspos"
    ]


def test_only_refuses_an_unknown_field_and_a_value_that_cannot_be_read():
    unknown, unreadable = problems("table3", only=("backbon=swin_t", "seed=first"))
    assert unknown.startswith("--only backbon=swin_t: unknown field 'backbon'; did you mean 'backbone'? One of ")
    assert unreadable == "--only seed=first: seed must be of type int, not 'first'"


@pytest.mark.parametrize(
    ("option", "value", "names"),
    [
        ("dataset", "digits", "cifar10, svhn, cifar100, flowers102, tiny_imagenet"),
        ("backbone", "vit_xs8", "vit_s4, vit_s32, vit_s8"),
    ],
)
def test_one_data_set_or_backbone_in_place_of_several_is_refused(option, value, names):
    assert problems("table2", **{option: value}) == [
        f"--{option} replaces the one {option} of a study, but table2 has {names}; "
        f"pick among them with --only {option}=NAME"
    ]
    assert {getattr(cell, option) for cell in plan("table4", **{option: value})} == {value}


def test_a_data_set_of_ones_own_is_pre_trained_on_too():
    cells = plan("table4", dataset="svhn")
    assert {(cell.dataset, cell.pretrain_dataset) for cell in cells} == {("svhn", "svhn")}


# Recipes


def fields_of(cells, *names):
    return {tuple(getattr(cell, name) for name in names) for cell in cells}


def test_the_paper_trains_vit_with_batches_of_256_and_augmented_patches_and_its_variants_with_64_and_without():
    by_backbone = {}
    for cell in plan("full"):
        by_backbone.setdefault(cell.backbone, []).append(cell)
    names = ("patch_crop", "jitter_probability", "jitter_strength", "greyscale_probability")
    for backbone in ("vit_s4", "vit_s8", "vit_s32"):
        assert fields_of(by_backbone[backbone], "batch_size") == {(256,)}
        with_tasks = [cell for cell in by_backbone[backbone] if cell.tasks != "none"]
        assert fields_of(with_tasks, *names) == {(1 / 1.15, 0.8, 0.4, 0.2)}
    for backbone in ("swin_t", "t2t_vit_14"):
        assert fields_of(by_backbone[backbone], "batch_size") == {(64,)}
        assert fields_of(by_backbone[backbone], *names) == {(1.0, 0.0, 0.0, 0.0)}


def test_drloc_weighs_a_half_for_swin_and_a_tenth_for_t2t():
    cells = [cell for cell in plan("table3") if cell.tasks == "drloc"]
    assert fields_of(cells, "backbone", "drloc_weight") == {("swin_t", 0.5), ("t2t_vit_14", 0.1)}
    cells = [cell for cell in plan("table3", "demo") if cell.tasks == "drloc"]
    assert fields_of(cells, "backbone", "drloc_weight") == {("swin_xs8", 0.5), ("t2t_xs", 0.1)}


def test_images_are_cropped_and_resized_at_224_pixels_only():
    cells = plan("full")
    assert fields_of(cells, "image_size") == {(32,), (64,), (224,)}
    for cell in cells:
        crop = (0, 0.08) if cell.image_size == 224 else (4, 1.0)
        assert (cell.crop_padding, cell.crop_min_area) == crop, cell.cell_id
    assert fields_of(cells, "backbone", "image_size") == {
        ("vit_s4", 32),
        ("vit_s8", 64),
        ("vit_s32", 224),
        ("swin_t", 224),
        ("t2t_vit_14", 224),
    }


def test_both_phases_of_the_paper_have_the_same_schedule():
    cells = plan("table2")
    assert fields_of(cells, "pretrain_epochs", "epochs", "warmup_epochs") == {(100, 100, 10)}
    assert fields_of(cells, "pretrain_learning_rate", "learning_rate") == {(5e-4, 5e-4)}
    assert fields_of(plan("table3"), "pretrain_epochs", "epochs", "pretrain_learning_rate") == {(0, 100, 0.0)}


def test_reference_differs_from_the_paper_in_these_values_alone():
    for ours, theirs in zip(plan("table4", "reference"), plan("table4", "paper"), strict=True):
        changed = {name for name in FIELDS if getattr(ours, name) != getattr(theirs, name)}
        pairs = {"pair_head"} if set(ours.task_list) & {"sprel", "dist", "ang"} else set()
        own = {"augment_normalised"} if ours.task_list else {"keep_classifier"}
        assert changed == {"weight_decay", "drop_path", "decay", "initialisation"} | pairs | own
        assert (ours.weight_decay, ours.drop_path) == (0.1, 0.1)
        assert (theirs.weight_decay, theirs.drop_path) == (0.0, 0.0)
        assert ours.pair_head == ("low_rank" if pairs else "none")


def test_reference_never_augments_patches_where_classes_are_learned():
    names = ("patch_crop", "jitter_probability", "jitter_strength", "greyscale_probability", "augment_normalised")
    assert fields_of(plan("table3", "reference"), *names) == {(1.0, 0.0, 0.0, 0.0, False)}


def test_reference_drops_paths_of_vit_and_swin_as_the_published_code_does_and_none_of_t2t():
    cells = plan("table3", "reference")
    assert fields_of(cells, "backbone", "drop_path") == {
        ("vit_s4", 0.1),
        ("vit_s32", 0.1),
        ("swin_t", 0.1),
        ("t2t_vit_14", 0.0),
    }
    assert fields_of(cells, "weight_decay") == {(0.1,)}
    assert fields_of(plan("table3", "paper"), "drop_path") == {(0.0,)}


def test_liu2021_is_one_recipe_for_all_methods_and_backbones_of_table_3():
    cells = plan("table3", "liu2021")
    assert fields_of(cells, "mixup", "cutmix", "label_smoothing", "auto_augment", "erase_probability") == {
        (0.8, 1.0, 0.1, "randaugment", 0.25)
    }
    assert fields_of(cells, "batch_size", "learning_rate", "warmup_epochs") == {(128, 5e-4 * 128 / 512, 20)}
    assert fields_of(cells, "weight_decay", "gradient_clip", "patch_crop") == {(0.05, 5.0, 1.0)}
    assert {cell.drop_path for cell in cells if cell.backbone == "swin_t"} == {0.2}
    assert {cell.drop_path for cell in cells if cell.backbone == "t2t_vit_14"} == {0.0}


def test_the_demo_has_small_stand_ins_for_cifar10_and_for_every_backbone():
    assert fields_of(plan("table4", "demo"), "dataset", "pretrain_dataset", "backbone", "image_size") == {
        ("digits", "digits", "vit_xs4", 16)
    }
    # Where a data set has no stand-in it is used as it is.
    assert fields_of(plan("table3", "demo"), "dataset", "backbone", "image_size") == {
        ("digits", "vit_xs4", 16),
        ("svhn", "vit_xs4", 32),
        ("cifar100", "vit_xs4", 32),
        ("flowers102", "vit_xs8", 64),  # a grid of 8 x 8
        *((dataset, "swin_xs8", size) for dataset, size in (("digits", 16), ("svhn", 32), ("cifar100", 32))),
        ("flowers102", "swin_xs8", 64),
        *((dataset, "t2t_xs", 64) for dataset in ("digits", "svhn", "cifar100", "flowers102")),
    }


def test_the_cpu_recipe_has_small_stand_ins_for_backbones_alone():
    assert fields_of(plan("table2", "cpu"), "dataset", "backbone", "image_size") == {
        ("cifar10", "vit_xs8", 32),
        ("svhn", "vit_xs8", 32),
        ("cifar100", "vit_xs8", 32),
        ("flowers102", "vit_xs8", 64),
        ("tiny_imagenet", "vit_xs8", 64),
    }
    assert fields_of(plan("table3", "cpu"), "backbone") == {("vit_xs8",), ("swin_xs8",), ("t2t_xs",)}
    assert fields_of(plan("table3", "cpu"), "train_images", "batch_size") == {(2000, 128)}


def test_an_unknown_recipe_names_the_valid_ones_and_the_nearest():
    with pytest.raises(ValueError) as caught:
        recipe("papre")
    names = "paper, reference, liu2021, demo, cpu"
    assert str(caught.value) == f"unknown recipe 'papre': one of {names}; did you mean 'paper'?"


# A study of one's own


HEADS = """
cells = [
    {"dataset": "cifar10", "backbone": "vit_s4", "protocol": "pretrain_finetune", "tasks": tasks, "pair_head": head}
    for tasks in ("abspos+sprel", "dist")
    for head in ("bilinear", "low_rank")
]
"""


def test_a_study_file_is_planned_like_a_study(tmp_path):
    path = write_study(tmp_path, HEADS)
    cells = plan(str(path), "demo", seeds=(0, 7))
    assert [(cell.seed, cell.tasks, cell.pair_head) for cell in cells] == [
        (seed, tasks, head)
        for seed in (0, 7)
        for tasks in ("sprel+abspos", "dist")
        for head in ("bilinear", "low_rank")
    ]
    # The recipe fills in the rest, with its stand-ins.
    assert fields_of(cells, "dataset", "backbone", "epochs") == {("digits", "vit_xs4", 20)}


def test_combinations_are_picked_from_a_study_file_in_any_spelling(tmp_path):
    path = write_study(tmp_path, HEADS)
    cells = plan(str(path), combinations=("sprel+abspos",))
    assert [(cell.tasks, cell.pair_head) for cell in cells] == [
        ("sprel+abspos", "bilinear"),
        ("sprel+abspos", "low_rank"),
    ]


def test_a_study_file_fixes_any_field(tmp_path):
    path = write_study(
        tmp_path,
        """
base = {"dataset": "cifar10", "backbone": "vit_s4", "protocol": "pretrain_probe", "tasks": "sprel"}
cells = (base | {"pretrain_dataset": "cifar100", "epochs": epochs, "image_size": 64} for epochs in (30, 60))
""",
    )
    cells = plan(str(path))
    assert fields_of(cells, "dataset", "pretrain_dataset", "protocol", "image_size") == {
        ("cifar10", "cifar100", "pretrain_probe", 64)
    }
    assert [cell.epochs for cell in cells] == [30, 60]
    assert len(set(shared_pretrainings(cells).values())) == 1


def test_a_study_file_joins_the_studies_of_the_paper(tmp_path):
    path = write_study(tmp_path, HEADS)
    merged = plan(f"table4,{path}")
    # With the paper's recipe the two bilinear cells are Table 4's.
    assert len(merged) == 16 + 2
    assert [cell.pair_head for cell in merged[16:]] == ["low_rank", "low_rank"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("1 / 0", "does not import in line 1 (1 / 0): ZeroDivisionError: division by zero", id="raises"),
        pytest.param(
            "cells = [", "does not import in line 1 (cells = [): SyntaxError: '[' was never closed", id="no Python"
        ),
        pytest.param(
            "import numpi", "does not import in line 1 (import numpi): ModuleNotFoundError: No module", id="no module"
        ),
        pytest.param("cell = []", "does not define `cells`, a list of dicts with fields of a cell", id="no cells"),
        pytest.param("cells = []", "`cells` is empty", id="empty"),
        pytest.param("cells = None", "`cells`", id="no list"),
        pytest.param('cells = ["sprel"]', "cell 0 is not a dict but 'sprel'", id="no dict"),
        pytest.param(f"cells = [{ONE}, {ONE}]", "cell 1 is the same as cell 0", id="duplicate"),
        pytest.param(
            f"cells = [{ONE} | {{'epoch': 3}}]",
            "cell 0: unknown field 'epoch'; did you mean 'epochs'? One of dataset, ",
            id="unknown field",
        ),
        pytest.param(
            "cells = [{'dataset': 'cifar10', 'tasks': 'none'}]", "cell 0 lacks backbone, protocol", id="missing key"
        ),
        pytest.param(f"cells = [{ONE}]\nevaluate = 3", "`evaluate` must be a list of texts", id="evaluate"),
        pytest.param(f"cells = [{ONE}]\ntasks_file = 3", "`tasks_file` must be the name of a file, not 3", id="tasks"),
        pytest.param(f"cells = [{ONE} | {{'seed': 3}}]", "cell 0 sets seed, which --seeds does", id="seed"),
    ],
)
def test_a_malformed_study_file_is_refused_with_the_reason(tmp_path, text, message):
    path = write_study(tmp_path, text)
    (problem,) = problems(str(path))
    assert problem.startswith(f"the study file {path}")
    assert message in problem


def test_everything_malformed_in_a_study_file_stands_in_one_message(tmp_path):
    path = write_study(tmp_path, f"cells = [{ONE} | {{'epoch': 3}}, 5, {{'dataset': 'cifar10', 'tasks': 'none'}}]")
    (problem,) = problems(str(path))
    assert "cell 0: unknown field 'epoch'" in problem
    assert "did you mean 'epochs'?" in problem
    assert "cell 1 is not a dict but 5" in problem
    assert "cell 2 lacks backbone, protocol" in problem


def test_what_can_be_planned_of_a_malformed_study_file_is_checked_too(tmp_path):
    mine = ONE.replace("joint", "pretrain_finetune").replace("sprel", "sprel+mine")
    wrong = f"{mine} | {{'mine_weight': 2.0, 'epoch': 3, 'batch_size': 0}}, {mine} | {{'backbone': 'vit_s5'}}"
    path = write_study(tmp_path, f"tasks_file = 'my.py'\ncells = [{wrong}]\nevaluate = ['knn', 'prob']")
    found = problems(str(path), settings=("epochs=0",))
    for said in ("my.py cannot be read", "unknown field 'epoch'", "unknown evaluation 'prob'"):
        assert said in " ".join(found[:2])
    for said in ("batch_size must be at least 1", "unknown backbone 'vit_s5'", "epochs must be above 0"):
        assert any(said in problem for problem in found[2:]), said
    assert not any("mine" in problem for problem in found)  # of which nothing is known


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["sprel", "abspos"]}, "tasks"),
        ({"tasks": None}, "tasks"),
        ({"dataset": 5}, "dataset"),
        ({"backbone": ["vit_s4"]}, "backbone"),
        ({"backbone": None}, "backbone"),
        ({"protocol": 3}, "protocol must be of type str, not 3"),
        ({"image_size": "64"}, "image_size must be of type int, not '64'"),
        ({"epochs": 0.5}, "epochs must be of type int, not 0.5"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_in_a_study_file_is_refused(tmp_path, change, message):
    found = problems(str(write_study(tmp_path, f"cells = [{ONE} | {change!r}]")))
    assert any(message in problem for problem in found), found


def test_wrong_values_in_a_study_file_are_refused_as_anywhere(tmp_path):
    path = write_study(tmp_path, f"cells = [{ONE} | {{'backbone': 'vit_s5', 'tasks': 'sprl', 'batch_size': 0}}]")
    found = " ".join(problems(str(path)))
    assert "unknown backbone 'vit_s5'" in found
    assert "unknown task 'sprl'" in found
    assert "did you mean 'sprel'?" in found


def test_a_study_file_that_is_not_there_is_refused(tmp_path):
    path = tmp_path / "heads.py"
    assert problems(str(path)) == [f"the study file {path} does not exist"]
    meant = path.with_name("mystudy.py")
    meant.write_text("cells = []")
    for wrong in (path.with_name("mystduy.py"), path.parent.with_name(path.parent.name[:-1] + "x") / "mystudy.py"):
        assert problems(str(wrong)) == [f"the study file {wrong} does not exist; did you mean {str(meant)!r}?"]
    (problem,) = problems("heads")
    assert problem.startswith("unknown study 'heads'")
    assert problem.endswith("; or a Python file that defines `cells`")


def test_a_recipe_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"recipe": "demo", "fields": {"batch_size": 32}}', "utf-8-sig")
    assert recipe(str(path)).tuned == {"batch_size": 32}


def test_a_study_file_may_not_pass_for_a_study_of_the_paper(tmp_path):
    path = tmp_path / "table4.py"
    path.write_text('cells = [{"dataset": "digits", "backbone": "vit_xs4", "protocol": "joint", "tasks": "none"}]')
    with pytest.raises(ValueError, match="has the name of the study 'table4': give it another"):
        study(str(path))
