"""Policies on everything that is not a pod: permissions, cron, queues, training runtimes, the champion, Argo CD."""

from __future__ import annotations

import re
import zoneinfo
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from k8s.checks.pods import ZERO_DIGEST
from k8s.checks.render import Object, title
from understudy.platform.promotion.kubernetes_lease import lease_name
from understudy.platform.promotion.places import open_place, place_uri

_CRON = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_CRON_NAMES: tuple[dict[str, int], ...] = (
    {},
    {},
    {},
    {name: number for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)},
    {name: number for number, name in enumerate("sun mon tue wed thu fri sat".split())},
)
_FORBIDDEN_VERBS = {"*", "escalate", "bind", "impersonate", "deletecollection"}
_FORBIDDEN_RESOURCES = {"*", "pods/exec", "pods/attach", "pods/portforward", "nodes/proxy", "serviceaccounts/token"}
_IMMUTABLE = re.compile(r"s3://[a-z0-9.-]+/[\w./-]+/policy/([0-9a-f]{64})")


def permissions(items: list[Object]) -> Iterator[str]:
    """RBAC without wildcards, without a way to become more, and secrets only by name."""
    for item in items:
        if item["kind"] not in ("Role", "ClusterRole"):
            continue
        for rule in item.get("rules", []):
            verbs, resources = set(rule["verbs"]), set(rule.get("resources", []))
            for bad in sorted(verbs & _FORBIDDEN_VERBS) + sorted(resources & _FORBIDDEN_RESOURCES):
                yield f"{title(item)}: grants {bad!r}"
            if "*" in rule.get("apiGroups", []):
                yield f"{title(item)}: grants every API group"
            if "secrets" in resources and (not rule.get("resourceNames") or verbs - {"get"}):
                yield f"{title(item)}: may do {sorted(verbs)} on secrets; only 'get' on named ones is granted"
            named = rule.get("resourceNames", [])
            if "leases" in resources and verbs != {"create"} and named != (taken := _promotion_leases(items)):
                which = named or "of any name"
                yield f"{title(item)}: may do {sorted(verbs)} on leases {which}; promotions take {taken}"
    for item in items:
        if item["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            if item["roleRef"]["name"] in ("cluster-admin", "admin", "edit"):
                yield f"{title(item)}: binds {item['roleRef']['name']}"
            if any(subject["name"] in ("default", "system:authenticated") for subject in item["subjects"]):
                yield f"{title(item)}: binds an account that many pods share"


def _promotion_leases(items: list[Object]) -> list[str]:
    """Return the names of the Leases that promotions of the served models take in this environment."""
    stores = [
        item["data"]["UNDERSTUDY_STORAGE_URI"] for item in items if item["metadata"]["name"] == "understudy-settings"
    ]
    models = [
        item["metadata"]["annotations"]["understudy.dev/model"] for item in items if item["kind"] == "InferenceService"
    ]
    return [lease_name(open_place(place_uri(store, model)).uri) for store in stores for model in models]


def allowed(items: list[Object], account: str, verb: str, group: str, resource: str) -> bool:
    """Say whether a Role that is bound to the account grants this."""
    roles = {
        item["roleRef"]["name"]
        for item in items
        if item["kind"] == "RoleBinding" and any(subject["name"] == account for subject in item["subjects"])
    }
    return any(
        verb in rule["verbs"] and group in rule["apiGroups"] and resource in rule["resources"]
        for item in items
        if item["kind"] == "Role" and item["metadata"]["name"] in roles
        for rule in item["rules"]
    )


def schedules(items: list[Object]) -> Iterator[str]:
    """CronJobs: valid times in a stated zone, one at a time, ended by a deadline, cleaned up."""
    for item in items:
        if item["kind"] != "CronJob":
            continue
        spec, where = item["spec"], title(item)
        for problem in cron_problems(spec["schedule"]):
            yield f"{where}: schedule {spec['schedule']!r}: {problem}"
        if spec.get("timeZone") not in zoneinfo.available_timezones():
            yield f"{where}: timeZone {spec.get('timeZone')!r} is not one"
        if spec.get("concurrencyPolicy") != "Forbid":
            yield f"{where}: concurrencyPolicy is not Forbid"
        job = spec["jobTemplate"]["spec"]
        for name in ("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"):
            if name not in job:
                yield f"{where}: its jobs have no {name}"


def cron_problems(expression: str) -> Iterator[str]:
    """Yield what is wrong with a five-field cron expression, as Kubernetes reads it (no seconds, no @every)."""
    fields = expression.split()
    if len(fields) != len(_CRON):
        yield f"has {len(fields)} fields, Kubernetes reads {len(_CRON)}"
        return
    for text, (low, high), names in zip(fields, _CRON, _CRON_NAMES, strict=True):
        for part in text.lower().split(","):
            span, _, step = part.partition("/")
            first, dash, last = span.partition("-")
            numbers = [names.get(value, value) for value in ([first, last] if dash else [first]) if value != "*"]
            if not all(str(number).isdecimal() for number in numbers) or (step and not step.isdecimal()):
                yield f"{part!r} is not a number, range or step"
            elif any(not low <= int(number) <= high for number in numbers):
                yield f"{part!r} is outside {low}-{high}"
            elif len(numbers) == 2 and int(numbers[0]) > int(numbers[1]) or step == "0":
                yield f"{part!r} is an empty range"


def queues(items: list[Object]) -> Iterator[str]:
    """Kueue: what may be borrowed exists in the cohort, and a reclaimer is there to get it back."""
    found = {item["metadata"]["name"]: item["spec"] for item in items if item["kind"] == "ClusterQueue"}
    for name, spec in found.items():
        for group in spec["resourceGroups"]:
            for flavor in group["flavors"]:
                covered = [resource["name"] for resource in flavor["resources"]]
                if covered != group["coveredResources"]:
                    yield (
                        f"ClusterQueue/{name}: flavor {flavor['name']} covers {covered}, "
                        f"the group {group['coveredResources']}"
                    )
                for resource in flavor["resources"]:
                    limit = quantity(resource.get("borrowingLimit", "0"))
                    others = sum(
                        _nominal(other, flavor["name"], resource["name"])
                        for key, other in found.items()
                        if key != name and other.get("cohortName") == spec.get("cohortName")
                    )
                    if limit > others:
                        yield (
                            f"ClusterQueue/{name}: may borrow {resource['borrowingLimit']} {resource['name']} of "
                            f"{flavor['name']}, but the rest of its cohort owns less"
                        )
    for item in items:
        if item["kind"] == "WorkloadPriorityClass" and not isinstance(item.get("value"), int):
            yield f"{title(item)}: has no value"


def _nominal(spec: dict[str, Any], flavor: str, resource: str) -> float:
    return sum(
        quantity(entry["nominalQuota"])
        for group in spec["resourceGroups"]
        for candidate in group["flavors"]
        if candidate["name"] == flavor
        for entry in candidate["resources"]
        if entry["name"] == resource
    )


def quantity(text: str | int) -> float:
    """Return a Kubernetes quantity as a number: 500m, 16, 512Gi."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|[kMGTP]i?)?", str(text))
    if not match:
        raise ValueError(f"{text!r} is not a quantity such as 500m, 16 or 512Gi")
    unit = match[2] or ""
    power = "kMGTP".find(unit[0]) + 1 if unit and unit != "m" else 0
    return float(match[1]) * (0.001 if unit == "m" else (1024.0 if unit.endswith("i") else 1000.0) ** power)


def training_runtimes(items: list[Object]) -> Iterator[str]:
    """A crash ends the job within seconds; restarts are counted by the one parameter; time to save on SIGTERM."""
    for item in items:
        if item["kind"] not in ("ClusterTrainingRuntime", "TrainingRuntime"):
            continue
        spec, where = item["spec"]["template"]["spec"], title(item)
        restarts = spec.get("failurePolicy", {}).get("maxRestarts")
        parameters = [other for other in items if other["metadata"]["name"] == "understudy-runtime-parameters"]
        stated = parameters[0]["data"]["maxRestarts"] if parameters else None
        if not isinstance(restarts, int) or str(restarts) != stated:
            yield f"{where}: maxRestarts is {restarts!r}, understudy-runtime-parameters says {stated!r}"
        for job in spec["replicatedJobs"]:
            inner = job["template"]["spec"]
            pod = inner["template"]["spec"]
            if inner.get("backoffLimit") != 0:
                yield f"{where}: backoffLimit is {inner.get('backoffLimit')!r}, so a crash is retried"
            if pod.get("restartPolicy") != "Never":
                yield f"{where}: restartPolicy is {pod.get('restartPolicy')!r}, so a crash restarts for ever"
            if pod.get("terminationGracePeriodSeconds", 30) < 120:
                yield f"{where}: terminationGracePeriodSeconds leaves no time to save"


def champion(items: list[Object]) -> Iterator[str]:
    """What is served is content named by its digest, and a placeholder is not served."""
    for item in items:
        if item["kind"] != "InferenceService":
            continue
        uri = item["spec"]["predictor"]["model"]["storageUri"]
        match = _IMMUTABLE.fullmatch(uri)
        if not match:
            yield f"{title(item)}: storageUri {uri} is not s3://…/policy/<sha256>; an alias or a folder could change"
        stopped = item["metadata"].get("annotations", {}).get("serving.kserve.io/stop") == "true"
        if match and ZERO_DIGEST.endswith(match[1]) and not stopped:
            yield f'{title(item)}: has no champion yet, so the annotation serving.kserve.io/stop must be "true"'


def argo(items: list[Object], root: Path) -> Iterator[str]:
    """The project allows every kind that is rendered, paths exist, and each wave has a step that waits for it."""
    projects = {item["metadata"]["name"]: item["spec"] for item in items if item["kind"] == "AppProject"}
    for project in projects.values():
        allowed = {
            (entry["group"], entry["kind"])
            for name in ("clusterResourceWhitelist", "namespaceResourceWhitelist")
            for entry in project[name]
        }
        if any("*" in entry for entry in allowed):
            yield "AppProject: allows every kind"
        for item in items:
            key = (item["apiVersion"].rpartition("/")[0], item["kind"])
            if item["metadata"].get("namespace") != "argocd" and key not in allowed:
                yield f"AppProject: does not allow {key[1]}.{key[0]}, which {title(item)} is"
    for item in items:
        if item["kind"] == "ApplicationSet":
            yield from _application_set(item, root)


def _application_set(item: Object, root: Path) -> Iterator[str]:
    elements = item["spec"]["generators"][0]["list"]["elements"]
    steps = item["spec"]["strategy"]["rollingSync"]["steps"]
    waited = [value for step in steps for rule in step["matchExpressions"] for value in rule["values"]]
    if waited != sorted({element["wave"] for element in elements}):
        yield f"{title(item)}: waits for waves {waited}, its applications are in {[e['wave'] for e in elements]}"
    for element in elements:
        if not (root / element["path"]).is_dir():
            yield f"{title(item)}: path {element['path']} does not exist"
    options = item["spec"]["template"]["spec"]["syncPolicy"]["syncOptions"]
    if "ServerSideApply=true" not in options:
        yield f"{title(item)}: without ServerSideApply a compiled pipeline exceeds the last-applied annotation"
