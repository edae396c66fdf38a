"""benchmarks/gpu.py on a CPU: every part of it runs, and what it has measured is on the disk at any time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ABSENT = ("ray", "mlflow", "rich", "optuna", "sklearn", "matplotlib")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """In a process where what the benchmark must do without cannot be imported."""
    script = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT}))  # importing one of them fails, and looking for it finds nothing
sys.argv[0] = {str(ROOT / "benchmarks/gpu.py")!r}
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    command = [sys.executable, "-c", script, "--device", "cpu", "--out", str(folder / "out"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


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
        assert figures["c. the paper"][row]["phase"] == "test"
    markdown = (tmp_path / "out/gpu.md").read_text()
    assert all(f"## {part}" in markdown for part in figures)


def test_without_a_gpu_it_says_how_to_try_it(tmp_path):
    result = run(tmp_path)
    assert result.returncode == 2
    assert "there is no GPU that torch can use: --smoke tries this command on a CPU" in result.stderr
    assert not (tmp_path / "out").exists()
