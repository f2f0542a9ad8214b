"""A run for new content, once, however often and by how many it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.kfp_api import KfpApi
from support.schedules import PARAMS, PIN, arguments_of, enabled, manifests, schedule, wanted

from understudy.errors import ServiceUnreachable
from understudy.platform.schedules import apply, make_plan
from understudy.platform.schedules_kfp import Kfp
from understudy.platform.trigger import Triggered, trigger

OLD, NEW = "a" * 64, "b" * 64


@pytest.fixture
def api() -> Iterator[KfpApi]:
    with KfpApi() as server:
        server.apply(manifests(PIN))
        yield server


@pytest.fixture
def kfp(api: KfpApi) -> Kfp:
    client = Kfp(api.url, "understudy")
    items = wanted(schedule())
    apply(make_plan(items, client, Path("/nonexistent")), items, client)
    return client


def start(kfp: Kfp, digest: str, **options: Any) -> Triggered:
    item = options.pop("item", schedule(params={"data.source": "s3://bucket/rows/"}))
    sources: list[str] = []

    def digest_of(source: str) -> str:
        sources.append(source)
        return digest

    result = trigger(item, PARAMS, kfp, digest_of, arguments_of, **options)
    assert sources in ([], ["s3://bucket/rows/"])
    return result


def test_new_content_starts_one_run_with_its_digest(api: KfpApi, kfp: Kfp) -> None:
    first = start(kfp, OLD)
    assert first.started and first.run_name == f"understudy-nightly-data-{OLD[:16]}"
    (run,) = api.runs.values()
    assert run["run_id"] == first.run_id and run["recurring_run_id"] in api.recurring_runs
    assert run["runtime_config"]["parameters"]["config"]["source_sha256"] == OLD
    assert run["service_account"] == "understudy-runner"
    assert OLD in run["description"]
    for state in ("RUNNING", "SUCCEEDED"):
        api.finish(first.run_id or "", state)
        again = start(kfp, OLD)
        assert not again.started and again.run_id == first.run_id and again.why == f"known: its run is {state}"
    assert start(kfp, NEW).started and len(api.runs) == 2
    assert not start(kfp, OLD).started  # content that came back is still known


def test_a_failed_run_is_started_again_only_when_asked(api: KfpApi, kfp: Kfp) -> None:
    first = start(kfp, OLD)
    assert not start(kfp, OLD, again=True).started  # it is still active
    api.finish(first.run_id or "", "FAILED")
    assert not start(kfp, OLD).started
    second = start(kfp, OLD, again=True)
    assert second.started and second.run_name == f"{first.run_name}-again-1" and second.run_id != first.run_id
    api.finish(second.run_id or "", "SUCCEEDED")
    assert not start(kfp, OLD, again=True).started
    assert len(api.runs) == 2


def test_two_that_race_get_the_same_run(api: KfpApi, kfp: Kfp, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = threading.Barrier(2)
    results: list[Triggered] = []

    def arguments(params: Any, digest: str) -> Any:
        barrier.wait(30)  # both have looked and found no run
        return arguments_of(params, digest)

    def race() -> None:
        client = Kfp(api.url, "understudy")
        results.append(trigger(schedule(), PARAMS, client, lambda source: NEW, arguments))

    threads = [threading.Thread(target=race) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(api.runs) == 1
    assert {result.run_id for result in results} == set(api.runs)


def test_content_stays_known_when_the_schedule_is_replaced(api: KfpApi, kfp: Kfp) -> None:
    first = start(kfp, OLD)
    items = wanted(schedule(cron="0 0 7 * * *"))
    apply(make_plan(items, kfp, Path("/nonexistent")), items, kfp)
    assert enabled(api) == [items["nightly"].name]
    assert start(kfp, OLD).run_id == first.run_id
    assert start(kfp, NEW).started


def test_a_schedule_whose_name_begins_like_another_is_another(api: KfpApi, kfp: Kfp) -> None:
    items = wanted(schedule("week-end"), schedule("week", cron="0 0 4 * * *"))
    apply(make_plan(items, kfp, Path("/nonexistent")), items, kfp)
    for name in ("week", "week-end"):
        (parent,) = kfp.recurring_runs_of(name)
        assert parent.name == items[name].name
        started = start(kfp, NEW, item=schedule(name, params={"data.source": "s3://bucket/rows/"}))
        assert api.runs[started.run_id or ""]["recurring_run_id"] == parent.id


def test_when_nothing_may_start(api: KfpApi, kfp: Kfp) -> None:
    assert start(kfp, NEW, item=schedule(enabled=False)).why == "it is not enabled"
    assert start(kfp, NEW, item=schedule(on_new_data=False)).why == "on_new_data is false"
    dry = start(kfp, NEW, dry_run=True)
    assert (dry.started, dry.why) == (False, "would start: the content is new")
    with pytest.raises(ServiceUnreachable, match="an enabled recurring run of schedule 'unknown' yet"):
        start(kfp, NEW, item=schedule("unknown", params={"data.source": "s3://bucket/rows/"}))
    with pytest.raises(ServiceUnreachable, match="KFP does not have toy-ffffffffffff yet"):
        pinned = schedule(pipeline_version="toy-ffffffffffff", params={"data.source": "s3://bucket/rows/"})
        start(kfp, NEW, item=pinned)
    assert api.runs == {}
