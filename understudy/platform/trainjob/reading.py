"""What a TrainJob, its Workload and its pods say, in the words of a person.

There is no condition Running: under a queue a job is Suspended=True until admitted and again when it is preempted,
without a queue it has no condition at all; Complete=True or Failed=True is the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = Mapping[str, Any]
# A container that waits for one of these reasons will not start by waiting, if it lasts.
_STUCK_REASONS = {
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
}


@dataclass(frozen=True)
class End:
    """How a TrainJob ended."""

    complete: bool
    reason: str
    message: str


def end_of(job: Object) -> End | None:
    """Return how the job ended; None as long as it has not."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return End(condition["type"] == "Complete", condition.get("reason", ""), condition.get("message", ""))
    return None


def is_suspended(job: Object) -> bool:
    """Whether the job waits for admission, for the first time or again."""
    return bool(job["spec"].get("suspend"))


@dataclass(frozen=True)
class Waiting:
    """Why a job is not admitted; `hopeless` when waiting cannot help."""

    why: str
    hopeless: bool


def why_waiting(workload: Object | None) -> Waiting:
    """Return why Kueue has not admitted a job, from its Workload."""
    if workload is None:
        return Waiting("Kueue has not looked at the job yet", hopeless=False)
    if workload.get("spec", {}).get("active") is False:
        return Waiting("its Workload was deactivated (spec.active is false), and Kueue leaves it alone", hopeless=True)
    conditions = {item["type"]: item for item in workload.get("status", {}).get("conditions", [])}
    reserved, evicted = conditions.get("QuotaReserved", {}), conditions.get("Evicted", {})
    if reserved.get("reason") == "Misconfigured":
        return Waiting(str(reserved.get("message", "Misconfigured")), hopeless=True)
    if not reserved or reserved["status"] == "True":
        why = "quota is reserved, the pods are about to be made"
    else:
        why = f"{reserved.get('reason', 'no quota')}: {reserved.get('message', 'no message')}"
    if evicted.get("status") == "True":
        why = f"evicted ({evicted.get('reason', '')}), it resumes from its checkpoint once admitted again; {why}"
    return Waiting(why, hopeless=False)


def stuck(pods: Sequence[Object]) -> str | None:
    """Say what keeps a container from starting, if it is more than time; None when all is well."""
    for pod in pods:
        for container in _containers(pod):
            waiting = container.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in _STUCK_REASONS:
                return f"{pod['metadata']['name']}: {waiting['reason']}, {waiting.get('message', 'no message')}"
    return None


def unschedulable(pods: Sequence[Object]) -> str | None:
    """Say why the scheduler finds no node for a pod, although there is quota."""
    for pod in pods:
        for condition in pod.get("status", {}).get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"{pod['metadata']['name']}: {condition.get('message', 'not scheduled')}"
    return None


def crashed_in_place(pods: Sequence[Object]) -> str | None:
    """Return the name of a pod whose container ended and was started again, which our runtimes exclude."""
    for pod in pods:
        if any(container.get("restartCount", 0) > 0 for container in _containers(pod)):
            return str(pod["metadata"]["name"])
    return None


def failed_pods(pods: Sequence[Object]) -> list[Object]:
    """Return the pods whose container failed, the one that failed first at the head."""
    found = []
    for pod in pods:
        for container in _containers(pod):
            ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
            if ended and ended["exitCode"] != 0:
                # Who is told to end because another failed has 143, and is not the cause.
                found.append((ended["exitCode"] == 143, ended.get("finishedAt") or "", pod))
    return [pod for _, _, pod in sorted(found, key=lambda item: item[:2])]


def leader(pods: Sequence[Object]) -> Object | None:
    """Return the newest pod of the first node, once its container has started; it runs process 0, which reports."""
    first = [
        pod
        for pod in pods
        if pod["metadata"].get("labels", {}).get("batch.kubernetes.io/job-completion-index", "0") == "0"
        and any(set(container.get("state", {})) & {"running", "terminated"} for container in _containers(pod))
    ]
    return max(first, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), default=None)


def _containers(pod: Object) -> list[Object]:
    statuses: list[Object] = pod.get("status", {}).get("containerStatuses") or []
    return statuses
