"""docs/extending.md: each diff applies to the code as it is, and what its section promises works in the result."""

import gzip
import json
import re
import runpy
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from relvit.task_files import row_problems

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "extending.md").read_text()
SECTIONS = dict(re.findall(r"^## (A .+?)\n(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL))


def block(section: str, language: str) -> str:
    """The one fenced block of that language in a section."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    return found


def extended(section: str, folder: Path) -> Path:
    """A copy of the code with the section's diff applied."""
    copy = folder / "checkout"
    for package in ("relvit", "sweeps", "analysis", "tests/helpers"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = ["git", "apply", "--unidiff-zero", "-"]
    environment = {"GIT_CEILING_DIRECTORIES": str(folder), "PATH": "/usr/bin:/bin"}
    applied = subprocess.run(
        command, cwd=copy, input=block(section, "diff"), text=True, capture_output=True, env=environment
    )
    assert applied.returncode == 0, applied.stderr
    return copy


def result_of(script: str, copy: Path):
    """What a script that runs in the copy prints as JSON in its last line."""
    header = f"import json, sys\nsys.path[:0] = [{str(copy)!r}, {str(copy / 'tests')!r}]\n"
    done = subprocess.run([sys.executable, "-c", header + script], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


PLAN = """
from pathlib import Path
from sweeps.planning.plan import Request, plan_cells
few = ("pretrain_epochs=1", "epochs=1", "warmup_epochs=0", "train_images=64")
def cells(study="table4", **options):
    return plan_cells(Request(study=study, recipe="demo", data_root=Path("data"), settings=few, **options))
"""


def test_every_section_is_tried():
    assert list(SECTIONS) == ["A task", "A backbone", "A data set", "A study", "A table"]


def test_the_task_is_planned_and_trained_and_table_4_keeps_its_16_cells(tmp_path):
    copy = extended("A task", tmp_path)
    cell = {"dataset": "cifar10", "backbone": "vit_s4", "protocol": "pretrain_finetune", "tasks": "sprel+steps"}
    (copy / "mine.py").write_text(f"cells = [{cell}]")
    rows, table4 = result_of(
        PLAN + "from relvit.data import prepare\nfrom relvit.train import train\n"
        "(cell,) = cells('mine.py')\n"
        "rows = list(train(cell, prepare('digits', Path('data'), 16), Path('cell')))\n"
        "print(json.dumps([rows, len(cells())]))",
        copy,
    )
    assert [row["phase"] for row in rows] == ["pretrain", "finetune", "test"]
    assert rows[0]["pretrain_train_steps_loss"] > 0
    assert rows[-1]["test_steps_mse_x100"] > 0
    assert table4 == 16


def test_the_task_s_target_is_what_the_section_says(tmp_path):
    copy = extended("A task", tmp_path)
    found = result_of("from relvit.targets import steps\nprint(json.dumps(steps(2, 2).tolist()))", copy)
    # 0, 1 or 2 steps in a grid of 2 x 2, scaled to [-1, 1].
    assert found == [[-1, 0, 0, 1], [0, -1, 1, 0], [0, 1, -1, 0], [1, 0, 0, -1]]


def test_the_task_in_a_file_of_its_own_is_right_as_it_stands():
    _, file = re.findall(r"^```python\n(.*?)^```", SECTIONS["A task"], re.MULTILINE | re.DOTALL)
    scope: dict = {}
    exec(file, scope)
    (task,) = scope["tasks"]
    assert row_problems(task) == []
    assert task.target(2, 2).tolist() == [[0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 1, 0, 0.5], [1, 0.5, 0.5, 0]]


def test_the_backbone_is_planned_and_has_the_size_of_its_line(tmp_path):
    copy = extended("A backbone", tmp_path)
    names, parameters = result_of(
        PLAN + "from relvit.backbones import build_backbone\n"
        "names = sorted({cell.backbone for cell in cells(backbone='vit_ti4')})\n"
        "size = sum(each.numel() for each in build_backbone('vit_ti4', 32).parameters())\n"
        "print(json.dumps([names, size]))",
        copy,
    )
    assert names == ["vit_ti4"]
    # Patches 3 * 16 * 192 + 192, class token 192, 65 positions, 12 blocks of 12 * 192^2 + 13 * 192, a last norm.
    assert parameters == 9408 + 192 + 65 * 192 + 12 * (12 * 192**2 + 13 * 192) + 2 * 192


def test_the_data_set_is_read_in_its_own_format(tmp_path):
    copy = extended("A data set", tmp_path)
    root, rng = copy / "data" / "fashion_mnist", np.random.default_rng(0)
    root.mkdir(parents=True)
    pixels = {}
    for prefix, count in (("train", 40), ("t10k", 10)):
        pixels[prefix] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">iiii", 2051, count, 28, 28)
        (root / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels[prefix].tobytes()))
        header = struct.pack(">ii", 2049, count)
        (root / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))
    images, labels, sizes = result_of(
        PLAN + "from relvit.data import prepare\nimport numpy as np\n"
        "data = prepare('fashion_mnist', Path('data'), 28)\n"
        "images, labels = data.test.read(np.arange(10))\n"
        "sizes = sorted({cell.image_size for cell in cells(dataset='fashion_mnist')})\n"
        "print(json.dumps([images[..., 0].tolist(), labels.tolist(), sizes]))",
        copy,
    )
    assert np.array_equal(images, pixels["t10k"])
    assert labels == list(range(10))
    assert sizes == [28]


def test_the_study_is_the_one_in_examples(tmp_path):
    (tmp_path / "heads.py").write_text(block("A study", "python"))
    cells = [runpy.run_path(str(path))["cells"] for path in (tmp_path / "heads.py", ROOT / "examples" / "heads.py")]
    assert cells[0] == cells[1]


@pytest.mark.parametrize("file", ["probe.tex", "probe-verdicts.md", "probe-curves.pdf", "probe-report.html"])
def test_the_table_touches_one_new_file_and_one_line_and_is_set(table_files, file):
    diff = block("A table", "diff")
    assert re.findall(r"^\+\+\+ b/(.*)$", diff, re.MULTILINE) == [
        "analysis/paper/probe.py",
        "analysis/paper/registry.py",
    ]
    assert re.findall(r"^\+ .*", diff.partition("registry.py\n")[2], re.MULTILINE) == ['+    "probe",']
    assert file in table_files


@pytest.fixture(scope="module")
def table_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    copy = extended("A table", folder)
    return result_of(
        "import io\nfrom pathlib import Path\nfrom rich.console import Console\n"
        "from helpers.made_runs import gathered, made_runs, planned\n"
        "from analysis.make_tables import make, parse_arguments\n"
        "few = ('pretrain_epochs=3', 'epochs=4', 'warmup_epochs=1', 'probe=sgd')\n"
        "runs, metrics = made_runs(planned(Path('data'), 'probe', (0, 1), settings=few), 'probe')\n"
        "out = Path('out')\nout.mkdir()\n"
        "options, console = parse_arguments(['--out', 'out', '--no-attach']), Console(file=io.StringIO())\n"
        "assert make(options, console, gathered(out, runs, metrics), ['latex', 'markdown', 'html']) == 0\n"
        "print(json.dumps(sorted(path.name for path in out.iterdir())))",
        copy,
    )
