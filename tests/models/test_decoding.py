"""The fused decoder computes what the Hugging Face model computes, and samplers draw from that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from models.families import random_policy

from understudy.config import LoraConfig
from understudy.errors import ConfigError
from understudy.models import decoding, graph_decoding
from understudy.models.decoding import CachedStepper, FusedStepper, can_fuse, start, start_fused
from understudy.models.generation import SamplingSettings, choose_tokens, generate
from understudy.models.graph_decoding import GraphStepper
from understudy.models.language_model import LanguageModel
from understudy.models.loading import with_lora

FUSED = ["llama", "llama_untied", "qwen2", "qwen3"]
PROMPTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]


@pytest.fixture(autouse=True)
def _no_gradient() -> Iterator[None]:
    with torch.no_grad():
        yield


def _steppers(
    policy: LanguageModel, monkeypatch: pytest.MonkeyPatch, repeats: int
) -> tuple[FusedStepper, CachedStepper]:
    fused = start(policy, PROMPTS, repeats, 12)
    monkeypatch.setattr(decoding, "can_fuse", lambda policy: False)
    plain = start(policy, PROMPTS, repeats, 12)
    assert isinstance(fused, FusedStepper) and isinstance(plain, CachedStepper)
    return fused, plain


@pytest.mark.parametrize("family", FUSED)
def test_fused_logits_equal_those_of_the_model_also_after_rows_left(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = random_policy(family)
    # Biases and norm scales that are not at their neutral start.
    for name, value in policy.model.named_parameters():
        if value.dim() == 1:
            value += 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    fused, plain = _steppers(policy, monkeypatch, repeats=2)
    generator = torch.Generator().manual_seed(0)
    for column in range(10):
        torch.testing.assert_close(fused.logits_BV, plain.logits_BV, atol=1e-4, rtol=1e-4)
        if column in (3, 6):
            rows = torch.arange(0, fused.logits_BV.shape[0], 2)
            fused.select(rows)
            plain.select(rows)
        token_B = torch.randint(5, 200, (fused.logits_BV.shape[0],), generator=generator)
        fused.step(token_B)
        plain.step(token_B)
    assert fused.logits_BV.shape[0] == 2


def test_the_cache_has_room_for_the_longest_prompt_and_response_of_the_rows_that_are_there() -> None:
    policy = random_policy("llama")
    assert policy.context_tokens > 3 + 7
    with torch.no_grad():
        stepper = start_fused(FusedStepper, policy, [[5, 6, 7], [8]], 2, 7)
        heads, width = stepper._key_heads, stepper._width
        assert [tuple(keys.shape) for keys in stepper._keys] == [(4, heads, 3 + 7, width)] * len(stepper._layers)
        stepper.step(torch.tensor([1, 2, 3, 4]))
        stepper.select(torch.tensor([0, 3]))
        for cache in (*stepper._keys, *stepper._values):
            assert cache.untyped_storage().nbytes() == 2 * heads * (3 + 7) * width * 4


@pytest.mark.parametrize("family", FUSED)
def test_the_graphs_computation_run_eagerly_gives_the_logits_of_the_fused_one(family: str) -> None:
    policy = random_policy(family)
    fused, graph = (start_fused(kind, policy, PROMPTS, 2, 12) for kind in (FusedStepper, GraphStepper))
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        token_B = torch.randint(5, 200, (6,), generator=generator)
        fused.step(token_B)
        graph.step(token_B)
        torch.testing.assert_close(graph.logits_BV, fused.logits_BV, atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match="cannot lose rows"):
        graph.select(torch.arange(2))


@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_sampling_by_the_graphs_computation_draws_the_tokens_of_the_fused_one(
    family: str, top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal noise gives equal tokens while no row leaves, which takes a quarter of the batch to have ended."""
    monkeypatch.setattr(graph_decoding, "_BLOCK", 8)  # the graphs of five or six blocks
    policy, settings = random_policy(family), SamplingSettings(40, top_p=top_p)
    fused, graph = (
        generate(policy, PROMPTS, settings, torch.Generator().manual_seed(0), 8, begin=begin)
        for begin in (start, partial(start_fused, GraphStepper))
    )
    assert (graph.responses, graph.finished) == (fused.responses, fused.finished)
    assert 0 < sum(graph.finished) < 6
    assert len({tuple(response[:3]) for response in graph.responses}) > 20
    assert graph.logps is not None and fused.logps is not None
    for some, others in zip(graph.logps, fused.logps, strict=True):
        assert some == pytest.approx(others, abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3", "gpt_neox", "mistral_window"])
def test_other_families_are_left_to_the_model(family: str) -> None:
    assert not can_fuse(random_policy(family))


@pytest.mark.parametrize("kind", [FusedStepper, GraphStepper])
def test_adapters_are_added_to_the_weights_while_they_are_on(kind: type[FusedStepper]) -> None:
    policy = with_lora(random_policy("llama"), LoraConfig(rank=4, alpha=8, dropout=0.0, target_modules="all-linear"), 0)
    for name, value in policy.model.named_parameters():
        if "lora_B" in name:
            value.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(len(name)))
    assert can_fuse(policy)
    with_and_without = []
    for context in (contextlib.nullcontext, policy.without_adapters):
        with context():
            fused, plain = start_fused(kind, policy, PROMPTS, 2, 12), CachedStepper.of(policy, PROMPTS, 2)
            for token in (7, 9, 11):
                token_B = torch.full((6,), token)
                fused.step(token_B)
                plain.step(token_B)
            torch.testing.assert_close(fused.logits_BV, plain.logits_BV, atol=1e-4, rtol=1e-4)
            with_and_without.append(plain.logits_BV)
    assert (with_and_without[0] - with_and_without[1]).abs().max() > 0.5


def test_an_adapter_that_leaves_layers_out_changes_the_others_alone() -> None:
    import peft

    policy = random_policy("llama")
    shape = {"r": 2, "task_type": "CAUSAL_LM", "init_lora_weights": False}
    model = peft.get_peft_model(policy.model, peft.LoraConfig(target_modules="all-linear", **shape), "every")
    model.add_adapter("queries", peft.LoraConfig(target_modules=["q_proj"], **shape))
    model.base_model.set_adapter(["every", "queries"])
    adapted = LanguageModel(model.eval(), policy.tokenizer)
    fused, plain = start_fused(FusedStepper, adapted, PROMPTS, 1, 4), CachedStepper.of(adapted, PROMPTS, 1)
    for stepper in (fused, plain):
        stepper.step(torch.full((3,), 9))
    torch.testing.assert_close(fused.logits_BV, plain.logits_BV, atol=1e-4, rtol=1e-4)


def test_adapters_that_are_no_plain_product_are_left_to_the_model() -> None:
    import peft

    policy = random_policy("llama")
    adapters = peft.LoraConfig(r=2, target_modules="all-linear", use_dora=True, task_type="CAUSAL_LM")
    assert not can_fuse(LanguageModel(peft.get_peft_model(policy.model, adapters), policy.tokenizer))


@pytest.mark.parametrize("kind", [FusedStepper, GraphStepper])
@pytest.mark.parametrize("family", FUSED)
def test_under_autocast_weights_and_cache_are_bfloat16_and_logits_as_near_as_the_models_own(
    kind: type[FusedStepper], family: str
) -> None:
    policy = random_policy(family)
    exact = CachedStepper.of(policy, PROMPTS, 1)
    with torch.autocast("cpu", torch.bfloat16):
        fused, plain = start_fused(kind, policy, PROMPTS, 1, 12), CachedStepper.of(policy, PROMPTS, 1)
        assert fused._keys[0].dtype == fused._layers[0].qkv.dtype == torch.bfloat16
        for token in (7, 9, 11, 30, 41):
            token_B = torch.full((3,), token)
            fused.step(token_B)
            plain.step(token_B)
    for token in (7, 9, 11, 30, 41):
        exact.step(torch.full((3,), token))
    assert fused.logits_BV.dtype == torch.float32
    errors = [(found.logits_BV.float() - exact.logits_BV).norm() / exact.logits_BV.norm() for found in (fused, plain)]
    assert errors[0] < 2.5 * errors[1] and errors[0] < 0.03


@pytest.mark.parametrize("family", ["llama", "gpt2", "lfm2", "falcon_h1", "olmo_hybrid"])
def test_the_samplers_log_probabilities_are_those_of_a_forward_pass(family: str) -> None:
    policy = random_policy(family)
    settings = SamplingSettings(12, temperature=0.7, top_p=0.9)
    rollouts = generate(policy, PROMPTS, settings, torch.Generator().manual_seed(3), responses_per_prompt=4)
    assert rollouts.logps is not None
    logp_BT = policy.response_logps(policy.batch(rollouts.prompts, rollouts.responses))
    for row, logps in enumerate(rollouts.logps):
        assert len(logps) == len(rollouts.responses[row])
        torch.testing.assert_close(torch.tensor(logps), logp_BT[row, : len(logps)], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "lfm2", "falcon_h1", "olmo_hybrid"])
def test_rows_that_leave_a_cache_of_any_kind_change_no_log_probability_of_those_that_stay(family: str) -> None:
    """Limits of 4 and 14 tokens in a context of 64: half of the rows leave."""
    policy = random_policy(family)
    prompts = [[5] * 60, [6] * 50, [7] * 60, [8] * 3]
    rollouts = generate(policy, prompts, SamplingSettings(14), torch.Generator().manual_seed(5), responses_per_prompt=2)
    assert rollouts.logps is not None and max(map(len, rollouts.logps)) == 14
    logp_BT = policy.response_logps(policy.batch(rollouts.prompts, rollouts.responses))
    for row, logps in enumerate(rollouts.logps):
        torch.testing.assert_close(torch.tensor(logps), logp_BT[row, : len(logps)], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "named"), [("mamba", "mamba"), ("openai_gpt", "openai-gpt")])
def test_a_model_without_a_cache_of_transformers_is_refused_by_its_type(family: str, named: str) -> None:
    said = f"a model of type '{named}' gives no cache .past_key_values. to decode with, .* Name a model of another type"
    with pytest.raises(ConfigError, match=said):
        generate(random_policy(family), PROMPTS, SamplingSettings(4), torch.Generator(), 2)


def test_tokens_follow_their_probabilities_over_a_large_vocabulary_by_chi_square() -> None:
    """Error rate 1e-4: a right sampler fails for one seed in ten thousand, and this seed is fixed."""
    from scipy.stats import chisquare

    vocabulary = 20_000
    logit_V = 2.0 * torch.randn(vocabulary, generator=torch.Generator().manual_seed(0))
    probability_V = logit_V.double().softmax(-1)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.cat([choose_tokens(logit_V.expand(200, -1), SamplingSettings(1), generator) for _ in range(100)])
    draws = len(tokens)
    observed_V = torch.bincount(tokens, minlength=vocabulary).double()
    # Thousands of rare tokens in a hundred bins of equal probability, in the order of the vocabulary.
    bins = (probability_V.cumsum(0) * 100).long().clamp(max=99)
    seen, due = torch.zeros(100).double(), torch.zeros(100).double()
    seen.index_add_(0, bins, observed_V)
    due.index_add_(0, bins, probability_V * draws)
    filled = due > 0
    assert chisquare(seen[filled].numpy(), due[filled].numpy()).pvalue > 1e-4


def test_a_token_without_probability_is_never_drawn() -> None:
    logit_BV = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(5000, -1)
    tokens = choose_tokens(logit_BV, SamplingSettings(1), torch.Generator().manual_seed(0))
    assert set(tokens.tolist()) == {1, 3}
