"""A study can report the val split, as the paper does for Flower-102."""

import numpy as np
import pandas as pd
import pytest
from helpers import paper_runs
from helpers.made_runs import gathered, made_runs, planned

from analysis import make_tables
from analysis.output import provenance
from analysis.paper.appendix import appendix
from analysis.paper.verdicts import published_numbers
from analysis.runs.comparability import conform
from analysis.runs.splits import on_val, split_of, val_metrics


def points(*rows: tuple[str, str, int, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["run_id", "metric", "step", "value"])


def test_results_on_val_are_those_of_the_tested_weights_and_of_the_end_of_pre_training(tmp_path):
    (cell,) = planned(tmp_path, "table4", seeds=(0,), combinations=("sprel",))  # 3 + 4 epochs
    runs = conform(pd.DataFrame([paper_runs.row(cell, accuracy=90.0, sprel_accuracy=50.0) | {"selected_epoch": 6}]))
    run = runs["run_id"][0]
    history = points(
        *((run, "finetune_val_accuracy", step, float(step)) for step in (4, 5, 6, 7)),
        *((run, "pretrain_val_sprel_accuracy", step, 10.0 * step) for step in (1, 2, 3)),
    )
    assert set(history["metric"]) <= set(val_metrics(runs))
    changed = on_val(runs, history)
    assert (changed["test_accuracy"][0], changed["test_sprel_accuracy"][0]) == (6.0, 30.0)
    assert (split_of(changed), split_of(runs)) == ("val", "test")
    assert np.isnan(on_val(runs, history[:0])["test_accuracy"][0])  # of a run without a history nothing is known


@pytest.mark.parametrize(("split", "comparable"), [("test", "cifar10"), ("val", "flowers102")])
def test_published_numbers_are_comparable_where_they_are_of_the_split_that_is_reported(tmp_path, split, comparable):
    runs = pd.DataFrame(paper_runs.published_as_runs(tmp_path, "table2")).assign(split=split)
    judged = published_numbers(paper_runs.entries("table2", runs))
    apart = {cell.split(" ")[0]: why for cell, why in zip(judged["cell"], judged["why"])}
    assert apart[comparable] == ""
    other = "flowers102" if comparable == "cifar10" else "cifar10"
    images = {"flowers102": "the 1,020 images of the val", "cifar10": "the 10,000 images of the test"}[other]
    assert apart[other] == f"published on {images} split"
    entries = paper_runs.entries("table2", runs)
    table = entries.of.layout(entries, "table2")
    assert f"{split} split" in table.caption
    noted = {row.key for row in table.rows if row.entries[-2].marks}
    assert (other in noted, comparable in noted) == (True, False)
    # Of a folder without val a tenth of train is val, which is not the split of the published number.
    for images, why in (("102", "102 val images of Flower-102 instead of 1,020"), ("1020", "")):
        known = published_numbers(paper_runs.entries("table2", runs.assign(images_of_val=images)))
        assert dict(zip(known["cell"], known["why"]))["flowers102 relvit"] == (
            why if split == "val" else "published on the 1,020 images of the val split"
        )
    (verdicts,) = [each for each in appendix(entries) if each.name == "table2-published"]
    assert "not comparable" in verdicts.entry(f"{other} relvit accuracy", "verdict").text
    assert "not comparable" not in verdicts.entry(f"{comparable} relvit accuracy", "verdict").text


def test_the_outputs_of_val_stand_beside_those_of_test_and_are_checked_alike(tmp_path, monkeypatch):
    cells = planned(tmp_path, "table4", seeds=(0, 1), combinations=("none", "sprel"))
    runs, metrics = made_runs(cells, "table4")
    runs = runs.assign(selected_epoch=float(cells[0].total_epochs))
    found = gathered(tmp_path / "gathered", runs, metrics)
    monkeypatch.setattr(make_tables, "read_runs", lambda options: found)
    out = tmp_path / "out"
    for split in ("test", "val"):
        assert make_tables.main(["--study", "table4", "--split", split, "--out", str(out), "--no-attach"]) == 0
    last = metrics[(metrics["metric"] == "finetune_val_accuracy") & (metrics["step"] == cells[0].total_epochs)]
    sprel = runs[runs["tasks"] == "sprel"]["run_id"]
    mean = last[last["run_id"].isin(sprel)]["value"].mean()
    (number,) = provenance.explain(out, "table4-val:sprel:accuracy")
    assert number["values"]["value"] == pytest.approx(mean)
    assert {"table4.tex", "table4-val.tex", "table4-val-report.html", "table4-val-accuracy.pdf"} <= {
        path.name for path in out.iterdir()
    }
    assert "--study table4 --split val" in (out / "table4-val-report.html").read_text()
    assert make_tables.main(["--check", "--out", str(out)]) == 0
