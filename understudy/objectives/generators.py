"""Divergences from a generator alone: f' by autograd, f* by bisection in log u.

Shapes: everything is elementwise. Precision: the search runs in float64 to the last bit of log u.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from understudy.objectives.divergences import SEARCH_LOG_RATIO, Divergence, Elementwise

REWARD_LOG_RATIO = (-150.0, 30.0)  # u f'(u) - f(u) cancels above: u = e^30 leaves 3 digits behind the point in float64


def derivative(f: Elementwise, u: Tensor) -> Tensor:
    """f'(u) by autograd, elementwise; itself differentiable when u carries a gradient."""
    with torch.inference_mode(False), torch.enable_grad():
        point = u if u.requires_grad else u.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(f(point).sum(), point, create_graph=u.requires_grad)
    return slope


def invert_slope(slope: Elementwise, t: Tensor, iterations: int = 100) -> Tensor:
    """Solve slope(h) = t for h in [-40, 40] by bisection, slope increasing in h; no gradient."""
    target = t.detach().to(torch.float64)
    low = torch.full_like(target, -SEARCH_LOG_RATIO)
    high = torch.full_like(target, SEARCH_LOG_RATIO)
    for _ in range(iterations):
        middle = (low + high) / 2
        below = slope(middle).detach() < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2).to(t.dtype)


def conjugate_by_search(f: Elementwise, slope: Elementwise, t: Tensor, upper: float = math.inf) -> Tensor:
    """f*(t) = u t - f(u) at f'(u) = t; +inf for t >= upper; its gradient is u by the envelope theorem."""
    inside = t < upper
    safe = torch.where(inside, t, torch.full_like(t, upper - 1 if math.isfinite(upper) else 0.0))
    u = invert_slope(slope, safe).exp()
    return torch.where(inside, u * safe - f(u).detach(), torch.full_like(t, math.inf))


def _density(h: Tensor, low: float, high: float) -> Tensor:
    return h.to(torch.float64).clamp(low, high).exp()


def _narrowed(value: Tensor, dtype: torch.dtype) -> Tensor:
    largest = torch.finfo(dtype).max
    return value.clamp(-largest, largest).to(dtype)


def user_defined(name: str, f: Elementwise) -> Divergence:
    """Build the row behind `Divergence.from_generator`.

    Raises:
        ValueError: f(1) is not 0, or f' decreases somewhere on a grid of u.
    """
    try:
        at_one = float(f(torch.ones(1, dtype=torch.float64)))
        grid = torch.linspace(-8, 8, 161, dtype=torch.float64).exp()
        slopes = derivative(f, grid)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"Generator {name!r} cannot be differentiated ({error}); it must take a tensor u > 0 and return a tensor "
            "of its shape by torch's own functions."
        ) from error
    if not abs(at_one) < 1e-9:
        raise ValueError(f"Generator {name!r} has f(1) = {at_one:g}, not 0; subtract that constant.")
    if not bool(slopes.isfinite().all()):
        where = float(grid[~slopes.isfinite()][0])
        raise ValueError(f"Generator {name!r} has no finite slope at u = {where:.3g}; define it for all u > 0.")
    scale = slopes.abs().clamp(min=1)
    if not bool((slopes.diff() >= -1e-9 * scale[1:]).all()):
        where = float(grid[1:][slopes.diff() < -1e-9 * scale[1:]][0])
        raise ValueError(f"Generator {name!r} is not convex: f' decreases near u = {where:.3g}. Give a convex f.")

    def slope(h: Tensor) -> Tensor:
        return _narrowed(derivative(f, _density(h, -SEARCH_LOG_RATIO, SEARCH_LOG_RATIO)), h.dtype)

    def reward(h: Tensor) -> Tensor:
        u = _density(h, *REWARD_LOG_RATIO)
        return _narrowed(u * derivative(f, u) - f(u), h.dtype)

    ends = slope(torch.tensor([-SEARCH_LOG_RATIO, SEARCH_LOG_RATIO], dtype=torch.float64))
    low, high = (value if abs(value) < 1e12 else math.copysign(math.inf, value) for value in ends.tolist())
    return Divergence(
        name=name,
        minimises=f"D_f(expert || policy) for the f of {name!r}",
        equation="28-30",
        paper="user-defined",
        generator=f,
        slope_at_log_ratio=slope,
        log_ratio_at_slope=lambda t: invert_slope(slope, t),
        conjugate_generator=lambda t: conjugate_by_search(f, slope, t, upper=high),
        reward_at_log_ratio=reward,
        reward_offset=0.0,
        variational_range=(low, high),
    )
