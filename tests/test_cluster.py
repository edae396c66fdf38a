"""What a trial may ask of a cluster, also of one whose GPU nodes are yet to be launched; and who is not let in."""

import socket
from concurrent import futures

import grpc
import pytest
from ray.core.generated import gcs_service_pb2 as gcs

from sweeps.ablation import parse_arguments, sweep_of
from sweeps.cluster import connection as cluster
from sweeps.driver.session import connected_problems
from sweeps.planning.plan import Request, plan_cells


@pytest.fixture
def nodes(monkeypatch):
    """Sets the resources of the cluster's nodes; the last of them is dead."""

    def set_nodes(*resources: dict[str, float]) -> None:
        listed = [{"Alive": True, "Resources": each} for each in resources]
        dead = {"Alive": False, "Resources": {"CPU": 64, "GPU": 8}}
        monkeypatch.setattr(cluster.ray._private.state.state, "get_cluster_config", lambda: None)
        monkeypatch.setattr(cluster.ray, "nodes", lambda: [*listed, dead])

    return set_nodes


def test_a_trial_gets_one_gpu_where_there_is_any_and_what_was_asked_for(nodes):
    nodes({"CPU": 4})
    assert cluster.gpus_per_trial(None) == 0
    nodes({"CPU": 4}, {"CPU": 8, "GPU": 2})
    assert cluster.gpus_per_trial(None) == 1
    assert cluster.gpus_per_trial(0.5) == 0.5


def test_no_node_may_be_too_small(nodes):
    nodes({"CPU": 4}, {"CPU": 1, "GPU": 1})
    assert cluster.resource_problems(4, 0) == []
    assert cluster.resource_problems(1, 1) == []
    (problem,) = cluster.resource_problems(4, 1)
    assert "the most are 1 GPUs and 4 CPUs" in problem


def test_a_head_that_runs_no_trials_counts_with_the_workers_that_it_may_launch(nodes):
    nodes({"launchable_CPU": 8, "launchable_GPU": 1})
    assert cluster.gpus_per_trial(None) == 1
    assert cluster.resource_problems(8, 1) == []
    assert len(cluster.resource_problems(9, 1)) == 1
    assert len(cluster.resource_problems(1, 2)) == 1


def test_a_budget_of_gpu_hours_is_refused_where_trials_get_no_gpu(nodes):
    nodes({"CPU": 4})
    sweep = sweep_of(parse_arguments(["--gpu-hours", "1"]))
    assert connected_problems(sweep, [], 0.0) == [
        "--gpu-hours is a budget of GPUs, and trials get none here: use --hours"
    ]
    nodes({"CPU": 4, "GPU": 1})
    assert connected_problems(sweep, [], 1.0) == []
    assert connected_problems(sweep_of(parse_arguments([])), [], 0.0) == []


def test_a_precision_is_asked_of_the_nodes_and_tf32_refused_where_trials_get_no_gpu(nodes, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("sweeps.cluster.nodes.node_problems", lambda *places, **how: asked.append(how) or [])
    what = {"combinations": ("none",), "settings": ("precision=tf32",)}
    cells = plan_cells(Request("table4", "demo", tmp_path, **what))
    sweep = sweep_of(parse_arguments([]))
    nodes({"CPU": 4})
    assert connected_problems(sweep, cells, 0.0) == [
        "precision=tf32 is of GPUs, and trials get none here: use precision=fp32"
    ]
    nodes({"CPU": 4, "GPU": 1})
    assert connected_problems(sweep, cells, 1.0) == []
    assert asked[-1] == {"gpus": 1.0, "precisions": {"tf32"}}


def test_an_address_where_nobody_listens_is_named_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(cluster.ClusterError, match=f"no Ray cluster answers at '{address}'.*refused"):
        with cluster.connected(address):
            pass


def refused(address: str) -> str:
    """What a driver is told that asks to be let in there. Ray itself would wait for minutes."""
    with pytest.raises(cluster.ClusterError) as raised:
        with cluster.connected(address):
            pass
    return str(raised.value)


def test_what_accepts_and_stays_silent_is_named(monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        said = refused(f"127.0.0.1:{silent.getsockname()[1]}")
    assert "is not a Ray head, or one that is overloaded (no answer within 1 s)" in said


@pytest.fixture
def head():
    """The address of what asks for a token as a head does, and knows nobody by it."""

    def check(request, context):
        sent = dict(context.invocation_metadata()).get("authorization", "")
        context.abort(grpc.StatusCode.UNAUTHENTICATED, f"InvalidAuthToken: {sent}")

    server = grpc.server(futures.ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(
        check, gcs.CheckAliveRequest.FromString, gcs.CheckAliveReply.SerializeToString
    )
    service = "ray.rpc.NodeInfoGcsService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"CheckAlive": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_a_driver_with_a_wrong_token_is_told_so_and_what_mends_it(head):
    said = refused(head)
    assert f"the Ray cluster at '{head}' refuses this driver's token" in said
    assert "~/.ray/auth_token" in said


def test_another_server_than_ray_is_named_with_what_it_says():
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert "is not a Ray head (unimplemented)" in refused(f"127.0.0.1:{port}")
    server.stop(None)


def test_rays_client_is_refused_because_a_sweep_cannot_run_through_it():
    assert "submit the command as a job" in refused("ray://127.0.0.1:1")
