"""FSDP2 over two gloo processes, started by our command with our configuration: the curve and checkpoints of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training.distributed_job import run
from training.two_processes import Resumed, results, resumes, run_all, same_curve, write_request

from understudy.platform.launch import accelerate_command

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("two processes")]
JOB = Path(__file__).with_name("sharded_job.py")
TINY_MICRO_BATCHES = "align.micro_batch_tokens=64"
TABLE = "align.discriminator.init=ngrams"  # which is not read in parts
CURVES: dict[str, dict[str, Any]] = {
    "sft, 3 micro-batches a step, logits in portions": {
        "kind": "sft",
        "overrides": ["sft.micro_batches_per_step=3"],
        "whole_logits": 2000,
    },
    "ppo, micro-batches": {"kind": "align", "overrides": ["align.policy_update=ppo", TABLE, TINY_MICRO_BATCHES]},
    "rloo with SFT, micro-batches": {
        "kind": "align",
        "overrides": ["align.sft_coefficient_start=0.6", "align.sft_coefficient_end=0.2", TINY_MICRO_BATCHES],
    },
    "shared trunk": {"kind": "align", "overrides": ["align.discriminator.init=shared_trunk"]},
    "n-grams": {"kind": "align", "overrides": ["align.discriminator.init=ngrams"]},
}
SAMPLES: dict[str, dict[str, Any]] = {"llama": {"kind": "generate", "family": "llama", "num_prompts": 5, "repeats": 3}}
RESUMED: Resumed = {
    "sft, resumed": ({"kind": "sft", "overrides": ["sft.checkpoint_every_steps=50"]}, 2, 3),
    "rloo, resumed": ({"kind": "align"}, 2, 1),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a job of two processes that ran all scenarios."""
    path = tmp_path_factory.mktemp("sharded")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    request = write_request(path, CURVES | SAMPLES, RESUMED)
    command = accelerate_command(str(request), 2, {"UNDERSTUDY_ACCELERATE": "fsdp"})
    module = command.index("--module")
    run_all([[*command[:module], str(JOB), str(request)]], [{}])
    yield path
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", CURVES)
def test_sharded_weights_give_the_curve_and_the_weights_of_one_process(name: str, folder: Path, tmp_path: Path) -> None:
    one, (first, second) = run(CURVES[name], tmp_path), results(folder, name)
    assert first["history"] == second["history"] and first["digest"] == second["digest"]
    assert len(one["history"]) >= 4
    same_curve(one["history"], first["history"], in_parts=name.startswith("rloo") and "micro-batches" in name)
    expected, weights = load_file(tmp_path / "weights.safetensors"), load_file(folder / name / "weights.safetensors")
    torch.testing.assert_close(weights, expected, rtol=1e-2, atol=1e-3)


def test_sharded_weights_sample_what_whole_ones_sample(folder: Path, tmp_path: Path) -> None:
    one, (first, second) = run(SAMPLES["llama"], tmp_path), results(folder, "llama")
    assert [list(entry["response"][0]) for entry in first["history"]] == [
        list(entry["response"][0]) for entry in one["history"]
    ]
    assert first["history"] == second["history"] and len(first["history"]) == 15


@pytest.mark.parametrize("name", RESUMED)
def test_from_one_process_to_shards_and_back(name: str, folder: Path, tmp_path: Path) -> None:
    resumes(folder, name, RESUMED, tmp_path)
