"""Proof 4: the likelihood objectives have the gradients of their exact divergences (Eq 7, 12, 14)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from understudy.exact.mdp import TokenMDP, policy_table
from understudy.exact.production import gradient
from understudy.exact.report import Row, relative_error
from understudy.objectives import likelihood


def likelihoods(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 4, on a random expert and on one with impossible tokens."""
    mdp = TokenMDP.enumerate(vocab, horizon)
    policy_SV = policy_table(mdp, "random", generator).requires_grad_(True)
    for kind in ("random", "zeros"):
        expert_SV = policy_table(mdp, kind, generator)
        weight_N = mdp.log_trajectory(expert_SV).exp()
        rho_SV = mdp.log_occupancy(expert_SV).exp()

        action_kl = -(rho_SV * torch.log_softmax(policy_SV, dim=1)).sum()
        error = _error(mdp, "token_nll", policy_SV, weight_N, action_kl)
        yield Row(4, "1 BC / SFT", f"Eq 7, {kind} expert: E KL(pi_exp(.|s) || pi(.|s))", error, 1e-12)

        trajectory_kl = -(weight_N * mdp.log_trajectory(policy_SV)).sum()
        error = _error(mdp, "trajectory", policy_SV, weight_N, trajectory_kl)
        yield Row(4, "3 forward KL, trajectory", f"Eq 14, {kind} expert: KL(d_exp || d_pi)", error, 1e-12)

        for absorbing in (False, True):
            for discount in (1.0, 0.9, 0.5):
                time_SV = mdp.occupancy_weight(discount, absorbing)
                occupancy_kl = -(time_SV * rho_SV * mdp.log_occupancy(policy_SV)).sum()
                error = _error(mdp, "occupancy", policy_SV, weight_N, occupancy_kl, discount, absorbing)
                states = "absorbing" if absorbing else "not absorbing"
                statement = f"Eq 12, {kind} expert, {states}, discount {discount:g}: sum_k KL(rho_exp || rho_pi)"
                yield Row(4, "2 forward KL, occupancy", statement, error, 1e-12)


def _error(
    mdp: TokenMDP,
    name: str,
    policy_SV: Tensor,
    weight_N: Tensor,
    cross_entropy: Tensor,
    discount: float = 1.0,
    absorbing: bool = False,
) -> float:
    """Gradient error of the production sum; weighting log pi weights sequences, because the sum is linear in it."""
    logp_NC = mdp.response_logps(policy_SV)
    total, _ = likelihood.nll_sum_and_weight(
        name,
        logp_NC * weight_N[:, None],
        mdp.mask_NC,
        horizon=mdp.horizon,
        discount=discount,
        absorbing=absorbing,
    )
    return relative_error(gradient(total, policy_SV), gradient(cross_entropy, policy_SV))
