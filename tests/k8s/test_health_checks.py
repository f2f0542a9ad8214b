"""Argo CD's health checks, run by a real Lua on objects recorded from real controllers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
HEALTH = ROOT / "k8s" / "infrastructure" / "argocd" / "health"
# Argo CD runs them in gopher-lua, which is Lua 5.1, without io, os or packages.
lua = pytest.importorskip("lupa.lua51", reason="lupa is not installed: the Lua health checks are not run")


def health(kind: str, obj: dict[str, Any]) -> tuple[str, str]:
    runtime = lua.LuaRuntime(unpack_returned_tuples=True)
    for name in ("io", "os", "package", "require", "dofile", "loadfile", "debug"):
        runtime.globals()[name] = None
    runtime.globals()["obj"] = runtime.table_from(obj, recursive=True)
    result = runtime.execute((HEALTH / f"{kind}.lua").read_text(encoding="utf-8"))
    return result["status"], result["message"]


@pytest.fixture(scope="module")
def stories() -> dict[str, Any]:
    given = os.environ.get("UNDERSTUDY_RECORDED")
    path = (Path(given) if given else ROOT.parent / "shared" / "recorded") / "trainjob.json"
    if not path.is_file():
        pytest.skip("no recorded stories: set UNDERSTUDY_RECORDED, or put them at ../shared/recorded")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_every_check_is_given_to_argo(rendered: dict[str, list[dict[str, Any]]]) -> None:
    settings = next(item for item in rendered["production"] if item["metadata"]["name"] == "argocd-cm")
    assert {key.rpartition("_")[2] for key in settings["data"]} == {path.stem for path in HEALTH.glob("*.lua")}
    assert {key.rpartition(".health.")[2] for key in settings["data"]} == {
        "pipelines.kubeflow.org_Pipeline",
        "pipelines.kubeflow.org_PipelineVersion",
        "trainer.kubeflow.org_TrainJob",
        "kueue.x-k8s.io_Workload",
        "kueue.x-k8s.io_ClusterQueue",
        "kueue.x-k8s.io_LocalQueue",
    }
    assert "Prune=false" in settings["metadata"]["annotations"]["argocd.argoproj.io/sync-options"]


@pytest.mark.parametrize(
    ("story", "response", "status", "message"),
    [
        ("complete_two_nodes", "create", "Progressing", "Started"),
        ("complete_two_nodes", "final", "Healthy", "jobset completed successfully"),
        ("queued_for_quota_then_runs", "second_while_queued", "Suspended", "Waits for quota"),
        ("queued_for_quota_then_runs", "second_final", "Healthy", "completed"),
        ("preempted_by_higher_priority_then_resumes", "low_while_preempted", "Suspended", "preempted"),
        ("preempted_by_higher_priority_then_resumes", "low_final", "Healthy", "completed"),
        # Restarted in place for ever: not failed, as far as the TrainJob says.
        ("container_exits_3", "final", "Progressing", "Started"),
        ("container_exits_3_with_restartPolicy_Never_backoffLimit_0", "final", "Degraded", "FailedJobs"),
        ("same_with_failurePolicy_maxRestarts_1", "final", "Degraded", "ReachedMaxRestarts"),
        ("activeDeadlineSeconds_4", "final", "Degraded", "DeadlineExceeded"),
        ("without_a_queue", "running_without_queue", "Progressing", "Started"),
        ("refusals", "missing_queue_after", "Suspended", "its Workload says why"),
    ],
)
def test_train_job(stories: dict[str, Any], story: str, response: str, status: str, message: str) -> None:
    found = health("TrainJob", stories[story]["responses"][response])
    assert found[0] == status and message in found[1], found


def test_train_job_that_is_being_deleted() -> None:
    assert health("TrainJob", {"metadata": {"deletionTimestamp": "2026-11-23T20:30:05Z"}}) == (
        "Progressing",
        "Is being deleted",
    )


def test_workloads_of_every_story(stories: dict[str, Any]) -> None:
    seen: dict[str, set[str]] = {}
    for name, story in stories.items():
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
def test_queues(kind: str) -> None:
    def queue(status: str, reason: str, message: str) -> dict[str, Any]:
        return {"status": {"conditions": [{"type": "Active", "status": status, "reason": reason, "message": message}]}}

    assert health(kind, queue("True", "Ready", "Can admit new workloads")) == ("Healthy", "Can admit new workloads")
    assert health(kind, queue("False", "FlavorNotFound", "no flavor a")) == ("Degraded", "FlavorNotFound: no flavor a")
    assert health(kind, {})[0] == "Progressing"
    assert health(kind, {"spec": {"stopPolicy": "Hold"}})[0] == "Suspended"
    assert health(kind, {"spec": {"stopPolicy": "None"}} | queue("True", "Ready", "ok"))[0] == "Healthy"


def test_pipelines() -> None:
    assert health("Pipeline", {"spec": {}})[0] == "Healthy"
    assert health("PipelineVersion", {"spec": {"pipelineSpec": {"root": {}}}})[0] == "Healthy"
    assert health("PipelineVersion", {"spec": {}}) == ("Degraded", "Has no pipelineSpec")
    refused = [{"type": "x", "status": "False", "reason": "Invalid", "message": "no root"}]
    found = health("PipelineVersion", {"spec": {"pipelineSpec": {"root": {}}}, "status": {"conditions": refused}})
    assert found == ("Degraded", "Invalid: no root")
