"""sft and align under `accelerate launch` with two gloo processes: interrupted in each, then ended by one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.tiny import tiny_params

from pipelines.settings import LAUNCH_VARIABLE, launch_settings
from understudy.platform.events import read_events

SCRIPT = Path(__file__).with_name("distributed_steps.py")
PREEMPTED = 75
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("two processes")]


def _start(workdir: Path, processes: int) -> subprocess.Popen[str]:
    unset = ("UNDERSTUDY_", "MLFLOW_", "RANK", "WORLD_SIZE")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    environment |= {
        "UNDERSTUDY_WORKDIR": str(workdir),
        "UNDERSTUDY_RUN_DIR": str(workdir / "run"),
        "UNDERSTUDY_DEVICE": "cpu",
        "UNDERSTUDY_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(SCRIPT.parents[1]),
    }
    if processes > 1:
        platform = tiny_params(f"platform.steps.sft.gpus={processes}").platform
        launch = launch_settings(platform, "sft", platform.steps.sft, "adhoc")
        environment[LAUNCH_VARIABLE] = launch.model_dump_json()
    command = [sys.executable, str(SCRIPT), str(workdir / "result.json")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait(workdir: Path, process: subprocess.Popen[str], ready: Callable[[dict[str, object]], bool]) -> None:
    limit = time.monotonic() + 200
    while not any(map(ready, read_events(workdir / "run/events.jsonl"))):
        assert process.poll() is None and time.monotonic() < limit, process.communicate(timeout=5)[1][-3000:]
        time.sleep(0.02)


def _worker(launcher: int, rank: int) -> int:
    """The process of this rank among the descendants of the launcher."""
    for path in Path("/proc").iterdir():
        try:
            variables = (path / "environ").read_bytes().split(b"\0") if path.name.isdigit() else []
            if f"RANK={rank}".encode() in variables and launcher in _ancestors(int(path.name)):
                return int(path.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank} below {launcher}")


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def _end(process: subprocess.Popen[str], status: int) -> str:
    _, error = process.communicate(timeout=200)
    assert process.returncode == status, error[-3000:]
    return error


def test_two_processes_are_interrupted_and_one_ends_with_the_same_models(tmp_path: Path) -> None:
    whole = _start(tmp_path / "whole", 1)
    workdir = tmp_path / "parts"

    process = _start(workdir, 2)
    _wait(workdir, process, lambda event: event["step"] == "sft" and event.get("index") == 2)
    os.kill(_worker(process.pid, rank=1), signal.SIGTERM)
    assert "Stopped at step" in _end(process, PREEMPTED)
    saved = list((workdir / "checkpoints").glob("sft-*/step-*/manifest.json"))
    assert len(saved) == 1

    (workdir / "run/failure.json").unlink()
    process = _start(workdir, 2)
    _wait(workdir, process, lambda event: event["step"] == "align" and event.get("index") == 2)
    process.send_signal(signal.SIGTERM)
    assert "Stopped at round" in _end(process, PREEMPTED)
    # Process 0 alone reports: each step began once per attempt, and no round is told twice.
    events = read_events(workdir / "run/events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "start"] == [
        "ingest",
        "sft",
        "ingest",
        "sft",
        "align",
    ]
    rounds = [event["index"] for event in events if event["kind"] == "metrics" and event["step"] == "align"]
    assert rounds == sorted(set(rounds))

    (workdir / "run/failure.json").unlink()
    _end(_start(workdir, 1), 0)
    _end(whole, 0)
    results = [json.loads((folder / "result.json").read_text("utf-8")) for folder in (tmp_path / "whole", workdir)]
    for name in ("sft", "aligned", "discriminator"):
        one, other = (load_file(Path(result[name]) / "model.safetensors") for result in results)
        torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-3)
    assert not list((workdir / "checkpoints").rglob("*.safetensors"))
