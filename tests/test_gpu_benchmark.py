"""benchmarks/gpu.py on a CPU: every part of it runs, and what it has measured is on the disk at any time."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import BEGUN, OPEN, Report, claims, supervise

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("ray", "mlflow", "rich", "optuna", "sklearn", "matplotlib")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """In processes in which what the benchmark must do without cannot be imported."""
    (folder / "without").mkdir()
    absent = f"import sys; sys.modules.update(dict.fromkeys({ABSENT}))"  # importing fails, looking for it finds nothing
    (folder / "without/sitecustomize.py").write_text(absent)
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--device", "cpu", "--out", str(folder / "out")]
    environment = os.environ | {"PYTHONPATH": str(folder / "without")}
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, env=environment)


@pytest.mark.end_to_end
def test_the_smoke_run_reaches_every_part_with_torch_and_its_company_alone(tmp_path):
    result = run(tmp_path, "--smoke", "--minutes", "60")
    assert result.returncode == 0, result.stdout + result.stderr
    figures = json.loads((tmp_path / "out/gpu.json").read_text())
    assert list(figures) == ["machine", "a. right", "b. fast", "c. the paper"]
    failed = [f"{name}: {value}" for part in figures.values() for name, value in part.items() if "failed" in str(value)]
    assert failed == []
    assert figures["a. right"]["resumed run, bit for bit"] == "yes"
    for row in ("supervised (paper: 85.38)", "sprel+abspos (paper: 90.13)"):
        assert figures["c. the paper"][f"{row}, 1 epochs a phase"]["phase"] == "test"
    markdown = (tmp_path / "out/gpu.md").read_text()
    assert all(f"## {part}" in markdown for part in figures)


def test_without_a_gpu_it_says_how_to_try_it(tmp_path):
    result = run(tmp_path)
    assert result.returncode == 2
    assert "there is no GPU that torch can use: --smoke tries this command on a CPU" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_figure_in_which_its_process_dies_is_failed_and_another_process_takes_the_rest(tmp_path):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from benchmarks.gpu import BEGUN, Report
report = Report(Path({str(tmp_path)!r}), 1)
for name in ("first", "second", "third"):
    if report.is_open("part", name):
        report.add("part", name, BEGUN)
        if name == "second":
            os.kill(os.getpid(), signal.SIGSEGV)
        report.add("part", name, 1.0)
"""
    assert supervise(lambda minutes: [sys.executable, "-c", script], tmp_path, 1) == 0
    found = Report(tmp_path, 1)
    assert found.figures == {"part": {"first": 1.0, "second": "failed: its process ended with -11", "third": 1.0}}
    assert "| second | failed: its process ended with -11 |" in (tmp_path / "gpu.md").read_text()


def script_that(*lines):
    """A command whose process has a report in the folder that is its argument."""
    begin = [f"import sys, time; sys.path.insert(0, {str(ROOT)!r})", "from pathlib import Path"]
    begin += ["from benchmarks.gpu import BEGUN, Report", "report = Report(Path(sys.argv[1]), 1)"]
    return [sys.executable, "-c", "\n".join([*begin, *lines])]


def test_a_process_that_adds_no_figure_for_long_is_ended(tmp_path):
    stuck = script_that('report.add("part", "first", BEGUN)', "time.sleep(60)")
    commands = iter([[*stuck, str(tmp_path)], ["true"]])
    started = time.monotonic()
    assert supervise(lambda minutes: next(commands), tmp_path, 1, silent=2) == 0
    assert time.monotonic() - started < 30
    assert Report(tmp_path, 1).figures["part"]["first"].startswith("failed: no end after")


def test_a_process_that_dies_before_it_takes_anything_up_is_not_started_again(tmp_path):
    commands = iter([[sys.executable, "-c", "import no_such_module"]])
    assert supervise(lambda minutes: next(commands), tmp_path, 1) == 1


def test_what_was_begun_when_the_command_was_interrupted_is_open_again(tmp_path):
    Report(tmp_path, 1).add("part", "first", BEGUN)
    assert supervise(lambda minutes: ["true"], tmp_path, 1) == 0
    assert Report(tmp_path, 1).is_open("part", "first")


def test_figures_of_another_machine_or_of_a_smoke_run_are_not_taken_for_this_ones(tmp_path):
    h100 = {"device": "NVIDIA H100", "torch": "2.11"}
    for _ in range(2):
        Report(tmp_path, 1).require(h100)
    with pytest.raises(ValueError, match="has figures of device NVIDIA H100, torch 2.11; .* another --out"):
        Report(tmp_path, 1).require({"device": "no GPU", "smoke": "yes"})


def test_each_claim_is_met_missed_or_open():
    step = {"images a second": 21_000.0, "full / bare": 1.2, "waits for the GPU": "never"}
    fast = {"vit_s4, batch 256, bf16, inductor": step, "vit_s4, batch 256, fp32, eager": {"images a second": 5_000.0}}
    assert claims({"b. fast": fast}) == [
        ("full step in bf16, images a second: at least 20,000", "21,000", "met"),
        ("over timm's bare step, both compiled: at most 1.10", "1.2", "missed"),
        ("over the eager step in fp32: at least 4", "4.2", "met"),
        ("augmentation's share: at most 0.05", "", "open"),
        ("a step waits for the GPU: never", "never", "met"),
    ]
    assert {met for _, _, met in claims({"b. fast": {"vit_s4, batch 256, bf16, inductor": "failed: OSError"}})} == {
        "open"
    }


def test_the_same_command_again_takes_what_is_open_alone(tmp_path):
    report = Report(tmp_path, 1)
    for name, value in {"known": 2.0, "failed": "failed: OutOfMemoryError: CUDA", "late": OPEN}.items():
        report.add("part", name, value)
    again = Report(tmp_path, 1)
    assert [again.is_open("part", name) for name in ("known", "failed", "late", "new")] == [False, False, True, True]
    assert [again.of("part", name) for name in ("known", "failed", "late", "new")] == [2.0, None, None, None]
