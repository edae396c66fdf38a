"""From a request to cells: the grid, recipes, settings, and all that is wrong in one go."""

from pathlib import Path

import pytest
from PIL import Image

from relvit.cell import FIELDS, PAPER_TASKS
from relvit.data import cached_fingerprint
from sweeps.account.account import FINISHED, Status
from sweeps.planning.plan import PlanError, Request, other_images, plan_cells, prepare_data
from sweeps.planning.recipes import RECIPES


def request(tmp_path: Path, **changes) -> Request:
    return Request(**{"study": "table4", "recipe": "demo", "data_root": tmp_path, **changes})


def problems(tmp_path: Path, **changes) -> list[str]:
    with pytest.raises(PlanError) as error:
        plan_cells(request(tmp_path, **changes))
    return error.value.problems


def test_table4_is_the_full_2_to_the_4_grid_with_the_supervised_cell_first(tmp_path):
    cells = plan_cells(request(tmp_path))
    assert len(cells) == 16 == len({cell.cell_id for cell in cells})
    assert cells[0].tasks == "none"
    assert {frozenset(cell.task_list) for cell in cells} == {
        frozenset(task for bit, task in enumerate(PAPER_TASKS) if number >> bit & 1) for number in range(16)
    }


def test_only_the_supervised_cell_has_a_position_embedding_in_pre_training(tmp_path):
    with_embedding = [cell.tasks for cell in plan_cells(request(tmp_path)) if cell.pretrain_position_embedding]
    assert with_embedding == ["none"]


def test_cells_of_one_table_differ_in_nothing_but_tasks_and_what_tasks_decide(tmp_path):
    decided = {"tasks", "pair_head", "pretrain_position_embedding", "permute_patches", "patch_crop"}
    decided |= {
        "jitter_probability",
        "jitter_strength",
        "greyscale_probability",
        *(f"{task}_weight" for task in PAPER_TASKS),
    }
    cells = plan_cells(request(tmp_path))
    for name in set(FIELDS) - decided:
        assert len({getattr(cell, name) for cell in cells}) == 1, name


def test_the_paper_recipe_is_section_3_1(tmp_path):
    cell = plan_cells(request(tmp_path, recipe="paper", combinations=("sprel+abspos",)))[0]
    assert (cell.dataset, cell.backbone, cell.image_size) == ("cifar10", "vit_s4", 32)
    assert (cell.pretrain_epochs, cell.epochs, cell.warmup_epochs) == (100, 100, 10)
    assert (cell.batch_size, cell.learning_rate, cell.weight_decay, cell.drop_path) == (256, 0.0005, 0.0, 0.0)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_all_16_cells(tmp_path, name):
    assert len(plan_cells(request(tmp_path, recipe=name))) == 16


def test_seeds_multiply_cells_and_keep_their_order(tmp_path):
    cells = plan_cells(request(tmp_path, combinations=("none", "dist"), seeds=(3, 1)))
    assert [(cell.seed, cell.tasks) for cell in cells] == [(3, "none"), (3, "dist"), (1, "none"), (1, "dist")]


def test_a_combination_has_one_spelling_and_is_planned_once(tmp_path):
    cells = plan_cells(request(tmp_path, combinations=("abspos+sprel", "sprel+abspos")))
    assert [cell.tasks for cell in cells] == ["sprel+abspos"]


def test_a_setting_changes_its_field_where_it_acts(tmp_path):
    cells = plan_cells(request(tmp_path, combinations=("none", "dist"), settings=("jitter_strength=0.2", "epochs=7")))
    assert [cell.jitter_strength for cell in cells] == [0.0, 0.2]
    assert [cell.epochs for cell in cells] == [7, 7]


def test_a_setting_that_acts_in_no_cell_is_refused(tmp_path):
    assert problems(tmp_path, combinations=("none",), settings=("jitter_strength=0.2",)) == [
        "--set jitter_strength=0.2 has no effect in any cell of this plan"
    ]


def test_all_problems_are_found_in_one_go(tmp_path):
    found = problems(
        tmp_path,
        study="table5",
        recipe="dem",
        combinations=("sprl",),
        dataset="digit",
        backbone="vit_s3",
        settings=("epochs", "learning_rate=fast", "seed=1"),
        seeds=(1, 1),
    )
    for sentence in (
        "unknown study 'table5'",
        "did you mean 'demo'?",
        "did you mean 'sprel'?",
        "did you mean 'digits'?",
        "unknown backbone 'vit_s3'",
        "--set takes field=value, not 'epochs'",
        "learning_rate must be of type float, not 'fast'",
        "seed is not set with --set but with --seeds",
        "--seeds names a seed twice",
    ):
        assert any(sentence in problem for problem in found), sentence


def test_an_image_size_that_patches_do_not_divide_is_refused_with_the_nearest_that_they_do(tmp_path):
    assert problems(tmp_path, image_size=18) == [
        "patches of 4 pixels (vit_xs4) do not divide an image_size of 18: try 16 or 20"
    ]


def test_a_folder_of_class_folders_is_a_data_set_at_the_size_of_its_images(tmp_path):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / "pets" / split / label).mkdir(parents=True)
            for number in range(10):
                Image.new("RGB", (24, 24), (number, 0, 0)).save(tmp_path / f"pets/{split}/{label}/{number}.png")
    cells = plan_cells(request(tmp_path, dataset="pets", combinations=("none",)))
    assert cells[0].image_size == 24
    assert prepare_data(cells, tmp_path) == []


def test_more_training_images_than_there_are_is_refused_before_anything_starts(tmp_path):
    cells = plan_cells(request(tmp_path, combinations=("none",), settings=("train_images=5000",)))
    (problem,) = prepare_data(cells, tmp_path)
    assert problem.startswith("train_images=5000, but digits has 1294 training images")


# What is wrong with the data, beside what is wrong with the request


def test_the_data_of_cells_that_are_right_are_checked_beside_a_wrong_name(tmp_path):
    (tmp_path / "pets" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "pets" / "test" / "cat").mkdir(parents=True)
    for split in ("train", "test"):
        Image.new("RGB", (32, 32)).save(tmp_path / "pets" / split / "cat" / "0.png")
    broken = tmp_path / "pets" / "train" / "cat" / "1.png"
    broken.write_bytes(b"no image")
    with pytest.raises(PlanError, match="unknown task 'sprl'") as error:
        plan_cells(request(tmp_path, dataset="pets", combinations=("sprl",)))
    (problem,) = prepare_data(error.value.cells, tmp_path, download=False)
    assert str(broken) in problem


def test_beside_a_wrong_request_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.utils.download_url", None)
    with pytest.raises(PlanError) as error:
        plan_cells(request(tmp_path, recipe="paper", combinations=("sprl",)))
    assert {cell.dataset for cell in error.value.cells} == {"cifar10"}
    assert prepare_data(error.value.cells, tmp_path, download=False) == []


# A study's own cells

JOINT = '"dataset": "cifar10", "backbone": "vit_s4", "protocol": "joint"'


def file_problems(tmp_path: Path, cells: str, **changes) -> list[str]:
    (tmp_path / "mine.py").write_text(f"cells = [{cells}]")
    return problems(tmp_path, study=str(tmp_path / "mine.py"), **changes)


def test_a_field_that_a_study_sets_where_it_does_not_act_is_refused_by_name(tmp_path):
    found = file_problems(tmp_path, f'{{{JOINT}, "tasks": "none", "mega_grid": 3, "epochs": 5}}')
    assert found == [
        f"{tmp_path}/mine.py: mega_grid=3 has no effect with tasks='none', protocol='joint': leave it out",
    ]


@pytest.mark.parametrize(
    ("one", "other", "texts"),
    [
        (
            '"tasks": "sprel+abspos"',
            '"tasks": "abspos+sprel"',
            "{'tasks': 'sprel+abspos'} and {'tasks': 'abspos+sprel'}",
        ),
        ('"tasks": "none"', '"tasks": "none", "epochs": 100', "{} and {'epochs': 100}"),
    ],
)
def test_two_ways_to_write_one_cell_are_refused(tmp_path, one, other, texts):
    (found,) = file_problems(tmp_path, f"{{{JOINT}, {one}}}, {{{JOINT}, {other}}}", recipe="paper")
    assert found == f"{tmp_path}/mine.py has one cell twice: {texts} train the same"


@pytest.mark.parametrize(
    ("study", "setting", "field"),
    [("mega", "mega_grid=2", "mega_grid"), ("figure2", "permute_patches=true", "permute_patches")],
)
def test_a_setting_that_folds_what_a_study_compares_is_refused(tmp_path, study, setting, field):
    (found,) = problems(tmp_path, study=study, settings=(setting,))
    assert f"{study} compares values of {field}; pick one with --only {field}=VALUE" in found


def test_only_knows_the_study_s_names_and_those_that_stand_in_for_them(tmp_path):
    def chosen(*only, **changes):
        return plan_cells(request(tmp_path, study="table3", only=only, **changes))

    own = chosen("backbone=swin_t", "dataset=cifar10")
    assert [cell.tasks for cell in own] == ["none", "drloc", "sprel+abspos"]
    assert chosen("backbone=swin_xs8", "dataset=digits") == own
    (found,) = problems(tmp_path, study="table3", only=("backbone=swn",))
    assert "fits no cell; backbone is one of swin_t, swin_xs8, " in found


def test_a_setting_need_not_suit_cells_that_only_leaves_out(tmp_path):
    # Of the 4 pixels of vit_s4's patches a crop of 0.9 takes all.
    options = {"study": "table3", "recipe": "paper", "settings": ("patch_crop=0.9",)}
    assert "patch_crop=0.9 takes 4 of the 4 pixels" in str(problems(tmp_path, **options))
    cells = plan_cells(request(tmp_path, only=("backbone=swin_t",), **options))
    assert {cell.patch_crop for cell in cells} == {0.9, 1.0}


def test_a_study_file_that_ends_the_program_is_refused(tmp_path):
    (tmp_path / "quit.py").write_text("import sys\nsys.exit(0)")
    (found,) = problems(tmp_path, study=str(tmp_path / "quit.py"))
    assert "does not import in line 2 (sys.exit(0)): SystemExit: 0" in found


def test_images_without_a_side_are_refused(tmp_path):
    assert problems(tmp_path, image_size=0) == ["--image-size must be at least 1, not 0"]


# The images of finished cells


def test_finished_cells_whose_data_set_has_other_images_now_are_said(tmp_path):
    cells = plan_cells(request(tmp_path, combinations=("none", "sprel", "dist")))
    assert prepare_data(cells, tmp_path) == []
    now = cached_fingerprint("digits", tmp_path, 16)
    known = dict(zip(cells, (now, "0" * 16, "")))  # the third is of an older version, which did not say
    statuses = {cell: Status(FINISHED, data_fingerprint=fingerprint) for cell, fingerprint in known.items()}
    assert other_images(statuses, tmp_path) == [
        "1 finished cells were trained on other images of digits than are there now, and stay finished; remove their "
        f"folders, as cells/{cells[1].cell_id}, to train them again"
    ]
    assert other_images(statuses, tmp_path / "elsewhere") == []  # not decoded there


def test_a_recipe_that_a_search_wrote_may_name_its_backbone(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text('{"recipe": "demo", "fields": {"backbone": "vit_xs8", "learning_rate": 0.004}}')
    cells = plan_cells(request(tmp_path, recipe=str(path)))
    assert {(cell.backbone, cell.learning_rate) for cell in cells} == {("vit_xs8", 0.004)}
    assert {cell.backbone for cell in plan_cells(request(tmp_path, recipe=str(path), backbone="vit_xs4"))} == {
        "vit_xs4"
    }
