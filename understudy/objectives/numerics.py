"""Elementwise functions behind the table of divergences, for any floating dtype; exponents saturate, never overflow.

Notation as in divergences.py: u a density ratio, h = log u, t a value of f'.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG2 = math.log(2.0)


def floating(value: Tensor) -> Tensor:
    """The value as a floating tensor: integers get the default dtype."""
    tensor = torch.as_tensor(value)
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def exponent_limit(dtype: torch.dtype) -> float:
    """Largest exponent used: a tenth below overflow, so that sums over a batch stay finite too."""
    return 0.9 * math.log(torch.finfo(dtype).max)


def expm1_over(c: float, h: Tensor) -> Tensor:
    """(e^(c h) - 1)/c, which is h at c = 0; the exponent saturates below overflow."""
    if abs(c) < 1e-12:
        return h + 0.5 * c * h * h if c else h
    limit = exponent_limit(h.dtype) + min(0.0, math.log(abs(c)))
    return torch.expm1((c * h).clamp(max=limit)) / c


def log1p_over(c: float, t: Tensor) -> Tensor:
    """log(1 + c t)/c, which is t at c = 0: the inverse of `expm1_over`."""
    if abs(c) < 1e-12:
        return t - 0.5 * c * t * t if c else t
    return torch.log1p(c * t) / c


def js_generator(u: Tensor) -> Tensor:
    """f(u) = -(u + 1) log((1 + u)/2) + u log u."""
    return -(u + 1) * ((1 + u) / 2).log() + torch.xlogy(u, u)


def js_log_ratio(t: Tensor) -> Tensor:
    """The h at which f'(e^h) = t, t < log 2."""
    return (t - LOG2) - (-torch.expm1(t - LOG2)).log()


def js_conjugate(t: Tensor) -> Tensor:
    """f*(t) = -log(2 - e^t), +inf from log 2 on."""
    inside = t < LOG2
    gap = torch.where(inside, t - LOG2, -torch.ones_like(t))
    return torch.where(inside, -LOG2 - (-torch.expm1(gap)).log(), torch.full_like(t, math.inf))


def reverse_kl_conjugate(t: Tensor) -> Tensor:
    """f*(t) = -1 - log(-t), +inf from 0 on."""
    inside = t < 0
    return torch.where(inside, -1 - (-torch.where(inside, t, -torch.ones_like(t))).log(), torch.full_like(t, math.inf))


def exp(h: Tensor) -> Tensor:
    """e^h, saturating."""
    return h.clamp(max=exponent_limit(h.dtype)).exp()
