"""Runs in `kfp_api`, their logs and artifacts."""

from __future__ import annotations

import base64
import uuid
from typing import TYPE_CHECKING

from support.kfp_pipelines import create_experiment
from support.kfp_rows import Request, authorize, find, get, listed, scoped, shown
from support.kfp_rules import INTERNAL, INVALID, NOT_FOUND, Refusal, check_parameters, known_fields

if TYPE_CHECKING:
    from support.kfp_api import KfpApi, Row

RUN_FIELDS = (
    "run_id",
    "display_name",
    "created_at",
    "finished_at",
    "description",
    "scheduled_at",
    "storage_state",
    "namespace",
    "experiment_id",
    "state",
    "recurring_run_id",
)
TERMINABLE = ("PENDING", "RUNNING", "PAUSED")


def source(api: KfpApi, body: Row, outer: str) -> tuple[Row, Row | None]:
    """Return the pipeline spec that a run or recurring run names, and the version it comes from."""
    reference = body.get("pipeline_version_reference") or {}
    if version_id := reference.get("pipeline_version_id"):
        if version_id not in api.versions:
            raise Refusal(INTERNAL, "Internal Server Error", outer, f"PipelineVersion {version_id} not found")
        version = api.versions[version_id]
        return version["pipeline_spec"], version
    if reference.get("pipeline_id"):
        get(api.pipelines, "Pipeline", reference["pipeline_id"], outer)
        rows = [row for row in api.versions.values() if row["pipeline_id"] == reference["pipeline_id"]]
        if not rows:
            raise Refusal(NOT_FOUND, "PipelineVersion Latest not found", outer)
        newest = max(rows, key=lambda row: (row["created_at"], row["pipeline_version_id"]))
        return newest["pipeline_spec"], newest
    if not body.get("pipeline_spec"):
        message = "Failed to fetch a template with an empty pipeline spec manifest"
        raise Refusal(INTERNAL, "Internal Server Error", outer, message)
    return body["pipeline_spec"], None


def experiment(api: KfpApi, body: Row, outer: str) -> tuple[str, str]:
    key = body.get("experiment_id", "")
    if not key and api.multi_user:
        raise Refusal(INVALID, "Experiment id can not be empty in multi-user mode", outer)
    if not key:
        default = find(api.experiments, display_name="Default") or create_experiment(
            api, Request({}, {"display_name": "Default"}, "")
        )
        key = default["experiment_id"]
    experiment = get(api.experiments, "Experiment", key, outer, f"Failed to fetch namespace for experiment {key}")
    namespace = experiment["namespace"]
    if body.get("namespace") not in (None, "", namespace):
        message = f"Experiment {key} belongs to namespace '{namespace}' instead of '{body['namespace']}'"
        raise Refusal(INVALID, message, outer)
    return key, authorize(api, namespace, "A run")


def post_run(api: KfpApi, request: Request) -> Row:
    known_fields("V2beta1Run", request.body)
    return shown(create_run(api, request.body), "namespace")


def create_run(api: KfpApi, body: Row) -> Row:
    name, job = body.get("display_name", ""), body.get("recurring_run_id", "")
    if not name:
        raise Refusal(INTERNAL, "Internal Server Error", "Failed to create a run", "Run name cannot be empty")
    experiment_id, namespace = experiment(api, body, "Failed to create a run")
    existing = find(api.runs, recurring_run_id=job, display_name=name) if job else None
    if existing:
        return existing
    if job and job not in api.recurring_runs:
        raise Refusal(INTERNAL, "Internal Server Error", f"RecurringRunId doesn't exist: {job}")
    spec, version = source(api, body, "Failed to create a run due to error fetching manifest")
    parameters = (body.get("runtime_config") or {}).get("parameters") or {}
    check_parameters(spec, parameters)
    now = api.now()
    run_id = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{job}/{name}") if job else uuid.uuid4())
    row = {
        "run_id": run_id,
        "experiment_id": experiment_id,
        "display_name": name,
        "description": body.get("description", ""),
        "storage_state": "AVAILABLE",
        "runtime_config": body.get("runtime_config"),
        "service_account": body.get("service_account") or "pipeline-runner",
        "state": "PENDING",
        "created_at": now,
        "scheduled_at": now,
        "finished_at": "1970-01-01T00:00:00Z",
        "recurring_run_id": job,
        "namespace": namespace,
        "state_history": [{"update_time": now, "state": "PENDING"}],
    } | reference(spec, version)
    api.runs[run_id] = row
    api.experiments[experiment_id]["last_run_created_at"] = now
    return row


def reference(spec: Row, version: Row | None) -> Row:
    if version is None:
        return {"pipeline_spec": spec}
    return {"pipeline_version_reference": {key: version[key] for key in ("pipeline_id", "pipeline_version_id")}}


def list_runs(api: KfpApi, request: Request) -> Row:
    rows = scoped(api, api.runs, request, "a run")
    return listed("runs", rows, request, "run_id", RUN_FIELDS, "namespace")


def get_run(api: KfpApi, _: Request, key: str) -> Row:
    return shown(get(api.runs, "Run", key, "Failed to get a run"), "namespace")


def terminate_run(api: KfpApi, _: Request, key: str) -> Row:
    run = get(api.runs, "Run", key, f"Failed to terminate run {key} due to error fetching the run")
    if run["state"] not in TERMINABLE:
        raise Refusal(INVALID, f"Failed to terminate a run {key}. Row not found", f"Failed to terminate run {key}")
    run["state"] = "CANCELING"
    return {}


def delete_run(api: KfpApi, _: Request, key: str) -> Row:
    get(api.runs, "Run", key)
    del api.runs[key]
    return {}


def read_log(api: KfpApi, _: Request, run_id: str, node_id: str) -> bytes:
    if (run_id, node_id) not in api.logs:
        raise Refusal(INTERNAL, f"Failed to read logs of run {run_id}, node {node_id}: pod not found")
    return api.logs[run_id, node_id].encode()


def read_artifact(api: KfpApi, _: Request, run_id: str, node_id: str, name: str) -> Row:

    if (run_id, node_id, name) not in api.artifacts:
        raise Refusal(NOT_FOUND, f"artifact {name} not found")
    return {"data": base64.b64encode(api.artifacts[run_id, node_id, name]).decode()}
