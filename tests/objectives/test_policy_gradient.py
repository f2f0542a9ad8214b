"""Returns, baselines and surrogates by hand."""

from __future__ import annotations

import pytest
import torch

from understudy.objectives.masking import absorbing_tail, final_token_mask, hold_after_end, level_mask, response_mask
from understudy.objectives.policy_gradient import (
    kl_penalty_to_reference,
    leave_one_out,
    leave_one_out_per_token,
    penalised_return,
    place_at_end,
    policy_gradient_loss,
    reward_to_go,
)
from understudy.objectives.ppo import fold_absorbing, generalised_advantage, ppo_clip_loss, value_loss

MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
REWARD = torch.tensor([[1.0, 2.0, 99.0, 99.0], [1.0, 2.0, 3.0, 4.0]])
FINISHED = torch.tensor([True, False])


def test_reward_to_go_without_absorbing_states() -> None:
    value = reward_to_go(REWARD, MASK, horizon=5, absorbing=False)
    assert value.tolist() == [[3, 2, 0, 0], [10, 9, 7, 4]]


def test_reward_to_go_holds_the_reward_at_eos_up_to_the_horizon() -> None:
    value = reward_to_go(REWARD, MASK, horizon=5, absorbing=True, finished_B=FINISHED)
    # row 0 stops at k = 1 of C = 5: its EOS reward 2 counts 1 + 3 times; row 1 never reached EOS
    assert value.tolist() == [[9, 8, 6, 4], [10, 9, 7, 4]]


def test_reward_to_go_discounts_from_the_start() -> None:
    value = reward_to_go(REWARD, MASK, discount=0.5, horizon=5, absorbing=True, finished_B=FINISHED)
    expected = [[1 + 1 + 0.5 + 0.25 + 0.125, 1.875, 0.875, 0.375], [1 + 1 + 0.75 + 0.5, 2.25, 1.25, 0.5]]
    torch.testing.assert_close(value, torch.tensor(expected))


def test_reward_to_go_is_finite_for_2048_tokens_in_float32() -> None:
    mask = torch.ones(2, 2048)
    for discount in (0.1, 0.9, 1.0):
        value = reward_to_go(
            torch.ones(2, 2048), mask, discount=discount, horizon=4096, absorbing=True, finished_B=torch.ones(2)
        )
        assert value.isfinite().all()
        truth = (1 - discount**4096) / (1 - discount) if discount < 1 else 4096.0
        assert value[0, 0].item() == pytest.approx(truth, rel=1e-5)


def test_reward_to_go_ignores_what_is_masked_even_nan() -> None:
    reward = REWARD.clone()
    reward[0, 2:] = torch.nan
    assert reward_to_go(reward, MASK, horizon=4, absorbing=False)[0].tolist() == [3, 2, 0, 0]


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="finished_B is missing"):
        reward_to_go(REWARD, MASK, horizon=5, absorbing=True)
    with pytest.raises(ValueError, match="4 tokens, the horizon is 3"):
        reward_to_go(REWARD, MASK, horizon=3, absorbing=True, finished_B=FINISHED)
    with pytest.raises(ValueError, match="does not start at column 0"):
        reward_to_go(REWARD, torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]]), horizon=5, absorbing=False)
    with pytest.raises(ValueError, match="groups of at least 2: 2 responses, 1 per prompt"):
        leave_one_out(torch.zeros(2), 1)


def test_penalty_is_neither_held_nor_discounted() -> None:
    penalty = torch.full((2, 4), 0.5)
    value = penalised_return(REWARD, penalty, MASK, horizon=5, absorbing=True, finished_B=FINISHED)
    assert value.tolist() == [[8, 7.5, 6, 4], [8, 7.5, 6, 3.5]]


def test_leave_one_out_by_hand_and_without_std() -> None:
    value = leave_one_out(torch.tensor([1.0, 2.0, 6.0, 10.0, 10.0, 40.0]), 3)
    assert value.tolist() == [-3.0, -1.5, 4.5, -15.0, -15.0, 30.0]


def test_a_constant_reward_gives_no_advantage_only_with_absorbing_states() -> None:
    ones = torch.ones(2, 4)
    finished = torch.tensor([True, True])
    held = reward_to_go(ones, MASK, horizon=6, absorbing=True, finished_B=finished)
    assert leave_one_out_per_token(held, MASK, 2).abs().max() == 0
    plain = reward_to_go(ones, MASK, horizon=6, absorbing=False)
    assert leave_one_out_per_token(plain, MASK, 2).tolist() == [[-2, -2, 0, 0], [2, 2, 2, 1]]


def test_policy_gradient_loss_value_and_gradient() -> None:
    logp = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -1.0, -1.0]], requires_grad=True)
    advantage = torch.tensor([[2.0, 1.0, 5.0], [-1.0, 0.0, 3.0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    loss = policy_gradient_loss(logp, advantage, mask)
    assert loss.item() == -((-2 - 2) + (3 - 0 - 3)) / 2
    (slope,) = torch.autograd.grad(loss, logp)
    assert slope.tolist() == [[-1.0, -0.5, 0.0], [0.5, 0.0, -1.5]]


def test_kl_estimators() -> None:
    logp, reference = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -1.0]])
    assert kl_penalty_to_reference(logp, reference).tolist() == [[1.0, -1.0]]
    k3 = kl_penalty_to_reference(logp, reference, estimator="k3")
    torch.testing.assert_close(k3, torch.tensor([[0.36787944, 0.71828183]]))
    with pytest.raises(ValueError, match="'k1'"):
        kl_penalty_to_reference(logp, reference, estimator="k2")


def test_masks() -> None:
    assert response_mask(torch.tensor([1, 3]), 3).tolist() == [[True, False, False], [True, True, True]]
    offset = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]])
    assert final_token_mask(offset).int().tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert (level_mask(offset, "token") == offset.bool()).all()
    with pytest.raises(ValueError, match="'token' or 'sequence'"):
        level_mask(offset, "tokens")
    values = torch.arange(10.0).reshape(2, 5)
    held, real = hold_after_end(values, offset)
    assert held.tolist() == [[2, 3, 3, 3], [6, 7, 8, 9]]
    assert real.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert place_at_end(torch.tensor([5.0, 7.0]), offset).sum(dim=1).tolist() == [5, 7]
    tail = absorbing_tail(MASK, horizon=5, discount=1.0, finished_B=FINISHED)
    assert tail.tolist() == [4.0, 1.0]


def test_generalised_advantage_by_hand() -> None:
    reward, value = torch.tensor([[0.0, 1.0, 7.0]]), torch.tensor([[0.5, 0.25, 9.0]])
    mask = torch.tensor([[1, 1, 0]])
    advantage, target = generalised_advantage(reward, value, mask, discount=1.0, gae_lambda=0.5)
    assert advantage.tolist() == [[-0.25 + 0.5 * 0.75, 0.75, 0.0]]
    assert target.tolist() == [[0.625, 1.0, 0.0]]


def test_folding_gives_the_return_that_reward_to_go_gives() -> None:
    folded = fold_absorbing(REWARD, MASK, horizon=5, discount=1.0, finished_B=FINISHED)
    _, target = generalised_advantage(folded, torch.zeros(2, 4), MASK, discount=1.0, gae_lambda=1.0)
    held = reward_to_go(REWARD, MASK, horizon=5, absorbing=True, finished_B=FINISHED)
    torch.testing.assert_close(target, held * MASK)


def test_ppo_clips_where_it_should() -> None:
    old = torch.zeros(1, 3)
    logp = torch.tensor([[0.5, 0.5, 0.0]], requires_grad=True)
    loss, clipped = ppo_clip_loss(logp, old, torch.tensor([[1.0, -1.0, 2.0]]), torch.ones(1, 3), clip_range=0.2)
    assert loss.item() == pytest.approx(-(1.2 - torch.tensor(0.5).exp().item() + 2.0))
    assert clipped.item() == pytest.approx(2 / 3)
    (slope,) = torch.autograd.grad(loss, logp)
    assert slope[0, 0] == 0 and slope[0, 1] > 0 and slope[0, 2] == -2


def test_value_loss_by_hand() -> None:
    value, old, target = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.0]]), torch.tensor([[2.0, 0.0]])
    mask = torch.tensor([[1, 1]])
    assert value_loss(value, old, target, mask, clip_range=None).item() == 0.5 * (1 + 9) / 2
    assert value_loss(value, old, target, mask, clip_range=0.2).item() == pytest.approx(0.5 * (1.3**2 + 9) / 2)
