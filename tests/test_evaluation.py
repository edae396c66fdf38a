"""How a classifier did on each class: worked out by hand, left by a training, and logged with its run."""

import csv
import json
from pathlib import Path

import pytest
import torch
from helpers.made_runs import planned
from helpers.tiny import TINY, silent
from mlflow import MlflowClient

from relvit.cell import make_cell
from relvit.evaluation import by_class, evaluated
from relvit.train import train
from sweeps.account.work import WorkItem
from sweeps.pictures import draw_attention, draw_confusion, draw_position_similarity
from sweeps.tracking.tracker import Tracker

NAMES = ["cat", "dog", "fox", "hen", "owl", "pig"]


def logits(*orders: str) -> torch.Tensor:
    """A row an image, whose classes are named from the likeliest by their first letters."""
    rows = torch.zeros(len(orders), len(NAMES))
    for row, order in enumerate(orders):
        for place, letter in enumerate(order):
            rows[row, [name[0] for name in NAMES].index(letter)] = len(NAMES) - place
    return rows


def test_confusion_has_a_row_a_true_class_and_top_5_misses_only_the_least_likely():
    labels = torch.tensor([0, 0, 0, 1])
    found = evaluated(logits("cdfhop", "dcfhop", "dfhopc", "dcfhop"), labels, NAMES)
    assert found["confusion"][:2] == [[1, 2, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert sum(map(sum, found["confusion"])) == 4
    assert found["top5"] == [2, 1, 0, 0, 0, 0]
    cat, dog, fox, *_, everything = by_class(found)
    assert cat == {
        "class": "cat",
        "images": 3,
        "accuracy": pytest.approx(100 / 3),
        "top5_accuracy": pytest.approx(200 / 3),
    }
    assert dog == {"class": "dog", "images": 1, "accuracy": 100.0, "top5_accuracy": 100.0}
    assert fox == {"class": "fox", "images": 0, "accuracy": None, "top5_accuracy": None}
    assert everything == {"class": "all", "images": 4, "accuracy": 50.0, "top5_accuracy": 75.0}


def test_of_five_classes_top_5_says_nothing_and_is_not_told():
    found = evaluated(torch.eye(5), torch.arange(5), NAMES[:5])
    assert "top5" not in found
    assert by_class(found)[-1] == {"class": "all", "images": 5, "accuracy": 100.0}


def test_a_finished_training_leaves_it_and_its_run_shows_it_as_tables(small, tmp_path):
    cell = make_cell(**TINY | {"tasks": "none"})
    folder = tmp_path / "cell"
    rows = list(train(cell, small, folder, note=silent))
    found = json.loads((folder / "evaluation.json").read_text())
    everything = by_class(found)[-1]
    assert (everything["images"], everything["accuracy"]) == (40, pytest.approx(rows[-1]["test_accuracy"]))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tracker = Tracker(uri, "relvit", tmp_path)
    tracker.rebuild(WorkItem(cell, studies=("own",)), rows, folder=folder)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("relvit").experiment_id])

    def table(name: str) -> list[list[str]]:
        path = client.download_artifacts(run.info.run_id, f"evaluation/{name}.csv", str(tmp_path))
        return list(csv.reader(Path(path).read_text().splitlines()))

    classes, confusion = table("classes"), table("confusion")
    assert classes[0] == ["class", "images", "accuracy", "top5_accuracy"]
    assert classes[-1][:3] == ["all", "40", f"{rows[-1]['test_accuracy']:.2f}"]
    assert confusion[0] == ["true class", *small.classes]
    assert [list(map(int, row[1:])) for row in confusion[1:]] == found["confusion"]


@pytest.mark.parametrize("content", [None, "{", '{"classes": ["a"], "confusion": 3}'])
def test_a_run_without_one_or_with_a_damaged_one_is_finished_all_the_same(tmp_path, content):
    folder = tmp_path / "cell"
    folder.mkdir()
    if content is not None:
        (folder / "evaluation.json").write_text(content)
    (cell,) = planned(tmp_path, "table4", seeds=(0,), combinations=("sprel",))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    Tracker(uri, "relvit", tmp_path).rebuild(WorkItem(cell), [], folder=folder)
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("relvit").experiment_id])
    assert run.info.status == "FINISHED"
    assert not client.list_artifacts(run.info.run_id, "evaluation")


# Pictures


def test_the_confusion_matrix_is_drawn_in_per_cent_of_each_true_class():
    figure = draw_confusion({"classes": ["a", "b"], "confusion": [[3, 1], [0, 0]]})
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[75, 25], [0, 0]]
    assert [text.get_text() for text in axes.texts] == ["75", "25"]
    assert axes.get_title() == "Test split: 75.00 % right"


def test_attention_lies_over_the_image_on_one_scale_and_similarity_in_colours_that_part_at_zero():
    weights = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]], [[[0.0, 0.1], [0.1, 0.2]]]])
    figure = draw_attention(torch.zeros(2, 8, 8, 3, dtype=torch.uint8).numpy(), ["cat", "dog"], weights)
    over = [axes.images for axes in figure.axes if len(axes.images) == 2]
    assert len(over) == 4  # mean and one head, of two images
    for below, above in over:
        assert above.get_extent() == below.get_extent()
        assert above.get_clim() == (0, pytest.approx(0.393))  # 99th percentile: 0.3 + 0.93 * 0.1 of eight weights
    assert any(axes.get_ylabel() == "Share of the attention" for axes in figure.axes)
    (shown,) = draw_position_similarity(torch.zeros(2, 2, 2, 2)).axes[0].images
    low, middle, high = (shown.cmap(value) for value in (0.0, 0.5, 1.0))
    assert min(middle[:3]) > 0.9 and low[2] > low[0] and high[0] > high[2]
