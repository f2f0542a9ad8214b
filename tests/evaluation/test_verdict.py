from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from understudy.evaluation.verdict import Contender, compare, decide

CONFIDENCE = 0.95
ALIGNED, SFT, LONGER = (Contender(name, "tuned") for name in ("aligned", "sft", "sft_longer"))


def scores_for(wins: int, ties: int, losses: int) -> tuple[list[float], list[float]]:
    a = [1.0] * wins + [0.5] * ties + [0.0] * losses
    return a, [0.0] * wins + [0.5] * ties + [1.0] * losses


def alone(judge, a, b, scores_a, scores_b):
    return compare(judge, a, b, scores_a, scores_b, np.arange(len(scores_a)), CONFIDENCE)


def versus(other: Contender, wins: int, ties: int, losses: int, judge: str = "valid"):
    return alone(judge, ALIGNED, other, *scores_for(wins, ties, losses))


def test_win_rate_counts_ties_half_and_leaves_undecided_out():
    found = alone("valid", ALIGNED, SFT, [1, 1, 0, 0.5, math.nan, 1], [0, 0, 1, 0.5, 1, math.nan])
    assert (found.wins, found.ties, found.losses, found.undecided) == (2, 1, 1, 2)
    assert found.win_rate.value == pytest.approx(2.5 / 4)
    assert found.win_rate.n == 4
    assert found.difference.value == pytest.approx(1 / 4)


def test_comparison_is_antisymmetric():
    a, b = scores_for(30, 20, 50)
    forward = alone("valid", ALIGNED, SFT, a, b).win_rate
    backward = alone("valid", SFT, ALIGNED, b, a).win_rate
    assert (backward.value, backward.low, backward.high) == pytest.approx(
        (1 - forward.value, 1 - forward.high, 1 - forward.low)
    )


def test_pairing_narrows_the_difference():
    generator = np.random.default_rng(0)
    hardness = generator.normal(size=100)
    a, b = hardness + 0.1 * generator.normal(size=100), hardness + 0.1 * generator.normal(size=100)
    paired = alone("s", ALIGNED, SFT, a, b).difference
    unpaired = alone("s", ALIGNED, SFT, a, b[::-1]).difference
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
    at_t1 = alone("valid", Contender("aligned", "T=1"), Contender("sft", "T=1"), *scores_for(99, 0, 1))
    other_judge = versus(SFT, 100, 0, 0, judge="other")
    verdict = decide([at_t1, other_judge, versus(SFT, 20, 60, 20)], "valid", 0.95)
    assert verdict.outcome == "no_difference"
    assert "other 2 comparisons on this page are descriptive" in verdict.sentences[-1]
    assert "about 0.1 of them" in verdict.sentences[-1]


def test_verdict_without_a_judge_or_a_decision_claims_nothing():
    assert decide([], None, 0.95).headline == "Aligned and SFT cannot be compared: no judge is configured."
    silent = alone("valid", ALIGNED, SFT, [math.nan], [1.0])
    verdict = decide([silent], "valid", 0.95)
    assert verdict.outcome == "not_measured"
    assert verdict.headline.endswith("valid decided on no prompt for both.")


def test_a_verdict_needs_groups_whatever_their_prompts_say():
    wins = np.repeat([1.0, 0.0, 1.0, 0.0], [11, 9, 12, 8])
    found = compare("valid", ALIGNED, SFT, wins, 1 - wins, np.repeat([0, 1], 20), CONFIDENCE)
    verdict = decide([found], "valid", CONFIDENCE)
    assert found.winner is None and verdict.outcome == "not_measured"
    assert verdict.headline == (
        "Aligned and SFT cannot be compared: the prompts are of 2 groups, and an interval at 95% takes 6."
    )
    assert "win rate 57.5% (interval not measured; 23 wins, 0 ties" in verdict.sentences[0]
    assert "17 losses on 40 prompts in 2 groups)" in verdict.sentences[0]
    five = compare("valid", ALIGNED, SFT, [1.0] * 100, [0.0] * 100, np.arange(100) % 5, CONFIDENCE)
    six = compare("valid", ALIGNED, SFT, [1.0] * 100, [0.0] * 100, np.arange(100) % 6, CONFIDENCE)
    assert (five.winner, six.winner) == (None, ALIGNED)


def independent(generator, num_groups):
    return generator.choice([-1.0, 0.0, 1.0], (num_groups, 25), p=[0.35, 0.3, 0.35])


def ahead_by_group(generator, num_groups):
    """Models that differ by group: in each one or the other wins three of four prompts, by chance of training."""
    chance = generator.choice([0.25, 0.75], (num_groups, 1))
    return np.where(generator.random((num_groups, 25)) < chance, 1.0, -1.0)


def one_prompt_each(generator, num_groups):
    return generator.choice([-1.0, 1.0], (num_groups, 1))


@pytest.mark.parametrize("draw", [independent, ahead_by_group, one_prompt_each])
@pytest.mark.parametrize("num_groups", [2, 3, 4, 6, 10, 40])
def test_equal_policies_are_called_different_as_rarely_as_promised(draw, num_groups):
    """If one tie in twenty is called a win, more than 39 of 400 are with probability below 0.001."""
    generator, claims, num = np.random.default_rng(2), 0, 400
    for _ in range(num):
        gain = draw(generator, num_groups)
        hardness = generator.normal(size=gain.shape)  # of the prompt: it is both policies' and pairs them
        groups = np.repeat(np.arange(num_groups), gain.shape[1])
        sides = (hardness + gain).ravel(), hardness.ravel()
        claims += compare("valid", ALIGNED, SFT, *sides, groups, CONFIDENCE).winner is not None
    assert claims <= 39 and binom.sf(39, num, 0.05) < 0.001
    if num_groups < 6:
        assert claims == 0


def test_a_true_win_is_seen_from_few_groups_of_many_prompts():
    generator = np.random.default_rng(4)
    gain = generator.choice([-1.0, 1.0], (6, 25), p=[0.25, 0.75]).ravel()
    groups = np.repeat(np.arange(6), 25)
    assert compare("valid", ALIGNED, SFT, gain, 0 * gain, groups, CONFIDENCE).winner == ALIGNED
