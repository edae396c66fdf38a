"""What docs/studies/ publishes is what its runs give."""

from pathlib import Path

import pandas as pd
import pytest

from analysis import make_tables
from analysis.paper.published import published

STUDIES = Path(__file__).resolve().parents[1] / "docs/studies"


@pytest.mark.parametrize(("study", "said"), [("gain", "14 outputs match 20"), ("gain_tasks", "17 outputs match 80")])
def test_the_published_outputs_match_the_published_runs(study, said, capsys):
    assert make_tables.main(["--study", study, "--check", "--no-gather", "--out", str(STUDIES / study)]) == 0
    assert f"{said} runs" in capsys.readouterr().out


def rows_of(table: str) -> str:
    return "\n".join(line for line in (STUDIES / table).read_text().splitlines() if line.startswith("|"))


def test_the_readme_shows_the_published_table():
    assert rows_of("gain/gain.md") in (STUDIES.parents[1] / "README.md").read_text()


@pytest.mark.parametrize("part", ["", "-differences", "-effects"])
def test_the_page_of_the_study_shows_the_published_tables(part):
    page = (STUDIES / "gain.md").read_text()
    assert rows_of(f"gain_tasks/gain_tasks{part}.md") in page
    assert part == "-effects" or rows_of(f"gain/gain{part}.md") in page  # two cells have no effects of tasks


def test_cells_that_both_studies_have_came_out_the_same_to_the_digit():
    """Trained twice, at two commits in two checkouts."""
    first, second = (pd.read_parquet(STUDIES / study / "runs.parquet") for study in ("gain", "gain_tasks"))
    both = first.merge(second, on="cell_id", suffixes=("_first", "_second"))
    assert len(both) == 10
    assert (both["git_commit_first"] != both["git_commit_second"]).all()
    assert (both["run_id_first"] != both["run_id_second"]).all()
    for result in ("test_accuracy", "test_knn_accuracy", "test_sprel_accuracy", "test_abspos_accuracy"):
        pd.testing.assert_series_equal(both[f"{result}_first"], both[f"{result}_second"], check_names=False)


def test_the_order_of_the_15_agrees_with_the_papers_as_the_readme_says():
    means = pd.read_parquet(STUDIES / "gain_tasks/runs.parquet").groupby("tasks")["test_accuracy"].mean()
    theirs = published("table4").query("metric == 'accuracy' and tasks != 'none'").set_index("tasks")["value"]
    assert len(theirs) == 15
    assert (
        f"rank correlation {theirs.corr(means[theirs.index], method='spearman'):.2f}"
        in (STUDIES.parents[1] / "README.md").read_text()
    )
