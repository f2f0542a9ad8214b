"""The local run with a small real KFP pipeline: cache, failures, signals, kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from understudy.config import Params, load_params
from understudy.errors import DataRefused, Preempted, UnderstudyError
from understudy.platform import local_run, where

ROOT = Path(__file__).parents[2]
PIPELINE = "fake_dag:fake"
RUN = """
import json, sys
from pathlib import Path
from understudy.config import load_params
from understudy.errors import UnderstudyError
from understudy.platform import local_run
params = load_params(Path(sys.argv[1]) / "params.yaml")
local_run.where.tracking_uri = lambda params, workdir: ""
try:
    local_run.run("fake_dag:fake", json.loads(sys.argv[3]), params, Path(sys.argv[2]))
except UnderstudyError as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def params(monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "pipelines"))
    # Tracking has its own tests; MLflow would cost each run here some seconds.
    monkeypatch.setattr(where, "tracking_uri", lambda folder, params: "")
    return load_params(ROOT / "params.yaml")


def given(value: int = 1, mode: str = "ok", first: int = 1) -> dict[str, Any]:
    return {"first_config": {"value": first}, "second_config": {"value": value, "mode": mode}}


def test_unchanged_is_cached_and_a_change_runs_from_the_first_step_that_reads_it(
    params: Params, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    results = [
        local_run.run(PIPELINE, arguments, params, tmp_path)
        for arguments in (given(), given(), given(value=2), given(value=2, first=2))
    ]
    assert [result.cached for result in results] == [(), ("first", "second"), ("first",), ()]
    records = [result.records["second"]["model"]["sha256"] for result in results]
    assert records[0] == records[1] and len(set(records)) == 3
    assert results[1].seconds < 10
    outcome = json.loads((results[0].run_dir / "outcome.json").read_text())
    assert (outcome["status"], outcome["exit_code"]) == ("succeeded", 0)
    assert capfd.readouterr() == ("", "")  # all of kfp's output is in kfp.log
    assert "finished with status" in (results[0].run_dir / "kfp.log").read_text()


@pytest.mark.parametrize("mode", ["ok", "refuse"])
def test_a_run_leaves_nothing_in_the_folder_for_temporary_files(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with nullcontext() if mode == "ok" else pytest.raises(DataRefused):
        local_run.run(PIPELINE, given(mode=mode), params, tmp_path / "workdir")
    # kfp writes each step's program into a folder of its own there, and leaves it.
    assert not list(temporary.iterdir())


def test_a_deleted_artifact_is_made_again(params: Params, tmp_path: Path) -> None:
    result = local_run.run(PIPELINE, given(), params, tmp_path)
    folder = Path(result.records["second"]["model"]["uri"])
    (folder / "text").unlink()
    folder.rmdir()
    assert local_run.run(PIPELINE, given(), params, tmp_path).cached == ("first",)


def test_a_steps_error_comes_back_with_its_class_and_words(params: Params, tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="^7 of 10 rows are bad; correct them.$"):
        local_run.run(PIPELINE, given(mode="refuse"), params, tmp_path)
    (outcome,) = [json.loads(path.read_text()) for path in tmp_path.glob("runs/*/outcome.json")]
    assert (outcome["status"], outcome["failing_step"], outcome["exit_code"]) == ("failed", "second", 3)


def test_a_bug_names_step_and_log_and_a_killed_step_is_explained(params: Params, tmp_path: Path) -> None:
    with pytest.raises(UnderstudyError, match=r"Step second failed unexpectedly: KeyError: 'lost'.*kfp\.log"):
        local_run.run(PIPELINE, given(mode="bug"), params, tmp_path)
    with pytest.raises(UnderstudyError, match="Step second ended without a word: it was probably killed"):
        local_run.run(PIPELINE, given(mode="die"), params, tmp_path)


def start(workdir: Path, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(ROOT), str(workdir), json.dumps(given(mode=mode))]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    deadline = time.monotonic() + 60
    while "looping" not in "".join(path.read_text() for path in workdir.glob("runs/*/events.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    return process


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "pipelines"))


@pytest.mark.usefixtures("untracked")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_save_and_ends_with_75(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "loop")
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == Preempted.exit_code
    assert "saved at round 7" in said and "same command again to resume" in said
    assert (tmp_path / "checkpoints" / "second-lineage" / "state").read_text() == "7"


@pytest.mark.usefixtures("untracked")
def test_a_second_signal_kills_a_deaf_step(tmp_path: Path) -> None:
    process = start(tmp_path, "deaf")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == Preempted.exit_code


@pytest.mark.usefixtures("untracked")
def test_after_kill_9_the_step_saves_and_the_workdir_is_free(tmp_path: Path, params: Params) -> None:
    process = start(tmp_path, "loop")
    process.kill()
    process.wait()
    local_run.run(PIPELINE, given(), params, tmp_path)
    assert (tmp_path / "checkpoints" / "second-lineage" / "state").read_text() == "7"
