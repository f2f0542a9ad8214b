"""Step context: events, failure record, signals that save state or end at once."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import DataRefused, Preempted, ServiceUnreachable, TrainingDiverged, UnderstudyError
from understudy.platform import context as context_module
from understudy.platform.context import step_context
from understudy.platform.events import read_events
from understudy.tracker import ListTracker


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "runs" / "r1"
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_RUN_DIR", str(folder))
    monkeypatch.setenv("UNDERSTUDY_RUN_ID", "r1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def failure(run_dir: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((run_dir / "failure.json").read_text())
    return data


def test_start_and_finish_are_events_under_the_configs_step_name(run_dir: Path) -> None:
    with step_context("sft", {"seed": 7.0, "step": "sft_longer"}) as context:
        assert (context.seed, context.run_id, context.step) == (7, "r1", "sft_longer")
        context.tracker.log(1, {"loss": 2.0})
    events = read_events(run_dir / "events.jsonl")
    assert [(event["step"], event["kind"]) for event in events] == [
        ("sft_longer", "start"),
        ("sft_longer", "metrics"),
        ("sft_longer", "finish"),
    ]


@pytest.mark.parametrize(
    ("variables", "num_threads"),
    [
        ({"UNDERSTUDY_THREADS": "8"}, 8),
        ({"UNDERSTUDY_THREADS": "8", "LOCAL_WORLD_SIZE": "4"}, 2),
        ({"UNDERSTUDY_THREADS": "2", "LOCAL_WORLD_SIZE": "4"}, 1),
        ({"LOCAL_WORLD_SIZE": "3"}, 4),
        ({}, 12),
    ],
)
def test_the_processes_of_a_machine_share_its_threads(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], num_threads: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    for name in ("UNDERSTUDY_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with step_context("sft", {}) as context:
        assert context.threads == num_threads


def test_the_first_failure_is_the_one_recorded(run_dir: Path) -> None:
    for message in ("loss is nan at step 3", "later"):
        with pytest.raises(TrainingDiverged), step_context("sft", {}):
            raise TrainingDiverged(message)
    told = failure(run_dir)
    assert (told["step"], told["error"], told["message"], told["exit_code"]) == (
        "sft",
        "TrainingDiverged",
        "loss is nan at step 3",
        1,
    )
    assert "Traceback" in told["traceback"]


def test_a_full_disk_is_said_in_one_paragraph(run_dir: Path) -> None:
    with pytest.raises(UnderstudyError, match=r"disk is full: writing /x/y .*--workdir"), step_context("sft", {}):
        raise OSError(errno.ENOSPC, "No space left on device", "/x/y")


def test_a_full_disk_of_a_database_is_said_so_too(run_dir: Path) -> None:
    full = sqlite3.connect(":memory:")
    full.execute("PRAGMA max_page_count = 1")
    with pytest.raises(UnderstudyError, match=r"disk is full: .*database or disk is full.*--workdir") as said:
        with step_context("sft", {}):
            try:
                full.execute("CREATE TABLE t (x)")
            except sqlite3.Error as error:
                raise RuntimeError("MLflow's own") from error
    assert said.value.exit_code == failure(run_dir)["exit_code"] == 1


def test_a_signal_ends_a_step_without_state_at_once(run_dir: Path) -> None:
    with pytest.raises(Preempted, match="same command"), step_context("ingest", {}):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        pytest.fail("the signal did not interrupt")
    assert failure(run_dir)["exit_code"] == 75


def test_a_signal_lets_a_step_with_checkpoints_save_first(run_dir: Path) -> None:
    saved = []
    with pytest.raises(Preempted, match="round 7 of 20"), step_context("align", {}) as context:
        folder = context.checkpoint_dir("abc123")
        assert not context.should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert context.should_stop()
        saved.append(folder.name)
        raise Preempted("Stopped at round 7 of 20.")
    assert saved == ["align-abc123"]


def test_handlers_are_restored(run_dir: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with step_context("sft", {}):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stopped_run_starts_no_further_step(run_dir: Path) -> None:
    run_dir.mkdir(parents=True)
    (run_dir / "stop").touch()
    with pytest.raises(Preempted, match="before step evaluate began"), step_context("evaluate", {}):
        pytest.fail("the step began")


def test_a_lineage_cannot_leave_the_checkpoint_folder(run_dir: Path) -> None:
    with pytest.raises(ValueError, match="plain name"), step_context("sft", {}) as context:
        context.checkpoint_dir("../x")


@pytest.mark.parametrize("fails", [False, True])
def test_an_attempt_on_gpus_reports_its_hours_whatever_happens(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    mlflow_run = ListTracker()
    monkeypatch.setattr(context_module, "_mlflow_trackers", lambda stack, step, config: [mlflow_run])
    monkeypatch.setattr("understudy.platform.budget.gpus_held", lambda: 8)
    try:
        with step_context("sft", {}):
            if fails:
                raise DataRefused("no rows")
    except DataRefused:
        assert fails
    ((_, values),) = mlflow_run.logged
    assert 0 < values["gpu_hours"] < 8 * 60 / 3600


def test_what_a_retry_goes_on_from_goes_once_tracking_has_ended_well(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def refusing() -> Iterator[ListTracker]:
        yield ListTracker()
        raise ServiceUnreachable("MLflow does not answer.")

    done: list[str] = []
    monkeypatch.setattr(
        context_module, "_mlflow_trackers", lambda stack, step, config: [stack.enter_context(refusing())]
    )
    with pytest.raises(ServiceUnreachable), step_context("sft", {}) as context:
        context.when_done(lambda: done.append("tidy"))
    assert done == []
    assert [event["kind"] for event in read_events(run_dir / "events.jsonl")] == ["start", "failed"]
    monkeypatch.setattr(context_module, "_mlflow_trackers", lambda stack, step, config: [])
    monkeypatch.setenv("RANK", "1")
    with step_context("sft", {}) as context:
        context.when_done(lambda: done.append("another process"))
    monkeypatch.setenv("RANK", "0")
    with step_context("sft", {}) as context:
        context.when_done(lambda: done.append("tidy"))
    assert done == ["tidy"]


def test_a_launched_training_tidies_once_its_result_is_handed_over(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setenv("UNDERSTUDY_WORKER", "1")
    with step_context("sft", {}) as context:
        context.when_done(lambda: done.append("tidy"))
    assert done == []
    context_module.tidy_up()
    context_module.tidy_up()
    assert done == ["tidy"]
