"""Sampling: ours against transformers' generate with the better of its caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks.subjects import create_policy, make_end_likely, num_parameters, random_ids
from benchmarks.timing import Contender, Turn, compared, median, take_turns, usage
from understudy.models.generation import SamplingSettings, generate
from understudy.models.language_model import LanguageModel

CACHES = ("dynamic", "static")
_SAME_LENGTHS = 0.1


@dataclass(frozen=True)
class Shape:
    """Batches to sample in one turn, of equal shape and other seeds.

    With `ends` the end is sampled after three eighths of `response_tokens` on average, but for the limit; many batches
    make the lengths of two samplers equal on average.
    """

    size: str
    rows: int = 32
    prompt_tokens: int = 32
    response_tokens: int = 64
    vocabulary: int = 2048
    ends: bool = False

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"sampling {self.size}{', rows that end' if self.ends else ''}"

    @property
    def batches(self) -> int:
        """In one turn."""
        return 32 if self.ends else 4

    def prompts(self) -> list[list[int]]:
        """Of every batch."""
        return random_ids(self.rows, self.prompt_tokens, self.vocabulary, 0)

    def policy(self) -> LanguageModel:
        """Random weights."""
        policy = create_policy(self.size, self.vocabulary, self.prompt_tokens + self.response_tokens + 8, self.ends)
        if self.ends:
            make_end_likely(policy, 8 / (3 * self.response_tokens))
        return policy


def measure(shape: Shape, repetitions: int) -> dict[str, Any]:
    """Tokens per second of both, their ratio, and the least that a token takes."""
    contenders: dict[str, Contender] = {cache: partial(peer, shape, cache) for cache in CACHES}
    turns = take_turns(contenders | {"ours": partial(ours, shape)}, repetitions)
    better = min(CACHES, key=lambda name: median([turn.seconds / turn.tokens for turn in turns[name]]))
    lengths = {name: turns[name][0].tokens / (shape.rows * shape.batches) for name in turns}
    # Other lengths are other work.
    assert all(abs(lengths[cache] / lengths["ours"] - 1) < _SAME_LENGTHS for cache in CACHES), lengths
    parameters = num_parameters(shape.policy().model)
    return {
        "name": shape.name,
        "unit": "tokens/s",
        "peer_name": f"generate, {better} cache",
        **compared(turns, better),
        "mean_lengths": lengths,
        "parameters": parameters,
        # A step multiplies each weight with every row and reads it once; fewer rows share that where some have ended.
        "least": {"flops": 2 * parameters, "bytes_read": 4 * parameters / shape.rows},
    }


def ours(shape: Shape) -> Turn:
    """Batches of ours, after one that warms up."""
    policy, prompts = shape.policy(), shape.prompts()

    def sample(seed: int) -> int:
        settings = SamplingSettings(shape.response_tokens)
        return generate(policy, prompts, settings, torch.Generator().manual_seed(seed)).num_tokens

    return _turn(shape, sample)


@torch.no_grad()
def peer(shape: Shape, cache: str) -> Turn:
    """Batches of transformers', after one that warms up."""
    policy, ids = shape.policy(), torch.tensor(shape.prompts())
    # top_k=0: from the whole distribution, as ours.
    settings: dict[str, Any] = {
        "do_sample": True,
        "top_k": 0,
        "pad_token_id": 0,
        "max_new_tokens": shape.response_tokens,
    }
    settings["eos_token_id"] = policy.end_token_id if shape.ends else None
    if cache == "static":
        settings["cache_implementation"] = "static"

    def sample(seed: int) -> int:
        torch.manual_seed(seed)
        sampled = policy.model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        return num_returned(sampled[:, shape.prompt_tokens :], policy.end_token_id)

    return _turn(shape, sample)


def num_returned(token_BT: torch.Tensor, end: int) -> int:
    """Tokens of responses up to their ends, the ends included; what fills up behind them does not count."""
    ended_before_BT = (token_BT == end).cumsum(1) - (token_BT == end).long() > 0
    return int((~ended_before_BT).sum())


def _turn(shape: Shape, sample: Callable[[int], int]) -> Turn:
    sample(shape.batches)
    start = usage()
    tokens = sum(sample(seed) for seed in range(shape.batches))
    turn = Turn.between(start, usage(), tokens)
    assert shape.ends or turn.tokens == shape.batches * shape.rows * shape.response_tokens, turn
    return turn
