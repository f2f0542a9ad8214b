from __future__ import annotations

import math

import numpy as np
import pytest

from understudy.evaluation.intervals import Bootstrap
from understudy.evaluation.verdict import Contender, compare, decide

BOOTSTRAP = Bootstrap(confidence=0.95, samples=400, seed=1)
ALIGNED, SFT, LONGER = (Contender(name, "tuned") for name in ("aligned", "sft", "sft_longer"))


def scores_for(wins: int, ties: int, losses: int) -> tuple[list[float], list[float]]:
    a = [1.0] * wins + [0.5] * ties + [0.0] * losses
    return a, [0.0] * wins + [0.5] * ties + [1.0] * losses


def versus(other: Contender, wins: int, ties: int, losses: int, judge: str = "valid"):
    return compare(judge, ALIGNED, other, *scores_for(wins, ties, losses), BOOTSTRAP)


def test_win_rate_counts_ties_half_and_leaves_undecided_out():
    found = compare("valid", ALIGNED, SFT, [1, 1, 0, 0.5, math.nan, 1], [0, 0, 1, 0.5, 1, math.nan], BOOTSTRAP)
    assert (found.wins, found.ties, found.losses, found.undecided) == (2, 1, 1, 2)
    assert found.win_rate.value == pytest.approx(2.5 / 4)
    assert found.win_rate.n == 4
    assert found.difference.value == pytest.approx(1 / 4)


def test_comparison_is_antisymmetric():
    a, b = scores_for(30, 20, 50)
    forward = compare("valid", ALIGNED, SFT, a, b, BOOTSTRAP).win_rate
    backward = compare("valid", SFT, ALIGNED, b, a, BOOTSTRAP).win_rate
    assert (backward.value, backward.low, backward.high) == pytest.approx(
        (1 - forward.value, 1 - forward.high, 1 - forward.low)
    )


def test_pairing_narrows_the_difference():
    generator = np.random.default_rng(0)
    hardness = generator.normal(size=100)
    a, b = hardness + 0.1 * generator.normal(size=100), hardness + 0.1 * generator.normal(size=100)
    paired = compare("s", ALIGNED, SFT, a, b, BOOTSTRAP).difference
    unpaired = compare("s", ALIGNED, SFT, a, b[::-1], BOOTSTRAP).difference
    assert paired.high - paired.low < 0.3 * (unpaired.high - unpaired.low)


def test_verdict_no_difference():
    verdict = decide([versus(SFT, 26, 106, 18), versus(LONGER, 20, 110, 20)], "valid", 0.95)
    assert verdict.outcome == "no_difference"
    assert verdict.headline == "No difference shown between aligned and SFT by valid."
    assert "win rate 52.7% (95% interval" in verdict.sentences[0]
    assert "26 wins, 106 ties counted half, 18 losses on 150 prompts" in verdict.sentences[0]
    assert "does not show that the two are equal" in verdict.sentences[-1]


@pytest.mark.parametrize(
    ("sft", "longer", "outcome", "headline"),
    [
        ((90, 30, 30), (80, 40, 30), "aligned", "Aligned wins over SFT and over SFT trained as long by valid."),
        ((90, 30, 30), None, "aligned", "Aligned wins over SFT by valid."),
        (
            (90, 30, 30),
            (50, 50, 50),
            "mixed",
            "Aligned wins over SFT by valid, but no difference from SFT trained as long is shown.",
        ),
        (
            (90, 30, 30),
            (30, 30, 90),
            "mixed",
            "Aligned wins over SFT by valid, but SFT trained as long wins over aligned.",
        ),
        ((30, 30, 90), (90, 30, 30), "sft", "SFT wins over aligned by valid."),
        ((50, 50, 50), (90, 30, 30), "no_difference", "No difference shown between aligned and SFT by valid."),
    ],
)
def test_verdict_says_who_wins_and_no_more(sft, longer, outcome, headline):
    comparisons = [versus(SFT, *sft)] + ([versus(LONGER, *longer)] if longer else [])
    verdict = decide(comparisons, "valid", 0.95)
    assert (verdict.outcome, verdict.headline) == (outcome, headline)


def test_verdict_reads_only_the_deciding_judge_at_the_tuned_temperature():
    at_t1 = compare("valid", Contender("aligned", "T=1"), Contender("sft", "T=1"), *scores_for(99, 0, 1), BOOTSTRAP)
    other_judge = versus(SFT, 100, 0, 0, judge="other")
    verdict = decide([at_t1, other_judge, versus(SFT, 20, 60, 20)], "valid", 0.95)
    assert verdict.outcome == "no_difference"
    assert "other 2 comparisons on this page are descriptive" in verdict.sentences[-1]
    assert "about 0.1 of them" in verdict.sentences[-1]


def test_verdict_without_a_judge_or_a_decision_claims_nothing():
    assert decide([], None, 0.95).headline == "Aligned and SFT cannot be compared: no judge is configured."
    silent = compare("valid", ALIGNED, SFT, [math.nan], [1.0], BOOTSTRAP)
    verdict = decide([silent], "valid", 0.95)
    assert verdict.outcome == "not_measured"
    assert verdict.headline.endswith("valid decided on no prompt for both.")


def test_equal_policies_are_called_different_as_rarely_as_promised():
    """Of 300 ties in truth at 95%, 28 or more false claims have probability below 0.001."""
    generator = np.random.default_rng(2)
    claims = 0
    for _ in range(300):
        a, b = generator.choice([0.0, 1.0], (2, 100), p=[0.4, 0.6])
        claims += compare("valid", ALIGNED, SFT, a, b, BOOTSTRAP).winner is not None
    assert 4 <= claims < 28
