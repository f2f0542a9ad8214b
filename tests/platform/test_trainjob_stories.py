"""The launcher against recorded behaviour of a real cluster: over HTTP, through the real client, with its rights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.kubernetes_api import KubernetesApi
from support.recorded_stories import stories
from support.train_jobs import POLICY, Attempt, VirtualClock, cluster, runtime

from understudy.errors import ConfigError, Preempted, TrainingDiverged, UnderstudyError
from understudy.platform.launch_request import write_failure
from understudy.platform.trainjob.cluster import AlreadyExists

TESTED: set[str] = set()


def story(name: str) -> Callable[[Any], Any]:
    TESTED.add(name)
    return lambda test: test


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def api(clock: VirtualClock) -> Iterator[KubernetesApi]:
    with cluster(clock) as api:
        yield api


def test_every_recorded_story_has_a_test() -> None:
    assert set(stories()) == TESTED


@story("complete_two_nodes")
def test_a_job_is_created_followed_and_tidied_away(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    api.will_play("complete_two_nodes", "done")
    api.log_lines = [(2.9, "step 1 loss 2.5"), (3.2, "step 2 loss 2.4")]
    attempt = Attempt(api, clock, tmp_path)
    assert attempt.run() == (POLICY,)
    assert [line for line in attempt.said if line.startswith("step")] == ["step 1 loss 2.5", "step 2 loss 2.4"]
    assert attempt.verbs.count("create") == attempt.verbs.count("delete") == 1 and not api.jobs
    assert 5.7 <= clock.now() <= 7.7


@story("queued_for_quota_then_runs")
def test_waiting_for_quota_is_told_and_does_not_fail(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    api.will_play("queued_for_quota_then_runs", "second")
    attempt = Attempt(api, clock, tmp_path)
    assert attempt.run() == (POLICY,)
    waits = [line for line in attempt.said if "waits in queue scheduled" in line]
    reasons = [line.partition("scheduled: ")[2].split(":")[0] for line in waits]
    assert reasons == [
        "Kueue has not looked at the job yet",
        "WaitingForQuota",
    ]
    assert "300m more needed" in waits[1]
    assert len(waits) == len(set(waits)), "the same reason was told twice"
    assert attempt.heard("is admitted") and attempt.verbs.count("create") == 1


@story("queued_for_quota_then_runs")
def test_quota_that_never_comes_ends_at_the_timeout(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    api.will_play("queued_for_quota_then_runs", "second")
    attempt = Attempt(api, clock, tmp_path, queue_timeout_seconds=4)
    with pytest.raises(
        UnderstudyError, match=r"waited 4 s in queue scheduled.*300m more needed.*queue_timeout_seconds"
    ):
        attempt.run()
    assert not api.jobs


@story("container_exits_3")
def test_a_crash_loop_is_ended_although_the_job_never_fails(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.will_play("container_exits_3", "fails")
    api.log_lines = [(1.5, "loss is nan at step 7"), (2.5, "loss is nan at step 7")]
    with pytest.raises(
        UnderstudyError, match=r"(?s)started again in place.*restartPolicy Never.*loss is nan at step 7"
    ):
        Attempt(api, clock, tmp_path).run()
    assert not api.jobs and clock.now() < 5


def test_a_runtime_that_restarts_in_place_is_refused_before_any_gpu(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    wrong = runtime("sft")
    job = wrong["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]
    del job["backoffLimit"], job["template"]["spec"]["restartPolicy"]
    api.cluster_objects["clustertrainingruntimes", "understudy-sft"] = wrong
    with pytest.raises(ConfigError, match="backoffLimit 6 and restartPolicy OnFailure"):
        Attempt(api, clock, tmp_path).run()
    assert not api.created


FAILFAST = "container_exits_3_with_restartPolicy_Never_backoffLimit_0"


@story(FAILFAST)
def test_a_failure_brings_the_last_lines_and_the_next_attempt_a_new_job(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.will_play(FAILFAST, "failfast")
    api.log_lines = [(1.2, "round 6"), (1.5, "loss is nan at step 7")]
    first = Attempt(api, clock, tmp_path)
    write_failure(first.exchange, TrainingDiverged("of an older attempt"))
    with pytest.raises(UnderstudyError, match=r"(?s)FailedJobs.*first failed job.*round 6\n    loss is nan at step 7$"):
        first.run()
    assert clock.now() < 6 and list(api.jobs) == [first.name]

    api.log_lines = []
    api.will_play("complete_two_nodes", "done")
    second = Attempt(api, clock, tmp_path)
    with pytest.raises(AlreadyExists, match="already exists"):
        second.launcher().cluster.create(second.launcher().job)
    assert second.run() == (POLICY,)
    assert second.heard("ended (FailedJobs") and len(api.created) == 2 and not api.jobs


@story(FAILFAST)
def test_a_failure_keeps_the_class_that_the_training_raised(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.will_play(FAILFAST, "failfast")
    attempt = Attempt(api, clock, tmp_path)

    def said(line: str) -> None:
        if "is created" in line:
            write_failure(attempt.exchange, TrainingDiverged("The loss of step 7 is nan."))

    with pytest.raises(TrainingDiverged, match=r"The loss of step 7 is nan. \(TrainJob sft-retrain-.*: FailedJobs\)"):
        attempt.launcher(said).run()


@story("same_with_failurePolicy_maxRestarts_1")
def test_a_restarted_job_is_followed_to_its_last_failure(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.will_play("same_with_failurePolicy_maxRestarts_1", "restart1")
    api.log_lines = [(1.3, "first try"), (4.5, "second try")]
    attempt = Attempt(api, clock, tmp_path)
    with pytest.raises(UnderstudyError, match=r"(?s)ReachedMaxRestarts.*second try") as failure:
        attempt.run()
    assert "first try" not in str(failure.value)
    assert attempt.said.count("first try") == attempt.said.count("second try") == 1
    assert 6 < clock.now() < 9


PREEMPTIONS = {
    "preempted_by_higher_priority_then_resumes": ("low", 17.0),
    "preempted_with_restartPolicy_Never_backoffLimit_0": ("lowff", 15.0),
}


@story("preempted_by_higher_priority_then_resumes")
@story("preempted_with_restartPolicy_Never_backoffLimit_0")
@pytest.mark.parametrize("name", PREEMPTIONS)
def test_a_preempted_job_resumes_by_itself(name: str, api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    role, resumed = PREEMPTIONS[name]
    api.will_play(name, role)
    api.log_lines = [(2.0, "round 1"), (resumed, "resumed at round 2")]
    attempt = Attempt(api, clock, tmp_path)
    assert attempt.run() == (POLICY,)
    assert attempt.heard("evicted (Preempted), it resumes from its checkpoint")
    assert attempt.said.count("round 1") == attempt.said.count("resumed at round 2") == 1
    assert attempt.verbs.count("create") == 1 and not api.jobs


@story("preempted_by_higher_priority_then_resumes")
def test_each_wait_in_the_queue_is_timed_by_itself(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    api.will_play("preempted_by_higher_priority_then_resumes", "low")  # waits 0.4 s, runs 6 s, waits 9 s
    assert Attempt(api, clock, tmp_path, queue_timeout_seconds=12).run() == (POLICY,)


@story("preempted_by_higher_priority_then_resumes")
def test_the_preemptor_waits_until_room_is_made(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    api.will_play("preempted_by_higher_priority_then_resumes", "high")
    attempt = Attempt(api, clock, tmp_path)
    assert attempt.run() == (POLICY,)


@story("same_name_twice")
def test_a_retry_attaches_to_the_running_job(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    api.will_play("same_name_twice", "dup")
    first = Attempt(api, clock, tmp_path).launcher()
    first.cluster.create(first.job)  # and its pod dies
    clock.pause(3)
    second = Attempt(api, clock, tmp_path)
    assert second.run() == (POLICY,)
    assert second.heard("re-attaches") and len(api.created) == 1


@story("same_name_twice")
def test_a_retry_takes_the_result_of_a_complete_job(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    api.will_play("same_name_twice", "dup")
    attempt = Attempt(api, clock, tmp_path)
    first = attempt.launcher()
    first.cluster.create(first.job)
    clock.pause(60)
    assert first.cluster.train_job(first.name) is not None  # Complete; its result is there
    with pytest.raises(AlreadyExists):
        first.cluster.create(first.job)
    again = Attempt(api, clock, tmp_path)
    assert again.run() == (POLICY,)
    assert again.heard("its result is taken") and len(api.created) == 1 and not api.jobs


@story("same_name_twice")
def test_a_complete_job_without_a_result_makes_room(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    for _ in range(2):
        api.will_play("same_name_twice", "dup")
    attempt = Attempt(api, clock, tmp_path)
    first = attempt.launcher()
    first.cluster.create(first.job)
    clock.pause(60)
    api.when_complete = lambda job: None
    assert first.cluster.train_job(first.name) is not None
    again = Attempt(api, clock, tmp_path)
    assert again.run() == (POLICY,)
    assert again.heard("AllJobsCompleted") and len(api.created) == 2


@story("deleted_while_running")
def test_cancel_deletes_and_the_next_attempt_waits_for_the_pods(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.will_play("deleted_while_running", "gone")
    api.pod_grace_seconds = 100
    clock.stop_at = 3
    cancelled = Attempt(api, clock, tmp_path)
    with pytest.raises(Preempted, match="was cancelled and TrainJob .* deleted"):
        cancelled.run()
    assert not api.jobs and cancelled.heard("Still ending: ")

    clock.stop_at = float("inf")
    api.will_play("complete_two_nodes", "done")
    retried = Attempt(api, clock, tmp_path)
    told: list[float] = []

    def note(line: str) -> None:
        retried.said.append(line)
        if "is created" in line:
            told.append(clock.now())

    assert retried.launcher(note).run() == (POLICY,)
    assert retried.heard("Waiting until pods") and told[0] >= 3 + 100


@story("deleted_while_running")
def test_pods_that_never_end_are_named(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    api.will_play("deleted_while_running", "gone")
    api.pod_grace_seconds = 1e6
    clock.stop_at = 3
    with pytest.raises(Preempted):
        Attempt(api, clock, tmp_path).run()
    clock.stop_at = float("inf")
    with pytest.raises(UnderstudyError, match=r"have not ended within 900 s: sft-.*-node-0-0-.*kubectl delete pod"):
        Attempt(api, clock, tmp_path).launcher(poll=100).run()


@story("deleted_while_running")
def test_a_job_that_someone_else_deletes_is_an_error(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    api.will_play("deleted_while_running", "gone")
    attempt = Attempt(api, clock, tmp_path)

    def say(line: str) -> None:
        if "admitted" in line:
            launcher.cluster.delete(attempt.name, api.jobs[attempt.name].uid)

    launcher = attempt.launcher(say)
    with pytest.raises(UnderstudyError, match="deleted by someone else"):
        launcher.run()


@story("without_a_queue")
def test_a_job_without_conditions_is_waited_for(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    api.will_play("without_a_queue", "noq")
    attempt = Attempt(api, clock, tmp_path)
    assert attempt.run() == (POLICY,)
    assert 7 <= clock.now() < 9


@story("activeDeadlineSeconds_4")
def test_the_deadline_is_named_with_its_remedy(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    api.will_play("activeDeadlineSeconds_4", "deadline")
    api.log_lines = [(2.0, "round 3 of 20")]
    attempt = Attempt(api, clock, tmp_path, timeout_seconds=4)
    with pytest.raises(
        UnderstudyError, match=r"(?s)after 4 s \(DeadlineExceeded\).*sft.timeout_seconds.*round 3 of 20"
    ):
        attempt.run()
    assert api.created[0]["spec"]["activeDeadlineSeconds"] == 4


@story("refusals")
def test_what_is_missing_is_refused_at_once_and_all_of_it(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.queues.clear()
    api.cluster_objects.clear()
    with pytest.raises(ConfigError) as refused:
        Attempt(api, clock, tmp_path).run()
    for words in (
        "LocalQueue 'scheduled' does not",
        "PriorityClass 'understudy-scheduled'",
        "Runtime 'understudy-sft'",
    ):
        assert words in str(refused.value)
    assert clock.now() == 0 and not api.created


@story("refusals")
def test_a_queue_that_vanishes_is_found_in_the_workload(
    api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    api.will_play("refusals", "badq")
    with pytest.raises(UnderstudyError, match=r"would wait for ever and was deleted: LocalQueue nosuch doesn't exist"):
        Attempt(api, clock, tmp_path).run()
    assert clock.now() <= 2 and not api.jobs


@story("refusals")
def test_refusals_of_the_server_are_for_people(api: KubernetesApi, clock: VirtualClock, tmp_path: Path) -> None:
    launcher = Attempt(api, clock, tmp_path).launcher()
    job = launcher.job

    def refused(words: str, **metadata: str) -> None:
        with pytest.raises(ConfigError, match=words):
            launcher.cluster.create({**job, "metadata": job["metadata"] | metadata})

    refused(r"\(422\).*lowercase RFC 1123", name="Bad_Name")
    refused(r"\(422\).*no more than 63 characters", name="a" * 64)
    with pytest.raises(ConfigError, match=r'\(400\).*unknown field "spec.numNodez"'):
        launcher.cluster.create({**job, "spec": job["spec"] | {"numNodez": 2}})
    api.cluster_objects.clear()
    with pytest.raises(ConfigError, match=r"\(403\): admission webhook .*understudy-sft.* not found"):
        launcher.cluster.create(job)
    assert not api.created
