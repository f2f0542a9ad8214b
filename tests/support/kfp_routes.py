"""What each path of `kfp_api` does; the rules are KFP's, and so are the words of most refusals."""

from __future__ import annotations

import base64
import uuid
from email import message_from_bytes
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from support.kfp_rules import (
    DENIED,
    EXISTS,
    INTERNAL,
    INVALID,
    NOT_FOUND,
    Refusal,
    check_parameters,
    known_fields,
    page,
    parse_cron,
)

if TYPE_CHECKING:
    from support.kfp_api import KfpApi, Row

PIPELINE_FIELDS = ("pipeline_id", "name", "display_name", "created_at", "description", "namespace")
VERSION_FIELDS = ("pipeline_version_id", "name", "display_name", "created_at", "description")
EXPERIMENT_FIELDS = ("experiment_id", "display_name", "created_at", "last_run_created_at", "namespace", "storage_state")
JOB_FIELDS = ("recurring_run_id", "display_name", "created_at", "updated_at", "description")
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


class Request(NamedTuple):
    """What came with the path."""

    query: dict[str, str]
    body: Any
    content_type: str


def find(rows: dict[str, Row], **wanted: str) -> Row | None:
    """Return the row that has all the wanted values."""
    return next((row for row in rows.values() if all(row.get(key) == value for key, value in wanted.items())), None)


def get(rows: dict[str, Row], kind: str, key: str, *outer: str) -> Row:
    """Return a row by id, or refuse with 404."""
    if key not in rows:
        raise Refusal(NOT_FOUND, f"{kind} {key} not found", *outer)
    return rows[key]


def authorize(api: KfpApi, namespace: str, what: str) -> str:
    """Return the namespace if the caller may use it."""
    if not api.multi_user:
        return namespace or "kubeflow"
    if not namespace:
        raise Refusal(INVALID, f"{what} cannot have an empty namespace in multi-user mode")
    if namespace in api.forbidden or namespace not in api.namespaces:
        message = f"User 'understudy' is not authorized with reason:  (request: {what} in namespace {namespace})"
        raise Refusal(DENIED, message, "Failed to authorize with API")
    return namespace


def shown(row: Row, *hidden: str) -> Row:
    """Return what the API shows: no internal fields, nothing empty (`EmitUnpopulated: false`)."""
    return {name: value for name, value in row.items() if name not in hidden and value not in (None, "", False, [], {})}


def healthz(api: KfpApi, _: Request) -> Row:
    return {"commit_sha": "stub", "tag_name": "2.17.0", "multi_user": api.multi_user, "pipeline_store": "kubernetes"}


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
    return _listed("experiments", rows, request, "experiment_id", EXPERIMENT_FIELDS)


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
    return _listed("pipelines", rows, request, "pipeline_id", PIPELINE_FIELDS)


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
    return _listed("pipeline_versions", rows, request, "pipeline_version_id", VERSION_FIELDS, "namespace")


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


def _experiment(api: KfpApi, body: Row, outer: str) -> tuple[str, str]:
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
    experiment_id, namespace = _experiment(api, body, "Failed to create a run")
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
    } | _reference(spec, version)
    api.runs[run_id] = row
    api.experiments[experiment_id]["last_run_created_at"] = now
    return row


def _reference(spec: Row, version: Row | None) -> Row:
    if version is None:
        return {"pipeline_spec": spec}
    return {"pipeline_version_reference": {key: version[key] for key in ("pipeline_id", "pipeline_version_id")}}


def list_runs(api: KfpApi, request: Request) -> Row:
    rows = _scoped(api, api.runs, request, "a run")
    return _listed("runs", rows, request, "run_id", RUN_FIELDS, "namespace")


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


def create_job(api: KfpApi, request: Request) -> Row:
    body = request.body
    known_fields("V2beta1RecurringRun", body)
    outer = "Failed to create a recurring run"
    if not body.get("display_name"):
        message = "Recurring run's name cannot be empty"
        raise Refusal(INTERNAL, "Internal Server Error", f"{outer} due to conversion error", message)
    mode = body.get("mode", "MODE_UNSPECIFIED")
    if mode not in ("ENABLE", "DISABLE", "MODE_UNSPECIFIED"):
        raise Refusal(INVALID, f'invalid value for enum field mode: "{mode}"')
    _check_schedule(body, f"{outer} due to conversion error")
    experiment_id, namespace = _experiment(api, body, outer)
    if not body.get("pipeline_version_reference") and not body.get("pipeline_spec"):
        raise Refusal(INTERNAL, "Cannot create a job with an empty pipeline ID", outer)
    spec, version = source(api, body, outer)
    check_parameters(spec, (body.get("runtime_config") or {}).get("parameters") or {})
    now = api.now()
    row = {
        "recurring_run_id": str(uuid.uuid4()),
        "display_name": body["display_name"],
        "description": body.get("description", ""),
        "runtime_config": body.get("runtime_config"),
        "service_account": body.get("service_account") or "pipeline-runner",
        "max_concurrency": str(body["max_concurrency"]),
        "trigger": body.get("trigger"),
        "no_catchup": bool(body.get("no_catchup")),
        "mode": "ENABLE" if mode == "ENABLE" else "DISABLE",
        "status": "ENABLED" if mode == "ENABLE" else "DISABLED",
        "created_at": now,
        "updated_at": now,
        "namespace": namespace,
        "experiment_id": experiment_id,
    } | _reference(spec, version)
    if version is not None and not body["pipeline_version_reference"].get("pipeline_version_id"):
        row["pipeline_version_reference"] = {"pipeline_id": version["pipeline_id"]}  # "always the latest"
    api.recurring_runs[row["recurring_run_id"]] = row
    return shown(row)


def _check_schedule(body: Row, outer: str) -> None:
    concurrency = int(body.get("max_concurrency") or 0)
    if not 1 <= concurrency <= 10:
        message = f"Max concurrency of a recurring run must be at least 1 and at most 10. Received {concurrency}"
        raise Refusal(INVALID, message, outer)
    trigger = body.get("trigger") or {}
    if cron_schedule := trigger.get("cron_schedule"):
        try:
            parse_cron(cron_schedule.get("cron", ""))
        except ValueError as error:
            supported = "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron)"
            raise Refusal(INVALID, f"{supported}. Error: {error}", outer) from error
    if periodic := trigger.get("periodic_schedule"):
        seconds = int(periodic.get("interval_second") or 0)
        if seconds < 1:
            message = f"Found invalid period schedule interval {seconds}. Set at interval to least 1 second"
            raise Refusal(INVALID, message, outer)


def list_jobs(api: KfpApi, request: Request) -> Row:
    rows = _scoped(api, api.recurring_runs, request, "a recurring run")
    return _listed("recurringRuns", rows, request, "recurring_run_id", JOB_FIELDS)


def get_job(api: KfpApi, _: Request, key: str) -> Row:
    return shown(get(api.recurring_runs, "Job", key, "Failed to fetch a recurring run"))


def enable_job(api: KfpApi, _: Request, key: str) -> Row:
    return _set_mode(api, key, "ENABLE")


def disable_job(api: KfpApi, _: Request, key: str) -> Row:
    return _set_mode(api, key, "DISABLE")


def _set_mode(api: KfpApi, key: str, mode: str) -> Row:
    row = get(api.recurring_runs, "Job", key, f"Failed to {mode.lower()} a recurring run")
    row |= {"mode": mode, "status": mode + "D", "updated_at": api.now()}
    return {}


def delete_job(api: KfpApi, request: Request, key: str) -> Row:
    get(api.recurring_runs, "Job", key, f"Failed to delete recurring run {key}. Check if exists")
    policy = request.query.get("propagation_policy", "DELETE_PROPAGATION_POLICY_UNSPECIFIED")
    if policy not in ("DELETE_PROPAGATION_POLICY_UNSPECIFIED", "FOREGROUND", "BACKGROUND", "ORPHAN"):
        raise Refusal(INVALID, f'parsing field "propagation_policy": {policy} is not valid')
    if policy != "ORPHAN":  # the schedule owns the workflows that it started: Kubernetes collects them
        api.deleted_workflows |= {row["run_id"] for row in api.runs.values() if row.get("recurring_run_id") == key}
    del api.recurring_runs[key]
    return {}


def _scoped(api: KfpApi, rows: dict[str, Row], request: Request, what: str) -> list[Row]:
    if experiment_id := request.query.get("experiment_id"):
        get(api.experiments, "Experiment", experiment_id)
        return [row for row in rows.values() if row["experiment_id"] == experiment_id]
    namespace = authorize(api, request.query.get("namespace", ""), what)
    return [row for row in rows.values() if row["namespace"] == namespace]


def _listed(name: str, rows: list[Row], request: Request, key: str, fields: tuple[str, ...], *hidden: str) -> Row:
    chosen, total, token = page(rows, request.query, key, fields)
    result = {name: [shown(row, *hidden) for row in chosen], "total_size": total, "next_page_token": token}
    return shown(result)


V2 = "/apis/v2beta1"
ID = "([^/:]+)"
ROUTES = [
    ("GET", f"{V2}/healthz", healthz),
    ("GET", f"{V2}/experiments", list_experiments),
    ("POST", f"{V2}/experiments", create_experiment),
    ("GET", f"{V2}/experiments/{ID}", get_experiment),
    ("GET", f"{V2}/pipelines", list_pipelines),
    ("POST", f"{V2}/pipelines/upload", upload_pipeline),
    ("POST", f"{V2}/pipelines/upload_version", upload_version),
    ("GET", f"{V2}/pipelines/names/{ID}", get_pipeline_by_name),
    ("GET", f"{V2}/pipelines/{ID}", get_pipeline),
    ("GET", f"{V2}/pipelines/{ID}/versions", list_versions),
    ("GET", f"{V2}/pipelines/{ID}/versions/{ID}", get_version),
    ("DELETE", f"{V2}/pipelines/{ID}/versions/{ID}", delete_version),
    ("GET", f"{V2}/recurringruns", list_jobs),
    ("POST", f"{V2}/recurringruns", create_job),
    ("GET", f"{V2}/recurringruns/{ID}", get_job),
    ("DELETE", f"{V2}/recurringruns/{ID}", delete_job),
    ("POST", f"{V2}/recurringruns/{ID}:enable", enable_job),
    ("POST", f"{V2}/recurringruns/{ID}:disable", disable_job),
    ("GET", f"{V2}/runs", list_runs),
    ("POST", f"{V2}/runs", post_run),
    ("GET", f"{V2}/runs/{ID}", get_run),
    ("DELETE", f"{V2}/runs/{ID}", delete_run),
    ("POST", f"{V2}/runs/{ID}:terminate", terminate_run),
    ("GET", f"{V2}/runs/{ID}/nodes/{ID}/artifacts/{ID}:read", read_artifact),
    ("GET", f"/apis/v1alpha1/runs/{ID}/nodes/{ID}/log", read_log),
]
