"""From rewards to a surrogate loss whose gradient is the gradient of the divergence.

Shapes: B sequences (k responses a prompt, next to each other), T response columns: column t holds response token t,
so `mask_BT` is 1 up to EOS and 0 after it. Signs: rewards, returns and advantages are to be maximised, losses to be
minimised: loss = -advantage * log-probability.

    grad D_f = -E_policy[ sum_t grad log pi(a_t|s_t) * G_t ],   G_t = sum_{j >= t} discount^j r_j

up to any baseline that does not depend on a_t. No division by length and none by a standard deviation: both would
change which divergence is descended.
"""

from __future__ import annotations

import torch
from torch import Tensor

from understudy.objectives.masking import (
    absorbing_tail,
    at_least_float32,
    final_token_mask,
    geometric_sum,
    where_masked,
)


def place_at_end(reward_B: Tensor, mask_BT: Tensor) -> Tensor:
    """Put one reward per sequence on its last token: [B] -> [B, T] (sequence level, Eq 3)."""
    return reward_B[:, None] * final_token_mask(mask_BT).to(reward_B.dtype)


def reward_to_go(
    reward_BT: Tensor,
    mask_BT: Tensor,
    *,
    discount: float = 1.0,
    horizon: int,
    absorbing: bool,
    finished_B: Tensor | None = None,
) -> Tensor:
    """G_t = sum_{j >= t} discount^j r_j, discounted from the response's start as the occupancy measure is (Eq 4).

    With `absorbing`, the reward at EOS is repeated for the C-1-K steps after it (rows with `finished_B` only), and the
    columns after EOS hold what those steps are still worth, which a per-position baseline needs; without, they are 0.
    A reverse scan, so float32 stays finite for any length and discount; narrower rewards are summed in float32.

    Raises:
        ValueError: absorbing without `finished_B`, a response longer than the horizon, or a mask with gaps.
    """
    _require_left_aligned(mask_BT)
    reward = at_least_float32(where_masked(reward_BT, mask_BT))
    if not reward.numel():
        return reward
    mask = mask_BT.to(reward.dtype)
    held_BT = torch.zeros_like(reward)
    if absorbing:
        if finished_B is None:
            raise ValueError("absorbing is on, but finished_B is missing: say which rows reached EOS.")
        last = final_token_mask(mask_BT).to(reward.dtype)
        tail_B = absorbing_tail(mask_BT, horizon=horizon, discount=discount, finished_B=finished_B).to(reward.dtype)
        end_B = (reward * last).sum(dim=1) * finished_B.to(reward.dtype)
        reward = reward + reward * last * (tail_B[:, None] - 1)
        steps_left_T = horizon - torch.arange(reward.shape[1], device=reward.device)
        held_BT = end_B[:, None] * geometric_sum(steps_left_T, discount).to(reward.dtype)[None, :] * (1 - mask)
    to_go, columns = torch.zeros_like(reward[:, 0]), []
    for column in reversed(range(reward.shape[1])):
        to_go = reward[:, column] + discount * to_go
        columns.append(to_go)
    local_BT = torch.stack(columns[::-1], dim=1) + held_BT
    if discount == 1.0:
        return local_BT
    return local_BT * discount ** torch.arange(reward.shape[1], device=reward.device, dtype=reward.dtype)


def penalised_return(
    reward_BT: Tensor,
    penalty_BT: Tensor,
    mask_BT: Tensor,
    *,
    discount: float = 1.0,
    horizon: int,
    absorbing: bool,
    finished_B: Tensor | None = None,
) -> Tensor:
    """Reward-to-go minus the penalty still to come; the penalty (beta * k1) is neither discounted nor held after EOS.

    An absorbed step has no choice left, so policy and reference agree there: KL adds nothing after EOS.
    """
    gain = reward_to_go(
        reward_BT, mask_BT, discount=discount, horizon=horizon, absorbing=absorbing, finished_B=finished_B
    )
    return gain - reward_to_go(penalty_BT, mask_BT, horizon=horizon, absorbing=False)


def leave_one_out(return_B: Tensor, group_size: int) -> Tensor:
    """Advantage [B]: the return minus the mean return of the other responses to the same prompt (RLOO; no std).

    Unbiased, because the others are independent of this one; it also removes any constant of the prompt, such as the
    c(x) that a pairwise discriminator leaves free. Also takes [B, T]: then per position, see
    `leave_one_out_per_token`.

    Raises:
        ValueError: fewer than two responses a prompt, or B is no multiple of them.
    """
    num = return_B.shape[0]
    if group_size < 2 or num % group_size:
        raise ValueError(
            f"leave-one-out needs groups of at least 2: {num} responses, {group_size} per prompt. "
            "Set rollout.responses_per_prompt to 2 or more."
        )
    grouped = return_B.reshape(num // group_size, group_size, *return_B.shape[1:])
    others = (grouped.sum(dim=1, keepdim=True) - grouped) / (group_size - 1)
    return (grouped - others).reshape(return_B.shape)


def leave_one_out_per_token(return_BT: Tensor, mask_BT: Tensor, group_size: int) -> Tensor:
    """Advantage [B, T]: the return-to-go minus the mean of the other responses' return-to-go at the same position.

    The others are independent of this response, hence of a_t, so the gradient stays unbiased although the states at
    position t differ. `return_BT` must hold what absorbed steps are worth after EOS (as `reward_to_go` does), so that
    a constant added to every reward cancels for every length. Masked columns of the result are 0.
    """
    return where_masked(leave_one_out(return_BT, group_size), mask_BT)


def policy_gradient_loss(
    logp_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, *, weight_B: Tensor | None = None
) -> Tensor:
    """Surrogate -mean_B sum_t advantage_t log pi(a_t|s_t); its gradient is the score-function estimator.

    `weight_B` replaces the mean over sequences (1/B each) by given weights, for enumerated or weighted samples.
    """
    term_B = (where_masked(advantage_BT.detach(), mask_BT) * where_masked(logp_BT, mask_BT)).sum(dim=1)
    return -term_B.mean() if weight_B is None else -(weight_B.detach() * term_B).sum()


def kl_penalty_to_reference(logp_BT: Tensor, logp_reference_BT: Tensor, *, estimator: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy || reference) from the policy's own samples; detached.

    `k1` = log pi - log pi_ref, unbiased and the one whose use as -beta * k1 in the reward gives the exact gradient of
    beta * KL; `k3` = e^(-k1) - 1 + k1 >= 0, unbiased with less variance: for reports, not for the reward.

    Raises:
        ValueError: another estimator.
    """
    k1 = (logp_BT - logp_reference_BT).detach()
    if estimator == "k1":
        return k1
    if estimator == "k3":
        return torch.expm1(-k1) + k1
    raise ValueError(f"estimator is {estimator!r}; it is 'k1' (for the reward) or 'k3' (for reports).")


def _require_left_aligned(mask_BT: Tensor) -> None:
    mask = mask_BT.bool()
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError(
            "mask_BT has a response that does not start at column 0 or has a gap; "
            "align responses first (masking.hold_after_end)."
        )
