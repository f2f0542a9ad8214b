"""Pairwise preference models: Bradley-Terry and its relatives (source note, App. A, Eq 24-27).

Shapes: elementwise over pairs unless said; `score_a`, `score_b` are the strengths R, `spread_a`, `spread_b` the
standard deviations V > 0 of how each is judged. Signs: a probability or logit is that *a beats b*; losses are to be
minimised.

Eq 26 depends only on (R_a - R_b)/sqrt((V_a^2 + V_b^2)/2), so (R, V) -> (cR, cV) changes nothing: the scale is not
identified. It is fixed here by mean log V = 0 over the batch (`fixed_scale_spread`), and V by a softplus with a floor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

SPREAD_FLOOR = 0.05
LINKS = ("logistic", "probit", "tanh")


def preference_logit(
    score_a: Tensor, score_b: Tensor, spread_a: Tensor | float = 1.0, spread_b: Tensor | float = 1.0
) -> Tensor:
    """(R_a - R_b)/sqrt((V_a^2 + V_b^2)/2), the argument of sigma in Eq 26; with V = 1 that of Eq 27."""
    if isinstance(spread_a, float) and isinstance(spread_b, float):
        return (score_a - score_b) / math.sqrt((spread_a**2 + spread_b**2) / 2)
    return (score_a - score_b) / ((spread_a**2 + spread_b**2) / 2) ** 0.5


def log_win_probability(
    score_a: Tensor,
    score_b: Tensor,
    spread_a: Tensor | float = 1.0,
    spread_b: Tensor | float = 1.0,
    *,
    link: str = "logistic",
) -> Tensor:
    """Log of P(a beats b), in (-inf, 0).

    `logistic` (Eq 26, 27): sigma(z) with z = `preference_logit`.
    `probit` (Eq 24): 1/2 + 1/2 erf(d/sqrt(2 (V_a^2 + V_b^2))) = Phi(d/sqrt(V_a^2 + V_b^2)), d = R_a - R_b.
    `tanh` (Eq 25): 1/2 + 1/2 tanh(d/sqrt(2 (V_a^2 + V_b^2))) = sigma(2 d/sqrt(2 (V_a^2 + V_b^2))) = sigma(z): the
    same model as `logistic`; both names are kept because the source prints both.

    Raises:
        ValueError: an unknown link.
    """
    z = preference_logit(score_a, score_b, spread_a, spread_b)
    if link in ("logistic", "tanh"):
        return logsigmoid(z)
    if link == "probit":
        log_probability: Tensor = torch.special.log_ndtr(z / math.sqrt(2.0))
        return log_probability
    raise ValueError(f"link is {link!r}; it is one of {', '.join(LINKS)}.")


def reward_model_loss(logit: Tensor, *, label_smoothing: float = 0.0, weight: Tensor | None = None) -> Tensor:
    """-mean log sigma(logit) of pairs whose first side is preferred (Eq 27); `weight`, summing to 1, replaces mean."""
    loss = (1 - label_smoothing) * softplus(-logit) + label_smoothing * softplus(logit)
    return loss.mean() if weight is None else (loss * weight).sum()


def fixed_scale_spread(raw: Tensor, floor: float = SPREAD_FLOOR) -> Tensor:
    """Standard deviations V = softplus(raw) + floor, rescaled to mean log V = 0: the scale that Eq 26 leaves free."""
    log_spread = (softplus(raw) + floor).log()
    return (log_spread - log_spread.mean()).exp()


def elo_update(
    rating_a: float, rating_b: float, score_of_a: float, *, step: float = 32.0, scale: float = 400.0
) -> tuple[float, float]:
    """One online Elo update after a game (App. A): rating += step * (result - expected); the sum is conserved.

    `score_of_a` is 1 for a win, 0.5 for a draw, 0 for a loss; expected = 1/(1 + 10^((rating_b - rating_a)/scale)). It
    is Bradley-Terry with R = rating * ln(10)/scale, followed by stochastic gradient ascent on its likelihood.

    Raises:
        ValueError: a result outside [0, 1].
    """
    if not 0.0 <= score_of_a <= 1.0:
        raise ValueError(f"the result is {score_of_a}; it lies between 0 (a lost) and 1 (a won).")
    exponent = max(-300.0, min(300.0, (rating_b - rating_a) / scale))
    change = step * (score_of_a - 1.0 / (1.0 + 10.0**exponent))
    return rating_a + change, rating_b - change
