"""Checks before the first trial: what every node of the cluster sees and has.

Each node of the cluster writes a file under the storage path and reads those of the others, so that storage which is
not shared is found now and not at the first checkpoint; it tells what room it has, which versions it runs, whether it
sees the data, and whether torch can use its GPUs. On one machine this is done in the driver and takes milliseconds.
Nodes that an autoscaler adds later are examined by the first trial that they are given.
"""

import errno
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from relvit.data import DATASETS
from relvit.files import Location, location, write_atomic
from relvit.messages import first_line
from sweeps.account import leases
from sweeps.account.account import remedy
from sweeps.account.code_version import ROOT, source_digest
from sweeps.account.failures import NodeError

# What a sweep of the smallest models leaves; a caller who knows more asks for more.
MINIMUM_FREE_BYTES = 50_000_000

# For a node to answer: a worker process has to start and to import its modules, on a node that may be busy, from a file
# system that may be cold. Seen to take more than 60 s on a machine with four times as much work as cores.
_NODE_SECONDS = 180
VISIBLE_SECONDS = 10  # a network file system may show another's file with a delay
# A trial on a node that is not as it should be waits so long before it says so: for what a network file system shows
# late, and because a node on which trials failed at once would be given all that are left.
LATE_SECONDS = 60

_PROJECT = "the project"


@dataclass(frozen=True)
class Report:
    """What a node tells of itself. free_bytes: under the storage path, None in an object store."""

    versions: dict[str, str]
    free_bytes: int | None = None
    problems: list[str] = field(default_factory=list)


def node_problems(
    storage: Location | str,
    data_root: Path,
    datasets: Iterable[str] = (),
    needed_bytes: int = MINIMUM_FREE_BYTES,
    gpus: float = 0,
    precisions: Iterable[str] = (),
) -> list[str]:
    """What is wrong with the connected cluster's nodes, each thing once with the nodes that it is true of. gpus: a
    trial's; where it gets any, torch must be able to use those of every node that has some, in each of `precisions`."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = _names(alive)
    with_gpu = {node["NodeID"] for node in alive if gpus and node["Resources"].get("GPU")}
    here = ray.get_runtime_context().get_node_id()
    proof = f".preflight-{uuid.uuid4().hex[:8]}"
    own = versions()
    wanted = (str(storage), str(data_root.absolute()), tuple(_own_folders(datasets, data_root)), proof)
    in_what = tuple(sorted({"fp32", *precisions}))
    asked = {node: (*wanted, name, in_what if node in with_gpu else ()) for node, name in nodes.items()}
    try:
        if set(nodes) == {here}:
            reports: dict[str, Report | str] = {nodes[here]: examine(*asked[here])}
            unseen: dict[str, list[str] | str] = {}
        else:
            reports = _on_nodes(examine, asked, nodes)
            wrote = [name for name, report in reports.items() if isinstance(report, Report) and not report.problems]
            unseen = _on_nodes(
                not_visible,
                {node: (str(storage), proof, wrote) for node, name in nodes.items() if name in wrote},
                nodes,
            )
    finally:
        _remove(str(storage), proof)
    return judge(reports, unseen, own, str(storage), needed_bytes)


def _own_folders(datasets: Iterable[str], data_root: Path) -> list[str]:
    """Of these data sets, those that nobody can download: folders of the user's own."""
    return [name for name in dict.fromkeys(datasets) if name not in DATASETS and (data_root / name).is_dir()]


def _names(nodes: list[Mapping[str, Any]]) -> dict[str, str]:
    """For each node's id its address, with a part of the id where several have one address."""
    addresses = [node["NodeManagerAddress"] for node in nodes]
    return {
        node["NodeID"]: address if addresses.count(address) == 1 else f"{address} ({node['NodeID'][:8]})"
        for node, address in zip(nodes, addresses)
    }


def _on_nodes(function: Any, arguments: Mapping[str, tuple], names: Mapping[str, str]) -> dict[str, Any]:
    """Call the function on each node by its id. Returns by name what it returned, or in words why it did not; nothing
    of nodes that have left the cluster meanwhile, as spot nodes do: they are not what the sweep will run on."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, max_retries=0)(function)
    calls = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(*each): names[node]
        for node, each in arguments.items()
    }
    done, late = ray.wait(list(calls), num_returns=len(calls), timeout=_NODE_SECONDS) if calls else ([], [])
    answers: dict[str, Any] = {}
    for call in done:
        try:
            answers[calls[call]] = ray.get(call)
        except RayError as error:
            answers[calls[call]] = _last_line(error)
    for call in late:
        ray.cancel(call, force=True)
        answers[calls[call]] = f"gave no answer within {_NODE_SECONDS} s"
    there = {names[node["NodeID"]] for node in ray.nodes() if node["Alive"] and node["NodeID"] in names}
    return {name: answer for name, answer in answers.items() if name in there}


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"could not be examined: {lines[-1] if lines else type(error).__name__}"


def versions() -> dict[str, str]:
    """What must agree between the driver and the nodes, of the machine that asks."""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "torch": _version("torch"),
        "timm": _version("timm"),
        _PROJECT: source_digest(),
    }


def _version(package: str) -> str:
    try:
        return version(package).partition("+")[0]  # a head without GPU may have another build of the same version
    except PackageNotFoundError:
        return "not installed"


def examine(
    storage: str, data_root: str, folders: Iterable[str], proof: str, node: str, precisions: tuple[str, ...] = ()
) -> Report:
    """On a node: write its proof, and tell what it has. folders: names under the data root that must be there;
    precisions: in which trials are to train on its GPUs, empty if they are not."""
    wrong = []
    free = None
    try:
        place = location(storage)
        write_atomic(place / proof / node, node.encode())
        if isinstance(place, Path):
            free = shutil.disk_usage(place).free
    except (OSError, ValueError) as error:
        wrong.append(f"cannot write to the storage path {storage} ({error}): {remedy(error)}")
    wrong += _data_problems(Path(data_root), folders)
    if precisions:
        # In a process of its own that sees every GPU: Ray hides them from a task that asks for none, and what has once
        # used CUDA keeps memory on the GPU.
        script = f"from sweeps.cluster.nodes import gpu_problem; print(gpu_problem({precisions}))"
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
        command = [sys.executable, "-c", script]
        asked = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
        said = (asked.stdout if asked.returncode == 0 else asked.stderr).strip().splitlines()
        wrong += said[-1:]
    return Report(versions(), free, wrong)


def gpu_problem(precisions: Iterable[str]) -> str:
    """Why torch cannot use the GPUs that this process is given, in each of these precisions; empty if it can."""
    import torch

    from relvit.step import too_old_for

    try:
        torch.zeros(1, device="cuda")
    except torch.OutOfMemoryError:  # another's process fills it now
        return ""
    except (RuntimeError, AssertionError) as error:
        return (
            f"has a GPU that torch {torch.__version__} cannot use ({first_line(error)}): install a "
            "newer NVIDIA driver or the torch wheel for this one (https://pytorch.org/get-started/locally), or train "
            "on CPUs with --gpus 0"
        )
    found = (too_old_for(precision, gpu) for precision in precisions for gpu in range(torch.cuda.device_count()))
    return next(filter(None, found), "")


def _data_problems(data_root: Path, folders: Iterable[str]) -> list[str]:
    absent = [name for name in folders if not (data_root / name).is_dir()]
    if absent:
        return [
            f"does not see {', '.join(str(data_root / name) for name in absent)}, which cannot be downloaded: copy it "
            "to every node, or name shared storage with --data-root"
        ]
    try:
        data_root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return [f"neither sees nor can make the data folder {data_root} ({error}): name another with --data-root"]
    return []


def not_visible(storage: str, proof: str, nodes: Iterable[str]) -> list[str]:
    """On a node: of the nodes that have written their proof, those whose file it does not see, after some patience."""
    place = location(storage) / proof
    deadline = time.monotonic() + VISIBLE_SECONDS
    left = list(nodes)
    while left:
        left = [name for name in left if not (place / name).exists()]
        if time.monotonic() > deadline:
            break
        if left:
            time.sleep(0.5)
    return left


def _remove(storage: str, proof: str) -> None:
    # Nodes that do not share the storage keep their small file: nobody here sees it.
    with suppress(OSError, ValueError):
        place = location(storage) / proof
        if isinstance(place, Path):
            shutil.rmtree(place, ignore_errors=True)
        else:
            for file in place.iterdir():
                file.unlink(missing_ok=True)


# A node that joined later


@cache
def this_driver() -> dict[str, Any]:
    """What a trial has to know of its driver in order to examine its own node: plain values."""
    return {"process": leases.this_process(), "versions": versions()}


examined: set[tuple[str, str]] = set()  # drivers, with precisions, for which this process has examined its node


def verify_node(storage: str, driver: Mapping[str, Any], node: str, precision: str = "") -> None:
    """In a trial's process, before it trains: whether the node sees the driver's lease under the storage path, has room
    there, the driver's versions, and a GPU that torch can use in this precision, empty if the trial was given none.
    Looks once for each driver and precision; driver: what `this_driver` said there.

    Raises NodeError, or OSError for want of room, which is waited for.
    """
    if (driver["process"], precision) in examined:
        return
    deadline = time.monotonic() + LATE_SECONDS
    while True:
        report, unseen = _look(storage, driver["process"])
        report.problems.extend(filter(None, [gpu_problem([precision])] if precision else []))
        wrong = judge({node: report}, {node: unseen}, driver["versions"], storage, needed_bytes=0)
        short = judge({node: report}, {}, driver["versions"], storage, MINIMUM_FREE_BYTES)
        if not wrong and not short:
            examined.add((driver["process"], precision))
            return
        if time.monotonic() > deadline:
            raise NodeError("; ".join(wrong)) if wrong else OSError(errno.ENOSPC, "; ".join(short))
        time.sleep(1)


def _look(storage: str, process: str) -> tuple[Report, list[str]]:
    """What this node has, and whom it does not see: the driver, whose lease is there from before its first trial on."""
    place = location(storage)
    try:
        sees = any(lease.process == process for lease in leases.read(place / "drivers"))
        free = shutil.disk_usage(place).free if sees and isinstance(place, Path) else None
    except OSError as error:
        return Report(versions(), None, [f"cannot read the storage path {storage} ({error}): mount it there"]), []
    return Report(versions(), free), [] if sees else ["the driver"]


def judge(
    reports: Mapping[str, Report | str],
    unseen: Mapping[str, list[str] | str],
    own: Mapping[str, str],
    storage: str,
    needed_bytes: int,
) -> list[str]:
    """Sentences from what the nodes told, by their names; own: the driver's versions.

    Where an answer is a text it says why there is none.
    """
    found: dict[str, list[str]] = {}  # a predicate, and the nodes that it is true of

    def add(predicate: str, node: str) -> None:
        found.setdefault(predicate, []).append(node)

    for node, report in reports.items():
        if isinstance(report, str):
            add(report, node)
            continue
        for predicate in report.problems:
            add(predicate, node)
        for what, theirs in report.versions.items():
            if theirs != own[what]:
                add(_disagreement(what, theirs, own[what]), node)
        if report.free_bytes is not None and report.free_bytes < needed_bytes:
            add(
                f"has {_size(report.free_bytes)} free under the storage path {storage}, and the sweep needs about "
                f"{_size(needed_bytes)}: make room, or choose another with --storage",
                node,
            )
    for node, others in unseen.items():
        if isinstance(others, str):
            add(others, node)
        elif others:
            add(
                f"does not see what {_and(others)} wrote under the storage path {storage}: it is not shared; name a "
                "network file system that every node mounts there, or s3://BUCKET/FOLDER, with --storage",
                node,
            )
    return [f"{'node' if len(nodes) == 1 else 'nodes'} {_and(nodes)}: {what}" for what, nodes in found.items()]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _disagreement(what: str, theirs: str, own: str) -> str:
    if what == _PROJECT:
        return (
            f"imports another version of the project (sources {theirs}) than the driver (sources {own}): submit the "
            "checkout as a job with sweeps/submit.py, which brings it to every node"
        )
    return f"has {what} {theirs} and the driver {own}: install the same version on every node"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
