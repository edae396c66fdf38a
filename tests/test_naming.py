"""Runs are named by what differs between them, described, and know their data."""

import sys
from pathlib import Path

import pytest

from relvit.cell import Cell, make_cell
from sweeps.account.work import WorkItem
from sweeps.planning.plan import Request, plan_cells
from sweeps.tracking.naming import VISIBLE, named, note


def plan(tmp_path, study: str, recipe: str = "demo", **changes) -> list[Cell]:
    return plan_cells(Request(study=study, recipe=recipe, data_root=tmp_path, **changes))


def names(cells: list[Cell]) -> list[str]:
    return [item.name for item in named([WorkItem(cell) for cell in cells])]


def test_table_4s_runs_are_named_by_tasks_and_seed_and_their_first_characters_tell_them_apart(tmp_path):
    found = names(plan(tmp_path, "table4", seeds=(0, 1)))
    assert found[0] == "none · seed 0"
    assert "sprel+abspos · seed 1" in found
    assert len(set(found)) == 32
    assert len({name[:VISIBLE] for name in found if name.endswith("seed 0")}) == 16


@pytest.mark.parametrize(
    ("study", "recipe", "example"),
    [
        ("table2", "paper", "cifar100 · sprel+abspos · seed 0"),
        ("figure2", "demo", "sprel · no PE · Perm · seed 0"),
        ("mega", "demo", "mega_grid=3 · sprel+abspos · seed 0"),
    ],
)
def test_other_studies_name_the_fields_in_which_their_cells_differ(tmp_path, study, recipe, example):
    found = names(plan(tmp_path, study, recipe))
    assert example in found
    assert len(set(found)) == len(found)
    assert len({name[:VISIBLE] for name in found}) == len(found)


def test_all_32_cells_of_table_3_have_names_of_their_own(tmp_path):
    found = names(plan(tmp_path, "table3", "paper"))
    assert len(set(found)) == len(found) == 32


def test_one_cell_alone_has_the_name_that_it_has_among_others(tmp_path):
    assert names(plan(tmp_path, "table4", combinations=("sprel",))) == ["sprel · seed 0"]


def test_the_note_says_what_a_run_is_and_the_command_that_repeats_it_alone(tmp_path, monkeypatch):
    command = ["sweeps/ablation.py", "--seeds", "0,1", "--tracking-uri", "http://ann:secret@host"]
    monkeypatch.setattr(sys, "argv", command)
    items = named([WorkItem(cell) for cell in plan(tmp_path, "table4", seeds=(0, 1))])
    (item,) = [item for item in items if item.name == "sprel+abspos · seed 1"]
    what, _, again = item.note.partition("\n")
    assert what.startswith(
        f"vit_xs4 on digits, pre-trained on sprel+abspos for {item.cell.pretrain_epochs} epochs, then fine-tuned for "
        f"{item.cell.epochs} epochs; seed 1."
    )
    assert "secret" not in again
    assert "python sweeps/ablation.py --seeds 0,1" in again
    assert again.rstrip("`\n").endswith("--seeds 1 --only tasks=sprel+abspos")


def test_the_command_of_the_note_plans_that_cell_alone(tmp_path, monkeypatch):
    from sweeps.ablation import parse_arguments, request_of

    monkeypatch.setattr(sys, "argv", ["sweeps/ablation.py", "--study", "figure2", "--recipe", "cpu"])
    cells = plan_cells(request_of(parse_arguments(sys.argv[1:])))
    for item in named([WorkItem(cell) for cell in cells]):
        (line,) = [line for line in item.note.splitlines() if line.startswith("python ")]
        assert plan_cells(request_of(parse_arguments(line.split()[2:]))) == [item.cell]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"protocol": "joint", "tasks": "drloc"}, "trained from scratch on classes and drloc at once for 5 epochs"),
        ({"protocol": "joint", "tasks": "none"}, "trained from scratch on classes at once for 5 epochs"),
        ({"protocol": "pretrain", "tasks": "sprel"}, "pre-trained on sprel for 3 epochs; seed 0"),
        ({"protocol": "pretrain_finetune", "tasks": "none"}, "pre-trained on classes for 3 epochs, then fine-tuned"),
    ],
)
def test_each_protocol_in_words(fields, said):
    base = plan_cells(Request("table4", "demo", Path("data"), combinations=("none",)))[0].as_dict()
    weights = {f"{fields['tasks']}_weight": 1.0} if fields["tasks"] != "none" else {}
    lengths = {"pretrain_epochs": 3, "epochs": 5, "warmup_epochs": 1}
    cell = make_cell(**base | lengths | {"pair_head": "bilinear"} | weights | fields)
    assert said in note(cell)
