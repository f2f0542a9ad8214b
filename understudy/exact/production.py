"""The production path on enumerated responses: the same functions as the training loop, with exact expectations.

Shapes as in mdp.py. A sample of k = 2 responses a prompt is replaced by all unordered pairs of responses, weighted by
their probability, so that masking, reward, absorbing states, baseline and surrogate are all inside the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from understudy.exact.mdp import TokenMDP
from understudy.objectives import discriminator, policy_gradient, ppo
from understudy.objectives.adversarial import AdversarialObjective
from understudy.objectives.discriminator import DISCRIMINATOR_LOSSES
from understudy.objectives.divergences import Divergence

MAX_PAIRED_RESPONSES = 400
MAX_HORIZON = 5  # longer, two tokens leave responses so rare that no descent in float64 notices them


def small_enough(vocab: int, horizon: int, limit: int = MAX_PAIRED_RESPONSES) -> TokenMDP:
    """The MDP of this vocabulary with the longest horizon, up to the given one and 5, of at most `limit` responses."""
    mdp = TokenMDP.enumerate(vocab, min(horizon, MAX_HORIZON))
    while mdp.num_responses > limit and mdp.horizon > 2:
        mdp = TokenMDP.enumerate(vocab, mdp.horizon - 1)
    return mdp


def objective_for(
    row: Divergence,
    level: str,
    *,
    horizon: int,
    absorbing: bool = False,
    discount: float = 1.0,
    loss: str = "logistic",
    form: str = "plain",
    label_smoothing: float = 0.0,
) -> AdversarialObjective:
    """The production composition without clipping, which would change the divergence."""
    return AdversarialObjective(
        row, level, DISCRIMINATOR_LOSSES[loss], form, absorbing, discount, horizon, math.inf, label_smoothing
    )


def policy_loss(
    mdp: TokenMDP,
    objective: AdversarialObjective,
    policy_SV: Tensor,
    output_NC: Tensor,
    penalty_NC: Tensor | None = None,
) -> Tensor:
    """Expected surrogate loss of the production path, given the discriminator's raw output along each response."""
    num = mdp.num_responses
    logp_NC = mdp.response_logps(policy_SV)
    weight_N = logp_NC.detach().sum(dim=1).exp()
    first, second = torch.triu_indices(num, num)
    row_B = torch.stack([first, second], dim=1).reshape(-1)
    once = torch.where(first == second, 0.5, 1.0)  # y, y' and y', y are one row here
    weight_B = (once * weight_N[first] * weight_N[second]).repeat_interleave(2)
    mask_BT = mdp.mask_NC[row_B]
    penalty_NC = torch.zeros_like(output_NC) if penalty_NC is None else penalty_NC
    scores = objective.scores(output_NC[row_B][..., None], logp_NC.detach()[row_B], mask_BT)
    advantage_BT, _ = objective.advantages(scores, penalty_NC[row_B], mask_BT, mdp.finished_N[row_B], group_size=2)
    return policy_gradient.policy_gradient_loss(logp_NC[row_B], advantage_BT, mask_BT, weight_B=weight_B)


def ppo_loss(
    mdp: TokenMDP, objective: AdversarialObjective, policy_SV: Tensor, output_NC: Tensor, value_S: Tensor
) -> Tensor:
    """Expected PPO-clip loss at pi = pi_old, GAE with lambda 1: any value table is a baseline and changes nothing."""
    logp_NC = mdp.response_logps(policy_SV)
    old_NC = logp_NC.detach()
    reward_NC, _ = objective.rewards(objective.scores(output_NC[..., None], old_NC, mdp.mask_NC))
    if objective.level == "token":
        if objective.absorbing:
            reward_NC = ppo.fold_absorbing(
                reward_NC,
                mdp.mask_NC,
                horizon=mdp.horizon,
                discount=objective.discount,
                finished_B=mdp.finished_N,
            )
        reward_NC = reward_NC * objective.discount ** torch.arange(mdp.horizon, dtype=reward_NC.dtype)
    advantage_NC, _ = ppo.generalised_advantage(
        reward_NC, value_S[mdp.state_NC], mdp.mask_NC, discount=1.0, gae_lambda=1.0
    )
    weight_N = old_NC.sum(dim=1).exp()
    return ppo.ppo_clip_loss(logp_NC, old_NC, advantage_NC, mdp.mask_NC, weight_B=weight_N)[0]


def gradient(loss: Tensor, parameter: Tensor) -> Tensor:
    """Gradient of a scalar with respect to one tensor."""
    (value,) = torch.autograd.grad(loss, parameter)
    return value


def follow(start_SV: Tensor, gradient_at: Callable[[Tensor], Tensor], value_at: Callable[[Tensor], Tensor]) -> Tensor:
    """Descend from a table by L-BFGS: the production path gives the gradient, the exact value only the step length.

    Stops when the value, whose minimum is 0, is below a hundredth of the bound that convergence proofs keep (1e-4).
    Where the line search stalls, on a plateau, some plain steps along the gradient lead out; a gradient that does not
    descend the value therefore never arrives.
    """
    table_SV = start_SV.detach().clone().requires_grad_(True)

    def closure() -> Tensor:
        table_SV.grad = gradient_at(table_SV)
        return value_at(table_SV).detach()

    value = math.inf
    for _ in range(15):
        optimizer = torch.optim.LBFGS(
            [table_SV], max_iter=25, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
        )
        step: Callable[..., object] = optimizer.step
        step(closure)
        before, value = value, abs(float(value_at(table_SV.detach())))
        if value < 1e-6:
            break
        if not value < 0.9 * before:
            plain = torch.optim.Adam([table_SV], lr=0.1)
            for _ in range(20):
                closure()
                plain.step()
    return table_SV.detach()


def unbaselined_loss(mdp: TokenMDP, objective: AdversarialObjective, policy_SV: Tensor, h_NC: Tensor) -> Tensor:
    """Expected surrogate over single responses, without a baseline: cheap, for long descents on the optimum's h."""
    logp_NC = mdp.response_logps(policy_SV)
    scores = objective.scores(h_NC[..., None], logp_NC.detach(), mdp.mask_NC)
    reward_NC = objective.divergence.reward(discriminator.log_ratio(scores))
    token_level = objective.level == "token"
    return_NC = policy_gradient.reward_to_go(
        torch.where(scores.mask_BT, reward_NC, 0.0),
        mdp.mask_NC,
        discount=objective.discount if token_level else 1.0,
        horizon=mdp.horizon,
        absorbing=objective.absorbing and token_level,
        finished_B=mdp.finished_N,
    )
    weight_N = logp_NC.detach().sum(dim=1).exp()
    return policy_gradient.policy_gradient_loss(logp_NC, return_NC, mdp.mask_NC, weight_B=weight_N)
