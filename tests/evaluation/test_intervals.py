from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, t

from understudy.evaluation import inference
from understudy.evaluation.inference import fewest_groups
from understudy.evaluation.intervals import auc, cluster_ids, difference, mean, of_set, win_rate

CONFIDENCE = 0.95
SIMULATIONS = 400
# A 95% interval, or one that is more careful, covers less often than this with probability below 0.001.
FEWEST = binom.ppf(0.001, SIMULATIONS, 0.95)


def alone(values):
    return np.arange(np.shape(values)[-1])


def mean_alone(values, **bounds):
    return mean(values, alone(values), CONFIDENCE, **bounds)


def coverage(draw, truth: float, interval) -> int:
    generator = np.random.default_rng(11)
    found = [interval(draw(generator)) for _ in range(SIMULATIONS)]
    return sum(one.low <= truth <= one.high for one in found)


def test_mean_covers_its_truth_as_often_as_it_says():
    for draw in (lambda g: g.exponential(2.0, 60), lambda g: g.normal(2.0, 1.0, 8)):
        assert coverage(draw, 2.0, mean_alone) >= FEWEST


def test_an_interval_is_hardly_wider_than_students_where_that_is_right():
    values = np.random.default_rng(0).normal(size=100)
    found, half = mean_alone(values), 1.984217 * values.std(ddof=1) / 10
    assert half < (found.high - found.low) / 2 < 1.2 * half


@pytest.mark.parametrize("off", [-15.0, 15.0, 25.0])
def test_one_large_group_far_from_the_others_leaves_an_interval_of_use(off):
    """300 chrF scores in 206 groups, one of 32: taken for skewness it gave 7 to 40 for 15 below."""
    generator = np.random.default_rng(5)
    sizes = np.r_[32, np.repeat([1, 2, 3], [157, 33, 15])]
    labels = np.repeat(np.arange(206), sizes)
    values = np.clip(generator.normal(35, 18, 300) + off * (labels == 0), 0, 100)
    found, plain = mean(values, labels, CONFIDENCE, (0, 100)), inference.mean(values, labels)
    half = t.ppf(0.975, float(plain.effective_groups) - 1) * math.sqrt(float(plain.variance))
    assert 0 < plain.effective_groups < 70
    assert half < found.value - found.low < 2 * half and half < found.high - found.value < 2 * half


def test_equal_groups_have_the_skewness_of_their_means():
    values, labels = np.random.default_rng(0).exponential(size=120), np.arange(120) // 3
    means = values.reshape(40, 3).mean(1)
    expected = ((means - means.mean()) ** 3).mean() / means.std() ** 3 / math.sqrt(40)
    found = inference.mean(values, labels)
    assert float(found.skewness) == pytest.approx(expected)
    assert float(found.unevenness) == pytest.approx(0.0, abs=1e-12)


def test_win_rate_covers_with_ties_and_near_the_edge():
    for chances in ([0.3, 0.5, 0.2], [0.9, 0.08, 0.02]):
        truth = chances[0] + chances[1] / 2

        def draw(generator, chances=chances):
            return generator.choice([1.0, 0.0, -1.0], 80, p=chances)

        assert coverage(draw, truth, lambda v: win_rate(v, 0 * v, alone(v), CONFIDENCE)) >= FEWEST


def test_report_and_gate_have_the_same_limits():
    generator = np.random.default_rng(7)
    ours, theirs, groups = generator.normal(0.2, 1, 90), generator.normal(size=90), np.arange(90) // 3
    gap = ours - theirs
    gate = inference.mean(gap, groups, np.abs(gap).max(), bounds=(-np.abs(gap).max(), np.abs(gap).max()))
    found = difference(ours, theirs, groups, CONFIDENCE)
    assert (found.low, found.high) == (float(gate.low(0.025)), float(gate.high(0.025)))
    won = inference.mean(0.5 * np.sign(gap), groups, 0.5, bounds=(-0.5, 0.5))
    found = win_rate(ours, theirs, groups, CONFIDENCE)
    assert (found.low - 0.5, found.high - 0.5) == pytest.approx((float(won.low(0.025)), float(won.high(0.025))))


def test_copies_of_a_prompt_add_nothing():
    values = np.random.default_rng(0).normal(size=50)
    once = mean_alone(values)
    copied = mean(np.repeat(values, 4), np.repeat(np.arange(50), 4), CONFIDENCE)
    unaware = mean_alone(np.repeat(values, 4))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=0.03)
    assert (copied.n, copied.groups) == (200, 50)
    assert unaware.high - unaware.low < 0.6 * (once.high - once.low)


def test_cluster_means_cover_when_prompts_of_a_group_agree():
    labels = np.repeat(np.arange(40), 3)

    def draw(generator):
        return np.repeat(generator.normal(size=40), 3) + 0.3 * generator.normal(size=120)

    assert coverage(draw, 0.0, lambda v: mean(v, labels, CONFIDENCE)) >= FEWEST
    assert coverage(draw, 0.0, mean_alone) < FEWEST  # what ignoring the groups would claim


def test_nan_is_left_out_and_counted():
    found = mean_alone([1.0, math.nan, 3.0, math.nan])
    assert (found.value, found.n, found.groups) == (2.0, 2, 2)
    assert mean_alone([math.nan]) is None and mean_alone([]) is None
    assert difference([1.0, math.nan], [math.nan, 1.0], [0, 1], CONFIDENCE) is None


def test_all_equal_values_leave_room_for_what_was_not_seen():
    found = mean_alone([1.0] * 10, bounds=(0, 1))
    assert found.low == pytest.approx(0.025 ** (1 / 10))  # the exact binomial bound
    assert found.high == 1.0
    won, tied = (win_rate([score] * 10, [0.0] * 10, range(10), CONFIDENCE) for score in (1.0, 0.0))
    assert (won.low, won.high) == (pytest.approx(0.025 ** (1 / 10)), 1.0)
    assert tied.low == pytest.approx(0.5 * 0.025 ** (1 / 10)) and tied.high == pytest.approx(1 - tied.low)
    # Without known bounds, too: the difference could have been another one.
    same = difference([2.5] * 10, [2.5] * 10, range(10), CONFIDENCE)
    assert same.low < -0.5 and same.high > 0.5
    assert mean_alone([7.0] * 10).low < 5
    assert of_set(1.0, [1.0] * 10, 10, CONFIDENCE, (0, 1)).low == pytest.approx(0.025 ** (1 / 10))


def test_a_share_has_the_exact_limits_of_as_many_independent_prompts():
    hits = np.zeros(150)
    hits[:3] = 1.0
    exact = binomtest(3, 150).proportion_ci(CONFIDENCE, "exact")
    found = mean_alone(hits)
    assert (found.low, found.high) == (pytest.approx(exact.low), pytest.approx(exact.high))
    # Two by two: one group of two hits and one of one are worth fewer prompts than three hits apart.
    pairs = mean(hits, np.arange(150) // 2, CONFIDENCE)
    assert 0 < pairs.low < exact.low and exact.high < pairs.high < 0.08
    groups = np.arange(100) // 5
    for chance, alike in ((0.02, 0.0), (0.1, 0.3), (0.5, 0.3)):

        def draw(generator, chance=chance, alike=alike):
            size = (20, 1)
            spread = 1 / alike - 1 if alike else math.inf
            chances = generator.beta(chance * spread, (1 - chance) * spread, size) if alike else np.full(size, chance)
            return (generator.random((20, 5)) < chances).ravel().astype(float)

        assert coverage(draw, chance, lambda v: mean(v, groups, CONFIDENCE)) >= FEWEST


def test_none_and_all_of_n_have_the_exact_limits_without_bounds_being_named():
    none, every = mean_alone(np.zeros(8)), mean_alone(np.ones(8))
    assert (none.low, none.high) == (0.0, pytest.approx(0.369417, abs=1e-6))  # 1 - 0.025^(1/8)
    assert (every.low, every.high) == (pytest.approx(0.630583, abs=1e-6), 1.0)
    exact = binomtest(0, 8).proportion_ci(CONFIDENCE, "exact")
    assert none.high == pytest.approx(exact.high)
    # Six groups, two of them of two prompts, are worth 64 / 12 prompts: nothing shows that prompts of a group differ.
    grouped = mean(np.zeros(8), [0, 0, 1, 1, 2, 3, 4, 5], CONFIDENCE)
    assert (grouped.low, grouped.high) == (0.0, pytest.approx(1 - 0.025 ** (12 / 64)))
    # What has other bounds, or none and other values, is no share.
    assert mean_alone(np.zeros(8), bounds=(0, 100)).high > 1
    assert mean_alone(np.full(8, 0.5)).high > 0.8 and mean_alone(np.full(8, 2.0)).high > 2


@pytest.mark.parametrize(("num_groups", "per_group"), [(8, 1), (20, 1), (12, 3)])
@pytest.mark.parametrize("chance", [0.02, 0.1, 0.35, 0.97])
def test_a_share_errs_on_each_side_at_most_one_time_in_forty_with_few_hits_or_none(chance, num_groups, per_group):
    """Prompts of a group agree altogether; most draws of the smallest chance have no hit at all."""
    generator, labels = np.random.default_rng(13), np.repeat(np.arange(num_groups), per_group)
    draws = np.repeat(generator.random((SIMULATIONS, num_groups)) < chance, per_group, axis=1).astype(float)
    found = [mean(draw, labels, CONFIDENCE) for draw in draws]
    most = binom.ppf(0.999, SIMULATIONS, 0.025)
    assert sum(one.low > chance for one in found) <= most and sum(one.high < chance for one in found) <= most
    assert all(0 <= one.low <= one.value <= one.high <= 1 for one in found)


def test_groups_that_agree_by_coincidence_are_not_prompts_that_all_agree():
    """Six groups with 13 wins of 20 each: their means have no variance, and their 42 losses were seen."""
    won = np.tile(np.repeat([1.0, -1.0], [13, 7]), 6)
    found = win_rate(won, 0 * won, np.repeat(np.arange(6), 20), CONFIDENCE)
    assert found.value == pytest.approx(0.65)
    spread = 1.5 * 0.5 / (120 + 2)
    assert found.value - found.low == pytest.approx(2.570582 * spread)


def test_too_few_groups_have_a_number_and_no_interval():
    assert [fewest_groups(confidence) for confidence in (0.75, 0.9, 0.95, 0.99)] == [3, 5, 6, 8]
    one = mean([1.0], [0], CONFIDENCE)
    assert (one.value, one.measured, one.groups) == (1.0, False, 1) and not one.excludes(0.0)
    assert one.to_json() == {"value": 1.0, "low": None, "high": None, "n": 1, "groups": 1}
    wins = np.repeat([1.0, 0.0, 1.0, 0.0], [11, 9, 12, 8])
    two = win_rate(wins, 1 - wins, np.repeat([0, 1], 20), CONFIDENCE)
    assert (two.value, two.measured, two.n, two.groups) == (0.575, False, 40, 2)
    assert not mean([1.0] * 5, range(5), CONFIDENCE, (0, 1)).measured
    assert mean([1.0] * 6, range(6), CONFIDENCE, (0, 1)).low > 0.5


def test_weighted_mean_is_of_sums_not_of_ratios():
    assert mean([10.0, 1.0], [0, 1], CONFIDENCE, weights=[10.0, 4.0]).value == pytest.approx(11 / 14)
    assert mean([1.0, 5.0], [0, 1], CONFIDENCE, weights=[2.0, 0.0]).value == pytest.approx(0.5)


def test_auc_by_hand():
    found = auc([0.9, 0.5, 0.4], [0.1, 0.5, 0.8], range(3), CONFIDENCE)
    assert found.value == pytest.approx((3 + 1.5 + 1) / 9)  # wins of each positive, ties half


def test_auc_interval_covers_one_half_under_the_null_with_groups_too():
    assert coverage(lambda g: g.normal(size=(2, 50)), 0.5, lambda s: auc(*s, alone(s), CONFIDENCE)) >= FEWEST
    labels = np.repeat(np.arange(20), 3)

    def draw(generator):
        return generator.normal(size=(2, 20))[:, labels] + 0.3 * generator.normal(size=(2, 60))

    assert coverage(draw, 0.5, lambda s: auc(*s, labels, CONFIDENCE)) >= FEWEST
    assert coverage(draw, 0.5, lambda s: auc(*s, alone(s), CONFIDENCE)) < FEWEST


def test_clusters_join_by_group_and_by_prompt_transitively():
    labels = cluster_ids(["a", "a", "b", "c", "d"], ["p", "q", "q", "r", "s"])
    assert labels[0] == labels[1] == labels[2]
    assert len({labels[0], labels[3], labels[4]}) == 3
