"""Searches without Ray: their spaces, a made-up quality of a cell, and trials trained one after the other."""

from relvit.cell import make_cell
from sweeps.planning.recipes import RECIPES
from sweeps.search.search import Budget, Method, Search
from sweeps.search.space import make_space


def base(tasks="sprel+abspos", **fields):
    what = {"dataset": "digits", "pretrain_dataset": "digits", "backbone": "vit_xs4", "image_size": 16, "seed": 7}
    demo = RECIPES["demo"].for_backbone("vit_xs4", 16)
    return make_cell(**{**demo, **what, "protocol": "pretrain_finetune", "tasks": tasks, **fields}).as_dict()


SPACE = make_space(base("none", protocol="joint", epochs=9))
FEW = make_space(base("none", protocol="joint", epochs=9), names=["gradient_clip"])


def quality(cell, epoch):
    """A made-up validation accuracy, the best at a learning rate of 0.001."""
    return 90 - 1000 * abs(cell.learning_rate - 0.001) + epoch


def row(cell, epoch):
    return {"epoch": epoch, "epoch_seconds": 2.0, "joint_val_accuracy": quality(cell, epoch)}


def train(search, asked, last=None):
    """Report epochs until the search ends the trial, or up to `last`. Returns how many."""
    for epoch in range(1, (last or asked.cell.total_epochs) + 1):
        if search.report(asked, row(asked.cell, epoch)):
            search.settle(asked)
            return epoch
    return last


def run(search, limit=1000):
    """Train trials one after the other; returns their cells."""
    cells = []
    while len(cells) < limit and (asked := search.next()) is not None:
        cells.append(asked.cell)
        train(search, asked)
    return cells


PLAIN = Method("random", "none")


def opened(tmp_path, space=SPACE, method=PLAIN, trials=12, name="a", points=()):
    return Search(name, space, method, Budget(trials=trials), f"sqlite:///{tmp_path}/optuna.db", points)


def outcomes(search):
    return [(trial.number, trial.state, trial.values, trial.params) for trial in search.trials]
