"""Intervals over seeds and prompts, both drawn anew: the bootstrap of a table whose rows and columns are both samples.

Seeds and clusters of prompts are drawn each by itself and every draw of one meets every draw of the other (Owen 2007,
"The pigeonhole bootstrap"). Of few units a bootstrap's percentiles are too narrow, so they are expanded (Hesterberg
2015, "What teachers should know about the bootstrap"): not for the number of seeds, which would be right if seeds alone
made the result vary, but for the effective number, by how much of the variance is theirs (Satterthwaite 1946). How much
that is few seeds hardly know, and by chance they agree: so no more than twice their number is believed.
`experiments.real.coverage` measures how often such intervals hold the truth.

Shapes: S seeds, P prompts, C clusters of prompts, Q draws of seeds, M draws of clusters, N = Q M, K totals.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from experiments.bar1.seeds import CONFIDENCE, expanded_tail, widest
from understudy.evaluation.intervals import Floats, Interval

Statistic = Callable[[Floats], Floats]  # from weighted totals (K, N) to values (N,)
SEED = 0  # of what is drawn
MOST_SEEDS_ENUMERATED, DRAWS_OF_SEEDS = 6, 500
MOST_UNITS_PER_SEED = 2
_SORTED_PART = 8  # of all draws: limits lie far out
_STEP = 1e-6  # of a derivative, as a share of the number of values


@dataclass(frozen=True)
class Paired:
    """Prompts that two contenders answered under the same seeds.

    Attributes:
        value_SP: one number a seed and prompt; NaN where undecided.
        cluster_P: cluster of each prompt.
    """

    value_SP: Floats
    cluster_P: NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """How many there are of what is drawn.

    Attributes:
        num_seeds: S.
        num_clusters: C.
        effective: of a sample as uncertain as the statistic is; at most twice the seeds, where there are several.
    """

    num_seeds: int
    num_clusters: int
    effective: float


Tail = Callable[[Units], float]  # the share of resamples beyond each limit


def expanded(units: Units) -> float:
    """Of as many units as are effective."""
    return expanded_tail(units.effective, CONFIDENCE)


def mean(pairs: Paired, tail: Tail = expanded) -> Interval | None:
    """Mean of the decided values, from 0 to 1.

    Values that are all equal tell a bootstrap nothing; their interval is the widest that their clusters leave possible.
    """
    found = resampled(pairs, [pairs.value_SP], lambda total_KN: total_KN[1] / total_KN[0], tail)
    if found is None or not found.high - found.low <= 1e-12:  # NaN, too
        return found
    decided_P = np.isfinite(pairs.value_SP).any(0)
    low, high = widest(found.value, len(np.unique(pairs.cluster_P[decided_P])), (0.0, 1.0))
    return replace(found, low=low, high=high)


def of_seeds(values: Iterable[float | None]) -> Interval | None:
    """Mean over seeds of a number that a seed has one of; t interval (a bootstrap of five is too narrow)."""
    from scipy.special import stdtrit

    value_S = np.asarray([value for value in values if value is not None], dtype=np.float64)
    if not len(value_S):
        return None
    middle = float(value_S.mean())
    if len(value_S) < 2:
        return Interval(middle, math.nan, math.nan, 1, 1)
    half = float(stdtrit(len(value_S) - 1, (1 + CONFIDENCE) / 2)) * float(value_S.std(ddof=1)) / math.sqrt(len(value_S))
    return Interval(middle, middle - half, middle + half, len(value_S), len(value_S))


def resampled(pairs: Paired, columns: list[Floats], statistic: Statistic, tail: Tail = expanded) -> Interval | None:
    """Interval of a statistic of totals over (S, P) columns, seeds and clusters drawn anew, each by itself.

    A total is linear in the weights, so it is taken of each cluster first. The statistic sees the totals of one and of
    the columns, in this order, and is the same of totals that are all twice as large. With one seed, over clusters.
    """
    known_SP = np.isfinite(pairs.value_SP)
    if not known_SP.any():
        return None
    decided_S, decided_P = known_SP.any(1), known_SP.any(0)  # who decides nothing is no unit
    known_SP, columns = known_SP[decided_S][:, decided_P], [column[decided_S][:, decided_P] for column in columns]
    cluster_P = np.unique(pairs.cluster_P[decided_P], return_inverse=True)[1]
    num_seeds, num_clusters = len(known_SP), int(cluster_P.max()) + 1
    seed_QS, chance_Q = _seed_draws(num_seeds)
    cluster_MC = _cluster_draws(num_clusters, len(chance_Q))
    member_PC = (cluster_P[:, None] == np.arange(num_clusters)).astype(np.float64)
    known_columns = (np.where(known_SP, column, 0.0) for column in (np.ones(known_SP.shape), *columns))
    table_KSC = np.stack([column_SP @ member_PC for column_SP in known_columns])
    total_KN = np.stack([(seed_QS @ (cluster_MC @ table_SC.T).T).ravel() for table_SC in table_KSC])
    chance_N, drawn_N = np.repeat(chance_Q, len(cluster_MC)), total_KN[0] > 0
    if not drawn_N.all():
        total_KN, chance_N = total_KN[:, drawn_N], chance_N[drawn_N]
    value = float(statistic(table_KSC.sum((1, 2))[:, None])[0])
    num_units = min(num_seeds, num_clusters) if num_seeds > 1 else num_clusters
    if num_units < 2:
        return Interval(value, math.nan, math.nan, int(known_SP.sum()), num_units)
    units = Units(num_seeds, num_clusters, effective_units(table_KSC, statistic))
    low, high = _limits(statistic(total_KN), chance_N, tail(units))
    return Interval(value, low, high, int(known_SP.sum()), num_units)


def effective_units(table_KSC: Floats, statistic: Statistic) -> float:
    """Of how many units a sample would be as uncertain as the statistic is: degrees of freedom, and one.

    To first order the statistic is a sum over seeds and clusters, so its variance is a sum of theirs, each known with
    as many degrees of freedom as there are of them but one.
    """
    influence_SC = np.tensordot(_gradient(table_KSC.sum((1, 2)), statistic), table_KSC, axes=1)
    margins = [influence_SC.sum(axis) for axis in (1, 0) if influence_SC.shape[1 - axis] > 1]
    variances = [float((margin**2).sum()) * len(margin) / (len(margin) - 1) for margin in margins]
    if not sum(variances) > 1e-18:  # nothing varies but by the rounding of derivatives
        return min(map(len, margins))
    per_freedom = (variance**2 / (len(margin) - 1) for variance, margin in zip(variances, margins, strict=True))
    effective = 1 + sum(variances) ** 2 / sum(per_freedom)
    return effective if len(margins) == 1 else min(effective, MOST_UNITS_PER_SEED * influence_SC.shape[0])


def _gradient(total_K: Floats, statistic: Statistic) -> Floats:
    step = _STEP * total_K[0]
    moved_KK = total_K[:, None] + step * np.eye(len(total_K))
    gradient: Floats = (statistic(moved_KK) - statistic(2 * total_K[:, None] - moved_KK)) / (2 * step)
    return gradient


def intercept(total_KN: Floats) -> Floats:
    """Of the regression of wins on the tilt; totals of 1, win, tilt, tilt² and tilt·win."""
    total, wins, first, second, product = total_KN
    below, mean_win = total * second - first**2, wins / total
    known = below > 1e-9 * total**2  # else lengths do not differ
    slope = (total * product - first * wins) / np.where(known, below, 1.0)
    found: Floats = np.where(known, mean_win - slope * first / total, mean_win)
    return found


@functools.cache
def _seed_draws(num: int) -> tuple[Floats, Floats]:
    """How often each seed is in a draw of `num` (Q, S), and each draw's probability (Q).

    Of few seeds all draws there are: limits may lie so far out (of five seeds at 0.1%) that chance would make them.
    """
    if num > MOST_SEEDS_ENUMERATED:
        drawn = np.random.default_rng([SEED, num]).multinomial(num, np.full(num, 1 / num), size=DRAWS_OF_SEEDS)
        return drawn.astype(np.float64), np.full(DRAWS_OF_SEEDS, 1 / DRAWS_OF_SEEDS)
    rows = itertools.combinations_with_replacement(range(num), num)
    count_QS = np.asarray([np.bincount(row, minlength=num) for row in rows], dtype=np.float64)
    orders = [math.factorial(num) / math.prod(math.factorial(int(count)) for count in row) for row in count_QS]
    return count_QS, np.asarray(orders) / num**num


@functools.cache
def _cluster_draws(num: int, num_seed_draws: int) -> Floats:
    """How often each cluster is in a draw (M, C), the same at every call; more draws where there are fewer of seeds."""
    draws = min(10_000, max(1_000, 50_000 // num_seed_draws))
    return np.random.default_rng(SEED).multinomial(num, np.full(num, 1 / num), size=draws).astype(np.float64)


def _limits(found_N: Floats, chance_N: Floats, tail: float) -> tuple[float, float]:
    beyond = tail * float(chance_N.sum()) * (1 - 1e-9)  # sums of chances are rounded
    return _lower_limit(found_N, chance_N, beyond), -_lower_limit(-found_N, chance_N, beyond)


def _lower_limit(found_N: Floats, chance_N: Floats, tail: float) -> float:
    """The value up to which the chances come to the tail; all are put in order only if the lowest are not enough."""
    for num in (max(1, len(found_N) // _SORTED_PART), len(found_N)):
        lowest = np.argpartition(found_N, num - 1)[:num]
        order = lowest[np.argsort(found_N[lowest])]
        below = np.cumsum(chance_N[order])
        if below[-1] >= tail:
            break
    return float(found_N[order[np.searchsorted(below, tail)]])
