"""Proofs 8 and 11, best-of-n: its distribution by enumeration, and what fine-tuning on the best converges to."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from understudy.exact.mdp import policy_table
from understudy.exact.production import small_enough
from understudy.exact.report import Row
from understudy.objectives import best_of_n

SELECTIONS = 100_000
CHANCE_OF_BAD_LUCK = 1e-9


def best_of(vocab: int, horizon: int, generator: torch.Generator) -> Iterator[Row]:
    """Proofs 8 and 11, best-of-n: its distribution by enumeration, its KL, and fine-tuning on the best."""
    mdp = small_enough(vocab, min(horizon, 3))
    expert_N = mdp.log_trajectory(policy_table(mdp, "random", generator)).exp()
    policy_N = mdp.log_trajectory(policy_table(mdp, "random", generator)).exp()
    score_N = (expert_N / policy_N).log()
    for label, score in (("distinct scores", score_N), ("tied scores", (2 * score_N).round())):
        truth = _enumerated_best_of_two(policy_N, score)
        error = float((best_of_n.best_of_n_distribution(policy_N, score, 2) - truth).abs().max())
        yield Row(11, "12 best-of-n", f"distribution of best of 2, {label}, by enumeration", error, 1e-12)
    best_N = best_of_n.best_of_n_distribution(policy_N, score_N, 4)
    excess = float((best_N * (best_N / policy_N).log()).sum()) - best_of_n.best_of_n_kl_bound(4)
    yield Row(11, "12 best-of-n", "KL(best of 4 || policy) - (log 4 - 3/4), at most 0", excess, 1e-12)
    wrong = max(abs(best_of_n.best_of_n_kl_bound(n) - (math.log(n) - 1 + 1 / n)) for n in (1, 2, 4, 64))
    yield Row(11, "12 best-of-n", "the bound on that KL is log n - (n - 1)/n", wrong, 1e-12)
    sample_N = torch.multinomial(policy_N, 4 * SELECTIONS, replacement=True, generator=generator)
    kept = sample_N[best_of_n.select_best(score_N[sample_N], 4)]
    seen_N = torch.bincount(kept, minlength=len(policy_N)).double() / len(kept)
    error = float((seen_N - best_N).abs().sum()) / 2
    bound = total_variation_bound(best_N, SELECTIONS)
    yield Row(11, "12 best-of-n", f"{SELECTIONS:,} selections match it: total variation", error, bound)
    equal_N = best_of_n.best_of_n_distribution(expert_N, torch.zeros_like(expert_N), 4)
    yield Row(
        8, "12 iterative SFT", "stops when samples equal the expert", float((equal_N - expert_N).abs().max()), 1e-12
    )
    start, current_N = _kl(expert_N, policy_N), policy_N
    for iteration in range(600):
        best_N = best_of_n.best_of_n_distribution(current_N, (expert_N / current_N).log(), 2)
        rate = 0.3 / (1 + iteration / 10)
        current_N = (1 - rate) * current_N + rate * best_N
    yield Row(8, "12 iterative SFT", "KL(expert || policy) reached / at start", _kl(expert_N, current_N) / start, 0.05)


def total_variation_bound(probability_N: Tensor, num: int) -> float:
    """Total variation that `num` samples exceed with a chance of at most 1e-9, for any distribution.

    E TV <= sum_y sqrt(p (1-p)/num)/2 by Jensen; one sample moves TV by at most 1/num, so McDiarmid's inequality gives
    P(TV > E TV + t) <= exp(-2 num t^2).
    """
    expected = 0.5 * float((probability_N * (1 - probability_N) / num).clamp(min=0).sqrt().sum())
    return expected + math.sqrt(-math.log(CHANCE_OF_BAD_LUCK) / (2 * num))


def _kl(first_N: Tensor, second_N: Tensor) -> float:
    return float((first_N * (first_N / second_N).log()).sum())


def _enumerated_best_of_two(policy_N: Tensor, score_N: Tensor) -> Tensor:
    joint_NN = policy_N[:, None] * policy_N[None, :]
    wins_NN = (score_N[:, None] > score_N[None, :]).double() + 0.5 * (score_N[:, None] == score_N[None, :]).double()
    return 2 * (joint_NN * wins_NN).sum(dim=1)
