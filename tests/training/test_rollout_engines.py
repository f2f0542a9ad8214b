"""Alignment on samples of another engine: it has the weights of now, and log-probabilities are our own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.vllm_stub import Stub, serve
from training.helpers import align_config, examples, loop, params, random_policy
from transformers import GenerationMixin

from understudy.models.discriminator import create_discriminator
from understudy.models.engines import Transformers
from understudy.models.language_model import LanguageModel
from understudy.models.loading import with_lora
from understudy.models.vllm_engine import VllmServer
from understudy.training.adversarial import align
from understudy.training.replay import Sample
from understudy.training.state import Models
from understudy.training.updating import Scored, Update

# Samples of another distribution than the policy's own, so that an engine's numbers would not be the policy's.
SETTINGS = ["align.rollout.temperature=0.7", "align.rollout.top_p=0.9", "align.learning_rate=1e-2"]
LORA = "model.lora={rank: 2, alpha: 4, dropout: 0.0, target_modules: all-linear}"


def _logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits
    return logits


def _logps(policy: LanguageModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    """No padding, no packing, no batch."""
    logits = policy.model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    logps: torch.Tensor = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
    return logps


@pytest.mark.parametrize("overrides", [[], [LORA]], ids=["all-weights", "adapters"])
@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_each_round_is_sampled_with_its_weights_and_scored_by_our_own_log_probabilities(
    tmp_path: Path, engine: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = params(*overrides).model.lora
    policy, reference = random_policy("llama"), random_policy("llama")
    if lora is not None:
        policy = reference = with_lora(policy, lora, seed=0)
    rows, score = examples(policy), Update.score
    samplers: list[torch.Tensor] = []
    policies: list[torch.Tensor] = []
    rounds: list[int] = []
    scored: list[tuple[torch.Tensor, torch.Tensor]] = []

    def noted(sample: Callable[..., Any], model_of: Callable[[Any], Any]) -> Callable[..., Any]:
        def sampled(self: Any, *arguments: Any, **named: Any) -> Any:
            samplers.append(_logits(model_of(self)))
            policies.append(_logits(policy.model))
            return sample(self, *arguments, **named)

        return sampled

    def noted_round(generate: Callable[..., Any]) -> Callable[..., Any]:
        def generated(*arguments: Any, **named: Any) -> Any:
            rounds.append(len(samplers))
            return generate(*arguments, **named)

        return generated

    @torch.no_grad()
    def noted_score(self: Update, samples: list[Sample]) -> Scored:
        found = score(self, samples)
        for sample, logp_T in zip(samples, found.logp_BT, strict=True):
            due_T = _logps(policy, rows[sample.row].prompt, sample.response)
            scored.append((logp_T[: len(due_T)], due_T))
        return found

    monkeypatch.setattr(Update, "score", noted_score)
    for kind in (VllmServer, Transformers):
        monkeypatch.setattr(kind, "generate", noted_round(kind.generate))
    if engine == "vllm":
        monkeypatch.setattr(Stub, "_complete", noted(Stub._complete, lambda stub: stub.policy.model))
    else:
        monkeypatch.setattr(GenerationMixin, "generate", noted(GenerationMixin.generate, lambda model: model))
    with serve(random_policy("llama", seed=99)) as (url, stub):
        server = f"align.rollout.server_url={url if engine == 'vllm' else 'null'}"
        config = align_config(f"align.rollout.engine={engine}", server, *SETTINGS, *overrides)
        discriminator = create_discriminator(config.discriminator, 1, reference, lambda: reference)
        result = align(Models(policy, reference, discriminator), rows[:18], rows[18:], config, 1, loop(tmp_path))
    assert (result.num_rounds, result.stopped_by) == (4, None)
    torch.testing.assert_close(samplers, policies, atol=1e-4, rtol=1e-4)
    # A server is asked for each prompt by itself, transformers once for all.
    assert len(rounds) == 6 and (len(samplers) == 6) == (engine == "transformers")
    # Sampled were: the warm-up round, the policy's first, for an AUC, the second and third, for an AUC.
    sampled = [samplers[first] for first in rounds]
    moved = [float((after - before).abs().max()) > 1e-3 for before, after in pairwise(sampled)]
    assert moved == [False, True, False, True, True]
    assert stub.num_reloads == (4 if engine == "vllm" else 0)
    assert len(scored) == 3 * 12
    for found_T, due_T in scored:
        torch.testing.assert_close(found_T, due_T, atol=1e-4, rtol=1e-4)
