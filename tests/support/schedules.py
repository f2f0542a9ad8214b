"""A toy pipeline on the KFP stub, and schedules of it: shared by the tests of plan, apply, trigger and enforce."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.kfp_api import KfpApi

from understudy.config import Params
from understudy.platform.schedules import Wanted, work_out
from understudy.platform.schedules_spec import Schedule

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params.yaml"
PIN = "toy-0123456789ab"
OTHER_PIN = "toy-ba9876543210"
SPEC = {
    "pipelineInfo": {"name": "toy"},
    "root": {"dag": {"tasks": {}}, "inputDefinitions": {"parameters": {"config": {"parameterType": "STRUCT"}}}},
}


def manifests(*pins: str) -> list[dict[str, Any]]:
    """Return the toy's Pipeline and a PipelineVersion for each pin."""
    spec = {"pipelineName": "toy", "pipelineSpec": SPEC}
    versions = [{"kind": "PipelineVersion", "metadata": {"name": pin}, "spec": spec} for pin in pins]
    return [{"kind": "Pipeline", "metadata": {"name": "toy"}, "spec": {}}, *versions]


def schedule(name: str = "nightly", **changes: Any) -> Schedule:
    """Return a valid schedule of the toy."""
    values: dict[str, Any] = {
        "name": name,
        "cron": "0 0 3 * * *",
        "pipeline_version": PIN,
        "enabled": True,
        "concurrency": 1,
        "catch_up": False,
        "budget_gpu_hours": 60,
        "environments": ("production",),
        "on_new_data": True,
        "params": {},
    }
    return Schedule.model_validate(values | changes)


def arguments_of(params: Params, digest: str | None = None) -> Mapping[str, Any]:
    """Stand in for `pipelines.arguments`."""
    return {"config": {"seed": params.seed, "source_sha256": digest or "null"}}


def wanted(*schedules: Schedule) -> dict[str, Wanted]:
    """Work schedules out with the toy's arguments."""
    return work_out({item.name: item for item in schedules}, PARAMS, arguments_of)


def enabled(api: KfpApi) -> list[str]:
    """Return the names of the enabled recurring runs, sorted."""
    return sorted(row["display_name"] for row in api.recurring_runs.values() if row["mode"] == "ENABLE")
