"""The whole pipeline against real servers: data, store and DVC in S3, MLflow on PostgreSQL with artifacts in S3.

The commands run as a person runs them, in processes of their own, and only the environment holds the keys.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from integration.conftest import ACCESS_KEY, SECRET_KEY, S3Server, s3_serving
from support.tiny import ROOT, run_command

from understudy.errors import ServiceUnreachable

STEPS = ["ingest", "sft", "align", "sft_longer", "evaluate", "register"]
SMALL = ["align.checkpoint_every_rounds=2", "evaluation.max_prompts=12", "evaluation.max_response_tokens=24"]
SMALL += ["evaluation.samples_shown=4", "registry.name=servers"]


@dataclass
class Project:
    """A working directory, the services it uses, and how `understudy run` is called for it."""

    workdir: Path
    bucket: str
    s3: S3Server
    tracking_uri: str

    @property
    def overrides(self) -> list[str]:
        places = [
            f"data.source=s3://{self.bucket}/demonstrations",
            f"storage.uri=s3://{self.bucket}/store",
            f"storage.dvc_remote=s3://{self.bucket}/dvc",
            f"storage.endpoint_url={self.s3.endpoint}",
            f"tracking.uri={self.tracking_uri}",
            f"tracking.experiment={self.bucket}",
        ]
        return [*SMALL, *places]

    def start(self) -> subprocess.Popen[str]:
        command = run_command(self.workdir, *self.overrides, options=("--json",))
        keys = {name: value for name, value in self.s3.environment.items() if "ENDPOINT" not in name}
        log = (self.workdir.parent / f"{self.workdir.name}.err").open("a")
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **keys}, text=True, stdout=subprocess.PIPE, stderr=log
        )

    def run(self) -> tuple[int, str]:
        process = self.start()
        said, _ = process.communicate(timeout=200)
        return process.returncode, said

    @property
    def errors(self) -> str:
        return (self.workdir.parent / f"{self.workdir.name}.err").read_text()

    def leaks(self) -> list[str]:
        """Files of the working directory, and what was said, that hold a key."""
        files = [path for path in self.workdir.parent.rglob("*") if path.is_file()]
        keys = [ACCESS_KEY.encode(), SECRET_KEY.encode()]
        return [str(path) for path in files if any(key in path.read_bytes() for key in keys)]


def new_project(folder: Path, s3: S3Server, tracking_uri: str) -> Project:
    project = Project(folder / "work", s3.new_bucket(), s3, tracking_uri)
    source = ROOT / "examples/tiny/demonstrations.jsonl"
    s3.client().upload_file(str(source), project.bucket, "demonstrations/rows.jsonl")
    return project


@pytest.fixture(scope="module")
def project(s3_server, mlflow_uri, tmp_path_factory) -> Project:
    return new_project(tmp_path_factory.mktemp("servers"), s3_server, mlflow_uri)


@pytest.fixture(scope="module")
def finished(project) -> dict[str, Any]:
    started = time.monotonic()
    code, said = project.run()
    print(f"first run: {time.monotonic() - started:.1f} s")
    assert code == 0, project.errors
    outcome: dict[str, Any] = json.loads(said)
    return outcome


@pytest.fixture
def client(project):
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(project.tracking_uri)
    yield mlflow.MlflowClient(project.tracking_uri)
    mlflow.set_tracking_uri(before)


def test_every_record_lies_in_the_bucket(project, finished):
    records = {step: item for step, found in finished["records"].items() for item in found.values()}
    assert sorted(records) == sorted(STEPS)
    dataset = records["ingest"]
    assert dataset["uri"].startswith(f"s3://{project.bucket}/dvc/files/md5/")
    stored = {step: f"s3://{project.bucket}/store/policy/" for step in ("sft", "align", "sft_longer")}
    stored["evaluate"] = f"s3://{project.bucket}/store/report/"
    for step, prefix in stored.items():
        if step != "align":
            assert records[step]["uri"] == prefix + records[step]["sha256"]
    assert finished["records"]["align"]["policy"]["uri"].startswith(stored["align"])
    listed = project.s3.client().list_objects_v2(Bucket=project.bucket, Prefix="store/policy")["Contents"]
    policies = {item["Key"].split("/")[2] for item in listed if item["Key"].endswith("/manifest.json")}
    assert {records["sft"]["sha256"], finished["records"]["align"]["policy"]["sha256"]} <= policies
    assert records["register"]["tags"]["dataset_md5"] == dataset["md5"]


def test_one_parent_run_and_a_nested_run_for_each_step(project, finished, client):
    experiment = client.get_experiment_by_name(project.bucket).experiment_id
    runs = client.search_runs([experiment])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    steps = {run.info.run_name: run for run in runs if run is not parent}
    assert (parent.info.status, parent.data.tags["understudy.run_id"]) == ("FINISHED", finished["run_id"])
    assert parent.data.params["sft.batch_tokens"] == "1024" and "storage.uri" not in parent.data.params
    assert sorted(steps) == sorted(STEPS) and len(runs) == 1 + len(STEPS)
    assert {run.info.status for run in steps.values()} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in steps.values()} == {parent.info.run_id}
    assert steps["sft"].data.params["sft.batch_tokens"] == "1024" and steps["align"].data.params["seed"] == "7"
    for step, metric in {"sft": "loss", "align": "reward", "sft_longer": "loss"}.items():
        name = next(name for name in sorted(steps[step].data.metrics) if name.split("/")[-1].startswith(metric))
        history = client.get_metric_history(steps[step].info.run_id, name)
        numbers = [item.step for item in history]
        assert len(numbers) >= 2 and numbers == sorted(set(numbers)), (step, name, numbers)
    md5 = finished["records"]["ingest"]["dataset"]["md5"]
    for step in ("ingest", "sft", "align", "sft_longer", "evaluate"):
        assert [item.dataset.digest for item in steps[step].inputs.dataset_inputs] == [md5], step
    assert [item.path for item in client.list_artifacts(steps["evaluate"].info.run_id)] == ["report.html"]
    assert steps["sft"].data.tags["understudy.result.sha256"] == finished["records"]["sft"]["policy"]["sha256"]


def test_the_registered_version_is_tagged_loads_and_generates(project, finished, client):
    import mlflow

    version = client.get_model_version_by_alias("servers", "challenger")
    align, report = finished["records"]["align"]["policy"], finished["records"]["evaluate"]["report"]
    tags = version.tags
    assert (tags["weights_sha256"], tags["weights_uri"]) == (align["sha256"], align["uri"])
    assert (tags["parent_sha256"], tags["stage"]) == (finished["records"]["sft"]["policy"]["sha256"], "aligned")
    assert (tags["report_sha256"], tags["verdict"]) == (report["sha256"], report["verdict"])
    assert tags["pipeline_run"] == finished["run_id"] and tags["git_dirty"] in ("true", "false", "unknown")
    for name in ("dataset_md5", "source_sha256", "config_sha256", "code_sha256", "policy_config_sha256", "git_commit"):
        assert tags[name], name
    assert {"T=1", "greedy"} <= set(json.loads(tags["metrics"]))
    pipeline = mlflow.transformers.load_model("models:/servers@challenger")
    text = pipeline("colour of sky?", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    assert text.startswith("colour of sky?") and len(text) > len("colour of sky?")


def test_again_is_cached_from_the_bucket_and_no_key_was_written(project, finished, client):
    def objects() -> dict[str, Any]:
        pages = project.s3.client().get_paginator("list_objects_v2").paginate(Bucket=project.bucket)
        return {item["Key"]: item["LastModified"] for page in pages for item in page.get("Contents", [])}

    before = objects()
    code, said = project.run()
    assert code == 0, project.errors
    outcome = json.loads(said)
    assert set(outcome["cached"]) >= set(STEPS)
    assert outcome["records"]["register"]["entry"]["version"] == finished["records"]["register"]["entry"]["version"]
    assert outcome["seconds"] < 30
    assert objects() == before
    assert project.leaks() == []


def test_a_server_that_goes_away_is_named_and_leaves_nothing_half_written(mlflow_uri, tmp_path):
    (tmp_path / "server").mkdir()
    (tmp_path / "project").mkdir()
    with s3_serving(tmp_path / "server") as server:
        project = new_project(tmp_path / "project", server, mlflow_uri)
        process = project.start()
        wait_for(project, process, '"sft", "kind": "start"')
        server.process.kill()
        server.process.wait()
        said, _ = process.communicate(timeout=120)
    assert process.returncode == ServiceUnreachable.exit_code == 5, project.errors
    store = f"s3://{project.bucket}/"
    (failure,) = [json.loads(path.read_text()) for path in project.workdir.glob("runs/*/failure.json")]
    assert (failure["step"], failure["error"]) == ("sft", "ServiceUnreachable")
    assert store in failure["message"] and f"at {server.endpoint}" in failure["message"]
    assert failure["message"] in project.errors
    assert sorted(path.name for path in project.workdir.rglob("*aside*")) == []
    assert not list((project.workdir / "store").glob("policy/*"))
    started = time.monotonic()
    code, said = project.run()
    assert (code, said) == (5, "") and time.monotonic() - started < 40
    assert f"at {server.endpoint}" in project.errors.removeprefix(failure["message"])
    assert project.leaks() == []


def wait_for(project: Project, process: subprocess.Popen[str], text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in "".join(path.read_text() for path in project.workdir.glob("runs/*/events.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, project.errors
        time.sleep(0.1)
