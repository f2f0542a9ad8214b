"""Objectives under what real batches bring: extreme logits, padding that holds NaN, empty rows, half precision."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from understudy.objectives import DIVERGENCES, Divergence, divergence, likelihood, ppo
from understudy.objectives.adversarial import AdversarialObjective
from understudy.objectives.best_of_n import best_of_n_distribution, select_best
from understudy.objectives.discriminator import DISCRIMINATOR_LOSSES
from understudy.objectives.policy_gradient import policy_gradient_loss, reward_to_go

# Two prompts, two responses each: with EOS, of one token, empty, and cut at the horizon without EOS.
MASK = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
FINISHED = torch.tensor([True, True, False, False])
PROMPT = torch.tensor([0, 0, 1, 1])
LOGP = -torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) * MASK
EVERY = [(loss, level) for loss in DISCRIMINATOR_LOSSES for level in ("token", "sequence")]


def _objective(
    name: str = "js", level: str = "token", loss: str = "logistic", **changes: object
) -> AdversarialObjective:
    plain = {"form": "plain", "absorbing": True, "discount": 1.0, "horizon": 4, "reward_clip": 10.0}
    return AdversarialObjective.from_names(name, level, loss, **(plain | {"label_smoothing": 0.0} | changes))


def _loss(objective: AdversarialObjective, output: Tensor, mask: Tensor = MASK) -> Tensor:
    sides = (objective.scores(sign * output, LOGP[: len(mask)], mask, PROMPT[: len(mask)]) for sign in (1, -1))
    return objective.discriminator_loss(*sides)


@pytest.mark.parametrize("name", [*DIVERGENCES, "alpha:0.5", "alpha:2"])
@pytest.mark.parametrize(("loss", "level"), EVERY)
def test_logits_of_ten_thousand_stay_finite(loss: str, level: str, name: str) -> None:
    objective = _objective(name, level, loss)
    for size in (1e4, -1e4):
        output = torch.full((4, 4, 2), size, requires_grad=True)
        value = _loss(objective, output)
        value.backward()
        scores = objective.scores(output.detach(), LOGP, MASK, PROMPT)
        advantage, report = objective.advantages(scores, torch.zeros(4, 4), MASK, FINISHED, 2)
        assert value.isfinite() and output.grad is not None and output.grad.isfinite().all()
        assert advantage.isfinite().all() and all(math.isfinite(number) for number in report.values())
    assert objective.rewards(scores)[1]["reward_clipped_fraction"] == (1.0 if name in ("reverse_kl", "log_d") else 0.0)


@pytest.mark.parametrize(("loss", "level"), EVERY)
def test_what_stands_in_padding_and_empty_rows_changes_nothing(loss: str, level: str) -> None:
    objective = _objective("js", level, loss)
    output = torch.randn(4, 4, 2, generator=torch.Generator().manual_seed(1))
    dirty = output.masked_fill(~MASK[..., None], math.nan).requires_grad_(True)
    value = _loss(objective, dirty)
    value.backward()
    assert value.item() == _loss(objective, output).item()
    assert dirty.grad is not None and dirty.grad.isfinite().all() and dirty.grad[2].abs().sum() == 0
    scores = objective.scores(dirty.detach(), LOGP, MASK, PROMPT)
    penalty = torch.zeros(4, 4).masked_fill(~MASK, math.nan)
    assert objective.advantages(scores, penalty, MASK, FINISHED, 2)[0].isfinite().all()


@pytest.mark.parametrize("loss", list(DISCRIMINATOR_LOSSES))
def test_a_batch_without_a_single_token_has_loss_and_reports_of_zero(loss: str) -> None:
    objective, nothing = _objective(loss=loss), torch.zeros(2, 4, dtype=torch.bool)
    output = torch.randn(2, 4, 2, requires_grad=True)
    value = _loss(objective, output, nothing)
    value.backward()
    assert value.item() == 0 and output.grad is not None and output.grad.abs().sum() == 0
    scores = objective.scores(output.detach(), LOGP[:2], nothing, PROMPT[:2])
    advantage, report = objective.advantages(scores, torch.zeros(2, 4), nothing, FINISHED[:2], 2)
    assert advantage.abs().sum() == 0 and set(report.values()) == {0.0}


def test_a_mask_of_integers_or_floats_is_a_mask_not_an_index() -> None:
    objective, output = _objective(), torch.randn(4, 4, 2, generator=torch.Generator().manual_seed(2))
    reports = []
    for mask in (MASK, MASK.long(), MASK.float()):
        scores = objective.scores(output, LOGP, mask, PROMPT)
        reports.append(objective.advantages(scores, torch.zeros(4, 4), mask, FINISHED, 2)[1])
    assert reports[0] == reports[1] == reports[2]


def test_padding_of_minus_infinity_reaches_no_policy_loss() -> None:
    logp, mask, ones = torch.tensor([[-1.0, -math.inf]]), torch.tensor([[1, 0]]), torch.ones(1, 2)
    assert policy_gradient_loss(logp, ones, mask).item() == 1
    assert likelihood.token_nll(logp, mask)[0].item() == 1
    assert likelihood.trajectory_nll(logp, mask)[0].item() == 1
    assert likelihood.occupancy_nll(logp, mask, horizon=2, absorbing=True)[0].item() == 2
    assert ppo.ppo_clip_loss(logp, logp, ones, mask)[0].item() == -1
    dirty = torch.tensor([[1.0, math.nan]])
    assert ppo.value_loss(dirty, dirty, ones, mask).item() == 0
    advantage, target = ppo.generalised_advantage(dirty, dirty, mask, discount=1.0, gae_lambda=1.0)
    assert advantage.tolist() == [[0, 0]] and target.tolist() == [[1, 0]]


def test_rewards_in_half_precision_are_summed_in_float32() -> None:
    ones = torch.ones(1, 2048, dtype=torch.bfloat16)
    assert reward_to_go(ones, ones, horizon=2048, absorbing=False)[0, 0].item() == 2048  # bfloat16 stops at 256
    advantage, _ = ppo.generalised_advantage(ones, torch.zeros_like(ones), ones, discount=1.0, gae_lambda=1.0)
    assert advantage[0, 0].item() == 2048


def test_no_rows_and_no_columns() -> None:
    for shape in ((0, 4), (2, 0)):
        nothing = torch.zeros(shape)
        value = reward_to_go(nothing, nothing, horizon=4, absorbing=True, finished_B=torch.zeros(shape[0]))
        assert value.shape == shape
        assert ppo.generalised_advantage(nothing, nothing, nothing, discount=1.0, gae_lambda=1.0)[0].shape == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "tokens"}, "level is 'tokens'; it is one of token, sequence"),
        ({"form": "AIRL"}, "form is 'AIRL'; it is one of plain, airl"),
        ({"discount": 1.5}, "discount is 1.5"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5"),
    ],
)
def test_what_would_silently_be_another_objective_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(_objective(), **change)  # type: ignore[arg-type]


def test_refusals_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="Did you mean 'logistic'"):
        _objective(loss="logistik")
    with pytest.raises(ValueError, match="gives 1 output per token.*num_outputs=2"):
        _objective(loss="bradley_terry_variance").scores(torch.zeros(4, 4, 1), LOGP, MASK)
    with pytest.raises(ValueError, match="1 of 2 scores are not a number"):
        select_best(torch.tensor([1.0, math.nan]), 2)
    with pytest.raises(ValueError, match="3 samples in groups of 2"):
        select_best(torch.ones(3), 2)
    with pytest.raises(ValueError, match="the best of 0"):
        best_of_n_distribution(torch.ones(1), torch.ones(1), 0)
    with pytest.raises(ValueError, match="between -100 and 100"):
        divergence("alpha:1e308")


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda u: 0.0, "cannot be differentiated"),
        (lambda u: 0 * u.detach(), "cannot be differentiated"),
        (lambda u: (u - 1).clamp(min=0) * u.log().sqrt(), "no finite slope at u = 0.000335"),
    ],
)
def test_generators_that_are_no_functions_of_u(f: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Divergence.from_generator("bad", f)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_user_defined_reward_saturates_and_does_not_cancel(dtype: torch.dtype) -> None:
    far = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4], dtype=dtype)
    total_variation = Divergence.from_generator("tv", lambda u: 0.5 * (u - 1).abs())
    assert total_variation.reward(far).tolist() == [-0.5, -0.5, 0.0, 0.5, 0.5]
    steep = Divergence.from_generator("chi2", lambda u: (u - 1) ** 2)
    assert steep.reward(far).isfinite().all() and steep.variational_output(far).isfinite().all()
