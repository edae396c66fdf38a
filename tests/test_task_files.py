"""Tasks from a file: what it may hold, what is refused, and that its content is part of a cell.

Where tasks are made known, in processes of their own: they stay for as long as a process runs.
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from relvit.cell import Cell, make_cell
from relvit.task_files import row_problems
from relvit.tasks import ACCURACY, MSE, PAIRS, PATCHES, Task, describe, described

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
PLAN = """
from pathlib import Path
from sweeps.planning.plan import PlanError, Request, plan_cells
tiny = ("pretrain_epochs=1", "epochs=1", "warmup_epochs=0", "train_images=64")
def cells(study, *more, **options):
    return plan_cells(Request(study, "demo", Path("data"), settings=(*tiny, *more), **options))
def problems(study, **options):
    try:
        cells(study, **options)
    except PlanError as error:
        return error.problems
"""


ALONE = "a tasks file must be whole in itself: it may import installed packages alone"


def run(folder: Path, script: str):
    """What the script leaves in `result`, run in the folder."""
    text = f"import json, sys\nsys.path.insert(0, {str(ROOT)!r})\n{PLAN}{script}\nprint(json.dumps(result))"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# The two examples


def example(name: str) -> Task:
    scope: dict = {}
    exec((EXAMPLES / f"{name}.py").read_text(), scope)
    (task,) = scope["tasks"]
    return task


def test_depth_order_by_hand():
    """Stripes in the upper left, weaker ones in the lower right, nothing elsewhere: 2 x 2 patches, one a quadrant."""
    images = torch.zeros(1, 3, 8, 8)
    images[:, :, :4, :4:2] = 1.0
    images[:, :, 4:, 4::2] = 0.2
    # Rows: the patch; columns: the other one. Upper left before lower right before the two blank ones.
    near = example("depth_order").target(images, 2, 2)[0]
    assert near[0].tolist() == [1, 2, 2, 2]
    assert near[3].tolist()[0] == 0
    assert near.T.tolist() == (2 - near).tolist()
    # Patches of one quadrant have one depth.
    fine = example("depth_order").target(images, 4, 4)[0].view(4, 4, 4, 4)
    assert (fine[:2, :2, :2, :2] == 1).all()
    assert (fine[:2, :2, 2:, 2:] == 2).all()


def test_colour_statistics_by_hand():
    images = torch.zeros(2, 3, 4, 4)
    images[1, 0, :2, 2:] = torch.tensor(
        [[1.0, 3.0], [1.0, 3.0]]
    )  # red of the second patch: mean 2, deviation 2 / sqrt(3)
    found = example("colour_statistics").target(images, 2, 2)
    assert found.shape == (2, 4, 6)
    assert found[1, 1].tolist() == pytest.approx([2, 0, 0, 2 / 3**0.5, 0, 0])
    assert found.abs().sum() == found[1, 1].abs().sum()


@pytest.mark.parametrize("name", ["depth_order", "colour_statistics"])
def test_an_example_is_right_as_it_stands(name):
    assert row_problems(example(name)) == []
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 45


# From a file to trained cells


def test_a_file_of_one_task_is_a_study_of_32_cells_and_its_cells_train(tmp_path):
    script = f"""
from relvit.cell import Cell
from relvit.data import prepare
from relvit.train import train
before = [cell.cell_id for cell in cells("table4")]
planned = cells({str(EXAMPLES / "depth_order.py")!r})
after = cells("table4")
pair = [cell for cell in planned if cell.tasks in ("depth", "sprel+depth")]
data = prepare("digits", Path("data"), 16)
rows = {{cell.tasks: list(train(cell, data, Path(cell.cell_id))) for cell in pair}}
result = dict(
    ids=[before, [cell.cell_id for cell in after]],
    fields=[list(after[0].as_dict()), list(pair[0].as_dict())],
    tasks=[cell.tasks for cell in planned],
    digests=sorted({{(cell.tasks_digest != "", "depth" in cell.tasks) for cell in planned}}),
    weights=[(cell.depth_weight, cell.pair_head) for cell in pair],
    again=[Cell(**cell.as_dict()) == cell for cell in planned],
    shared=len({{cell.pretraining().tasks_digest for cell in pair}}),
    rows={{tasks: [row["phase"] for row in each] for tasks, each in rows.items()}},
    accuracy=[each[-1]["test_depth_accuracy"] for each in rows.values()],
)
"""
    result = run(tmp_path, script)
    assert result["ids"][0] == result["ids"][1]
    assert "depth_weight" not in result["fields"][0]  # such a cell can be read where the file is not
    assert "depth_weight" in result["fields"][1]
    assert len(result["tasks"]) == 32 == len(set(result["tasks"]))
    assert result["tasks"][5] == "depth"
    assert result["digests"] == [[False, False], [True, True]]
    assert result["weights"] == [[1.0, "bilinear"]] * 2
    assert all(result["again"])
    assert result["shared"] == 1
    assert result["rows"] == {tasks: ["pretrain", "finetune", "test"] for tasks in ("depth", "sprel+depth")}
    assert all(37.5 / 2 < accuracy <= 100 for accuracy in result["accuracy"])


STUDY = """
tasks_file = "mine.py"
cells = [{"dataset": "digits", "backbone": "vit_xs4", "protocol": "pretrain_finetune", "tasks": "abspos+colour",
          "colour_weight": 0.25}]
"""


def test_a_study_file_names_its_tasks_and_the_content_of_the_file_is_part_of_the_cell(tmp_path):
    text = (EXAMPLES / "colour_statistics.py").read_text()
    (tmp_path / "study.py").write_text(STUDY)
    script = (
        "(cell,) = cells('study.py')\nresult = [cell.cell_id, cell.tasks_digest, cell.colour_weight, cell.as_dict()]"
    )
    (tmp_path / "mine.py").write_text(text)
    one, again = run(tmp_path, script), run(tmp_path, script)
    (tmp_path / "mine.py").write_text(text + "\n# a comment\n")
    other = run(tmp_path, script)
    assert one == again
    assert one[2] == 0.25
    assert one[0] != other[0]
    assert one[1] != other[1]
    # Whoever has another version of the file reads the cell of before, and does not train it.
    refused = f"""
from relvit.cell import Cell
from relvit.data import prepare
from relvit.train import train
cells("study.py")
cell = Cell(**{one[3]!r})
try:
    next(train(cell, prepare("digits", Path("data"), 16), Path("cell")))
except ValueError as error:
    result = [cell.cell_id, str(error)]
"""
    cell_id, said = run(tmp_path, refused)
    assert cell_id == one[0]
    assert f"is of tasks in a file with digest {one[1]}, and that which is known here has {other[1]}" in said


def test_an_account_with_such_cells_is_read_by_who_has_no_file_of_tasks(tmp_path):
    written = f"""
from sweeps.account.account import Account
account = Account(Path("results"))
assert account.check() == []
account.plan({{cell: ("mine",) for cell in cells({str(EXAMPLES / "depth_order.py")!r})}})
result = len(account.planned())
"""
    read = """
from sweeps.account.account import Account
account = Account(Path("results"))
result = [account.check(), sorted(cell.tasks for cell in account.planned())]
"""
    assert run(tmp_path, written) == 32
    problems, tasks = run(tmp_path, read)
    assert problems == []
    assert len(tasks) == 16
    assert not any("depth" in each for each in tasks)


def test_a_search_draws_the_weight_of_a_files_task(tmp_path):
    script = f"""
from sweeps.search.space import make_space
base = cells({str(EXAMPLES / "depth_order.py")!r}, combinations=("sprel+depth",))[0]
space = make_space(base.as_dict())
result = [list(space.domains), list(make_space(cells("table4")[0].as_dict()).domains)]
"""
    with_it, without = run(tmp_path, script)
    assert {"sprel_weight", "depth_weight"} <= set(with_it)
    assert "depth_weight" not in without


# What a reader of runs knows of them


def test_a_row_is_known_without_its_functions():
    (task,) = described(describe(["sprel"]))
    assert (task.name, task.title, task.metric_name) == ("sprel", "SpRel", "sprel_accuracy")
    assert (task.metric.unit, task.metric.higher_is_better) == ("Acc", True)
    with pytest.raises(ValueError, match="the functions of this task are in a file that was not given: --tasks-file"):
        task.loss(None, None)
    with pytest.raises(ValueError, match="no description of tasks"):
        described('[{"name": "sprel"}]')


def test_cells_of_a_files_task_are_read_and_have_their_effects_where_the_row_is_described(tmp_path):
    written = f"""
from relvit.tasks import describe
planned = cells({str(EXAMPLES / "depth_order.py")!r})
result = [describe(["depth"]), [cell.as_dict() for cell in planned], [cell.cell_id for cell in planned]]
"""
    text, fields, ids = run(tmp_path, written)
    # Each task adds its own amount and nothing else.
    read = f"""
sys.path.append({str(ROOT / "tests")!r})
from helpers.paper_runs import entries, row
from analysis.paper.appendix import appendix
from relvit.cell import Cell, add_described
add_described({text!r})
add_described({text!r})
gains = dict(sprel=1.0, dist=2.0, ang=3.0, abspos=4.0, depth=5.0, none=0.0)
cells = [Cell(**each) for each in {fields!r}]
runs = [row(each, accuracy=70 + sum(gains[task] for task in each.tasks.split("+"))) for each in cells]
made = dict((table.name, table) for table in appendix(entries("depth_order", runs)))["depth_order-effects"]
result = [[cell.cell_id for cell in cells],
          [[row.key, *(entry.text for entry in row.entries[1:3])] for row in made.rows if row.key.startswith("main-")]]
"""
    again, effects = run(tmp_path, read)
    assert again == ids
    assert len(effects) == 5 + 10
    assert effects[4] == ["main-depth", "Depth", "+5.00"]
    assert {points for _, _, points in effects[5:]} <= {"+0.00", "-0.00"}  # interactions


# What is refused


def pairs(**changes) -> Task:
    fields = {"name": "mine", "title": "Mine", "over": PAIRS, "outputs": 1, "metric": MSE}
    functions = {
        "target": lambda height, width: torch.zeros(height * width, height * width),
        "loss": lambda prediction, target: (prediction.squeeze(-1) - target).square().mean(),
    }
    return Task(**{**fields, **functions, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"name": "sprel"}, "the name 'sprel' of a task is taken: known are sprel, dist, ang, abspos, drloc"),
        ({"name": "My task"}, "a task's name is written with small letters"),
        ({"over": "patch"}, "unknown over 'patch': one of pairs, patches; did you mean 'patches'?"),
        ({"metric": "accuracy"}, "its metric must be a relvit.tasks.Metric, not 'accuracy'"),
        ({"outputs": -1}, "outputs must be a whole number, at least 0, not -1"),
        ({"outputs": True}, "outputs must be a whole number, at least 0, not True"),
        ({"title": 3}, "title must be its name in tables, not 3"),
        ({"title": ""}, "title must be its name in tables, not ''"),
        (
            {"metric": replace(MSE, suffix=3)},
            "its metric's suffix is written with small letters, digits and '_', not 3",
        ),
        ({"metric": replace(MSE, axis=None)}, "its metric's axis must be text, not None"),
        ({"metric": replace(MSE, higher_is_better="no")}, "its metric's higher_is_better must be True or False"),
        ({"weight": 0.0}, "weight must be a number above 0, not 0.0"),
        ({"weight": "2"}, "weight must be a number above 0, not '2'"),
        ({"weight": None}, "weight must be a number above 0, not None"),
        *(
            ({"weight_range": ends}, f"weight_range must be two numbers that rise from above 0, not {ends!r}")
            for ends in [(2.0, 1.0), 3, (1,), ("a", "b"), (0, 1)]
        ),
        (
            {"target": lambda height, width: torch.zeros(height, width)},
            "its target has the shape [3, 3] on a grid of 3 x 3; it must be a tensor that begins [9, 9]",
        ),
        (
            {"of_images": True, "target": lambda images, height, width: images.mean()},
            "its target has the shape [] on a grid of 3 x 3 and 2 images; it must be a tensor that begins [2, 9, 9]",
        ),
        ({"target": lambda height, width: 3}, "its target is 3 on a grid of 3 x 3"),
        ({"target": lambda height: 3}, "its target fails: TypeError"),
        (
            {"loss": lambda prediction, target: prediction.mean((1, 2))},
            "its loss must be a finite scalar, not a tensor of shape [2, 1]",
        ),
        ({"loss": lambda prediction, target: prediction.sum() / 0}, "its loss must be a finite scalar"),
        (
            {"loss": lambda prediction, target: target.mean()},
            "its loss does not depend on the predictions: there is nothing to train",
        ),
        ({"loss": lambda prediction, target: prediction @ target}, "its loss fails: RuntimeError"),
        (
            {"metric": replace(ACCURACY, function=lambda prediction, target: prediction)},
            "its metric must be a scalar, not a tensor of shape [2, 9, 9, 1]",
        ),
        ({"over": PATCHES}, "its loss fails: RuntimeError"),  # nine numbers a patch, where one is predicted
    ],
)
def test_a_row_is_checked_on_a_small_grid(changes, said):
    found = row_problems(pairs(**changes))
    assert found == [] if said is None else any(said in problem for problem in found), found


def test_what_is_wrong_with_a_file_is_said_with_its_line_beside_all_else(tmp_path):
    (tmp_path / "broken.py").write_text("from relvit.tasks import Task\n\ntasks = [Task(name=nme)]\n")
    (tmp_path / "syntax.py").write_text("tasks = [\n    1 2\n]\n")
    (tmp_path / "none.py").write_text("task = 1\n")
    (tmp_path / "beside.py").write_text("import mine_beside\n")
    (tmp_path / "strange.py").write_text("tasks = ['sprel']\n")
    twice = (EXAMPLES / "depth_order.py").read_text().replace("outputs=3", "outputs=-1") + "\ntasks += tasks\n"
    (tmp_path / "twice.py").write_text(twice)
    text = (EXAMPLES / "depth_order.py").read_text()
    (tmp_path / "loss.py").write_text(text.replace("movedim(-1, 1)", "movedim(-1, 7)"))
    script = """
result = {name: problems("tabel4", tasks_file=Path(f"{name}.py")) for name in
          ("broken", "syntax", "none", "strange", "loss", "absent", "syntx", "beside", "twice")}
right = RIGHT
result["evaluated"] = problems(right, evaluate=("finetune:depth_weight=2",), combinations=("sprel+depth",))
result["elsewhere"] = problems("table4", tasks_file=Path(right), combinations=("depth",))
""".replace("RIGHT", repr(str(EXAMPLES / "depth_order.py")))
    found = run(tmp_path, script)
    (evaluated,) = found.pop("evaluated")  # the weight is known: the study's file says of which task
    assert evaluated.startswith("--evaluate finetune:depth_weight=2: depth_weight changes the pre-training, which")
    (elsewhere,) = found.pop("elsewhere")
    assert elsewhere.startswith("--tasks depth is in no cell of table4; a tasks file is a study itself: --study ")
    for said in found.values():
        assert len(said) == 2
        assert "unknown study 'tabel4'" in said[1]
    assert found["broken"][0].startswith(
        "the tasks file broken.py does not import in line 3 (tasks = [Task(name=nme)]): NameError: name 'nme'"
    )
    assert found["syntax"][0].startswith("the tasks file syntax.py does not import in line 2 (1 2): SyntaxError: ")
    assert found["none"][0] == "the tasks file none.py does not define `tasks`, a list of relvit.tasks.Task"
    outputs = "depth: outputs must be a whole number, at least 0, not -1"
    assert found["twice"][0] == f"the tasks file twice.py: {outputs}; {outputs}; 'depth' is named twice"
    assert found["beside"][0].endswith("No module named 'mine_beside'; " + ALONE)
    assert found["strange"][0] == "the tasks file strange.py: 'sprel' in `tasks` is no relvit.tasks.Task"
    where = (
        "depth: its loss fails in line 27 (return F.cross_entropy(logits.movedim(-1, 7).float(), target)): IndexError"
    )
    assert where in found["loss"][0]
    assert found["absent"][0] == "the tasks file absent.py cannot be read: No such file or directory"
    assert found["syntx"][0].endswith("No such file or directory; did you mean 'syntax.py'?")


def test_a_cell_of_this_projects_tasks_has_no_digest():
    from test_cell import BASE

    assert make_cell(**BASE | {"tasks_digest": "0123456789ab"}).tasks_digest == ""
    with pytest.raises(ValueError, match="tasks_digest='0123456789ab' has no effect"):
        Cell(**BASE | {"tasks_digest": "0123456789ab"})
