"""The Kubernetes manifests: valid by KubeRay's schema, secrets by reference, nothing reachable from outside."""

import gzip
import ipaddress
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "kubernetes"


def documents() -> list[dict[str, Any]]:
    return [each for path in sorted(FOLDER.glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [each for each in documents() if each["kind"] == kind]


def schema(kind: str) -> dict[str, Any]:
    """KubeRay's schema, in which a field that it does not know is an error, as it is to `kubectl apply`."""
    path = ROOT / "tests/kuberay" / f"{kind.lower()}s-v1.json.gz"
    published = json.loads(gzip.decompress(path.read_bytes()))
    published["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, which the schema leaves open
    return closed(published)


def closed(part: Any) -> Any:
    if isinstance(part, list):
        return [closed(each) for each in part]
    if not isinstance(part, dict):
        return part
    part = {name: closed(each) for name, each in part.items()}
    if isinstance(part.get("properties"), dict) and part.get("type") == "object":
        part.setdefault("additionalProperties", bool(part.get("x-kubernetes-preserve-unknown-fields")))
    return part


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_kuberay_would_accept_it(kind):
    (manifest,) = of_kind(kind)
    assert manifest["apiVersion"] == "ray.io/v1"
    jsonschema.validate(manifest, schema(kind))


def test_kuberay_would_not_accept_just_anything():
    (manifest,) = of_kind("RayCluster")
    manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(jsonschema.ValidationError, match="volumeMount"):
        jsonschema.validate(manifest, schema("RayCluster"))
    (manifest,) = of_kind("RayJob")
    del manifest["spec"]["entrypoint"]
    manifest["spec"]["backoffLimit"] = "none"
    with pytest.raises(jsonschema.ValidationError, match="backoffLimit|integer"):
        jsonschema.validate(manifest, schema("RayJob"))


def refusals(spec: dict[str, Any]) -> list[str]:
    """What KubeRay's operator refuses in a RayJob that the schema admits (ValidateRayJobSpec, KubeRay 1.6)."""
    shuts_down, selects = spec.get("shutdownAfterJobFinishes", False), bool(spec.get("clusterSelector"))
    rules = {
        "ttlSecondsAfterFinished without shutdownAfterJobFinishes": spec.get("ttlSecondsAfterFinished", 0)
        and not shuts_down,
        "suspend without shutdownAfterJobFinishes": spec.get("suspend") and not shuts_down,
        "suspend with clusterSelector": spec.get("suspend") and selects,
        "neither rayClusterSpec nor clusterSelector": not spec.get("rayClusterSpec") and not selects,
        "backoffLimit with clusterSelector": spec.get("backoffLimit", 0) > 0 and selects,
        "SidecarMode with clusterSelector": spec.get("submissionMode") == "SidecarMode" and selects,
        "deletionStrategy needs a feature gate": "deletionStrategy" in spec,
    }
    return [rule for rule, broken in rules.items() if broken]


def test_kuberays_operator_would_not_refuse_the_job():
    (job,) = of_kind("RayJob")
    assert refusals(job["spec"]) == []
    # With clusterSelector the operator deletes nothing, so that a time to live would be a promise not kept.
    assert not {"ttlSecondsAfterFinished", "shutdownAfterJobFinishes"} & set(job["spec"])


def test_the_job_runs_on_the_cluster_beside_it():
    (cluster,), (job,) = of_kind("RayCluster"), of_kind("RayJob")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    environment = yaml.safe_load(job["spec"]["runtimeEnvYAML"])
    assert environment["env_vars"]["RELVIT_GIT_COMMIT"] in environment["working_dir"]


def test_gpu_workers_start_at_none_and_the_head_tells_what_they_have():
    (cluster,) = of_kind("RayCluster")
    spec = cluster["spec"]
    (gpu,) = spec["workerGroupSpecs"]
    assert (gpu["minReplicas"], gpu["replicas"]) == (0, 0)
    assert spec["enableInTreeAutoscaling"] is True
    limits = gpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    head = spec["headGroupSpec"]["rayStartParams"]
    promised = json.loads(json.loads(head["resources"]))
    assert head["num-cpus"] == "0"
    assert promised == {"launchable_CPU": int(limits["cpu"]), "launchable_GPU": int(limits["nvidia.com/gpu"])}


def test_who_has_no_token_is_not_let_in():
    (cluster,) = of_kind("RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "relvit-ray-token"}
    assert tuple(int(part) for part in cluster["spec"]["rayVersion"].split(".")) >= (2, 52, 0)  # KubeRay's condition


def test_nothing_is_reachable_from_outside_the_cluster():
    assert of_kind("Ingress") == []
    assert [service["spec"]["type"] for service in of_kind("Service")] == ["ClusterIP"]
    (cluster,) = of_kind("RayCluster")
    assert cluster["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "hostNetwork" not in json.dumps(documents())
    assert "hostPort" not in json.dumps(documents())


def test_a_network_policy_covers_every_pod_and_admits_no_other_workloads():
    policies = of_kind("NetworkPolicy")
    covered = {policy["spec"]["podSelector"]["matchLabels"]["app"] for policy in policies}
    (cluster,) = of_kind("RayCluster")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    templates = [group["template"] for group in groups]
    templates += [deployment["spec"]["template"] for deployment in of_kind("Deployment")]
    assert {template["metadata"]["labels"]["app"] for template in templates} == covered
    for policy in policies:
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for rule in policy["spec"]["ingress"]:
            assert rule["from"]
            assert all(source["podSelector"] for source in rule["from"])
    (tracking,) = [each for each in policies if each["metadata"]["name"] == "relvit-mlflow"]
    assert tracking["spec"]["ingress"][0]["from"] == [
        {"podSelector": {"matchLabels": {"app": "relvit-ray", "role": "head"}}}
    ]


def test_only_the_operator_in_its_own_namespace_and_submitters_in_this_one_reach_the_dashboard():
    (head,) = [each for each in of_kind("NetworkPolicy") if each["metadata"]["name"] == "relvit-ray-head"]
    (rule,) = head["spec"]["ingress"]
    assert rule["ports"] == [{"port": 8265}]
    # A namespaceSelector that is empty would admit any namespace's pod that calls itself the operator.
    assert [source.get("namespaceSelector") for source in rule["from"]] == [
        {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-operator"}},
        None,
    ]


def test_no_pod_reaches_the_metadata_service_that_hands_out_the_nodes_keys():
    metadata = ipaddress.ip_address("169.254.169.254")
    blocks = [
        target["ipBlock"]
        for policy in of_kind("NetworkPolicy")
        for rule in policy["spec"]["egress"]
        for target in rule["to"]
        if "ipBlock" in target
    ]
    assert len(blocks) == 2
    for block in blocks:
        assert any(metadata in ipaddress.ip_network(hole) for hole in block["except"])


def test_every_pod_on_the_shared_volume_has_one_group_and_no_root():
    (cluster,), deployments = of_kind("RayCluster"), of_kind("Deployment")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    pods = [each["template"]["spec"] for each in groups] + [each["spec"]["template"]["spec"] for each in deployments]
    assert len(pods) == 3
    for pod in pods:
        assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}


def test_a_job_finds_storage_data_and_mlflow_in_the_heads_environment():
    (cluster,), (job,) = of_kind("RayCluster"), of_kind("RayJob")
    (head,) = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value") for entry in head["env"]}
    mounts = [mount["mountPath"] for mount in head["volumeMounts"]]
    for name in ("RELVIT_STORAGE", "RELVIT_DATA_ROOT"):
        assert any(given[name].startswith(mount) for mount in mounts)
    (service,) = of_kind("Service")
    assert given["MLFLOW_TRACKING_URI"] == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert "--storage" not in job["spec"]["entrypoint"]
    assert int(given["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60


def environments(part: Any) -> list[dict[str, Any]]:
    """Every entry of every `env` in a manifest."""
    if isinstance(part, list):
        return [entry for each in part for entry in environments(each)]
    if not isinstance(part, dict):
        return []
    return part.get("env", []) + [entry for each in part.values() for entry in environments(each)]


def test_secrets_are_references_and_workers_have_no_password():
    secret = re.compile("(?i)password|token|secret|access_key|username")
    entries = [entry for document in documents() for entry in environments(document)]
    named = [entry for entry in entries if secret.search(entry["name"])]
    assert len(named) == 4
    assert all(set(entry["valueFrom"]) == {"secretKeyRef"} for entry in named)
    assert of_kind("Secret") == []
    (cluster,) = of_kind("RayCluster")
    assert not any(secret.search(entry["name"]) for entry in environments(cluster["spec"]["workerGroupSpecs"]))


def test_claims_that_are_used_are_made():
    claimed = set(re.findall(r"claimName: ([\w-]+)", " ".join(path.read_text() for path in FOLDER.glob("*.yaml"))))
    assert claimed == {claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim")}
