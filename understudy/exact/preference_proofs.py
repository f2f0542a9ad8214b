"""Proof 8: self-play against an opponent that is refreshed, and the RLHF baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from understudy.exact.divergences import forward_kl
from understudy.exact.mdp import TokenMDP, policy_table
from understudy.exact.production import gradient, small_enough
from understudy.exact.report import Row, relative_error
from understudy.objectives import policy_gradient, ppo, selfplay
from understudy.objectives.discriminator import DISCRIMINATOR_LOSSES, DiscriminatorScores
from understudy.objectives.divergences import DIVERGENCES
from understudy.objectives.selfplay import PreferencePairs


def self_play(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 8, self-play: each loss starts uphill for the expert, reaches it, and stops there."""
    mdp = small_enough(vocab, horizon, limit=64)
    expert_SV = policy_table(mdp, "random", generator)
    start_SV = policy_table(mdp, "random", generator)
    for name in selfplay.PREFERENCE_LOSSES:
        system = "10 DPO and SPIN" if name == "dpo" else "11 IPO, KTO, SLiC"
        policy_SV = start_SV.clone().requires_grad_(True)
        first = gradient(_pairs_loss(mdp, name, policy_SV, start_SV, expert_SV), policy_SV)
        margin = mdp.log_trajectory(expert_SV).exp() - mdp.log_trajectory(start_SV).exp()
        margin_SV = gradient((margin * mdp.log_trajectory(policy_SV)).sum(), policy_SV)
        cosine = float((-first * margin_SV).sum() / (first.norm() * margin_SV.norm()))
        yield Row(8, system, f"{name}: 1 - cosine(step, d(log pi(expert) - log pi(sample)))", 1 - cosine, 1e-9)
        yield Row(8, system, f"{name}: KL(expert || policy) reached", _play(mdp, name, policy_SV, expert_SV), 1e-3)
        equal_SV = expert_SV.clone().requires_grad_(True)
        rest = gradient(_pairs_loss(mdp, name, equal_SV, expert_SV, expert_SV), equal_SV)
        error = float(rest.norm() / first.norm())
        yield Row(8, system, f"{name}: stops when samples equal the expert", error, 1e-9)


def _pairs_loss(mdp: TokenMDP, name: str, policy_SV: Tensor, opponent_SV: Tensor, expert_SV: Tensor) -> Tensor:
    num = mdp.num_responses
    row_e, row_s = torch.arange(num).repeat_interleave(num), torch.arange(num).repeat(num)
    logp_N, opponent_N = mdp.log_trajectory(policy_SV), mdp.log_trajectory(opponent_SV).detach()
    weight = mdp.log_trajectory(expert_SV).exp()[row_e] * opponent_N.exp()[row_s]
    pairs = PreferencePairs(logp_N[row_e], logp_N[row_s], opponent_N[row_e], opponent_N[row_s], weight)
    return selfplay.PREFERENCE_LOSSES[name](pairs, beta=0.5)


def _play(mdp: TokenMDP, name: str, policy_SV: Tensor, expert_SV: Tensor, iterations: int = 120) -> float:
    """Iterations of two steps each against an opponent refreshed at their start."""
    optimizer = torch.optim.Adam([policy_SV], lr=0.1, betas=(0.5, 0.99))
    for iteration in range(iterations):
        optimizer.param_groups[0]["lr"] = 0.15 * (1 - iteration / iterations)
        opponent_SV = policy_SV.detach().clone()
        for _ in range(2):
            policy_SV.grad = gradient(_pairs_loss(mdp, name, policy_SV, opponent_SV, expert_SV), policy_SV)
            optimizer.step()
    return forward_kl(mdp, expert_SV, policy_SV.detach())


def rlhf(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 8, RLHF: reward model on expert > sample, then PPO-clip with a value head and beta = 1 KL to the start."""
    mdp = small_enough(vocab, horizon, limit=64)
    expert_SV = policy_table(mdp, "random", generator)
    reference_SV = policy_table(mdp, "random", generator)
    reward_N = _reward_model(mdp, expert_SV, reference_SV)
    truth_N = mdp.log_trajectory(expert_SV) - mdp.log_trajectory(reference_SV)
    error = float((reward_N - truth_N - (reward_N - truth_N).mean()).abs().max())
    yield Row(8, "13 RLHF", "reward model on expert > sample pairs: R = log u + c", error, 1e-3)

    policy_SV = reference_SV.clone().requires_grad_(True)
    value_S = torch.zeros(mdp.num_states, dtype=torch.float64, requires_grad=True)
    kl_at_start = forward_kl(mdp, expert_SV, reference_SV)
    policy_optimizer = torch.optim.Adam([policy_SV], lr=0.1, betas=(0.5, 0.99))
    value_optimizer = torch.optim.Adam([value_S], lr=0.3, betas=(0.5, 0.9))
    rounds = 150
    for round_index in range(rounds):
        policy_optimizer.param_groups[0]["lr"] = 0.1 * (1 - round_index / rounds)
        _ppo_round(mdp, reward_N, reference_SV, policy_SV, value_S, policy_optimizer, value_optimizer)
    reached = forward_kl(mdp, expert_SV, policy_SV.detach())
    yield Row(8, "13 RLHF", "PPO with beta = 1: KL(expert || policy) reached / at start", reached / kl_at_start, 0.01)
    yield _ppo_gradient(mdp, generator)


def _reward_model(mdp: TokenMDP, expert_SV: Tensor, reference_SV: Tensor) -> Tensor:
    """Minimise the production pairwise loss over one score a response, in coordinates scaled by its probability."""
    weights = [mdp.log_trajectory(table).exp() for table in (expert_SV, reference_SV)]
    scale_N = (weights[0] + weights[1]).sqrt()
    scaled_N = torch.zeros(mdp.num_responses, dtype=torch.float64, requires_grad=True)
    loss_row, ones = DISCRIMINATOR_LOSSES["bradley_terry"], torch.ones(mdp.num_responses, 1, dtype=torch.bool)
    prompt_N = torch.zeros(mdp.num_responses, dtype=torch.long)
    optimizer = torch.optim.LBFGS(
        [scaled_N], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        score_N1 = (scaled_N / scale_N)[:, None]
        expert, policy = (DiscriminatorScores(score_N1, ones, prompt_N, None, weight) for weight in weights)
        loss = loss_row(expert, policy, divergence=DIVERGENCES["reverse_kl"])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    step: Callable[..., object] = optimizer.step
    step(closure)
    return (scaled_N / scale_N).detach()


def _ppo_round(
    mdp: TokenMDP,
    reward_N: Tensor,
    reference_SV: Tensor,
    policy_SV: Tensor,
    value_S: Tensor,
    policy_optimizer: torch.optim.Optimizer,
    value_optimizer: torch.optim.Optimizer,
) -> None:
    old_NC = mdp.response_logps(policy_SV).detach()
    weight_N = old_NC.sum(dim=1).exp()
    penalty_NC = policy_gradient.kl_penalty_to_reference(old_NC, mdp.response_logps(reference_SV))
    reward_NC = policy_gradient.place_at_end(reward_N, mdp.mask_NC) - penalty_NC
    old_value_NC = value_S.detach()[mdp.state_NC]
    advantage_NC, return_NC = ppo.generalised_advantage(
        reward_NC, old_value_NC, mdp.mask_NC, discount=1.0, gae_lambda=0.95
    )
    for _ in range(2):
        loss, _ = ppo.ppo_clip_loss(mdp.response_logps(policy_SV), old_NC, advantage_NC, mdp.mask_NC, weight_B=weight_N)
        policy_SV.grad = gradient(loss, policy_SV)
        policy_optimizer.step()
        value_loss = ppo.value_loss(value_S[mdp.state_NC], old_value_NC, return_NC, mdp.mask_NC)
        value_S.grad = gradient(value_loss, value_S)
        value_optimizer.step()


def _ppo_gradient(mdp: TokenMDP, generator: torch.Generator) -> Row:
    """At pi = pi_old PPO's gradient is the policy gradient's, whatever the advantage."""
    policy_SV = policy_table(mdp, "random", generator).requires_grad_(True)
    old_NC = mdp.response_logps(policy_SV).detach()
    weight_N = old_NC.sum(dim=1).exp()
    advantage_NC = torch.randn(old_NC.shape, generator=generator, dtype=torch.float64)
    loss, _ = ppo.ppo_clip_loss(mdp.response_logps(policy_SV), old_NC, advantage_NC, mdp.mask_NC, weight_B=weight_N)
    plain = policy_gradient.policy_gradient_loss(
        mdp.response_logps(policy_SV), advantage_NC, mdp.mask_NC, weight_B=weight_N
    )
    error = relative_error(gradient(loss, policy_SV), gradient(plain, policy_SV))
    return Row(8, "13 RLHF", "PPO-clip at pi = pi_old has the policy gradient", error, 1e-12)
