"""The compiled pipeline, as `PipelineVersion`: KFP's own messages, what its pods refer to, CPU steps far from GPUs.

Its pods are made by KFP at run time, so the policies on pod templates do not see them: these look into the spec.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from k8s.checks.cluster import allowed
from k8s.checks.pods import RUNNER, SECRET_NAME, SECRET_VALUE
from k8s.checks.references import Known
from k8s.checks.render import Object, title
from pipelines.compile import PIPELINE_NAME, content_hash
from pipelines.settings import LAUNCH_VARIABLE, PRIORITY_LABEL, QUEUE_LABEL
from understudy.platform.promotion.kubernetes_lease import NAMESPACE as LEASE_VARIABLE

_DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
Step = tuple[str, dict[str, Any], dict[str, Any]]


def compiled_pipelines(items: list[Object]) -> Iterator[str]:
    """Yield what is wrong with every PipelineVersion among the objects of one environment."""
    for version in (item for item in items if item["kind"] == "PipelineVersion"):
        where = title(version)
        found = (
            *protobuf(version),
            *_named_by_content(version, items),
            *cpu_steps(version),
            *_pods(version),
            *_references(version, items),
            *_rights(version, items),
            *_artifacts(version),
        )
        yield from (f"{where}: {problem}" for problem in found)


def protobuf(version: Object) -> Iterator[str]:
    """Parse as KFP does: an unknown field or a wrong type is refused."""
    from google.protobuf.json_format import ParseDict, ParseError
    from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
    from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineDeploymentConfig, PipelineSpec, PlatformSpec

    spec = version["spec"]
    deployment = spec["pipelineSpec"].get("deploymentSpec", {})
    messages = [
        ("pipelineSpec", spec["pipelineSpec"], PipelineSpec),
        ("pipelineSpec.deploymentSpec", deployment, PipelineDeploymentConfig),
        ("platformSpec", spec.get("platformSpec", {}), PlatformSpec),
        *((f"platformSpec of {name}", settings, KubernetesExecutorConfig) for name, _, settings in steps(version)),
    ]
    for name, content, message in messages:
        try:
            ParseDict(content, message())
        except ParseError as error:
            yield f"{name}: {error}"


def steps(version: Object) -> Iterator[Step]:
    """Yield (step as KFP names it, its container, its Kubernetes settings)."""
    spec = version["spec"]
    settings = (
        spec.get("platformSpec", {})
        .get("platforms", {})
        .get("kubernetes", {})
        .get("deploymentSpec", {})
        .get("executors", {})
    )
    for name, executor in spec["pipelineSpec"].get("deploymentSpec", {}).get("executors", {}).items():
        yield name.removeprefix("exec-"), executor["container"], settings.get(name, {})


def cpu_steps(version: Object) -> Iterator[str]:
    """Pods without GPUs: no toleration, no selector, no queue (its flavors are GPU nodes); with GPUs: all of them."""
    for step, container, settings in steps(version):
        labels = settings.get("podMetadata", {}).get("labels", {})
        if "accelerator" in container.get("resources", {}):
            if QUEUE_LABEL not in labels or PRIORITY_LABEL not in labels:
                yield f"{step}: asks for GPUs outside a queue, past all quotas"
            if not settings.get("tolerations"):
                yield f"{step}: asks for GPUs and tolerates no taint"
            continue
        for toleration in settings.get("tolerations", []):
            yield f"{step}: tolerates {toleration.get('key')} and asks for no GPU"
        if "nodeSelector" in settings:
            yield f"{step}: selects nodes {settings['nodeSelector']} and asks for no GPU"
        for label in (QUEUE_LABEL, PRIORITY_LABEL):
            if label in labels:
                yield f"{step}: has label {label} and asks for no GPU"


def _named_by_content(version: Object, items: list[Object]) -> Iterator[str]:
    expected = f"{PIPELINE_NAME}-{content_hash(version['spec'])}"
    if version["metadata"]["name"] != expected:
        yield f"its content is {expected}; KFP lets no version change, so compile it again"
    pipelines = {item["metadata"]["name"] for item in items if item["kind"] == "Pipeline"}
    if version["spec"].get("pipelineName") not in pipelines:
        yield f"pipeline {version['spec'].get('pipelineName')!r} is not among {sorted(pipelines)}"


def _pods(version: Object) -> Iterator[str]:
    for step, container, settings in steps(version):
        security = settings.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or int(security.get("runAsUser", 0)) == 0:
            yield f"{step}: runs as root, or does not say that it does not"
        if not int(settings.get("activeDeadlineSeconds", 0)):
            yield f"{step}: has no deadline"
        if not _DIGEST.fullmatch(container.get("image", "")):
            yield f"{step}: image {container.get('image')} is not pinned by digest"
        resources = container.get("resources", {})
        if "resourceCpuRequest" not in resources or "resourceMemoryRequest" not in resources:
            yield f"{step}: does not request cpu and memory"
        if resources.get("resourceMemoryRequest") != resources.get("resourceMemoryLimit"):
            yield f"{step}: memory request and limit differ"
        for entry in container.get("env", []):
            if SECRET_NAME.search(entry["name"]) or SECRET_VALUE.search(entry.get("value", "")):
                yield f"{step}: {entry['name']} has its value in Git"


def _references(version: Object, items: list[Object]) -> Iterator[str]:
    known = Known(items)
    for step, container, settings in steps(version):
        for kind, name, key in _names(container, settings):
            found = known.missing(kind, name, key)
            if found:
                yield f"{step}: {found}"


def _names(container: dict[str, Any], settings: dict[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    for source in settings.get("configMapAsEnv", []):
        yield from (("ConfigMap", source["configMapName"], entry["configMapKey"]) for entry in source["keyToEnv"])
    for source in settings.get("secretAsEnv", []):
        yield from (("Secret", source["secretName"], entry["secretKey"]) for entry in source["keyToEnv"])
    for entry in settings.get("imagePullSecret", []):
        yield "Secret", entry["secretName"], None
    labels = settings.get("podMetadata", {}).get("labels", {})
    if QUEUE_LABEL in labels:
        yield "LocalQueue", labels[QUEUE_LABEL], None
    if PRIORITY_LABEL in labels:
        yield "WorkloadPriorityClass", labels[PRIORITY_LABEL], None
    launch = _variables(container).get(LAUNCH_VARIABLE)
    if launch:
        given = json.loads(launch)
        yield "ClusterTrainingRuntime", given["runtime"], None
        if "queue" in given:
            yield "LocalQueue", given["queue"], None
            yield "WorkloadPriorityClass", given["priority"], None


def _rights(version: Object, items: list[Object]) -> Iterator[str]:
    """What most pipelines do not need, their environment grants by a component."""
    for step, container, _ in steps(version):
        variables = _variables(container)
        nodes = json.loads(variables.get(LAUNCH_VARIABLE, "{}")).get("nodes", 1)
        if nodes > 1 and not allowed(items, RUNNER, "create", "trainer.kubeflow.org", "trainjobs"):
            yield f"{step}: runs on {nodes} nodes and may start no TrainJob; add the component several-nodes"
        if step == "promote" and LEASE_VARIABLE in variables:
            if not allowed(items, RUNNER, "update", "coordination.k8s.io", "leases"):
                yield f"{step}: takes a Lease and may not; add the component promotion-lease"


def _variables(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container.get("env", [])}


def _artifacts(version: Object) -> Iterator[str]:
    """KFP's launcher downloads every input artifact, whole: steps exchange records (docs/decisions/0007)."""
    for name, component in version["spec"]["pipelineSpec"].get("components", {}).items():
        if component.get("inputDefinitions", {}).get("artifacts"):
            yield f"{name}: takes input artifacts, which KFP downloads before the step starts"
