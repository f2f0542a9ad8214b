"""Violations in the compiled pipeline: name → (how to break an environment's objects, what the check then says)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pipelines.settings import QUEUE_LABEL

Items = list[dict[str, Any]]


def version(items: Items) -> dict[str, Any]:
    """Return the compiled pipeline among the objects."""
    (found,) = (item for item in items if item["kind"] == "PipelineVersion")
    return found


def settings(items: Items, step: str) -> dict[str, Any]:
    """Return the Kubernetes settings of a step."""
    platforms = version(items)["spec"]["platformSpec"]["platforms"]
    found: dict[str, Any] = platforms["kubernetes"]["deploymentSpec"]["executors"][f"exec-{step}"]
    return found


def container(items: Items, step: str) -> dict[str, Any]:
    """Return the container of a step."""
    executors = version(items)["spec"]["pipelineSpec"]["deploymentSpec"]["executors"]
    found: dict[str, Any] = executors[f"exec-{step}"]["container"]
    return found


def labels(items: Items, step: str) -> dict[str, str]:
    """Return the labels of a step's pod."""
    found: dict[str, str] = settings(items, step)["podMetadata"]["labels"]
    return found


PIPELINES: dict[str, tuple[Callable[[Items], Any], str]] = {
    "cpu_step_that_tolerates_gpus": (
        lambda i: settings(i, "ingest").update(tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}]),
        "ingest: tolerates nvidia.com/gpu and asks for no GPU",
    ),
    "cpu_step_in_a_queue_of_gpus": (
        lambda i: labels(i, "ingest").update({QUEUE_LABEL: "scheduled"}),
        "ingest: has label kueue.x-k8s.io/queue-name",
    ),
    "cpu_step_that_selects_nodes": (
        lambda i: settings(i, "notify").update(nodeSelector={"labels": {"a": "b"}}),
        "notify: selects nodes",
    ),
    "gpu_step_outside_a_queue": (
        lambda i: labels(i, "align").pop(QUEUE_LABEL),
        "align: asks for GPUs outside a queue",
    ),
    "gpu_step_without_toleration": (
        lambda i: settings(i, "align").pop("tolerations"),
        "align: asks for GPUs and tolerates no taint",
    ),
    "step_in_an_unknown_queue": (
        lambda i: labels(i, "align").update({QUEUE_LABEL: "fast"}),
        "names LocalQueue 'fast', which does not exist",
    ),
    "step_with_an_unknown_secret": (
        lambda i: settings(i, "sft")["secretAsEnv"][0].update(secretName="typo"),
        "names Secret 'typo', which does not exist",
    ),
    "step_with_an_unknown_key": (
        lambda i: settings(i, "sft")["configMapAsEnv"][0]["keyToEnv"][0].update(configMapKey="MLFLOW_URI"),
        "names key 'MLFLOW_URI' of ConfigMap 'understudy-settings'",
    ),
    "step_as_root": (
        lambda i: settings(i, "sft")["securityContext"].update(runAsUser="0"),
        "sft: runs as root",
    ),
    "step_without_deadline": (
        lambda i: settings(i, "sft").pop("activeDeadlineSeconds"),
        "sft: has no deadline",
    ),
    "step_with_a_tag": (
        lambda i: container(i, "sft").update(image="a/python:1"),
        "sft: image a/python:1 is not pinned",
    ),
    "step_without_requests": (
        lambda i: container(i, "sft")["resources"].pop("resourceCpuRequest"),
        "sft: does not request cpu and memory",
    ),
    "step_with_burstable_memory": (
        lambda i: container(i, "sft")["resources"].update(resourceMemoryLimit="999Gi"),
        "sft: memory request and limit differ",
    ),
    "step_with_a_literal_secret": (
        lambda i: container(i, "sft")["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        "sft: AWS_SECRET_ACCESS_KEY has its value",
    ),
    "step_with_an_unknown_runtime": (
        lambda i: next(e for e in container(i, "sft")["env"] if e["name"] == "UNDERSTUDY_LAUNCH").update(
            value=json.dumps({"runtime": "typo", "max_restarts": 1})
        ),
        "names ClusterTrainingRuntime 'typo'",
    ),
    "nodes_that_nobody_may_start": (
        lambda i: next(e for e in container(i, "sft")["env"] if e["name"] == "UNDERSTUDY_LAUNCH").update(
            value=json.dumps({"runtime": "understudy-sft", "nodes": 4})
        ),
        "sft: runs on 4 nodes and may start no TrainJob; add the component several-nodes",
    ),
    "lease_that_nobody_may_take": (
        lambda i: container(i, "promote")["env"].append({"name": "UNDERSTUDY_LEASE_NAMESPACE", "value": "understudy"}),
        "promote: takes a Lease and may not; add the component promotion-lease",
    ),
    "content_that_travels_through_kfp": (
        lambda i: version(i)["spec"]["pipelineSpec"]["components"]["comp-sft"]["inputDefinitions"].update(
            artifacts={"a": {"artifactType": {"schemaTitle": "system.Model", "schemaVersion": "0.0.1"}}}
        ),
        "comp-sft: takes input artifacts",
    ),
    "field_that_kfp_does_not_know": (
        lambda i: version(i)["spec"]["pipelineSpec"].update(retries=1),
        "pipelineSpec: ",
    ),
    "setting_that_kfp_does_not_know": (
        lambda i: settings(i, "sft").update(readOnlyRootFilesystem=True),
        "platformSpec of ",
    ),
    "version_that_is_not_its_content": (
        lambda i: version(i)["metadata"].update(name="understudy-retrain-000000000000"),
        "its content is understudy-retrain-",
    ),
    "version_of_an_unknown_pipeline": (
        lambda i: version(i)["spec"].update(pipelineName="typo"),
        "pipeline 'typo' is not among ['understudy-retrain']",
    ),
}
