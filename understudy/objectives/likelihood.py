"""Likelihood objectives: supervised fine-tuning as divergence minimisation (source note, Eq 7, 12, 14).

Shapes: B sequences, T columns; `logp_BT` is log pi(a_k|s_k) of the expert's tokens, `mask_BT` 1 on response tokens
including EOS. Signs: all are losses >= 0. Each returns (sum, weight): the loss is sum / weight, and a caller that
accumulates or distributes a batch adds both up over all of it before dividing. Label smoothing is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from understudy.objectives.masking import geometric_sum, positions, require_within_horizon, where_masked
from understudy.objectives.names import lookup

SumAndWeight = tuple[Tensor, Tensor]


def token_nll(logp_BT: Tensor, mask_BT: Tensor) -> SumAndWeight:
    """-E_{(s,a) ~ rho_expert}[log pi(a|s)] (Eq 7): sum over response tokens; weight = their number."""
    return -where_masked(logp_BT, mask_BT).sum(), mask_BT.to(logp_BT.dtype).sum()


def occupancy_nll(
    logp_BT: Tensor, mask_BT: Tensor, *, horizon: int, discount: float = 1.0, absorbing: bool
) -> SumAndWeight:
    """-sum_k w_k log pi(a_k|s_k), the gradient of sum_k discount^k KL(rho_expert_k || rho_policy_k) (Eq 12, corrected).

    w_k = sum_{j >= k} discount^j, up to K without absorbing states (discount 1: K - k + 1) and up to C - 1 with them
    (discount 1: C - k). Eq 12 prints (K - k)/K, under which EOS has weight 0 and stopping is never learned.
    Weight = the sum of w, so the loss is a weighted mean per token; sum / B is the divergence's own scale.

    Raises:
        ValueError: a response is longer than the horizon.
    """
    weight_BT = occupancy_weights(mask_BT, horizon=horizon, discount=discount, absorbing=absorbing).to(logp_BT.dtype)
    return -(where_masked(logp_BT, mask_BT) * weight_BT).sum(), weight_BT.sum()


def trajectory_nll(logp_BT: Tensor, mask_BT: Tensor) -> SumAndWeight:
    """-E_expert[log d_pi(y|x)] (Eq 13-14): sum over response tokens; weight = number of sequences."""
    return -where_masked(logp_BT, mask_BT).sum(), mask_BT.bool().any(dim=1).sum().to(logp_BT.dtype)


def occupancy_weights(mask_BT: Tensor, *, horizon: int, discount: float, absorbing: bool) -> Tensor:
    """w_k = sum_{j=k}^{end} discount^j on response tokens, 0 elsewhere; end = C - 1 if absorbing else K. Float64."""
    num_tokens_B1 = mask_BT.long().sum(dim=1, keepdim=True)
    require_within_horizon(num_tokens_B1, horizon)
    position_BT = positions(mask_BT)
    end_B1 = torch.full_like(num_tokens_B1, horizon) if absorbing else num_tokens_B1
    weight_BT = geometric_sum(end_B1 - position_BT, discount)
    if discount != 1.0:
        weight_BT = weight_BT * discount ** position_BT.to(weight_BT.dtype)
    return weight_BT * mask_BT.to(weight_BT.dtype)


LIKELIHOODS: dict[str, Callable[..., SumAndWeight]] = {
    "token_nll": token_nll,
    "occupancy": occupancy_nll,
    "trajectory": trajectory_nll,
}


def nll_sum_and_weight(
    objective: str, logp_BT: Tensor, mask_BT: Tensor, *, horizon: int, discount: float, absorbing: bool
) -> SumAndWeight:
    """Sum and normaliser of the objective named by `sft.objective`; see the named functions.

    Raises:
        ValueError: an unknown objective, with the closest valid name; a response longer than the horizon.
    """
    likelihood = lookup(LIKELIHOODS, objective, "likelihood objective")
    settings = {"horizon": horizon, "discount": discount, "absorbing": absorbing} if objective == "occupancy" else {}
    return likelihood(logp_BT, mask_BT, **settings)
