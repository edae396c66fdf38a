"""From every number to its runs, and whether outputs are still what the data give."""

import hashlib
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers.made_runs import conformed_runs
from helpers.made_runs import planned as planned_runs
from helpers.paper_runs import planned, published_as_runs, row

from analysis.make_tables import main
from analysis.output import provenance
from analysis.output.provenance import ProvenanceError
from analysis.output.typeset import to_markdown
from analysis.paper.appendix import appendix
from analysis.paper.figures import draw
from analysis.paper.registry import TABLES, find, tables_of
from analysis.runs.comparability import conform


@pytest.fixture
def runs(tmp_path) -> pd.DataFrame:
    cells = planned(tmp_path, seeds=(0, 1))
    values = {("none", 0): 80.0, ("none", 1): 81.0, ("sprel+abspos", 0): 90.0, ("sprel+abspos", 1): 92.0}
    return conform(pd.DataFrame([row(cells[place], accuracy=value) for place, value in values.items()]))


def made(folder: Path, runs: pd.DataFrame, study: str = "table4", name: str = "table4.md") -> dict:
    ((table, *_),) = tables_of(study, conform(runs))
    (folder / name).write_text(to_markdown(table))
    provenance.write(folder, provenance.record(study, [], runs, [table], [folder / name]))
    return provenance.read(provenance.sidecar(folder, study))


def test_a_number_leads_to_its_runs_seeds_and_commit(tmp_path, runs):
    made(tmp_path, runs)
    (number,) = provenance.explain(tmp_path, "table4:sprel+abspos:accuracy")
    assert number["text"] == "91.00 ± 1.41"
    assert number["values"]["value"] == 91.0
    expected = runs[runs["tasks"] == "sprel+abspos"]
    assert {(run["run_id"], run["cell_id"], run["seed"], run["commit"]) for run in number["runs"]} == {
        (each.run_id, each.cell_id, each.seed, "0123456789abcdef") for each in expected.itertuples()
    }


@pytest.mark.parametrize("study", ["table1", "table2", "table3", "table4", "figure2", "mega"])
def test_every_printed_number_of_every_table_and_figure_has_runs_or_is_the_papers(study, tmp_path):
    one_phase = {"settings": ("epochs=4", "warmup_epochs=1")} if study == "table3" else {}
    recipe = {"recipe": "cpu", **one_phase} if study in ("table2", "table3") else {}
    runs, metrics = conformed_runs(
        planned_runs(tmp_path, "table4" if study == "table1" else study, (0, 1), **recipe), study
    )
    made = tables_of(study, runs)
    drawn = draw(find(study, made[0].entries.runs), made[0].entries.runs, metrics, tmp_path).numbers
    assert [table.name for table in drawn if table.name.endswith("-cost")]
    everything = [one.table for one in made] + appendix(made[0].entries) + drawn
    provenance.write(tmp_path, provenance.record(study, [], runs, everything, []))
    numbers = {number["id"]: number for table in everything for number in provenance.explain(tmp_path, table.name)}
    for table in everything:
        for each in table.rows:
            for column, entry in zip(table.columns, each.entries):
                is_number = column.align == "c" and re.match(r"[\[<+-]?\d", entry.text)
                if not is_number or entry.text == "0" or entry.text.startswith("0/"):
                    continue
                number = numbers[f"{table.name}:{each.key}:{column.key}"]
                if column.key.startswith("paper") or column.key == "published":
                    assert number["published"]
                elif table.title == "Table 1: configurations" and each.key not in used(runs):
                    assert number["runs"] == []  # of the paper's models that have no run
                else:
                    assert number["runs"], number["id"]
                    assert all(run["commit"] == "0123456789abcdef" and run["seed"] in (0, 1) for run in number["runs"])


def used(runs: pd.DataFrame) -> set[str]:
    return set(runs["backbone"] + "-" + runs["image_size"].astype(str))


def test_a_figures_numbers_are_explained_as_a_tables(tmp_path):
    runs, metrics = conformed_runs(planned_runs(tmp_path, "table4"), "table4")
    drawn = draw(TABLES["table4"], runs, metrics, tmp_path)
    provenance.write(tmp_path, provenance.record("table4", [], runs, drawn.numbers, drawn.paths))
    own = runs[runs["tasks"] == "sprel"]
    (point,) = provenance.explain(tmp_path, "table4-accuracy:sprel:ours")
    assert point["values"]["value"] == pytest.approx(own["test_accuracy"].mean())
    assert [run["run_id"] for run in point["runs"]] == list(own["run_id"])
    (curve,) = provenance.explain(tmp_path, "table4-curves:sprel:accuracy")
    points = metrics[metrics["run_id"].isin(own["run_id"]) & (metrics["metric"] == "finetune_val_accuracy")]
    means = points.groupby("step")["value"].mean()
    assert [curve["values"][f"epoch {epoch}"] for epoch in (1, 2, 3, 4)] == pytest.approx(list(means))
    assert len(provenance.explain(tmp_path, "table4-effects:main-dist:ours")[0]["runs"]) == 48
    assert len(provenance.explain(tmp_path, "table4-effects:added-dist:ours")[0]["runs"]) == 6
    assert len(provenance.explain(tmp_path, "table4-cost:SpRel + Dist")) == 2


def test_tasks_may_be_named_in_any_order(tmp_path, runs):
    made(tmp_path, runs)
    assert provenance.explain(tmp_path, "table4:abspos+sprel") == provenance.explain(tmp_path, "table4:sprel+abspos")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("tabel4", "unknown table 'tabel4': one of table4; did you mean 'table4'?"),
        ("table4:sprel+abspo", "did you mean 'sprel+abspos'?"),
        ("table4:none:acuracy", "did you mean 'accuracy'?"),
    ],
)
def test_an_unknown_number_is_answered_with_the_nearest(tmp_path, runs, question, answer):
    made(tmp_path, runs)
    with pytest.raises(ProvenanceError) as error:
        provenance.explain(tmp_path, question)
    assert answer in str(error.value)


def test_an_unknown_row_is_answered_with_those_of_its_own_table_alone(tmp_path, runs):
    ((table, *_),) = tables_of("table4", conform(runs))
    longer = replace(table, name="table4-older-1", rows=table.rows[:1])
    provenance.write(tmp_path, provenance.record("table4", [], runs, [table, longer], []))
    with pytest.raises(ProvenanceError) as error:
        provenance.explain(tmp_path, "table4:nothing")
    assert "older" not in str(error.value)
    assert str(error.value).count("sprel+abspos,") == 1


def test_before_any_tables_it_says_so(tmp_path):
    with pytest.raises(ProvenanceError, match="no tables were made in"):
        provenance.explain(tmp_path, "table4")
    with pytest.raises(ProvenanceError, match="make the tables of the study first"):
        provenance.read(provenance.sidecar(tmp_path, "table4"))


def test_an_edited_and_a_missing_output_are_named(tmp_path, runs):
    content = made(tmp_path, runs)
    assert provenance.edited(content, tmp_path) == []
    output = tmp_path / "table4.md"
    output.write_text(output.read_text().replace("91.00", "99.00"))
    assert provenance.edited(content, tmp_path) == ["table4.md was edited by hand, or is half-written"]
    output.unlink()
    assert provenance.edited(content, tmp_path) == ["table4.md is missing"]


def test_new_changed_and_vanished_runs_are_named_with_what_rests_on_them(tmp_path, runs):
    content = made(tmp_path, runs)
    assert provenance.outdated(content, runs) == []
    changed = runs.copy()
    changed.loc[0, "test_accuracy"] = 85.0
    first, last = provenance.outdated(content, changed)
    assert f"run {runs['run_id'][0]}" in first
    assert "has changed; on it rest: table4:none:accuracy" in first
    assert last == "so these no longer match the data: table4.md"
    assert "is gone" in provenance.outdated(content, runs.iloc[1:])[0]
    more = pd.concat([runs, runs.iloc[[0]].assign(run_id="another", seed=7)])
    assert provenance.outdated(content, more)[0].startswith("run another")


def test_what_no_output_shows_does_not_make_outputs_outdated(tmp_path, runs):
    content = made(tmp_path, runs)
    assert provenance.outdated(content, runs.assign(driver_host="elsewhere", sweep="another")) == []


@pytest.mark.parametrize(
    ("column", "value"), [("training_seconds", 61.0), ("device", "another GPU"), ("status", "KILLED")]
)
def test_what_figures_and_the_page_show_makes_outputs_outdated(tmp_path, runs, column, value):
    runs = runs.assign(training_seconds=60.0, device="a GPU")
    content = made(tmp_path, runs)
    changed = runs.copy()
    changed.loc[0, column] = value
    assert f"run {runs['run_id'][0]}" in provenance.outdated(content, changed)[0]


def test_a_changed_history_makes_outputs_outdated_once_its_run_is_finished(tmp_path, runs):
    runs.loc[1, "status"] = "RUNNING"
    finished, running = runs["run_id"][:2]
    content = provenance.record("table4", [], runs, [], [], dict.fromkeys(runs["run_id"], "a"))
    histories = dict.fromkeys(runs["run_id"], "a")
    assert provenance.outdated(content, runs, histories | {running: "b"}) == []
    assert f"run {finished}" in provenance.outdated(content, runs, histories | {finished: "b"})[0]


def test_a_sidecar_of_an_older_version_is_not_held_against_the_runs(tmp_path, runs):
    made(tmp_path, runs)
    path = provenance.sidecar(tmp_path, "table4")
    content = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("seal", "version")}
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "seal": seal}))
    with pytest.raises(ProvenanceError, match="is of another version of this project"):
        provenance.read(path)


def test_types_of_columns_do_not_matter_to_the_digests(tmp_path, runs):
    content = made(tmp_path, runs)
    runs.to_parquet(tmp_path / "runs.parquet")
    assert provenance.outdated(content, pd.read_parquet(tmp_path / "runs.parquet")) == []
    assert provenance.outdated(content, runs.astype({"seed": "Int64", "test_accuracy": "Float64"})) == []


def test_a_sidecar_that_was_edited_or_is_broken_is_refused(tmp_path, runs):
    made(tmp_path, runs)
    path = provenance.sidecar(tmp_path, "table4")
    content = json.loads(path.read_text())
    content["numbers"][0]["text"] = "99.00"
    path.write_text(json.dumps(content))
    with pytest.raises(ProvenanceError, match="was edited by hand"):
        provenance.read(path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ProvenanceError, match="cannot be read"):
        provenance.read(path)


def test_a_file_belongs_to_the_study_that_wrote_it_last(tmp_path, runs):
    made(tmp_path, runs, "table4", "report.tex")
    made(tmp_path, runs, "table2", "report.tex")
    first = provenance.read(provenance.sidecar(tmp_path, "table4"))
    assert first["outputs"] == first["earlier"] == {}
    second = provenance.read(provenance.sidecar(tmp_path, "table2"))
    assert provenance.edited(second, tmp_path) == []


def test_outputs_of_an_earlier_call_stay_known(tmp_path, runs):
    made(tmp_path, runs, name="table4.md")
    content = made(tmp_path, runs, name="table4.tex")
    assert list(content["outputs"]) == ["table4.tex"]
    assert provenance.edited(content, tmp_path) == provenance.outdated(content, runs) == []
    (tmp_path / "table4.md").write_text("edited")
    assert provenance.edited(content, tmp_path) == ["table4.md was edited by hand, or is half-written"]
    # It is not forgotten by a third call either, and the edit is not taken for the truth.
    content = made(tmp_path, runs, name="table4.tex")
    assert provenance.edited(content, tmp_path) == ["table4.md was edited by hand, or is half-written"]
    (tmp_path / "table4.md").unlink()
    assert provenance.edited(content, tmp_path) == []
    assert made(tmp_path, runs, name="table4.tex")["earlier"] == {}


def test_an_output_that_other_data_gave_and_no_call_renewed_is_named(tmp_path, runs):
    made(tmp_path, runs, name="table4-older-1.md")
    changed = runs.copy()
    changed.loc[0, "test_accuracy"] = 85.0
    content = made(tmp_path, changed, name="table4.md")
    (stale,) = provenance.outdated(content, changed)
    assert stale.startswith("table4-older-1.md is of an earlier call, with other runs")
    record = provenance.record("table4", [], changed, [], [tmp_path / "table4.md"])
    assert provenance.write(tmp_path, record) == [stale]
    made(tmp_path, changed, name="table4-older-1.md")
    assert provenance.write(tmp_path, record) == []


def test_what_the_outputs_encoding_lacks_is_replaced(tmp_path, monkeypatch):
    made(tmp_path, conform(pd.DataFrame(published_as_runs(tmp_path, "table2"))), "table2", "table2.md")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["--out", str(tmp_path), "--explain", "table2:cifar10:improvement"]) == 0
    stream.flush()
    assert b"+4.75 ?" in stream.buffer.getvalue()
