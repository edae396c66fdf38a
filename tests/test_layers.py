"""Arrows point one way: relvit <- sweeps, relvit.cell <- analysis. Checked on what a fresh interpreter loads."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
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


# The rooms, the lowest first; those of one line do not know each other. The last line holds the entries.
ROOMS = {
    "analysis": (("runs", "stats"), ("output",), ("paper",), ("report",), ("make_tables",)),
    "sweeps": (
        ("account",),
        ("cluster", "tracking"),
        ("planning",),
        ("cli",),
        ("driver",),
        ("search",),
        ("ablation", "hpo", "pictures", "reconcile", "serve_mlflow", "submit"),
    ),
}


def imported_by(module: str, package: str = "analysis", anywhere: bool = True) -> set[str]:
    """The modules of the package that a module of it imports, anywhere in its text or at its head: "paper.numbers"."""
    found = set()
    text = ast.parse((ROOT / package / f"{module.replace('.', '/')}.py").read_text())
    for node in ast.walk(text) if anywhere else text.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package):
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                is_module = (ROOT / f"{whole.replace('.', '/')}.py").exists()
                found.add((whole if is_module else node.module).removeprefix(f"{package}."))
    return found


@pytest.mark.parametrize(
    ("package", "known"),
    [("analysis", ("paper.table4", "paper.numbers")), ("sweeps", ("hpo", "search.session"))],
)
def test_no_room_imports_one_above_it_and_no_modules_import_each_other(package, known):
    level = {room: number for number, rooms in enumerate(ROOMS[package]) for room in rooms}
    files = [path.relative_to(ROOT / package) for path in (ROOT / package).rglob("*.py")]
    modules = [".".join(path.with_suffix("").parts) for path in files if path.name != "__init__.py"]
    assert {module.partition(".")[0] for module in modules} == set(level)
    graph = {module: imported_by(module, package) for module in modules}
    assert known[1] in graph[known[0]]
    for module, others in graph.items():
        room = module.partition(".")[0]
        above = [other for other in others if level[other.partition(".")[0]] >= level[room]]
        assert {other.partition(".")[0] for other in above} <= {room}, module
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_modules_of_relvit_import_each_other():
    # In a function `relvit.specs` asks `relvit.timm_models` for the sizes of timm's models, which are a spec of it.
    modules = [path.stem for path in (ROOT / "relvit").glob("*.py")]
    graph = {module: imported_by(module, "relvit", anywhere=False) for module in modules}
    assert {"messages", "specs", "tasks"} <= graph["cell"]
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_a_table_of_the_paper_does_not_know_the_list_that_it_is_on():
    from analysis.paper.registry import TABLES

    below = set()
    waiting = [f"paper.{name}" for name in TABLES]
    while waiting:
        module = waiting.pop()
        waiting += imported_by(module) - below
        below |= imported_by(module)
    assert not below & {"paper.registry", "paper.appendix", "paper.figures", "paper.verdicts"}


def test_a_driver_holds_no_torch():
    """Which would be half of its memory; trials load it in processes of their own."""
    modules = "sweeps.driver.driver, sweeps.driver.session, sweeps.tracking.reconciliation, sweeps.cluster.nodes"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
