"""Step notify, the exit handler: write outcome.json, and post it to a webhook if one is configured.

It runs whatever happened before it, and nothing that goes wrong here changes how the run ended.
"""

from __future__ import annotations

import json
import os
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.data.files import write_atomically
from understudy.platform.context import FAILURE_NAME, RunFolder
from understudy.platform.events import read_events

OUTCOME_NAME = "outcome.json"


def run(config: Mapping[str, Any], state: str, message: str | None = None) -> dict[str, Any]:
    """Write and send the run's outcome; return it.

    Args:
        config: the `notify` section.
        state: how the pipeline ended, as KFP says: SUCCEEDED, FAILED or CANCELLED.
        message: KFP's own word on a failure, used where the failing step left none.
    """
    folder = RunFolder.from_environment()
    outcome = _outcome(folder.path, folder.run_id, state, message)
    _write(folder.path / OUTCOME_NAME, outcome)
    variable = config.get("webhook_url_env")
    if variable:
        told = _post(str(variable), outcome, float(config.get("timeout_seconds", 10.0)))
        print(told, flush=True)
        folder.events.write("notify", "note", message=told)
    return outcome


def _outcome(run_dir: Path, run_id: str, state: str, message: str | None) -> dict[str, Any]:
    events = read_events(run_dir / "events.jsonl")
    records: dict[str, Any] = {event["step"]: event["records"] for event in events if event.get("records")}
    failure = _failure(run_dir / FAILURE_NAME)
    succeeded = state == "SUCCEEDED" and failure is None
    report = records.get("evaluate", {}).get("report", {})
    return {
        "run_id": run_id,
        "status": "succeeded" if succeeded else "failed",
        "failing_step": failure["step"] if failure else None,
        "error": failure["message"] if failure else (None if succeeded else message),
        "exit_code": failure["exit_code"] if failure else (0 if succeeded else 1),
        "report_uri": report.get("uri"),
        "verdict": report.get("verdict"),
        "promotion": records.get("promote", {}).get("promotion"),
        "registry_entry": records.get("register", {}).get("entry"),
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _failure(path: Path) -> dict[str, Any] | None:
    try:
        failure: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return failure


def _write(path: Path, outcome: Mapping[str, Any]) -> None:
    try:
        write_atomically(path, json.dumps(outcome, indent=1).encode())
    except OSError as error:
        print(f"outcome.json could not be written: {error}", flush=True)


def _post(variable: str, outcome: Mapping[str, Any], timeout_seconds: float) -> str:
    """Post the outcome as JSON; the URL may hold a secret, so it is never part of what is said."""
    url = os.environ.get(variable)
    if not url:
        return f"The webhook was not called: environment variable {variable} is not set."
    try:
        request = urllib.request.Request(
            url, data=json.dumps(outcome).encode(), headers={"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
            return f"The webhook of {variable} was called (HTTP {answer.status})."
    except Exception as error:
        # Whatever urllib raises may quote the URL; its class says enough.
        reason = getattr(error, "code", None) or type(error).__name__
        return f"The webhook of {variable} could not be called ({reason}); the outcome is in {OUTCOME_NAME}."
