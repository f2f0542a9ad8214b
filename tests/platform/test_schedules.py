"""Plan and apply against the KFP stub through the real client over HTTP, with a crash at every call."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.kfp_api import KfpApi
from support.schedules import OTHER_PIN, PIN, arguments_of, enabled, manifests, schedule, wanted

from understudy.errors import ConfigError, ServiceUnreachable
from understudy.platform.schedules import Plan, Wanted, apply, compiled_versions, make_plan
from understudy.platform.schedules_kfp import EXPERIMENT, Kfp

NOWHERE = Path("/nonexistent")


@pytest.fixture
def api() -> Iterator[KfpApi]:
    with KfpApi() as server:
        server.apply(manifests(PIN, OTHER_PIN))
        yield server


@pytest.fixture
def kfp(api: KfpApi) -> Kfp:
    return Kfp(api.url, "understudy")


def reconcile(items: dict[str, Wanted], kfp: Kfp) -> Plan:
    plan = make_plan(items, kfp, NOWHERE)
    apply(plan, items, kfp)
    return plan


def kinds(plan: Plan) -> dict[str, str]:
    return {action.schedule: action.kind for action in plan.actions}


def test_a_life_of_schedules(api: KfpApi, kfp: Kfp) -> None:
    both = wanted(schedule("nightly"), schedule("weekly", enabled=False))
    assert kinds(reconcile(both, kfp)) == {"nightly": "create", "weekly": "create"}
    job = next(row for row in api.recurring_runs.values() if row["display_name"] == both["nightly"].name)
    version = next(row for row in api.versions.values() if row["name"] == PIN)
    assert job["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert (job["max_concurrency"], job["no_catchup"], job["namespace"]) == ("1", True, "understudy")
    assert job["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
    assert job["service_account"] == "understudy-runner"
    assert job["runtime_config"] == {"parameters": {"config": {"seed": 7, "source_sha256": "null"}}}
    assert [row["display_name"] for row in api.experiments.values()] == [EXPERIMENT]
    assert enabled(api) == [both["nightly"].name]

    before = len(api.calls)
    assert kinds(reconcile(both, kfp)) == {"nightly": "unchanged", "weekly": "unchanged"}
    assert {method for method, _ in api.calls[before:]} == {"GET"}  # nothing to do writes nothing

    switched = wanted(schedule("nightly", enabled=False), schedule("weekly"))
    assert kinds(reconcile(switched, kfp)) == {"nightly": "disable", "weekly": "enable"}
    assert enabled(api) == [switched["weekly"].name]
    assert len(api.recurring_runs) == 2  # KFP can change that much, so nothing was replaced

    changed = wanted(schedule("weekly", pipeline_version=OTHER_PIN))
    assert kinds(reconcile(changed, kfp)) == {"weekly": "replace", "nightly": "delete"}
    assert enabled(api) == [changed["weekly"].name] and len(api.recurring_runs) == 1


def test_the_new_one_is_made_before_the_old_one_goes_and_its_runs_go_on(api: KfpApi, kfp: Kfp) -> None:
    first = wanted(schedule())
    reconcile(first, kfp)
    running = api.tick(next(iter(api.recurring_runs)))
    before = len(api.calls)
    reconcile(wanted(schedule(cron="0 0 4 * * *")), kfp)
    writes = [(m, p.split("/")[3].split(":")[0] + p[p.rfind(":") :] * (":" in p)) for m, p in api.calls[before:]]
    writes = [(method, path) for method, path in writes if method != "GET"]
    assert writes == [
        ("POST", "recurringruns"),
        ("POST", "recurringruns:disable"),
        ("POST", "recurringruns:enable"),
        ("DELETE", "recurringruns"),
    ]
    assert running in api.runs and not api.deleted_workflows


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_call_is_repaired_by_the_next_apply(api: KfpApi, kfp: Kfp, after: bool) -> None:
    old = wanted(schedule("changes"), schedule("goes"), schedule("stays"))
    new = wanted(schedule("changes", cron="0 0 5 * * *"), schedule("stays"), schedule("comes"))
    for nth in range(1, 60):
        api.recurring_runs.clear()
        api.experiments.clear()
        reconcile(old, kfp)
        last = len(api.calls) + nth
        api.fail(nth, after)
        try:
            reconcile(new, kfp)
        except ServiceUnreachable as error:
            assert "Run the same command again" in str(error)
        if len(api.calls) < last:
            assert nth > 10  # every call of an apply has failed once
            return
        names = [name.rsplit("-", 1)[0] for name in enabled(api)]
        assert len(names) == len(set(names)), f"call {nth}: two versions of a schedule were enabled at once"
        reconcile(new, kfp)
        assert enabled(api) == sorted(item.name for item in new.values()), f"call {nth}"
        assert len(api.recurring_runs) == 3, f"call {nth}"
    raise AssertionError("the failures never ended")


def test_what_is_not_ours_is_never_touched(api: KfpApi, kfp: Kfp) -> None:
    target = wanted(schedule())
    reconcile(target, kfp)
    mine = next(iter(api.recurring_runs.values()))
    for identifier, name, description in (
        ("1", "somebody-elses", ""),
        ("2", "understudy-nightly-by-hand", "understudy schedule: looks like ours, name does not"),
        ("3", "understudy-nightly-aaaaaaaaaaaa", "made by hand"),
    ):
        api.recurring_runs[identifier] = mine | {
            "recurring_run_id": identifier,
            "display_name": name,
            "description": description,
        }
    plan = reconcile(wanted(), kfp)
    assert kinds(plan) == {"nightly": "delete"} and plan.foreign == ("understudy-nightly-aaaaaaaaaaaa",)
    assert sorted(api.recurring_runs) == ["1", "2", "3"]
    assert all(row["mode"] == "ENABLE" for row in api.recurring_runs.values())


def test_drift_by_hand_is_undone(api: KfpApi, kfp: Kfp) -> None:
    target = wanted(schedule())
    reconcile(target, kfp)
    (job,) = api.recurring_runs.values()
    for change, kind in (
        ({"mode": "DISABLE"}, "enable"),
        ({"trigger": {"cron_schedule": {"cron": "0 0 9 * * *"}}}, "replace"),
        ({"max_concurrency": "5"}, "replace"),
        ({"no_catchup": False}, "replace"),
    ):
        next(iter(api.recurring_runs.values())).update(change)
        plan = make_plan(target, kfp, NOWHERE)
        assert plan.drifted and kinds(plan) == {"nightly": kind}
        apply(plan, target, kfp)
        assert not make_plan(target, kfp, NOWHERE).drifted and enabled(api) == [target["nightly"].name]
    api.recurring_runs["twin"] = next(iter(api.recurring_runs.values())) | {"recurring_run_id": "twin"}
    assert kinds(reconcile(target, kfp)) == {"nightly": "replace"}
    assert len(api.recurring_runs) == 1 and "twin" not in api.recurring_runs


def test_a_recurring_run_of_another_account_is_replaced(api: KfpApi, kfp: Kfp) -> None:
    reconcile(wanted(schedule()), kfp)
    other = wanted(schedule(params={"platform.service_account": "team-runner"}))
    assert kinds(reconcile(other, kfp)) == {"nightly": "replace"}
    assert [row["service_account"] for row in api.recurring_runs.values()] == ["team-runner"]
    assert kinds(reconcile(other, kfp)) == {"nightly": "unchanged"}


def test_pins(api: KfpApi, kfp: Kfp, tmp_path: Path) -> None:
    unknown = wanted(schedule(pipeline_version="toy-0123456789ff"))
    with pytest.raises(ConfigError, match=f"exists neither in Git nor in KFP; the closest is '{PIN}'"):
        make_plan(unknown, kfp, NOWHERE)
    nobody = wanted(schedule(pipeline_version="nobody-0123456789ff"))
    with pytest.raises(ConfigError, match="schedule nightly: pipeline_version 'nobody-0123456789ff' exists neither"):
        make_plan(nobody, kfp, NOWHERE)
    manifest = "kind: PipelineVersion\nmetadata: {name: toy-0123456789ff}\n"
    (tmp_path / "pipeline-version.yaml").write_text(manifest)
    assert compiled_versions(tmp_path) == {"toy-0123456789ff"}
    plan = make_plan(unknown, kfp, tmp_path)  # Git has it, so the plan stands; KFP must have it before apply
    assert kinds(plan) == {"nightly": "create"}
    with pytest.raises(ServiceUnreachable, match="KFP does not have toy-0123456789ff yet, though it is in Git"):
        apply(plan, unknown, kfp)
    assert api.recurring_runs == {}


def test_more_recurring_runs_than_a_page(api: KfpApi, kfp: Kfp) -> None:
    target = wanted(schedule())
    reconcile(target, kfp)
    (job,) = list(api.recurring_runs.values())
    for index in range(450):
        identifier = f"{index:04}"
        api.recurring_runs[identifier] = job | {"recurring_run_id": identifier, "display_name": f"understudy-x{index}"}
    job["created_at"] = "2027-01-01T00:00:00Z"  # ours is on the last page
    assert kinds(make_plan(target, kfp, NOWHERE)) == {"nightly": "unchanged"}


def test_services_and_permissions_that_fail_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="KFP_ENDPOINT"):
        Kfp("", "understudy")
    with pytest.raises(ServiceUnreachable, match="http://127.0.0.1:9 does not answer"):
        make_plan(wanted(schedule()), Kfp("http://127.0.0.1:9", "understudy"), NOWHERE)
    with KfpApi(forbidden=["understudy"]) as api, pytest.raises(ConfigError, match="does not let this account list"):
        make_plan(wanted(schedule()), Kfp(api.url, "understudy"), NOWHERE)
    token = tmp_path / "token"
    token.write_text("right")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(token))
    with KfpApi(token="right") as api:
        api.apply(manifests(PIN))
        reconcile(wanted(schedule()), Kfp(api.url, "understudy"))
        assert len(api.recurring_runs) == 1
    with KfpApi(token="another") as api, pytest.raises(ConfigError, match="audience pipelines.kubeflow.org"):
        make_plan(wanted(schedule()), Kfp(api.url, "understudy"), NOWHERE)


def test_problems_of_all_schedules_at_once() -> None:
    poor = schedule("poor", budget_gpu_hours=0.5, params={"platform.steps.align.timeout_seconds": 60})
    with pytest.raises(ConfigError) as error:
        wanted(poor, schedule("typo", params={"sft.epoch": 1}))
    message = str(error.value)
    assert "schedule poor: the estimate is 2.29 GPU hours" in message and "the budget 0.5" in message
    assert "schedule typo:" in message and "sft.epochs" in message


def test_arguments_are_part_of_the_identity() -> None:
    changed: Any = wanted(schedule(params={"seed": 8}))["nightly"]
    assert changed.arguments == arguments_of(schedule(params={"seed": 8}).run_params(Path("params.yaml").absolute()))
    assert changed.name != wanted(schedule())["nightly"].name
