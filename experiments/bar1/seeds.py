"""Means over ten or so seeds, each an expert of its own, with 95% intervals from a seeded bootstrap.

The quantiles are the expanded percentiles of Hesterberg (2015, "What teachers should know about the bootstrap"): the
plain percentile interval is too narrow for small samples by the t-to-normal ratio and by sqrt((n - 1) / n).

Shape legend: S seeds, N resamples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from understudy.evaluation.intervals import Floats, Interval

CONFIDENCE = 0.95
RESAMPLES = 10_000


def mean(values: Sequence[float], bounds: tuple[float, float]) -> Interval:
    """Return the mean of values within `bounds` (S).

    Equal values tell a bootstrap nothing; their interval is the widest that as many seeds leave possible.
    """
    value_S, num = np.asarray(values, dtype=np.float64), len(values)
    middle = float(value_S.sum() / num)
    if np.ptp(value_S) <= 1e-12 * max(1.0, abs(middle)):
        low, high = widest(middle, num, bounds)
    else:
        weight_NS = _resamples(num)
        expanded = expanded_tail(num, CONFIDENCE)
        low, high = np.quantile((weight_NS @ value_S) / weight_NS.sum(1), [expanded, 1 - expanded]).tolist()
    return Interval(middle, low, high, num, num)


def difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[Interval, int]:
    """Return the mean difference of two shares, paired by seed (S), and on how many seeds it is above 0."""
    gap = [mine - other for mine, other in zip(ours, theirs, strict=True)]
    return mean(gap, (-1, 1)), sum(each > 0 for each in gap)


def widest(value: float, num: int, bounds: tuple[float, float]) -> tuple[float, float]:
    """Return the limits of what `num` equal values leave possible.

    Another value of probability q stays unseen in all of them with probability (1 - q)^num.
    """
    unseen = 1 - ((1 - CONFIDENCE) / 2) ** (1 / num)
    return value - unseen * (value - bounds[0]), value + unseen * (bounds[1] - value)


def expanded_tail(num: float, confidence: float) -> float:
    """Return the expanded percentile in place of (1 - confidence) / 2, for a bootstrap of `num` units (over one)."""
    from scipy.special import ndtr, stdtrit

    return float(ndtr(math.sqrt(num / (num - 1)) * stdtrit(num - 1, (1 - confidence) / 2)))


@functools.cache
def _resamples(num: int) -> Floats:
    """Return how often each seed is drawn in each resample (N, S), the same at every call."""
    drawn = np.random.default_rng([0, num]).multinomial(num, np.full(num, 1 / num), size=RESAMPLES)
    return drawn.astype(np.float64)
