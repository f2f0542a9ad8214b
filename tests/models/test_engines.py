"""Three engines behind one protocol: the same distribution, the same seeds, the weights of now."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from models.families import random_policy
from support.vllm_stub import OldWorker, Stub, serve, vllm_module

from benchmarks.chisquare import ERROR_RATE, p_values
from understudy.config import LoraConfig
from understudy.errors import ConfigError, ServiceUnreachable
from understudy.models.decoding import start_fused
from understudy.models.engines import ENGINES, Generator, create_engine
from understudy.models.generation import Rollouts, SamplingSettings, generate
from understudy.models.graph_decoding import GraphStepper
from understudy.models.language_model import LanguageModel
from understudy.models.loading import with_lora

PROMPTS = [[5, 6, 7, 8], [9, 10]]


@pytest.fixture
def stub() -> Iterator[tuple[str, Stub]]:
    # Other weights than the policy's: only what was sent can make the samples right.
    with serve(random_policy("llama", seed=99)) as served:
        yield served


@pytest.fixture
def colocated(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the module that stands in for vLLM, which is not installed here, has been told."""
    calls: list[tuple[str, Any]] = []
    monkeypatch.setitem(sys.modules, "vllm", vllm_module(random_policy("llama", seed=99), calls))
    return calls


@pytest.fixture(params=[*ENGINES, "vllm-colocated"])
def engine(request: pytest.FixtureRequest, stub: tuple[str, Stub]) -> Generator:
    if request.param == "vllm-colocated":
        request.getfixturevalue("colocated")
        return create_engine("vllm")
    return create_engine(request.param, stub[0] if request.param == "vllm" else None)


def _sample(engine: Generator, policy: LanguageModel, settings: SamplingSettings, seed: int, repeats: int) -> Rollouts:
    return engine.generate(policy, PROMPTS, settings, torch.Generator().manual_seed(seed), repeats)


def test_equal_seeds_give_equal_responses_and_others_others(engine: Generator) -> None:
    policy = random_policy("llama")
    first, second, third = (_sample(engine, policy, SamplingSettings(12), seed, 3) for seed in (1, 1, 2))
    assert first == second
    assert first.responses != third.responses
    assert first.prompts == [prompt for prompt in PROMPTS for _ in range(3)]
    assert [len(row) for row in first.responses] == [
        12 if not done else row.index(policy.end_token_id) + 1
        for row, done in zip(first.responses, first.finished, strict=True)
    ]


@pytest.mark.parametrize("name", ["native", "transformers"])
def test_at_the_smallest_temperature_the_likeliest_tokens_are_sampled(name: str) -> None:
    policy, engine = random_policy("llama"), create_engine(name)
    cold, greedy = (
        _sample(engine, policy, settings, 0, 2).responses
        for settings in (SamplingSettings(8, temperature=1e-40), SamplingSettings(8, greedy=True))
    )
    assert cold == greedy


def test_a_prompt_that_occurs_twice_has_responses_of_its_own_each_time(engine: Generator) -> None:
    policy, twice = random_policy("llama"), [PROMPTS[0], PROMPTS[0]]
    first, again = (
        engine.generate(policy, twice, SamplingSettings(12), torch.Generator().manual_seed(1), 3).responses
        for _ in range(2)
    )
    assert first == again
    assert len({tuple(response) for response in first}) == 6


def test_a_response_may_be_its_end_alone(engine: Generator) -> None:
    policy = random_policy("llama")
    rollouts = engine.generate(policy, PROMPTS[:1], SamplingSettings(3), torch.Generator().manual_seed(1), 1000)
    ends = [done for row, done in zip(rollouts.responses, rollouts.finished, strict=True) if len(row) == 1]
    assert ends and all(ends)
    assert rollouts.responses.count([policy.end_token_id]) == len(ends)


def test_no_two_responses_have_the_same_seed_in_vllm(stub: tuple[str, Stub], colocated: list[tuple[str, Any]]) -> None:
    """Two rounds of three prompts, one of them twice, and four responses, j of which vLLM draws by seed + j."""
    policy = random_policy("llama")
    for engine in (create_engine("vllm", stub[0]), create_engine("vllm")):
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):
            engine.generate(policy, [[5], [6], [5]], SamplingSettings(2), generator, 4)
    served = [body for path, body in stub[1].requests if path == "/v1/completions" for _ in body["prompt"]]
    here = [own for name, sampling in colocated if name == "generate" for own in sampling]
    for asked in (served, here):
        seeds = [own["seed"] + child for own in asked for child in range(own["n"])]
        assert len(seeds) == len(set(seeds)) == 2 * 3 * 4
        assert min(seeds) >= 0 and max(seeds) < 2**63


def test_tokens_follow_the_policys_probabilities_by_chi_square(engine: Generator) -> None:
    policy = _peaked_policy()
    # Settings that a model brings along must not narrow the distribution.
    policy.model.generation_config.do_sample = True
    policy.model.generation_config.top_k = 3
    found = _p_values(engine, policy, PROMPTS, SamplingSettings(2, temperature=0.8))
    assert min(found) * len(found) > ERROR_RATE, found


@pytest.mark.parametrize(
    ("wrong", "num_rejected"),
    [
        (SamplingSettings(2, temperature=0.9), 2),
        (SamplingSettings(2, temperature=0.8, top_p=0.95), 2),
        (SamplingSettings(2, temperature=0.8, top_p=0.99), 1),
    ],
    ids=["temperature-0.9", "top_p-0.95", "top_p-0.99"],
)
def test_the_chi_square_test_rejects_another_temperature_and_a_nucleus(
    engine: Generator, wrong: SamplingSettings, num_rejected: int
) -> None:
    """Controls: with few draws and most tokens in one bin the test would pass these, too, and its passing say nothing.

    The statistics of the first and second token are 33 and 34 on average if all is right, and are rejected above 75.
    Due here are 620 and 230 at temperature 0.9, 550 and 250 with a nucleus of 0.95, and 130 and 70 with one of 0.99,
    which only the first is sure to tell.
    """
    found = _p_values(engine, _peaked_policy(), PROMPTS[:1], wrong)
    assert sum(value * len(found) < ERROR_RATE for value in found) >= num_rejected, found


def _peaked_policy() -> LanguageModel:
    """Its likeliest first token is common enough for a test of the second: 43% and 18% of the responses to PROMPTS."""
    policy = random_policy("llama")
    with torch.no_grad():
        policy.model.model.norm.weight.mul_(2)
    return policy


def _p_values(
    engine: Generator, policy: LanguageModel, prompts: list[list[int]], settings: SamplingSettings
) -> list[float]:
    """Of the first and of the second token of responses to each prompt, had they been drawn at temperature 0.8."""
    repeats, found = 10_000, []
    rows = engine.generate(policy, prompts, settings, torch.Generator().manual_seed(3), repeats).responses
    for index, prompt in enumerate(prompts):
        found += p_values(rows[index * repeats : (index + 1) * repeats], partial(_probabilities, policy, prompt))
    return found


def _probabilities(policy: LanguageModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits_V = policy.model(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1]
    return (logits_V.double() / 0.8).softmax(-1)


@pytest.mark.parametrize(("greedy", "adapted"), [(False, False), (True, True)])
def test_no_setting_that_a_model_brings_along_reaches_transformers(greedy: bool, adapted: bool) -> None:
    from transformers import GenerationConfig

    policy, settings = random_policy("llama"), SamplingSettings(12, greedy=greedy)
    if adapted:
        policy = with_lora(policy, LoraConfig(rank=2, alpha=4, dropout=0.0, target_modules="all-linear"), 0)
    engine = create_engine("transformers")
    plain = _sample(engine, policy, settings, 1, 3)
    brought: dict[str, Any] = {
        **{"repetition_penalty": 50.0, "encoder_repetition_penalty": 9.0, "no_repeat_ngram_size": 1},
        **{"min_p": 0.5, "typical_p": 0.2, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_h": 0.3},
        **{"bad_words_ids": [[8]], "suppress_tokens": [*range(20, 200)], "begin_suppress_tokens": [202]},
        **{"forced_bos_token_id": 9, "forced_eos_token_id": 9, "sequence_bias": [[[81], 50.0]]},
        **{"min_length": 40, "min_new_tokens": 12, "exponential_decay_length_penalty": (1, 9.0)},
        **{"guidance_scale": 5.0, "watermarking_config": {"bias": 9.0}, "renormalize_logits": True},
        **{
            "num_beams": 2,
            "max_length": 7,
            "max_time": 1e-9,
            "stop_strings": ["e"],
            "eos_token_id": [*range(200, 240)],
        },
        **{"return_dict_in_generate": True, "output_scores": True, "cache_implementation": "static"},
    }
    # One by one too: a setting that fails loudly among others must not hide a silent one.
    for chosen in (brought, *({name: value} for name, value in brought.items())):
        own = policy.unwrapped.generation_config = GenerationConfig(**chosen)
        before = own.to_json_string()
        assert _sample(engine, policy, settings, 1, 3) == plain, chosen
        assert policy.unwrapped.generation_config is own and own.to_json_string() == before


def test_greedy_responses_are_those_of_the_native_engine_and_follow_the_weights(engine: Generator) -> None:
    policy = random_policy("llama")
    settings = SamplingSettings(10, greedy=True)
    answers = []
    for _ in range(2):
        found = _sample(engine, policy, settings, 0, 2)
        expected = generate(policy, PROMPTS, settings, torch.Generator(), 2)
        assert (found.responses, found.finished) == (expected.responses, expected.finished)
        answers.append(found.responses)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    assert answers[0] != answers[1]


def test_weights_are_sent_once_for_each_state_of_them(stub: tuple[str, Stub]) -> None:
    engine, policy = create_engine("vllm", stub[0]), random_policy("llama")
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=0.1)
    for _ in range(2):
        _sample(engine, policy, SamplingSettings(2), 0, 2)
    assert stub[1].num_reloads == 1
    policy.model(input_ids=torch.tensor([[5, 6]])).logits.sum().backward()
    optimizer.step()
    _sample(engine, policy, SamplingSettings(2), 0, 2)
    assert stub[1].num_reloads == 2
    assert [path for path, _ in stub[1].requests].count("/reset_prefix_cache") == 2


def test_a_server_that_takes_no_weights_is_an_error_with_the_remedy() -> None:
    with serve(random_policy("llama"), development=False) as (url, stub):
        engine = create_engine("vllm", url)
        for _ in range(2):  # a failed send is not taken for sent
            with pytest.raises(ServiceUnreachable, match="404.*VLLM_SERVER_DEV_MODE=1"):
                _sample(engine, random_policy("llama"), SamplingSettings(2), 0, 2)
        assert not [path for path, _ in stub.requests if path == "/v1/completions"]


def test_a_server_whose_workers_take_no_folder_is_an_error_with_the_remedy(stub: tuple[str, Stub]) -> None:
    stub[1].worker = OldWorker(stub[1].policy)
    with pytest.raises(ServiceUnreachable, match="unexpected keyword argument 'weights_path'.*vLLM 0.16 or newer"):
        _sample(create_engine("vllm", stub[0]), random_policy("llama"), SamplingSettings(2), 0, 2)


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(ServiceUnreachable, match=r"http://127.0.0.1:9 \(align.rollout.server_url\) does not answer"):
        _sample(create_engine("vllm", "http://127.0.0.1:9"), random_policy("llama"), SamplingSettings(2), 0, 2)


def test_decoding_by_the_graphs_computation_keeps_all_rows_and_notes_log_probabilities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[int] = []
    compute = GraphStepper._compute

    def counted(self: GraphStepper) -> None:
        rows.append(len(self._token_B))
        compute(self)

    monkeypatch.setattr(GraphStepper, "_compute", counted)
    policy = random_policy("llama")
    # Half of the rows end after two tokens and would leave the native engine's batch.
    prompts, settings = [[5, 6, 7, 8], [5] * 62], SamplingSettings(12)
    by_graphs = partial(start_fused, GraphStepper)
    rollouts = generate(policy, prompts, settings, torch.Generator().manual_seed(1), 8, begin=by_graphs)
    assert [max(map(len, some)) for some in (rollouts.responses[:8], rollouts.responses[8:])] == [12, 2]
    assert rows == [16] * 11
    assert rollouts.logps is not None
    logp_BT = policy.response_logps(policy.batch(rollouts.prompts, rollouts.responses))
    for row, logps in enumerate(rollouts.logps):
        assert len(logps) == len(rollouts.responses[row])
        torch.testing.assert_close(torch.tensor(logps), logp_BT[row, : len(logps)], atol=1e-4, rtol=1e-4)


def test_prompts_without_room_are_refused_by_every_engine(engine: Generator) -> None:
    with pytest.raises(ConfigError, match="70 tokens but the model's context holds 64"):
        engine.generate(random_policy("llama"), [[5] * 70], SamplingSettings(4), torch.Generator())


def test_a_long_prompt_cuts_no_response_but_its_own(engine: Generator) -> None:
    """Context 64: the prompts leave room for 32, 2, 32, 24 and 32 tokens of the 32 asked for."""
    policy = random_policy("llama")
    prompts = [[5, 6, 7, 8], [5] * 62, [9, 10], [11] * 40, [12]]
    limits = [32, 2, 32, 24, 32]
    greedy = engine.generate(policy, prompts, SamplingSettings(32, greedy=True), torch.Generator(), 2)
    alone = [
        generate(policy, [prompt], SamplingSettings(limit, greedy=True), torch.Generator(), 2)
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    assert greedy.responses == [row for found in alone for row in found.responses]
    sampled = engine.generate(policy, prompts, SamplingSettings(32), torch.Generator().manual_seed(1), 40)
    assert sampled.prompts == [prompt for prompt in prompts for _ in range(40)]
    for row, (response, done) in enumerate(zip(sampled.responses, sampled.finished, strict=True)):
        assert done == (policy.end_token_id in response) == (response[-1] == policy.end_token_id)
        assert done or len(response) == limits[row // 40]
    assert 0 < sum(sampled.finished[:40]) < 40


def test_rows_at_the_contexts_end_need_no_position_after_it() -> None:
    """GPT-2 has 64 positions; a row that has used them up is read on beside the others."""
    policy = random_policy("gpt2")
    prompts, settings = [[5] * 60, [6], [7], [8], [9]], SamplingSettings(32, greedy=True)
    native, other = (
        create_engine(name).generate(policy, prompts, settings, torch.Generator()).responses
        for name in ("native", "transformers")
    )
    assert native == other
    assert [len(response) for response in native] == [4, 32, 32, 32, 32]


def test_colocated_vllm_loads_once_and_reloads_after_an_update(colocated: list[tuple[str, Any]]) -> None:
    engine, policy = create_engine("vllm"), random_policy("llama")
    rollouts = _sample(engine, policy, SamplingSettings(62), 0, 2)
    assert [own["max_tokens"] for own in colocated[1][1]] == [60, 62]
    assert rollouts.prompts == [prompt for prompt in PROMPTS for _ in range(2)]
    _sample(engine, policy, SamplingSettings(4), 0, 2)
    with torch.no_grad():
        next(policy.model.parameters()).add_(1)
    _sample(engine, policy, SamplingSettings(4), 0, 2)
    assert [name for name, _ in colocated] == ["load", "generate", "generate", "reload_weights", "reset", "generate"]


@pytest.mark.parametrize("method", ["collective_rpc", "reset_prefix_cache"])
def test_weights_that_colocated_vllm_failed_to_read_are_sent_again(
    method: str, colocated: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, policy = create_engine("vllm"), random_policy("llama")
    _sample(engine, policy, SamplingSettings(2), 0, 2)
    with torch.no_grad():
        next(policy.model.parameters()).add_(1)

    def fail(*_: Any, **named: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as broken:
        broken.setattr(sys.modules["vllm"].LLM, method, fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            _sample(engine, policy, SamplingSettings(2), 0, 2)
    del colocated[:]
    _sample(engine, policy, SamplingSettings(2), 0, 2)
    assert [name for name, _ in colocated] == ["reload_weights", "reset", "generate"]


def test_colocated_vllm_has_the_precision_of_the_policy_or_of_autocast(colocated: list[tuple[str, Any]]) -> None:
    policy = random_policy("llama")
    _sample(create_engine("vllm"), policy, SamplingSettings(2), 0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        _sample(create_engine("vllm"), policy, SamplingSettings(2), 0, 2)
    assert [dtype for name, dtype in colocated if name == "load"] == ["float32", "bfloat16"]


def test_wrong_choices_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="engine is 'native', which has no server"):
        create_engine("native", "http://x")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match="vLLM is not installed"):
        create_engine("vllm")
    with pytest.raises(ConfigError, match="no engine 'fast'.*native, transformers, vllm"):
        create_engine("fast")
