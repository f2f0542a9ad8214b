"""Proofs 1, 2, 10 and the second half of 11: policy gradients of the adversarial objectives."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from understudy.exact.divergences import log_ratio_along_responses, sequence_divergence, token_divergence
from understudy.exact.mdp import TokenMDP, policy_table
from understudy.exact.production import (
    follow,
    gradient,
    objective_for,
    policy_loss,
    ppo_loss,
    small_enough,
    unbaselined_loss,
)
from understudy.exact.report import Row, cosine, relative_error
from understudy.objectives import policy_gradient
from understudy.objectives.adversarial import AdversarialObjective
from understudy.objectives.divergences import DIVERGENCES, Divergence, divergence

SYSTEM_OF_TOKEN = {"reverse_kl": "4 reverse KL, token", "js": "6 JS, token"}
_EXPERT = {"zeros": "expert with impossible tokens", "peaked": "peaked expert", "bimodal": "bimodal expert"}
SYSTEM_OF_SEQUENCE = {"reverse_kl": "5 reverse KL, sequence", "js": "7 JS, sequence"}


def divergences_to_prove() -> list[Divergence]:
    """All named rows, alpha at three orders and both limits, and one user-defined generator."""
    named = [divergence(name) for name in (*DIVERGENCES, "alpha:0", "alpha:0.3", "alpha:0.5", "alpha:1", "alpha:2")]
    return [*named, Divergence.from_generator("chi2", lambda u: (u - 1) ** 2)]


def gradient_identity(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 1: the production policy gradient is the autograd gradient of the exact divergence."""
    mdp = small_enough(vocab, horizon)
    expert_SV = policy_table(mdp, "random", generator)
    policy_SV = policy_table(mdp, "random", generator).requires_grad_(True)
    others = {kind: policy_table(mdp, kind, generator) for kind in ("zeros", "peaked", "bimodal")}
    value_S = torch.randn(mdp.num_states, generator=generator, dtype=torch.float64)
    for row in divergences_to_prove():
        for absorbing in (True, False):
            for discount in (1.0, 0.9):
                error = _token_error(mdp, row, expert_SV, policy_SV, discount, absorbing)
                states = "absorbing" if absorbing else "not absorbing"
                system = SYSTEM_OF_TOKEN.get(row.name, "9 FAIRL, alpha-IRL, any f")
                yield Row(1, system, f"gradient, {row.name}, token, {states}, discount {discount:g}", error, 1e-9)
        system = SYSTEM_OF_SEQUENCE.get(row.name, "9 FAIRL, alpha-IRL, any f")
        yield Row(1, system, f"gradient, {row.name}, sequence", _sequence_error(mdp, row, expert_SV, policy_SV), 1e-9)
        for kind, other_SV in others.items():
            if kind != "zeros" or row.matched_f(torch.zeros((), dtype=torch.float64)).isfinite():
                error = _token_error(mdp, row, other_SV, policy_SV, 1.0, True)
                yield Row(1, system, f"gradient, {row.name}, token, {_EXPERT[kind]}", error, 1e-9)
        for level in ("token", "sequence"):
            error = _ppo_error(mdp, row, level, expert_SV, policy_SV, value_S)
            yield Row(1, system, f"gradient, {row.name}, {level}, PPO-clip with a value head", error, 1e-9)


def _ppo_error(
    mdp: TokenMDP, row: Divergence, level: str, expert_SV: Tensor, policy_SV: Tensor, value_S: Tensor
) -> float:
    if level == "token":
        divergence_now = token_divergence(mdp, row, expert_SV, policy_SV, discount=0.9, absorbing=True)
    else:
        divergence_now = sequence_divergence(mdp, row, expert_SV, policy_SV)
    objective = objective_for(row, level, horizon=mdp.horizon, absorbing=True, discount=0.9)
    loss = ppo_loss(mdp, objective, policy_SV, log_ratio_along_responses(mdp, expert_SV, policy_SV), value_S)
    return relative_error(gradient(loss, policy_SV), gradient(divergence_now, policy_SV))


def _token_error(
    mdp: TokenMDP, row: Divergence, expert_SV: Tensor, policy_SV: Tensor, discount: float, absorbing: bool
) -> float:
    truth = gradient(
        token_divergence(mdp, row, expert_SV, policy_SV, discount=discount, absorbing=absorbing), policy_SV
    )
    objective = objective_for(row, "token", horizon=mdp.horizon, absorbing=absorbing, discount=discount)
    loss = policy_loss(mdp, objective, policy_SV, log_ratio_along_responses(mdp, expert_SV, policy_SV))
    return relative_error(gradient(loss, policy_SV), truth)


def _sequence_error(mdp: TokenMDP, row: Divergence, expert_SV: Tensor, policy_SV: Tensor) -> float:
    truth = gradient(sequence_divergence(mdp, row, expert_SV, policy_SV), policy_SV)
    # A response as a whole has neither absorbed steps nor a discount: both settings are of the token level alone.
    objective = objective_for(row, "sequence", horizon=mdp.horizon, absorbing=True, discount=0.9)
    loss = policy_loss(mdp, objective, policy_SV, log_ratio_along_responses(mdp, expert_SV, policy_SV))
    return relative_error(gradient(loss, policy_SV), truth)


def convergence(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 2: with the optimal discriminator every divergence descends to 0; the printed sign runs away."""
    mdp = small_enough(vocab, horizon, limit=64)
    expert_SV = policy_table(mdp, "random", generator)
    start_SV = policy_table(mdp, "random", generator)
    for row in divergences_to_prove():
        for level in ("token", "sequence"):
            reached = descend(mdp, row, level, expert_SV, start_SV)
            system = (SYSTEM_OF_TOKEN if level == "token" else SYSTEM_OF_SEQUENCE).get(row.name, "9 any f")
            yield Row(2, system, f"descent, {row.name}, {level}: divergence reached", reached, 1e-4)
    near_SV = expert_SV + 0.3 * (start_SV - expert_SV)  # far away, KL(policy || expert) has little room to rise
    yield _printed_sign(mdp, expert_SV, near_SV)


def descend(mdp: TokenMDP, row: Divergence, level: str, expert_SV: Tensor, start_SV: Tensor) -> float:
    """Follow the production gradient and return the exact divergence reached."""
    objective = objective_for(row, level, horizon=mdp.horizon, absorbing=True)

    def gradient_at(policy_SV: Tensor) -> Tensor:
        h_NC = log_ratio_along_responses(mdp, expert_SV, policy_SV)
        return gradient(unbaselined_loss(mdp, objective, policy_SV, h_NC), policy_SV)

    def value_at(policy_SV: Tensor) -> Tensor:
        if level == "token":
            return token_divergence(mdp, row, expert_SV, policy_SV, discount=1.0, absorbing=True)
        return sequence_divergence(mdp, row, expert_SV, policy_SV)

    return abs(float(value_at(follow(start_SV, gradient_at, value_at))))


def _printed_sign(mdp: TokenMDP, expert_SV: Tensor, start_SV: Tensor) -> Row:
    """Eq 17 and 19 as printed *minimise* E_pi[h]: small steps along that raise KL(policy || expert)."""
    row = DIVERGENCES["reverse_kl"]
    objective = objective_for(row, "sequence", horizon=mdp.horizon)
    policy_SV = start_SV.clone().requires_grad_(True)
    before = float(sequence_divergence(mdp, row, expert_SV, start_SV))
    optimizer = torch.optim.Adam([policy_SV], lr=0.1)
    for _ in range(60):
        h_NC = log_ratio_along_responses(mdp, expert_SV, policy_SV)
        policy_SV.grad = -gradient(unbaselined_loss(mdp, objective, policy_SV, h_NC), policy_SV)
        optimizer.step()
    after = float(sequence_divergence(mdp, row, expert_SV, policy_SV.detach()))
    return Row(2, "5 reverse KL, sequence", "Eq 17, 19 as printed diverge: KL before / after", before / after, 0.5)


def length_bias(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 10: a constant reward per token moves nothing with absorbing states; without them it moves the length."""
    mdp = small_enough(vocab, horizon)
    policy_SV = policy_table(mdp, "random", generator).requires_grad_(True)
    longer_SV = gradient(mdp.expected_length(policy_SV), policy_SV)
    h_NC = torch.zeros_like(mdp.response_logps(policy_SV).detach())
    for constant, meaning in ((0.7, "longer"), (-0.7, "shorter")):
        row = Divergence.from_generator("constant", lambda u, c=constant: c * (u - 1))  # type: ignore[misc]
        held, plain = (
            -gradient(
                policy_loss(mdp, objective_for(row, "token", horizon=mdp.horizon, absorbing=flag), policy_SV, h_NC),
                policy_SV,
            )
            for flag in (True, False)
        )
        bias = float(held.norm() / longer_SV.norm())
        yield Row(10, "4 absorbing states", f"reward {constant:+g} a token, absorbing: length bias", bias, 1e-12)
        error = relative_error(plain, constant * longer_SV)
        yield Row(10, "4 absorbing states", f"same, not absorbing: pushes {meaning} by d length", error, 1e-9)


def regularised_optimum(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 11: reverse KL + beta KL(policy || reference) has its optimum at (p_exp ref^beta)^(1/(1+beta))."""
    mdp = small_enough(vocab, horizon, limit=64)
    expert_SV = policy_table(mdp, "random", generator)
    reference_SV = policy_table(mdp, "random", generator)
    objective = objective_for(DIVERGENCES["reverse_kl"], "sequence", horizon=mdp.horizon)
    for beta in (0.1, 1.0):
        logits_N = (mdp.log_trajectory(expert_SV) + beta * mdp.log_trajectory(reference_SV)) / (1 + beta)
        optimum_N = torch.softmax(logits_N, dim=0)
        policy_SV = reference_SV.clone().requires_grad_(True)
        start = _regularised_gradient(mdp, objective, policy_SV, expert_SV, reference_SV, beta)
        best_SV = mdp.logits_of(optimum_N).requires_grad_(True)
        rest = _regularised_gradient(mdp, objective, best_SV, expert_SV, reference_SV, beta)
        error = float(rest.norm() / start.norm())
        yield Row(11, "5 with beta KL to the reference", f"beta {beta:g}: gradient at the optimum", error, 1e-9)

        def gradient_at(table_SV: Tensor, beta: float = beta) -> Tensor:
            return _regularised_gradient(mdp, objective, table_SV, expert_SV, reference_SV, beta)

        def value_at(table_SV: Tensor, beta: float = beta, logits_N: Tensor = logits_N) -> Tensor:
            logp_N = mdp.log_trajectory(table_SV)
            gap_N = (1 + beta) * logp_N - mdp.log_trajectory(expert_SV) - beta * mdp.log_trajectory(reference_SV)
            return (logp_N.exp() * gap_N).sum() + (1 + beta) * torch.logsumexp(logits_N, dim=0)

        policy_SV = follow(reference_SV, gradient_at, value_at)
        gap = (optimum_N * (optimum_N.log() - mdp.log_trajectory(policy_SV))).sum()
        yield Row(11, "5 with beta KL to the reference", f"beta {beta:g}: KL(optimum || reached)", float(gap), 1e-4)


def kl_estimators(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 11: k1 and k3 both have the expectation KL(policy || reference); k3 is never negative."""
    mdp = small_enough(vocab, horizon)
    policy_SV, reference_SV = (policy_table(mdp, "random", generator) for _ in range(2))
    logp_NC, reference_NC = mdp.response_logps(policy_SV), mdp.response_logps(reference_SV)
    weight_N = mdp.log_trajectory(policy_SV).exp()
    truth = float((weight_N * (mdp.log_trajectory(policy_SV) - mdp.log_trajectory(reference_SV))).sum())
    for name in ("k1", "k3"):
        each_NC = policy_gradient.kl_penalty_to_reference(logp_NC, reference_NC, estimator=name)
        error = abs(float((weight_N[:, None] * each_NC * mdp.mask_NC).sum()) / truth - 1)
        error = math.inf if name == "k3" and bool((each_NC < 0).any()) else error
        yield Row(11, "5 with beta KL to the reference", f"E[{name}] = KL(policy || reference)", error, 1e-9)


def _regularised_gradient(
    mdp: TokenMDP,
    objective: AdversarialObjective,
    policy_SV: Tensor,
    expert_SV: Tensor,
    reference_SV: Tensor,
    beta: float,
) -> Tensor:
    h_NC = log_ratio_along_responses(mdp, expert_SV, policy_SV)
    k1_NC = policy_gradient.kl_penalty_to_reference(mdp.response_logps(policy_SV), mdp.response_logps(reference_SV))
    return gradient(policy_loss(mdp, objective, policy_SV, h_NC, beta * k1_NC), policy_SV)


def printed_fairl(vocab: int, horizon: int, generator: torch.Generator) -> float:
    """Cosine of the -h e^h reward found in other people's code with the exact descent of KL(expert || policy)."""
    mdp = small_enough(vocab, horizon)
    expert_SV = policy_table(mdp, "random", generator)
    policy_SV = policy_table(mdp, "random", generator).requires_grad_(True)
    h_NC = log_ratio_along_responses(mdp, expert_SV, policy_SV)
    truth = gradient(sequence_divergence(mdp, DIVERGENCES["forward_kl"], expert_SV, policy_SV), policy_SV)
    at_end = policy_gradient.place_at_end((-h_NC * h_NC.exp() * _last(mdp)).sum(dim=1), mdp.mask_NC)
    return_NC = policy_gradient.reward_to_go(at_end, mdp.mask_NC, horizon=mdp.horizon, absorbing=False)
    logp_NC = mdp.response_logps(policy_SV)
    weight_N = logp_NC.detach().sum(dim=1).exp()
    loss = policy_gradient.policy_gradient_loss(logp_NC, return_NC, mdp.mask_NC, weight_B=weight_N)
    return cosine(gradient(loss, policy_SV), truth)


def _last(mdp: TokenMDP) -> Tensor:
    from understudy.objectives.masking import final_token_mask

    return final_token_mask(mdp.mask_NC).to(torch.float64)
