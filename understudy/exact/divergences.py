"""Exact divergences between expert and policy on the token MDP, and the exact log-ratios a discriminator should find.

Shapes as in mdp.py. All are differentiable in the policy's logits; an expert with impossible tokens is allowed where
f(0) is finite.
"""

from __future__ import annotations

import torch
from torch import Tensor

from understudy.exact.mdp import TokenMDP
from understudy.objectives.divergences import Divergence


def between(row: Divergence, log_expert: Tensor, log_policy: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Sum weight * policy * f(expert/policy), with the f whose reward is the row's (`matched_f`)."""
    policy = log_policy.exp()
    possible = log_expert > -torch.inf
    ratio = torch.where(possible, log_expert - log_policy, 0.0).exp()
    at_zero = row.matched_f(torch.zeros((), dtype=policy.dtype))
    # a zero policy probability contributes nothing here; tests keep the policy positive
    value = torch.where(possible, row.matched_f(ratio), at_zero)
    return (weight * policy * value).sum()


def token_divergence(
    mdp: TokenMDP, row: Divergence, expert_SV: Tensor, policy_SV: Tensor, *, discount: float, absorbing: bool
) -> Tensor:
    """D_f between state-action occupancies, summed over time with its discount."""
    weight_SV = mdp.occupancy_weight(discount, absorbing)
    return between(row, mdp.log_occupancy(expert_SV), mdp.log_occupancy(policy_SV), weight_SV)


def sequence_divergence(mdp: TokenMDP, row: Divergence, expert_SV: Tensor, policy_SV: Tensor) -> Tensor:
    """D_f between trajectory distributions."""
    return between(row, mdp.log_trajectory(expert_SV), mdp.log_trajectory(policy_SV))


def log_ratio_along_responses(mdp: TokenMDP, expert_SV: Tensor, policy_SV: Tensor) -> Tensor:
    """The optimal discriminator h* = log rho_expert - log rho_policy at every prefix of every response, [N, C].

    At a response's last token it is also the log-ratio of whole responses.
    """
    table_SV = mdp.log_occupancy(expert_SV) - mdp.log_occupancy(policy_SV)
    return mdp.along_responses(table_SV.detach())


def forward_kl(mdp: TokenMDP, expert_SV: Tensor, policy_SV: Tensor) -> float:
    """KL(expert || policy) between trajectory distributions, in nats."""
    log_expert = mdp.log_trajectory(expert_SV)
    possible = log_expert > -torch.inf
    gap = torch.where(possible, log_expert - mdp.log_trajectory(policy_SV), 0.0)
    return float((log_expert.exp() * gap).sum())
