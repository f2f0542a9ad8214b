"""Who samples: ours, transformers' generate, or vLLM, behind one protocol.

All draw from the policy's own distribution at the given temperature and nucleus, whatever defaults a model or a
server brings. Only ours note log-probabilities; those of others are computed again by the training forward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from understudy.errors import ConfigError
from understudy.models.generation import COLDEST, Peers, Rollouts, SamplingSettings, generate, response_limits
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
        """Sample; see `understudy.models.generation.generate`.

        Raises:
            ConfigError: a prompt leaves no room.
        """
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
        limits = response_limits(policy, prompts, settings.max_response_tokens)
        batch = policy.batch(prompts, [[] for _ in prompts])
        repeats = 1 if settings.greedy else responses_per_prompt
        ends_B = (torch.tensor(limits, device=policy.device) + batch.ids_BS.shape[1]).repeat_interleave(repeats)
        was_training = policy.model.training
        policy.model.eval()
        try:
            with (
                torch.random.fork_rng(devices=[]),
                _positions_within_context(policy),
                _neutral(policy, settings, max(limits), repeats) as config,
            ):
                torch.manual_seed(draw_seed(generator))
                ids = policy.unwrapped.generate(
                    batch.ids_BS,
                    attention_mask=batch.attention_BS,
                    generation_config=config,
                    stopping_criteria=_own_limits(ends_B),
                )
        finally:
            policy.model.train(was_training)
        columns = batch.ids_BS.shape[1]
        # After its end or its limit a row holds padding, which may be the end token.
        rows = [row[columns:end] for row, end in zip(ids.tolist(), ends_B.tolist(), strict=True)]
        rows = [until_end(row, policy.end_token_id) for row in rows]
        return as_rollouts(policy, prompts, rows, responses_per_prompt)


def _own_limits(ends_B: Tensor) -> Any:
    """Stopping criteria by which each row ends at its own column."""
    from transformers import StoppingCriteriaList

    def has_ended(ids_BS: Tensor, scores: Any, **_: Any) -> Tensor:
        return ends_B <= ids_BS.shape[1]

    return StoppingCriteriaList([has_ended])


@contextlib.contextmanager
def _neutral(policy: LanguageModel, settings: SamplingSettings, max_tokens: int, repeats: int) -> Iterator[Any]:
    """What `generate` is to do, and nothing of what the model's own generation settings add, which are set aside."""
    from transformers import GenerationConfig

    # 0 is all: what stays unset is neutral by default, but for top_k.
    temperature = max(settings.temperature, COLDEST)
    sampled = {"do_sample": True, "temperature": temperature, "top_p": settings.top_p, "top_k": 0}
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_tokens,
        num_return_sequences=repeats,
        eos_token_id=policy.end_token_id,
        pad_token_id=policy.pad_token_id,
        **({"do_sample": False} if settings.greedy else sampled),
    )
    model = policy.unwrapped
    # A setting that the given ones leave open is taken from the model's own.
    own, model.generation_config = model.generation_config, config
    try:
        yield config
    finally:
        model.generation_config = own


@contextlib.contextmanager
def _positions_within_context(policy: LanguageModel) -> Iterator[None]:
    """Rows that ended are read on beside others, also past the context, where a model may have no position.

    Transformers reminds once that the batch exceeds the context: it counts the columns, padding included.
    """
    last = policy.context_tokens - 1

    def clamp(module: Any, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if named.get("position_ids") is not None:
            named = named | {"position_ids": named["position_ids"].clamp(max=last)}
        return inputs, named

    hook = policy.unwrapped.register_forward_pre_hook(clamp, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


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


def draw_seed(generator: torch.Generator, below: int = 2**31 - 1) -> int:
    """A seed for a sampler that takes a number."""
    return int(torch.randint(0, below, (), generator=generator, device=generator.device))


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
