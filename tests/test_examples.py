"""What examples/ holds runs as its files say."""

import math
import runpy
from pathlib import Path

from relvit import targets
from relvit.tasks import majority_rate
from sweeps.planning.plan import Request, plan_cells

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_relvit_as_a_library_learns_more_than_the_most_frequent_answer():
    metrics = runpy.run_path(str(EXAMPLES / "library.py"))["main"](epochs=2)
    assert metrics["sprel_accuracy"] > 1.5 * majority_rate(targets.spatial_relations(4, 4))
    assert metrics["abspos_accuracy"] > 1.5 * 100 / 16


def test_the_study_of_pair_heads_has_four_cells_that_differ_in_tasks_and_head_alone():
    request = Request(study=str(EXAMPLES / "heads.py"), recipe="demo", data_root=Path("data"))
    cells = [cell.as_dict() for cell in plan_cells(request)]
    assert [(cell["tasks"], cell["pair_head"]) for cell in cells] == [
        ("sprel", "bilinear"),
        ("sprel", "low_rank"),
        ("sprel+abspos", "bilinear"),
        ("sprel+abspos", "low_rank"),
    ]
    varying = ("tasks", "pair_head", "abspos_weight")  # the weight follows from the tasks
    assert len({tuple(value for name, value in cell.items() if name not in varying) for cell in cells}) == 1


def test_the_arms_of_the_gain_study_have_as_many_steps_and_the_same_draw_of_images():
    request = Request(study=str(EXAMPLES / "gain.py"), recipe="cpu", data_root=Path("data"))
    supervised, relvit = plan_cells(request)
    labelled = 10 * supervised.labels_per_class
    assert (supervised.tasks, relvit.tasks) == ("none", "sprel+abspos")
    assert supervised.pretrain_epochs * math.ceil(labelled / supervised.batch_size) == 3200
    assert relvit.pretrain_epochs * math.ceil(relvit.train_images / relvit.batch_size) == 3140
    for name in ("train_images", "labels_per_class", "epochs", "learning_rate", "selection", "val_share", "seed"):
        assert getattr(supervised, name) == getattr(relvit, name)


def test_the_gain_study_of_all_tasks_has_the_cells_of_the_two_arms_among_its_sixteen():
    arms, combinations = (
        plan_cells(Request(study=str(EXAMPLES / name), recipe="cpu", data_root=Path("data")))
        for name in ("gain.py", "gain_tasks.py")
    )
    assert len(combinations) == 16
    assert {cell.cell_id for cell in arms} < {cell.cell_id for cell in combinations}
