"""Whether a model computes for a row of a batch what it computes for the row alone.

Prompts of a batch are padded on the left. Some models read that padding, by a recurrence over columns or by positions
that they count in columns; others cannot go on from what they have read. Both would be found after training at best.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.errors import ConfigError
from understudy.models.decoding import ANOTHER_MODEL
from understudy.models.generation import SamplingSettings, generate
from understudy.models.language_model import LanguageModel
from understudy.models.logps import chosen_logps

# A model is loaded into float32, also from 16-bit weights, so that a right one differs by rounding alone.
_NATS_ALLOWED = 0.01
_PROMPT_TOKENS = 2, 6
_RAISED_BY_MODELS = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)


def refuse_unless_batched_as_alone(policy: LanguageModel) -> None:
    """Sample two tokens to a short and a longer prompt, and compare the short row's log-probabilities with its own.

    Families that are read packed are not asked: their layout is our own, and tested.

    Raises:
        ConfigError: they differ, or the model cannot be sampled from so; with its type.
    """
    if policy.packs:
        return
    kind = policy.unwrapped.config.model_type
    try:
        nats = _nats_between(policy)
    except _RAISED_BY_MODELS as error:
        reason = str(error).rstrip(".")
        raise ConfigError(
            f"a model of type {kind!r} cannot be sampled from in a batch: {reason}. {ANOTHER_MODEL}"
        ) from error
    if not nats <= _NATS_ALLOWED:
        raise ConfigError(
            f"a model of type {kind!r} answers otherwise in a batch, whose prompts are padded on the left, than to the "
            f"prompt alone: log-probabilities differ by {nats:.2g} nats (allowed: {_NATS_ALLOWED}). {ANOTHER_MODEL}"
        )


@torch.no_grad()
def _nats_between(policy: LanguageModel) -> float:
    """Greatest difference, over the tokens of a short row, between the row alone and in a batch, sampled or read."""
    ids = [policy.num_ids * part // 8 for part in range(1, 1 + max(_PROMPT_TOKENS))]
    prompts = [ids[:num_tokens] for num_tokens in _PROMPT_TOKENS]
    rollouts = generate(policy, prompts, SamplingSettings(2, greedy=True), torch.Generator(), 2)
    read_BT = policy.response_logps(policy.batch(rollouts.prompts, rollouts.responses))
    alone_T = _alone(policy, rollouts.prompts[0], rollouts.responses[0])
    found = [read_BT[0, : len(alone_T)]]
    if rollouts.logps is not None:
        found.append(torch.tensor(rollouts.logps[0]))
    return max(float((logp_T - alone_T).abs().max()) for logp_T in found)


def _alone(policy: LanguageModel, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Log-probabilities of a response as the model gives them when it is told nothing but the tokens."""
    id_1S = torch.tensor([[*prompt, *response]], device=policy.device)
    logits_SV = policy.model(input_ids=id_1S, use_cache=False).logits[0]
    return chosen_logps(logits_SV[len(prompt) - 1 : -1], id_1S[0, len(prompt) :])
