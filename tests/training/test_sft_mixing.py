"""The SFT loss beside a policy's own: gradient, weight, compute and annealing against a naive computation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training.helpers import WORDS, align_config, loop, random_policy

import understudy.training.policy_updates as policy_updates
import understudy.training.updating as updating
from understudy.errors import ConfigError
from understudy.models.language_model import LanguageModel
from understudy.models.scalar_head import ScalarHead
from understudy.training.adversarial import align, num_discriminator_outputs, objective_from
from understudy.training.discriminating import DiscriminatorTrainer
from understudy.training.examples import Example
from understudy.training.methods import composed
from understudy.training.policy_updates import POLICY_UPDATES
from understudy.training.state import AlignState, Models, rows_of_round

MIXED = ["align.sft_coefficient_start=0.6", "align.sft_coefficient_end=0.2"]
# Of the second of three policy rounds.
COEFFICIENT = 0.4
ROUND = 2


def _examples(policy: LanguageModel) -> list[Example]:
    """Responses of one to three words, so that a mean over tokens is none over responses."""
    made = []
    for index in range(18):
        word = WORDS[index % len(WORDS)]
        prompt = policy.encode_prompt([{"role": "user", "content": f"{word} {index % 7}"}])
        made.append(Example(f"row-{index}", prompt, policy.encode_response(" ".join([word] * (1 + index % 3)))))
    return made


def _models(*overrides: str) -> tuple[Any, Models, list[Example]]:
    config = align_config("align.rollout.max_response_tokens=24", *overrides)
    policy, reference = random_policy("llama"), random_policy("llama")
    torch.manual_seed(7)
    discriminator = ScalarHead.copied_from(reference, num_discriminator_outputs(config), 0.0)
    # A new head is zero, and so would be every reward.
    torch.nn.init.normal_(discriminator.head.weight, std=0.3)
    return config, Models(policy, reference, discriminator), _examples(policy)


def _gradients_and_passes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> tuple[list[list[torch.Tensor]], int, AlignState]:
    """The policy's gradient in each step of one round, in which the weights stay, and the round's token passes."""
    config, models, examples = _models(*overrides)
    config, name = composed(config)
    state = AlignState(models, examples, [], config, objective_from(config), 1, loop(folder))
    update = POLICY_UPDATES[name](state, DiscriminatorTrainer(state))
    seen: list[list[torch.Tensor]] = []

    def note(module: torch.nn.Module, *rest: Any) -> float:
        gradients = [parameter.grad.clone() for parameter in module.parameters() if parameter.grad is not None]
        if module is models.policy.model:
            seen.append(gradients)
        module.zero_grad(set_to_none=True)
        return 1.0

    for place in (updating, policy_updates):
        monkeypatch.setattr(place, "finite_update", note)
    state.round = ROUND
    samples = state.sample_round()
    before = state.passes
    update.update(samples)
    return seen, state.passes - before, state


def _naive_nll_gradient(state: AlignState) -> list[torch.Tensor]:
    """One prompt after another through the bare network: the mean of -log p over all response tokens."""
    model, total, count = state.policy.model, torch.zeros(()), 0
    for row in rows_of_round(len(state.train), state.config.rollout.prompts_per_round, state.seed, ROUND):
        example = state.train[row]
        ids = torch.tensor([example.prompt + example.response])
        logp_SV = model(input_ids=ids).logits[0].log_softmax(-1)
        for position, token in enumerate(example.response, start=len(example.prompt)):
            total = total - logp_SV[position - 1, token]
            count += 1
    return list(torch.autograd.grad(total / count, list(model.parameters())))


@pytest.mark.parametrize("micro_batch_tokens", [8192, 24])
@pytest.mark.parametrize(
    ("override", "num_steps"),
    [
        ("align.policy_update=rloo", 1),
        ("align.policy_update=ppo", 2),
        ("align.method=rlhf", 2),
        ("align.method=selfplay", 2),
        ("align.method=iterative_sft", 1),
    ],
)
def test_gradient_and_compute_are_those_of_both_losses(
    override: str, num_steps: int, micro_batch_tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [override, f"align.micro_batch_tokens={micro_batch_tokens}"]
    alone, passes_alone, _ = _gradients_and_passes(tmp_path / "alone", monkeypatch, *settings)
    mixed, passes_mixed, state = _gradients_and_passes(tmp_path / "mixed", monkeypatch, *settings, *MIXED)
    naive = _naive_nll_gradient(state)
    assert len(alone) == len(mixed) == num_steps
    for own, both in zip(alone, mixed, strict=True):
        expected = [one + COEFFICIENT * nll for one, nll in zip(own, naive, strict=True)]
        for got, wanted in zip(both, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    rows = rows_of_round(18, 4, state.seed, ROUND)
    assert passes_mixed - passes_alone == num_steps * 3 * sum(state.train[row].num_tokens for row in rows)


def test_it_is_annealed_over_the_policys_rounds_and_reported(tmp_path: Path) -> None:
    config, models, examples = _models(*MIXED, "align.kl_coefficient_start=0.6", "align.kl_coefficient_end=0.2")
    surroundings = loop(tmp_path)
    align(models, examples, [], config, 1, surroundings)
    warm_up, *rounds = surroundings.history
    assert "sft_coefficient" not in warm_up and "expert_nll" not in warm_up
    assert [entry["sft_coefficient"] for entry in rounds] == pytest.approx([0.6, 0.4, 0.2])
    assert [entry["sft_coefficient"] for entry in rounds] == [entry["kl_coefficient"] for entry in rounds]
    assert all(1.0 < entry["expert_nll"] < 20.0 for entry in rounds)


def test_the_loss_that_is_reported_is_the_sum(tmp_path: Path) -> None:
    losses = {}
    for name, overrides in {"alone": [], "mixed": MIXED}.items():
        config, models, examples = _models(*overrides)
        surroundings = loop(tmp_path / name)
        align(models, examples, [], config, 1, surroundings)
        losses[name] = surroundings.history[1]
    sft_loss = losses["mixed"]["sft_coefficient"] * losses["mixed"]["expert_nll"]
    assert losses["mixed"]["policy_loss"] == pytest.approx(losses["alone"]["policy_loss"] + sft_loss, abs=1e-5)
    assert not {"sft_coefficient", "expert_nll"} & set(losses["alone"])


def test_a_negative_coefficient_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"align\.sft_coefficient_end: .*greater than or equal to 0"):
        align_config("align.sft_coefficient_end=-0.1")
