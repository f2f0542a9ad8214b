"""The parent run in MLflow says how the pipeline ended, and nothing is lost with the process that writes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.tiny import ROOT

from understudy.platform.tracking import open_run, open_step_run

RUN = """
import json, sys
from pathlib import Path
from understudy.config import load_params
from understudy.errors import UnderstudyError
from understudy.platform import local_run
params = load_params(Path(sys.argv[1]) / "params.yaml", ["tracking.system_metrics=false"])
try:
    local_run.run("fake_dag:fake", json.loads(sys.argv[3]), params, Path(sys.argv[2]))
except UnderstudyError as error:
    sys.exit(error.exit_code)
"""


def start(workdir: Path, mode: str) -> subprocess.Popen[str]:
    given = {"first_config": {"value": 1}, "second_config": {"value": 1, "mode": mode}}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PYTHONPATH"] = str(ROOT / "tests" / "pipelines")
    return subprocess.Popen([sys.executable, "-c", RUN, str(ROOT), str(workdir), json.dumps(given)], env=environment)


def runs(workdir: Path) -> list[Any]:
    """All runs, parents first."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workdir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("understudy")
    found = client.search_runs([experiment.experiment_id])
    return sorted(found, key=lambda run: "mlflow.parentRunId" in run.data.tags)


def ended(workdir: Path) -> list[tuple[str, str]]:
    return [(run.data.tags["mlflow.runName"].split()[0], run.info.status) for run in runs(workdir)]


@pytest.mark.slow
def test_the_parent_run_is_finished_or_failed_as_the_pipeline_is(tmp_path: Path) -> None:
    assert start(tmp_path / "good", "ok").wait(timeout=120) == 0
    assert ended(tmp_path / "good")[0] == ("run", "FINISHED")
    assert start(tmp_path / "bad", "refuse").wait(timeout=120) == 3
    assert ended(tmp_path / "bad")[0] == ("run", "FAILED")


@pytest.mark.slow
def test_a_stopped_run_is_killed_and_the_next_one_continues_it(tmp_path: Path) -> None:
    process = start(tmp_path, "loop")
    deadline = time.monotonic() + 120
    while "looping" not in "".join(path.read_text() for path in tmp_path.glob("runs/*/events.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 75
    first = runs(tmp_path)[0]
    assert first.info.status == "KILLED"
    again = start(tmp_path, "loop")
    deadline = time.monotonic() + 120
    while runs(tmp_path)[0].info.status != "RUNNING":
        assert again.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    again.send_signal(signal.SIGINT)
    assert again.wait(timeout=60) == 75
    assert [run.info.run_id for run in runs(tmp_path) if "mlflow.parentRunId" not in run.data.tags] == [
        first.info.run_id
    ]


def test_when_the_shared_writer_dies_what_was_said_is_said_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for name, value in {"MLFLOW_TRACKING_URI": uri, "UNDERSTUDY_WORKDIR": tmp_path, "UNDERSTUDY_RUN_ID": "r"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    with open_run("run r", "lineage", {}, {}) as parent:
        monkeypatch.setenv("MLFLOW_RUN_ID", parent.run_id)
        with open_step_run("sft", {"seed": 1}) as step:
            step.log(0, {"loss": 3.0})
            run_id = step.run_id
            os.kill(parent._channel.pid, signal.SIGKILL)  # as the kernel does when memory runs out
            for number in range(1, 4):
                step.log(number, {"loss": 3.0 - number})
    client = MlflowClient(uri)
    assert [item.value for item in client.get_metric_history(run_id, "loss")] == [3.0, 2.0, 1.0, 0.0]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert client.get_run(parent.run_id).info.status == "FINISHED"
    assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == parent.run_id
