"""The RayJob: fields of the v1 API, references that meet, nothing open that need not be.

KubeRay's custom resource definition would be the full check; it is not part of any Python package, so the fields that
KubeRay 1.5 documents (https://docs.ray.io/en/latest/cluster/kubernetes/references/api.html) stand here.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

FILE = Path(__file__).resolve().parents[2] / "launch" / "kuberay-rayjob.yaml"

RAY_JOB_SPEC = {
    *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint"),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
    *("rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig"),
    *("submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
}
RAY_CLUSTER_SPEC = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec"),
    *("headServiceAnnotations", "managedBy", "rayVersion", "suspend", "upgradeStrategy", "workerGroupSpecs"),
}
AUTOSCALER_OPTIONS = {
    *("env", "envFrom", "idleTimeoutSeconds", "image", "imagePullPolicy", "resources", "securityContext"),
    *("upscalingMode", "version", "volumeMounts"),
}
HEAD_GROUP_SPEC = {
    *("enableIngress", "headService", "labels", "rayStartParams", "resources", "serviceType", "template"),
}
WORKER_GROUP_SPEC = {
    *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams"),
    *("replicas", "resources", "scaleStrategy", "suspend", "template"),
}
POD_SPEC = {
    *("affinity", "containers", "imagePullSecrets", "initContainers", "nodeSelector", "restartPolicy"),
    *("securityContext", "serviceAccountName", "terminationGracePeriodSeconds", "tolerations", "volumes"),
}
CONTAINER = {
    *("args", "command", "env", "envFrom", "image", "imagePullPolicy", "lifecycle", "name", "ports", "resources"),
    *("securityContext", "volumeMounts", "workingDir"),
}


def _documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(FILE.read_text(encoding="utf-8")))


def _of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in _documents() if document["kind"] == kind]


def _job() -> dict[str, Any]:
    (job,) = _of_kind("RayJob")
    return job["spec"]


def _pod_templates() -> dict[str, dict[str, Any]]:
    job = _job()
    templates = {"submitter": job["submitterPodTemplate"], "head": job["rayClusterSpec"]["headGroupSpec"]["template"]}
    return templates | {group["groupName"]: group["template"] for group in job["rayClusterSpec"]["workerGroupSpecs"]}


def test_every_field_is_one_of_the_api():
    (document,) = _of_kind("RayJob")
    assert document["apiVersion"] == "ray.io/v1"
    job = document["spec"]
    cluster = job["rayClusterSpec"]
    assert set(job) <= RAY_JOB_SPEC
    assert set(cluster) <= RAY_CLUSTER_SPEC
    assert set(cluster["autoscalerOptions"]) <= AUTOSCALER_OPTIONS
    assert set(cluster["headGroupSpec"]) <= HEAD_GROUP_SPEC
    for group in cluster["workerGroupSpecs"]:
        assert set(group) <= WORKER_GROUP_SPEC
    for template in _pod_templates().values():
        assert set(template) == {"metadata", "spec"}
        assert set(template["spec"]) <= POD_SPEC
        for container in template["spec"]["containers"]:
            assert set(container) <= CONTAINER


def test_what_the_api_requires_is_there_with_its_type():
    cluster = _job()["rayClusterSpec"]
    assert isinstance(_job()["entrypoint"], str)
    assert _job()["submissionMode"] in {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        # rayStartParams is map[string]string: a YAML number or boolean would be refused.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert {"name", "image", "resources"} <= set(container)
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"]
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_workers_have_gpus_and_scale():
    cluster = _job()["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"] is True
    (group,) = cluster["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    # Kubernetes wants the GPUs of request and limit equal; the autoscaler reads the limits.
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "1"
    assert group["maxReplicas"] > group["minReplicas"]


def test_the_entrypoint_can_start_again_and_fills_the_full_cluster():
    words = _job()["entrypoint"].split()
    assert words[:2] == ["captune", "run"]
    assert "--resume" in words
    options = dict(itertools.pairwise(words))
    (group,) = _job()["rayClusterSpec"]["workerGroupSpecs"]
    cpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    by_gpu = int(1 / float(options["--gpus-per-trial"]))
    by_cpu = int(cpus / float(options["--cpus-per-trial"]))
    assert int(options["--concurrency"]) == group["maxReplicas"] * min(by_gpu, by_cpu)


def test_volumes_mounts_and_claims_meet():
    claims = {claim["metadata"]["name"] for claim in _of_kind("PersistentVolumeClaim")}
    assert all(claim["spec"]["accessModes"] == ["ReadWriteMany"] for claim in _of_kind("PersistentVolumeClaim"))
    options = dict(itertools.pairwise(_job()["entrypoint"].split()))
    for name, template in _pod_templates().items():
        if name == "submitter":
            continue
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        used = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert used == claims
        mounts = {mount["name"]: mount for mount in template["spec"]["containers"][0]["volumeMounts"]}
        assert set(mounts) == set(volumes)
        assert mounts["data"]["readOnly"] is True
        assert options["--out"].startswith(mounts["runs"]["mountPath"])
        assert options["--data-root"] == mounts["data"]["mountPath"]


def _bytes(text: str) -> int:
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return int(float(text[:-2]) * units[text[-2:]]) if text[-2:] in units else int(text)


def test_object_store_shared_memory_and_memory_limits_agree():
    cluster = _job()["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        spec = group["template"]["spec"]
        (shm,) = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm"]
        (container,) = spec["containers"]
        store, size = _bytes(group["rayStartParams"]["object-store-memory"]), _bytes(shm["sizeLimit"])
        limit = _bytes(container["resources"]["limits"]["memory"])
        assert shm["medium"] == "Memory"
        assert 0.8 * size < store < size, "else Ray puts its objects on disk, or is refused"
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
        trials = _bytes(group["rayStartParams"].get("memory", "0"))
        # Shared memory counts towards the limit; a gigabyte and a half is left to Ray's own processes.
        assert trials + size + 1.5 * 2**30 < limit


def test_weights_come_from_a_volume_and_no_pod_downloads_them():
    for name, template in _pod_templates().items():
        if name == "submitter":
            continue
        (container,) = template["spec"]["containers"]
        environment = {variable["name"]: variable["value"] for variable in container["env"]}
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert environment["HF_HOME"] == mounts["weights"]["mountPath"]
        assert environment["HF_HUB_OFFLINE"] == "1"
        assert mounts["weights"]["readOnly"] is True


def test_the_operator_makes_the_token_and_no_secret_stands_here():
    assert _job()["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert tuple(int(part) for part in _job()["rayClusterSpec"]["rayVersion"].split(".")[:2]) >= (2, 52)
    assert _of_kind("Secret") == []
    for template in _pod_templates().values():
        for container in template["spec"]["containers"]:
            assert not any("TOKEN" in variable["name"] for variable in container.get("env", []))


@pytest.mark.parametrize("pod", ["submitter", "head", "gpu"])
def test_pods_run_without_privileges(pod: str):
    spec = _pod_templates()[pod]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] != 0
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_rays_ports_are_closed_to_strangers():
    (policy,) = _of_kind("NetworkPolicy")
    selector = policy["spec"]["podSelector"]["matchLabels"]
    for template in _pod_templates().values():
        assert selector.items() <= template["metadata"]["labels"].items()
    assert _job()["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    for rule in policy["spec"]["ingress"]:
        (source,) = rule["from"]
        own = source.get("podSelector", {}).get("matchLabels") == selector
        # Whoever is not of the cluster sees named ports only, never GCS (6379) or the client's (10001).
        assert own or {port["port"] for port in rule["ports"]} <= {8265, 8080}
