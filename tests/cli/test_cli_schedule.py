"""`understudy schedule` as people and the jobs in k8s/schedules call it, with the real pipeline on the KFP stub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.kfp_api import KfpApi
from support.schedules import ROOT

from understudy.cli import call

COMPILED = ROOT / "pipelines" / "compiled" / "kubernetes"
ROWS = '{"prompt": "one", "response": "two"}\n'


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpApi]:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["understudy", "schedule"])  # the command line looks there for a page of help
    with KfpApi() as server:
        names = ("pipeline.yaml", "pipeline-version.yaml")
        server.apply(yaml.load((COMPILED / name).read_text(), Loader=yaml.CSafeLoader) for name in names)
        monkeypatch.setenv("KFP_ENDPOINT", server.url)
        yield server


@pytest.fixture
def folder(tmp_path: Path, api: KfpApi) -> Path:
    """One schedule of the compiled version, whose source is a file."""
    (tmp_path / "rows.jsonl").write_text(ROWS)
    schedules = tmp_path / "schedules"
    schedules.mkdir()
    values = yaml.safe_load((ROOT / "pipelines/schedules/weekly.yaml").read_text())
    values["pipeline_version"] = next(row["name"] for row in api.versions.values())
    values["params"] = {"data.source": str(tmp_path / "rows.jsonl")}
    (schedules / "weekly.yaml").write_text(yaml.safe_dump(values))
    return schedules


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = call(["schedule", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def change(folder: Path, **values: Any) -> None:
    path = folder / "weekly.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


def test_plan_apply_plan(api: KfpApi, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--folder", str(folder))
    status, out, err = run(capsys, "plan", *where, "--exit-code")
    assert status == 4 and out.startswith("create    understudy-weekly-") and "KFP differs from Git in 1" in err
    assert "estimate 2.29 of 60 GPU hours" in out
    status, out, _ = run(capsys, "apply", *where)
    assert status == 0 and out.startswith("create understudy-weekly-")
    (job,) = api.recurring_runs.values()
    # The real arguments fit the real pipeline; the source's digest is left to each run.
    assert job["runtime_config"]["parameters"]["ingest_config"]["source_sha256"] == "null"
    assert run(capsys, "plan", *where, "--exit-code")[0] == 0
    status, out, _ = run(capsys, "plan", *where, "--json")
    plan = json.loads(out)
    assert (plan["drifted"], [action["kind"] for action in plan["actions"]]) == (False, ["unchanged"])
    assert run(capsys, "apply", *where)[1] == "1 schedule(s), nothing to do.\n"
    status, out, _ = run(capsys, "apply", *where, "--environment", "staging")  # it runs in production only
    assert out.startswith("delete understudy-weekly-") and api.recurring_runs == {}


def test_a_schedule_that_promotes_carries_the_reviewed_gate(
    api: KfpApi, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = tmp_path / "gate.yaml"
    gate.write_text((ROOT / "gate.yaml").read_text())
    params = yaml.safe_load((folder / "weekly.yaml").read_text())["params"]
    change(folder, params=params | {"promotion.enabled": True, "promotion.gate": str(gate)})
    assert run(capsys, "apply", "--folder", str(folder))[0] == 0
    (job,) = api.recurring_runs.values()
    given = job["runtime_config"]["parameters"]
    assert given["promotion_enabled"] is True and given["promote_config"]["gate_yaml"] == gate.read_text()
    assert run(capsys, "plan", "--folder", str(folder), "--exit-code")[0] == 0
    gate.write_text(gate.read_text().replace("margin: 0.05", "margin: 0.04"))
    assert run(capsys, "plan", "--folder", str(folder), "--exit-code")[0] == 4
    gate.write_text("confidence: yes\n")
    status, _, err = run(capsys, "check", "--folder", str(folder))
    assert status == 2 and "primary: missing" in err


def test_refusals_have_exit_codes(api: KfpApi, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--folder", str(folder))
    change(folder, pipeline_version="understudy-retrain-ffffffffffff")
    status, _, err = run(capsys, "plan", *where)
    assert status == 2 and "exists neither in Git nor in KFP; the closest is 'understudy-retrain-" in err
    change(folder, budget_gpu_hours=1)
    status, _, err = run(capsys, "check", *where)
    assert status == 2 and "the estimate is 2.29 GPU hours" in err
    status, _, err = run(capsys, "plan", "--folder", "pipelines/schedules", "--endpoint", "http://127.0.0.1:9")
    assert status == 5 and "http://127.0.0.1:9 does not answer" in err


def test_new_rows_start_one_run(api: KfpApi, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--folder", str(folder))
    assert run(capsys, "trigger", *where)[0] == 5  # nothing was applied yet
    run(capsys, "apply", *where)
    assert "weekly: started understudy-weekly-data-" in run(capsys, "trigger", *where)[1]
    assert "nothing started: known: its run is PENDING" in run(capsys, "trigger", *where)[1]
    (folder.parent / "rows.jsonl").write_text(ROWS + ROWS)
    result = json.loads(run(capsys, "trigger", *where, "--json")[1])["triggered"][0]
    assert result["started"] and len(api.runs) == 2
    config = api.runs[result["run_id"]]["runtime_config"]["parameters"]["ingest_config"]
    assert config["source_sha256"] == result["source_sha256"] and len(result["source_sha256"]) == 64
    assert run(capsys, "trigger", *where, "--schedule", "nobody")[0] == 2


def test_who_overspends_is_terminated(api: KfpApi, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--folder", str(folder))
    run(capsys, "apply", *where)
    (job,) = api.recurring_runs
    started = api.tick(job)
    foreign = api.tick(job) or started
    assert started is not None and started == foreign
    other = api.runs[started] | {"run_id": "foreign", "recurring_run_id": ""}
    api.runs["foreign"] = other
    api.finish(started, "RUNNING")  # the stub's clock is in the past: far more than 60 hours ago
    assert "would be terminated" in run(capsys, "enforce", *where, "--dry-run")[1]
    assert api.runs[started]["state"] == "RUNNING"
    status, out, _ = run(capsys, "enforce", *where)
    assert status == 0 and "its budget allows 60.0 h" in out
    assert (api.runs[started]["state"], other["state"]) == ("CANCELING", "PENDING")
    assert run(capsys, "enforce", *where)[1] == "Every run is within its budget.\n"


def test_check_of_what_is_in_git(api: KfpApi, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "check")
    assert status == 0 and "weekly: 0 0 2 * * 1, estimate 2.29 of 60 GPU hours" in out
    (folder / "kustomization.yaml").write_text("configMapGenerator: [{name: x, files: [other.yaml]}]\n")
    status, _, err = run(capsys, "check", "--folder", str(folder))
    assert status == 2 and "names ['other.yaml'], the folder holds ['weekly.yaml']" in err


def test_cost(api: KfpApi, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from mlflow import MlflowClient

    where = ("--folder", str(folder))
    run(capsys, "apply", *where)
    (job,) = api.recurring_runs
    started = api.tick(job)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    status, _, err = run(capsys, "cost", *where)
    assert status == 2 and "MLFLOW_TRACKING_URI" in err
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("understudy", (tmp_path / "a").as_uri())
    for hours, result in ((0.25, {}), (0.25, {"understudy.result.compute_token_passes": "1800000"})):
        tags = {"understudy.step": "sft", "understudy.run_id": str(started)} | result
        client.log_metric(client.create_run(experiment, tags=tags).info.run_id, "gpu_hours", hours)
        if not result:  # a step that failed has held GPUs and counted nothing, so there is no rate
            assert run(capsys, "cost", *where)[1].endswith(f"  run {started}: 0.25 GPU hours\n")
    found = json.loads(run(capsys, "cost", *where, "--json")[1])["weekly"]
    assert found["runs"] == [
        {"run_id": started, "gpu_hours": 0.5, "steps": {"sft": 0.5}, "token_passes_per_gpu_second": 2000.0}
    ]
    assert (found["budget_gpu_hours"], found["estimate"]["gpu_hours"]) == (60, 2.29)
    assert "0.5 GPU hours, 2000 token passes/s and GPU" in run(capsys, "cost", *where)[1]
