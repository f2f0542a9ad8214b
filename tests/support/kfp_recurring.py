"""Recurring runs in `kfp_api`: "jobs" to its server."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from support.kfp_rows import Request, get, listed, scoped, shown
from support.kfp_rules import INTERNAL, INVALID, Refusal, check_parameters, known_fields, parse_cron
from support.kfp_runs import experiment, reference, source

if TYPE_CHECKING:
    from support.kfp_api import KfpApi, Row

JOB_FIELDS = ("recurring_run_id", "display_name", "created_at", "updated_at", "description")


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
    experiment_id, namespace = experiment(api, body, outer)
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
    } | reference(spec, version)
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
    rows = scoped(api, api.recurring_runs, request, "a recurring run")
    return listed("recurringRuns", rows, request, "recurring_run_id", JOB_FIELDS)


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
