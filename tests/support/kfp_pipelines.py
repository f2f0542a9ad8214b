"""Experiments, pipelines and their versions in `kfp_api`; the rules are KFP's, and so are most words."""

from __future__ import annotations

import uuid
from email import message_from_bytes
from typing import TYPE_CHECKING

import yaml
from support.kfp_rows import Request, authorize, find, get, listed, shown
from support.kfp_rules import EXISTS, INTERNAL, INVALID, NOT_FOUND, Refusal, known_fields

if TYPE_CHECKING:
    from support.kfp_api import KfpApi, Row

PIPELINE_FIELDS = ("pipeline_id", "name", "display_name", "created_at", "description", "namespace")
VERSION_FIELDS = ("pipeline_version_id", "name", "display_name", "created_at", "description")
EXPERIMENT_FIELDS = ("experiment_id", "display_name", "created_at", "last_run_created_at", "namespace", "storage_state")


def create_experiment(api: KfpApi, request: Request) -> Row:
    body = request.body
    known_fields("V2beta1Experiment", body)
    name = body.get("display_name", "")
    if not name:
        raise Refusal(INTERNAL, "Internal Server Error", "Experiment must have a non-empty name")
    if len(name) > 128:
        raise Refusal(INTERNAL, "Internal Server Error", "Experiment.Name length cannot exceed 128")
    namespace = authorize(api, body.get("namespace", ""), "An experiment")
    if find(api.experiments, display_name=name, namespace=namespace):
        message = f"Failed to create a new experiment. The name {name} already exists. Please specify a new name"
        raise Refusal(EXISTS, message, "Failed to create an experiment")
    row = {
        "experiment_id": str(uuid.uuid4()),
        "display_name": name,
        "description": body.get("description", ""),
        "namespace": namespace,
        "created_at": api.now(),
        "last_run_created_at": "1970-01-01T00:00:00Z",
        "storage_state": "AVAILABLE",
    }
    api.experiments[row["experiment_id"]] = row
    return shown(row)


def list_experiments(api: KfpApi, request: Request) -> Row:
    namespace = authorize(api, request.query.get("namespace", ""), "An experiment")
    rows = [row for row in api.experiments.values() if row["namespace"] == namespace]
    return listed("experiments", rows, request, "experiment_id", EXPERIMENT_FIELDS)


def get_experiment(api: KfpApi, _: Request, key: str) -> Row:
    return shown(get(api.experiments, "Experiment", key))


def create_pipeline(api: KfpApi, name: str, display_name: str, namespace: str) -> Row:
    if find(api.pipelines, name=name, namespace=namespace):
        message = f"Failed to create a new pipeline. The name {name} already exists. Please specify a new name"
        raise Refusal(EXISTS, message)
    row = {"pipeline_id": str(uuid.uuid4()), "name": name, "display_name": display_name, "namespace": namespace}
    api.pipelines[row["pipeline_id"]] = row | {"created_at": api.now()}
    return api.pipelines[row["pipeline_id"]]


def create_version(api: KfpApi, pipeline: Row, name: str, spec: Row) -> Row:
    if find(api.versions, name=name, namespace=pipeline["namespace"]):
        message = f"Failed to create a new pipeline version. The name {name} already exists. Please specify a new name"
        raise Refusal(EXISTS, message)
    row = {
        "pipeline_id": pipeline["pipeline_id"],
        "pipeline_version_id": str(uuid.uuid4()),
        "name": name,
        "display_name": name,
        "namespace": pipeline["namespace"],
        "created_at": api.now(),
        "pipeline_spec": spec,
    }
    api.versions[row["pipeline_version_id"]] = row
    return row


def list_pipelines(api: KfpApi, request: Request) -> Row:
    namespace = authorize(api, request.query.get("namespace", ""), "A pipeline")
    rows = [row for row in api.pipelines.values() if row["namespace"] == namespace]
    return listed("pipelines", rows, request, "pipeline_id", PIPELINE_FIELDS)


def get_pipeline(api: KfpApi, _: Request, key: str) -> Row:
    return shown(get(api.pipelines, "Pipeline", key))


def get_pipeline_by_name(api: KfpApi, request: Request, name: str) -> Row:
    namespace = authorize(api, request.query.get("namespace", ""), "A pipeline")
    row = find(api.pipelines, name=name, namespace=namespace)
    if row is None:
        raise Refusal(NOT_FOUND, f"Namespace/Pipeline {namespace}/{name} not found")
    return shown(row)


def list_versions(api: KfpApi, request: Request, pipeline_id: str) -> Row:
    get(api.pipelines, "Pipeline", pipeline_id, "Failed to list pipeline versions")
    rows = [row for row in api.versions.values() if row["pipeline_id"] == pipeline_id]
    return listed("pipeline_versions", rows, request, "pipeline_version_id", VERSION_FIELDS, "namespace")


def get_version(api: KfpApi, _: Request, _pipeline_id: str, key: str) -> Row:
    return shown(get(api.versions, "PipelineVersion", key), "namespace")


def delete_version(api: KfpApi, _: Request, _pipeline_id: str, key: str) -> Row:
    get(api.versions, "PipelineVersion", key)
    del api.versions[key]
    return {}


def upload_pipeline(api: KfpApi, request: Request) -> Row:
    spec = _uploaded(request)
    name = request.query.get("name") or spec["pipeline_spec"]["pipelineInfo"]["name"]
    namespace = authorize(api, request.query.get("namespace", ""), "A pipeline")
    row = create_pipeline(api, name, request.query.get("display_name", name), namespace)
    create_version(api, row, name, spec)
    return shown(row)


def upload_version(api: KfpApi, request: Request) -> Row:
    parent = get(api.pipelines, "Pipeline", request.query.get("pipelineid", ""))
    name = request.query.get("name") or f"{parent['name']}-{len(api.versions)}"
    return shown(create_version(api, parent, name, _uploaded(request)), "namespace")


def _uploaded(request: Request) -> Row:
    header = f"Content-Type: {request.content_type}\r\n\r\n".encode()
    part = message_from_bytes(header + request.body).get_payload(0)
    documents = [document for document in yaml.safe_load_all(part.get_payload(decode=True)) if document]  # type: ignore[union-attr,arg-type]
    if not documents or "root" not in documents[0]:
        raise Refusal(INVALID, "Failed to create a pipeline: unknown template format: pipeline spec is invalid")
    return {"pipeline_spec": documents[0]} | ({"platform_spec": documents[1]} if len(documents) > 1 else {})
