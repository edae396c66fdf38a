"""What docs/studies/ publishes is what its runs give."""

from pathlib import Path

from analysis import make_tables

STUDY = Path(__file__).resolve().parents[1] / "docs/studies/gain"


def test_the_published_outputs_match_the_published_runs(capsys):
    arguments = ["--study", "gain", "--check", "--no-gather", "--out", str(STUDY)]
    assert make_tables.main(arguments) == 0
    assert "14 outputs match 20 runs" in capsys.readouterr().out


def test_the_readme_shows_the_published_table():
    rows = [line for line in (STUDY / "gain.md").read_text().splitlines() if line.startswith("|")]
    readme = (STUDY.parents[2] / "README.md").read_text()
    assert "\n".join(rows) in readme
