"""Compile the DAG for a cluster: KFP's intermediate representation, and `Pipeline` + `PipelineVersion` for GitOps.

Same params, same bytes. A version's name is the hash of all that KFP will not let change afterwards, so applying a
folder twice changes nothing, and a changed pipeline is a new version beside the old one. Checked against
kubeflow/pipelines 2.17.0: apiserver/webhook (immutable fields), apiserver/model/pipeline_tags.go (limits of tags).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.settings import Queue, on_platform
from understudy.config import Params, PlatformConfig
from understudy.config.platform import NO_RELEASE
from understudy.errors import ConfigError

PIPELINE_NAME = "understudy-retrain"
HEADER = "# Written by `understudy pipeline compile`, never by hand.\n"
KUSTOMIZATION = """\
# Argo CD applies this folder as it is (k8s/clusters/*/applicationset.yaml).
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - pipeline.yaml
  - pipeline-version.yaml
"""
# KFP's webhook refuses a version whose pipeline does not exist yet.
PIPELINE_WAVE, VERSION_WAVE = "0", "1"
# A version stays on the cluster when Git has gone on to the next: schedules and roll-backs pin it by name.
KEEP = {"argocd.argoproj.io/sync-options": "Prune=false", "argocd.argoproj.io/compare-options": "IgnoreExtraneous"}
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Compiled:
    """One compiled pipeline: `ir` is KFP's YAML, `pipeline` and `version` are Kubernetes objects."""

    ir: str
    pipeline: Manifest
    version: Manifest


def compile_pipeline(platform: PlatformConfig, queue: Queue = "scheduled") -> Compiled:
    """Compile the DAG with these settings, for reviewed schedules or for a person's ad-hoc runs.

    Raises:
        ConfigError: KFP refuses a setting, in its own words.
    """
    from kfp.compiler import Compiler
    from kfp.compiler.compiler_utils import KubernetesManifestOptions

    from pipelines.retrain import build

    options = KubernetesManifestOptions(
        pipeline_name=PIPELINE_NAME,
        pipeline_version_name=PIPELINE_NAME,
        namespace=platform.namespace,
        include_pipeline_manifest=True,
    )
    try:
        pipeline = build(on_platform(platform, queue), platform.steps.ingest.shards)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"KFP refuses a setting below `platform:`: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        ir, manifests = Path(folder) / "ir.yaml", Path(folder) / "manifests.yaml"
        Compiler().compile(pipeline, str(ir))
        Compiler().compile(
            pipeline, str(manifests), kubernetes_manifest_format=True, kubernetes_manifest_options=options
        )
        head, version = yaml.safe_load_all(manifests.read_text(encoding="utf-8"))
        return Compiled(ir.read_text(encoding="utf-8"), _pipeline(head), _version(version, platform, queue))


def compiled_files(params: Params) -> dict[str, str]:
    """Return the text of every compiled file by its path in `pipelines/compiled/`."""
    compiled = compile_pipeline(params.platform)
    return {
        "retrain.yaml": compiled.ir,
        "kubernetes/kustomization.yaml": HEADER + KUSTOMIZATION,
        "kubernetes/pipeline.yaml": HEADER + yaml.safe_dump(compiled.pipeline, width=120),
        "kubernetes/pipeline-version.yaml": HEADER + yaml.safe_dump(compiled.version, width=120),
    }


def unreleased(platform: PlatformConfig) -> Iterator[str]:
    """Yield what must not reach production: images without a digest, or with the placeholder of zeros."""
    for name, image in (("steps", platform.images.steps), ("train", platform.images.train)):
        if image.endswith(NO_RELEASE):
            yield f"platform.images.{name} is a placeholder: no release has written its digest yet"
        elif "@sha256:" not in image:
            yield f"platform.images.{name} is {image}; a release names its digest (…@sha256:…), because tags move"


def content_hash(spec: Manifest) -> str:
    """Return 12 hex digits of everything in a version's spec that KFP treats as immutable."""
    fixed = {name: value for name, value in spec.items() if name not in ("displayName", "tags")}
    return hashlib.sha256(json.dumps(_whole(fixed), sort_keys=True).encode()).hexdigest()[:12]


def _whole(value: Any) -> Any:
    """Return 8 for 8.0: YAML's writers and Kubernetes do not keep the difference."""
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _pipeline(manifest: Manifest) -> Manifest:
    manifest["metadata"]["annotations"] = {"argocd.argoproj.io/sync-wave": PIPELINE_WAVE, **KEEP}
    manifest["metadata"]["labels"] = {"app.kubernetes.io/name": "understudy", "app.kubernetes.io/part-of": "understudy"}
    manifest["spec"]["tags"] = {"app": "understudy"}
    return manifest


def _version(manifest: Manifest, platform: PlatformConfig, queue: Queue) -> Manifest:
    spec = manifest["spec"]
    spec["codeSourceURL"] = platform.code_source_url
    digest = content_hash(spec)
    name = f"{PIPELINE_NAME}-{digest}"
    manifest["metadata"]["name"] = spec["displayName"] = name
    manifest["metadata"]["annotations"] = {"argocd.argoproj.io/sync-wave": VERSION_WAVE, **KEEP}
    manifest["metadata"]["labels"] = {"app.kubernetes.io/name": "understudy", "app.kubernetes.io/part-of": "understudy"}
    # At most 20 tags, keys without dots, both at most 63 characters.
    spec["tags"] = {
        "app": "understudy",
        "content": digest,
        "kfp": str(spec["pipelineSpec"]["sdkVersion"]),
        "queue": queue,
        "steps-image": _short(platform.images.steps),
        "train-image": _short(platform.images.train),
    }
    return manifest


def _short(image: str) -> str:
    """Return what fits into a tag: the first hex digits of the digest, or the tag."""
    digest = image.partition("@sha256:")[2]
    return digest[:12] if digest else image.rpartition(":")[2][:63]
