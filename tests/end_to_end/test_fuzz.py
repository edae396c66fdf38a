"""benchmarks/fuzz.py in small, and its judge: two malformed inputs of each kind, each told as it should be."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fuzz import Case, judge

ROOT = Path(__file__).resolve().parents[2]


def test_the_judge_sees_what_it_looks_for():
    case = Case("", None, [], ("state.json",))
    said = "nothing was started:\n  - results/state.json is not JSON"
    assert judge(case, 2, said, {"a": "1"}, {"a": "1", "new": "2"}) == []
    assert judge(case, 0, "", {}, {}) == []
    assert judge(case, None, said, {}, {}) == ["no end within 60 s"]
    assert judge(case, 2, "a file is damaged", {}, {}) == ["does not name state.json"]
    assert judge(case, 2, "", {}, {}) == ["not a word"]
    assert judge(case, 2, said, {"a": "1", "b": "2"}, {"a": "3"}) == ["changed a, b"]
    crash = "state.json\nTraceback (most recent call last):"
    assert judge(case, 70, crash, {}, {}) == ["a traceback", "exit status 70"]


@pytest.mark.end_to_end
def test_malformed_inputs_are_told_in_a_sentence_and_cost_nothing():
    command = [sys.executable, "benchmarks/fuzz.py", "--cases", "20"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "20 of 20 were told as they should be" in result.stdout
