"""What a TrainJob needs to exist, looked at before it is created: a missing queue is no error to Kubernetes.

A job in a queue that does not exist waits for ever, and one whose runtime restarts a crashing container in place
holds its GPUs for ever (both recorded from a real cluster); so both are refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from understudy.config.platform import LaunchSettings
from understudy.errors import ConfigError
from understudy.platform.trainjob.cluster import Cluster, Object
from understudy.platform.trainjob.job import CONTAINER


def check(cluster: Cluster, settings: LaunchSettings) -> None:
    """Raise ConfigError with everything that keeps a TrainJob with these settings from running."""
    problems = [
        *_queue_problems(cluster.local_queue(settings.queue), settings),
        *_priority_problems(cluster.priority_class(settings.priority), settings),
        *_runtime_problems(cluster.runtime(settings.runtime), settings),
    ]
    if problems:
        raise ConfigError(
            f"Step {settings.step} cannot run on {settings.nodes} nodes in namespace {settings.namespace}: "
            + "; ".join(problems)
        )


def _queue_problems(queue: Object | None, settings: LaunchSettings) -> Iterator[str]:
    if queue is None:
        yield (
            f"LocalQueue {settings.queue!r} does not exist, and a job in it would wait for ever: correct "
            "platform.scheduled.local_queue (or adhoc), or apply k8s/apps/base/platform/local-queues.yaml"
        )
        return
    for condition in queue.get("status", {}).get("conditions", []):
        missing = condition.get("reason") == "ClusterQueueDoesNotExist"
        if condition["type"] == "Active" and condition["status"] == "False" and missing:
            yield f"LocalQueue {settings.queue!r}: {condition.get('message')} (k8s/infrastructure/queues)"


def _priority_problems(priority: Object | None, settings: LaunchSettings) -> Iterator[str]:
    if priority is None:
        yield (
            f"WorkloadPriorityClass {settings.priority!r} does not exist: correct platform.scheduled.priority_class "
            "(or adhoc), or apply k8s/infrastructure/queues/priorities.yaml"
        )


def _runtime_problems(runtime: Object | None, settings: LaunchSettings) -> Iterator[str]:
    name = f"ClusterTrainingRuntime {settings.runtime!r}"
    where = f"k8s/infrastructure/runtimes and platform.steps.{settings.step}.runtime"
    if runtime is None:
        yield f"{name} does not exist: see {where}"
        return
    spec = runtime["spec"]["template"]["spec"]
    jobs = [job["template"]["spec"] for job in spec.get("replicatedJobs", []) if job["name"] == CONTAINER]
    if not jobs:
        yield f"{name} has no job named {CONTAINER!r}: see {where}"
        return
    job, pod = jobs[0], jobs[0]["template"]["spec"]
    restarts, policy = job.get("backoffLimit", 6), pod.get("restartPolicy", "OnFailure")
    if (restarts, policy) != (0, "Never"):
        yield (
            f"{name} has backoffLimit {restarts} and restartPolicy {policy}, so a crashing training would be started "
            f"again in place and hold its GPUs: they must be 0 and Never ({where})"
        )
    max_restarts = spec.get("failurePolicy", {}).get("maxRestarts", 0)
    if max_restarts != settings.max_restarts:
        yield (
            f"{name} restarts a failed job {max_restarts} times, platform.max_restarts says {settings.max_restarts}: "
            "a TrainJob cannot override it, so make them equal (k8s/infrastructure/runtimes/parameters.yaml)"
        )
    shared_memory = _shared_memory(pod)
    if shared_memory != settings.shared_memory:
        yield (
            f"{name} gives {shared_memory} of shared memory, platform.steps.{settings.step}.shared_memory says "
            f"{settings.shared_memory}: make them equal ({where})"
        )


def _shared_memory(pod: Any) -> str | None:
    memory = [item["emptyDir"] for item in pod.get("volumes", []) if item.get("emptyDir", {}).get("medium") == "Memory"]
    return str(memory[0].get("sizeLimit")) if memory else None
