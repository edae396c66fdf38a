"""What the commands share: Ctrl-C waits while Ray and MLflow are imported side by side, and ends in no traceback."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sweeps import ablation, hpo
from sweeps.ablation import parse_arguments
from sweeps.account.code_version import source_digest
from sweeps.cli.console import INTERRUPTED, begin, exit_status, interrupts_wait
from sweeps.cli.options import Places, lost_paths
from sweeps.driver.options import Checkpoints

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def ctrl_c_as_in_a_terminal():
    """A shell starts its background jobs with SIGINT ignored, and Python then raises no KeyboardInterrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_waits_for_the_end_of_the_block():
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupts_wait(Console(quiet=True)):
        press_ctrl_c()
        reached.append("the end")
    assert reached == ["the end"]


def test_ctrl_c_is_raised_where_the_block_stops_holding_it():
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupts_wait(Console(quiet=True)) as release:
        press_ctrl_c()
        reached.append("started")
        release()
        reached.append("trained")
    assert reached == ["started"]


def test_ctrl_c_after_that_is_raised_at_once():
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupts_wait(Console(quiet=True)) as release:
        release()
        press_ctrl_c()
        reached.append("trained on")
    assert reached == []


def test_the_handler_of_before_is_back_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with interrupts_wait(Console(quiet=True)):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_ends_the_process():
    script = """
import os, signal
from rich.console import Console
from sweeps.cli.console import interrupts_wait
with interrupts_wait(Console()):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    print("went on")
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (INTERRUPTED, "")
    assert "stopping as soon as Ray and MLflow have started" in result.stdout
    assert "went on" not in result.stdout


def test_a_command_that_ctrl_c_ends_says_so_and_has_its_own_exit_status(capsys):
    def command() -> int:
        raise KeyboardInterrupt

    assert exit_status(command) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted; nothing is lost: run the same command to continue\n"
    assert exit_status(lambda: 3) == 3


def test_a_command_goes_on_without_its_lines_when_nobody_can_read_them(tmp_path):
    script = """
import sys
from pathlib import Path
from sweeps.cli.console import new_console, say
console = new_console()
for number in range(3):
    say(console, "x" * 100_000)
    console.print("a line of rich's own")
Path(sys.argv[1]).write_text("went on")
"""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "end")],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "end").read_text() == "went on"


def test_the_start_says_which_code_it_is_and_what_is_open_to_others(tmp_path, monkeypatch, capsys):
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setattr("sweeps.cluster.machine.may_enter", lambda folder: True)
    monkeypatch.setattr("sweeps.cli.console.keep_private", lambda shared: None)  # the umask is this process's
    begin(
        Places(tmp_path / "results", tmp_path / "data", "http://127.0.0.1:5000", "relvit", "local"), Console(width=500)
    )
    code, *rest = capsys.readouterr().out.splitlines()
    assert code.startswith("code: commit ") and f"sources {source_digest()}" in code
    assert any(f"note: {token} can be read by others: chmod go-rwx {token}" in line for line in rest)


def test_a_cluster_that_is_set_up_says_where_everything_is(monkeypatch, tmp_path):
    monkeypatch.setenv("RELVIT_STORAGE", "/shared/results")
    monkeypatch.setenv("RELVIT_DATA_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    places = Places.of(parse_arguments([]))
    assert (str(places.storage), places.data_root, places.tracking_uri) == (
        "/shared/results",
        tmp_path,
        "http://127.0.0.1:5000",
    )
    monkeypatch.setattr(Path, "cwd", lambda: Path("/tmp/ray/session_1/runtime_resources/working_dir_files/x"))
    assert lost_paths(places) == []
    for name in ("RELVIT_STORAGE", "RELVIT_DATA_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name)
    said = lost_paths(Places.of(parse_arguments([])))
    assert [line.split()[0] for line in said] == ["--storage", "--data-root", "--tracking-uri"]
    assert "export RELVIT_STORAGE=/shared/results" in said[0]


def test_a_polite_end_is_an_interrupt_also_before_the_first_trial(capsys):
    assert exit_status(lambda: signal.raise_signal(signal.SIGTERM) or 0) == INTERRUPTED
    assert "interrupted; nothing is lost" in capsys.readouterr().err


@pytest.mark.parametrize(("entry", "arguments"), [(ablation, []), (hpo, ["--trials", "30"])])
def test_a_submitted_job_is_refused_paths_that_ray_removes_with_its_copy(
    entry, arguments, tmp_path, monkeypatch, capsys
):
    copy = tmp_path / "runtime_resources/working_dir_files"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    for name in ("RELVIT_STORAGE", "RELVIT_DATA_ROOT", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "OPTUNA_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.argv", ["entry.py", *arguments])
    assert entry.main() == 2
    said = capsys.readouterr().err
    for option in ("--storage", "--data-root", "--tracking-uri"):
        assert f"{option} is a relative path" in said
    assert not (copy / "results").exists()


def test_a_second_tasks_file_is_refused_where_it_would_hide_the_first(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--tasks-file", "one.py", "--tasks-file", "two.py"])
    assert ended.value.code == 2
    assert "--tasks-file is given twice" in capsys.readouterr().err
    assert parse_arguments(["--tasks-file", "one.py"]).tasks_file == Path("one.py")


@pytest.mark.parametrize("entry", [ablation, hpo])
@pytest.mark.parametrize(
    ("option", "shares"),
    [("--cpus", ("0", "-1", "0.00001", "nan", "inf")), ("--gpus", ("0.00001", "-1", "1.5", "nan", "inf"))],
)
def test_shares_that_no_trial_can_have_are_refused(entry, option, shares, capsys):
    for share in shares:
        with pytest.raises(SystemExit) as ended:
            entry.parse_arguments([option, share])
        assert ended.value.code == 2
        assert f"{option} must be" in capsys.readouterr().err


@pytest.mark.parametrize("entry", ["ablation", "hpo"])
def test_a_trial_on_several_gpus_is_refused_before_anything_starts(entry, capsys):
    """It would hold them all and train on one."""
    parse_arguments = importlib.import_module(f"sweeps.{entry}").parse_arguments
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--gpus", "2"])
    assert ended.value.code == 2
    assert "--gpus must be at most 1, not 2: a trial trains on one GPU or a share of one" in capsys.readouterr().err
    assert parse_arguments(["--gpus", "1"]).gpus == 1


def test_checkpoints_and_compiling_are_left_to_the_training_unless_they_are_given():
    from sweeps.ablation import parse_arguments, sweep_of

    sweep = sweep_of(parse_arguments([]))
    assert (sweep.checkpoints, sweep.compile) == (Checkpoints(None, None, 2), "auto")
    given = parse_arguments(["--checkpoint-every", "3", "--checkpoint-minutes", "5", "--compile", "never"])
    assert (sweep_of(given).checkpoints, sweep_of(given).compile) == (Checkpoints(3, 5.0, 2), "never")
