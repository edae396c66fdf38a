"""Arrows point one way: relvit <- sweeps, relvit.cell <- analysis. Checked on what a fresh interpreter loads."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def loaded_by(statement: str) -> set[str]:
    """The top-level names that a new interpreter has in sys.modules after a statement."""
    script = f"{statement}\nimport sys\nprint(' '.join(name for name in sys.modules if '.' not in name))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_relvit_loads_neither_ray_nor_mlflow():
    modules = sorted(path.stem for path in (ROOT / "relvit").glob("*.py") if path.stem != "__init__")
    loaded = loaded_by("import " + ", ".join(f"relvit.{module}" for module in modules))
    assert "torch" in loaded
    assert loaded.isdisjoint({"ray", "mlflow", "sweeps", "analysis"})


def test_analysis_loads_neither_torch_nor_ray():
    loaded = loaded_by("import analysis.make_tables")
    assert "mlflow" in loaded
    assert loaded.isdisjoint({"torch", "ray", "sweeps"})


def test_a_cell_needs_the_standard_library_alone():
    assert loaded_by("import relvit.cell").isdisjoint({"torch", "numpy", "pandas", "timm"})


def test_planning_needs_neither_torch_nor_ray_nor_mlflow():
    assert loaded_by("import sweeps.planning.plan, sweeps.account.account").isdisjoint({"torch", "ray", "mlflow"})


@pytest.mark.parametrize(
    "entry", ["sweeps/ablation.py", "sweeps/submit.py", "sweeps/serve_mlflow.py", "analysis/make_tables.py"]
)
def test_entries_run_from_any_folder_without_an_installation(entry, tmp_path):
    # -I and -S would also hide the dependencies; a folder elsewhere is what an uninstalled checkout meets.
    result = subprocess.run([sys.executable, str(ROOT / entry), "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout.startswith("usage:")
