"""Intervals from one seeded bootstrap over clusters of prompts.

The unit that is resampled is a cluster (all prompts of one group), because prompts of one group are not
independent. All statistics of a report share the same resamples, so that they are paired with one another.
The quantiles are the expanded percentiles of Hesterberg (2015, "What teachers should know about the
bootstrap"): the plain percentile interval is too narrow for small samples by the t-to-normal ratio and by
sqrt((n - 1) / n).

Shape legend: P prompts, C clusters, S resamples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A number with its two-sided interval and the number of prompts behind it."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float]:
        """Return the form that EvaluationReport.metrics holds."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}

    def excludes(self, number: float) -> bool:
        """Tell whether `number` lies outside the interval."""
        return number < self.low or number > self.high


def cluster_ids(groups: Sequence[Hashable], prompts: Sequence[Hashable]) -> NDArray[np.int64]:
    """Join prompts that share a group or a text, directly or through others; return one label per prompt (P)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    nodes: dict[tuple[str, Hashable], int] = {}
    num_prompts = len(groups)
    edges = [
        (row, num_prompts + nodes.setdefault(key, len(nodes)))
        for row, keys in enumerate(zip(groups, prompts, strict=True))
        for key in (("group", keys[0]), ("prompt", keys[1]))
    ]
    size = num_prompts + len(nodes)
    rows, columns = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(edges)), (rows, columns)), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    return np.unique(labels[:num_prompts], return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class Bootstrap:
    """Settings of all intervals of one report.

    Attributes:
        confidence: two-sided coverage aimed at, for example 0.95.
        samples: number of resamples (S).
        seed: seed of the resamples.
    """

    confidence: float
    samples: int
    seed: int

    def mean(
        self, values: ArrayLike, clusters: ArrayLike | None = None, bounds: tuple[float, float] | None = None
    ) -> Interval | None:
        """Return the mean of the finite values (P) with its interval, None when there is none.

        `bounds` is the range of the values: when all of them are equal, which tells a bootstrap nothing, the
        interval is then the widest one that a value seen in every one of C clusters leaves possible.
        """
        value_P = np.asarray(values, dtype=np.float64)
        return self.ratio(value_P, np.isfinite(value_P).astype(np.float64), clusters, bounds)

    def ratio(
        self,
        numerators: ArrayLike,
        denominators: ArrayLike,
        clusters: ArrayLike | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> Interval | None:
        """Return sum of numerators (P) over sum of denominators (P), for example NLL per token of a set."""
        below_P = np.asarray(denominators, dtype=np.float64)
        counted_P = below_P > 0
        above_P, below_P = np.asarray(numerators, dtype=np.float64)[counted_P], below_P[counted_P]
        if not len(above_P):
            return None
        label_P = _labels(clusters, counted_P)
        above_C, below_C = np.bincount(label_P, above_P), np.bincount(label_P, below_P)
        value = float(above_C.sum() / below_C.sum())
        if np.ptp(above_C / below_C) <= 1e-12 * max(1.0, abs(value)):
            return self._all_equal(value, len(above_P), len(above_C), bounds)
        weight_SC = _resamples(len(above_C), self.samples, self.seed)
        low, high = self._quantiles((weight_SC @ above_C) / (weight_SC @ below_C), len(above_C))
        return Interval(value, low, high, len(above_P))

    def auc(
        self, positive_scores: ArrayLike, negative_scores: ArrayLike, clusters: ArrayLike | None = None
    ) -> Interval | None:
        """Return P(positive > negative) + P(equal) / 2 for paired lists (P each), resampling pairs together."""
        positive_P = np.asarray(positive_scores, dtype=np.float64)
        negative_P = np.asarray(negative_scores, dtype=np.float64)
        if not len(positive_P):
            return None
        label_P = _labels(clusters, np.ones(len(positive_P), dtype=bool))
        won_PP = (positive_P[:, None] > negative_P) + 0.5 * (positive_P[:, None] == negative_P)
        member_PC = np.eye(int(label_P.max()) + 1)[label_P]
        won_CC = member_PC.T @ won_PP @ member_PC
        size_C = member_PC.sum(0)
        value = float(won_CC.sum() / size_C.sum() ** 2)
        if value in (0.0, 1.0) or len(size_C) < 2:
            return self._all_equal(value, len(positive_P), len(size_C), (0.0, 1.0))
        weight_SC = _resamples(len(size_C), self.samples, self.seed)
        auc_S = np.einsum("sc,sc->s", weight_SC @ won_CC, weight_SC) / (weight_SC @ size_C) ** 2
        low, high = self._quantiles(auc_S, len(size_C))
        return Interval(value, low, high, len(positive_P))

    def jackknife(self, value: float, left_out: ArrayLike, n: int, bounds: tuple[float, float]) -> Interval:
        """Return an interval from the statistic recomputed without each cluster in turn (C).

        For statistics that repeat resampled prompts badly, such as counts of distinct n-grams.
        """
        from scipy.special import stdtrit

        left_out_C = np.asarray(left_out, dtype=np.float64)
        if len(left_out_C) < 2:
            return Interval(value, bounds[0], bounds[1], n)
        num_clusters = len(left_out_C)
        variance = (num_clusters - 1) / num_clusters * float(((left_out_C - left_out_C.mean()) ** 2).sum())
        half = float(stdtrit(num_clusters - 1, (1 + self.confidence) / 2)) * math.sqrt(variance)
        return Interval(value, max(bounds[0], value - half), min(bounds[1], value + half), n)

    def _quantiles(self, statistics: Floats, num_clusters: int) -> tuple[float, float]:
        from scipy.special import ndtr, stdtrit

        tail = (1 - self.confidence) / 2
        expanded = float(ndtr(math.sqrt(num_clusters / (num_clusters - 1)) * stdtrit(num_clusters - 1, tail)))
        low, high = np.quantile(statistics, [expanded, 1 - expanded])
        return float(low), float(high)

    def _all_equal(self, value: float, n: int, num_clusters: int, bounds: tuple[float, float] | None) -> Interval:
        if bounds is None:
            return Interval(value, value, value, n)
        # A different value of probability q stays unseen in C clusters with probability (1 - q)^C.
        unseen = 1 - ((1 - self.confidence) / 2) ** (1 / num_clusters)
        return Interval(value, value - unseen * (value - bounds[0]), value + unseen * (bounds[1] - value), n)


def _labels(clusters: ArrayLike | None, kept_P: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number the clusters of the kept prompts from 0; one cluster in all says nothing, so prompts stand alone."""
    alone_P = np.arange(int(kept_P.sum()), dtype=np.int64)
    if clusters is None:
        return alone_P
    labels_P = np.unique(np.asarray(clusters)[kept_P], return_inverse=True)[1].astype(np.int64)
    return labels_P if labels_P.max() > 0 else alone_P


@lru_cache(maxsize=8)
def _resamples(num_clusters: int, samples: int, seed: int) -> Floats:
    """Return how often each cluster is drawn in each resample (S, C)."""
    generator = np.random.default_rng([seed, num_clusters])
    counts = generator.multinomial(num_clusters, np.full(num_clusters, 1 / num_clusters), size=samples)
    return counts.astype(np.float64)
