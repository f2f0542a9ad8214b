"""The stub refuses what the real API server refuses, asked through the real kfp client over HTTP."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from support.kfp_api import KfpApi
from support.kfp_rules import parse_cron

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kfp
    from kfp_server_api import ApiException, V2beta1Run

SPEC = {
    "pipelineInfo": {"name": "toy"},
    "schemaVersion": "2.1.0",
    "root": {
        "dag": {"tasks": {}},
        "inputDefinitions": {
            "parameters": {
                "config": {"parameterType": "STRUCT"},
                "gpus": {"parameterType": "NUMBER_INTEGER", "defaultValue": 1},
            }
        },
    },
}
MANIFESTS = [
    {"kind": "PipelineVersion", "metadata": {"name": "toy-1"}, "spec": {"pipelineName": "toy", "pipelineSpec": SPEC}},
    {"kind": "Pipeline", "metadata": {"name": "toy"}, "spec": {}},
]


@pytest.fixture
def api() -> Iterator[KfpApi]:
    with KfpApi() as server:
        server.apply(MANIFESTS)
        yield server


@pytest.fixture
def client(api: KfpApi, monkeypatch: pytest.MonkeyPatch) -> kfp.Client:
    return connect(api, monkeypatch)


def connect(api: KfpApi, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> kfp.Client:
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", "/nonexistent/context.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kfp.Client(host=api.url, namespace="understudy", **settings)


def refused(error: pytest.ExceptionInfo[ApiException]) -> tuple[int, str]:
    """Return the HTTP status and the message meant for the caller."""
    return error.value.status, json.loads(error.value.body)["details"][0]["message"]


def recurring(client: kfp.Client, api: KfpApi, **changes: Any) -> Any:
    version = next(iter(api.versions.values()))
    experiment = client.create_experiment("nightly", namespace="understudy")
    settings: dict[str, Any] = {
        "experiment_id": experiment.experiment_id,
        "job_name": "nightly",
        "cron_expression": "0 0 3 * * *",
        "max_concurrency": 1,
        "no_catchup": True,
        "params": {"config": {"seed": 1}},
        "pipeline_id": version["pipeline_id"],
        "version_id": version["pipeline_version_id"],
    }
    return client.create_recurring_run(**settings | changes)


def test_what_the_client_reads_back(api: KfpApi, client: kfp.Client) -> None:
    assert client.get_kfp_healthz().multi_user is True
    assert client.get_kfp_healthz().pipeline_store == "kubernetes"
    pipelines = client.list_pipelines(namespace="understudy").pipelines
    assert [pipeline.name for pipeline in pipelines] == ["toy"]
    versions = client.list_pipeline_versions(pipelines[0].pipeline_id).pipeline_versions
    assert [version.name for version in versions] == ["toy-1"]
    job = client.get_recurring_run(recurring(client, api).recurring_run_id)
    assert (job.display_name, job.max_concurrency, job.no_catchup, job.status) == ("nightly", "1", True, "ENABLED")
    assert job.trigger.cron_schedule.cron == "0 0 3 * * *"
    assert job.runtime_config.parameters == {"config": {"seed": 1}}
    assert job.pipeline_version_reference.pipeline_version_id == versions[0].pipeline_version_id


def test_names_of_experiments_are_unique_and_of_recurring_runs_are_not(api: KfpApi, client: kfp.Client) -> None:
    from kfp_server_api import V2beta1Experiment

    first, second = recurring(client, api), recurring(client, api)
    assert first.recurring_run_id != second.recurring_run_id
    with pytest.raises(ApiException) as error:
        body = V2beta1Experiment(display_name="nightly", namespace="understudy")
        client.experiments.experiment_service_create_experiment(experiment=body)
    assert refused(error)[0] == 409
    assert "The name nightly already exists" in refused(error)[1]


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"max_concurrency": 11}, 400, "at least 1 and at most 10. Received 11"),
        ({"max_concurrency": 0}, 400, "Received 0"),
        ({"cron_expression": "0 61 * * * *"}, 400, "End of range (61) above maximum (59): 61"),
        ({"cron_expression": "* * * *"}, 400, "Expected 5 to 6 fields, found 4"),
        ({"cron_expression": None, "interval_second": -5}, 400, "Set at interval to least 1 second"),
        ({"params": {}}, 400, "parameter config is not optional"),
        ({"params": {"config": {}, "seed": 1}}, 400, "not required by pipeline: seed"),
        ({"params": {"config": "text"}}, 400, "input parameter config requires type struct"),
        ({"params": {"config": {}, "gpus": "2"}}, 400, "requires type double or integer"),
        ({"version_id": "00000000-0000-0000-0000-000000000000"}, 500, "Internal Server Error"),
        ({"experiment_id": "nobody"}, 404, "Experiment nobody not found"),
        ({"experiment_id": ""}, 400, "Experiment id can not be empty in multi-user mode"),
        ({"job_name": ""}, 500, "Internal Server Error"),
    ],
)
def test_recurring_runs_that_are_refused(
    api: KfpApi, client: kfp.Client, changes: dict[str, Any], status: int, words: str
) -> None:
    with pytest.raises(ApiException) as error:
        recurring(client, api, **changes)
    assert refused(error)[0] == status
    assert words in refused(error)[1]
    assert api.recurring_runs == {}


def test_five_fields_are_taken_and_mean_something_else(api: KfpApi, client: kfp.Client) -> None:
    assert recurring(client, api, cron_expression="0 3 * * 1").status == "ENABLED"
    seconds, minutes, hours, *_ = parse_cron("0 3 * * 1") or []
    assert (seconds, minutes, len(hours)) == ({0}, {3}, 24)  # every hour at minute 3, not Mondays at three


def test_recurring_runs_cannot_change(api: KfpApi, client: kfp.Client) -> None:
    job = recurring(client, api)
    path = f"/apis/v2beta1/recurringruns/{job.recurring_run_id}"
    with pytest.raises(ApiException) as error:
        client.runs.run_service_get_run.__self__.api_client.call_api(path, "PATCH", body={}, _preload_content=False)
    assert refused(error) == (501, "Method Not Allowed")
    client.disable_recurring_run(job.recurring_run_id)
    assert client.get_recurring_run(job.recurring_run_id).status == "DISABLED"
    client.enable_recurring_run(job.recurring_run_id)
    assert client.get_recurring_run(job.recurring_run_id).status == "ENABLED"
    client.delete_recurring_run(job.recurring_run_id)
    with pytest.raises(ApiException) as error:
        client.get_recurring_run(job.recurring_run_id)
    assert refused(error)[0] == 404


def test_deleting_a_schedule_kills_its_runs_unless_they_are_orphaned(api: KfpApi, client: kfp.Client) -> None:
    for policy, killed in (("ORPHAN", 0), ("BACKGROUND", 1)):
        job = recurring(client, api)
        assert api.tick(job.recurring_run_id)
        assert api.tick(job.recurring_run_id) is None  # concurrency 1
        service = client.recurring_runs
        service.recurring_run_service_delete_recurring_run(job.recurring_run_id, propagation_policy=policy)
        assert len(api.deleted_workflows) == killed


def test_pages(api: KfpApi, client: kfp.Client) -> None:
    for _ in range(23):
        recurring(client, api)
    names: list[str] = []
    token, sizes = "", []
    while True:
        page = client.list_recurring_runs(page_token=token, page_size=10, namespace="understudy")
        names += [job.recurring_run_id for job in page.recurring_runs]
        sizes.append(len(page.recurring_runs))
        token = page.next_page_token
        if not token:
            break
    assert (sizes, len(set(names)), page.total_size) == ([10, 10, 3], 23, 23)
    assert len(client.list_recurring_runs(page_size=0, namespace="understudy").recurring_runs) == 20
    first = client.list_recurring_runs(page_size=5, namespace="understudy", sort_by="created_at desc")
    with pytest.raises(ApiException) as error:
        client.list_recurring_runs(page_token=first.next_page_token, namespace="understudy", sort_by="display_name")
    assert "page token does not match" in refused(error)[1]
    with pytest.raises(ApiException) as error:
        client.list_recurring_runs(page_token="nonsense", namespace="understudy")
    assert refused(error) == (400, "Invalid page token")
    with pytest.raises(ApiException) as error:
        client.list_recurring_runs(sort_by="mode", namespace="understudy")
    assert refused(error)[0] == 400


def test_filters(api: KfpApi, client: kfp.Client) -> None:
    for name in ("a-one", "a-two", "b-one"):
        recurring(client, api, job_name=name)

    def names(**predicate: Any) -> list[str] | None:
        text = json.dumps({"predicates": [predicate]})
        found = client.list_recurring_runs(namespace="understudy", filter=text).recurring_runs
        return None if found is None else [job.display_name for job in found]

    assert names(operation="IS_SUBSTRING", key="display_name", stringValue="a-") == ["a-one", "a-two"]
    assert names(operation=1, key="display_name", string_value="b-one") == ["b-one"]
    assert names(operation="EQUALS", key="display_name", stringValue="c") is None  # an empty list is absent
    with pytest.raises(ApiException) as error:
        names(operation="EQUALS", key="service_account", stringValue="c")
    assert "unrecognized field" in refused(error)[1]


def test_namespaces(api: KfpApi, client: kfp.Client) -> None:
    with pytest.raises(ApiException) as error:
        client.list_recurring_runs()
    assert refused(error) == (400, "a recurring run cannot have an empty namespace in multi-user mode")
    with pytest.raises(ApiException) as error:
        client.list_recurring_runs(namespace="others")
    assert refused(error)[0] == 403


def test_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with KfpApi(token="right") as api:
        with pytest.raises(ApiException) as error:
            connect(api, monkeypatch, existing_token="wrong").list_pipelines(namespace="understudy")
        assert refused(error)[0] == 401
        assert (
            connect(api, monkeypatch, existing_token="right").list_pipelines(namespace="understudy").pipelines is None
        )


def test_a_run_from_start_to_end(api: KfpApi, client: kfp.Client) -> None:
    experiment = client.create_experiment("adhoc", namespace="understudy")
    version = next(iter(api.versions.values()))
    ids = {"pipeline_id": version["pipeline_id"], "version_id": version["pipeline_version_id"]}
    run = client.run_pipeline(experiment.experiment_id, "one", params={"config": {}}, **ids)
    assert run.state == "PENDING"
    api.finish(run.run_id, "RUNNING")
    api.set_task(run.run_id, "sft", "RUNNING", "pod-1", "loss 1.0\n")
    task = client.get_run(run.run_id).run_details.task_details[0]
    assert (task.display_name, task.pod_name, task.state) == ("sft", "pod-1", "RUNNING")
    client.terminate_run(run.run_id)
    assert client.get_run(run.run_id).state == "CANCELING"
    with pytest.raises(ApiException) as error:
        client.terminate_run(run.run_id)
    assert refused(error)[0] == 400
    with pytest.raises(TimeoutError):  # CANCELED is no end for this client
        api.finish(run.run_id, "CANCELED")
        client.wait_for_run_completion(run.run_id, timeout=0.01, sleep_duration=0.02)


def test_two_runs_of_one_recurring_run_and_name_are_one(api: KfpApi, client: kfp.Client) -> None:
    job = recurring(client, api)
    body = V2beta1Run(
        experiment_id=job.experiment_id,
        display_name="data-1",
        recurring_run_id=job.recurring_run_id,
        pipeline_version_reference=job.pipeline_version_reference,
        runtime_config=job.runtime_config,
    )
    first, second = (client.runs.run_service_create_run(run=body) for _ in range(2))
    assert first.run_id == second.run_id
    body.display_name = "data-2"
    assert client.runs.run_service_create_run(run=body).run_id != first.run_id


def test_failures_come_before_or_after_the_effect(api: KfpApi, client: kfp.Client) -> None:
    recurring(client, api)
    for after, count in ((False, 1), (True, 2)):
        api.fail(2, after)  # the experiment is looked up first
        with pytest.raises(ApiException) as error:
            recurring(client, api)
        assert refused(error) == (503, "Service unavailable")
        assert len(api.recurring_runs) == count


def test_unknown_fields_are_refused(api: KfpApi, client: kfp.Client) -> None:
    call = client.runs.run_service_get_run.__self__.api_client.call_api
    with pytest.raises(ApiException) as error:
        call(
            "/apis/v2beta1/recurringruns",
            "POST",
            body={"name": "x"},
            header_params={"Content-Type": "application/json"},
        )
    assert refused(error) == (400, 'proto: (line 1:2): unknown field "name"')


def test_uploads(api: KfpApi, client: kfp.Client, tmp_path: Any) -> None:
    package = tmp_path / "toy.yaml"
    package.write_text(json.dumps(SPEC))
    pipeline = client.upload_pipeline(str(package), pipeline_name="uploaded", namespace="understudy")
    client.upload_pipeline_version(str(package), "uploaded-2", pipeline_id=pipeline.pipeline_id)
    versions = client.list_pipeline_versions(pipeline.pipeline_id).pipeline_versions
    assert [version.name for version in versions] == ["uploaded", "uploaded-2"]
    assert versions[1].pipeline_spec["pipeline_spec"] == SPEC
    with pytest.raises(ApiException) as error:
        client.upload_pipeline(str(package), pipeline_name="uploaded", namespace="understudy")
    assert refused(error)[0] == 409
