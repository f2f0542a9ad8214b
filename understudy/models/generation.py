"""Sampling responses from a policy with a KV cache, for any Hugging Face causal LM.

Shapes: B sequences, T response tokens, k responses per prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from understudy.errors import ConfigError
from understudy.models.language_model import LanguageModel


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are chosen; `greedy` ignores temperature and top_p."""

    max_response_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    greedy: bool = False


@dataclass(frozen=True)
class Rollouts:
    """Responses sampled from a policy; row i*k + j is the j-th response to prompt i.

    `responses` holds the token ids, the end token included where it was reached (`finished`).
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    finished: list[bool]

    @property
    def num_tokens(self) -> int:
        """Sampled tokens, end tokens included."""
        return sum(len(response) for response in self.responses)


@torch.no_grad()
def generate(
    policy: LanguageModel,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    generator: torch.Generator,
    responses_per_prompt: int = 1,
    on_token: Callable[[Tensor], None] | None = None,
) -> Rollouts:
    """Sample `responses_per_prompt` responses for each prompt.

    Each prompt is read once and its cache repeated; finished rows leave the batch.

    Args:
        policy: the model; its training mode is restored.
        prompts: token ids of each prompt.
        settings: length and temperature.
        generator: source of randomness, on the policy's device.
        responses_per_prompt: k.
        on_token: called with the tokens of the active rows after each step, for streaming.

    Raises:
        ConfigError: a prompt leaves no room for a response in the model's context.
    """
    longest = max(len(prompt) for prompt in prompts)
    room = policy.context_tokens - longest
    if room < 1:
        raise ConfigError(
            f"A prompt has {longest} tokens but the model's context holds {policy.context_tokens}. "
            "Shorten it (data.max_prompt_chars) or use a model with a longer context."
        )
    was_training = policy.model.training
    policy.model.eval()
    try:
        responses, finished = _decode(
            policy,
            prompts,
            settings,
            generator,
            responses_per_prompt,
            min(settings.max_response_tokens, room),
            on_token,
        )
    finally:
        policy.model.train(was_training)
    repeated = [list(prompt) for prompt in prompts for _ in range(responses_per_prompt)]
    return Rollouts(repeated, responses, finished)


def choose_tokens(logits_BV: Tensor, settings: SamplingSettings, generator: torch.Generator) -> Tensor:
    """Sample one token per row from temperature- and nucleus-adjusted logits, shape (B,)."""
    if settings.greedy:
        return logits_BV.argmax(-1)
    probability_BV = (logits_BV.float() / settings.temperature).softmax(-1)
    if settings.top_p < 1:
        ordered_BV, order_BV = probability_BV.sort(dim=-1, descending=True)
        # A token stays while the mass before it is below top_p, so the first always stays.
        dropped_BV = ordered_BV.cumsum(-1) - ordered_BV >= settings.top_p
        probability_BV = torch.zeros_like(probability_BV).scatter(-1, order_BV, ordered_BV.masked_fill(dropped_BV, 0))
    return torch.multinomial(probability_BV, 1, generator=generator).squeeze(-1)


def _decode(
    policy: LanguageModel,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    generator: torch.Generator,
    repeats: int,
    max_tokens: int,
    on_token: Callable[[Tensor], None] | None,
) -> tuple[list[list[int]], list[bool]]:
    num_rows = len(prompts) * repeats
    attention, logits_BV, cache = _read_prompts(policy, prompts, repeats)
    sampled_BT = torch.full((num_rows, max_tokens), policy.end_token_id, dtype=torch.long, device=policy.device)
    length_B = torch.full((num_rows,), max_tokens, dtype=torch.long, device=policy.device)
    finished_B = torch.zeros(num_rows, dtype=torch.bool, device=policy.device)
    rows = torch.arange(num_rows, device=policy.device)
    for column in range(max_tokens):
        tokens = choose_tokens(logits_BV, settings, generator)
        sampled_BT[rows, column] = tokens
        if on_token is not None:
            on_token(tokens)
        ended = tokens == policy.end_token_id
        # Rows that ended before stay in the batch until it is compacted; they must not end twice.
        newly = ended & ~finished_B[rows]
        finished_B[rows] |= ended
        length_B[rows[newly]] = column + 1
        active = ~finished_B[rows]
        num_active = int(active.sum())
        if num_active == 0 or column + 1 == max_tokens:
            break
        if num_active <= 0.75 * len(rows):
            keep = active.nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            rows, tokens, attention = rows[keep], tokens[keep], attention[keep]
        attention = torch.cat([attention, attention.new_ones(len(rows), 1)], dim=1)
        arguments = policy.forward_arguments(attention)
        if "position_ids" in arguments:
            arguments["position_ids"] = arguments["position_ids"][:, -1:]
        output = policy.model(input_ids=tokens.unsqueeze(1), past_key_values=cache, use_cache=True, **arguments)
        logits_BV, cache = output.logits[:, -1], output.past_key_values
    lengths = length_B.tolist()
    responses = [row[:length] for row, length in zip(sampled_BT.tolist(), lengths, strict=True)]
    return responses, finished_B.tolist()


def _read_prompts(policy: LanguageModel, prompts: Sequence[Sequence[int]], repeats: int) -> tuple[Tensor, Tensor, Any]:
    from transformers import DynamicCache

    batch = policy.batch(prompts, [[] for _ in prompts])
    config = policy.model.config
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    output = policy.model(
        input_ids=batch.ids_BS,
        past_key_values=cache,
        use_cache=True,
        **policy.forward_arguments(batch.attention_BS),
        **policy.keep_arguments(1),
    )
    cache = output.past_key_values
    if repeats > 1:
        cache.batch_repeat_interleave(repeats)
    return (
        batch.attention_BS.repeat_interleave(repeats, 0),
        output.logits[:, -1].repeat_interleave(repeats, 0),
        cache,
    )
