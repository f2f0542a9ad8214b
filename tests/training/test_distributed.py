"""Two gloo processes compute what one does, stop together, and resume each other's checkpoints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.distributed_job import run
from training.two_processes import Resumed, free_port, results, resumes, run_all, same_curve, write_request

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("two processes")]
JOB = Path(__file__).with_name("distributed_job.py")
TINY_MICRO_BATCHES = "align.micro_batch_tokens=64"
TABLE = "align.discriminator.init=ngrams"  # which is not read in parts
MIXED = ["align.sft_coefficient_start=0.6", "align.sft_coefficient_end=0.2"]

CURVES: dict[str, dict[str, Any]] = {
    "sft": {"kind": "sft"},
    "sft, 3 micro-batches a step, logits in portions": {
        "kind": "sft",
        "overrides": ["sft.micro_batches_per_step=3"],
        "whole_logits": 2000,
    },
    "sft, a row a batch, 1 held out": {"kind": "sft", "overrides": ["sft.batch_tokens=1"], "held_out": 1},
    "sft, adapters": {"kind": "sft", "lora": True, "overrides": ["sft.objective=occupancy"]},
    "rloo": {"kind": "align"},
    "rloo, micro-batches": {"kind": "align", "overrides": [TINY_MICRO_BATCHES]},
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
        "overrides": ["align.policy_update=ppo", TABLE, TINY_MICRO_BATCHES],
    },
    "ppo, adapters": {"kind": "align", "overrides": ["align.policy_update=ppo"], "lora": True},
    "selfplay, kto": {"kind": "align", "overrides": ["align.method=selfplay", "align.selfplay.loss=kto"]},
    "iterative sft": {"kind": "align", "overrides": ["align.method=iterative_sft"]},
    "rlhf": {"kind": "align", "overrides": ["align.method=rlhf"]},
    "shared trunk, micro-batches": {
        "kind": "align",
        "overrides": ["align.discriminator.init=shared_trunk", TINY_MICRO_BATCHES],
    },
    "n-grams, micro-batches": {
        "kind": "align",
        "overrides": ["align.discriminator.init=ngrams", "align.discriminator.dropout=0.5", TINY_MICRO_BATCHES],
    },
    "rloo with SFT, micro-batches": {"kind": "align", "overrides": [*MIXED, TINY_MICRO_BATCHES]},
    "ppo with SFT, micro-batches": {
        "kind": "align",
        "overrides": ["align.policy_update=ppo", TABLE, *MIXED, TINY_MICRO_BATCHES],
    },
    "selfplay with SFT": {"kind": "align", "overrides": ["align.method=selfplay", *MIXED]},
    "held in two rounds of three": {
        "kind": "align",
        "overrides": ["align.min_held_out_auc=0.7", "align.held_out_every_rounds=1"],
    },
}
SAMPLES: dict[str, dict[str, Any]] = {
    "llama": {"kind": "generate", "family": "llama", "num_prompts": 5, "repeats": 3},
    "gpt2, one prompt": {"kind": "generate", "family": "gpt2", "num_prompts": 1, "repeats": 4},
    "gemma3, nucleus": {"kind": "generate", "family": "gemma3", "num_prompts": 3, "repeats": 2, "top_p": 0.8},
}
RESUMED: Resumed = {
    "sft, resumed": ({"kind": "sft", "overrides": ["sft.checkpoint_every_steps=50"]}, 2, 3),
    "ppo, resumed": ({"kind": "align", "overrides": ["align.policy_update=ppo"]}, 2, 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a job of two processes that ran all scenarios."""
    path = tmp_path_factory.mktemp("two")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _run_two(write_request(path, CURVES | SAMPLES, RESUMED))
    yield path
    torch.set_num_threads(threads)


def _run_two(request: Path) -> None:
    common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environments = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    run_all([[sys.executable, str(JOB), str(request)]] * 2, environments)


@pytest.mark.parametrize("name", CURVES)
def test_two_processes_give_the_curve_and_the_weights_of_one(name: str, folder: Path, tmp_path: Path) -> None:
    one, (first, second) = run(CURVES[name], tmp_path), results(folder, name)
    assert first["history"] == second["history"] and first["digest"] == second["digest"]
    assert len(one["history"]) >= 4
    same_curve(one["history"], first["history"], in_parts=name.startswith("rloo") and "micro-batches" in name)
    expected, weights = load_file(tmp_path / "weights.safetensors"), load_file(folder / name / "weights.safetensors")
    torch.testing.assert_close(weights, expected, rtol=1e-2, atol=1e-3)
    # The first alone reports.
    assert (first["logged"], second["logged"]) == (one["logged"], 0)


@pytest.mark.parametrize("name", SAMPLES)
def test_two_processes_sample_what_one_samples(name: str, folder: Path, tmp_path: Path) -> None:
    one, (first, second) = run(SAMPLES[name], tmp_path), results(folder, name)
    expected = json.loads(json.dumps(one["history"]))
    assert len(expected) == SAMPLES[name]["num_prompts"] * SAMPLES[name]["repeats"]
    assert first["history"] == second["history"] == expected
    assert len({len(entry["response"][0]) for entry in expected}) > 1


@pytest.mark.parametrize("name", RESUMED)
def test_from_one_process_to_two_and_back(name: str, folder: Path, tmp_path: Path) -> None:
    resumes(folder, name, RESUMED, tmp_path)


def test_a_checkpoint_that_process_0_cannot_read_ends_both_with_its_words(tmp_path: Path) -> None:
    _run_two(write_request(tmp_path, {"unreadable": {"kind": "unreadable"}}, {}))
    assert [result["stopped"] for result in results(tmp_path, "unreadable")] == ["state.json is cut short"] * 2
