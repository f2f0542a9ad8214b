"""The TrainJob object: a name that every attempt derives, and what its pods are given."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from support.train_jobs import request, runtime, settings

from understudy.platform.launch_request import Request
from understudy.platform.trainjob import reading
from understudy.platform.trainjob.job import job_name, train_job

PLACE = "s3://bucket/launches/x"
SECRET = "never-to-be-copied"
ENVIRONMENT = {
    "MLFLOW_RUN_ID": "m1",
    "MLFLOW_TRACKING_URI": "http://mlflow",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "UNDERSTUDY_RUN_ID": "r1",
    "UNDERSTUDY_ACCELERATE": "fsdp",
    "PATH": "/bin",
}


@pytest.mark.parametrize(
    "run_id",
    [
        "Retrain_2026-11-24/07:00",
        "7f3c",
        "",
        "---",
        "Läuft_täglich_🚀",
        "x" * 300,
        "a-very-long-run-id-that-ends-in-a-hyphen--------",
    ],
)
def test_any_run_gives_a_name_that_pods_of_many_nodes_can_carry(run_id: str) -> None:
    names = {job_name(step, run_id, request()) for step in ("sft", "align", "sft_longer") for _ in range(2)}
    assert len(names) == 3
    for name in names:
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and "--" not in name and len(name) <= 45
        assert len(f"{name}-node-0-999-abcde") <= 63


def test_another_run_config_or_input_is_another_job() -> None:
    asked = request()
    other = Request("sft", {"seed": 2}, asked.inputs, asked.outputs)
    names = [job_name("sft", run, item) for run in ("r1", "r2") for item in (asked, other)]
    assert len(set(names)) == 4


def made(**changes: Any) -> dict[str, Any]:
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "u"}
    return train_job("sft-x", PLACE, request(), settings(**changes), owner, ENVIRONMENT)


def test_it_queues_holds_gpus_and_ends_with_its_run() -> None:
    job = made()
    labels = job["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/queue-name"] == "scheduled"
    assert labels["kueue.x-k8s.io/priority-class"] == "understudy-scheduled"
    assert labels["understudy.dev/cost-center"] == "team-a"
    assert job["metadata"]["ownerReferences"][0]["kind"] == "Workflow"
    spec = job["spec"]
    assert (spec["activeDeadlineSeconds"], spec["runtimeRef"]["name"]) == (86400, "understudy-sft")
    trainer = spec["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["args"]) == (2, 4, [PLACE])
    assert trainer["resourcesPerNode"]["requests"] == trainer["resourcesPerNode"]["limits"]
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == "4"
    (patch,) = spec["runtimePatches"]
    (node,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert node["name"] == runtime("sft")["spec"]["template"]["spec"]["replicatedJobs"][0]["name"]
    template = node["template"]["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {"understudy.dev/pool": "gpu"}
    (toleration,) = template["spec"]["tolerations"]
    assert (toleration["key"], toleration["value"], toleration["effect"]) == ("nvidia.com/gpu", "present", "NoSchedule")
    assert template["metadata"]["labels"]["understudy.dev/cost-center"] == "team-a"
    assert "kueue.x-k8s.io/queue-name" not in template["metadata"]["labels"]  # the job queues, not each pod


def test_mlflow_and_storage_are_forwarded_and_secrets_only_by_name() -> None:
    job = made()
    env = {item["name"]: item for item in job["spec"]["trainer"]["env"]}
    assert env["MLFLOW_TRACKING_URI"]["valueFrom"]["configMapKeyRef"]["name"] == "understudy-settings"
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {
        "name": "storage",
        "key": "AWS_SECRET_ACCESS_KEY",
        "optional": False,
    }
    values = {name: item["value"] for name, item in env.items() if "value" in item}
    assert values == {"MLFLOW_RUN_ID": "m1", "UNDERSTUDY_RUN_ID": "r1", "UNDERSTUDY_ACCELERATE": "fsdp"}
    assert SECRET not in json.dumps(job)


def _ended(index: int, code: int, finished: str) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "finishedAt": finished}}
    return {"metadata": {"name": f"pod-{index}"}, "status": {"containerStatuses": [{"state": state}]}}


def test_who_failed_first_is_the_cause_and_who_was_told_to_end_is_not() -> None:
    pods = [_ended(0, 143, "10:00:01"), _ended(1, 1, "10:00:03"), _ended(2, 137, "10:00:02"), _ended(3, 0, "10:00:00")]
    assert [pod["metadata"]["name"] for pod in reading.failed_pods(pods)] == ["pod-2", "pod-1", "pod-0"]


def test_a_deactivated_workload_is_not_waited_for() -> None:
    waiting = reading.why_waiting({"spec": {"active": False}, "status": {"conditions": []}})
    assert waiting.hopeless and "deactivated" in waiting.why
    assert not reading.why_waiting({"spec": {"active": True}}).hopeless and not reading.why_waiting(None).hopeless
