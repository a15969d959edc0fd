"""The RayJob: the fields and types of KubeRay's API, Kubernetes' own objects, references that meet, nothing open.

KubeRay's fields are checked by kuberay_v1.yaml beside this file, which says where it comes from. Everything that is
Kubernetes' own (pods, claims, the network policy) is checked by Kubernetes' published schemas, in their strict form: a
field that Kubernetes does not know is an error.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

FILE = Path(__file__).resolve().parents[2] / "launch" / "kuberay-rayjob.yaml"
RAY_JOB_SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay_v1.yaml").read_text(encoding="utf-8"))
KUBERNETES = ("1.28", "1.37")
"""The schemas hardly change; an old version that is still run and the newest."""


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


def _mistakes(document: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(RAY_JOB_SCHEMA).iter_errors(document)]


def _as_pod_template(template: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "captune"}, "template": template}


def test_the_ray_job_has_the_fields_and_types_of_kuberays_api():
    jsonschema.Draft202012Validator.check_schema(RAY_JOB_SCHEMA)
    (document,) = _of_kind("RayJob")
    assert _mistakes(document) == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_pods_claims_and_the_policy_are_what_kubernetes_takes(version: str):
    others = [document for document in _documents() if document["kind"] != "RayJob"]
    assert len(others) == 4
    pods = [_as_pod_template(template) for template in _pod_templates().values()]
    autoscaler = {"name": "autoscaler"} | _job()["rayClusterSpec"]["autoscalerOptions"]
    own = {"idleTimeoutSeconds", "upscalingMode", "version"}
    container = {name: value for name, value in autoscaler.items() if name not in own}
    pods.append(_as_pod_template({"spec": {"containers": [container]}}))
    for document in [*others, *pods]:
        kubernetes_validate.validate(document, version, strict=True)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        *folders, last = path.split(".")
        for name in folders:
            spec = spec[int(name)] if name.isdecimal() else spec[name]
        spec[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("entryPoint", "captune run"),
        _set("backoffLimit", "3"),
        _set("submissionMode", "K8sJob"),
        _set("shutdownAfterJobFinishes", False),
        _set("rayClusterSpec.authOptions.mode", "Token"),
        _set("rayClusterSpec.autoscalerOptions.upscalingMode", "default"),
        _set("rayClusterSpec.headGroupSpec.rayStartParams.num-cpus", 0),
        _set("rayClusterSpec.workerGroupSpecs.0.minReplicas", 0.5),
        _set("rayClusterSpec.workerGroupSpecs.0.replica", 1),
    ],
)
def test_the_schema_refuses_what_the_api_would_refuse(change: Callable[[dict[str, Any]], None]):
    (document,) = copy.deepcopy(_of_kind("RayJob"))
    change(document["spec"])
    assert len(_mistakes(document)) == 1


def test_kubernetes_schemas_refuse_a_field_that_no_pod_has():
    template = copy.deepcopy(_pod_templates()["gpu"])
    template["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(_as_pod_template(template), KUBERNETES[-1], strict=True)


def test_replicas_are_in_order():
    for group in _job()["rayClusterSpec"]["workerGroupSpecs"]:
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert {"name", "image", "resources"} <= set(container)


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
