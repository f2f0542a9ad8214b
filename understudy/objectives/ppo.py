"""PPO-clip with a value head (source note 2.4): the policy update of the RLHF baseline, and `policy_update: ppo`.

Shapes: B sequences, T response columns, aligned as in policy_gradient.py. Signs: advantages are to be maximised, losses
minimised. As everywhere here, sums over tokens are averaged over sequences: no length normalisation, no whitening.
"""

from __future__ import annotations

import torch
from torch import Tensor

from understudy.objectives.masking import absorbing_tail, at_least_float32, final_token_mask, where_masked


def fold_absorbing(reward_BT: Tensor, mask_BT: Tensor, *, horizon: int, discount: float, finished_B: Tensor) -> Tensor:
    """Rewards with the C-1-K absorbed steps folded into EOS, for estimators that end there (GAE)."""
    reward_BT = at_least_float32(where_masked(reward_BT, mask_BT))
    last = final_token_mask(mask_BT).to(reward_BT.dtype)
    tail_B = absorbing_tail(mask_BT, horizon=horizon, discount=discount, finished_B=finished_B).to(reward_BT.dtype)
    return reward_BT + reward_BT * last * (tail_B[:, None] - 1)


def generalised_advantage(
    reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, *, discount: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """GAE (arXiv:1506.02438): A_t = sum_j (discount lambda)^j delta_{t+j}, and the value targets A_t + V_t.

    The value after the last token is 0: EOS ends the response, and so does the horizon, which is part of the MDP.
    Both results are detached and 0 outside the mask. Reverse scan.
    """
    reward = at_least_float32(where_masked(reward_BT, mask_BT))
    value = where_masked(value_BT.detach(), mask_BT).to(reward.dtype)
    if not reward.numel():
        return reward, value
    mask = mask_BT.to(reward.dtype)
    next_value, advantage, columns = torch.zeros_like(value[:, 0]), torch.zeros_like(value[:, 0]), []
    for column in reversed(range(value.shape[1])):
        delta = reward[:, column] + discount * next_value - value[:, column]
        advantage = (delta + discount * gae_lambda * advantage) * mask[:, column]
        next_value = value[:, column]
        columns.append(advantage)
    advantage_BT = torch.stack(columns[::-1], dim=1).detach()
    return advantage_BT, (advantage_BT + value) * mask


def ppo_clip_loss(
    logp_BT: Tensor,
    logp_old_BT: Tensor,
    advantage_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip_range: float = 0.2,
    weight_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO-clip (arXiv:1707.06347, Eq 7): -mean_B sum_t min(q A, clip(q, 1-e, 1+e) A), q = pi / pi_old.

    At pi = pi_old its gradient is that of `policy_gradient_loss`. Also returns the fraction of clipped tokens.
    """
    mask = mask_BT.to(logp_BT.dtype)
    ratio = (where_masked(logp_BT, mask_BT) - where_masked(logp_old_BT.detach(), mask_BT)).clamp(-20, 20).exp()
    advantage = where_masked(advantage_BT.detach(), mask_BT)
    limited = ratio.clamp(1 - clip_range, 1 + clip_range)
    term_B = (torch.minimum(ratio * advantage, limited * advantage) * mask).sum(dim=1)
    clipped = (((ratio - 1).abs() > clip_range) * mask).sum() / mask.sum().clamp(min=1)
    return (-term_B.mean() if weight_B is None else -(weight_B * term_B).sum()), clipped.detach()


def value_loss(
    value_BT: Tensor, value_old_BT: Tensor, return_BT: Tensor, mask_BT: Tensor, *, clip_range: float | None = 0.2
) -> Tensor:
    """Half the squared error of the value head, token-mean; with PPO's clipping of its change unless None."""
    mask = mask_BT.to(value_BT.dtype)
    value, target = where_masked(value_BT, mask_BT), where_masked(return_BT.detach(), mask_BT)
    error = (value - target) ** 2
    if clip_range is not None:
        old = where_masked(value_old_BT.detach(), mask_BT)
        error = torch.maximum(error, (old + (value - old).clamp(-clip_range, clip_range) - target) ** 2)
    return 0.5 * (error * mask).sum() / mask.sum().clamp(min=1)
