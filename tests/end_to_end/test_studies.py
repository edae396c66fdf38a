"""Every cell of the paper's tables and of Figure 2, to its end at a toy scale, on real images where they are there."""

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers import entries
from helpers.entries import ROOT
from helpers.made_data import (
    write_cifar10,
    write_cifar100,
    write_flowers102,
    write_svhn,
    write_tiny_imagenet,
)

from relvit.cell import Cell

pytestmark = pytest.mark.end_to_end

SHARED = ROOT.parent / "shared/data"
TOY = ("--recipe", "cpu", "--set", "pretrain_epochs=1", "--set", "epochs=1", "--set", "warmup_epochs=0")
FEW = (*TOY, "--set", "train_images=48")


@pytest.fixture(scope="module")
def finished(request, tmp_path_factory) -> Path:
    """A folder in which every study of the paper has run."""
    folder = tmp_path_factory.mktemp("studies")
    data = folder / "data"
    data.mkdir()
    write_svhn(data)
    write_cifar100(data)
    if SHARED.is_dir():
        # A part of it: 27 cells would look at 2,000 test images each.
        (data / "cifar10").symlink_to(request.getfixturevalue("cifar10_part_root") / "cifar10")
        (data / "tiny-imagenet-200").symlink_to(SHARED / "tiny-imagenet-200")
        (data / "flowers102").symlink_to(SHARED / "flowers12")  # class folders under the data set's name
    else:
        write_cifar10(data)
        write_tiny_imagenet(data)
        write_flowers102(data)
    result = entries.run(
        "sweeps/ablation.py", folder, "--study", "table2,table3,table4,figure2", "--keep-pretrainings", *FEW
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder


def results(folder: Path) -> pd.DataFrame:
    rows = []
    for path in folder.glob("results/cells/*/history.json"):
        fields = json.loads(path.with_name("cell.json").read_text())
        rows.append({**fields, **json.loads(path.read_text())[-1]})
    return pd.DataFrame(rows)


def test_every_cell_of_the_paper_runs_to_its_end(finished):
    # 10 + 32 + 16 + 5 cells, less two in Tables 2 and 4, one in Table 4 and Figure 2, one in Table 3 and Figure 2
    assert len(results(finished)) == 59
    assert results(finished)["test_accuracy"].between(0, 100).all()


def test_each_backbone_and_data_set_of_the_paper_has_its_cells(finished):
    table = results(finished)
    assert set(table["dataset"]) == {"cifar10", "cifar100", "svhn", "flowers102", "tiny_imagenet"}
    assert set(table["backbone"]) == {"vit_xs8", "swin_xs8", "t2t_xs"}
    assert table[table["tasks"] == "drloc"]["test_drloc_error_x100"].notna().sum() == 8


@pytest.mark.parametrize("study", ["table2", "table3", "table4", "figure2"])
def test_each_study_is_set_as_a_table_without_gaps_in_our_columns(finished, study):
    result = entries.call("analysis/make_tables.py", finished, "--study", study)
    assert result.returncode == 0, result.stderr
    markdown = (finished / f"results/analysis/{study}.md").read_text()
    dashes = sum(line.count("–") for line in markdown.splitlines() if line.startswith("|"))
    assert dashes == 0


def cells(folder: Path) -> dict[Cell, list[dict]]:
    """The finished cells with their rows."""
    return {
        Cell(**json.loads(path.with_name("cell.json").read_text())): json.loads(path.read_text())
        for path in folder.glob("results/cells/*/history.json")
    }


def first_phase(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["phase"] == "pretrain"]


def test_a_pre_training_that_cells_share_is_trained_once(finished):
    # Table 4's pre-trainings are there; its probes need their own last phase alone.
    result = entries.call("sweeps/ablation.py", finished, "--study", "probe", "--tasks", "sprel,none", *FEW)
    assert result.returncode == 0, result.stdout + result.stderr
    found = cells(finished)
    probes = [cell for cell in found if cell.protocol == "pretrain_probe"]
    assert {cell.tasks for cell in probes} == {"sprel", "none"}
    for probe in probes:
        (sibling,) = [
            cell for cell in found if cell.protocol == "pretrain_finetune" and cell.pretraining() == probe.pretraining()
        ]
        # Equal to the speed of each epoch: it was not trained again.
        assert first_phase(found[probe]) == first_phase(found[sibling]) != []


def test_the_plan_names_every_cell_and_what_it_will_cost(finished):
    result = entries.call("sweeps/ablation.py", finished, "--study", "table4,probe", "--plan", *FEW)
    assert result.returncode == 0, result.stderr
    assert "32 cells share 16 pre-trainings: that saves 16 trainings" in result.stdout
    assert "32 cells: 18 finished, 0 to continue, 14 to start" in result.stdout
    assert "trials at once: " in result.stdout and "GPU-hours" in result.stdout and "peak memory" in result.stdout
