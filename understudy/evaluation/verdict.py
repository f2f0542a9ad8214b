"""Who wins, by how much, and what cannot be said: pure functions from paired scores to plain words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from understudy.evaluation import intervals
from understudy.evaluation.inference import fewest_groups
from understudy.evaluation.intervals import Interval

LABELS = {
    "base": "base model",
    "sft": "SFT",
    "aligned": "aligned",
    "sft_longer": "SFT trained as long",
    "champion": "champion",
}


@dataclass(frozen=True)
class Contender:
    """A policy under one decoding."""

    policy: str
    decoding: str

    def __str__(self) -> str:
        label = LABELS.get(self.policy, self.policy)
        return f"{label} at its tuned temperature" if self.decoding == "tuned" else f"{label} ({self.decoding})"


@dataclass(frozen=True)
class Comparison:
    """How often `a` beats `b` by one judge on the same prompts; ties count half.

    Attributes:
        judge: name of the judge.
        a: the contender whose wins are counted.
        b: the other one.
        win_rate: wins plus half of the ties over decided prompts; None when no prompt was decided for both, and
            without an interval, so without a winner, when they are of too few groups.
        difference: mean score of `a` minus that of `b`, in the judge's units.
        wins: prompts where `a` scored higher.
        ties: prompts with equal scores.
        losses: prompts where `a` scored lower.
        undecided: prompts left out because the judge could not decide on `a` or on `b`.
    """

    judge: str
    a: Contender
    b: Contender
    win_rate: Interval | None
    difference: Interval | None
    wins: int
    ties: int
    losses: int
    undecided: int

    @property
    def winner(self) -> Contender | None:
        """The contender that the interval favours; None when it includes one half."""
        if self.win_rate is None or not self.win_rate.excludes(0.5):
            return None
        return self.a if self.win_rate.value > 0.5 else self.b

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "judge": self.judge,
            "a": {"policy": self.a.policy, "decoding": self.a.decoding},
            "b": {"policy": self.b.policy, "decoding": self.b.decoding},
            "win_rate": self.win_rate.to_json() if self.win_rate else None,
            "difference": self.difference.to_json() if self.difference else None,
            "wins": self.wins,
            "ties": self.ties,
            "losses": self.losses,
            "undecided": self.undecided,
            "winner": self.winner.policy if self.winner else None,
        }


@dataclass(frozen=True)
class Verdict:
    """The answer for a person who decides; `outcome` is the same for a program.

    Attributes:
        outcome: "aligned", "mixed", "no_difference", "sft" or "not_measured".
        headline: one sentence.
        sentences: the numbers behind it and their limits.
    """

    outcome: str
    headline: str
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.headline, *self.sentences))


def compare(
    judge: str,
    a: Contender,
    b: Contender,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    clusters: ArrayLike,
    confidence: float,
) -> Comparison:
    """Compare two contenders on the same prompts (P scores and clusters, NaN undecided), with paired intervals."""
    difference_P = np.asarray(scores_a, dtype=np.float64) - np.asarray(scores_b, dtype=np.float64)
    decided_P = np.isfinite(difference_P)
    won_P = np.where(decided_P, 0.5 + 0.5 * np.sign(np.nan_to_num(difference_P)), np.nan)
    wins, ties, losses = (int((won_P == points).sum()) for points in (1.0, 0.5, 0.0))
    return Comparison(
        judge=judge,
        a=a,
        b=b,
        win_rate=intervals.win_rate(scores_a, scores_b, clusters, confidence),
        difference=intervals.difference(scores_a, scores_b, clusters, confidence),
        wins=wins,
        ties=ties,
        losses=losses,
        undecided=int((~decided_P).sum()),
    )


def decide(comparisons: Sequence[Comparison], judge: str | None, confidence: float) -> Verdict:
    """Say which of aligned and SFT wins by the deciding judge, both at their tuned temperature, and no more.

    Aligned wins only when it beats SFT **and**, where it was trained, SFT given the same compute: both intervals
    have to exclude one half, so that no correction for two comparisons is needed.
    """
    against = {
        comparison.b.policy: comparison
        for comparison in comparisons
        if comparison.judge == judge
        and comparison.a == Contender("aligned", "tuned")
        and comparison.b.decoding == "tuned"
    }
    sft, longer = against.get("sft"), against.get("sft_longer")
    if judge is None or sft is None or sft.win_rate is None:
        reason = "no judge is configured" if judge is None else f"{judge} decided on no prompt for both"
        return Verdict("not_measured", f"Aligned and SFT cannot be compared: {reason}.", ())
    if not sft.win_rate.measured:
        reason = f"{_groups(sft.win_rate)}, and an interval at {confidence:.0%} takes {fewest_groups(confidence)}"
        headline = f"Aligned and SFT cannot be compared: the prompts are of {reason}."
        return Verdict("not_measured", headline, (_numbers(sft, confidence),))
    outcome, headline = _headline(sft, longer)
    sentences = [_numbers(comparison, confidence) for comparison in (sft, longer) if comparison]
    if outcome == "no_difference":
        sentences.append("An interval that includes 50% does not show that the two are equal either.")
    others = [other for other in comparisons if other is not sft and other is not longer]
    others = [other for other in others if other.win_rate and other.win_rate.measured]
    if others:
        sentences.append(
            f"The other {len(others)} comparisons on this page are descriptive: at {confidence:.0%} each, "
            f"about {len(others) * (1 - confidence):.1f} of them would favour a side by chance alone."
        )
    return Verdict(outcome, headline, tuple(sentences))


def _headline(sft: Comparison, longer: Comparison | None) -> tuple[str, str]:
    judge = f"by {sft.judge}"
    if sft.winner is None:
        return "no_difference", f"No difference shown between aligned and SFT {judge}."
    if sft.winner == sft.b:
        return "sft", f"SFT wins over aligned {judge}."
    if longer is None:
        return "aligned", f"Aligned wins over SFT {judge}."
    if longer.winner == longer.a:
        return "aligned", f"Aligned wins over SFT and over SFT trained as long {judge}."
    if longer.winner is None:
        return "mixed", f"Aligned wins over SFT {judge}, but no difference from SFT trained as long is shown."
    return "mixed", f"Aligned wins over SFT {judge}, but SFT trained as long wins over aligned."


def _numbers(comparison: Comparison, confidence: float) -> str:
    rate = comparison.win_rate
    if rate is None:
        return f"{comparison.judge} decided on no prompt for both {comparison.a} and {comparison.b}."
    undecided = f", {comparison.undecided} undecided left out" if comparison.undecided else ""
    limits = f"{confidence:.0%} interval {rate.low:.1%} to {rate.high:.1%}"
    return (
        f"{_capital(str(comparison.a))} against {comparison.b}: win rate {rate.value:.1%} "
        f"({limits if rate.measured else 'interval not measured'}; {comparison.wins} wins, {comparison.ties} ties "
        f"counted half, {comparison.losses} losses on {rate.n} prompts in {_groups(rate)}{undecided})."
    )


def _groups(rate: Interval) -> str:
    return f"{rate.groups} group" + ("s" if rate.groups > 1 else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
