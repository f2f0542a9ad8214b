"""Tracking and registry against MLflow on PostgreSQL with artifacts in S3."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

import pytest

from understudy.cli.model_stream import Answerer
from understudy.platform.promotion.examine import stored_artifacts
from understudy.platform.registry import Registry
from understudy.platform.tracking import current, open_run, open_step_run
from understudy.records import DatasetRef

DATASET = DatasetRef(
    "s3://b/d", "0123456789abcdef0123456789abcdef.dir", 3, {"train": 2, "test": 1}, 10, 2, "a.jsonl", "f" * 64, None
)


@pytest.fixture
def server(mlflow_uri, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_RUN_ID", tmp_path.name)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return mlflow_uri


def test_parent_step_metrics_dataset_and_artifact(server, tmp_path, monkeypatch):
    import mlflow

    (tmp_path / "report.html").write_text("<p>report</p>")
    with open_run("demo", "lineage", {"sft": {"epochs": 2}}, {"who": "test"}) as parent:
        monkeypatch.setenv("MLFLOW_RUN_ID", parent.run_id)
        for _ in range(2):  # the second time is a retry
            with open_step_run("sft", {"seed": 1, "sft": {"epochs": 2}}) as step:
                for number in range(2500):
                    step.log(number, {"loss": 1 / (number + 1)})
                current().log_dataset(DATASET)
                current().log_artifact(tmp_path / "report.html")
    client = mlflow.MlflowClient(server)
    run = client.get_run(step.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.data.params == {"seed": "1", "sft.epochs": "2"}
    assert [item.step for item in client.get_metric_history(step.run_id, "loss")] == list(range(2500))
    assert run.inputs.dataset_inputs[0].dataset.digest == DATASET.md5
    assert [item.path for item in client.list_artifacts(step.run_id)] == ["report.html"]
    assert [run.info.status, client.get_run(parent.run_id).info.status] == ["FINISHED", "FINISHED"]


def test_what_a_killed_step_said_is_kept_and_its_retry_goes_on(server, tmp_path, monkeypatch):
    import mlflow

    script = (
        "import os, time\n"
        "from understudy.platform.tracking import open_step_run\n"
        "with open_step_run('align', {'seed': 1}) as step:\n"
        "    for number in range(10): step.log(number, {'reward': number})\n"
        "    print(step.run_id, flush=True); os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    client = mlflow.MlflowClient(server)
    deadline = time.monotonic() + 60
    while client.get_run(killed.stdout.strip()).info.status == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert client.get_run(killed.stdout.strip()).info.status == "KILLED"
    with open_step_run("align", {"seed": 1}) as step:
        for number in range(8, 20):
            step.log(number, {"reward": number})
    assert step.run_id == killed.stdout.strip()
    assert [item.value for item in client.get_metric_history(step.run_id, "reward")] == list(range(20))


def test_register_once_load_and_generate(server, tmp_path, tiny_policy):
    import mlflow

    registry = Registry(server, tmp_path)
    tags = {"weights_sha256": "a" * 64, "report_sha256": "b" * 64, "metrics": '{"T=1": {"nll": 2.5}}'}
    started = time.monotonic()
    first = registry.register("server-model", "challenger", tiny_policy, tags, "understudy", None)
    print(f"register: {time.monotonic() - started:.1f} s")
    again = registry.register("server-model", "challenger", tiny_policy, tags, "understudy", None)
    assert (again.version, first.version) == ("1", "1")
    second = registry.register(
        "server-model", "challenger", tiny_policy, tags | {"report_sha256": "c"}, "understudy", None
    )
    assert second.version == "2"
    assert [(item.version, item.aliases) for item in registry.versions("server-model")] == [
        ("2", ["challenger"]),
        ("1", []),
    ]
    pipeline = mlflow.transformers.load_model("models:/server-model@challenger")
    text = pipeline("install nginx", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    assert text.startswith("install nginx")
    version = registry.find("server-model@challenger")
    folder = registry.download(version, tmp_path)
    assert folder == tmp_path / "model"
    assert (folder / "model.safetensors").read_bytes() == (tiny_policy / "model.safetensors").read_bytes()


def test_who_reads_a_registered_model_leaves_no_copy_of_it(server, tmp_path, tiny_policy, monkeypatch):
    registry = Registry(server, tmp_path / "w")
    tags = {"weights_sha256": "d" * 64, "report_sha256": "e" * 64, "metrics": "{}"}
    version = registry.find(f"{registry.register('read-model', 'challenger', tiny_policy, tags, 'read', None).name}/1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    (tmp_path / "system").mkdir()
    answerer = Answerer(registry, version, 3, 0.0)
    with stored_artifacts(registry, version, None) as stored:
        first, again = (stored.registered(version.tags["registered_sha256"]) for _ in range(2))
        assert first == again and (first / "model" / "model.safetensors").is_file()
    assert not list((tmp_path / "system").iterdir()) and not (tmp_path / "w" / "tmp").exists()
    assert answerer.answer("install nginx", 0)["tokens"] == 3  # its weights outlive the folder that they came from
