"""The TrainJob object of one launch: its name, where it queues, what its pods run and know."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from understudy.platform.launch_request import Request

if TYPE_CHECKING:
    from understudy.config.platform import EnvironmentSource, LaunchSettings

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
CONTAINER = "node"  # name of the job and of the container in the ClusterTrainingRuntimes
MANAGER = "understudy.dev/launcher"
REQUEST_SHA256 = "understudy.dev/request-sha256"
_ALWAYS_PASSED = ("UNDERSTUDY_RUN_ID", "MLFLOW_RUN_ID", "UNDERSTUDY_ACCELERATE", "UNDERSTUDY_GRACE_SECONDS")
_RUN_LETTERS = 20


def job_name(step: str, run_id: str, request: Request) -> str:
    """Return the name that every attempt of this step of this run derives: at most 45 characters, a DNS label.

    The API server takes 63, but pods are host names, too: "-node-0-0" and a suffix come after it.
    """
    digest = hashlib.sha256(f"{run_id}/{step}/{request.sha256}".encode()).hexdigest()[:12]
    run = _slug(run_id)[:_RUN_LETTERS].strip("-")
    return "-".join(part for part in (_slug(step)[:11], run, digest) if part)


def train_job(
    name: str,
    place: str,
    request: Request,
    settings: LaunchSettings,
    owner: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> dict[str, Any]:
    """Return the TrainJob as the API takes it.

    Args:
        name: from `job_name`.
        place: where request and result lie.
        request: what is to be run; its digest stands in an annotation.
        settings: nodes, GPUs, queue, deadline and so on.
        owner: reference to the object with which the job is to be deleted at the latest, the run's workflow.
        environment: this pod's variables, of which the pods of the job get some.
    """
    from kubeflow_trainer_api import models

    step = _slug(settings.step)
    labels = {
        "app.kubernetes.io/name": "understudy",
        "app.kubernetes.io/managed-by": "understudy-launcher",
        "understudy.dev/step": step,
        **settings.labels,
    }
    queue = {"kueue.x-k8s.io/queue-name": settings.queue, "kueue.x-k8s.io/priority-class": settings.priority}
    manifest = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": labels | queue,
            "annotations": {REQUEST_SHA256: request.sha256},
            **({"ownerReferences": [dict(owner)]} if owner else {}),
        },
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": settings.runtime},
            "activeDeadlineSeconds": settings.timeout_seconds,
            "trainer": _trainer(place, settings, environment),
            "runtimePatches": [_patch(labels, settings)],
        },
    }
    # The models of the Kubeflow SDK know each field and its type; what they do not know would be dropped in silence.
    typed: dict[str, Any] = models.TrainerV1alpha1TrainJob.from_dict(manifest).to_dict()
    assert typed == manifest, "a field of the TrainJob is unknown to this version of the Kubeflow SDK"
    return typed


def _trainer(place: str, settings: LaunchSettings, environment: Mapping[str, str]) -> dict[str, Any]:
    amounts = {
        "cpu": settings.cpu,
        "memory": settings.memory,
        "ephemeral-storage": settings.ephemeral_storage,
        settings.gpu_resource: str(settings.gpus_per_node),
    }
    return {
        "image": settings.image,
        "command": ["python", "-m", "understudy.platform.launch"],
        "args": [place],
        "numNodes": settings.nodes,
        "numProcPerNode": settings.gpus_per_node,
        "resourcesPerNode": {"requests": amounts, "limits": dict(amounts)},
        "env": _environment(settings, environment),
    }


def _environment(settings: LaunchSettings, environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """MLflow's and the storage's addresses and keys: by reference where they come from the cluster, never copied."""
    referred = [
        *_references("configMapKeyRef", settings.config_maps),
        *_references("secretKeyRef", settings.secrets),
    ]
    names = {item["name"] for item in referred}
    passed = sorted({*_ALWAYS_PASSED, *settings.env_names} - names)
    return referred + [{"name": name, "value": environment[name]} for name in passed if name in environment]


def _references(kind: str, sources: tuple[EnvironmentSource, ...]) -> list[dict[str, Any]]:
    return [
        {"name": name, "valueFrom": {kind: {"name": source.name, "key": key, "optional": source.optional}}}
        for source in sources
        for key, name in source.keys.items()
    ]


def _patch(labels: Mapping[str, str], settings: LaunchSettings) -> dict[str, Any]:
    pod = {
        "nodeSelector": dict(settings.node_selector),
        "tolerations": [item.model_dump(mode="json", exclude_none=True) for item in settings.tolerations],
    }
    pod = {name: value for name, value in pod.items() if value}
    template = {"metadata": {"labels": dict(labels)}, "spec": pod}
    job = {"name": CONTAINER, "template": {"spec": {"template": template}}}
    return {"manager": MANAGER, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [job]}}}}


def _slug(text: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return slug if not slug or slug[0].isalpha() else f"r{slug}"
