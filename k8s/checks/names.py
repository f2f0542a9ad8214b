"""Names and labels that a server takes, and queues that a job's labels name: Kueue refuses neither."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from k8s.checks.pods import templates
from k8s.checks.references import Known
from k8s.checks.render import Object, title

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
# Their names become host names or label values.
_LABEL_KINDS = {"Service", "Namespace", "LocalQueue", "TrainJob", "StatefulSet", "Job", "InferenceService"}
_MAX_CRON_JOB_NAME = 52  # the controller appends eleven characters to make a Job's
QUEUE, PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


def names(items: list[Object]) -> Iterator[str]:
    """Names are DNS names of the length their kind allows, values of labels are labels."""
    for item in items:
        name, kind = str(item["metadata"]["name"]), item["kind"]
        longest = 63 if kind in _LABEL_KINDS else _MAX_CRON_JOB_NAME if kind == "CronJob" else 253
        rule = _LABEL if kind in _LABEL_KINDS else _SUBDOMAIN
        # Roles alone may have colons and upper case: Kubernetes' own have.
        if len(name) > longest or not (rule.fullmatch(name) or kind.endswith(("Role", "RoleBinding"))):
            yield f"{title(item)}: is no name for a {kind}: at most {longest} lower-case letters, digits and hyphens"
        yield from (f"{title(item)}: {problem}" for problem in _labels(item["metadata"].get("labels", {})))
    for pod in templates(items):
        yield from (f"{pod.where}: {problem}" for problem in _labels(pod.labels))


def queue_labels(items: list[Object]) -> Iterator[str]:
    """Every queue, priority and runtime that a job names exists: in a queue that does not, it waits for ever."""
    known = Known(items)
    labelled = [(title(item), item["metadata"].get("labels", {})) for item in items]
    labelled += [(pod.where, pod.labels) for pod in templates(items)]
    for where, labels in labelled:
        for kind, label in (("LocalQueue", QUEUE), ("WorkloadPriorityClass", PRIORITY)):
            if label in labels and (missing := known.missing(kind, labels[label])):
                yield f"{where}: {missing}"
    for item in items:
        if item["kind"] == "TrainJob":
            reference = item["spec"]["runtimeRef"]
            kind = reference.get("kind", "ClusterTrainingRuntime")
            if missing := known.missing(kind, reference["name"]):
                yield f"{title(item)}: {missing}"


def _labels(labels: dict[str, Any]) -> Iterator[str]:
    for key, value in labels.items():
        if not isinstance(value, str) or len(value) > 63 or not _VALUE.fullmatch(value):
            yield f"label {key}: {value!r} is no value: at most 63 letters, digits, dots, hyphens, as text"
