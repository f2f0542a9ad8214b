"""Policies on pods, wherever their template is written: Deployment, CronJob, TrainingRuntime, InferenceService.

Namespaces enforce the restricted profile on pods only: a CronJob that violates it is accepted, and its pods are refused
at two in the morning. So templates are checked here. https://kubernetes.io/docs/concepts/security/pod-security-standards
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from k8s.checks.render import Object, title

ALLOWED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected"}
ALLOWED_VOLUMES |= {"secret"}
RUNNER = "understudy-runner"
HOLDS_TOKEN = {RUNNER}
ZERO_DIGEST = "sha256:" + "0" * 64
_LONG_RUNNING = {"Deployment", "StatefulSet", "DaemonSet", "InferenceService"}
SECRET_NAME = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|API_?KEY|ACCESS_KEY|CREDENTIAL)", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"://[^/\s:@$({]+:[^/\s@$({]+@|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|gh[pousr]_[A-Za-z0-9]{36}"
    r"|hf_[A-Za-z0-9]{30}|xox[abprs]-|(?i:password|secret_?access_?key)\s*[=:]\s*['\"]?[^\s'\"${]{6,}"
)


@dataclass(frozen=True)
class Template:
    """One pod template: where it stands, its labels and its spec; `runtime_image` when an operator adds the image."""

    where: str
    kind: str
    namespace: str
    labels: dict[str, str]
    spec: dict[str, Any]
    runtime_image: bool = False

    def containers(self) -> Iterator[dict[str, Any]]:
        """Init containers first, as they run."""
        yield from self.spec.get("initContainers", [])
        yield from self.spec.get("containers", [])


def templates(items: list[Object]) -> Iterator[Template]:
    """Yield every pod template in the objects."""
    for item in items:
        kind, spec = item["kind"], item.get("spec", {})
        namespace = item.get("metadata", {}).get("namespace", "understudy")
        if kind in ("Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet"):
            found = [spec["template"]]
        elif kind == "CronJob":
            found = [spec["jobTemplate"]["spec"]["template"]]
        elif kind in ("ClusterTrainingRuntime", "TrainingRuntime"):
            found = [job["template"]["spec"]["template"] for job in spec["template"]["spec"]["replicatedJobs"]]
        elif kind == "InferenceService":
            predictor = dict(spec["predictor"])
            predictor["containers"] = [predictor.pop("model") | {"name": "model"}, *predictor.get("containers", [])]
            found = [{"metadata": {"labels": predictor.pop("labels", {})}, "spec": predictor}]
        elif kind == "Pod":
            found = [item]
        else:
            continue
        for pod in found:
            labels = pod.get("metadata", {}).get("labels", {})
            yield Template(title(item), kind, namespace, labels, pod["spec"], kind == "InferenceService")


def restricted(items: list[Object]) -> Iterator[str]:
    """Pod Security Standard `restricted`, and a read-only root file system for what is ours."""
    for pod in templates(items):
        yield from _pod_level(pod)
        for container in pod.containers():
            yield from _container_level(pod, container)


def _pod_level(pod: Template) -> Iterator[str]:
    security = pod.spec.get("securityContext", {})
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(name):
            yield f"{pod.where}: {name} is true"
    for volume in pod.spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= ALLOWED_VOLUMES:
            yield f"{pod.where}: volume {volume['name']} is a {', '.join(sorted(kinds - ALLOWED_VOLUMES))}"
    if security.get("seLinuxOptions") or security.get("sysctls"):
        yield f"{pod.where}: seLinuxOptions or sysctls are set"
    if "automountServiceAccountToken" not in pod.spec:
        yield f"{pod.where}: automountServiceAccountToken is not stated"
    elif pod.spec["automountServiceAccountToken"] and pod.spec.get("serviceAccountName") not in HOLDS_TOKEN:
        yield f"{pod.where}: mounts a token of the Kubernetes API that it does not need"


def _container_level(pod: Template, container: dict[str, Any]) -> Iterator[str]:
    where = f"{pod.where} container {container['name']}"
    outer, own = pod.spec.get("securityContext", {}), container.get("securityContext", {})
    both = outer | own
    if both.get("runAsNonRoot") is not True:
        yield f"{where}: runAsNonRoot is not true"
    if both.get("runAsUser") == 0:
        yield f"{where}: runs as user 0"
    if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield f"{where}: seccompProfile is not RuntimeDefault"
    if own.get("privileged") or own.get("procMount", "Default") != "Default":
        yield f"{where}: is privileged or changes procMount"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{where}: allowPrivilegeEscalation is not false"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", []):
        yield f"{where}: capabilities are not dropped"
    if not set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"}:
        yield f"{where}: adds capabilities {capabilities['add']}"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield f"{where}: takes a port of the host"
    if not pod.runtime_image and own.get("readOnlyRootFilesystem") is not True:
        yield f"{where}: readOnlyRootFilesystem is not true"


def images(items: list[Object], production: bool) -> Iterator[str]:
    """Named with their registry, never `latest`; by digest in production."""
    for pod in templates(items):
        for container in pod.containers():
            where = f"{pod.where} container {container['name']}"
            image = container.get("image")
            if image is None:
                if not pod.runtime_image:
                    yield f"{where}: has no image"
                continue
            name, _, digest = image.partition("@")
            tag = name.rpartition("/")[2].partition(":")[2]
            if "." not in name.partition("/")[0]:
                yield f"{where}: {image} does not name its registry"
            if tag == "latest" or not (tag or digest):
                yield f"{where}: {image} is not a fixed version"
            if production and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
                yield f"{where}: {image} is not pinned by digest"


def unreleased(items: list[Object]) -> Iterator[str]:
    """Placeholders that must be written before anything is deployed; asked with --release only."""
    for pod in templates(items):
        for container in pod.containers():
            if str(container.get("image", "")).endswith(ZERO_DIGEST):
                yield f"{pod.where} container {container['name']}: no release has written its digest yet"


def resources(items: list[Object]) -> Iterator[str]:
    """Requests for everything, memory that cannot be overcommitted, GPUs whole and equal on both sides."""
    for pod in templates(items):
        for container in pod.containers():
            where = f"{pod.where} container {container['name']}"
            given = container.get("resources", {})
            requests, limits = given.get("requests", {}), given.get("limits", {})
            for name in ("cpu", "memory", "ephemeral-storage"):
                if name not in requests:
                    yield f"{where}: does not request {name}"
            if requests.get("memory") != limits.get("memory"):
                yield f"{where}: memory request {requests.get('memory')} differs from limit {limits.get('memory')}"
            for name in {key for key in {*requests, *limits} if key.endswith("/gpu")}:
                if requests.get(name) != limits.get(name) or not str(limits.get(name, "")).isdecimal():
                    yield f"{where}: {name} request {requests.get(name)} and limit {limits.get(name)} must be equal"


def probes(items: list[Object]) -> Iterator[str]:
    """Long-running containers say when they are ready and when they are lost; their ports exist."""
    for pod in templates(items):
        if pod.kind not in _LONG_RUNNING:
            continue
        for container in pod.spec.get("containers", []):
            ports = {port.get("name") for port in container.get("ports", [])}
            for name in ("readinessProbe", "livenessProbe"):
                probe = container.get(name)
                if not probe:
                    yield f"{pod.where} container {container['name']}: has no {name}"
                    continue
                port = probe.get("httpGet", {}).get("port")
                if isinstance(port, str) and port not in ports:
                    yield f"{pod.where} container {container['name']}: {name} asks port {port!r}, it has none"


def secrets(items: list[Object]) -> Iterator[str]:
    """No Secret in Git, no literal in an environment, nothing that looks like a credential anywhere."""
    for item in items:
        if item["kind"] == "Secret":
            yield f"{title(item)}: secrets come from an ExternalSecret, not from Git"
        for path, text in _strings(item):
            if SECRET_VALUE.search(text):
                yield f"{title(item)}: {path} looks like a credential"
    for pod in templates(items):
        for container in pod.containers():
            for entry in container.get("env", []):
                if "value" in entry and SECRET_NAME.search(entry["name"]) and not entry["name"].endswith("_FILE"):
                    yield f"{pod.where} container {container['name']}: {entry['name']} has its value in Git"


def _strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _strings(inner, f"{path}[{index}]")
    elif isinstance(value, str):
        yield path, value
