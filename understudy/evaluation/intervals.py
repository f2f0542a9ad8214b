"""Numbers with two-sided intervals, by the same inference as the gate's, so that report and gate cannot disagree.

The unit is a cluster (all prompts of one group, and equal prompts), because prompts of one group are not
independent. Where there are too few of them the number stands without an interval.

Shape legend: P prompts, C clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from understudy.evaluation import inference
from understudy.evaluation.inference import Estimate, fewest_groups

Floats = NDArray[np.float64]
ANY = (-math.inf, math.inf)
SHARE = (0.0, 1.0)
POSITIVE = (0.0, math.inf)


@dataclass(frozen=True)
class Interval:
    """A number with its two-sided interval.

    Attributes:
        value: the number.
        low: lower limit, NaN where too few groups tell nothing.
        high: upper limit, NaN likewise.
        n: prompts behind it.
        groups: independent groups of them.
    """

    value: float
    low: float
    high: float
    n: int
    groups: int

    @property
    def measured(self) -> bool:
        """Whether there were enough groups for an interval."""
        return not math.isnan(self.low)

    def to_json(self) -> dict[str, float | None]:
        """Return the form that EvaluationReport.metrics holds."""
        limits = {"low": self.low, "high": self.high} if self.measured else {"low": None, "high": None}
        return {"value": self.value, **limits, "n": self.n, "groups": self.groups}

    def excludes(self, number: float) -> bool:
        """Tell whether `number` lies outside the interval; what is not measured excludes nothing."""
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


def mean(
    values: ArrayLike,
    clusters: ArrayLike,
    confidence: float,
    bounds: tuple[float, float] = ANY,
    weights: ArrayLike | None = None,
) -> Interval | None:
    """Return the mean of the finite values (P), None when there is none.

    With weights (P) it is the sum of values over the sum of weights, for example NLL per token of a set, of the
    prompts that weigh anything. `bounds` are the lowest and the highest value that there could be.
    """
    value_P, weight_P, label_P = _decided(np.asarray(values, dtype=np.float64), weights, clusters)
    if not len(value_P):
        return None
    is_share = weights is None and np.isin(value_P, SHARE).all()
    if is_share and bounds == ANY:  # a judge's, which states no bounds
        bounds = SHARE
    span = inference.largest_value(value_P / weight_P.mean())
    found = _of_prompts(value_P, weight_P, label_P, confidence, span, bounds, bounds)
    # Where all prompts agree, these limits are the exact ones already, of as many prompts as there are equal groups.
    mixed = is_share and found.measured and 0 < found.value < 1
    return _as_share(found, value_P, label_P, confidence) if mixed else found


def difference(
    ours: ArrayLike, theirs: ArrayLike, clusters: ArrayLike, confidence: float, weights: ArrayLike | None = None
) -> Interval | None:
    """Return the mean of ours minus theirs on the same prompts (P each), where both are finite; weights: see `mean`."""
    pair_P2 = np.stack([np.asarray(side, dtype=np.float64) for side in (ours, theirs)], axis=-1)
    pair_P2, weight_P, label_P = _decided(pair_P2, weights, clusters)
    if not len(pair_P2):
        return None
    span = inference.largest_difference(*(pair_P2.T / weight_P.mean()))
    return _of_prompts(pair_P2[:, 0] - pair_P2[:, 1], weight_P, label_P, confidence, span, (-span, span), ANY)


def win_rate(ours: ArrayLike, theirs: ArrayLike, clusters: ArrayLike, confidence: float) -> Interval | None:
    """Return how often ours is higher than theirs on the same prompts (P each), ties half, where both are finite."""
    difference_P = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    won_P, weight_P, label_P = _decided(0.5 + 0.5 * np.sign(difference_P), None, clusters)
    return _of_prompts(won_P, weight_P, label_P, confidence, 0.5, SHARE, SHARE) if len(won_P) else None


def auc(
    positive_scores: ArrayLike, negative_scores: ArrayLike, clusters: ArrayLike, confidence: float
) -> Interval | None:
    """Return P(positive > negative) + P(equal) / 2 of paired lists (P each), None when they are empty.

    It is the mean over pairs of the shares that each beats and is beaten by, which makes its clusters those of a mean
    (Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data").
    """
    positive_P, negative_P = (np.asarray(scores, dtype=np.float64) for scores in (positive_scores, negative_scores))
    if not len(positive_P):
        return None
    won_PP = (positive_P[:, None] > negative_P) + 0.5 * (positive_P[:, None] == negative_P)
    placement_P = won_PP.mean(1) + won_PP.mean(0) - won_PP.mean()
    label_P = np.asarray(clusters)
    return _of_prompts(placement_P, np.ones(len(placement_P)), label_P, confidence, 1.0, SHARE, SHARE)


def of_set(
    value: float, left_out: ArrayLike, num_prompts: int, confidence: float, bounds: tuple[float, float]
) -> Interval:
    """Return a statistic of all responses together, given its value without each cluster in turn (C).

    `bounds` are the lowest and the highest value that it could have.
    """
    left_out_C = np.asarray(left_out, dtype=np.float64)
    if len(left_out_C) < fewest_groups(confidence):
        return Interval(value, math.nan, math.nan, num_prompts, len(left_out_C))
    return _two_sided(inference.set_statistic(value, left_out_C, num_prompts, bounds), confidence, bounds)


def _of_prompts(
    value_P: Floats,
    weight_P: Floats,
    label_P: NDArray[Any],
    confidence: float,
    span: float,
    reach: tuple[float, float],
    bounds: tuple[float, float],
) -> Interval:
    """`reach` bounds what one prompt could have been, `bounds` what the statistic can be."""
    num_groups = len(np.unique(label_P))
    if num_groups < fewest_groups(confidence):
        value = float(value_P.sum() / weight_P.sum())
        return Interval(value, math.nan, math.nan, len(value_P), num_groups)
    return _two_sided(inference.mean(value_P, label_P, span, weight_P, reach), confidence, bounds)


def _as_share(found: Interval, value_P: Floats, label_P: NDArray[Any], confidence: float) -> Interval:
    """The exact binomial limits of as many independent prompts as these are worth.

    Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data". What moves a mean of any shape safely is too wide for a share of a few prompts.
    """
    from scipy.special import betaincinv, stdtrit

    tail, share = (1 - confidence) / 2, found.value
    estimate = inference.mean(value_P, label_P)
    apart = share * (1 - share) / (found.n - 1)  # the variance if prompts were independent
    degrees = max(float(estimate.effective_groups) - 1, 1.0)
    fewer = (stdtrit(found.n - 1, tail) / stdtrit(degrees, tail)) ** 2  # a variance of few groups is itself uncertain
    worth = found.n * fewer * apart / max(float(estimate.variance), apart)  # groups never make prompts worth more
    hits = share * worth
    low, high = betaincinv(hits, worth - hits + 1, tail), betaincinv(hits + 1, worth - hits, 1 - tail)
    return Interval(share, float(low), float(high), found.n, found.groups)


def _two_sided(estimate: Estimate, confidence: float, bounds: tuple[float, float]) -> Interval:
    tail = (1 - confidence) / 2
    low, high = max(float(estimate.low(tail)), bounds[0]), min(float(estimate.high(tail)), bounds[1])
    return Interval(float(estimate.value), low, high, estimate.num_prompts, estimate.num_groups)


def _decided(values: Floats, weights: ArrayLike | None, clusters: ArrayLike) -> tuple[Floats, Floats, NDArray[Any]]:
    """Return values, weights and clusters of the prompts (first axis P) whose values are finite and weigh anything."""
    weight_P = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    finite_P = np.isfinite(values) if values.ndim == 1 else np.isfinite(values).all(-1)
    kept_P = finite_P & (weight_P > 0)
    return values[kept_P], weight_P[kept_P], np.asarray(clusters)[kept_P]
