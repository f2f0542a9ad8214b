"""Jobs of two gloo processes for the tests: start them, read what came out, compare curves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from training.distributed_job import run

# Sums of gradients in another order: what follows is equal to this, absolutely and relatively, at every step.
TOLERANCE = 1e-4
# One process runs to the first stop, two to the second, one to the end. Process 1 alone gets the signal.
Resumed = Mapping[str, tuple[dict[str, Any], int, int]]


def write_request(path: Path, scenarios: Mapping[str, dict[str, Any]], resumed: Resumed) -> Path:
    """Write what both processes are to run; one process has run what they resume."""
    asked = dict(scenarios)
    for name, (scenario, first, second) in resumed.items():
        (path / name).mkdir()
        stopped = run({**scenario, "stop_after": first}, path / name)["stopped"]
        assert f" {first};" in stopped
        asked[name] = {**scenario, "stop_after": second, "stop_rank": 1}
    request = path / "request.json"
    request.write_text(json.dumps(asked), encoding="utf-8")
    return request


def run_all(commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]) -> None:
    """Run commands at once, to their good end."""
    # This checkout's code, wherever the package was installed from.
    tests = Path(__file__).parents[1]
    common = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | common | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command, environment in zip(commands, environments, strict=True)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output[-3000:]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def results(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (json.loads((folder / name / f"result-{rank}.json").read_text("utf-8")) for rank in (0, 1))
    return first, second


def same_curve(one: list[dict[str, float]], two: list[dict[str, float]], in_parts: bool = False) -> None:
    """In parts, the gradient of a new discriminator's bias, 0 by symmetry, is rounding; Adam makes it a whole step."""
    assert [list(entry) for entry in one] == [list(entry) for entry in two]
    for expected, entry in zip(one, two, strict=True):
        if in_parts:  # of logits that small, a step turns the sign of some
            assert entry.pop("discriminator_accuracy", 0) == pytest.approx(
                expected.pop("discriminator_accuracy", 0), abs=0.1
            )
        tolerance = 10 * TOLERANCE if in_parts else TOLERANCE
        assert entry == pytest.approx(expected, rel=tolerance, abs=tolerance)


def resumes(folder: Path, name: str, resumed: Resumed, alone: Path) -> None:
    """What one process began and two went on with ends in one process as if it had never been stopped."""
    scenario, first_stop, second_stop = resumed[name]
    first, second = results(folder, name)
    assert first["stopped"] == second["stopped"]
    assert f" {first_stop + second_stop}; the state is saved" in first["stopped"]
    checkpoints = sorted(path.name for path in (folder / name).glob("step-*"))
    assert checkpoints[-1] == f"step-{first_stop + second_stop:08d}"
    whole, ended = run(scenario, alone), run(scenario, folder / name)
    assert ended["stopped"] == "" and len(whole["history"]) > first_stop + second_stop
    same_curve(whole["history"], ended["history"])
