"""The exit handler: outcome.json, and a webhook whose URL is never said."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import ServiceUnreachable
from understudy.platform.context import record_failure
from understudy.platform.steps import notify


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_RUN_ID", "r1")
    return tmp_path


def test_a_failure_is_told_with_step_words_and_exit_code(run_dir: Path) -> None:
    record_failure(run_dir, "sft", ServiceUnreachable("MLflow at http://m does not answer."))
    notify.run({}, state="FAILED", message="Task exit-handler-1 failed.")
    outcome = json.loads((run_dir / "outcome.json").read_text())
    assert (outcome["status"], outcome["failing_step"], outcome["exit_code"]) == ("failed", "sft", 5)
    assert outcome["error"] == "MLflow at http://m does not answer."


def test_an_outcome_does_not_meet_what_another_writes_aside(run_dir: Path) -> None:
    (run_dir / "outcome.aside").mkdir()
    notify.run({}, state="SUCCEEDED")
    assert json.loads((run_dir / "outcome.json").read_text())["status"] == "succeeded"
    assert sorted(path.name for path in run_dir.iterdir()) == ["outcome.aside", "outcome.json"]


def test_the_webhook_gets_the_outcome(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.handle_request, daemon=True).start()
    monkeypatch.setenv("HOOK", f"http://127.0.0.1:{server.server_port}/secret")
    notify.run({"webhook_url_env": "HOOK", "timeout_seconds": 5}, state="SUCCEEDED")
    server.server_close()
    assert [outcome["status"] for outcome in received] == ["succeeded"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/s3cret", "s3cret", None])
def test_a_webhook_that_fails_changes_nothing_and_its_url_stays_unsaid(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str | None
) -> None:
    if url:
        monkeypatch.setenv("HOOK", url)
    outcome = notify.run({"webhook_url_env": "HOOK", "timeout_seconds": 1}, state="SUCCEEDED")
    said = capsys.readouterr().out + (run_dir / "events.jsonl").read_text()
    assert outcome["status"] == "succeeded" and "HOOK" in said and "s3cret" not in said
