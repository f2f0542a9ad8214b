"""What can go wrong around a TrainJob: an API server that fails at any call, pods that cannot start, a real SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.kubernetes_api import KubernetesApi, Refusal
from support.train_jobs import POLICY, RUN_ID, Attempt, VirtualClock, cluster, request

from understudy.errors import IntegrityError, Preempted, ServiceUnreachable, UnderstudyError
from understudy.platform.launch_request import Exchange, write_result
from understudy.platform.trainjob.job import job_name
from understudy.platform.trainjob.launcher import Patience

SCRIPT = Path(__file__).parents[1] / "support" / "launch_once.py"


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def api(clock: VirtualClock) -> Iterator[KubernetesApi]:
    with cluster(clock) as api:
        yield api


@pytest.mark.parametrize("when", ["before", "after", "throttled"])
def test_one_failure_at_any_call_changes_nothing(
    when: str, api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.will_play("complete_two_nodes", "done")
    Attempt(api, clock, tmp_path / "whole").run()
    num_calls = len(api.calls)
    assert num_calls > 10
    for nth in range(num_calls):
        api.created.clear()
        api.outages.extend(["no"] * nth + [when])
        api.will_play("complete_two_nodes", "done")
        attempt = Attempt(api, clock, tmp_path / f"{when}-{nth}")
        assert attempt.run() == (POLICY,), f"call {nth}"
        assert len(api.created) == 1 and not api.jobs, f"call {nth}"
        assert not api.outages, f"call {nth} was never made"


def test_a_server_that_stays_away_leaves_the_job_running(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.will_play("complete_two_nodes", "done")
    attempt = Attempt(api, clock, tmp_path)

    def say(line: str) -> None:
        if "is created" in line:
            api.outages.extend(["before"] * 2000)

    with pytest.raises(ServiceUnreachable, match=r"\(503\).*TrainJob sft-.* runs on; run the step again"):
        attempt.launcher(say).run()
    assert clock.now() >= 900 and list(api.jobs) == [attempt.name]
    api.outages.clear()
    again = Attempt(api, clock, tmp_path)
    assert again.run() == (POLICY,) and len(api.created) == 1


def test_a_cancel_that_the_server_does_not_take_says_what_is_left(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.will_play("deleted_while_running", "gone")
    clock.stop_at = 3
    attempt = Attempt(api, clock, tmp_path)

    def say(line: str) -> None:
        if "Told to end" in line:
            api.outages.extend(["before"] * 50)

    with pytest.raises(Preempted, match=r"TrainJob sft-.* is NOT deleted: kubectl delete it"):
        attempt.launcher(say).run()


def _pod(name: str, job: str, **status: object) -> dict[str, object]:
    return {
        "metadata": {"name": name, "uid": name, "labels": {"jobset.sigs.k8s.io/jobset-name": job}},
        "status": status,
    }


def test_an_image_that_cannot_be_pulled_ends_the_job_with_its_reason(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.will_play("without_a_queue", "noq")
    attempt = Attempt(api, clock, tmp_path)
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}

    def say(line: str) -> None:
        attempt.said.append(line)
        if "is created" in line:
            api.extra_pods["p"] = _pod("p", attempt.name, containerStatuses=[{"state": waiting}])

    launcher = attempt.launcher(say)
    launcher.patience = Patience(poll=1, stuck=3)
    with pytest.raises(UnderstudyError, match=r"cannot start and was deleted. p: ImagePullBackOff, not found"):
        launcher.run()
    assert attempt.heard("is admitted, but waits: p: ImagePullBackOff") and 3 <= clock.now() < 6
    assert not api.jobs


def test_a_complete_job_without_a_result_is_a_mismatch_of_images(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.will_play("complete_two_nodes", "done")
    attempt = Attempt(api, clock, tmp_path)
    api.when_complete = lambda job: None
    with pytest.raises(IntegrityError, match="is Complete, but there is no result of this request at .*another commit"):
        attempt.run()


@pytest.mark.slow
def test_a_real_sigterm_deletes_the_job_and_the_next_process_returns_its_result(tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    with cluster(VirtualClock(), now=time.monotonic) as api:
        clusters = [{"name": "c", "cluster": {"server": api.url}}]
        contexts = [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "understudy"}}]
        users = [{"name": "u", "user": {}}]
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "c"}
        kubeconfig.write_text(json.dumps(config | {"clusters": clusters, "contexts": contexts, "users": users}))
        environment = os.environ | {
            "KUBECONFIG": str(kubeconfig),
            "UNDERSTUDY_STORAGE_URI": str(tmp_path),
            "UNDERSTUDY_RUN_ID": RUN_ID,
            "PYTHONPATH": str(SCRIPT.parents[1]),
        }
        command = [sys.executable, str(SCRIPT)]
        api.will_play("deleted_while_running", "gone")
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "is created on 2 nodes" in line:
                process.send_signal(signal.SIGTERM)
        assert process.wait(60) == Preempted.exit_code == 75
        assert "was cancelled and TrainJob" in said[-1] and len(api.created) == 1 and not api.jobs

        name = job_name("sft", RUN_ID, request())
        write_result(Exchange(f"{tmp_path}/launches/{name}"), request(), [POLICY])
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "returned the policy")


def test_a_job_of_the_same_name_that_is_not_ours_is_left_alone(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.will_play("same_name_twice", "dup")
    launcher = Attempt(api, clock, tmp_path).launcher()
    made = launcher.cluster.create(launcher.job)
    launcher.cluster.delete(launcher.name, "another-uid")
    assert list(api.jobs) == [launcher.name]
    launcher.cluster.delete(launcher.name, made["metadata"]["uid"])
    launcher.cluster.delete(launcher.name, made["metadata"]["uid"])  # gone already
    assert not api.jobs


@pytest.mark.parametrize("times", [2, 10**6])
def test_a_conflict_that_is_no_job_of_that_name_is_asked_again_with_pauses(
    times: int, api: KubernetesApi, clock: VirtualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, refused = api._create, [0]

    def conflict(query: dict[str, str], body: dict[str, object]) -> dict[str, object]:
        refused[0] += 1
        if refused[0] > times:
            return create(query, body)
        assert refused[0] < 2000, "asked without end"
        raise Refusal(409, "Conflict", 'Operation cannot be fulfilled on resourcequotas "gpu": the object was modified')

    monkeypatch.setattr(api, "_create", conflict)
    api.will_play("complete_two_nodes", "done")
    attempt = Attempt(api, clock, tmp_path)
    if times == 2:
        assert attempt.run() == (POLICY,) and refused == [3] and clock.now() >= 2
    else:
        with pytest.raises(ServiceUnreachable, match=r"resourcequotas .gpu.: the object was modified"):
            attempt.run()
        assert clock.now() >= 900 and refused[0] < 1000
