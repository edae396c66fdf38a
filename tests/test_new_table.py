"""What a new table takes: one module, one line in the registry, and everything else follows."""

import io
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from helpers.made_runs import gathered, made_runs, planned
from rich.console import Console

import analysis.paper
from analysis.make_tables import make, parse_arguments
from analysis.output import provenance
from analysis.paper import registry

# A probe with a curve to draw.
STEPWISE = ("pretrain_epochs=3", "epochs=4", "warmup_epochs=1", "probe=sgd")
ROOT = Path(analysis.paper.__file__).parents[1]
MODULE = '''"""Accuracy of linear probes after each combination of tasks, which the paper does not have."""

from analysis.output.typeset import Column, Entry, Row, Table
from analysis.paper.curves import curves
from analysis.paper.drawing import combination_name
from analysis.paper.entries import Claim, Entries, PaperTable
from analysis.paper.numbers import how_to_read, measured, number_entry, recipe_sentence
from analysis.paper.rules import all_above, fixed


def layout(entries: Entries, name: str) -> Table:
    numbers = measured(entries.labelled, "label", "test_accuracy")
    rows = [
        Row(label, (Entry(combination_name(label)), number_entry(row, len(entries.seeds), interval=True)))
        for label, row in zip(numbers.index, numbers.to_dict("records"))
    ]
    columns = (Column("tasks", "Tasks", align="l"), Column("accuracy", "Linear probe", "(Acc)"))
    told = how_to_read("below it the", {"all": [row.entries[-1] for row in rows]})
    caption = f"Accuracy in % of linear probes. {recipe_sentence(entries.runs)} {told}"
    return entries.footnoted(Table(name, "Linear probes", columns, tuple(rows), caption))


TABLE = PaperTable(
    name="probe",
    title="Linear probes",
    layout=layout,
    label=lambda run: run["tasks"] if run["protocol"] == "pretrain_probe" else None,
    label_name=combination_name,
    pairs=lambda labels: [(label, "none") for label in labels if label != "none"],
    figures={"-curves": curves},
    claims=(Claim("sprel-helps", "SpRel helps a probe", "nowhere", all_above(fixed(("sprel", "none")))),),
)
'''


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    (tmp_path / "probes.py").write_text(MODULE)
    monkeypatch.setattr(analysis.paper, "__path__", [*analysis.paper.__path__, str(tmp_path)])
    table = import_module("analysis.paper.probes").TABLE
    monkeypatch.setitem(registry.TABLES, table.name, table)  # the line in the registry
    runs, metrics = made_runs(planned(tmp_path / "data", "probe", (0, 1), settings=STEPWISE), "probe")
    out = tmp_path / "out"
    out.mkdir()
    shown = io.StringIO()
    options = parse_arguments(["--out", str(out), "--no-attach"])
    assert (
        make(options, Console(file=shown, width=200), gathered(out, runs, metrics), ["latex", "markdown", "html"]) == 0
    )
    return out, shown.getvalue(), runs


def test_a_new_table_is_set_drawn_judged_and_explained(outputs):
    out, shown, runs = outputs
    mean = runs[runs["tasks"] == "sprel"]["test_accuracy"].mean()
    assert f"{mean:.2f}" in (out / "probe.md").read_text()
    assert f"{mean:.2f}" in shown
    assert "SpRel helps a probe" in (out / "probe-verdicts.md").read_text()
    assert "| SpRel " in (out / "probe-differences.md").read_text()
    assert (out / "probe-curves.pdf").stat().st_size > 1000
    page = (out / "probe-report.html").read_text()
    assert "<h1>Linear probes" in page
    assert "SpRel helps a probe" in page
    (entry,) = provenance.explain(out, "probe:sprel:accuracy")
    assert {run["seed"] for run in entry["runs"]} == {0, 1}
    assert entry["values"]["value"] == pytest.approx(mean)


def test_the_module_and_its_line_are_all_that_there_is_of_a_table():
    # Nowhere else in analysis does the name of a table of the paper stand, but where one is named as the other's.

    for name in ("table2", "table3", "figure2"):
        having = [path.name for path in ROOT.rglob("*.py") if f'"{name}"' in path.read_text()]
        assert sorted(having) == sorted([f"{name}.py", "registry.py"])


def test_an_added_task_has_its_column_and_its_line(tmp_path):
    # In a process of its own: a row that is added stays for as long as the process runs.
    script = f"""
import io, sys
from pathlib import Path
sys.path[:0] = [{str(ROOT.parent)!r}, {str(ROOT.parent / "tests")!r}]
from relvit.cell import add_task
from relvit.tasks import MSE, PAIRS, Task
add_task(Task(name="steps", title="Steps", over=PAIRS, outputs=1, target=print, loss=print, metric=MSE))
from helpers.made_runs import gathered, made_runs, planned
from rich.console import Console
from analysis.make_tables import make, parse_arguments
folder = Path({str(tmp_path)!r})
(folder / "study.py").write_text('''cells = [
    {{"dataset": "cifar10", "backbone": "vit_s4", "protocol": "pretrain_finetune", "tasks": tasks}}
    for tasks in ("none", "sprel", "steps", "sprel+steps")
]
''')
runs, metrics = made_runs(planned(folder / "data", str(folder / "study.py"), (0, 1)), "mine")
options = parse_arguments(["--out", str(folder / "out"), "--no-attach"])
make(options, Console(file=io.StringIO()), gathered(folder / "out", runs, metrics), ["markdown", "html"])
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    heading, *rows = [line for line in (tmp_path / "out" / "mine.md").read_text().splitlines() if line.startswith("|")]
    assert [name.strip() for name in heading.strip("|").split("|")] == [
        "tasks", "SpRel (Acc ↑)", "Steps (MSE ↓)", "Test accuracy (Acc ↑)", "n",
    ]  # fmt: skip
    (alone,) = [line.strip("|").split("|") for line in rows if line.startswith("| steps ")]
    assert alone[1].strip() == "×"
    assert float(alone[2].split("±")[0].strip(" *")) >= 10
    curves = provenance.read(tmp_path / "out" / "mine.provenance.json")["numbers"]
    lines = {entry["id"].split(":")[1] for entry in curves if entry["id"].startswith("mine-curves:")}
    assert lines == {"Supervised", "SpRel", "Steps", "SpRel + Steps"}
