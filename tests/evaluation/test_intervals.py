from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from understudy.evaluation.intervals import Bootstrap, cluster_ids

BOOTSTRAP = Bootstrap(confidence=0.95, samples=400, seed=3)
SIMULATIONS = 400
# A correct 95% interval misses outside these counts with probability below 0.002 (two-sided, exact binomial);
# real small-sample intervals may be a little narrow, so the lower bound is that of 92%.
FEWEST, MOST = binom.ppf(0.001, SIMULATIONS, 0.92), binom.ppf(0.999, SIMULATIONS, 0.95)


def coverage(draw, truth: float, interval) -> int:
    generator = np.random.default_rng(11)
    found = [interval(draw(generator)) for _ in range(SIMULATIONS)]
    return sum(one.low <= truth <= one.high for one in found)


def test_mean_covers_its_truth_as_often_as_it_says():
    covered = coverage(lambda g: g.exponential(2.0, 60), 2.0, BOOTSTRAP.mean)
    assert FEWEST <= covered <= MOST


def test_mean_of_eight_covers_too():
    covered = coverage(lambda g: g.normal(1.0, 1.0, 8), 1.0, BOOTSTRAP.mean)
    assert FEWEST <= covered <= MOST


def test_win_rate_covers_with_ties_and_near_the_edge():
    points = np.array([0.0, 0.5, 1.0])
    for probabilities in ([0.2, 0.5, 0.3], [0.02, 0.08, 0.9]):
        truth = float(points @ probabilities)
        covered = coverage(
            lambda g, p=probabilities: g.choice(points, 80, p=p), truth, lambda v: BOOTSTRAP.mean(v, bounds=(0, 1))
        )
        assert covered >= FEWEST


def test_clusters_widen_the_interval_as_copies_deserve():
    values = np.random.default_rng(0).normal(size=50)
    alone, copied = BOOTSTRAP.mean(values), BOOTSTRAP.mean(np.repeat(values, 4), np.repeat(np.arange(50), 4))
    unaware = BOOTSTRAP.mean(np.repeat(values, 4))
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high))
    assert copied.n == 200
    assert unaware.high - unaware.low == pytest.approx((alone.high - alone.low) / 2, rel=0.1)


def test_cluster_means_cover_when_prompts_of_a_group_agree():
    labels = np.repeat(np.arange(40), 3)

    def draw(generator):
        return np.repeat(generator.normal(size=40), 3) + 0.3 * generator.normal(size=120)

    assert coverage(draw, 0.0, lambda v: BOOTSTRAP.mean(v, labels)) >= FEWEST
    assert coverage(draw, 0.0, BOOTSTRAP.mean) < FEWEST  # what ignoring the groups would claim


def test_nan_is_left_out_and_counted():
    found = BOOTSTRAP.mean([1.0, math.nan, 3.0, math.nan])
    assert (found.value, found.n) == (2.0, 2)
    assert BOOTSTRAP.mean([math.nan]) is None
    assert BOOTSTRAP.mean([]) is None


def test_all_equal_values_leave_room_for_what_was_not_seen():
    found = BOOTSTRAP.mean([1.0] * 10, bounds=(0, 1))
    assert found.low == pytest.approx(0.025 ** (1 / 10))  # the exact binomial bound
    assert found.high == 1.0
    ties = BOOTSTRAP.mean([0.5] * 10, bounds=(0, 1))
    assert ties.low == pytest.approx(0.5 * 0.025 ** (1 / 10))
    assert ties.high == pytest.approx(1 - ties.low)


def test_three_wins_of_three_prove_nothing():
    assert not BOOTSTRAP.mean([1.0, 1.0, 1.0], bounds=(0, 1)).excludes(0.5)


def test_ratio_is_of_sums_not_of_means():
    assert BOOTSTRAP.ratio([10.0, 1.0], [10.0, 4.0]).value == pytest.approx(11 / 14)
    assert BOOTSTRAP.ratio([1.0, 5.0], [2.0, 0.0]).value == pytest.approx(0.5)


def test_same_seed_same_interval_other_seed_other():
    values = np.random.default_rng(1).normal(size=30)
    assert BOOTSTRAP.mean(values) == Bootstrap(0.95, 400, 3).mean(values)
    assert BOOTSTRAP.mean(values) != Bootstrap(0.95, 400, 4).mean(values)


def test_auc_by_hand():
    found = BOOTSTRAP.auc([0.9, 0.5, 0.4], [0.1, 0.5, 0.8])
    assert found.value == pytest.approx((3 + 1.5 + 1) / 9)  # wins of each positive, ties half


def test_auc_interval_covers_one_half_under_the_null():
    def draw(generator):
        return generator.normal(size=(2, 50))

    assert FEWEST <= coverage(draw, 0.5, lambda s: BOOTSTRAP.auc(s[0], s[1])) <= MOST


def test_clusters_join_by_group_and_by_prompt_transitively():
    labels = cluster_ids(["a", "a", "b", "c", "d"], ["p", "q", "q", "r", "s"])
    assert labels[0] == labels[1] == labels[2]
    assert len({labels[0], labels[3], labels[4]}) == 3
