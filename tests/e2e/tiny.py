"""Settings under which the whole pipeline takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TINY = [
    f"data.source={ROOT / 'examples/tiny/demonstrations.jsonl'}",
    "model.scratch.vocab_size=300",
    "model.scratch.hidden_size=32",
    "model.scratch.intermediate_size=64",
    "model.scratch.num_layers=1",
    "model.scratch.context_tokens=96",
    "sft.epochs=1",
    "align.num_rounds=2",
    "align.rollout.prompts_per_round=4",
    "align.rollout.responses_per_prompt=2",
    "align.rollout.max_response_tokens=24",
    "align.discriminator.warmup_rounds=1",
    "align.discriminator.warmup_updates_per_round=1",
    "align.discriminator.batch_pairs=4",
    "align.selfplay.batch_pairs=4",
    "evaluation.max_prompts=8",
    "evaluation.max_response_tokens=16",
    "evaluation.temperatures=[0.7]",
    "evaluation.bootstrap_samples=100",
    f"evaluation.judges=[{{name: tiny, kind: callable, target: '{ROOT / 'examples/tiny/judge.py'}:judge'}}]",
    "evaluation.tuning_judge=tiny",
    "registry.name=tiny",
    "runtime.threads=1",
    "runtime.device=cpu",
    "tracking.system_metrics=false",
]


def run_pipeline(workdir: Path, *overrides: str, timeout_seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """`understudy run --json` with tiny settings in a process of its own."""
    settings = [part for override in [*TINY, *overrides] for part in ("--set", override)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("UNDERSTUDY_", "MLFLOW_"))}
    command = [sys.executable, "-m", "understudy", "run", "--json", "--workdir", str(workdir)]
    command += ["--params", str(ROOT / "params.yaml"), *settings]
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=timeout_seconds, check=False
    )


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The run's JSON; fails with what it said on stderr."""
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))
