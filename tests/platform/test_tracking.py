"""Tracking in a sqlite store: what a step says arrives once, and nothing hangs."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError
from support.refused_writes import files_of_at_most

from understudy.data.files import is_full_disk
from understudy.errors import Preempted, ServiceUnreachable, UnderstudyError
from understudy.platform import where
from understudy.platform.registry import Registry
from understudy.platform.tracking import check_reachable, current, flatten, make_store, open_step_run


@pytest.fixture
def uri(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_RUN_ID", "run-1")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return uri


def test_a_retried_step_continues_its_run_and_logs_no_step_twice(uri):
    from mlflow import MlflowClient

    with pytest.raises(Preempted), open_step_run("sft", {"seed": 1, "code_sha256": "c"}) as first:
        for step in range(5):
            first.log(step, {"loss": step / 2, "nothing": float("nan")})
        raise Preempted("interrupted")
    client = MlflowClient(uri)
    assert client.get_run(first.run_id).info.status == "KILLED"
    with open_step_run("sft", {"seed": 1, "code_sha256": "c"}) as second:
        assert current() is second
        for step in range(3, 8):
            second.log(step, {"loss": step / 2})
    assert current() is None
    assert second.run_id == first.run_id
    assert [item.value for item in client.get_metric_history(first.run_id, "loss")] == [step / 2 for step in range(8)]
    run = client.get_run(first.run_id)
    parent = client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["understudy.run_id"] == "run-1"
    assert (run.info.status, run.data.params["seed"]) == ("FINISHED", "1")


def test_an_unreachable_server_is_named_within_seconds():
    started = time.monotonic()
    with pytest.raises(ServiceUnreachable, match="MLflow at http://127.0.0.1:9 does not answer") as error:
        check_reachable("http://user:secret@127.0.0.1:9")
    assert time.monotonic() - started < 15
    assert "secret" not in str(error.value) and error.value.exit_code == 5


def test_what_could_not_be_delivered_is_said_at_the_end(uri, tmp_path):
    (tmp_path / "mlflow.db").write_text("this is not a database")
    with (
        pytest.raises(ServiceUnreachable, match="did not take everything: .*not a database"),
        open_step_run("sft", {"seed": 1}) as tracker,
    ):
        tracker.log(1, {"loss": 1.0})


def test_only_the_first_rank_reports(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with open_step_run("sft", {}) as tracker:
        tracker.log(1, {"loss": 1.0})
        assert tracker.run_id == ""


def test_nested_values_become_flat_params():
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [1, 2], "f": "x"}) == {
        "a.b": "1",
        "a.c.d": "null",
        "e": "[1, 2]",
        "f": "x",
    }


def test_a_store_whose_first_tables_did_not_fit_is_made_whole_next_time(uri, tmp_path):
    with pytest.raises(SQLAlchemyError, match="disk I/O error") as refused, files_of_at_most(500_000):
        Registry(uri, tmp_path)
    assert is_full_disk(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db.lock"]
    (tmp_path / "mlflow.db.new-left").touch()  # by one that was killed
    (tmp_path / "mlflow.db.new-left-journal").touch()
    with open_step_run("sft", {"seed": 1}) as tracker:
        tracker.log(1, {"loss": 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("SELECT value FROM metrics WHERE key = 'loss'").fetchall() == [(1.0,)]


def test_processes_that_make_one_store_at_once_all_find_it_whole(uri, tmp_path):
    script = f"from understudy.platform.registry import Registry; print(Registry({uri!r}, None).versions())"
    made = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in made] == ["[]\n"] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_store_that_the_disk_has_no_room_for_is_no_service_that_does_not_answer(uri, tmp_path):
    # The process that writes inherits the limit.
    with (
        files_of_at_most(500_000),
        pytest.raises(UnderstudyError, match="The disk of sqlite:.*db is full .disk I/O error.*Free some") as said,
        open_step_run("sft", {"seed": 1}),
    ):
        pass
    assert said.value.exit_code == 1


def test_a_stores_options_are_no_part_of_its_file(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'a.db'}?timeout=20"
    make_store(uri)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.db", "a.db.lock"]
    assert where.sqlite_file(uri) == tmp_path / "a.db" and where.sqlite_file("http://a") is None
