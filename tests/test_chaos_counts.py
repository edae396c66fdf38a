"""The campaign of benchmarks/chaos.py counts the faults that happened, and no others."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# In a process of its own, because the script sets Ray's token when it is imported.
STRIKES = """
import atexit, subprocess, sys, time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, "benchmarks")
from chaos import Campaign

def strike(kind, trials):
    campaign._draw = SimpleNamespace(choices=lambda kinds, weights: [kind], choice=lambda things: things[0],
                                     uniform=lambda least, most: least)
    campaign._nodes = SimpleNamespace(trials=lambda: trials, may_go=True)
    campaign._trains = lambda: True
    return campaign._strike()

def becomes(pid, state):
    for _ in range(600):
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == state:
            return True
        time.sleep(0.1)

campaign = Campaign.__new__(Campaign)
campaign._filler = Path(sys.argv[1])
campaign.faults, campaign.mounted, campaign._server = Counter(), False, SimpleNamespace(runs=True, database=None, pid=0)
campaign._options = SimpleNamespace(each=False, kinds=None, search=False)
campaign.storage, campaign._store, campaign._beside = Path(sys.argv[1]), None, []
campaign._later, campaign._in_the_way, campaign._trouble = [], None, 0.0
gone = subprocess.Popen(["true"])
gone.wait()
there = [subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
atexit.register(lambda: [process.kill() for process in there])
campaign._driver = gone

assert not strike("trial killed", [])
assert not strike("trial killed", [gone.pid])
assert not strike("trial suspended", [gone.pid])
assert not strike("driver killed", [])
assert not strike("driver stopped by Ray", [])
assert not strike("driver suspended and woken", [])
assert not strike("state damaged", [])
assert not strike("study damaged", [])
assert not strike("lease damaged", [])
assert not campaign._later
assert not strike("newest checkpoint cut short", [there[0].pid])  # no checkpoint yet
folder = campaign.storage / "cells/a"
folder.mkdir(parents=True)
(folder / "000001-0123456789abcdef.pt").write_bytes(bytes(100))
assert not strike("newest checkpoint cut short", [])  # nobody trains
assert not campaign.faults
assert strike("newest checkpoint cut short", [there[0].pid])
assert (folder / "000001-0123456789abcdef.pt").stat().st_size == 50
assert strike("trial suspended", [there[1].pid])
assert becomes(there[1].pid, "T")
campaign._do_what_is_due(all_of_it=True)
assert becomes(there[1].pid, "S")
assert strike("trial killed", [there[1].pid])
assert [process.wait() for process in there] == [-9, -9]
assert campaign.faults == {"newest checkpoint cut short": 1, "trial suspended": 1, "trial killed": 1}
"""


def test_a_fault_that_had_nothing_to_strike_is_not_counted(tmp_path):
    result = subprocess.run([sys.executable, "-c", STRIKES, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
