"""Proofs 5 and 6, and the optimum of every discriminator loss: what a discriminator learns is h = log u."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from understudy.exact.adversarial_proofs import divergences_to_prove
from understudy.exact.divergences import log_ratio_along_responses, sequence_divergence
from understudy.exact.mdp import TokenMDP, policy_table
from understudy.exact.production import gradient, objective_for, small_enough
from understudy.exact.report import Row
from understudy.objectives.adversarial import AdversarialObjective
from understudy.objectives.discriminator import DiscriminatorScores
from understudy.objectives.divergences import DIVERGENCES, Divergence


def _pair_of_scores(
    mdp: TokenMDP, objective: AdversarialObjective, output: Tensor, expert_SV: Tensor, policy_SV: Tensor
) -> tuple[DiscriminatorScores, DiscriminatorScores]:
    """Production scores of all responses, once weighted as the expert writes them and once as the policy does."""
    sides = []
    outputs = torch.stack([output, torch.zeros_like(output)], dim=-1)
    prompt_N = torch.zeros(mdp.num_responses, dtype=torch.long)
    for table_SV in (expert_SV, policy_SV):
        scores = objective.scores(outputs, mdp.response_logps(policy_SV).detach(), mdp.mask_NC, prompt_N)
        weight_N = mdp.log_trajectory(table_SV).exp().detach()
        sides.append(
            DiscriminatorScores(
                scores.logits_expert_high_BT, scores.mask_BT, scores.prompt_B, scores.spread_BT, weight_N
            )
        )
    return sides[0], sides[1]


def discriminator_optima(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Every loss is stationary at h* = log u and lower there than on the way to it."""
    mdp = small_enough(vocab, horizon, limit=150)
    expert_SV = policy_table(mdp, "random", generator)
    policy_SV = policy_table(mdp, "random", generator)
    h_SV = (mdp.log_occupancy(expert_SV) - mdp.log_occupancy(policy_SV)).detach()
    equation = {"logistic": "4-7 logistic", "bradley_terry": "14", "bradley_terry_variance": "15", "variational": "9"}
    for loss, system in equation.items():
        for level in ("token", "sequence"):
            rows = divergences_to_prove() if loss == "variational" else [DIVERGENCES["js"]]
            for row in rows:
                objective = objective_for(row, level, horizon=mdp.horizon, loss=loss)
                error = _stationary_minimum(mdp, objective, h_SV, expert_SV, policy_SV)
                name = f" for {row.name}" if loss == "variational" else ""
                yield Row(5, system, f"{loss} loss{name}, {level}: optimum is log u", error, 1e-9)
    smoothing = 0.1
    objective = objective_for(DIVERGENCES["js"], "token", horizon=mdp.horizon, label_smoothing=smoothing)
    expert_share = torch.sigmoid(h_SV)
    smoothed_SV = torch.logit((1 - smoothing) * expert_share + smoothing * (1 - expert_share))
    error = _stationary_minimum(mdp, objective, smoothed_SV, expert_SV, policy_SV)
    yield Row(5, "4-7 logistic", "label smoothing 0.1: optimum is the smoothed logit", error, 1e-9)


def _stationary_minimum(
    mdp: TokenMDP, objective: AdversarialObjective, best_SV: Tensor, expert_SV: Tensor, policy_SV: Tensor
) -> float:
    """|gradient| at the optimum over that at 0; infinite when the loss is not lower at the optimum."""

    def loss_at(table_SV: Tensor) -> Tensor:
        expert, policy = _pair_of_scores(mdp, objective, mdp.along_responses(table_SV), expert_SV, policy_SV)
        return objective.discriminator_loss(expert, policy)

    slopes, values = [], []
    for share in (0.0, 0.5, 1.0):
        table_SV = (share * best_SV).requires_grad_(True)
        loss = loss_at(table_SV)
        values.append(float(loss.detach()))
        slope_SV = gradient(loss, table_SV)
        slopes.append(float(slope_SV.norm()))
        blind = any(not bool(slope_SV[mdp.depth_S == depth].any()) for depth in range(mdp.horizon))
        if share < 1 and blind:  # the loss does not look at all prefixes, so it cannot teach h there
            return math.inf
    return slopes[2] / slopes[0] if values[2] < values[1] < values[0] else math.inf


def variational_bound(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 5: Eq 28's bound is tight at T = f'(u), T stays inside dom f*, and f* is the conjugate of f."""
    mdp = small_enough(vocab, horizon, limit=400)
    expert_SV = policy_table(mdp, "random", generator)
    policy_SV = policy_table(mdp, "random", generator)
    h_NC = log_ratio_along_responses(mdp, expert_SV, policy_SV)
    raw = torch.linspace(-20, 20, 401, dtype=torch.float64)
    for row in divergences_to_prove():
        objective = objective_for(row, "sequence", horizon=mdp.horizon, loss="variational")
        expert, policy = _pair_of_scores(mdp, objective, h_NC, expert_SV, policy_SV)
        truth = float(sequence_divergence(mdp, row, expert_SV, policy_SV))
        value = -float(objective.discriminator_loss(expert, policy))
        yield Row(5, "9 variational", f"bound tight at the optimum, {row.name}", abs(value - truth) / truth, 1e-9)
        yield Row(5, "9 variational", f"f* is the conjugate, T in its range, {row.name}", _conjugacy(row, raw), 1e-6)
        near = raw[raw.abs() <= 8]
        error = float((row.log_ratio_from_variational(row.variational_output(near)) - near).abs().max())
        yield Row(5, "9 variational", f"h = log u comes back from T, {row.name}", error, 1e-6)


def _conjugacy(row: Divergence, raw: Tensor) -> float:
    """Largest violation of f*(t) = sup_u {ut - f(u)} over a grid, relative; infinite when T leaves its range."""
    t = row.variational_output(raw)
    low, high = row.variational_range
    inside = bool(((t >= low) & (t <= high)).all()) and bool((t[100:301] > low).all() and (t[100:301] < high).all())
    if not inside or not bool((t.diff() >= -1e-15).all()):
        return math.inf
    t = t[100:301]  # |h| <= 10, where u is not lost to rounding
    grid = torch.linspace(-12, 12, 2401, dtype=torch.float64).exp()
    supremum = (grid[None, :] * t[:, None] - row.f(grid)[None, :]).max(dim=1).values
    conjugate, scale = row.conjugate(t), 1 + t.abs() * raw[100:301].exp()
    short = ((supremum - conjugate) / scale).max()  # Fenchel: never above
    gap = ((conjugate - supremum) / scale).max()  # the grid comes this close
    both = ((conjugate - row.conjugate_of_output(raw[100:301])).abs() / scale).max()
    return max(float(short), float(gap) / 1e4, float(both))


def airl_form(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proof 6: with logit = r - log pi, r is the expert's advantage: its reward, shaped by a potential."""
    mdp = small_enough(vocab, horizon, limit=150)
    reward_SV = policy_table(mdp, "random", generator)
    expert_SV, shaping_SV = mdp.soft_optimal(reward_SV)
    other_SV = policy_table(mdp, "random", generator)
    objective = objective_for(DIVERGENCES["reverse_kl"], "token", horizon=mdp.horizon, form="airl")
    learned_SV = _learn(mdp, objective, expert_SV, expert_SV)
    error = float((learned_SV - (reward_SV + shaping_SV)).abs().max())
    yield Row(6, "8 AIRL form", "at pi = expert, learned r = reward + V(s') - V(s)", error, 1e-4)
    ratio_SV = mdp.log_occupancy(expert_SV) - mdp.log_occupancy(other_SV)
    best_SV = ratio_SV + torch.log_softmax(other_SV, dim=1)
    error = _stationary_minimum(mdp, objective, best_SV, expert_SV, other_SV)
    yield Row(6, "8 AIRL form", "at any pi, optimum r = log u + log pi, token", error, 1e-9)
    whole = objective_for(DIVERGENCES["reverse_kl"], "sequence", horizon=mdp.horizon, form="airl")
    error = _stationary_minimum(mdp, whole, mdp.log_occupancy(expert_SV), expert_SV, other_SV)
    yield Row(6, "8 AIRL form", "at any pi, optimum r = log u + log pi, sequence", error, 1e-9)
    state_SV = best_SV - expert_SV
    error = float((state_SV - state_SV[:, :1]).abs().max())
    yield Row(6, "8 AIRL form", "at any pi, r - advantage depends on the state alone", error, 1e-9)


def _learn(mdp: TokenMDP, objective: AdversarialObjective, expert_SV: Tensor, policy_SV: Tensor) -> Tensor:
    """Minimise the production loss over a table from 0, by L-BFGS in coordinates scaled by how often each is seen."""
    scale_SV = mdp.log_occupancy(policy_SV).exp().sqrt()
    scaled_SV = torch.zeros_like(scale_SV, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scaled_SV], max_iter=300, tolerance_grad=1e-14, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        expert, policy = _pair_of_scores(
            mdp, objective, mdp.along_responses(scaled_SV / scale_SV), expert_SV, policy_SV
        )
        loss = objective.discriminator_loss(expert, policy)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    step: Callable[..., object] = optimizer.step
    step(closure)
    return (scaled_SV / scale_SV).detach()
