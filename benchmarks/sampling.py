"""Sampling: ours against transformers' generate with the better of its caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.machine import Floor
from benchmarks.subjects import create_policy, num_parameters, random_ids
from benchmarks.timing import alternate, median, ratio_of_turns
from understudy.models.generation import SamplingSettings, generate


@dataclass(frozen=True)
class Shape:
    """A batch to sample."""

    size: str
    rows: int = 32
    prompt_tokens: int = 32
    response_tokens: int = 64
    vocabulary: int = 2048


def measure(shape: Shape, repetitions: int, floor: Floor) -> dict[str, Any]:
    """Tokens per second of both, their ratio, and the floor of this machine."""
    policy = create_policy(shape.size, shape.vocabulary, shape.prompt_tokens + shape.response_tokens + 8)
    prompts = random_ids(shape.rows, shape.prompt_tokens, shape.vocabulary, 0)
    ids = torch.tensor(prompts)

    def ours() -> None:
        settings = SamplingSettings(shape.response_tokens)
        rollouts = generate(policy, prompts, settings, torch.Generator().manual_seed(0))
        assert rollouts.num_tokens == shape.rows * shape.response_tokens

    def peer(**cache: Any) -> None:
        # top_k=0: from the whole distribution, as ours; no end token, as ours cannot reach its own.
        settings = {"do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0} | cache
        sampled = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=shape.response_tokens, **settings
        )
        assert sampled.shape[1] == shape.prompt_tokens + shape.response_tokens

    work = {"ours": ours, "dynamic": peer, "static": lambda: peer(cache_implementation="static")}
    seconds = alternate(work, repetitions)
    better = min(("dynamic", "static"), key=lambda name: median(seconds[name]))
    tokens, parameters = shape.rows * shape.response_tokens, num_parameters(policy.model)
    # A step reads all weights once and multiplies each with every row.
    step = max(4 * parameters / floor.bytes_per_second, 2 * parameters * shape.rows / floor.flops_per_second)
    return {
        "name": f"sampling {shape.size}",
        "unit": "tokens/s",
        "ours": tokens / median(seconds["ours"]),
        "peer": tokens / median(seconds[better]),
        "peer_name": f"generate, {better} cache",
        **ratio_of_turns(seconds[better], seconds["ours"]),
        "floor": tokens / (shape.response_tokens * step),
        "parameters": parameters,
        "seconds": seconds,
    }
