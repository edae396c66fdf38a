"""The Ray cluster that a sweep runs on: connected to, or started on this machine, and asked what it has."""

import logging
import os
import socket
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# One torch process a trial must see the GPUs that Ray assigns, also when that is none: today's default, made explicit.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
# Tune's own loggers, progress and experiment snapshots are not used: the account and MLflow hold all that they hold.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# With a searcher Tune prepares one trial ahead; a node with many GPUs starts faster with more.
os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")

import grpc
import ray

# Ray has no public name for a question to its head alone, nor for the address that "auto" is, nor for what it starts;
# its own command line asks in this way.
from ray._private.grpc_utils import init_grpc_channel
from ray._private.node import Node
from ray._private.services import canonicalize_bootstrap_address
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest  # type: ignore[attr-defined]
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import AuthenticationError

from relvit.host import private_folder
from relvit.messages import first_line
from sweeps.cluster.machine import available_cpus

_CONNECT_SECONDS = 5
ANSWER_SECONDS = 15  # a head may be busy
_TOKEN_REMEDY = (
    "give the cluster's token in ~/.ray/auth_token, or in a file that RAY_AUTH_TOKEN_PATH names, with "
    "RAY_AUTH_MODE=token"
)
_TMPDIR_REMEDY = "name a folder of yours with a short path, on a local disk with room, in RAY_TMPDIR"
# How Ray says that its own processes did not answer in time.
_SLOW = ("overloaded", "timed out", "Timed out", "timeout")
_STARTS = 3  # tries of one that is too slow
_SLOW_REMEDY = "the load here is {:.0f} on {} CPUs: run the same command again when less runs beside it"


class ClusterError(ValueError):
    """What is wrong with the cluster or what was asked of it."""


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connected to the cluster at `address`, or to one started here for "local", which ends with the block.

    Raises ClusterError if there is none.
    """
    # Workers import this checkout, not another version that may be installed beside Ray.
    root, given = str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join([root, *(each for each in given.split(os.pathsep) if each not in ("", root))])
    _reach(address)
    if address == "local":
        # Ray's processes inherit it. A runtime environment would have them wait for its agent, and let the workers that
        # Ray has started ahead stand idle.
        os.environ["PYTHONPATH"] = path
        options: dict[str, Any] = {"include_dashboard": False, "num_cpus": available_cpus()}
        try:
            if "RAY_TMPDIR" not in os.environ:  # Ray's own folder lets every user of the machine change what it runs
                options["_temp_dir"] = str(private_folder() / "ray")
        except OSError as error:
            raise ClusterError(f"there is no folder for Ray's sockets ({error}): {_TMPDIR_REMEDY}") from error
    else:
        options = {"runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    _init(address, options)
    try:
        yield
    finally:
        ray.shutdown()


def _init(address: str, options: Mapping[str, Any]) -> None:
    """Raises ClusterError where there is no cluster, or none starts. Ray gives its own processes half a minute, which
    is too short beside much else; they are started again then."""
    for left in reversed(range(_STARTS)):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
            return
        except ConnectionError as error:  # also what a wrong token ends in: Ray does not tell the two apart
            if address == "auto":
                raise ClusterError(
                    "no Ray runs on this machine, as --address auto expects: start it with `ray start --head`, or "
                    f"leave --address out and one is started for the sweep; where one runs, {_TOKEN_REMEDY}"
                ) from error
            raise ClusterError(
                f"no Ray cluster accepts this driver at {address!r} ({error}): if there is one, {_TOKEN_REMEDY}"
            ) from error
        except Exception as error:  # Ray raises OSError and Exception itself where its processes do not start
            ray.shutdown()
            said = first_line(error)
            if address != "local":
                raise ClusterError(f"no Ray cluster at {address!r}: {said}") from error
            _end_what_started(error)
            slow = any(word in str(error) for word in _SLOW)
            if slow and left:
                continue
            remedy = _SLOW_REMEDY.format(os.getloadavg()[0], available_cpus()) if slow else _TMPDIR_REMEDY
            raise ClusterError(f"Ray cannot start on this machine: {said}; {remedy}") from error


def _end_what_started(error: BaseException) -> None:
    """End the processes of a start that failed: Ray leaves them until this program ends, and tells nobody of them but
    its own frames."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node):
            node.kill_all_processes(check_alive=False, allow_graceful=False)


def _reach(address: str) -> None:
    """Raise ClusterError if no Ray cluster lets this driver in at HOST:PORT: Ray would try for minutes, and then end
    the process."""
    if address.startswith("ray://"):
        raise ClusterError(
            f"{address!r} is for Ray's client, through which a sweep cannot see what the cluster's nodes have: submit "
            "the command as a job with sweeps/submit.py, or give the address that `ray start --head` printed"
        )
    if address == "auto":
        with suppress(ConnectionError):  # there is none, as `ray.init` will say
            address = canonicalize_bootstrap_address(address) or address
    host, colon, port = address.rpartition(":")
    if "/" in address or not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Ray cluster answers at {address!r} ({error}): give the address that `ray start --head` printed, or "
            "submit the command as a job with sweeps/submit.py"
        ) from error
    said = _answer(address)
    if said:
        raise ClusterError(
            f"what listens at {address!r} {said}: give the address that `ray start --head` printed, not the "
            "dashboard's, or submit the command as a job with sweeps/submit.py"
        )


def _answer(address: str) -> str:
    """What the address is, by the answer to the question whether a head lives there; empty if one does. Raises
    ClusterError where it does not know the token."""
    try:
        with init_grpc_channel(address) as channel:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=ANSWER_SECONDS)
        return ""
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"is not a Ray head, or one that is overloaded (no answer within {ANSWER_SECONDS} s)"
        if error.code() != grpc.StatusCode.UNAUTHENTICATED:
            return f"is not a Ray head ({error.code().name.lower().replace('_', ' ')})"
        raise ClusterError(f"the Ray cluster at {address!r} refuses this driver's token: {_TOKEN_REMEDY}") from error
    except AuthenticationError as error:
        raise ClusterError(f"there is no token for the Ray cluster at {address!r}: {_TOKEN_REMEDY}") from error


def gpus_per_trial(asked: float | None) -> float:
    """What was asked for, or else one GPU where the cluster has any, or can get any, and none where it cannot."""
    if asked is not None:
        return asked
    return 1.0 if any(node["GPU"] for node in _possible_nodes()) else 0.0


def resource_problems(cpus: float, gpus: float) -> list[str]:
    """Why no node of the cluster could ever run a trial with these resources; empty if one could."""
    nodes = _possible_nodes()
    if any(node["CPU"] >= cpus and node["GPU"] >= gpus for node in nodes):
        return []
    most = {kind: max(node[kind] for node in nodes) for kind in ("CPU", "GPU")}
    return [
        f"a trial asks for {gpus:g} GPUs and {cpus:g} CPUs, but no node of the cluster has both: the most are "
        f"{most['GPU']:g} GPUs and {most['CPU']:g} CPUs; ask for less with --gpus and --cpus"
    ]


def _possible_nodes() -> list[dict[str, float]]:
    """CPUs and GPUs of each node that is there, and of each kind of node that the autoscaler may add.

    Ray's own launcher and KubeRay do not report those kinds to the cluster: a head whose workers scale from zero tells
    the largest itself, in its resources launchable_CPU and launchable_GPU (ray_cluster.yaml).
    """
    there = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # Ray has no public name for this; its own Train and Data ask in the same way.
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config else ()
    added = [dict(group.resources) for group in groups if group.max_count]
    nodes = [{kind: node.get(kind, 0) for kind in ("CPU", "GPU")} for node in there + added]
    told = [{kind: node.get(f"launchable_{kind}", 0) for kind in ("CPU", "GPU")} for node in there]
    return nodes + [node for node in told if node["CPU"]]
