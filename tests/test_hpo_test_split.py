"""A search's training leaves the test split alone, and what it leaves behind can still become an ordinary cell."""

import dataclasses

import pytest
from helpers.tiny import TINY, newest, silent, take, unreadable, without_speeds

from relvit.cell import make_cell
from relvit.train import train

PROTOCOLS = {
    "tasks then classification": {},
    "classification twice": {"tasks": "none"},
    "tasks then a probe": {"protocol": "pretrain_probe"},
    "one phase": {"protocol": "joint", "epochs": 4},
}


@pytest.fixture(scope="module")
def untestable(small):
    """The same images, but to read one of the test split is an error."""
    return dataclasses.replace(small, test=unreadable(small.test))


@pytest.fixture(scope="module", params=PROTOCOLS.values(), ids=PROTOCOLS)
def ordinary(request, small, tmp_path_factory):
    """A cell, and its rows where no search began it."""
    cell = make_cell(**TINY | request.param)
    return cell, without_speeds(train(cell, small, tmp_path_factory.mktemp("ordinary")))


def test_without_test_not_one_test_image_is_read_and_the_rows_end_with_the_last_epoch(ordinary, untestable, tmp_path):
    cell, expected = ordinary
    rows = list(train(cell, untestable, tmp_path / "searched", pretrained=tmp_path / "shared", test=False))
    assert without_speeds(rows) == expected[:-1]
    assert not any(name.startswith("test_") for row in rows for name in row)


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 4])
def test_a_cell_that_a_search_began_ends_as_an_ordinary_one(ordinary, stopped_after, small, untestable, tmp_path):
    cell, expected = ordinary
    take(stopped_after, train(cell, untestable, tmp_path / "searched", pretrained=tmp_path / "shared", test=False))
    rows = list(train(cell, small, tmp_path / "searched", pretrained=tmp_path / "shared", note=silent))
    assert without_speeds(rows) == expected


def test_a_pre_training_that_a_search_left_is_measured_by_the_ordinary_cell_that_takes_it_over(
    small, untestable, tmp_path
):
    list(train(make_cell(**TINY), untestable, tmp_path / "searched", pretrained=tmp_path / "shared", test=False))
    another = make_cell(**TINY | {"learning_rate": 0.003})
    rows = list(train(another, small, tmp_path / "another", pretrained=tmp_path / "shared", note=silent))
    assert without_speeds(rows) == without_speeds(list(train(another, small, tmp_path / "alone")))


def test_a_pre_training_that_a_search_left_becomes_a_finished_cell_of_its_own(small, untestable, tmp_path):
    cell = make_cell(**TINY)
    list(train(cell, untestable, tmp_path / "searched", pretrained=tmp_path / "shared", test=False))
    alone = list(train(cell.pretraining(), small, tmp_path / "alone"))
    for _ in range(2):  # the second time it is only read
        rows = list(train(cell.pretraining(), small, tmp_path / "shared", note=silent))
        assert without_speeds(rows) == without_speeds(alone)
        assert newest(tmp_path / "shared")["results"].keys() == {
            *("test_sprel_accuracy", "test_abspos_accuracy", "test_knn_accuracy", "test_knn_pooled_accuracy")
        }


def test_without_the_pre_training_what_a_search_began_cannot_be_tested_and_says_so(small, untestable, tmp_path):
    cell = make_cell(**TINY)
    list(train(cell, untestable, tmp_path / "searched", test=False))
    with pytest.raises(ValueError, match="its pre-training is gone: remove the cell's folder"):
        list(train(cell, small, tmp_path / "searched"))
