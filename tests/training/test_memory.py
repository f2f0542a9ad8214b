"""The formula for the memory of an align step against what a process of its own was seen to take."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from understudy.config import load_params
from understudy.platform.steps.memory_warning import memory_warning
from understudy.training.memory import ModelShape, StepShape, align_bytes

ROOT = Path(__file__).parents[2]
# What torch takes for itself is not in the formula.
TOLERANCE = 0.25
SMALL = ModelShape(parameters=1_000, hidden=8, intermediate=16, layers=2, query_width=8, key_width=4, vocabulary=100)
NO_WEIGHTS = ModelShape(parameters=0, hidden=0, intermediate=0, layers=0, query_width=0, key_width=0, vocabulary=49_152)
LOGPS_AND_BACK = """
import sys, torch
from benchmarks.machine import peak_mib
from understudy.models.logps import head_logps
from understudy.training.allocator import keep_freed_memory

keep_freed_memory()

def forwards_and_backwards(num_tokens: int, vocabulary: int) -> None:
    hidden_MH, weight_VH = (torch.randn(rows, 16, requires_grad=True) for rows in (num_tokens, vocabulary))
    head_logps(hidden_MH, weight_VH, None, torch.randint(vocabulary, (num_tokens,))).sum().backward()

forwards_and_backwards(8, 100)
before = peak_mib()
forwards_and_backwards(*map(int, sys.argv[1:]))
print(peak_mib() - before)
"""
SMALL_WORK = {"prompts": 4, "repeats": 8}
LARGE_VOCABULARY = {"vocabulary": 49_152, "prompts": 1, "response_tokens": 32}


@pytest.mark.parametrize("discriminator", ["shared_trunk", "sft"])
@pytest.mark.parametrize("work", [SMALL_WORK, LARGE_VOCABULARY])
def test_formula_is_within_a_quarter_of_the_measured_peak(work: dict[str, int], discriminator: str) -> None:
    asked = {"size": "1M", "discriminator": discriminator, **work}
    command = [sys.executable, "-m", "benchmarks.scaling", json.dumps(asked)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak_mib"] > 100
    assert found["formula_mib"] == pytest.approx(found["peak_mib"], rel=TOLERANCE)


def test_logits_over_a_large_vocabulary_take_what_their_portions_take() -> None:
    """201M logits: the two tensors of all would be 1,536 MiB; those of a portion of 128 rows are 48."""
    step = StepShape(prompts=1, responses_per_prompt=64, prompt_tokens=0, response_tokens=64)
    num_tokens, formula = step.micro_rows * step.response_tokens, align_bytes(NO_WEIGHTS, step)["update"] / 2**20
    command = [sys.executable, "-c", LOGPS_AND_BACK, str(num_tokens), str(NO_WEIGHTS.vocabulary)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-2000:]
    weights_and_gradient = 2 * 4 * NO_WEIGHTS.vocabulary * 16 / 2**20  # which the formula's model has none of
    assert float(done.stdout) == pytest.approx(formula + weights_and_gradient, rel=0.1)
    assert formula == 48 and 2 * 4 * num_tokens * NO_WEIGHTS.vocabulary / 2**20 == 1536


def test_parts_by_hand() -> None:
    step = StepShape(prompts=1, responses_per_prompt=2, prompt_tokens=4, response_tokens=6)
    found = align_bytes(SMALL, step)
    assert found["weights"] == 3 * 4 * 1_000
    assert found["optimizers"] == 4 * 4 * 1_000
    tokens, seen = 4 + 2 * 6, 2 * 10
    per_token = 4 * 8 + 3 * 8 + 4 * 16
    kept, made_of_a_layer = 4 * 2 * (tokens * per_token + seen * 2 * 4), 4 * tokens * (3 * 16 + 2 * 8)
    assert found["update"] == 4 * 1_000 + kept + made_of_a_layer + 3 * 4 * 2 * 6 * 100
    assert found["sampling"] == 4 * 1_000 + 2 * 4 * 2 * 2 * 10 * 4 + 6 * 4 * 2 * 100
    parts = found["weights"] + found["optimizers"] + max(found["update"], found["sampling"])
    assert found["peak"] == round(1.2 * parts)
    shared = align_bytes(SMALL, replace(step, discriminator_pairs=3), shared_trunk=True)
    assert (shared["weights"], shared["optimizers"]) == (2 * 4 * 1_000, 2 * 4 * 1_000)
    assert shared["update"] - found["update"] == 4 * (2 + 2 * 3) * 7 * 9


def test_norms_of_queries_and_keys_keep_their_unit_vectors() -> None:
    step = StepShape(prompts=1, responses_per_prompt=2, prompt_tokens=4, response_tokens=6)
    plain, normed = (align_bytes(replace(SMALL, norms_heads=norms), step)["update"] for norms in (False, True))
    assert normed - plain == 4 * 2 * (4 + 2 * 6) * (8 + 4)
    config = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"vocab_size": 100, "head_dim": 4}
    assert ModelShape.of_config(config | {"model_type": "qwen3"}).norms_heads
    assert not ModelShape.of_config(config | {"model_type": "qwen2"}).norms_heads


def test_logits_that_are_not_kept_take_128_rows_of_two_tensors_and_the_heads_gradient() -> None:
    step = StepShape(prompts=8, responses_per_prompt=8, prompt_tokens=32, response_tokens=96)
    large = [
        align_bytes(ModelShape(1_000, 8, 16, 2, 8, 4, vocabulary), step)["update"] for vocabulary in (50_000, 150_000)
    ]
    assert large[1] - large[0] == 4 * 100_000 * (2 * 128 + 8)


def test_micro_batches_bound_what_a_long_round_needs() -> None:
    short, long = (StepShape(prompts, 4, 64, 192) for prompts in (8, 80))
    assert short.micro_rows == long.micro_rows == 32
    assert align_bytes(SMALL, short)["update"] == align_bytes(SMALL, long)["update"]
    assert align_bytes(SMALL, short)["sampling"] < align_bytes(SMALL, long)["sampling"]


def test_a_config_has_the_shape_of_its_model() -> None:
    from benchmarks.subjects import create_model

    model = create_model("1M", 2048, 64)
    counted, estimated = ModelShape.of(model), ModelShape.of_config(model.config.to_dict())
    assert replace(estimated, parameters=counted.parameters) == counted
    assert estimated.parameters == pytest.approx(counted.parameters, rel=0.01)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "vocab_size": 49_152,
    "max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "other",
    [
        {"model_type": "gemma2"},
        {"model_type": "mixtral", "num_local_experts": 8},
        {"attention_dropout": 0.1},
        {"hidden_act": "gelu"},
        {"model_type": "mistral", "sliding_window": 4096},
    ],
)
def test_a_config_whose_forward_pass_is_not_packed_has_no_estimate(other: dict[str, Any], tmp_path: Path) -> None:
    assert ModelShape.of_config(LLAMA).layers == 30
    with pytest.raises(KeyError, match="holds for llama, mistral, qwen2, qwen3"):
        ModelShape.of_config(LLAMA | other)
    params = load_params(ROOT / "params.yaml", ["model.init=pretrained", f"model.path={tmp_path}"])
    warned = []
    for config in (LLAMA, LLAMA | other):
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        warned.append(memory_warning(params.data, params.model, params.align, available_bytes=1))
    assert "align needs about" in (warned[0] or "")
    assert (warned[1] or "").startswith("how much memory align needs is not estimated: the formula holds for llama, ")
    assert (warned[1] or "").endswith(f"not for this policy of type {other.get('model_type', 'llama')!r}")
