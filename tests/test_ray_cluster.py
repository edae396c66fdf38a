"""ray_cluster.yaml: valid by Ray, from zero GPUs, shut to whoever has no token, and without a secret."""

import copy
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.command_runner import _with_interactive
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "ray_cluster.yaml"


@pytest.fixture(scope="module")
def config() -> dict:
    return yaml.safe_load(FILE.read_text())


def commands(config: dict) -> list[str]:
    """Every command that runs on a node."""
    return [line for name, value in config.items() if name.endswith("_commands") for line in value]


def starts(config: dict) -> list[str]:
    return [line for line in commands(config) if "ray start" in line]


def as_ray_runs_it(command: str) -> str:
    """The text that a shell on the node is given."""
    return shlex.split(" ".join(_with_interactive(command)))[-1]


def test_ray_accepts_it(config):
    validate_config(prepare_config(copy.deepcopy(config)))


def test_ray_would_not_accept_just_anything(config):
    with pytest.raises(Exception, match="gpus"):
        validate_config(prepare_config({**copy.deepcopy(config), "gpus": 4}))


def test_gpu_workers_start_at_zero_may_be_spot_and_go_when_idle(config):
    gpu = config["available_node_types"]["gpu"]
    assert (gpu["min_workers"], gpu["resources"]["GPU"]) == (0, 1)
    assert 0 < gpu["max_workers"] <= config["max_workers"]
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert config["idle_timeout_minutes"] > 0


def test_the_head_runs_no_trials_and_tells_what_its_workers_have(config):
    types = config["available_node_types"]
    head, gpu = types[config["head_node_type"]]["resources"], types["gpu"]["resources"]
    assert (head["CPU"], head["GPU"]) == (0, 0)
    assert {kind: head[f"launchable_{kind}"] for kind in gpu} == gpu
    assert "InstanceMarketOptions" not in types["head"]["node_config"]


def test_every_node_starts_with_the_token_and_listens_on_no_public_address(config):
    assert len(starts(config)) == 2
    for line in starts(config):
        assert "RAY_AUTH_MODE=token" in line
        assert "RAY_AUTH_TOKEN_PATH=/home/ray/.ray/auth_token" in line
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    (head,) = [line for line in starts(config) if "--head" in line]
    assert "--dashboard-host=127.0.0.1" in head
    (tracking,) = [line for line in commands(config) if "serve_mlflow.py" in line and "nohup" in line]
    assert "--host 127.0.0.1" in tracking
    text = re.sub(r"#.*", "", FILE.read_text())
    assert "0.0.0.0" not in text
    assert "::" not in text
    assert config["provider"]["use_internal_ips"] is True


def test_every_command_is_one_that_a_shell_can_read_as_ray_gives_it(config):
    for command in commands(config):
        read = subprocess.run(["bash", "-n", "-c", as_ray_runs_it(command)], capture_output=True, text=True)
        assert (read.returncode, read.stderr) == (0, ""), command


def test_mlflow_starts_with_the_head_and_not_again_when_the_head_is_started_again(config, tmp_path):
    (line,) = [line for line in config["head_start_ray_commands"] if "serve_mlflow.py" in line]
    line = line.replace("/tmp/mlflow.log", f"{tmp_path}/mlflow.log")
    stubs, pids = tmp_path / "stubs", tmp_path / "pids"
    stubs.mkdir()
    # As serve_mlflow.py does: it becomes a process whose command line has "mlflow server".
    python = f'#!/bin/bash\necho $$ >> {pids}\nexec -a "python mlflow server" sleep 60\n'
    # Of the processes in this session, so that another server on this machine is not taken for the head's.
    pgrep = '#!/bin/bash\nexec /usr/bin/pgrep --session 0 "$@"\n'
    for name, text in (("python", python), ("pgrep", pgrep)):
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    (tmp_path / ".bashrc").write_text(f"PATH={stubs}:$PATH\n")
    start = shlex.join(["bash", "--login", "-c", "-i", as_ray_runs_it(line)])
    runs = f"grep --quiet 'mlflow[ ]server' /proc/$(tail -n 1 {pids})/cmdline"
    once_more = f"{start}; for i in {{1..100}}; do {runs} && break; sleep 0.05; done; {start}; sleep 0.5"
    try:
        subprocess.run(
            ["bash", "-c", once_more],
            env={**os.environ, "HOME": str(tmp_path)},
            start_new_session=True,
            capture_output=True,
            timeout=60,
        )
        started = pids.read_text().split() if pids.exists() else []
        assert len(started) == 1
    finally:
        for pid in pids.read_text().split() if pids.exists() else []:
            os.kill(int(pid), signal.SIGKILL)


def test_no_value_looks_like_a_secret(config):
    text = FILE.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|://[^/\s]+:[^/\s]+@", text)
    assert not re.search(r"(?i)(password|secret|token|key)\w*\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{16,}", text)
    assert not re.search(r"RAY_AUTH_TOKEN=|MLFLOW_TRACKING_PASSWORD|AWS_SECRET", text)


def test_what_is_mounted_is_there(config):
    local = [path for path in config["file_mounts"].values() if path.startswith("./")]
    assert len(local) == 2
    assert all((ROOT / path).is_file() for path in local)


def test_nodes_get_the_dependencies_and_not_the_project(config, tmp_path):
    (line,) = [line for line in config["setup_commands"] if "tomllib" in line]
    line = line.replace("/home/ray/relvit/pyproject.toml", str(ROOT / "pyproject.toml"))
    line = line.replace("/home/ray/relvit/requirements.txt", str(tmp_path / "requirements.txt"))
    line = line.replace("python ", f"{sys.executable} ", 1)
    subprocess.run(["bash", "-c", line], check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (tmp_path / "requirements.txt").read_text().split("\n")[:-1] == project["dependencies"]
    assert not any(project["name"] in command for command in commands(config))


def test_data_is_staged_once_for_each_node_and_kept_where_it_is_newer(config, tmp_path):
    (line,) = [line for line in config["setup_commands"] if "/shared/data" in line]
    shared, own = tmp_path / "shared", tmp_path / "own"
    own.mkdir()
    line = line.replace("/shared/data", str(shared)).replace(" /data/", f" {own}/")
    subprocess.run(["bash", "-c", line], check=True)  # nothing to stage is no failure
    (shared / "cifar10").mkdir(parents=True)
    (shared / "cifar10/batch").write_text("images")
    for _ in range(2):
        subprocess.run(["bash", "-c", line], check=True)
    assert (own / "cifar10/batch").read_text() == "images"


def test_the_versions_of_ray_agree(config):
    images = {config["docker"][name].partition(":")[2].partition("-")[0] for name in ("head_image", "worker_image")}
    pinned = re.findall(r"ray\[default,tune\]==([\d.]+)", " ".join(config["setup_commands"]))
    assert images == set(pinned)


def test_what_nodes_must_agree_in_is_pinned_at_what_the_project_takes(config):
    pinned = dict(re.findall(r"\b(torch|torchvision|timm)==([\d.]+)", " ".join(config["setup_commands"])))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    taken = {each.name: each.specifier for each in map(Requirement, project["dependencies"])}
    assert set(pinned) == {"torch", "torchvision", "timm"}
    assert all(version in taken[name] for name, version in pinned.items())
