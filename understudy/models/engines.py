"""Who samples: ours, transformers' generate, or vLLM, behind one protocol.

All draw from the policy's own distribution at the given temperature and nucleus, whatever defaults a model or a
server brings. Only `native` notes log-probabilities; those of others are computed again by the training forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from understudy.errors import ConfigError
from understudy.models.generation import Peers, Rollouts, SamplingSettings, generate, room_for_response
from understudy.models.language_model import LanguageModel

ENGINES = ("native", "transformers", "vllm")


class Generator(Protocol):
    """Samples responses from a policy as it is now."""

    def generate(
        self,
        policy: LanguageModel,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        generator: torch.Generator,
        responses_per_prompt: int = 1,
        peers: Peers | None = None,
    ) -> Rollouts:
        """Sample `responses_per_prompt` responses to each prompt; equal generators give equal responses."""


def create_engine(name: str, server_url: str | None = None) -> Generator:
    """The engine that the params name.

    Raises:
        ConfigError: no engine has the name, a server is named for one that has none, or vLLM is not installed.
    """
    if server_url is not None and name != "vllm":
        raise ConfigError(
            f"align.rollout.server_url is {server_url!r} but align.rollout.engine is {name!r}, which has no server. "
            "Set the engine to vllm, or the URL to null."
        )
    if name == "native":
        return Native()
    if name == "transformers":
        return Transformers()
    if name == "vllm":
        from understudy.models.vllm_engine import VllmColocated, VllmServer

        return VllmServer(server_url) if server_url is not None else VllmColocated()
    raise ConfigError(f"There is no engine {name!r}; align.rollout.engine is one of {', '.join(ENGINES)}.")


class Native:
    """Our own decoding loop, in one process or several."""

    def generate(
        self,
        policy: LanguageModel,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        generator: torch.Generator,
        responses_per_prompt: int = 1,
        peers: Peers | None = None,
    ) -> Rollouts:
        """Sample; see `understudy.models.generation.generate`."""
        return generate(policy, prompts, settings, generator, responses_per_prompt, peers=peers)


class Transformers:
    """`model.generate`, for models whose generation needs what only it knows."""

    @torch.no_grad()
    def generate(
        self,
        policy: LanguageModel,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        generator: torch.Generator,
        responses_per_prompt: int = 1,
        peers: Peers | None = None,
    ) -> Rollouts:
        """Sample; the whole batch decodes until its last row has ended.

        Raises:
            ConfigError: several processes, or a prompt that leaves no room.
        """
        refuse_several(peers, "transformers")
        room = room_for_response(policy, prompts)
        batch = policy.batch(prompts, [[] for _ in prompts])
        was_training = policy.model.training
        policy.model.eval()
        chosen: dict[str, Any] = {"do_sample": False}
        if not settings.greedy:
            # 0 and 1 are "all": a model's own generation settings would otherwise cut the distribution.
            chosen = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(draw_seed(generator))
                ids = policy.model.generate(
                    batch.ids_BS,
                    attention_mask=batch.attention_BS,
                    max_new_tokens=min(settings.max_response_tokens, room),
                    num_return_sequences=1 if settings.greedy else responses_per_prompt,
                    eos_token_id=policy.end_token_id,
                    pad_token_id=policy.pad_token_id,
                    **chosen,
                )
        finally:
            policy.model.train(was_training)
        rows = [until_end(row, policy.end_token_id) for row in ids[:, batch.ids_BS.shape[1] :].tolist()]
        return as_rollouts(policy, prompts, rows, responses_per_prompt)


def as_rollouts(
    policy: LanguageModel, prompts: Sequence[Sequence[int]], rows: Sequence[list[int]], responses_per_prompt: int
) -> Rollouts:
    """Rows of an engine in our order; greedy engines answer a prompt once, which stands for all its responses."""
    if len(rows) == len(prompts):
        rows = [row for row in rows for _ in range(responses_per_prompt)]
    repeated = [list(prompt) for prompt in prompts for _ in range(responses_per_prompt)]
    return Rollouts(repeated, [list(row) for row in rows], [row[-1] == policy.end_token_id for row in rows])


def until_end(row: list[int], end_token_id: int) -> list[int]:
    """The tokens up to and including the first end token."""
    return row[: row.index(end_token_id) + 1] if end_token_id in row else row


def draw_seed(generator: torch.Generator) -> int:
    """A seed for a sampler that takes a number."""
    return int(torch.randint(0, 2**31 - 1, (), generator=generator, device=generator.device))


def refuse_several(peers: Peers | None, engine: str) -> None:
    """Refuse to sample in several processes.

    Raises:
        ConfigError: there are several.
    """
    count = len(peers.bounds(1)) - 1 if peers is not None else 1
    if count > 1:
        raise ConfigError(
            f"align.rollout.engine {engine!r} samples in one process, and this job has {count}. "
            "Use align.rollout.engine=native, or one process."
        )
