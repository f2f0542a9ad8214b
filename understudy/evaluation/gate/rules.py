"""One rule against two models' numbers: pass, fail, or not enough evidence.

A rule has a bound that the true difference must exceed and, `gap` above it, what is worth having. It passes when the
lower limit is above the bound, fails when the upper limit is below bound + gap, and is undecided otherwise. So it
passes a difference at the bound, and fails one at bound + gap, with probability at most alpha each.

Shape legend: P prompts, C groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from understudy.evaluation import inference
from understudy.evaluation.gate.contrasts import Contrast, Outcome, limit_of, of_series, of_sets
from understudy.evaluation.gate.schema import Gate, PrimaryRule, Rule
from understudy.evaluation.gate.scores import Scores, Series, SetStatistic


@dataclass(frozen=True)
class RuleVerdict:
    """What one rule says.

    Attributes:
        kind: "primary" or "guard".
        metric: what was measured.
        decoding: of which responses.
        against: the policy compared with, None for a floor or ceiling.
        limit: which limit the rule sets, for example "margin".
        verdict: "pass", "fail", "not_enough_evidence" or "skipped".
        value: improvement over `against` (positive is better), drift, or the metric itself for a floor or ceiling;
            relative limits have relative values. None when nothing could be measured.
        low: lower one-sided limit at level alpha.
        high: upper one-sided limit at level alpha.
        bound: what `low` must exceed (for a ceiling and for drift also: what `high` must stay below).
        alpha: one-sided level of this rule, after correction.
        p_value: of "no better than the bound", for primary rules.
        prompts: prompts decided for both.
        groups: independent groups of prompts.
        required_prompts: what the power needs, planned from the gate, else with the measured variance.
        more_prompts: how many more would settle the rule if the truth is as measured; None where unknown or not needed.
        undecided: per policy, ids of prompts that the judge left undecided.
        text: all that as one sentence.
    """

    kind: str
    metric: str
    decoding: str
    against: str | None
    limit: str
    verdict: Outcome
    value: float | None
    low: float | None
    high: float | None
    bound: float | None
    alpha: float
    p_value: float | None
    prompts: int
    groups: int
    required_prompts: int | None
    more_prompts: int | None
    undecided: dict[str, tuple[str, ...]]
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Question:
    """A rule with its numbers: one contrast, or two for drift (down, up)."""

    rule: Rule
    contrasts: tuple[Contrast, ...]
    num_prompts: int
    num_all: int
    num_groups: int
    undecided: dict[str, tuple[str, ...]]

    @property
    def p_value(self) -> float:
        """The p-value of "no better than the bound"."""
        return max(float(each.estimate.p_above(each.bound)) for each in self.contrasts) if self.contrasts else 1.0


def ask(rule: Rule, challenger: Scores, reference: Scores) -> Question:
    """Put a rule to two models' numbers, both in canonical order and both known to have what it reads."""
    ours, theirs = (scores.measured[rule.metric, rule.where] for scores in (challenger, reference))
    absolute = limit_of(rule) in ("floor", "ceiling")
    if isinstance(ours, SetStatistic) and isinstance(theirs, SetStatistic):
        num_groups = len(set(challenger.groups))
        pair = of_sets(rule, ours, theirs, sorted(set(challenger.groups)), len(challenger.prompts))
        return Question(rule, pair, len(challenger.prompts), len(challenger.prompts), num_groups, {})
    assert isinstance(ours, Series) and isinstance(theirs, Series)
    a_P, b_P = np.asarray(ours.values), np.asarray(ours.values if absolute else theirs.values)
    sides = {challenger.policy: a_P} if absolute else {challenger.policy: a_P, reference.policy: b_P}
    undecided = {
        policy: tuple(np.asarray(challenger.prompts)[~np.isfinite(values)].tolist()) for policy, values in sides.items()
    }
    decided_P = np.isfinite(a_P) & np.isfinite(b_P)
    groups_P = np.asarray(challenger.groups)[decided_P]
    num_groups = len(set(groups_P.tolist()))
    contrasts: tuple[Contrast, ...] = ()
    if num_groups > 1:
        weight_P = np.asarray(ours.weights)[decided_P]
        contrasts = of_series(rule, a_P[decided_P], b_P[decided_P], weight_P, groups_P)
    undecided = {policy: prompts for policy, prompts in undecided.items() if prompts}
    return Question(rule, contrasts, int(decided_P.sum()), len(a_P), num_groups, undecided)


def answer(gate: Gate, question: Question, alpha: float, against: str) -> RuleVerdict:
    """Give the verdict of one rule at a level."""
    rule, contrasts = question.rule, question.contrasts
    limit = limit_of(rule)
    planned = planned_prompts(gate, rule, alpha)
    outcome, needed, reasons = _outcome(gate, question, alpha, planned)
    value = low = high = bound = None
    if contrasts:
        first, last = contrasts[0], contrasts[-1]
        value = first.shown(float(first.estimate.value))
        low = first.shown(float(first.estimate.low(alpha)))
        # Two contrasts look from both sides; what one cannot exceed is the other's lower limit turned round.
        other = last.estimate.low(alpha) if len(contrasts) > 1 else first.estimate.high(alpha)
        high = last.shown(float(other))
        low, high = min(low, high), max(low, high)
        bound = first.shown(first.bound) if len(contrasts) == 1 else last.shown(last.bound)
    verdict = RuleVerdict(
        kind="primary" if isinstance(rule, PrimaryRule) else "guard",
        metric=rule.metric + (" win rate" if rule.scale == "win_rate" else ""),
        decoding=rule.where,
        against=None if limit in ("floor", "ceiling") else against,
        limit=limit,
        verdict=outcome,
        value=value,
        low=low,
        high=high,
        bound=bound,
        alpha=alpha,
        p_value=question.p_value if contrasts and isinstance(rule, PrimaryRule) else None,
        prompts=question.num_prompts,
        groups=question.num_groups,
        required_prompts=planned or _with_measured_variance(gate, contrasts, alpha),
        more_prompts=max(1, needed - question.num_prompts) if needed and outcome == "not_enough_evidence" else None,
        undecided=question.undecided,
        text="",
    )
    from understudy.evaluation.gate.words import sentence

    return RuleVerdict(**{**vars(verdict), "text": sentence(verdict, reasons)})


def planned_prompts(gate: Gate, rule: Rule, alpha: float) -> int | None:
    """Return the prompts that the gate demands for a rule whose standard deviation it states, else None."""
    if rule.standard_deviation is None:
        return None
    gap = rule.detect - rule.minimum_improvement if isinstance(rule, PrimaryRule) else getattr(rule, "margin", None)
    if not gap:
        return None
    span = 0.5 if rule.scale == "win_rate" else (rule.score_range[1] - rule.score_range[0] if rule.score_range else 0.0)
    variance, design = rule.standard_deviation**2 * rule.design_effect, rule.design_effect
    return inference.required_prompts(gap, variance, alpha, gate.power, design, design, span)


def _outcome(
    gate: Gate, question: Question, alpha: float, planned: int | None
) -> tuple[Outcome, int | None, Sequence[str]]:
    """Return the outcome, the prompts needed in all, and why the numbers alone do not decide."""
    reasons, needed = [], [0]
    num_undecided = question.num_all - question.num_prompts
    if num_undecided > gate.max_undecided * question.num_all:
        reasons.append(
            f"{num_undecided} of {question.num_all} prompts are undecided, more than {gate.max_undecided:.0%} of them"
        )
    if question.num_groups < gate.minimum_groups:
        reasons.append(f"{question.num_groups} independent groups of prompts, the gate asks for {gate.minimum_groups}")
        per_group = question.num_prompts / max(question.num_groups, 1)
        needed.append(math.ceil(gate.minimum_groups * max(per_group, 1.0)))
    if planned is not None and question.num_prompts < planned:
        reasons.append(f"{question.num_prompts} prompts, the gate's power asks for {planned}")
        needed.append(planned)
    outcomes = [contrast.outcome(alpha) for contrast in question.contrasts]
    for contrast, outcome in zip(question.contrasts, outcomes, strict=True):
        if outcome == "not_enough_evidence":
            needed.append(contrast.needed(alpha, gate.power) or 0)
    if reasons or not outcomes:
        return "not_enough_evidence", max(needed), reasons
    worst: Outcome = "not_enough_evidence" if "not_enough_evidence" in outcomes else "pass"
    return "fail" if "fail" in outcomes else worst, max(needed), ()


def _with_measured_variance(gate: Gate, contrasts: Sequence[Contrast], alpha: float) -> int | None:
    needed = [
        each.estimate.required(each.gap, alpha, gate.power, two_sided=len(contrasts) > 1)
        for each in contrasts
        if each.gap > 0
    ]
    return max((number for number in needed if number), default=None)
