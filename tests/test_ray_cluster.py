"""ray_cluster.yaml: valid by Ray, from zero GPUs, shut to whoever has no token, and without a secret."""

import copy
import os
import re
import shlex
import signal
import subprocess
import tomllib
from contextlib import suppress
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
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


def test_every_node_hands_out_its_aws_role_by_version_2_within_two_hops_and_encrypts_its_disk(config):
    for node in config["available_node_types"].values():
        options = node["node_config"]
        assert options["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 2}
        assert all(disk["Ebs"]["Encrypted"] for disk in options["BlockDeviceMappings"])


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


def test_nodes_get_the_locked_versions_and_not_the_project(config):
    (line,) = [line for line in commands(config) if "pip install" in line]
    assert line == "pip install --quiet --requirement /home/ray/relvit/requirements.lock"
    assert config["file_mounts"]["/home/ray/relvit/requirements.lock"] == "./requirements.lock"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not any(project["name"] in command for command in commands(config))


def test_every_job_finds_storage_data_and_mlflow_in_the_environment(config):
    options = config["docker"]["run_options"]
    given = dict(option.removeprefix("--env ").split("=", 1) for option in options if option.startswith("--env "))
    mounts = [option.rpartition(":")[2] for option in options if option.startswith("--volume ")]
    for name in ("RELVIT_STORAGE", "RELVIT_DATA_ROOT"):
        assert any(given[name].startswith(mount) for mount in mounts)
    (tracking,) = [line for line in commands(config) if "serve_mlflow.py" in line and "nohup" in line]
    port = re.search(r"--port (\d+)", tracking)[1]
    assert given["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{port}"
    assert int(given["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


def test_a_machine_image_is_named_and_a_worker_whose_gpu_torch_cannot_use_does_not_start(config, tmp_path):
    for node in config["available_node_types"].values():
        assert re.fullmatch(r"ami-[0-9a-f]{17}", node["node_config"]["ImageId"])
    (line,) = config["worker_setup_commands"]
    for status, said in ((0, ""), (1, "torch cannot use this node's GPU: name another ImageId in ray_cluster.yaml\n")):
        (tmp_path / "python").write_text(
            f"#!/bin/sh\ntest \"$2\" = 'import torch; torch.cuda.init()' && exit {status}\n"
        )
        (tmp_path / "python").chmod(0o755)
        path = f"{tmp_path}:{os.environ['PATH']}"
        ran = subprocess.run(["bash", "-c", line], env={"PATH": path}, capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (status, said)


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


def test_the_images_have_the_locked_version_of_ray(config):
    images = {config["docker"][name].partition(":")[2].partition("-")[0] for name in ("head_image", "worker_image")}
    assert images == {str(locked()["ray"])}
    dockerfile = (ROOT / "kubernetes/Dockerfile").read_text()
    assert f"FROM rayproject/ray:{locked()['ray']}-" in dockerfile
    assert "pip install --no-cache-dir --requirement /opt/relvit/requirements.lock" in dockerfile


# requirements.lock


def locked() -> dict[str, Version]:
    pins = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if line[0] != "#"]
    assert all(re.fullmatch(r"==[\w.!+]+", str(pin.specifier)) for pin in pins)
    return {canonicalize_name(pin.name): Version(str(pin.specifier)[2:]) for pin in pins}


def test_the_lock_satisfies_what_the_project_asks_for_with_a_server_and_postgresql():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [Requirement(text) for text in project["dependencies"] + extras["server"] + extras["postgres"]]
    assert len(asked) > 20
    pins = locked()
    assert [str(each) for each in asked if pins[canonicalize_name(each.name)] not in each.specifier] == []


def test_the_lock_is_the_whole_environment_and_agrees_with_itself():
    """What the locked packages ask for in turn, as far as they are installed here in these versions."""
    pins, examined = locked(), 0
    for name, version in pins.items():
        with suppress(PackageNotFoundError):
            if metadata.version(name) != str(version):
                continue
            examined += 1
            for each in map(Requirement, metadata.requires(name) or ()):
                if each.marker is None or each.marker.evaluate({"extra": ""}):
                    assert pins[canonicalize_name(each.name)] in each.specifier, f"{name} asks for {each}"
    assert examined > 20


def test_postgresql_has_its_driver():
    import sqlalchemy

    assert sqlalchemy.make_url("postgresql://somebody@127.0.0.1/sweeps").get_dialect().driver == "psycopg"
    assert "psycopg-binary" in locked()
