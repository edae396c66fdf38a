"""`ablation.py --watch`: what another terminal sees of a sweep, by the account alone."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.accounts import finish
from rich.console import Console

from sweeps.ablation import parse_arguments, watched
from sweeps.account.account import FAILED, RUNNING, Account
from sweeps.cli.progress import labels
from sweeps.cli.watch import markdown, stand, watch
from sweeps.planning.plan import Request, plan


@pytest.fixture
def account(tmp_path):
    """Four cells, twice two seeds: one finished, one running, one failed, one to start."""
    account = Account(tmp_path / "results")
    assert account.check() == []
    planned = plan(Request("table4", "demo", tmp_path, combinations=("none", "sprel"), seeds=(0, 1)))
    account.plan(planned)
    finished, running, failed, _ = planned
    finish(account, finished, [{"epoch": 40, "phase": "test", "test_accuracy": 91.25}])
    account.mark(running, RUNNING)
    account.mark(failed, FAILED, "loss is nan", failure="not finite")
    return account


def seen(account, *studies, terminal=False):
    console = Console(file=io.StringIO(), width=120, force_terminal=terminal, no_color=True)
    status = watch(console, account, studies, 0.01)
    return status, console.file.getvalue()


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_shows_what_is_done_runs_and_failed_and_writes_nothing(account):
    running = list(account.planned())[1]
    before = files(account.storage)
    with account.hold([running], lost=lambda: None):
        held = files(account.storage)
        status, text = seen(account, "table4")
        assert files(account.storage).keys() == held.keys()
    assert status == 0
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "4 cells: 1 finished, 0 to continue, 3 to start; 1 running, 1 failed"
    assert any(line.startswith(f"{running.tasks} {running.seed} 0 of 40 ") for line in lines)
    assert "none 91.25 1/2" in lines
    assert "sprel – 0/2" in lines
    assert any(line.startswith("FAILED") and line.endswith("not finite: loss is nan") for line in lines)
    after = files(account.storage)
    assert {path: after[path] for path in before} == before


def test_on_a_terminal_it_ends_with_the_study(account):
    for cell in account.planned():
        finish(account, cell, [{"epoch": 40, "phase": "test", "test_accuracy": 90.0 + cell.seed}])
    status, text = seen(account, "table4", terminal=True)
    assert status == 0
    assert "90.50" in text
    assert "0.71" in text  # the deviation of 90 and 91
    failed = next(iter(account.planned()))
    account.mark(failed, FAILED, "no memory")
    assert seen(account, "table4", terminal=True)[0] == 1


def test_a_study_that_was_not_planned_there_is_named(account, capsys):
    assert seen(account, "table3")[0] == 2
    said = capsys.readouterr().err
    assert said.startswith("nothing to show:\n")
    assert "no cell of study 'table3' was planned under" in said
    assert "planned there are table4" in said


def test_a_storage_that_is_not_there_is_no_account_and_is_not_made(tmp_path, capsys):
    assert seen(Account(tmp_path / "nowhere"), "table4")[0] == 2
    assert "nothing was planned there yet" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_the_same_command_with_watch_names_its_studies():
    assert watched(parse_arguments(["--watch", "--study", "table2,mine.py"])) == ["table2", "mine"]
    assert watched(parse_arguments(["--watch", "2", "--evaluate", "knn"])) == ["table4-evaluations"]


def test_evaluations_of_one_pre_training_are_told_apart(tmp_path):
    evaluate = ("probe", "finetune", "finetune:labels_per_class=10")
    cells = list(plan(Request("table4", "demo", tmp_path, combinations=("sprel",), evaluate=evaluate)))
    assert list(labels(cells).values()) == [
        "pretrain_probe", "pretrain_finetune", "pretrain_finetune labels_per_class=10"
    ]  # fmt: skip
    assert replace(cells[1], labels_per_class=10) == cells[2]


def test_what_all_cells_have_is_not_said_of_each(tmp_path):
    few = Request("table4", "demo", tmp_path, combinations=("none", "sprel"), settings=("labels_per_class=10",))
    assert list(labels(list(plan(few))).values()) == ["none", "sprel"]


def test_for_a_page_it_is_markdown_and_says_what_it_has_no_room_for(account):
    standing = stand(account, ["table4"], {})
    text = markdown(standing, 5000)
    assert text.startswith("**4 cells: 1 finished, 0 to continue, 3 to start; 0 running, 1 failed**\n")
    assert (
        "\n| cell | test accuracy | spread | seeds |\n| --- | ---: | ---: | ---: |\n| none | 91.25 |  | 1/2 |" in text
    )
    assert "\n- FAILED none  seed 1: not finite: loss is nan\n" in text
    short = markdown(standing, 200)
    assert len(short) <= 200
    assert text.startswith(short.partition("\n... and ")[0])
    assert short.endswith(" more lines")
