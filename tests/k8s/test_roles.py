"""The Roles grant what the real clients ask for, call for call, and nothing else."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.kfp_api import KfpApi
from support.kubernetes_api import Call, KubernetesApi
from support.lease_api import LeaseApi
from support.schedules import OTHER_PIN, PARAMS, PIN, arguments_of, manifests, schedule, wanted
from support.train_jobs import LAUNCHER_ROLES, Attempt, VirtualClock, cluster
from support.violations_pipelines import PIPELINES

from k8s import check
from k8s.checks.pipelines import compiled_pipelines
from k8s.checks.render import Object
from understudy.errors import Preempted, UnderstudyError
from understudy.platform import budget
from understudy.platform.promotion.kubernetes_lease import KubernetesLease, lease_name
from understudy.platform.schedules import apply, make_plan
from understudy.platform.schedules_kfp import Kfp
from understudy.platform.trigger import trigger

Right = tuple[str, str, str, str]  # verb, group, resource, name or "" for any
# What Argo's executor and KFP 2.17's driver and launcher ask for in each step's pod (backend/src/v2, read at 7b70c7b9).
OF_KFP: set[Right] = {
    ("create", "argoproj.io", "workflowtaskresults", ""),
    ("patch", "argoproj.io", "workflowtaskresults", ""),
    ("get", "", "configmaps", "kfp-launcher"),
    ("get", "", "secrets", "understudy-object-storage"),
    ("get", "", "pods", ""),
}
# KFP's API server asks Kubernetes for these in the caller's name (apiserver/server/*_server.go).
PLACEHOLDER = "understudy-promotion-placeholder"
KFP_RESOURCES = {"recurringruns": "jobs", "runs": "runs", "experiments": "experiments", "pipelines": "pipelines"}


def granted(items: list[Object], *names: str) -> set[Right]:
    roles = [item for item in items if item["kind"].endswith("Role") and item["metadata"]["name"] in names]
    assert {role["metadata"]["name"] for role in roles} == set(names)
    return {
        (verb, group, resource, name)
        for role in roles
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    }


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def api(clock: VirtualClock) -> Iterator[KubernetesApi]:
    with cluster(clock) as api:
        yield api


def _every_way(api: KubernetesApi, clock: VirtualClock, folder: Path) -> list[Call]:
    """What the launcher asks for, in all that can happen to its jobs."""
    api.will_play("queued_for_quota_then_runs", "second")
    Attempt(api, clock, folder / "sft").run()
    adhoc = {"step": "align", "runtime": "understudy-align", "queue": "adhoc", "priority": "understudy-adhoc"}
    api.will_play("container_exits_3_with_restartPolicy_Never_backoffLimit_0", "failfast")
    failing = Attempt(api, clock, folder / "align", **adhoc)
    with pytest.raises(UnderstudyError, match="FailedJobs"):
        failing.run()
    api.will_play("deleted_while_running", "gone")
    clock.stop_at = clock.now() + 3
    with pytest.raises(Preempted, match="deleted"):
        failing.run()
    api.extra_pods["step-pod"] = {"metadata": {"name": "step-pod", "labels": {}}}
    assert failing.launcher().cluster.owner_of_pod("step-pod") is None
    return api.calls


def test_steps_may_do_what_kfp_does_in_their_pods_and_no_more(rendered: dict[str, list[Object]]) -> None:
    for name in ("staging", "production"):
        assert granted(rendered[name], "understudy-runner") == OF_KFP


def test_with_several_nodes_steps_may_do_what_the_launcher_does_and_no_more(
    with_components: list[Object], api: KubernetesApi, clock: VirtualClock, tmp_path: Path
) -> None:
    rights = granted(with_components, *LAUNCHER_ROLES)
    named = {(group, resource) for _, group, resource, name in rights if name}
    used = {
        (call.verb, call.group, call.resource, call.name or "" if (call.group, call.resource) in named else "")
        for call in _every_way(api, clock, tmp_path)
    }
    assert rights == used | OF_KFP


def _right(method: str, path: str) -> Right | None:
    """What KFP's API server asks for, from a request."""
    found = re.fullmatch(r"/apis/v2beta1/(\w+)(?:/[^/:]+)?(?:/(\w+))?(?::(\w+))?", path)
    assert found, path
    resource, versions, action = found.groups()
    if resource == "healthz":
        return None
    one = re.fullmatch(r"/apis/v2beta1/\w+/[^/]+", path) is not None
    verb = action or {"POST": "create", "DELETE": "delete"}.get(method) or ("get" if one and not versions else "list")
    return (verb, "pipelines.kubeflow.org", KFP_RESOURCES[resource], "")


def _apply(kfp: Kfp) -> None:
    for items in (
        wanted(schedule("nightly")),
        wanted(schedule("nightly", enabled=False)),
        wanted(schedule("nightly", pipeline_version=OTHER_PIN)),
    ):
        apply(make_plan(items, kfp, Path("/nonexistent")), items, kfp)


def _plan(kfp: Kfp) -> None:
    assert make_plan(wanted(schedule("nightly")), kfp, Path("/nonexistent")).drifted


def _trigger(kfp: Kfp) -> None:
    item = schedule("nightly", pipeline_version=OTHER_PIN, params={"data.source": "s3://bucket/rows/"})
    assert trigger(item, PARAMS, kfp, lambda source: "a" * 64, arguments_of).started


def _enforce(kfp: Kfp) -> None:
    limits = {run.id: 0.0 for run in kfp.recurring_runs_of("nightly")}
    found = budget.overdue(kfp.runs(), limits, now=4e9)
    assert found
    for run, _, _ in found:
        kfp.terminate(run.run_id)


def test_each_job_of_the_schedules_may_do_what_its_command_does_and_no_more(rendered: dict[str, list[Object]]) -> None:
    used: dict[str, set[Right]] = {}
    with KfpApi() as api:
        api.apply(manifests(PIN, OTHER_PIN))
        for name, command in {"apply": _apply, "drift": _plan, "trigger": _trigger, "enforce": _enforce}.items():
            api.calls.clear()
            command(Kfp(api.url, "understudy"))
            used[name] = {right for method, path in api.calls if (right := _right(method, path))}
    assert {name: granted(rendered["production"], f"understudy-schedules-{name}") for name in used} == used
    assert {verb for verb, *_ in used["drift"]} == {"list"}


def test_a_promotion_may_take_its_own_lease(with_components: list[Object]) -> None:
    verbs = {"GET": "get", "POST": "create", "PUT": "update"}
    asked: list[str] = []

    class Recording(LeaseApi):
        def handle(self, method: str, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            asked.append(method)
            return super().handle(method, name, body)

    with Recording() as api:
        lease = KubernetesLease("understudy", lease_name("s3://bucket/model"), "me", 60, api.client())
        with lease.hold(5) as held:
            held.renew()
    names = {"create": "", "get": PLACEHOLDER, "update": PLACEHOLDER}
    used = {(verb, "coordination.k8s.io", "leases", names[verb]) for verb in (verbs[method] for method in asked)}
    assert granted(with_components, "understudy-promotion") == used


def test_the_lease_that_an_overlay_must_name_is_told(with_components: list[Object]) -> None:
    name = lease_name("s3://understudy-production/store/promotion/understudy-ansible")
    assert list(check.policies(with_components, production=True)) == [
        f"Role/understudy-promotion: may do ['get', 'update'] on leases ['{PLACEHOLDER}']; promotions take ['{name}']"
    ]
    named = json.loads(json.dumps(with_components).replace(PLACEHOLDER, name))
    assert list(check.problems(named, "production")) == []


def test_with_the_components_several_nodes_and_a_lease_are_allowed(with_components: list[Object]) -> None:
    items = copy.deepcopy(with_components)
    for name in ("nodes_that_nobody_may_start", "lease_that_nobody_may_take"):
        PIPELINES[name][0](items)
    assert [problem for problem in compiled_pipelines(items) if "add the component" in problem] == []


def _bound(items: list[Object]) -> set[tuple[str, str]]:
    return {
        (subject["name"], item["roleRef"]["name"])
        for item in items
        if item["kind"] in ("RoleBinding", "ClusterRoleBinding")
        for subject in item["subjects"]
    }


def test_no_other_account_has_a_role_and_each_role_is_tested_here(
    rendered: dict[str, list[Object]], with_components: list[Object]
) -> None:
    jobs = {(f"understudy-schedules-{name}",) * 2 for name in ("apply", "drift", "trigger", "enforce")}
    shipped = {("understudy-runner", "understudy-runner"), *jobs}
    assert _bound(rendered["staging"]) == _bound(rendered["production"]) == shipped
    optional = ("understudy-launcher", "understudy-preflight", "understudy-promotion")
    assert _bound(with_components) == shipped | {("understudy-runner", name) for name in optional}
