"""The campaign of benchmarks/chaos.py in small: thirteen kinds of faults once, and nothing is lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.end_to_end

ROOT = Path(__file__).resolve().parents[2]


# Those of one storage and a server without a password. A store goes away in test_object_store.py.
KINDS = (
    "trial killed,trial suspended,newest checkpoint cut short,driver killed,driver stopped by Ray,second driver,"
    "driver suspended and woken,state damaged,node taken away,clock jumps,MLflow stopped,MLflow suspended,storage full"
)


def test_a_sweep_survives_every_kind_of_fault(tmp_path):
    count = len(KINDS.split(","))
    result = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks/chaos.py"), "--each", "--faults", str(count), "--interval", "0.4"),
            *("--kinds", KINDS, "--outage", "5", "--tasks", "none,sprel", "--summary", str(tmp_path)),
            *("--set", "train_images=300", "--set", "pretrain_epochs=24", "--set", "epochs=24"),
        ],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    told = json.loads((tmp_path / "ablation-0.json").read_text())
    can_mount = "storage full" in told["faults"]
    assert told["problems"] == []
    assert len(told["faults"]) == (count if can_mount else count - 1)
    assert told["compared"]["final weights"] == 2
