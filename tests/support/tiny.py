"""The tiny preset as tests use it: the whole pipeline in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.config import Params, load_params

ROOT = Path(__file__).parents[2]
PRESET = ROOT / "examples/tiny/preset.yaml"


def tiny_params(*overrides: str) -> Params:
    """The tiny preset's params; its paths are relative to the project's folder, where tests run."""
    return load_params(
        ROOT / "params.yaml", [f"data.source={ROOT / 'examples/tiny/demonstrations.jsonl'}", *overrides], [PRESET]
    )


def run_command(workdir: Path, *overrides: str, options: tuple[str, ...] = ()) -> list[str]:
    """The command line of `understudy run` with tiny settings."""
    settings = [part for override in overrides for part in ("--set", override)]
    return [
        sys.executable,
        "-m",
        "understudy",
        "run",
        "--workdir",
        str(workdir),
        "--preset",
        str(PRESET),
        *settings,
        *options,
    ]


def run_pipeline(
    workdir: Path,
    *overrides: str,
    options: tuple[str, ...] = ("--json",),
    timeout_seconds: float = 300,
    more: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`understudy run` with tiny settings in a process of its own, free of this process's services."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("UNDERSTUDY_", "MLFLOW_"))}
    return subprocess.run(
        run_command(workdir, *overrides, options=options),
        env=environment | {"NO_COLOR": "1", **(more or {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The run's JSON; fails with what it said on stderr."""
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))
