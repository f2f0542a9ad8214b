"""How often the gate errs on ties and how often it sees what it promises, on simulated evaluations.

Bounds allow three standard errors of the simulation: a right gate fails one of these tests with probability 0.0013.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from evaluation.gates import make_gate, make_scores

from understudy.evaluation.gate import decide_scores
from understudy.evaluation.gate.simulation import AGREEING, LOSSES, SHAPES, group_labels, planned, rate, width

ALPHA, POWER, NUM = 0.05, 0.8, 4000


@pytest.mark.parametrize("shape", SHAPES + LOSSES, ids=lambda shape: shape.name)
@pytest.mark.parametrize(("num_prompts", "per_group"), [(40, 1.0), (60, 1.0), (150, 1.0), (150, 2.1), (300, 5.0)])
def test_ties_pass_at_most_alpha_of_the_time(shape, num_prompts, per_group):
    effect = -0.05 if shape in LOSSES else 0.0  # at the margin of a guard, or a tie
    passed, failed = rate(shape, group_labels(num_prompts, per_group), effect, effect, ALPHA, NUM, seed=1)
    allowed = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / NUM)
    assert passed <= allowed
    assert failed <= allowed


@pytest.mark.parametrize("shape", SHAPES + LOSSES + AGREEING, ids=lambda shape: shape.name)
@pytest.mark.parametrize(
    ("num_prompts", "per_group", "largest"), [(232, 1.0, 32), (300, 1.3, 32), (60, 1.0, 20), (120, 3.0, 60)]
)
def test_ties_pass_at_most_alpha_of_the_time_with_one_large_group(shape, num_prompts, per_group, largest):
    effect = -0.05 if shape in LOSSES else 0.0
    passed, failed = rate(shape, group_labels(num_prompts, per_group, largest=largest), effect, effect, ALPHA, NUM, 1)
    allowed = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / NUM)
    assert passed <= allowed
    assert failed <= allowed


@pytest.mark.parametrize(
    "name", ["normal, models differ by group", "normal, largest group far off", "win, tie or loss"]
)
@pytest.mark.parametrize(("num_prompts", "per_group", "largest"), [(232, 1.0, 32), (300, 1.3, 32), (60, 1.0, 20)])
def test_one_large_group_is_not_taken_for_a_skewed_value(name, num_prompts, per_group, largest):
    """The skewness of the jackknife's influences had made some of these 3.8 times a plain t interval."""
    (shape,) = [shape for shape in SHAPES + AGREEING if shape.name == name]
    assert width(shape, group_labels(num_prompts, per_group, largest=largest), 0.0, ALPHA, 1000, seed=1) < 1.6


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("per_group", [1.0, 2.1, 5.0])
def test_the_planned_sample_has_the_promised_power(shape, per_group):
    effect = 0.1 if shape.bounded else 0.35
    num_prompts = planned(shape, per_group, effect, ALPHA, POWER, seed=9)
    layouts = [group_labels(num_prompts, per_group, seed=layout) for layout in range(10)]
    rates = [rate(shape, layout, effect, 0.0, ALPHA, 200, seed=2) for layout in layouts]
    seen, missed = (sum(column) / len(rates) for column in zip(*rates, strict=True))
    assert seen >= POWER - 3 * math.sqrt(POWER * (1 - POWER) / 2000)
    assert missed <= 0.001


def test_a_plain_t_test_would_not_do():
    """Rare losses at the margin: the plain test promotes far more often than one time in twenty, the gate does not."""
    shape, groups = LOSSES[0], group_labels(60, 1.0)
    drawn = shape.draw(np.random.default_rng(1), NUM, groups, -0.05)
    error = drawn.std(-1, ddof=1) / math.sqrt(60)
    plain = float((drawn.mean(-1) - 1.671 * error > -0.05).mean())
    passed, _ = rate(shape, groups, -0.05, -0.05, ALPHA, NUM, seed=1)
    assert plain > 0.15 and passed <= 0.05


def test_whole_decisions_on_ties_keep_alpha_with_holm_and_with_guards():
    """Five independent judges, any of which is enough, and equal models: at most alpha promotes by chance."""
    others = ("b", "c", "d", "e")
    judges = ("judge:quality", *(f"judge:{name}" for name in others))
    rules = [{"metric": name, "decoding": "tuned", "minimum_improvement": 0, "detect": 0.3} for name in judges]
    corrected, naive = make_gate(primary=rules, primaries_needed="any"), 0
    promoted, num = 0, 600
    generator = np.random.default_rng(11)
    for _ in range(num):
        drawn = [generator.normal(0, 1, (5, 60)) for _ in range(2)]
        sides = [
            make_scores(name, values[0], judges=dict(zip(others, values[1:], strict=True)))
            for name, values in zip(("champion", "aligned"), drawn, strict=True)
        ]
        found = decide_scores(corrected, *sides)
        promoted += found.verdict == "pass"
        naive += min(rule.p_value for rule in found.rules) < ALPHA
    allowed = ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / num)
    assert promoted / num <= allowed < naive / num


def test_guards_need_no_correction_because_all_of_them_must_pass():
    """At the boundary of one guard, with all else excellent, promotion happens at most alpha of the time."""
    guards = [{"metric": "judge:b", "decoding": "tuned", "margin": 0.1}]
    guards += [{"metric": "length_tokens", "decoding": "tuned", "max_drift": 0.2}]
    generator, promoted, num = np.random.default_rng(3), 0, 400
    gate = make_gate(*guards)
    for _ in range(num):
        base = generator.normal(0, 1, 80)
        lengths = generator.normal(40, 5, 80)
        champion = make_scores("champion", base, judges={"b": base}, lengths=lengths)
        worse = base - 0.1 + generator.normal(0, 0.5, 80)  # exactly at the margin
        challenger = make_scores("aligned", base + generator.normal(0.5, 0.5, 80), judges={"b": worse}, lengths=lengths)
        promoted += decide_scores(gate, champion, challenger).verdict == "pass"
    assert 0.01 < promoted / num <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / num)
