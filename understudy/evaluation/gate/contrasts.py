"""Rules as tests of one number: contrasts of two models' scores with a bound and what is worth having above it.

Shape legend: P prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from understudy.evaluation import inference
from understudy.evaluation.gate.schema import BOUNDED_BY_ONE, GuardRule, PrimaryRule, Rule
from understudy.evaluation.gate.scores import SetStatistic
from understudy.evaluation.inference import Estimate

Floats = NDArray[np.float64]
Outcome = Literal["pass", "fail", "not_enough_evidence", "skipped"]


@dataclass(frozen=True)
class Contrast:
    """One test: the true value of `estimate` must exceed `bound`; people are shown `sign * (x / unit + offset)`."""

    estimate: Estimate
    bound: float
    gap: float
    unit: float = 1.0
    offset: float = 0.0
    sign: float = 1.0

    def shown(self, value: float) -> float:
        """Return a number of the test as people read it."""
        return self.sign * (value / self.unit + self.offset)

    def outcome(self, alpha: float) -> Outcome:
        """Compare the limits with the bound and with what is worth having."""
        if float(self.estimate.low(alpha)) > self.bound:
            return "pass"
        return "fail" if float(self.estimate.high(alpha)) < self.bound + self.gap else "not_enough_evidence"

    def needed(self, alpha: float, power: float) -> int | None:
        """Return how many prompts would settle it, one way or the other, if the truth is as measured."""
        value = float(self.estimate.value)
        distance = max(value - self.bound, self.bound + self.gap - value)
        return self.estimate.required(min(distance, self.gap) if self.gap else distance, alpha, power)


def limit_of(rule: Rule) -> str:
    """Return the name of the field that sets the rule's bound."""
    return rule.limit if isinstance(rule, GuardRule) else "minimum_improvement"


def of_series(rule: Rule, a_P: Floats, b_P: Floats, weight_P: Floats, groups_P: NDArray[Any]) -> tuple[Contrast, ...]:
    """Return the tests of a rule on numbers per prompt (P), all decided."""
    if rule.scale == "win_rate":
        won_P = (-0.5 if rule.lower_is_better else 0.5) * np.sign(a_P - b_P)
        return _contrasts(rule, lambda a, b: inference.mean(won_P, groups_P, 0.5, bounds=(-0.5, 0.5)), 1.0)
    scale = weight_P.mean()
    span = _span(rule, a_P / scale, b_P / scale)

    def estimate(a: float, b: float) -> Estimate:
        bounds = (-span, span) if a + b == 0 else inference.UNBOUNDED
        return inference.mean(a * a_P + b * b_P, groups_P, span, weight_P, bounds)

    return _contrasts(rule, estimate, float(b_P.sum() / weight_P.sum()))


def of_sets(
    rule: Rule, ours: SetStatistic, theirs: SetStatistic, groups: Sequence[str], num_prompts: int
) -> tuple[Contrast, ...]:
    """Return the tests of a rule on a statistic of all responses together."""
    if len(groups) < 2:
        return ()

    def estimate(a: float, b: float) -> Estimate:
        left_out = [
            a * ours.left_out.get(group, ours.value) + b * theirs.left_out.get(group, theirs.value) for group in groups
        ]
        # A share of distinct n-grams lies between 0 and 1.
        bounds = min(a, 0.0) + min(b, 0.0), max(a, 0.0) + max(b, 0.0)
        return inference.set_statistic(a * ours.value + b * theirs.value, left_out, num_prompts, bounds)

    return _contrasts(rule, estimate, theirs.value)


def _contrasts(rule: Rule, estimate: Any, reference: float) -> tuple[Contrast, ...]:
    """Return the tests of a rule, given a function that estimates `a * challenger + b * reference`.

    Relative limits are linear too: a - b > -m * b is a + (m - 1) * b > 0, so no ratio has to be approximated.
    """
    better = -1.0 if rule.lower_is_better else 1.0
    if isinstance(rule, PrimaryRule):
        gap = rule.detect - rule.minimum_improvement
        return (Contrast(estimate(better, -better), rule.minimum_improvement, gap),)
    assert isinstance(rule, GuardRule)
    if rule.margin is not None:
        return (Contrast(estimate(better, -better), -rule.margin, rule.margin),)
    if rule.floor is not None:
        return (Contrast(estimate(1.0, 0.0), rule.floor, 0.0),)
    if rule.ceiling is not None:
        return (Contrast(estimate(-1.0, 0.0), -rule.ceiling, 0.0, sign=-1.0),)
    if rule.relative_margin is not None:
        m = rule.relative_margin
        return (Contrast(estimate(better, m - better), 0.0, m * reference, reference, -m),)
    m = float(rule.max_drift or 0.0)
    down = Contrast(estimate(1.0, m - 1.0), 0.0, m * reference, reference, -m)
    up = Contrast(estimate(-1.0, m + 1.0), 0.0, m * reference, reference, -m, sign=-1.0)
    return down, up


def _span(rule: Rule, a_P: Floats, b_P: Floats) -> float:
    """Return the largest difference that one prompt could have made, as far as stated or seen."""
    if rule.score_range is not None:
        return rule.score_range[1] - rule.score_range[0]
    if rule.metric in BOUNDED_BY_ONE:
        return 1.0
    alone = limit_of(rule) in ("floor", "ceiling")
    return inference.largest_value(a_P) if alone else inference.largest_difference(a_P, b_P)
