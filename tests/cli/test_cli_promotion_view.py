"""What a person sees of the last step: in the live view, at the end, and in the outcome that a webhook gets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.tiny import tiny_params

from understudy.cli.live import LiveView
from understudy.cli.summary import print_summary
from understudy.platform.local_run import RunResult
from understudy.platform.steps import notify

REFUSED = {
    "name": "tiny", "version": "3", "outcome": "refused", "verdict": "fail", "more_prompts": None, "champion": "2",
    "reason": "tiny/3 is not promoted: the gate's verdict is fail.\n  - Fail: judge:validity (tuned) is 0.01 worse.",
}  # fmt: skip


def console() -> Console:
    return Console(width=80, record=True, file=open(os.devnull, "w"))  # noqa: SIM115


def test_the_live_view_has_the_step_where_it_is_enabled() -> None:
    enabled = LiveView(tiny_params("promotion.enabled=true"), console=console())
    assert list(enabled.steps)[-2:] == ["register", "promote"]
    enabled.update([{"step": "promote", "kind": "start", "t": 1.0}])
    assert enabled.steps["promote"].state == "running"
    assert "promote" not in LiveView(tiny_params(), console=console()).steps


def test_the_end_says_what_was_decided_and_why(tmp_path: Path) -> None:
    shown = console()
    entry = {"name": "tiny", "version": "3", "alias": "challenger"}
    records: dict[str, Any] = {"register": {"entry": entry}, "promote": {"promotion": REFUSED}}
    print_summary(shown, RunResult("r", tmp_path, 75.0, {}, {}, records, ()), 8, None)
    text = " ".join(shown.export_text().split())
    assert "promotion refused: tiny/3 is not promoted: the gate's verdict is fail. - Fail: judge:validity" in text


def test_the_outcome_that_is_sent_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_RUN_ID", "r1")
    event = {"t": 1.0, "step": "promote", "kind": "finish", "records": {"promotion": REFUSED}}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    outcome = notify.run({}, state="SUCCEEDED")
    assert outcome["status"] == "succeeded" and outcome["promotion"] == REFUSED
