from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from models.families import FAMILIES, random_policy

from understudy.errors import ConfigError, TrainingDiverged
from understudy.models.decoding import CachedStepper, FusedStepper, Stepper, start
from understudy.models.generation import Rollouts, SamplingSettings, choose_tokens, generate
from understudy.models.language_model import LanguageModel

PROMPTS = ["alpha", "alpha beta gamma", "name: value\nother", "x"]


def _prompts(policy: LanguageModel) -> list[list[int]]:
    return [policy.encode_prompt([{"role": "user", "content": text}]) for text in PROMPTS]


def _naive_greedy(policy: LanguageModel, prompt: list[int], max_tokens: int) -> list[int]:
    """No padding, no cache, no batch: deliberately independent of generate."""
    ids, out = torch.tensor([prompt]), []
    with torch.no_grad():
        while len(out) < max_tokens:
            token = int(policy.model(input_ids=ids).logits[0, -1].argmax())
            out.append(token)
            if token == policy.end_token_id:
                break
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_naive_decoding_without_cache_or_padding(family: str) -> None:
    policy = random_policy(family)
    prompts = _prompts(policy)
    rollouts = generate(policy, prompts, SamplingSettings(12, greedy=True), torch.Generator(), responses_per_prompt=2)
    expected = [_naive_greedy(policy, prompt, 12) for prompt in prompts for _ in range(2)]
    assert rollouts.responses == expected
    assert rollouts.finished == [row[-1] == policy.end_token_id for row in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_response_logps_equal_unpadded_forward(family: str) -> None:
    policy = random_policy(family)
    prompts = _prompts(policy)
    responses = [policy.encode_response(text) for text in ["beta", "", "gamma delta epsilon", "12\n"]]
    batch = policy.batch(prompts, responses)
    logps_BT = policy.response_logps(batch)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        logits = policy.model(input_ids=torch.tensor([prompt + response])).logits[0].float().log_softmax(-1).detach()
        expected = [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(response)]
        torch.testing.assert_close(logps_BT[row, : len(response)], torch.tensor(expected), atol=2e-4, rtol=1e-4)
        assert logps_BT[row, len(response) :].abs().sum() == 0


def test_sampled_first_tokens_follow_the_model_by_chi_square() -> None:
    """Error rate: a correct sampler fails this with probability 1e-4 over seeds; the seed is fixed."""
    from scipy.stats import chisquare

    policy = random_policy("llama")
    prompt = _prompts(policy)[0]
    draws = 4000
    rollouts = generate(policy, [prompt], SamplingSettings(1), torch.Generator().manual_seed(1), draws)
    with torch.no_grad():
        probability_V = policy.model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    observed = torch.bincount(torch.tensor([row[0] for row in rollouts.responses]), minlength=len(probability_V))
    expected_V = probability_V * draws
    common = expected_V >= 5
    seen = [*observed[common].tolist(), int(observed[~common].sum())]
    due = [*expected_V[common].tolist(), float(expected_V[~common].sum())]
    assert chisquare(seen, due).pvalue > 1e-4


def test_top_p_keeps_the_smallest_set_reaching_the_mass() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(2000, 1)
    tokens = choose_tokens(logits, SamplingSettings(1, top_p=0.75), torch.Generator().manual_seed(0))
    assert set(tokens.tolist()) == {0, 1}


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-40, 5e-324])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_however_small_the_temperature_the_likeliest_token_is_drawn(temperature: float, scale: float) -> None:
    logits = scale * torch.tensor([[5.0, 3.0, -6.0], [1.0, 2.0, -torch.inf], [-9.0, -7.0, -8.0]])
    drawn = choose_tokens(logits, SamplingSettings(1, temperature), torch.Generator().manual_seed(0))
    assert drawn.tolist() == [0, 1, 1]


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 1.5])
def test_at_ordinary_temperatures_a_token_is_drawn_by_the_softmax_of_the_quotients(temperature: float) -> None:
    logits = 5 * torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    mass = (logits / temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
    chance = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * mass[:, -1]
    drawn = choose_tokens(logits, SamplingSettings(1, temperature), torch.Generator().manual_seed(1))
    assert drawn.tolist() == [int((row <= limit).sum()) for row, limit in zip(mass, chance, strict=True)]


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("family", ["llama_untied", "gpt_neox"])
def test_what_is_drawn_from_logits_that_are_no_numbers_is_an_error(family: str, greedy: bool) -> None:
    policy = random_policy(family)
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[12] = torch.nan
    prompts = [[5, 6], [12, 7], [8]]
    said = "logits of 2 of 6 responses are no numbers .NaN., first at token 1 of response 3. Its weights are"
    with pytest.raises(TrainingDiverged, match=said):
        generate(policy, prompts, SamplingSettings(2, greedy=greedy), torch.Generator().manual_seed(0), 2)


def test_same_seed_gives_same_responses_and_other_seed_does_not() -> None:
    policy = random_policy("gpt2")
    first, second, third = (
        generate(policy, _prompts(policy), SamplingSettings(10), torch.Generator().manual_seed(seed), 3).responses
        for seed in (5, 5, 6)
    )
    assert first == second != third


def test_prompt_longer_than_context_is_refused_with_both_numbers() -> None:
    policy = random_policy("llama")
    with pytest.raises(ConfigError, match="70 tokens but the model's context holds 64"):
        generate(policy, [[5] * 70], SamplingSettings(4), torch.Generator())


def test_an_end_token_that_a_row_draws_after_its_own_limit_is_not_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row in five has used up the context after two tokens and stays in the batch beside the others."""
    policy = random_policy("llama")
    prompts, settings = [[*range(41, 103)], [6], [7], [8], [9]], SamplingSettings(8, greedy=True)
    with monkeypatch.context() as patch:
        patch.setattr(policy, "context_tokens", 80)
        beyond = generate(policy, prompts, settings, torch.Generator()).responses
    third = beyond[0][2]
    assert third not in [*beyond[0][:2], *(token for row in beyond[1:] for token in row)]
    monkeypatch.setattr(policy, "end_token_id", third)
    rollouts = generate(policy, prompts, settings, torch.Generator())
    assert rollouts.responses == [beyond[0][:2], *beyond[1:]]
    assert rollouts.finished == [False] * 5
    assert rollouts.logps is not None and [len(logps) for logps in rollouts.logps] == [2, 8, 8, 8, 8]


def test_sampling_by_several_draws_the_noise_that_one_draws() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    settings = SamplingSettings(1, temperature=0.7, top_p=0.9)
    whole = choose_tokens(logits, settings, torch.Generator().manual_seed(5))
    parts = [
        choose_tokens(logits[first:end], settings, torch.Generator().manual_seed(5), (first, 6))
        for first, end in ((0, 2), (2, 2), (2, 6))
    ]
    assert torch.cat(parts).tolist() == whole.tolist()
    assert len(set(whole.tolist())) > 2


class EndingStepper:
    """The policy's own stepper, whose rows are made to end at known lengths; notes how many rows each step reads."""

    def __init__(self, inner: Stepper, lengths: Sequence[int], end_token_id: int, loses_rows: bool) -> None:
        self.inner, self.loses_rows, self.rows_read = inner, loses_rows, list[int]()
        self._length_B, self._end, self._column = torch.tensor(lengths), end_token_id, 0
        self._take_logits()

    def _take_logits(self) -> None:
        self.logits_BV = self.inner.logits_BV.clone()
        self.logits_BV[:, self._end] = torch.where(self._length_B == self._column + 1, 1e3, -1e3)

    def step(self, token_B: torch.Tensor) -> None:
        self.rows_read.append(len(token_B))
        self.inner.step(token_B)
        self._column += 1
        self._take_logits()

    def select(self, row_B: torch.Tensor) -> None:
        self.inner.select(row_B)
        self._length_B = self._length_B[row_B]
        self._take_logits()


@pytest.mark.parametrize(("family", "kind"), [("llama", FusedStepper), ("gpt2", CachedStepper)])
def test_rows_that_ended_leave_the_batch_and_change_no_response(family: str, kind: type[Stepper]) -> None:
    """30 tokens must be read on; a quarter of the batch must have ended for its rows to leave."""
    policy, lengths = random_policy(family), [3, 12, 2, 8, 1, 4, 2, 6]
    prompts, settings = _prompts(policy), SamplingSettings(20, greedy=True)
    steppers: list[EndingStepper] = []

    def decoded(loses_rows: bool) -> Rollouts:
        def begin(*arguments: Any) -> EndingStepper:
            steppers.append(EndingStepper(start(*arguments), lengths, policy.end_token_id, loses_rows))
            return steppers[-1]

        return generate(policy, prompts, settings, torch.Generator(), 2, begin=begin)

    leaving, staying = decoded(loses_rows=True), decoded(loses_rows=False)
    assert leaving.responses == staying.responses and leaving.finished == staying.finished == [True] * 8
    assert [len(response) for response in leaving.responses] == lengths
    assert leaving.logps is not None and staying.logps is not None
    for some, others in zip(leaving.logps, staying.logps, strict=True):
        assert some == pytest.approx(others, abs=1e-4)
    assert [type(stepper.inner) for stepper in steppers] == [kind, kind]
    assert steppers[0].rows_read == [8, 5, 5, 3, 3, 2, 2, 1, 1, 1, 1]
    # Whether all have ended is asked at every eighth column.
    assert steppers[1].rows_read == [8] * 15
