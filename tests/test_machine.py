"""What of this machine a sweep takes, and what it leaves open to other users."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from ray._private.node import Node

from analysis import make_tables
from relvit import host
from sweeps.cluster import connection, machine

ROOT = Path(__file__).resolve().parents[1]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_job_that_may_use_one_cpu_of_a_larger_machine_has_one(monkeypatch):
    allowed = os.sched_getaffinity(0)
    monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
    assert machine.available_cpus() <= len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert machine.available_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_batch_systems_share_counts_too(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr("ray._private.utils.get_num_cpus", lambda **options: 64)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "3")
    assert machine.available_cpus() == 3


def test_the_folder_for_sockets_is_this_users_alone_and_the_same_again(tmp_path, monkeypatch):
    monkeypatch.setattr(host.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(host, "LONGEST_FOLDER", 1000)
    folder = host.private_folder()
    assert folder == tmp_path / f"relvit-{os.getuid()}"
    assert mode(folder) == 0o700
    folder.chmod(0o755)
    assert host.private_folder() == folder
    assert mode(folder) == 0o700


def test_a_link_that_somebody_put_in_its_place_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(host.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(host, "LONGEST_FOLDER", 1000)
    (tmp_path / "elsewhere").mkdir(mode=0o777)
    (tmp_path / f"relvit-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    folder = host.private_folder()
    assert folder.resolve() != (tmp_path / "elsewhere").resolve()
    assert mode(folder) == 0o700


def test_rays_sockets_fit_below_a_long_temporary_folder(monkeypatch):
    monkeypatch.setattr(host.tempfile, "gettempdir", lambda: "/tmp/" + "x" * 90)
    session = "ray/session_2026-11-27_01-24-11_123456_1234567/sockets/plasma_store"
    with socket.socket(socket.AF_UNIX) as end:
        path = host.private_folder() / session
        path.parent.mkdir(parents=True, exist_ok=True)
        end.bind(str(path))  # raises where the path is too long
        path.unlink()
        path.parent.rmdir()


def made_with_the_umask_of(tmp_path: Path, shared: list[Path]) -> int:
    """The mode of a file that a new process makes after `keep_private`."""
    script = (
        "import os, sys; from pathlib import Path; from sweeps.cluster.machine import keep_private; os.umask(0o002); "
        "keep_private(map(Path, sys.argv[2:])); Path(sys.argv[1]).touch()"
    )
    file = tmp_path / "made"
    subprocess.run([sys.executable, "-c", script, str(file), *map(str, shared)], cwd=ROOT, check=True)
    return mode(file)


def test_what_a_sweep_makes_is_its_owners_alone_unless_its_folder_was_made_for_a_group(tmp_path):
    alone, group = tmp_path / "alone", tmp_path / "group"
    alone.mkdir(mode=0o755)
    group.mkdir()
    group.chmod(0o2775)
    everyone = tmp_path / "everyone"
    everyone.mkdir()
    everyone.chmod(0o1777)
    assert made_with_the_umask_of(tmp_path, [alone, everyone, tmp_path / "not there"]) == 0o600
    (tmp_path / "made").unlink()
    assert made_with_the_umask_of(tmp_path, [alone, group]) == 0o664


def test_what_others_can_read_or_change_is_said_with_what_closes_it(tmp_path):
    tmp_path.chmod(0o755)
    token, closed, folder = tmp_path / "token", tmp_path / "closed", tmp_path / "session"
    token.write_text("secret")
    token.chmod(0o644)
    closed.write_text("secret")
    closed.chmod(0o600)
    folder.mkdir()
    folder.chmod(0o777)
    everything = [token, closed, folder, tmp_path / "absent"]
    # What lies behind a closed door is not open: pytest's own folders are.
    assert machine.open_to_others(everything) == []


def test_an_open_door_is_an_open_file(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "may_enter", lambda folder: True)
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o644)
    (tmp_path / "session").mkdir()
    (tmp_path / "session").chmod(0o777)
    assert machine.open_to_others([token, tmp_path / "session"]) == [
        f"{token} can be read by others: chmod go-rwx {token}",
        f"{tmp_path}/session can be changed by others: chmod go-rwx {tmp_path}/session",
    ]


@pytest.mark.parametrize("home", [None, "/nowhere"])
def test_a_user_without_a_home_gets_one_and_is_told(home, monkeypatch, tmp_path):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.setattr(host.pwd, "getpwuid", nobody)
    monkeypatch.setattr(host, "private_folder", lambda: tmp_path)
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    if home:
        monkeypatch.setenv("HOME", home)
    said = host.ensure_home()
    assert os.environ["HOME"] == str(tmp_path / "home")
    assert all(name in said for name in ("HOME", "XDG_CACHE_HOME", "RAY_AUTH_TOKEN_PATH", "MPLCONFIGDIR"))
    assert host.ensure_home() == ""  # now there is one


def test_a_ray_that_was_too_slow_to_start_is_no_matter_of_folders(monkeypatch):
    tries, ended = [], []

    class Late(Node):
        def __init__(self):
            tries.append(self)
            raise Exception("The current node timed out during startup. This could happen because the raylet failed")

        def kill_all_processes(self, check_alive, allow_graceful):
            ended.append(self)

    monkeypatch.setattr(connection.ray, "init", lambda **options: Late())
    with pytest.raises(connection.ClusterError) as refused, connection.connected("local"):
        pass
    assert len(tries) == 3
    assert ended == tries  # what each had started is not left beside the next
    assert "timed out during startup" in str(refused.value)
    assert str(refused.value).endswith("CPUs: run the same command again when less runs beside it")
    assert "RAY_TMPDIR" not in str(refused.value)


def test_a_ray_that_was_too_slow_once_is_used_when_it_starts(monkeypatch):
    answers = [Exception("The current node timed out during startup."), None]

    def init(**options):
        if error := answers.pop(0):
            raise error

    monkeypatch.setattr(connection.ray, "init", init)
    with connection.connected("local"):
        assert answers == []


def test_a_ray_that_cannot_start_is_one_sentence_with_the_variable_to_set(monkeypatch):
    def init(**options):
        raise OSError("validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes")

    monkeypatch.setattr(connection.ray, "init", init)
    with pytest.raises(connection.ClusterError, match="Ray cannot start on this machine: .*107 bytes; .*RAY_TMPDIR"):
        with connection.connected("local"):
            pass


def test_auto_without_a_running_ray_is_told_so(monkeypatch):
    def init(*arguments, **options):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(connection, "canonicalize_bootstrap_address", init)
    monkeypatch.setattr(connection.ray, "init", init)
    with pytest.raises(connection.ClusterError, match="^no Ray runs on this machine, .*ray start --head"):
        with connection.connected("auto"):
            pass


def test_auto_where_the_head_has_gone_is_told_at_once(monkeypatch):
    """Ray itself would look for it for a minute, and then end the process without a word to whoever called."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(connection.ClusterError, match=rf"^no Ray cluster answers at '[\d.]+:{port}'"):
        with connection.connected("auto"):
            pass


def test_tables_are_made_by_a_user_who_has_no_home_and_no_name(tmp_path):
    script = (
        "import pwd, runpy, sys\n"
        "def nobody(uid):\n    raise KeyError(uid)\n"
        "pwd.getpwuid = nobody\n"
        "sys.argv = ['analysis/make_tables.py', '--out', 'out']\n"
        f"runpy.run_path({str(ROOT / 'analysis/make_tables.py')!r}, run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "USER", "LOGNAME")}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 2
    note, *said = result.stderr.splitlines()
    assert note.startswith("note: the home / cannot be written, so ")
    assert said == [
        f"no tracking database at {tmp_path}/mlflow.db: run a sweep first, or name another with --tracking-uri"
    ]


@pytest.mark.parametrize(
    "uri",
    ["http://me:hunter2@127.0.0.1:1", "postgresql://me:hunter2@host/runs", "postgresql://host/runs?password=hunter2"],
)
def test_a_password_given_to_make_tables_is_refused_and_not_repeated(uri, capsys):
    with pytest.raises(SystemExit) as ended:
        make_tables.parse_arguments(["--tracking-uri", uri])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "holds a password" in said and "~/.pgpass" in said
    assert "hunter2" not in said
