"""Every object that another names exists: in this repository, or promised by an ExternalSecret."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from k8s.checks.network import matches
from k8s.checks.pods import Template, templates
from k8s.checks.render import Object, title

SYSTEM_PRIORITIES = {"system-cluster-critical", "system-node-critical"}
# Made by operators that docs/operations.md installs; named here so that a typo is still found.
FROM_OPERATORS = {("ClusterSecretStore", "platform")}


class Known:
    """What exists, by kind and name; ConfigMaps and secrets with their keys."""

    def __init__(self, items: list[Object]) -> None:
        self.names = {(item["kind"], item["metadata"]["name"]) for item in items} | FROM_OPERATORS
        self.keys: dict[tuple[str, str], set[str]] = {}
        for item in items:
            if item["kind"] == "ConfigMap":
                self.keys["ConfigMap", item["metadata"]["name"]] = {*item.get("data", {}), *item.get("binaryData", {})}
            if item["kind"] == "ExternalSecret":
                target = item["spec"]["target"]
                template = target.get("template", {}).get("data")
                keys = set(template) if template else {entry["secretKey"] for entry in item["spec"].get("data", [])}
                self.keys["Secret", target["name"]] = keys
                self.names.add(("Secret", target["name"]))
            if item["kind"] == "StatefulSet":
                self.names |= {
                    ("PersistentVolumeClaim", claim["metadata"]["name"])
                    for claim in item["spec"].get("volumeClaimTemplates", [])
                }

    def missing(self, kind: str, name: str, key: str | None = None) -> str | None:
        """Return what is missing, in words, or None."""
        if (kind, name) not in self.names:
            return f"names {kind} {name!r}, which does not exist"
        if key is not None and key not in self.keys.get((kind, name), {key}):
            return f"names key {key!r} of {kind} {name!r}, which has {sorted(self.keys[kind, name])}"
        return None


def references(items: list[Object]) -> Iterator[str]:
    """Pods name what exists: accounts, secrets and their keys, ConfigMaps and theirs, claims, priorities, mounts."""
    known = Known(items)
    for pod in templates(items):
        for wanted in _pod_references(pod):
            found = known.missing(*wanted)
            if found:
                yield f"{pod.where}: {found}"
        volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
        if pod.kind == "StatefulSet":
            volumes |= {name for kind, name in known.names if kind == "PersistentVolumeClaim"}
        for container in pod.containers():
            for mount in container.get("volumeMounts", []):
                if mount["name"] not in volumes:
                    yield f"{pod.where}: mounts volume {mount['name']!r}, which does not exist"


def _pod_references(pod: Template) -> Iterator[tuple[str, str, str | None]]:
    spec = pod.spec
    yield "ServiceAccount", spec.get("serviceAccountName", "default"), None
    if "priorityClassName" in spec and spec["priorityClassName"] not in SYSTEM_PRIORITIES:
        yield "PriorityClass", spec["priorityClassName"], None
    for secret in spec.get("imagePullSecrets", []):
        yield "Secret", secret["name"], None
    for volume in spec.get("volumes", []):
        yield from _volume_references(volume)
    for container in pod.containers():
        for source in container.get("envFrom", []):
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source:
                    yield kind, source[field]["name"], None
        for entry in container.get("env", []):
            source = entry.get("valueFrom", {})
            for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
                if field in source:
                    yield kind, source[field]["name"], source[field]["key"]


def _volume_references(volume: dict[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    if "secret" in volume:
        for entry in volume["secret"].get("items", [{"key": None}]):
            yield "Secret", volume["secret"]["secretName"], entry["key"]
    if "configMap" in volume:
        for entry in volume["configMap"].get("items", [{"key": None}]):
            yield "ConfigMap", volume["configMap"]["name"], entry["key"]
    if "persistentVolumeClaim" in volume:
        yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None


def selectors(items: list[Object]) -> Iterator[str]:
    """Services, disruption budgets and monitors select something, and the ports they name exist."""
    pods = list(templates(items))
    services = [item for item in items if item["kind"] == "Service"]
    for service in services:
        chosen = [pod for pod in pods if matches({"matchLabels": service["spec"]["selector"]}, pod.labels)]
        if not chosen:
            yield f"{title(service)}: selector {service['spec']['selector']} matches no pod"
        names = {port.get("name") for pod in chosen for box in pod.containers() for port in box.get("ports", [])}
        for port in service["spec"]["ports"]:
            if isinstance(port.get("targetPort"), str) and port["targetPort"] not in names:
                yield f"{title(service)}: no container has port {port['targetPort']!r}; there is {sorted(names)}"
    for item in items:
        if item["kind"] == "PodDisruptionBudget":
            if not any(matches(item["spec"]["selector"], pod.labels) for pod in pods):
                yield f"{title(item)}: selector matches no pod"
        if item["kind"] == "ServiceMonitor":
            found = [
                service for service in services if matches(item["spec"]["selector"], service["metadata"]["labels"])
            ]
            if not found:
                yield f"{title(item)}: selector matches no Service"
            ports = {port["name"] for service in found for port in service["spec"]["ports"]}
            for endpoint in item["spec"]["endpoints"]:
                if found and endpoint["port"] not in ports:
                    yield f"{title(item)}: no Service has port {endpoint['port']!r}; there is {sorted(ports)}"


def wiring(items: list[Object]) -> Iterator[str]:
    """Bindings, queues, flavors, stores and accounts name what exists; every namespace is declared."""
    known = Known(items)
    spaces = {name for kind, name in known.names if kind == "Namespace"} | {"argocd", "monitoring"}
    for item in items:
        namespace = item["metadata"].get("namespace")
        if namespace is not None and namespace not in spaces:
            yield f"{title(item)}: is in namespace {namespace!r}, which is not declared"
        for kind, name in _wires(item):
            found = known.missing(kind, name)
            if found:
                yield f"{title(item)}: {found}"


def _wires(item: Object) -> Iterator[tuple[str, str]]:
    spec, kind = item.get("spec", {}), item["kind"]
    if kind in ("RoleBinding", "ClusterRoleBinding"):
        yield item["roleRef"]["kind"], item["roleRef"]["name"]
        yield from ((subject["kind"], subject["name"]) for subject in item["subjects"])
    elif kind == "ServiceAccount":
        for entry in [*item.get("imagePullSecrets", []), *item.get("secrets", [])]:
            yield "Secret", entry["name"]
    elif kind == "LocalQueue":
        yield "ClusterQueue", spec["clusterQueue"]
    elif kind == "ClusterQueue":
        yield "Cohort", spec["cohortName"]
        for group in spec["resourceGroups"]:
            yield from (("ResourceFlavor", flavor["name"]) for flavor in group["flavors"])
    elif kind == "ExternalSecret":
        yield spec["secretStoreRef"]["kind"], spec["secretStoreRef"]["name"]
    elif kind == "StatefulSet":
        yield "Service", spec["serviceName"]
    elif kind == "Application":
        yield "AppProject", spec["project"]
    elif kind == "ApplicationSet":
        yield "AppProject", spec["template"]["spec"]["project"]
