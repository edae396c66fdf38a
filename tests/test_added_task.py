"""A task of a user's own is one row and the functions that it names: planned, searched, trained and measured.

In processes of their own: a row that is added stays for as long as the process runs.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from relvit.cell import make_cell
from relvit.paper import section_3_1

ROOT = Path(__file__).resolve().parents[1]

# A fifth relation between patches, how many rows and columns apart they are, and a property of the pixels themselves.
ROWS = """
import torch
from relvit.tasks import ACCURACY, MSE, PAIRS, PATCHES, Task
import torch.nn.functional as F


def steps(height, width):
    index = torch.arange(height * width)
    rows, cols = index // width, index % width
    return ((rows[:, None] - rows).abs() + (cols[:, None] - cols).abs()) / (height + width - 2)


def brightness(images, height, width):
    return F.adaptive_avg_pool2d(images.mean(1), (height, width)).flatten(1)


def squared_error(prediction, target):
    return F.mse_loss(prediction.squeeze(-1).float(), target.expand(prediction.shape[:-1]))


STEPS = Task(name="steps", title="Steps", over=PAIRS, outputs=1, target=steps, loss=squared_error, metric=MSE)
BRIGHT = Task(
    name="bright", title="Brightness", over=PATCHES, outputs=1, target=brightness, of_images=True, loss=squared_error,
    metric=MSE, weight=0.5,
)
"""

STUDY = """
cells = [
    {"dataset": "cifar10", "backbone": "vit_s4", "protocol": "pretrain_finetune", "tasks": tasks}
    for tasks in ("steps", "bright", "sprel+steps")
]
"""

BASE = {
    **section_3_1("vit_xs4", 32),
    "dataset": "cifar10",
    "pretrain_dataset": "cifar10",
    "backbone": "vit_xs4",
    "image_size": 32,
    "seed": 0,
    "protocol": "pretrain_finetune",
    "tasks": "sprel+abspos",
}


def run(folder: Path, script: str):
    """What the script, with the rows above at hand, leaves in `result`."""
    (folder / "mytasks.py").write_text(ROWS)
    (folder / "study.py").write_text(STUDY)
    header = f"import json, sys\nsys.path[:0] = [{str(ROOT)!r}, {str(folder)!r}]\nfolder = {str(folder)!r}\n"
    header += "import mytasks\nfrom relvit.cell import add_task\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{header}{script}\nprint(json.dumps(result))"],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


PLAN = """
add_task(mytasks.STEPS)
add_task(mytasks.BRIGHT)
from pathlib import Path
from sweeps.planning.plan import Request, plan_cells
settings = ("pretrain_epochs=1", "epochs=1", "warmup_epochs=0", "train_images=64")
def cells(study, *more):
    return plan_cells(Request(study, "demo", Path(folder) / "data", settings=(*settings, *more)))
"""


def test_an_added_task_is_planned_with_its_weight_and_table_4_keeps_its_16_cells(tmp_path):
    planned = run(
        tmp_path, PLAN + "result = [[cell.as_dict() for cell in cells(name)] for name in ('table4', 'study.py')]"
    )
    table4, study = planned
    assert len(table4) == 16
    assert {cell["steps_weight"] for cell in table4} == {0.0}
    assert [(cell["tasks"], cell["sprel_weight"], cell["steps_weight"], cell["bright_weight"]) for cell in study] == [
        ("steps", 0.0, 1.0, 0.0),
        ("bright", 0.0, 0.0, 0.5),  # its row's own weight
        ("sprel+steps", 1.0, 1.0, 0.0),
    ]
    assert [cell["pair_head"] for cell in study] == ["bilinear", "none", "bilinear"]  # patches have no pair head


def test_cells_without_an_added_task_keep_their_ids_and_those_with_it_tell_their_weights_apart(tmp_path):
    known = make_cell(**BASE).cell_id
    result = run(
        tmp_path,
        f"from relvit.cell import Cell, make_cell\nbase = {BASE!r}\n"
        "before = make_cell(**base)\nadd_task(mytasks.STEPS)\nadd_task(mytasks.STEPS)\nafter = make_cell(**base)\n"
        "one, two = (make_cell(**{**base, 'tasks': 'sprel+steps', 'steps_weight': w}) for w in (1.0, 2.0))\n"
        "result = {'ids': [before.cell_id, after.cell_id, Cell(**before.as_dict()).cell_id],\n"
        "          'equal': before == after and hash(before) == hash(after), 'differ': one != two,\n"
        "          'own': one.cell_id != two.cell_id}",
    )
    assert result == {
        "ids": [known] * 3,
        "equal": True,
        "differ": True,
        "own": True,
    }


def test_an_added_task_is_trained_and_its_metric_reported(tmp_path):
    rows = run(
        tmp_path,
        PLAN + "from relvit.data import prepare\nfrom relvit.train import train\n"
        "data = prepare('digits', Path(folder) / 'data', 16)\n"
        "result = {cell.tasks: list(train(cell, data, Path(folder) / cell.cell_id)) for cell in cells('study.py')}",
    )
    assert list(rows) == ["steps", "bright", "sprel+steps"]
    for tasks, history in rows.items():
        assert [row["phase"] for row in history] == ["pretrain", "finetune", "test"]
        metrics = {"steps": "steps_mse_x100", "bright": "bright_mse_x100", "sprel": "sprel_accuracy"}
        for task in tasks.split("+"):
            assert history[0][f"pretrain_train_{task}_loss"] > 0
            assert history[0][f"pretrain_val_{metrics[task]}"] > 0
            assert history[-1][f"test_{metrics[task]}"] > 0
    # The error of the validation images is the loss itself, a hundredfold.
    first = rows["bright"][0]
    assert first["pretrain_val_bright_mse_x100"] == pytest.approx(100 * first["pretrain_val_bright_loss"], rel=1e-5)


def test_the_targets_of_pairs_move_with_the_patches_and_those_of_pixels_come_from_what_the_model_sees(tmp_path):
    result = run(
        tmp_path,
        "add_task(mytasks.STEPS)\nadd_task(mytasks.BRIGHT)\nimport torch\nfrom relvit.targets import Targets\n"
        "targets = Targets(('steps', 'bright'), (2, 2))\n"
        "images = torch.tensor([[0.0, 1.0], [2.0, 3.0]]).expand(1, 3, 2, 2)\n"
        "found = targets(torch.tensor([[3, 1, 2, 0]]), images)\n"
        "result = [found['steps'].tolist(), found['bright'].tolist()]",
    )
    # Patches 3, 1, 2, 0 of the grid [[0, 1], [2, 3]]: from 3 to 0 it is two steps of two, to 1 and 2 one.
    assert result[0] == [[[0.0, 0.5, 0.5, 1.0], [0.5, 0.0, 1.0, 0.5], [0.5, 1.0, 0.0, 0.5], [1.0, 0.5, 0.5, 0.0]]]
    assert result[1] == [[0.0, 1.0, 2.0, 3.0]]


def test_a_search_looks_for_the_weight_of_an_added_task(tmp_path):
    result = run(
        tmp_path,
        PLAN + "from sweeps.search.space import default_space\n"
        "cell = cells('study.py')[0]\n"
        "found = default_space(cell.as_dict())['steps_weight']\nresult = [found.lower, found.upper]",
    )
    assert result == [0.1, 10.0]


def test_a_row_with_a_bad_name_is_refused(tmp_path):
    said = {
        "Steps": "a task's name is written with small letters, digits and '_', not 'Steps'",
        **{
            name: f"the name '{name}' of a task is taken: known are sprel, dist, ang, abspos, drloc"
            for name in ("sprel", "none", "classification")
        },
    }
    found = run(
        tmp_path,
        "from dataclasses import replace\nresult = {}\n"
        f"for name in {list(said)}:\n"
        "    try: add_task(replace(mytasks.STEPS, name=name))\n"
        "    except ValueError as error: result[name] = str(error)",
    )
    assert found == said


def test_a_row_is_read_without_torch():
    script = (
        "import sys, relvit.tasks; print([t.metric_name for t in relvit.tasks.TASKS.values()], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    names = ["sprel_accuracy", "dist_mse_x100", "ang_mse_x100", "abspos_accuracy", "drloc_error_x100"]
    assert done.stdout.strip() == f"{names} False"
