"""Best-of-n: choose among own samples by a score, at inference or to fine-tune on (source note [5, 6]).

Shapes: B = groups x n samples, a group's samples next to each other; Y enumerated responses. Signs: a higher score is
better; log D, h = log u or a reward model's R all rank alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def select_best(score_B: Tensor, group_size: int) -> Tensor:
    """Row indices [groups] of the best-scored sample of each group, ties to the earlier row.

    Raises:
        ValueError: B is no multiple of the group size, or a score is not a number.
    """
    num = score_B.shape[0]
    if group_size < 1 or num % group_size:
        raise ValueError(f"no best of each group: {num} samples in groups of {group_size}.")
    if bool(score_B.isnan().any()):
        raise ValueError(f"{int(score_B.isnan().sum())} of {num} scores are not a number, so none is the best.")
    best = torch.argsort(score_B.reshape(-1, group_size), dim=1, descending=True, stable=True)[:, 0]
    return best + torch.arange(0, num, group_size, device=score_B.device)


def best_of_n_distribution(probability_Y: Tensor, score_Y: Tensor, n: int) -> Tensor:
    """Exact distribution [Y] of the best of n independent samples, ties broken by chance.

    P(y) = p(y)/p(tie class) * (F(score)^n - F(below score)^n), F the distribution function of the score.

    Raises:
        ValueError: n < 1.
    """
    if n < 1:
        raise ValueError(f"the best of {n} samples does not exist; n is 1 or more.")
    ranks = torch.unique(score_Y, return_inverse=True)[1]
    mass = torch.zeros(int(ranks.max()) + 1, dtype=probability_Y.dtype).index_add(0, ranks, probability_Y)
    upto = mass.cumsum(0).clamp(max=1.0)
    below = torch.cat([torch.zeros(1, dtype=mass.dtype), upto[:-1]])
    share = torch.where(mass > 0, (upto**n - below**n) / mass, torch.zeros_like(mass))
    return probability_Y * share[ranks]


def best_of_n_kl_bound(n: int) -> float:
    """Upper bound log n - (n - 1)/n of KL(best-of-n || policy), in nats; exact without ties in the limit of many y."""
    return math.log(n) - (n - 1) / n
