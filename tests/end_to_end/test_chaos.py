"""The campaign of benchmarks/chaos.py in small: every kind of fault once, and nothing is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).resolve().parents[2]


def test_a_sweep_survives_every_kind_of_fault(tmp_path):
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks/chaos.py"), "--each", "--faults", "11", "--interval", "2"),
            *("--outage", "5", "--tasks", "none,sprel", "--report", str(tmp_path / "report.md")),
            *("--set", "train_images=300", "--set", "pretrain_epochs=40", "--set", "epochs=40"),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = (tmp_path / "report.md").read_text()
    assert "equal bit by bit to those without faults" in report
    assert "| All | 11 |" in report
