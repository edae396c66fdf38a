"""What a trial may ask of a cluster, also of one whose GPU nodes are yet to be launched; and who is not let in."""

import socket

import pytest

from sweeps import cluster
from sweeps.ablation import connected_problems, parse_arguments


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
    options = parse_arguments(["--gpu-hours", "1"])
    assert connected_problems(options, [], 0.0) == [
        "--gpu-hours is a budget of GPUs, and trials get none here: use --hours"
    ]
    nodes({"CPU": 4, "GPU": 1})
    assert connected_problems(options, [], 1.0) == []
    assert connected_problems(parse_arguments([]), [], 0.0) == []


def test_an_address_where_nobody_listens_is_named_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(cluster.ClusterError, match=f"no Ray cluster answers at '{address}'.*refused"):
        with cluster.connected(address):
            pass
