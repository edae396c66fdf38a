"""What `make ablation` runs, with a Python in its environment that only writes down what it is asked to run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SWEEP = ["sweeps/ablation.py"]
TABLES = ["analysis/make_tables.py"]


@pytest.fixture
def make(tmp_path):
    """Runs `make ablation` in a new clone, with these ARGS; returns the commands, each as its list of arguments."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\037" "$@" >> ran; echo >> ran; exit "${STATUS:-0}"\n')
    python.chmod(0o755)
    (python.parent / ".installed").touch()

    def run(arguments: str, status: int = 0) -> list[list[str]]:
        (tmp_path / "ran").unlink(missing_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        result = subprocess.run(
            ["make", "ablation", f"ARGS={arguments}"],
            cwd=tmp_path, env={**kept, "STATUS": str(status)}, capture_output=True, text=True,
        )  # fmt: skip
        assert result.returncode == (2 if status else 0), result.stderr
        return [line.split("\037")[:-1] for line in (tmp_path / "ran").read_text().splitlines()]

    return run


def test_a_sweep_is_followed_by_its_tables(make):
    assert make("") == [SWEEP, TABLES]
    assert make("--seeds 0,1 --set epochs=3") == [[*SWEEP, "--seeds", "0,1", "--set", "epochs=3"], TABLES]


@pytest.mark.parametrize("arguments", ["--plan", "--seeds 0,1 --plan", "--help"])
def test_a_plan_in_a_new_clone_is_not_followed_by_tables_of_nothing(make, arguments):
    assert make(arguments) == [[*SWEEP, *arguments.split()]]


def test_the_tables_are_read_from_where_the_sweep_was_tracked(make):
    uri = "sqlite:////elsewhere/mlflow.db"
    asked = ["--experiment", "mine", "--seeds", "0", "--tracking-uri", uri]
    assert make(" ".join(asked)) == [[*SWEEP, *asked], [*TABLES, *asked[:2], *asked[4:]]]
    asked = [f"--tracking-uri={uri}", "--tasks", "none", "--experiment=mine"]
    assert make(" ".join(asked)) == [[*SWEEP, *asked], [*TABLES, asked[0], asked[3]]]


def test_an_experiments_name_may_have_spaces(make):
    sweep, tables = make("--experiment 'my own one' --seeds 1")
    assert sweep == [*SWEEP, "--experiment", "my own one", "--seeds", "1"]
    assert tables == [*TABLES, "--experiment", "my own one"]


def test_a_sweep_that_failed_is_not_followed_by_tables(make):
    assert make("--seeds 0", status=1) == [[*SWEEP, "--seeds", "0"]]
