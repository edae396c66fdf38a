"""What a job would upload, and what is refused before anything is sent. Real clusters: end_to_end/test_jobs.py."""

import importlib
import os
import shlex
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from relvit.secrets import holds_password, redacted
from sweeps import serve_mlflow, submit
from sweeps.account import code_version
from sweeps.account.code_version import COMMIT, DIRTY, code_line, git_state, source_digest
from sweeps.cluster import jobs
from sweeps.serve_mlflow import credentials, server_environment

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder with what is uploaded and what is not, by .gitignore, .rayignore and Ray's own defaults."""
    folder = tmp_path / "checkout"
    for name in (
        "sweeps/ablation.py",
        "results/cells/x/1.pt",
        "tests/test_it.py",
        ".git/objects/1",
        ".venv/bin/python",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
    (folder / ".gitignore").write_text("/results/\n")
    (folder / ".rayignore").write_text("/tests/\n")
    return folder


def test_what_is_counted_is_what_ray_zips(checkout, tmp_path):
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    upload = jobs.upload_of(checkout)
    assert upload.files == {".gitignore": 10, ".rayignore": 8, "sweeps/ablation.py": 1000}
    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(package) as zipped:
        assert {entry.filename: entry.file_size for entry in zipped.infolist()} == upload.files
    assert 0 <= upload.size - package.stat().st_size < 100 * len(upload.files)


def test_an_upload_that_is_too_large_names_the_largest_first(checkout):
    for name, size in (("old/run.bin", 70), ("old/more.bin", 20), ("movie.mp4", 30), ("notes/small", 1)):
        (checkout / name).parent.mkdir(exist_ok=True)
        with (checkout / name).open("wb") as file:
            file.truncate(size * 1024**2)  # a hole: nothing is written
    (problem,) = jobs.upload_problems(checkout)
    assert f"{checkout} would be an upload of 121.0 MiB, and Ray takes 100 MiB" in problem
    assert ".rayignore" in problem
    listed = [line.split() for line in problem.splitlines()[1:]]
    assert [(size, name) for size, _, name in listed[:3]] == [
        ("90.0", "old/"),
        ("30.0", "movie.mp4"),
        ("1.0", "notes/"),
    ]


def test_this_checkout_is_a_small_upload_without_tests_and_results():
    upload = jobs.upload_of(ROOT)
    assert "sweeps/ablation.py" in upload.files
    assert upload.size < 5 * 1024**2
    assert not any(name.startswith((".git/", ".venv", "tests/", "results/", "data/")) for name in upload.files)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    assert jobs.upload_problems(tmp_path / "nowhere") == [f"the working directory {tmp_path}/nowhere is not there"]


@pytest.mark.parametrize(
    "entrypoint", [["--tracking-uri", "http://me:hunter2@host:5000"], ["--tracking-uri=http://me:hunter2@host:5000"]]
)
def test_a_password_in_the_command_is_refused_and_not_repeated(entrypoint):
    (problem,) = jobs.secret_problems(["python", "sweeps/ablation.py", *entrypoint])
    assert "http://me:***@host:5000" in problem
    assert "hunter2" not in problem
    assert jobs.secret_problems(["python", "sweeps/ablation.py", "--tracking-uri", "http://host:5000"]) == []


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("MLFLOW_TRACKING_PASSWORD=hunter2", "MLFLOW_TRACKING_PASSWORD=***"),
        ("AWS_SECRET_ACCESS_KEY=hunter2", "AWS_SECRET_ACCESS_KEY=***"),
        ("--storage=s3://b/x?access_key=hunter2&region=eu", "s3://b/x?access_key=***&region=eu"),
        ("postgresql://host/db?user=me&password=hunter2", "postgresql://host/db?user=me&password=***"),
    ],
)
def test_a_secret_by_its_name_is_refused_and_not_repeated(word, shown):
    (problem,) = jobs.secret_problems(["env", word, "python", "sweeps/ablation.py"])
    assert shown in problem and "hunter2" not in problem
    assert jobs.secret_problems(["python", "sweeps/ablation.py", "--set", "epochs=5", "RAY_AUTH_MODE=token"]) == []


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("--storage=s3://bucket/x?access_key=AK&secret_key=hunter2", "s3://bucket/x?access_key=***&secret_key=***"),
        ("MLFLOW_TRACKING_PASSWORD=hunter2", "MLFLOW_TRACKING_PASSWORD=***"),
        ("RAY_AUTH_TOKEN=hunter2", "RAY_AUTH_TOKEN=***"),
        ("AWS_SECRET_ACCESS_KEY=hunter2", "AWS_SECRET_ACCESS_KEY=***"),
        ("RELVIT_WEBHOOK=https://hooks.example/hunter2", "RELVIT_WEBHOOK=***"),
        ("export CLIENT_SECRET=hunter2; python sweeps/ablation.py", "CLIENT_SECRET=***"),
        ("python sweeps/ablation.py --tracking-uri 'http://me:hunter2@host:5000'", "http://me:***@host:5000"),
    ],
)
def test_keys_and_variables_that_hold_secrets_are_refused_too(argument, shown):
    (problem,) = jobs.secret_problems(["bash", "-c", argument])
    assert problem.startswith(f"{shown} holds a password or a key")
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    "argument",
    ["RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN_PATH=/t", "RELVIT_WEBHOOK_FILE=/w", "PASSWORD=$MINE", "jitter_strength=0.2",
     "--storage=s3://bucket/x?region=e"],
)  # fmt: skip
def test_what_only_names_a_secret_or_its_file_is_no_secret(argument):
    assert jobs.secret_problems(["env", argument]) == []


@pytest.mark.parametrize("entry", ["ablation", "hpo", "reconcile", "pictures", "submit"])
def test_help_shows_no_password_of_the_environment(entry, monkeypatch, capsys):
    for name in ("MLFLOW_TRACKING_URI", "RAY_API_SERVER_ADDRESS", "OPTUNA_STORAGE", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "http://me:hunter2@host:5000")
    with pytest.raises(SystemExit):
        importlib.import_module(f"sweeps.{entry}").parse_arguments(["--help"])
    assert "hunter2" not in capsys.readouterr().out


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://127.0.0.1:10001", "auto", "http://", "http://h:x"])
def test_an_address_that_is_no_url_of_a_dashboard_is_said(address):
    (problem,) = jobs.address_problems(address)
    assert "--address takes the URL of Ray's dashboard" in problem


def test_an_address_where_nobody_answers_is_named_with_what_to_do():
    (problem,) = jobs.address_problems("http://127.0.0.1:9")
    assert "nothing answers at http://127.0.0.1:9" in problem
    assert "ray dashboard" in problem


def test_all_that_is_wrong_is_said_together_and_nothing_is_submitted(tmp_path):
    command = [
        sys.executable,
        ROOT / "sweeps/submit.py",
        "--address",
        "http://127.0.0.1:9",
        "--working-dir",
        tmp_path / "x",
    ]
    result = subprocess.run([*command, "--", "python", "http://a:b@c"], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("nothing was submitted:")
    assert result.stderr.count("\n  - ") == 3


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:hunter2@host:5000/x", "http://me:***@host:5000/x"),
        ("postgresql+psycopg2://me:hun%40ter2@db/mlflow", "postgresql+psycopg2://me:***@db/mlflow"),
        ("http://[me:hunter2@host", "http://***@host"),
        ("http://me@host", "http://me@host"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("results", "results"),
    ],
)
def test_a_uri_is_shown_without_its_password(uri, shown):
    assert redacted(uri) == shown
    assert holds_password(uri) == (uri != shown)


def test_a_job_knows_the_commit_that_its_submitter_told(monkeypatch, tmp_path):
    monkeypatch.delenv(COMMIT, raising=False)
    assert git_state(tmp_path) == {"git_commit": "unknown", "git_dirty": "unknown"}
    monkeypatch.setenv(COMMIT, "c0ffee")
    monkeypatch.setenv(DIRTY, "true")
    assert git_state(tmp_path) == {"git_commit": "c0ffee", "git_dirty": "true"}


def a_repository(folder):
    for command in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m one"):
        subprocess.run(["git", "-C", str(folder), *command.split()], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_the_commit_of_another_users_checkout_is_known(tmp_path, monkeypatch):
    monkeypatch.delenv(COMMIT, raising=False)
    a_repository(tmp_path)
    for path in (tmp_path, tmp_path / ".git"):
        os.chown(path, 65534, 65534)
    state = git_state(tmp_path)
    assert len(state["git_commit"]) == 40
    assert state["git_dirty"] == "false"


def test_what_runs_is_said_in_a_line_with_the_reason_where_no_commit_is_known(tmp_path, monkeypatch):
    monkeypatch.delenv(COMMIT, raising=False)
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    digest = source_digest()
    assert code_line() == (
        f"code: commit unknown (no git repository here; sweeps/submit.py hands the commit to a job); sources {digest}"
    )
    a_repository(tmp_path)
    (tmp_path / "new.py").touch()
    commit = git_state(tmp_path)["git_commit"]
    assert code_line() == f"code: commit {commit[:10]}, with uncommitted changes; sources {digest}"


def test_the_digest_changes_with_any_source_that_trains_and_with_nothing_else(tmp_path):
    for package in ("relvit", "sweeps", "analysis"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("1")
    before = source_digest(tmp_path)
    (tmp_path / "analysis/a.py").write_text("2")
    (tmp_path / "sweeps/a.pyc").write_text("2")
    assert source_digest(tmp_path) == before
    (tmp_path / "sweeps/a.py").write_text("2")
    changed = source_digest(tmp_path)
    (tmp_path / "sweeps/a.py").rename(tmp_path / "sweeps/b.py")
    assert len({before, changed, source_digest(tmp_path)}) == 3


# MLflow's server


@pytest.fixture
def no_credentials(monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


def test_a_password_is_made_once_and_its_owner_alone_may_read_it(no_credentials, tmp_path):
    path = tmp_path / ".mlflow/credentials"
    user, password = credentials(path)
    assert (user, len(password)) == ("admin", 32)
    assert path.stat().st_mode & 0o777 == 0o600
    assert credentials(path) == (user, password)
    assert credentials(tmp_path / "another")[1] != password


def test_mlflows_clients_read_the_file_that_was_made(no_credentials, tmp_path):
    made = credentials(tmp_path / ".mlflow/credentials")
    script = "from mlflow.utils.credentials import read_mlflow_creds as read; c = read(); print(c.username, c.password)"
    result = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert tuple(result.stdout.split()) == made


def test_a_file_without_a_password_is_named(no_credentials, tmp_path):
    (tmp_path / "credentials").write_text("[mlflow]\nmlflow_tracking_username = me\n")
    with pytest.raises(ValueError, match="lacks 'mlflow_tracking_password'"):
        credentials(tmp_path / "credentials")


def test_what_the_server_is_told_in_files_is_its_owners_alone(no_credentials, tmp_path):
    environment = server_environment(tmp_path, "admin", "hunter2hunter2")
    assert environment["MLFLOW_AUTH_ADMIN_PASSWORD"] == "hunter2hunter2"
    assert "auth_cache_ttl_seconds = 60" in (tmp_path / "basic_auth.ini").read_text()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert (
        server_environment(tmp_path, "admin", "x")["MLFLOW_FLASK_SERVER_SECRET_KEY"]
        == (environment["MLFLOW_FLASK_SERVER_SECRET_KEY"])
    )


def test_what_make_ui_starts_asks_for_the_password_and_shows_this_checkouts_runs(no_credentials, tmp_path):
    # Under `make test`, a make inside another would also say which folder it enters and leaves.
    make = ["make", "--no-print-directory", "--dry-run", "ui"]
    shown = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = shlex.split(shown.splitlines()[-1])
    assert command[:3] == ["MLFLOW_BACKEND_STORE_URI=sqlite:///mlflow.db", ".venv/bin/python", "sweeps/serve_mlflow.py"]
    # A stand-in for MLflow, beside Python, says what it was started with.
    stand_in = tmp_path / "bin/mlflow"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "$@"\nenv\n')
    stand_in.chmod(0o755)
    script = "import sys; sys.executable = sys.argv.pop(1); from sweeps import serve_mlflow; serve_mlflow.main()"
    result = subprocess.run(
        [sys.executable, "-c", script, stand_in.with_name("python"), "--folder", tmp_path / "mlflow/local"],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path), "MLFLOW_BACKEND_STORE_URI": "sqlite:///mlflow.db"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"password in {tmp_path}/.mlflow/credentials" in result.stdout
    assert "server --app-name basic-auth --host 127.0.0.1 --port 5000" in result.stdout
    assert "MLFLOW_BACKEND_STORE_URI=sqlite:///mlflow.db\n" in result.stdout


def test_the_server_does_not_listen_everywhere(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "KUBERNETES_SERVICE_HOST"}
    command = [sys.executable, ROOT / "sweeps/serve_mlflow.py", "--host", "0.0.0.0", "--folder", tmp_path / "mlflow"]
    result = subprocess.run(command, env={**environment, "HOME": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 2
    assert "--host 0.0.0.0 is every address of this machine" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_told_before_a_password_is_named(no_credentials, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        before = os.umask(0o022)
        try:
            monkeypatch.setattr("sys.argv", ["serve_mlflow.py", "--port", port])
            assert serve_mlflow.main() == 2
        finally:
            os.umask(before)
    said = capsys.readouterr()
    assert f"cannot listen at 127.0.0.1:{port}" in said.err
    assert "password" not in said.out + said.err
    assert not list(tmp_path.iterdir())


def test_the_servers_folder_is_shut_and_what_stays_open_is_said(tmp_path):
    folder, credentials_file = tmp_path / "mlflow", tmp_path / "credentials"
    folder.mkdir()
    credentials_file.touch()
    folder.chmod(0o755)
    credentials_file.chmod(0o644)
    said = serve_mlflow.shut(folder, credentials_file)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert said == f"note: open to others on this machine: {credentials_file}: chmod -R go-rwx {credentials_file}"
    credentials_file.chmod(0o600)
    assert serve_mlflow.shut(folder, credentials_file) == ""


class Cluster:
    """A cluster's client as jobs needs it: a job that runs, and a connection that breaks when its log is read."""

    def submit_job(self, **job):
        self.job = job
        return "job-1"

    async def tail_job_logs(self, job_id):
        yield "a line\n"
        raise ConnectionResetError("Cannot write to closing transport")


def test_a_tunnel_that_drops_is_not_the_end_of_the_job(monkeypatch, capsys):
    monkeypatch.setattr(jobs, "use_token", lambda: None)
    monkeypatch.setattr(jobs, "upload_problems", lambda folder: [])
    monkeypatch.setattr(jobs, "address_problems", lambda address: [])
    monkeypatch.setattr(jobs, "connect", lambda address: Cluster())
    monkeypatch.setattr(jobs, "version_notes", lambda client: iter(()))
    monkeypatch.setattr("sys.argv", ["submit.py", "--", "python", "sweeps/ablation.py"])
    assert submit.main() == 130
    said = capsys.readouterr().out
    assert "was lost (Cannot write to closing transport), the job was not" in said
    assert "`ray job logs --follow job-1` follows it" in said


@pytest.mark.parametrize("call", ["_do_request", "submit_job"])
def test_a_tunnel_that_drops_before_the_job_is_there_is_told_in_a_sentence(call, monkeypatch, capsys):
    def drop(*_, **__):
        raise requests.ConnectionError("Connection aborted.")

    cluster = SimpleNamespace(_do_request=lambda *_: SimpleNamespace(status_code=500), submit_job=lambda **_: "job-1")
    setattr(cluster, call, drop)
    monkeypatch.setattr(jobs, "use_token", lambda: None)
    monkeypatch.setattr(jobs, "upload_problems", lambda folder: [])
    monkeypatch.setattr(jobs, "address_problems", lambda address: [])
    monkeypatch.setattr(jobs, "connect", lambda address: cluster)
    monkeypatch.setattr("sys.argv", ["submit.py", "--", "python", "sweeps/ablation.py"])
    assert submit.main() == 2
    said = capsys.readouterr().err
    assert "the connection to the cluster was lost (Connection aborted.)" in said
    assert "`ray job list` says whether the job arrived" in said


def test_a_job_has_time_to_close_its_runs_when_it_is_stopped(tmp_path):
    cluster = Cluster()
    jobs.submit(cluster, tmp_path, ["python", "sweeps/ablation.py"], None)
    assert int(cluster.job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


@pytest.mark.parametrize("package", ["sweeps", "analysis"])
def test_mlflow_is_told_to_report_nothing_before_it_is_imported(package):
    script = (
        "import importlib.abc, os, sys\n"
        "class Watch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'mlflow':\n"
        "            sys.exit(os.environ.get('MLFLOW_DISABLE_TELEMETRY') != 'true')\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"import {package}, mlflow\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_DISABLE_TELEMETRY"}
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment).returncode == 0


@pytest.mark.parametrize("package", ["sweeps", "analysis"])
def test_loopback_is_not_reached_through_a_proxy(package):
    script = f"import {package}; from requests.utils import should_bypass_proxies as by; "
    script += (
        "print(by('http://127.0.0.1:5000/x', None), by('http://mlflow.example', None), by('http://host.corp', None))"
    )
    environment = {**os.environ, "http_proxy": "http://proxy:3128", "no_proxy": ".corp"}
    environment.pop("NO_PROXY", None)
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert said.stdout.split() == ["True", "False", "True"]
