"""Intervals over seeds and prompts: those of the definition, not of a lucky draw, and they hold the truth."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from experiments.bar1.seeds import expanded_tail
from experiments.real import coverage, resampling
from experiments.real.resampling import Paired, Units, effective_units, intercept, mean, resampled
from understudy.evaluation.intervals import Floats


def _share(total_KN: Floats) -> Floats:
    """Mean of a column, from the totals of one and of it."""
    found: Floats = total_KN[1] / total_KN[0]
    return found


def _tables(value_SC: Floats) -> Floats:
    """One prompt a cluster."""
    return np.stack([np.ones_like(value_SC), value_SC])


def test_intervals_are_those_of_resampling_prompt_by_prompt() -> None:
    draw, cluster_P = np.random.default_rng(5), np.asarray([0, 0, 0, 1, 2, 2, 3])
    value_SP = draw.random((3, 7))
    value_SP[:, 0] = np.nan  # undecided
    found = []
    for seeds in itertools.product(range(3), repeat=3):  # each as likely as the others
        seed_S = np.bincount(seeds, minlength=3)
        for cluster_C in resampling._cluster_draws(4, 10):
            weight_SP = (seed_S[:, None] * cluster_C[cluster_P])[:, 1:]
            if weight_SP.any():
                found.append(float((weight_SP * value_SP[:, 1:]).sum() / weight_SP.sum()))
    asked: list[Units] = []
    interval = mean(Paired(value_SP, cluster_P), lambda units: asked.append(units) or 0.06)  # type: ignore[func-returns-value]
    assert interval is not None and interval.value == pytest.approx(value_SP[:, 1:].mean())
    assert (interval.low, interval.high) == pytest.approx(np.quantile(found, [0.06, 0.94]), abs=1e-3)
    assert (asked[0].num_seeds, asked[0].num_clusters) == (3, 4)


def test_tails_are_those_of_students_t_by_as_many_units_as_are_effective() -> None:
    # P(Z < sqrt(5/4) * t) for the 2.5% quantile of t with 4 degrees of freedom, -2.776: P(Z < -3.104).
    assert resampling.expanded(Units(5, 72, 5.0)) == pytest.approx(0.000954, abs=2e-6)
    assert resampling.expanded(Units(5, 72, 1e6)) == pytest.approx(0.025, abs=1e-6)


def test_effective_units_are_those_of_what_varies() -> None:
    draw = np.random.default_rng(0)
    seed_S, cluster_C = draw.normal(size=5), 0.8 * draw.normal(size=40)
    by_seeds = np.repeat(seed_S[:, None], 40, 1)
    by_clusters = np.repeat(cluster_C[None], 5, 0)
    assert effective_units(_tables(by_seeds), _share) == pytest.approx(5)
    assert effective_units(_tables(by_clusters), _share) == 10  # of 5 seeds no more are believed
    assert effective_units(_tables(by_clusters[:1]), _share) == pytest.approx(40)  # one seed says nothing of seeds
    assert effective_units(_tables(np.ones((5, 40))), _share) == 5  # nothing varies: the fewer
    variances = [float(np.var(each, ddof=1)) / len(each) for each in (seed_S, cluster_C)]
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 4 + variances[1] ** 2 / 39)
    assert 5 < freedom + 1 < 10
    assert effective_units(_tables(by_seeds + by_clusters), _share) == pytest.approx(freedom + 1)
    assert effective_units(1e-6 * _tables(by_seeds + by_clusters), _share) == pytest.approx(freedom + 1, rel=1e-3)
    twice = np.repeat(_tables(by_seeds + by_clusters), 2, 2)  # more prompts of the same clusters tell no more
    halves = twice.reshape(2, 5, 40, 2).sum(-1)
    assert effective_units(halves, _share) == pytest.approx(freedom + 1)


def test_effective_units_of_a_regression_are_those_of_its_residuals() -> None:
    """What length explains does not vary at equal length."""
    draw = np.random.default_rng(1)
    tilt_SC, cluster_C = draw.normal(size=(5, 40)), draw.normal(size=40)
    tilt_SC += draw.normal(size=(5, 1))  # seeds differ in length, and by it alone in wins
    win_SC = 0.5 + tilt_SC + cluster_C
    table_KSC = np.stack([np.ones((5, 40)), win_SC, tilt_SC, tilt_SC**2, tilt_SC * win_SC])
    assert effective_units(table_KSC[:2], _share) < 8
    assert effective_units(table_KSC, intercept) == 10


def test_draws_of_seeds_are_all_that_there_are_with_their_chances() -> None:
    count_QS, chance_Q = resampling._seed_draws(5)
    assert len(count_QS) == 126 and chance_Q.sum() == pytest.approx(1) and (count_QS.sum(1) == 5).all()
    assert (chance_Q @ count_QS).tolist() == pytest.approx([1.0] * 5)
    alone = chance_Q[(count_QS == 5).any(1)]
    assert alone.tolist() == pytest.approx([5**-5] * 5)
    many, equal = resampling._seed_draws(8)
    assert many.shape == (500, 8) and equal.tolist() == [1 / 500] * 500


@pytest.mark.parametrize("likely", [0.001, 1.0])  # the lowest eighth's chances are not enough, or are
def test_the_lower_limit_is_that_of_all_in_order(likely: float) -> None:
    found_N = np.random.default_rng(3).permutation(800).astype(np.float64)
    chance_N = np.where(found_N < 100, likely, 1.0)
    for tail in (0.05, 99.95, 100.15):
        below, wanted = 0.0, -1.0
        for value in range(800):
            below, wanted = below + (likely if value < 100 else 1.0), float(value)
            if below >= tail:
                break
        assert resampling._lower_limit(found_N, chance_N, tail) == wanted


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_limits_are_not_those_of_a_lucky_draw(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 2,000 random resamples the lower limit of five seeds moved by 1.4 points with the resampling's own seed."""
    pairs = coverage.wins(5, spread, np.random.default_rng(0))
    lows = []
    for seed in range(6):
        monkeypatch.setattr(resampling, "SEED", seed)
        resampling._cluster_draws.cache_clear()
        found = mean(pairs)
        assert found is not None
        lows.append(found.low)
    resampling._cluster_draws.cache_clear()
    assert max(lows) - min(lows) < 0.005


@pytest.mark.parametrize("num_seeds", coverage.SEEDS)
def test_intervals_hold_the_truth_whether_seeds_vary_or_not(num_seeds: int) -> None:
    """Of 200 each; of intervals that hold it in 95% fewer than 180 would in one of 1,000 runs."""
    for spread in (0.0, 0.05):
        ours = coverage.coverage(num_seeds, spread, 200, resampling.expanded)
        assert ours.share >= 0.9
        by_seeds = coverage.coverage(num_seeds, spread, 200, coverage.TAILS["by seeds alone"])
        assert by_seeds.share >= ours.share and by_seeds.width > 1.2 * ours.width
    plain = coverage.coverage(num_seeds, 0.1, 200, coverage.TAILS["plain"])
    ours = coverage.coverage(num_seeds, 0.1, 200, resampling.expanded)
    assert plain.share < 0.94 and ours.share > plain.share + 0.02


def test_who_decides_nothing_is_no_unit_and_ids_may_have_gaps() -> None:
    draw = np.random.default_rng(2)
    value_SP, cluster_P = draw.random((4, 30)), np.repeat(np.arange(10), 3)
    whole = mean(Paired(value_SP, cluster_P))
    more_SP = np.full((6, 60), np.nan)
    more_SP[1:5, :30] = value_SP
    padded = mean(Paired(more_SP, np.concatenate([7 + 3 * cluster_P, cluster_P])))
    assert whole is not None and whole == padded and whole.groups == 4


def test_values_that_are_all_equal_have_the_widest_interval_that_is_possible() -> None:
    """Of 72 clusters without a success more than 5% may have one: 0.95^72 is 2.5%."""
    zero = mean(Paired(np.zeros((5, 150)), np.arange(150) % 72))
    tied = mean(Paired(np.full((5, 150), 0.5), np.arange(150) % 72))
    assert zero is not None and tied is not None
    assert (zero.low, zero.high) == pytest.approx((0.0, 0.0499), abs=1e-4)
    assert (tied.low, tied.high) == pytest.approx((0.475, 0.525), abs=1e-4)


def test_the_page_has_the_coverage_that_is_measured() -> None:
    lines = list(coverage.lines(simulations=2))
    assert len(lines) == 1 + len(coverage.SEEDS) * len(coverage.SEED_SPREADS)
    assert [line.split()[:2] for line in lines[1:3]] == [["3", "0.00"], ["3", "0.02"]]


def test_a_statistic_of_one_seed_is_over_clusters_and_of_one_cluster_has_no_limits() -> None:
    value_SP, limits = np.asarray([[0.0, 1.0] * 30]), {}
    for name, cluster_P in (("own", np.arange(60)), ("one", np.zeros(60, dtype=np.int64))):
        columns: list[Floats] = [value_SP]
        statistic: Callable[[Floats], Floats] = _share
        found = resampled(Paired(value_SP, cluster_P), columns, statistic)
        assert found is not None and found.value == 0.5
        limits[name] = (found.low, found.high)
    assert limits["own"] == pytest.approx((0.37, 0.63), abs=0.02) and np.isnan(limits["one"]).all()
    assert expanded_tail(60, 0.95) < 0.025
