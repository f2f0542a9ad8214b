"""Ways to break pods, images, resources and secrets, each with the words of the policy that catches it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from k8s.checks.render import Object

Items = list[Object]
Violations = dict[str, tuple[Callable[[Items], Any], str]]


def one(items: Items, kind: str, name: str) -> Any:
    return next(item for item in items if (item["kind"], item["metadata"]["name"]) == (kind, name))


def pod(items: Items, kind: str, name: str) -> Any:
    spec = one(items, kind, name)["spec"]
    if kind == "CronJob":
        return spec["jobTemplate"]["spec"]["template"]["spec"]
    if kind == "ClusterTrainingRuntime":
        return spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return spec["template"]["spec"]


def box(items: Items, kind: str, name: str) -> Any:
    return pod(items, kind, name)["containers"][0]


def put(target: Any, **values: Any) -> None:
    target.update(values)


SFT = ("ClusterTrainingRuntime", "understudy-sft")
MLFLOW = ("Deployment", "mlflow")
BACKUP = ("CronJob", "mlflow-backup")
RULES = ("PrometheusRule", "understudy")

PODS: Violations = {
    # restricted pods, also where the API server would not look
    "cronjob_as_root": (lambda i: put(pod(i, *BACKUP)["securityContext"], runAsUser=0), "runs as user 0"),
    "cronjob_without_non_root": (
        lambda i: pod(i, *BACKUP)["securityContext"].pop("runAsNonRoot"),
        "CronJob/mlflow-backup container dump: runAsNonRoot is not true",
    ),
    "runtime_escalates": (
        lambda i: put(box(i, *SFT)["securityContext"], allowPrivilegeEscalation=True),
        "ClusterTrainingRuntime/understudy-sft container node: allowPrivilegeEscalation is not false",
    ),
    "init_container_keeps_capabilities": (
        lambda i: pod(i, *MLFLOW)["initContainers"][0]["securityContext"].pop("capabilities"),
        "container migrate: capabilities are not dropped",
    ),
    "adds_capability": (
        lambda i: put(box(i, *MLFLOW)["securityContext"]["capabilities"], add=["SYS_ADMIN"]),
        "adds capabilities",
    ),
    "host_network": (lambda i: put(pod(i, *SFT), hostNetwork=True), "hostNetwork is true"),
    "host_path": (
        lambda i: pod(i, *SFT)["volumes"].append({"name": "x", "hostPath": {"path": "/data"}}),
        "volume x is a hostPath",
    ),
    "host_port": (lambda i: put(box(i, *MLFLOW)["ports"][0], hostPort=5000), "takes a port of the host"),
    "privileged": (lambda i: put(box(i, *SFT)["securityContext"], privileged=True), "is privileged"),
    "no_seccomp": (lambda i: pod(i, *MLFLOW)["securityContext"].pop("seccompProfile"), "seccompProfile"),
    "served_model_unconfined": (
        lambda i: one(i, "InferenceService", "understudy")["spec"]["predictor"]["model"].pop("securityContext"),
        "InferenceService/understudy container model: allowPrivilegeEscalation",
    ),
    "writable_root": (
        lambda i: box(i, *MLFLOW)["securityContext"].pop("readOnlyRootFilesystem"),
        "container mlflow: readOnlyRootFilesystem is not true",
    ),
    "token_by_default": (lambda i: pod(i, *BACKUP).pop("automountServiceAccountToken"), "is not stated"),
    "trainer_with_token": (lambda i: put(pod(i, *SFT), automountServiceAccountToken=True), "does not need"),
    "sysctls": (
        lambda i: put(pod(i, *SFT)["securityContext"], sysctls=[{"name": "a", "value": "1"}]),
        "seLinuxOptions or sysctls are set",
    ),
    # images
    "latest": (lambda i: put(box(i, *MLFLOW), image="registry.example.com/mlflow:latest"), "is not a fixed version"),
    "untagged": (lambda i: put(box(i, *MLFLOW), image="registry.example.com/mlflow"), "is not a fixed version"),
    "tag_in_production": (
        lambda i: put(box(i, *SFT), image="registry.example.com/train:1.0"),
        "is not pinned by digest",
    ),
    "no_registry": (lambda i: put(box(i, *MLFLOW), image="mlflow:3@sha256:" + "a" * 64), "does not name its registry"),
    "no_image": (lambda i: box(i, *MLFLOW).pop("image"), "has no image"),
    # resources and probes
    "gpu_request_below_limit": (
        lambda i: put(box(i, *SFT)["resources"]["limits"], **{"nvidia.com/gpu": "2"}),
        "nvidia.com/gpu request 1 and limit 2 must be equal",
    ),
    "part_of_a_gpu": (
        lambda i: [put(box(i, *SFT)["resources"][s], **{"nvidia.com/gpu": "0.5"}) for s in ("limits", "requests")],
        "must be equal",
    ),
    "memory_overcommitted": (
        lambda i: put(box(i, *MLFLOW)["resources"]["limits"], memory="9Gi"),
        "memory request 1536Mi differs from limit 9Gi",
    ),
    "no_requests": (lambda i: box(i, *BACKUP).pop("resources"), "does not request cpu"),
    "no_probe": (lambda i: box(i, *MLFLOW).pop("livenessProbe"), "container mlflow: has no livenessProbe"),
    "probe_of_a_missing_port": (
        lambda i: put(box(i, *MLFLOW)["readinessProbe"]["httpGet"], port="https"),
        "asks port 'https'",
    ),
    # secrets
    "secret_in_git": (
        lambda i: i.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {}}),
        "Secret/s: secrets come from an ExternalSecret",
    ),
    "literal_password": (
        lambda i: box(i, *MLFLOW)["env"].append({"name": "DB_PASSWORD", "value": "hunter2"}),
        "DB_PASSWORD has its value in Git",
    ),
    "password_in_uri": (
        lambda i: put(one(i, "ConfigMap", "understudy-settings")["data"], X="postgresql://u:hunter2@db/x"),
        "ConfigMap/understudy-settings: data.X looks like a credential",
    ),
    "aws_key": (
        lambda i: put(one(i, "ConfigMap", "kfp-launcher")["data"], X="AKIA" + "Q" * 16),
        "looks like a credential",
    ),
}
