"""The table of f-divergences: what each minimises, its generator, its conjugate and the reward the policy maximises.

Notation: `u = rho_expert / rho_policy` is a density ratio, `h = log u` a log-ratio (the logit of a discriminator whose
D is the probability of *expert*), `f` a convex generator with f(1) = 0, and
`D_f(expert || policy) = E_policy[f(u)]`.

The identity everything rests on (source note, Eq 28-30; proven in `understudy objectives verify`):

    grad D_f = -E_policy[grad log pi * r],   r = f*(f'(u)) = u f'(u) - f(u)   (+ any constant)

**Constants.** Adding c(u - 1) to f leaves D_f alone where both measures have the same mass, and adds c to r. The named
rows fix that freedom: their reward is exactly the column r(h) of the table, which is 0 where expert and policy agree
(h = 0), whatever multiple of (u - 1) the printed f carries:

    reverse_kl h | js softplus(h) - log 2 | forward_kl expm1(h) | alpha:a expm1(a h)/a | log_d -softplus(-h)

`log_d` is the exception, kept as it is known: it is -log 2 at h = 0. A user-defined generator is taken at its word:
its reward is u f'(u) - f(u) with no shift. `reward_offset` is the constant c by which `reward` differs from
u f'(u) - f(u); `matched_f` is the f whose reward is `reward` without any shift. The constant matters only at token
level without absorbing states, where the mass is the expected length: there it is a length bias.

Everything is elementwise, in log space, for any floating dtype; u is never formed where it could overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from understudy.objectives.names import unknown
from understudy.objectives.numerics import (
    LOG2,
    exp,
    expm1_over,
    floating,
    js_conjugate,
    js_generator,
    js_log_ratio,
    log1p_over,
    reverse_kl_conjugate,
)

Elementwise = Callable[[Tensor], Tensor]
MAX_ALPHA = 100
SEARCH_LOG_RATIO = 40.0  # |h| within which f'(u) = t is solved when no closed form is known


@dataclass(frozen=True)
class Divergence:
    """One row of the table; every function is elementwise and keeps shape and dtype.

    Attributes:
        name: what `align.divergence` says.
        minimises: the divergence between expert and policy that the reward descends.
        equation: where the source note states it.
        paper: the method's own publication.
        generator: f(u), for u >= 0.
        slope_at_log_ratio: h -> f'(e^h).
        log_ratio_at_slope: its inverse, t -> h.
        conjugate_generator: f*(t) = sup_u {u t - f(u)}; +inf outside its domain.
        reward_at_log_ratio: h -> r(h), which the policy maximises.
        reward_offset: r(h) - (u f'(u) - f(u)), a constant.
        variational_range: open interval of f', within which T_omega must stay.
    """

    name: str
    minimises: str
    equation: str
    paper: str
    generator: Elementwise
    slope_at_log_ratio: Elementwise
    log_ratio_at_slope: Elementwise
    conjugate_generator: Elementwise
    reward_at_log_ratio: Elementwise
    reward_offset: float
    variational_range: tuple[float, float]

    def f(self, u: Tensor) -> Tensor:
        """Evaluate the generator as the table prints it, at u = expert over policy density >= 0; zero at u = 1."""
        return self.generator(floating(u))

    def matched_f(self, u: Tensor) -> Tensor:
        """f(u) + reward_offset (u - 1): the generator whose u f' - f is `reward` exactly, also for unequal masses."""
        u = floating(u)
        return self.generator(u) + self.reward_offset * (u - 1)

    def conjugate(self, t: Tensor) -> Tensor:
        """Convex conjugate f*(t) = sup_u {u t - f(u)} of the printed f; +inf above its domain (App. B, corrected)."""
        return self.conjugate_generator(floating(t))

    def reward(self, log_ratio: Tensor) -> Tensor:
        """Reward r(h) that the policy maximises, h = log u; increasing in h; saturates instead of overflowing."""
        return self.reward_at_log_ratio(floating(log_ratio))

    def variational_output(self, raw: Tensor) -> Tensor:
        """Map a raw network output to T = f'(e^raw), inside dom f* by construction; raw then estimates h (Eq 28-30)."""
        return self.slope_at_log_ratio(floating(raw))

    def log_ratio_from_variational(self, t: Tensor) -> Tensor:
        """Recover h = log u from T = f'(u); the inverse of `variational_output`."""
        return self.log_ratio_at_slope(floating(t))

    def conjugate_of_output(self, raw: Tensor) -> Tensor:
        """f*(T) at T = `variational_output(raw)`, without forming T: u f'(u) - f(u) = reward(raw) - reward_offset."""
        return self.reward(raw) - self.reward_offset

    @classmethod
    def from_generator(cls, name: str, f: Elementwise) -> Divergence:
        """Make a divergence from any differentiable convex f with f(1) = 0, given as a function of tensors.

        f' comes from autograd, the reward is u f'(u) - f(u) as it stands, f* is found by bisection in log u and
        has the right gradient by the envelope theorem. Shapes: elementwise.

        Raises:
            ValueError: f(1) is not 0, or f' is not increasing on a grid of u.
        """
        from understudy.objectives.generators import user_defined

        return user_defined(name, f)


def clipped_reward(
    row: Divergence, log_ratio: Tensor, clip: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Reward limited to [-clip, clip], and the fraction of (masked) elements that the limit changed.

    Shapes: reward like `log_ratio`; the fraction is a scalar to be reported as a metric.

    Raises:
        ValueError: clip is not positive.
    """
    if not clip > 0:
        raise ValueError(f"clip is {clip}, but a reward can only be limited to a positive range; give reward_clip > 0.")
    reward = row.reward(log_ratio)
    weight = torch.ones_like(reward) if mask is None else mask.to(reward.dtype)
    clipped = (reward.abs() > clip).to(reward.dtype)
    return reward.clamp(-clip, clip), (clipped * weight).sum() / weight.sum().clamp(min=1)


def divergence(name: str) -> Divergence:
    """Look a divergence up by name: `reverse_kl`, `js`, `forward_kl`, `log_d` or `alpha:<a>` with |a| <= 100.

    Raises:
        ValueError: naming the closest valid name.
    """
    if name in DIVERGENCES:
        return DIVERGENCES[name]
    kind, separator, order = name.partition(":")
    if kind == "alpha" and separator:
        try:
            value = float(order)
        except ValueError:
            value = math.nan
        if math.isnan(value) or math.isinf(value):
            raise ValueError(f"Divergence {name!r}: {order!r} is not a finite number; write for example 'alpha:0.5'.")
        if abs(value) > MAX_ALPHA:
            raise ValueError(f"Divergence {name!r}: alpha lies between {-MAX_ALPHA} and {MAX_ALPHA}.")
        return alpha(value)
    raise unknown(name, "divergence", [*DIVERGENCES, "alpha:0.5"], [*DIVERGENCES, "alpha:<a>"])


def alpha(order: float) -> Divergence:
    """Minka's D_a(expert || policy), f(u) = (u^a - a u + a - 1)/(a(a-1)); a -> 0 reverse KL, 1/2 Hellinger, 1 forward.

    App. B prints u^(1-a) - (1-a)u - u^(-a): its last term should be the constant a, and it is then the divergence with
    policy and expert exchanged. Both limits are exact here: no division by a or a - 1 is left over.
    """
    a, b = order, order - 1.0

    def generator(u: Tensor) -> Tensor:
        if a < 0.5:
            return ((u - 1) - expm1_over(a, u.log())) / (1 - a)
        above_zero = u.clamp(min=torch.finfo(u.dtype).tiny)
        power_gap = torch.where(u > 0, u * expm1_over(b, above_zero.log()), torch.zeros_like(u))  # (u^a - u)/(a - 1)
        return (power_gap - (u - 1)) / a

    def conjugate(t: Tensor) -> Tensor:
        base = 1 + b * t
        value = expm1_over(a, log1p_over(b, torch.where(base > 0, t, torch.zeros_like(t))))
        edge = 1 / abs(a) if a < 0 else (-1 / a if a > 1 else math.inf)  # f* where 1 + (a-1)t reaches 0
        beyond = torch.where(base == 0, edge, edge if a > 1 else math.inf).to(t.dtype)
        return torch.where(base > 0, value, beyond)

    limits = (-math.inf, math.inf) if b == 0 else ((-1 / b, math.inf) if b > 0 else (-math.inf, -1 / b))
    return Divergence(
        name=f"alpha:{order:g}",
        minimises=f"D_{order:g}(expert || policy), Minka's alpha divergence",
        equation="28-30, App. B (corrected)",
        paper="arXiv:1911.02256 (alpha: Minka 2005, MSR-TR-2005-173)",
        generator=generator,
        slope_at_log_ratio=lambda h: expm1_over(b, h),
        log_ratio_at_slope=lambda t: log1p_over(b, t),
        conjugate_generator=conjugate,
        reward_at_log_ratio=lambda h: expm1_over(a, h),
        reward_offset=0.0,
        variational_range=limits,
    )


def _log_d_slope(h: Tensor) -> Tensor:
    return (softplus(-h) - exp(-h)) - LOG2


def _log_d_log_ratio(t: Tensor) -> Tensor:
    from understudy.objectives.generators import invert_slope

    return invert_slope(_log_d_slope, t)


def _log_d_conjugate(t: Tensor) -> Tensor:
    from understudy.objectives.generators import conjugate_by_search

    return conjugate_by_search(DIVERGENCES["log_d"].generator, _log_d_slope, t, upper=-LOG2)


_ROWS = (
    Divergence(
        name="reverse_kl",
        minimises="KL(policy || expert)",
        equation="15-20 (15, 17 and 19 are printed with the wrong sign)",
        paper="arXiv:1710.11248 (AIRL)",
        generator=lambda u: -u.log(),
        slope_at_log_ratio=lambda h: -exp(-h),
        log_ratio_at_slope=lambda t: -(-t).log(),
        conjugate_generator=reverse_kl_conjugate,
        reward_at_log_ratio=lambda h: h,
        reward_offset=1.0,
        variational_range=(-math.inf, 0.0),
    ),
    Divergence(
        name="js",
        minimises="2 JS(expert, policy)",
        equation="21-23",
        paper="arXiv:1606.03476 (GAIL)",
        generator=js_generator,
        slope_at_log_ratio=lambda h: LOG2 + logsigmoid(h),
        log_ratio_at_slope=js_log_ratio,
        conjugate_generator=js_conjugate,
        reward_at_log_ratio=lambda h: softplus(h) - LOG2,
        reward_offset=0.0,
        variational_range=(-math.inf, LOG2),
    ),
    Divergence(
        name="forward_kl",
        minimises="KL(expert || policy)",
        equation="28-30, App. B",
        paper="arXiv:1911.02256 (FAIRL; the reward is e^h, not -h e^h)",
        generator=lambda u: torch.xlogy(u, u),
        slope_at_log_ratio=lambda h: 1 + h,
        log_ratio_at_slope=lambda t: t - 1,
        conjugate_generator=lambda t: exp(t - 1),
        reward_at_log_ratio=lambda h: expm1_over(1.0, h),
        reward_offset=-1.0,
        variational_range=(-math.inf, math.inf),
    ),
    Divergence(
        name="log_d",
        minimises="KL(policy || expert) - 2 JS(expert, policy)",
        equation="none; the non-saturating heuristic log D",
        paper="arXiv:1406.2661 (non-saturating GAN)",
        generator=lambda u: -u.log() - js_generator(u),
        slope_at_log_ratio=_log_d_slope,
        log_ratio_at_slope=_log_d_log_ratio,
        conjugate_generator=_log_d_conjugate,
        reward_at_log_ratio=logsigmoid,
        reward_offset=1.0 - LOG2,
        variational_range=(-math.inf, -LOG2),
    ),
)
DIVERGENCES: dict[str, Divergence] = {row.name: row for row in _ROWS}
