"""The command, from an MLflow database to files: the paper's numbers as runs, bad requests, LaTeX."""

import contextlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
from helpers.paper_runs import published_as_runs
from helpers.paper_runs import row as made_row
from mlflow import MlflowClient

from analysis.paper.registry import tables_of
from analysis.report import page
from analysis.runs.comparability import conform
from relvit.cell import FIELDS, Cell
from sweeps.account.work import WorkItem
from sweeps.planning.plan import Request, plan_cells
from sweeps.tracking.tracker import Tracker

pytestmark = pytest.mark.end_to_end

# An entry puts its checkout first on the path, in the place of a script's folder.
_PATH = list(sys.path)
from analysis.make_tables import main  # noqa: E402

sys.path[:] = _PATH


class Result(NamedTuple):
    """What the command gave."""

    returncode: int
    stdout: str
    stderr: str


def make(folder: Path, *arguments: str) -> Result:
    """The command on folder/mlflow.db, with its outputs in folder/out; in this process, which starts faster."""
    out, err = io.StringIO(), io.StringIO()
    options = ["--tracking-uri", f"sqlite:///{folder}/mlflow.db", "--out", "out"]
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*options, *arguments])
    return Result(status, out.getvalue(), err.getvalue())


def store(folder: Path, rows: list[dict]) -> None:
    """Runs as the engine logs them, one for each row of `test_tables.row`; of committed code, whatever is here now."""
    cells = [Cell(**{name: row[name] for name in FIELDS}) for row in rows]
    studies: dict[str, set[str]] = {}
    for cell, row in zip(cells, rows):
        studies.setdefault(cell.cell_id, set()).add(row["study"])
    tracker = Tracker(f"sqlite:///{folder}/mlflow.db", "relvit", folder)
    for cell, row in zip(cells, rows):
        tracker.begin(WorkItem(cell, studies=studies[cell.cell_id]))
        results = {name: value for name, value in row.items() if name.startswith("test_")}
        tracker.log(cell.cell_id, [{"epoch": cell.total_epochs, "phase": "test", **results}])
        tracker.finish(cell.cell_id)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    for run in client.search_runs([client.get_experiment_by_name("relvit").experiment_id], max_results=1000):
        client.set_tag(run.info.run_id, "git_dirty", "false")


@pytest.fixture(scope="module")
def paper(tmp_path_factory) -> Path:
    """A database with the published numbers of Tables 2, 3 and 4 as runs, and the tables of all three."""
    folder = tmp_path_factory.mktemp("paper")
    rows = published_as_runs(folder, "table2", "table3", "table4")
    # Table 2's CIFAR-10 rows are cells of Table 4, whose row has the tasks' metrics too.
    by_cell = {row["cell_id"]: row for row in rows}
    studies = {cell_id: [row["study"] for row in rows if row["cell_id"] == cell_id] for cell_id in by_cell}
    store(folder, [{**row, "study": ",".join(studies[cell_id])} for cell_id, row in by_cell.items()])
    for study in ("table2", "table3", "table4"):
        result = make(folder, "--study", study)
        assert result.returncode == 0, result.stderr
    return folder


def cells_of(text: str) -> list[list[str]]:
    """The rows of a pipe table, its heading first."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[entry.strip() for entry in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


@pytest.mark.parametrize("study", ["table2", "table3", "table4"])
def test_ours_is_the_papers_where_the_papers_numbers_are_the_runs(paper, study):
    heading, *rows = cells_of((paper / "out" / f"{study}.md").read_text())
    if study == "table3":
        pairs = [(i, i + 1) for i, name in enumerate(heading) if name.endswith(": Ours")]
    else:
        ours = [name for name in heading if name.startswith("Ours: ") and not name.endswith(": n")]
        pairs = [(heading.index(name), heading.index(name.replace("Ours", "Paper"))) for name in ours]
    assert len(pairs) == {"table2": 3, "table3": 4, "table4": 5}[study]
    for row in rows:
        for ours, theirs in pairs:
            # Bold and underline included; the published number may have a footnote on where it comes from.
            assert row[ours] == re.sub("<sup>.</sup>", "", row[theirs])
    verdicts = cells_of((paper / "out" / f"{study}-published.md").read_text())[1:]
    undecided = "one seed: +0.00, undecided"
    assert {row[-1] for row in verdicts} <= {undecided, f"not comparable ({undecided})"}


@pytest.mark.parametrize(
    ("study", "sentences"),
    [
        ("table2", ["published on the 1,020 images of the val split", "of accuracy, or where it is more (up to 2.2)"]),
        (
            "table3",
            [
                "published on the 1,020 images of the val split",
                "of 1,020 val images over 6,149 test images, trained on train and val",
                "trained by Liu et al. with another recipe on train and val, tested on 6,149 images",
                "trained by Liu et al. with another recipe, tested on 26,032 images",
                "its author later got 86.17; others got 75 to 82 with its code",
                "its author later got 88.29",
                "others got 38 to 91 with its code",
                "+3.88 over what Liu et al. later got",
            ],
        ),
    ],
)
def test_the_outputs_say_where_the_published_numbers_come_from(paper, study, sentences):
    out = paper / "out"
    table, verdicts = (cells_of((out / f"{study}{name}.md").read_text()) for name in ("", "-published"))
    for sentence in sentences:
        # In the table itself or, where it is about a verdict, in the published numbers' table; and on the page.
        assert any(sentence in (out / f"{study}{name}.md").read_text() for name in ("", "-published"))
        assert sentence in (out / f"{study}-report.html").read_text()
    (flowers,) = [row for row in table if row[0] == "Flower-102"] if study == "table2" else [table[2]]
    assert "<sup>a</sup>" in flowers[-1 if study == "table3" else -2]
    others = {"table2": "Flower-102", "table3": "Flower-102|(Swin|T2T-ViT), (Supervised|L_drloc)"}[study]
    apart = {row[0] for row in verdicts[1:] if row[-1].startswith("not comparable")}
    assert apart == {row[0] for row in verdicts[1:] if re.search(others, row[0].replace("\\", ""))}
    assert len(apart) == {"table2": 2, "table3": 20}[study]


def test_the_report_compiles(paper):
    if not shutil.which("pdflatex"):
        pytest.skip("needs pdflatex (Debian: texlive-latex-base and texlive-latex-recommended)")
    for study in ("table2", "table3", "table4"):
        assert make(paper, "--study", study).returncode == 0
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
        result = subprocess.run(command, cwd=paper / "out", capture_output=True, text=True, errors="replace")
        assert result.returncode == 0, result.stdout[-2000:]
        assert "Overfull \\hbox" not in result.stdout
        assert (paper / "out" / "report.pdf").stat().st_size > 10_000
    assert make(paper, "--check").returncode == 0


def test_outputs_are_checked_against_files_and_runs(paper, tmp_path):
    shutil.copytree(paper, tmp_path, symlinks=True, dirs_exist_ok=True)
    assert make(tmp_path, "--check").returncode == 0
    table = tmp_path / "out" / "table2.tex"
    table.write_text(table.read_text().replace("90.13", "91.13"))
    result = make(tmp_path, "--check")
    assert result.returncode == 1
    assert "table2.tex was edited by hand" in result.stderr
    assert "table3" not in result.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("relvit").experiment_id
    (run,) = client.search_runs([experiment], "params.backbone = 'vit_s8' and params.tasks = 'none'")
    client.log_metric(run.info.run_id, "test_accuracy", 43.0, step=200)
    result = make(tmp_path, "--check", "--study", "table2")
    assert result.returncode == 1
    assert f"run {run.info.run_id}" in result.stderr
    assert "table2:tiny_imagenet:supervised" in result.stderr
    assert "no longer match the data: table2.tex" in result.stderr
    (run,) = client.search_runs([experiment], "params.backbone = 'swin_t' and params.tasks = 'none'", max_results=1)
    client.log_metric(run.info.run_id, "joint_val_accuracy", 43.0, step=100)  # which figures alone show
    result = make(tmp_path, "--check", "--study", "table3")
    assert result.returncode == 1
    assert f"run {run.info.run_id}" in result.stderr


def test_a_number_is_explained(paper):
    result = make(paper, "--explain", "table4:abspos+sprel:accuracy")
    assert result.stdout.startswith("table4:sprel+abspos:accuracy  90.13  (value 90.13, n 1)")
    assert "seed 0" in result.stdout
    assert "cifar10-vit_s4-pretrain_finetune-sprel+abspos-s0" in result.stdout


def test_a_deviation_is_a_footnote_in_every_format_or_refused(paper, tmp_path):
    shutil.copy(paper / "mlflow.db", tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("relvit").experiment_id
    (run,) = client.search_runs([experiment], "params.backbone = 'vit_s8' and params.tasks = 'none'")
    client.set_tag(run.info.run_id, "deviation", "micro_batches=4")
    refused = make(tmp_path, "--study", "table2", "--strict")
    assert refused.returncode == 1
    assert "table2: micro_batches=4 (tiny_imagenet)" in refused.stderr
    assert not list((tmp_path / "out").glob("table2*"))
    assert make(tmp_path, "--study", "table2").returncode == 0
    # The first mark is that of Flower-102's val split.
    for ending, mark in ((".tex", r"42.09$^{b}$"), (".md", "42.09<sup>b</sup>"), (".html", "42.09<sup>b</sup>")):
        text = (tmp_path / "out" / f"table2{ending}").read_text()
        assert text.count(mark) == 1
        assert "micro" in text
    assert make(tmp_path, "--study", "table4", "--strict").returncode == 0


def test_a_study_named_as_the_document_is_keeps_its_table_beside_it(paper, tmp_path):
    shutil.copy(paper / "mlflow.db", tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("relvit").experiment_id
    for run in client.search_runs([experiment], "params.dataset = 'svhn' and params.protocol = 'joint'"):
        client.set_tag(run.info.run_id, "study", "report")
    assert make(tmp_path, "--study", "report", "--no-attach").returncode == 0
    assert r"\documentclass" in (tmp_path / "out" / "report.tex").read_text()
    assert r"\documentclass" not in (tmp_path / "out" / "study-report.tex").read_text()
    assert make(tmp_path, "--check").returncode == 0


def test_full_shows_the_papers_own_table_4_however_old_and_judges_the_sentences_of_all_three_tables(tmp_path):
    cells = plan_cells(Request(study="full", recipe="paper", data_root=tmp_path))
    rows = [
        made_row(cell, accuracy=80.0 + number % 7, started=number + 1000 * (cell.dataset != "cifar10"))
        for number, cell in enumerate(cells)
    ]
    made = tables_of("full", conform(pd.DataFrame(rows).assign(study="full")))
    assert made[0].table.title == "Table 4: tasks on CIFAR-10 with ViT-S/4"
    first = [one.entries for one in made if one.first]
    assert [entries.of.name for entries in first] == ["table4", "table2", "table3"]
    assert len(made) == 3 + 4  # and the other four data sets'
    judged = page.sentences_of(first)
    assert set(judged["table"]) == {"table2", "table3", "table4"}
    assert not judged[judged["table"] == "table4"]["not_comparable"].any()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("--study", "tabel3"), "did you mean 'table3'?"),
        (("--format", "latx"), "unknown format 'latx': one of latex, markdown, html; did you mean 'latex'?"),
        (("--explain", "table9"), "unknown table 'table9'"),
        (("--where", "datset=cifar10"), "did you mean 'dataset'?"),
        (("--where", "epochs=many"), "epochs must be of type int, not 'many'"),
        (("--where", "epochs=7"), "no run fits --where epochs=7"),
        (("--experiment", "relvitt"), "relvit"),
        (("--tracking-uri", "sqlite:///nowhere.db"), "nowhere.db"),
        (("--check", "--study", "table9"), "make the tables of the study first"),
    ],
)
def test_a_wrong_request_is_answered_and_touches_nothing(paper, arguments, answer):
    before = {path.name: path.read_bytes() for path in (paper / "out").glob("*.[thm]*")}
    result = make(paper, *arguments)
    assert result.returncode == 2
    assert answer in result.stderr
    assert "Traceback" not in result.stderr
    assert {path.name: path.read_bytes() for path in (paper / "out").glob("*.[thm]*")} == before


def test_only_the_formats_asked_for_are_written(paper, tmp_path):
    shutil.copy(paper / "mlflow.db", tmp_path)
    result = make(tmp_path, "--format", "markdown", "--where", "dataset=cifar10")
    assert result.returncode == 0, result.stderr
    endings = {path.suffix for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert ".md" in endings
    assert not endings & {".tex", ".html"}
    # What another call left out is still checked, and what it made of other runs is not passed off as of these.
    result = make(tmp_path, "--format", "latex", "--where", "dataset=cifar10")
    assert "of an earlier call" not in result.stdout
    assert make(tmp_path, "--check").returncode == 0
    result = make(tmp_path, "--format", "latex")
    assert "table4.md is of an earlier call, with other runs or another --where" in result.stdout
    result = make(tmp_path, "--check")
    assert result.returncode == 1
    assert "table4.md is of an earlier call" in result.stderr


def test_runs_without_a_study_are_said_to_need_one(paper, tmp_path):
    shutil.copy(paper / "mlflow.db", tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("relvit").experiment_id
    for run in client.search_runs([experiment], max_results=1000):
        client.delete_tag(run.info.run_id, "study")
    result = make(tmp_path)
    assert result.returncode == 2
    assert "has the tag study" in result.stderr
    assert make(tmp_path, "--study", "table1").returncode == 0


def test_a_name_with_latex_and_html_characters_does_no_harm(paper, tmp_path):
    shutil.copy(paper / "mlflow.db", tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("relvit").experiment_id
    name = r"50%_&<b>\input{x}$數"
    for run in client.search_runs([experiment], "params.tasks = 'none'", max_results=1000):
        client.set_tag(run.info.run_id, "study", name)
    result = make(tmp_path, "--study", name)
    assert result.returncode == 0, result.stderr
    assert "<b>" not in (tmp_path / "out" / "50-_-b-input-x.html").read_text()
    if shutil.which("pdflatex"):
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
        compiled = subprocess.run(command, cwd=tmp_path / "out", capture_output=True, text=True, errors="replace")
        assert compiled.returncode == 0, compiled.stdout[-2000:]
