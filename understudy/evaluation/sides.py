"""The challenger beside what it would replace: the same prompts, each metric for both and their paired difference.

Shape legend: P prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from understudy.evaluation import intervals, metrics
from understudy.evaluation.intervals import POSITIVE, Floats, Interval
from understudy.evaluation.names import CHALLENGER, CHAMPION
from understudy.evaluation.result import EvaluationResult, Generated

REFERENCES = (CHAMPION, "sft")  # what a challenger is held against, the first that was evaluated
CHRF = "chrF to the expert"


@dataclass(frozen=True)
class Pair:
    """Two policies' responses to the same prompts and one score of each, NaN where undecided (P).

    Attributes:
        challenger: policy whose gain is positive.
        reference: the champion, or SFT where there is none.
        decoding: how both were sampled.
        measure: the deciding judge, or chrF without one.
        ours_P: the challenger's scores.
        theirs_P: the reference's scores.
        chrf_gain_P: difference of chrF to the expert, which orders prompts that the measure calls equal.
        confidence: of all intervals on the page.
        seed: of what is drawn for the page.
    """

    challenger: str
    reference: str
    decoding: str
    measure: str
    ours_P: Floats
    theirs_P: Floats
    chrf_gain_P: Floats
    confidence: float
    seed: int

    @property
    def gain_P(self) -> Floats:
        """Challenger minus reference (P)."""
        return self.ours_P - self.theirs_P


@dataclass(frozen=True)
class Side:
    """One metric of both policies; `better` is 1 where more is better, -1 where less is, 0 where neither."""

    label: str
    meaning: str
    better: int
    reference: Interval | None
    challenger: Interval | None
    difference: Interval | None

    @property
    def outcome(self) -> str:
        """Say "better", "worse", "differs", "no difference shown" or "not measured", by the difference's interval."""
        if self.difference is None or not self.difference.measured:
            return "not measured"
        if not self.difference.excludes(0.0):
            return "no difference shown"
        if not self.better:
            return "differs"
        return "better" if self.difference.value * self.better > 0 else "worse"


def pair_of(result: EvaluationResult) -> Pair | None:
    """Return the challenger and what it would replace; None when there is not one of each with all prompts."""
    reference = next((name for name in REFERENCES if name in result.generated), None)
    if reference is None or CHALLENGER not in result.generated or not result.test:
        return None
    both = result.generated[CHALLENGER], result.generated[reference]
    decoding = next((name for name in ("tuned", "T=1") if all(name in side for side in both)), None)
    if decoding is None:
        return None
    ours, theirs = (side[decoding] for side in both)
    if not len(ours.samples) == len(theirs.samples) == len(result.test):
        return None
    references = [row.response for row in result.test]
    chrf_ours, chrf_theirs = (metrics.chrf(side.texts, references) for side in (ours, theirs))
    judge = result.deciding_judge
    judged = judge is not None and judge in ours.scores and judge in theirs.scores
    return Pair(
        challenger=CHALLENGER,
        reference=reference,
        decoding=decoding,
        measure=str(judge) if judged else CHRF,
        ours_P=ours.scores[str(judge)] if judged else chrf_ours,
        theirs_P=theirs.scores[str(judge)] if judged else chrf_theirs,
        chrf_gain_P=chrf_ours - chrf_theirs,
        confidence=result.config.confidence,
        seed=ours.seed % 2**32,
    )


def side_by_side(result: EvaluationResult, pair: Pair) -> list[Side]:
    """Return what both were measured by, judges first; differences are paired over prompts and their groups."""
    ours, theirs = (result.generated[name][pair.decoding] for name in (pair.challenger, pair.reference))
    mean = _mean_difference(result, pair)
    values = result.metrics[pair.challenger][pair.decoding], result.metrics[pair.reference][pair.decoding]
    rows: list[Side] = []
    for name in result.judges:
        gain = mean(lambda side, name=name: side.scores[name])  # type: ignore[misc]
        meaning = f"Mean score of the judge {name}."
        rows.append(Side(name, meaning, 1, values[1].get(f"judge_{name}"), values[0].get(f"judge_{name}"), gain))
    nothing_P = np.zeros(len(result.test))
    chrf = intervals.difference(pair.chrf_gain_P, nothing_P, result.clusters, pair.confidence)
    tokens = mean(lambda side: np.asarray([float(sample.num_tokens) for sample in side.samples]))
    ended = mean(lambda side: np.asarray([float(sample.finished) for sample in side.samples]))
    for key, label, better, meaning, difference in (
        ("chrf_to_expert", "chrF", 1, "Character overlap with the expert's answer, 0 to 100.", chrf),
        ("distinct_2", "distinct-2", 1, "Distinct word pairs over all.", _distinct_difference(result, pair)),
        ("length_tokens", "tokens", 0, "Mean length of a response.", tokens),
        ("eos_rate", "ended", 1, "Share of responses that end by themselves.", ended),
    ):
        if len(ours.samples) == len(theirs.samples):
            rows.append(Side(label, meaning, better, values[1].get(key), values[0].get(key), difference))
    return rows + _likelihood(result, pair)


def _mean_difference(
    result: EvaluationResult, pair: Pair
) -> Callable[[Callable[[Generated], Floats]], Interval | None]:
    ours, theirs = (result.generated[name][pair.decoding] for name in (pair.challenger, pair.reference))

    def mean(of: Callable[[Generated], Floats]) -> Interval | None:
        return intervals.difference(of(ours), of(theirs), result.clusters, pair.confidence)

    return mean


def _distinct_difference(result: EvaluationResult, pair: Pair) -> Interval | None:
    """Return the difference of two sets' distinct-2, with its interval over the same clusters for both."""
    found = [
        metrics.distinct_left_out(result.generated[name][pair.decoding].texts, 2, result.clusters)
        for name in (pair.challenger, pair.reference)
    ]
    if found[0] is None or found[1] is None:
        return None
    (ours, ours_without), (theirs, theirs_without) = found[0], found[1]
    labels = np.unique(result.clusters).tolist()
    left_out = [ours_without.get(label, ours) - theirs_without.get(label, theirs) for label in labels]
    return intervals.of_set(ours - theirs, left_out, len(result.test), pair.confidence, (-1.0, 1.0))


def _likelihood(result: EvaluationResult, pair: Pair) -> list[Side]:
    """Return NLL of the expert's text per character, which needs no common tokenizer."""
    if not {pair.challenger, pair.reference} <= result.likelihood.keys():
        return []
    characters_P = np.asarray([len(row.response) + 1.0 for row in result.test])  # the end counts as one
    nll_P = [-np.asarray(result.likelihood[name][0]) for name in (pair.reference, pair.challenger)]
    clusters, confidence = result.clusters, pair.confidence
    reference, challenger = (intervals.mean(values, clusters, confidence, POSITIVE, characters_P) for values in nll_P)
    difference = intervals.difference(nll_P[1], nll_P[0], clusters, confidence, characters_P)
    meaning = "Negative log-likelihood of the expert's text per character, in nats."
    return [Side("NLL/char", meaning, -1, reference, challenger, difference)]
