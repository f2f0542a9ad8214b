"""Policies on network flows: deny by default, and no rule that selects nothing or everything."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from k8s.checks.pods import templates
from k8s.checks.render import Object, title

NEIGHBOURS = Path(__file__).with_name("neighbours.yaml")
Selector = dict[str, Any]


@cache
def neighbours() -> list[dict[str, Any]]:
    """Return the pods that others make: namespace, its labels, their labels, who makes them."""
    known = yaml.safe_load(NEIGHBOURS.read_text(encoding="utf-8"))
    for pod in known:
        pod["namespace_labels"] = {"kubernetes.io/metadata.name": pod["namespace"]} | pod.get("namespace_labels", {})
    return list(known)


def matches(selector: Selector, labels: dict[str, str]) -> bool:
    """Say whether a label selector, empty for everything, matches the labels."""
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    for rule in selector.get("matchExpressions", []):
        key, operator, values = rule["key"], rule["operator"], rule.get("values", [])
        held = {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }
        if not held[operator]:
            return False
    return True


def step_labels(items: list[Object]) -> list[dict[str, str]]:
    """Return the labels of the pods that KFP makes of the compiled pipelines' steps."""
    platforms = [item["spec"].get("platformSpec", {}) for item in items if item["kind"] == "PipelineVersion"]
    executors = [
        executor
        for platform in platforms
        for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    ]
    return [executor.get("podMetadata", {}).get("labels", {}) for executor in executors]


def network_policies(items: list[Object]) -> Iterator[str]:
    """Default deny in the namespace; every selector matches a pod; no rule is open to everybody."""
    policies = [item for item in items if item["kind"] == "NetworkPolicy"]
    if not any(_denies_everything(policy["spec"]) for policy in policies):
        yield "NetworkPolicy: nothing denies by default in namespace understudy"
    ours = [("understudy", labels) for labels in (*(pod.labels for pod in templates(items)), *step_labels(items))]
    everyone = [(pod["namespace_labels"], pod["labels"]) for pod in neighbours()]
    everyone += [({"kubernetes.io/metadata.name": namespace}, labels) for namespace, labels in ours]
    in_namespace = [labels for spaces, labels in everyone if spaces["kubernetes.io/metadata.name"] == "understudy"]
    for policy in policies:
        spec, where = policy["spec"], title(policy)
        if not any(matches(spec["podSelector"], labels) for labels in in_namespace):
            yield f"{where}: podSelector {spec['podSelector']} matches no pod"
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(direction, []):
                if not rule.get(side):
                    yield f"{where}: a rule of {direction} without {side!r} is open to everybody"
                for peer in rule.get(side, []):
                    yield from _peer(where, peer, everyone)


def _peer(where: str, peer: dict[str, Any], everyone: list[tuple[dict[str, str], dict[str, str]]]) -> Iterator[str]:
    if "ipBlock" in peer:
        cidr = peer["ipBlock"]["cidr"]
        if cidr.endswith("/0"):
            yield f"{where}: {cidr} is everybody"
        if cidr.startswith("192.0.2."):
            yield f"{where}: {cidr} is the placeholder of apps/base; patch in the addresses of the API servers"
        return
    spaces = peer.get("namespaceSelector", {"matchLabels": {"kubernetes.io/metadata.name": "understudy"}})
    pods = peer.get("podSelector", {})
    if not spaces:
        yield f"{where}: an empty namespaceSelector is everybody"
    if not any(matches(spaces, space) and matches(pods, labels) for space, labels in everyone):
        yield f"{where}: peer {peer} matches no pod, ours or listed in neighbours.yaml"


def _denies_everything(spec: dict[str, Any]) -> bool:
    both = set(spec.get("policyTypes", [])) == {"Ingress", "Egress"}
    return both and not spec["podSelector"] and not spec.get("ingress") and not spec.get("egress")


def reachable_services(items: list[Object]) -> Iterator[str]:
    """A Service with pods has a NetworkPolicy that lets somebody reach its port; otherwise it serves nobody."""
    for service in (item for item in items if item["kind"] == "Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        served = [pod for pod in templates(items) if matches(selector, pod.labels)]
        for port in service["spec"]["ports"]:
            numbers = {port["port"]} | {
                inner["containerPort"]
                for pod in served
                for container in pod.spec["containers"]
                for inner in container.get("ports", [])
                if inner.get("name") == port.get("targetPort")
            }
            allowed = {
                inner["port"]
                for policy in items
                if policy["kind"] == "NetworkPolicy"
                and any(matches(policy["spec"]["podSelector"], pod.labels) for pod in served)
                for rule in policy["spec"].get("ingress", [])
                for inner in rule.get("ports", [])
            }
            if not numbers & allowed:
                yield f"{title(service)}: no NetworkPolicy lets anybody reach port {port['port']}"
