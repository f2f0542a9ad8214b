"""kill -9 at arbitrary moments of sft and align, run again: the same final weights as without."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("chain.py")
pytestmark = pytest.mark.slow


def _start(workdir: Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "UNDERSTUDY_WORKDIR": str(workdir),
        "UNDERSTUDY_DEVICE": "cpu",
        "UNDERSTUDY_THREADS": "1",
        "PYTHONPATH": str(SCRIPT.parents[1]),
    }
    for name in ("UNDERSTUDY_RUN_DIR", "MLFLOW_TRACKING_URI", "UNDERSTUDY_STORAGE_URI", "UNDERSTUDY_RUNNER_PID"):
        environment.pop(name, None)
    command = [sys.executable, str(SCRIPT)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _digests(workdir: Path) -> dict[str, str]:
    process = _start(workdir)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-2000:]
    return dict(json.loads(out.splitlines()[-1]))


def _kill_in(workdir: Path, step: str, delay_seconds: float) -> bool:
    """Kill the process some time after the step's first checkpoint; say whether it was still in that step."""
    process = _start(workdir)
    pattern = f"checkpoints/{step}-*/step-*/manifest.json"
    limit = time.monotonic() + 120
    while not list(workdir.glob(pattern)) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    time.sleep(delay_seconds)
    alive = process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    return alive and bool(list(workdir.glob(f"checkpoints/{step}-*/step-*")))


def test_same_weights_after_kills_in_sft_and_align(tmp_path: Path) -> None:
    expected = _digests(tmp_path / "whole")
    chance = random.Random(3)
    hits = [_kill_in(tmp_path / "killed", step, chance.uniform(0, 0.15)) for step in ("sft", "sft", "align", "align")]
    assert sum(hits) >= 2, f"too few kills came while a step held checkpoints: {hits}"
    assert _digests(tmp_path / "killed") == expected
