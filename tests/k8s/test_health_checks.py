"""Argo CD's health checks, run by a real Lua on objects recorded from real controllers."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from lupa import lua51 as lua  # Argo CD runs them in gopher-lua, which is Lua 5.1
from support.recorded_stories import Role, stories

ROOT = Path(__file__).parents[2]
HEALTH = ROOT / "k8s" / "infrastructure" / "argocd" / "health"
KINDS = {
    "pipelines.kubeflow.org_Pipeline",
    "pipelines.kubeflow.org_PipelineVersion",
    "trainer.kubeflow.org_TrainJob",
    "kueue.x-k8s.io_Workload",
    "kueue.x-k8s.io_ClusterQueue",
    "kueue.x-k8s.io_LocalQueue",
}
Health = Callable[[str, dict[str, Any]], tuple[str, str]]


@pytest.fixture(scope="session")
def settings(rendered: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return next(item for item in rendered["production"] if item["metadata"]["name"] == "argocd-cm")


@pytest.fixture(scope="session")
def health(settings: dict[str, Any]) -> Health:
    scripts = {key.rpartition("_")[2]: text for key, text in settings["data"].items()}

    def check(kind: str, obj: dict[str, Any]) -> tuple[str, str]:
        runtime = lua.LuaRuntime(unpack_returned_tuples=True)
        for name in ("io", "os", "package", "require", "dofile", "loadfile", "debug"):
            runtime.globals()[name] = None
        runtime.globals()["obj"] = runtime.table_from(obj, recursive=True)
        result = runtime.execute(scripts[kind])
        return result["status"], result["message"]

    return check


def test_every_check_is_given_to_argo(settings: dict[str, Any]) -> None:
    assert {key.rpartition(".health.")[2] for key in settings["data"]} == KINDS
    assert set(settings["data"].values()) == {path.read_text("utf-8") for path in HEALTH.glob("*.lua")}
    assert "Prune=false" in settings["metadata"]["annotations"]["argocd.argoproj.io/sync-options"]


NEVER, ONCE = "container_exits_3_with_restartPolicy_Never_backoffLimit_0", "same_with_failurePolicy_maxRestarts_1"
PREEMPTED = "preempted_by_higher_priority_then_resumes"


@pytest.mark.parametrize(
    ("story", "role", "statuses", "last"),
    [
        ("complete_two_nodes", "done", "Suspended Progressing Healthy", "jobset completed successfully"),
        ("queued_for_quota_then_runs", "second", "Suspended Progressing Healthy", "completed"),
        (PREEMPTED, "low", "Suspended Progressing Suspended Progressing Healthy", "completed"),
        # Restarted in place for ever: not failed, as far as the TrainJob says.
        ("container_exits_3", "fails", "Suspended Progressing", "Started"),
        (NEVER, "failfast", "Suspended Progressing Degraded", "FailedJobs"),
        (ONCE, "restart1", "Suspended Progressing Degraded", "ReachedMaxRestarts"),
        ("activeDeadlineSeconds_4", "deadline", "Suspended Progressing Degraded", "DeadlineExceeded"),
        ("without_a_queue", "noq", "Progressing Healthy", "completed"),
        ("refusals", "badq", "Suspended", "its Workload says why"),
    ],
)
def test_train_job(health: Health, story: str, role: str, statuses: str, last: str) -> None:
    found = []
    for _, state in Role(story, role).job:
        obj = {"metadata": {}, "spec": {"suspend": state["suspend"]}, "status": state["status"] or {}}
        found.append(health("TrainJob", obj))
    assert [status for status, _ in groupby(found, key=lambda item: item[0])] == statuses.split(), found
    assert last in found[-1][1]


def test_train_job_that_is_being_deleted(health: Health) -> None:
    assert health("TrainJob", {"metadata": {"deletionTimestamp": "2026-11-23T20:30:05Z"}}) == (
        "Progressing",
        "Is being deleted",
    )


def test_workloads_of_every_story(health: Health) -> None:
    seen: dict[str, set[str]] = {}
    for name, story in stories().items():
        for change in story["timeline"]:
            if change["object"].startswith("workload/") and isinstance(change["state"], list):
                status, message = health("Workload", {"status": {"conditions": change["state"]}})
                seen.setdefault(name, set()).add(status)
                if "doesn't exist" in json.dumps(change["state"]):
                    assert (status, message) == ("Degraded", "Misconfigured: LocalQueue nosuch doesn't exist")
                if '"WaitingForQuota"' in json.dumps(change["state"]):
                    assert status == "Suspended" and "more needed" in message
    assert seen["complete_two_nodes"] == {"Progressing", "Healthy"}
    assert seen["queued_for_quota_then_runs"] == {"Progressing", "Suspended", "Healthy"}
    assert seen["container_exits_3_with_restartPolicy_Never_backoffLimit_0"] == {"Progressing", "Degraded"}
    assert "Degraded" in seen["activeDeadlineSeconds_4"]


@pytest.mark.parametrize("kind", ["ClusterQueue", "LocalQueue"])
def test_queues(health: Health, kind: str) -> None:
    def queue(status: str, reason: str, message: str) -> dict[str, Any]:
        return {"status": {"conditions": [{"type": "Active", "status": status, "reason": reason, "message": message}]}}

    assert health(kind, queue("True", "Ready", "Can admit new workloads")) == ("Healthy", "Can admit new workloads")
    assert health(kind, queue("False", "FlavorNotFound", "no flavor a")) == ("Degraded", "FlavorNotFound: no flavor a")
    assert health(kind, {})[0] == "Progressing"
    assert health(kind, {"spec": {"stopPolicy": "Hold"}})[0] == "Suspended"
    assert health(kind, {"spec": {"stopPolicy": "None"}} | queue("True", "Ready", "ok"))[0] == "Healthy"


def test_pipelines(health: Health) -> None:
    assert health("Pipeline", {"spec": {}})[0] == "Healthy"
    assert health("PipelineVersion", {"spec": {"pipelineSpec": {"root": {}}}})[0] == "Healthy"
    assert health("PipelineVersion", {"spec": {}}) == ("Degraded", "Has no pipelineSpec")
    refused = [{"type": "x", "status": "False", "reason": "Invalid", "message": "no root"}]
    found = health("PipelineVersion", {"spec": {"pipelineSpec": {"root": {}}}, "status": {"conditions": refused}})
    assert found == ("Degraded", "Invalid: no root")
