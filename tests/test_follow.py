"""`make_tables.py --follow`: a study's outputs are set again for as long as a run of it goes on."""

import pandas as pd
import pytest

from analysis import make_tables
from analysis.runs.gather import Gathered


@pytest.fixture
def followed(monkeypatch, tmp_path):
    """Gatherings one after the other, by the statuses of the runs of two studies; returns what was done in turn."""

    def start(*looks, arguments=("--follow", "2", "--study", "table4")):
        done, waiting = [], list(looks)

        def read(options):
            statuses = waiting.pop(0)
            rows = [
                {"run_id": f"{study}-{number}", "cell_id": f"{study}-{number}", "study": study, "status": status}
                for study, each in statuses.items()
                for number, status in enumerate(each)
            ]
            return Gathered(pd.DataFrame(rows), tmp_path, 0, [])

        monkeypatch.setattr(make_tables, "read_runs", read)
        monkeypatch.setattr(make_tables, "make", lambda *arguments: done.append("set") or 0)
        monkeypatch.setattr(make_tables.time, "sleep", done.append)
        return make_tables.main([*arguments, "--out", str(tmp_path)]), done

    return start


def test_it_is_set_again_until_no_run_of_the_study_goes_on(followed):
    runs = [{"table4": ["FINISHED", "RUNNING"]}, {"table4": ["FINISHED", "RUNNING"]}, {"table4": ["FINISHED"] * 2}]
    assert followed(*runs) == (0, ["set", 120.0, "set", 120.0, "set"])


def test_runs_of_other_studies_do_not_count(followed):
    assert followed({"table4": ["FINISHED"], "probe": ["RUNNING"]}) == (0, ["set"])


def test_without_it_everything_is_set_once(followed):
    assert followed({"table4": ["RUNNING"]}, arguments=("--study", "table4")) == (0, ["set"])


def test_it_takes_minutes_above_zero(capsys):
    with pytest.raises(SystemExit):
        make_tables.parse_arguments(["--follow", "0"])
    assert "--follow must be above 0, not 0" in capsys.readouterr().err
