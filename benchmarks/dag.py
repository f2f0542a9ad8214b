"""What the DAG itself costs: seconds of `understudy run` outside training, sampling and scoring."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


TINY = ("--preset", "examples/tiny/preset.yaml", "--set", "data.source=examples/tiny/demonstrations.jsonl")
RUNS: dict[str, tuple[str, ...]] = {"tiny preset": TINY, "default run (make demo)": ()}


def measure(name: str) -> dict[str, Any]:
    """Run once, then once more from the cache; `name` is one of `RUNS`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "understudy", "run", "--json", "--workdir", folder, *RUNS[name]]
        first, wall = _run(command)
        _, again = _run(command)
    working = sum(first["working_seconds"].values())
    return {
        "name": f"DAG outside training, {name}",
        "unit": "s",
        "ours": wall - working,
        "wall_seconds": wall,
        "cached_seconds": again,
        "step_seconds": first["step_seconds"],
        "working_seconds": first["working_seconds"],
        "peer": None,
        "ratio": None,
    }


def _run(command: list[str]) -> tuple[dict[str, Any], float]:
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=os.environ.copy(), capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"understudy run ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout), seconds
