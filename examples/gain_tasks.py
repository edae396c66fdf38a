"""Which of the four tasks help, in the regime of examples/gain.py: all 16 combinations of Table 4.

    python sweeps/ablation.py --study examples/gain_tasks.py --recipe cpu --data-root data --seeds 0,1,2,3,4

Two of the 16 are examples/gain.py's own cells, which are not trained again. docs/studies/gain.md has the rest.
"""

import runpy
from pathlib import Path

from relvit.cell import NONE, task_combinations

supervised, relvit = runpy.run_path(str(Path(__file__).with_name("gain.py")))["cells"]

cells = [supervised if tasks == NONE else relvit | {"tasks": tasks} for tasks in task_combinations()]
