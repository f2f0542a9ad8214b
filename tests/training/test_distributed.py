"""Two gloo processes compute what one does, stop together, and resume each other's checkpoints."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.distributed_job import run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("two processes")]
JOB = Path(__file__).with_name("distributed_job.py")
# Sums of gradients in another order: what follows is equal to this, absolutely and relatively, at every step.
TOLERANCE = 1e-4
TINY_MICRO_BATCHES = 64

CURVES: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft"},
    "sft, 3 micro-batches a step": {"kind": "sft", "overrides": ["sft.micro_batches_per_step=3"]},
    "sft, a row a batch, 1 held out": {"kind": "sft", "overrides": ["sft.batch_tokens=1"], "held_out": 1},
    "sft, adapters": {"kind": "sft", "lora": True, "overrides": ["sft.objective=occupancy"]},
    "rloo": {"kind": "align"},
    "rloo, micro-batches": {"kind": "align", "micro_batch_tokens": TINY_MICRO_BATCHES},
    "rloo, 1 pair, 3 prompts, 1 held out": {
        "kind": "align",
        "overrides": ["align.discriminator.batch_pairs=1", "align.rollout.prompts_per_round=3"],
        "held_out": 1,
    },
    "airl, token": {"kind": "align", "overrides": ["align.discriminator.form=airl", "align.level=token"]},
    "variance, token": {
        "kind": "align",
        "overrides": ["align.discriminator.loss=bradley_terry_variance", "align.level=token"],
    },
    "ppo, micro-batches": {
        "kind": "align",
        "overrides": ["align.policy_update=ppo"],
        "micro_batch_tokens": TINY_MICRO_BATCHES,
    },
    "ppo, adapters": {"kind": "align", "overrides": ["align.policy_update=ppo"], "lora": True},
    "selfplay, kto": {"kind": "align", "overrides": ["align.method=selfplay", "align.selfplay.loss=kto"]},
    "iterative sft": {"kind": "align", "overrides": ["align.method=iterative_sft"]},
    "rlhf": {"kind": "align", "overrides": ["align.method=rlhf"]},
}
SAMPLES: dict[str, dict[str, Any]] = {
    "llama": {"kind": "generate", "family": "llama", "num_prompts": 5, "repeats": 3},
    "gpt2, one prompt": {"kind": "generate", "family": "gpt2", "num_prompts": 1, "repeats": 4},
    "gemma3, nucleus": {"kind": "generate", "family": "gemma3", "num_prompts": 3, "repeats": 2, "top_p": 0.8},
}
# One process runs to the first stop, two to the second, one to the end. Process 1 alone gets the signal.
RESUMED: dict[str, tuple[dict[str, Any], int, int]] = {
    "sft, resumed": ({"kind": "sft", "overrides": ["sft.checkpoint_every_steps=50"]}, 2, 3),
    "ppo, resumed": ({"kind": "align", "overrides": ["align.policy_update=ppo"]}, 2, 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a job of two processes that ran all scenarios."""
    path = tmp_path_factory.mktemp("two")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scenarios = CURVES | SAMPLES
    for name, (scenario, first, second) in RESUMED.items():
        (path / name).mkdir()
        stopped = run({**scenario, "stop_after": first}, path / name)["stopped"]
        assert f" {first};" in stopped
        scenarios[name] = {**scenario, "stop_after": second, "stop_rank": 1}
    request = path / "request.json"
    request.write_text(json.dumps(scenarios), encoding="utf-8")
    processes = [_start(request, rank, port) for port in [_free_port()] for rank in (0, 1)]
    for process in processes:
        output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output[-3000:]
    yield path
    torch.set_num_threads(threads)


def _start(request: Path, rank: int, port: int) -> subprocess.Popen[str]:
    environment = os.environ | {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
        "PYTHONPATH": str(JOB.parents[1]),
    }
    command = [sys.executable, str(JOB), str(request)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _results(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (json.loads((folder / name / f"result-{rank}.json").read_text("utf-8")) for rank in (0, 1))
    return first, second


def _same_curve(one: list[dict[str, float]], two: list[dict[str, float]]) -> None:
    assert [list(entry) for entry in one] == [list(entry) for entry in two]
    for expected, entry in zip(one, two, strict=True):
        assert entry == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("name", CURVES)
def test_two_processes_give_the_curve_and_the_weights_of_one(name: str, folder: Path, tmp_path: Path) -> None:
    one, (first, second) = run(CURVES[name], tmp_path), _results(folder, name)
    assert first["history"] == second["history"] and first["digest"] == second["digest"]
    assert len(one["history"]) >= 4
    _same_curve(one["history"], first["history"])
    expected, weights = load_file(tmp_path / "weights.safetensors"), load_file(folder / name / "weights.safetensors")
    torch.testing.assert_close(weights, expected, rtol=1e-2, atol=1e-3)
    # The first alone reports.
    assert (first["logged"], second["logged"]) == (one["logged"], 0)


@pytest.mark.parametrize("name", SAMPLES)
def test_two_processes_sample_what_one_samples(name: str, folder: Path, tmp_path: Path) -> None:
    one, (first, second) = run(SAMPLES[name], tmp_path), _results(folder, name)
    expected = json.loads(json.dumps(one["history"]))
    assert len(expected) == SAMPLES[name]["num_prompts"] * SAMPLES[name]["repeats"]
    assert first["history"] == second["history"] == expected
    assert len({len(entry["response"][0]) for entry in expected}) > 1


@pytest.mark.parametrize("name", RESUMED)
def test_from_one_process_to_two_and_back(name: str, folder: Path, tmp_path: Path) -> None:
    scenario, first_stop, second_stop = RESUMED[name]
    first, second = _results(folder, name)
    assert first["stopped"] == second["stopped"]
    assert f" {first_stop + second_stop}; the state is saved" in first["stopped"]
    checkpoints = sorted(path.name for path in (folder / name).glob("step-*"))
    assert checkpoints[-1] == f"step-{first_stop + second_stop:08d}"
    whole, resumed = run(scenario, tmp_path), run(scenario, folder / name)
    assert resumed["stopped"] == "" and len(whole["history"]) > first_stop + second_stop
    _same_curve(whole["history"], resumed["history"])
