from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from understudy.evaluation import drift
from understudy.evaluation.drift import DriftMonitor, Reference, ks_distance

NAMES = ("length", "perplexity", "score")


@pytest.fixture(autouse=True)
def fewer_simulations(monkeypatch):
    monkeypatch.setattr(drift, "SIMULATIONS", 300)


def reference(seed: int, num_groups: int, per_group: float, alike: float) -> Reference:
    """Rows in groups of which a share `alike` of the variance is the group's; the length is whole numbers."""
    generator = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_groups), generator.geometric(1 / per_group, num_groups))
    values = {}
    for name in NAMES:
        between, within = generator.standard_normal(num_groups)[groups], generator.standard_normal(len(groups))
        values[name] = np.sqrt(alike) * between + np.sqrt(1 - alike) * within
    values["length"] = np.floor(np.exp(3.5 + 0.5 * values["length"]))
    return Reference(values, groups)


def live(generator: np.random.Generator, rows: int, shift: float = 0.0) -> dict[str, np.ndarray]:
    values = {name: generator.standard_normal(rows) for name in NAMES}
    values["perplexity"] += shift
    values["length"] = np.floor(np.exp(3.5 + 0.5 * values["length"]))
    return values


def alarms(num_streams: int, num_windows: int, alike: float, per_group: float) -> int:
    """Return in how many streams without drift any window raised an alarm."""
    found = 0
    for seed in range(num_streams):
        monitor = DriftMonitor(reference(seed, 60, per_group, alike), 0.05, 100, seed)
        generator = np.random.default_rng([seed, 1])
        found += any([monitor.test(live(generator, 100)).drift for _ in range(num_windows)])
    return found


@pytest.mark.parametrize(("alike", "per_group"), [(0.0, 4.0), (0.6, 4.0)], ids=["rows alone", "rows in groups"])
def test_streams_without_drift_alarm_as_rarely_as_stated(alike, per_group):
    """Of 60 streams at 5%, 8 or more have probability below 0.01."""
    assert alarms(60, 10, alike, per_group) < 8


def test_without_the_design_effect_and_the_simulation_groups_would_raise_false_alarms(monkeypatch):
    monkeypatch.setattr(drift, "_effective_size", lambda values, groups: float(len(values)))
    monkeypatch.setattr(
        drift, "_simulated", lambda reference, names, window, seed: {name: np.zeros(9) for name in names}
    )
    assert alarms(60, 10, alike=0.9, per_group=8.0) > 12


def test_a_shift_is_found_in_the_first_window_and_named():
    found = []
    for seed in range(20):
        monitor = DriftMonitor(reference(seed, 150, 2.0, 0.5), 0.05, 200, seed)
        window = monitor.test(live(np.random.default_rng([seed, 2]), 200, shift=0.8))
        found += [metric.metric for metric in window.metrics if metric.drift]
    assert found.count("perplexity") >= 18 and len(found) - found.count("perplexity") <= 1


def test_levels_of_all_metrics_and_windows_sum_to_the_rate():
    monitor = DriftMonitor(reference(0, 60, 2.0, 0.0), 0.05, 100, 0)
    total = sum(monitor.level(number) * len(NAMES) for number in range(1, 20_000))
    assert 0.0499 < total < 0.05
    assert monitor.nominal == pytest.approx(0.025) and monitor.simulated <= 0.03


def test_rows_of_one_group_count_as_fewer():
    values = np.random.default_rng(0).standard_normal(400)
    alone = drift._effective_size(values, np.arange(400))
    assert alone == pytest.approx(400, rel=0.1)
    assert drift._effective_size(np.repeat(values[:50], 8), np.repeat(np.arange(50), 8)) == pytest.approx(50, rel=0.1)


def test_the_distance_is_that_of_scipy_and_the_p_value_falls_with_it():
    generator = np.random.default_rng(3)
    for shift in (0.0, 0.3, 2.0):
        first, second = np.sort(generator.integers(0, 9, 80) * 1.0), np.sort(generator.integers(0, 9, 50) + shift)
        assert ks_distance(first, second) == pytest.approx(ks_2samp(first, second).statistic)
    monitor = DriftMonitor(reference(0, 200, 1.0, 0.0), 0.05, 200, 0)
    near, far = (monitor.test(live(generator, 200, shift)).metrics[1] for shift in (0.0, 3.0))
    assert near.p_value > near.level > 1e-9 > far.p_value and (near.drift, far.drift) == (False, True)
    assert far.distance > far.threshold and far.median - far.reference_median == pytest.approx(3, abs=0.4)


def test_values_that_are_missing_are_left_out_and_too_few_say_nothing():
    monitor = DriftMonitor(reference(0, 60, 2.0, 0.0), 0.05, 100, 0)
    values = live(np.random.default_rng(5), 100, shift=9.0)
    values["perplexity"][20:] = np.nan
    found = {metric.metric: metric for metric in monitor.test(values).metrics}
    assert (found["perplexity"].rows, found["perplexity"].distance, found["perplexity"].drift) == (20, None, False)
    assert found["length"].rows == 100 and found["length"].distance is not None
    lacking = reference(0, 60, 2.0, 0.0)
    lacking.values["score"][:] = np.nan
    assert DriftMonitor(lacking, 0.05, 100, 0).names == ["length", "perplexity"]
