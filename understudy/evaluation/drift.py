"""Has what comes in now the distribution that the model was trained for? Two-sample tests on windows of a stream.

For each metric the Kolmogorov-Smirnov distance D between the reference and the window is compared with a threshold.
The thresholds keep the chance that a stream **without** drift ever raises an alarm, however long it is watched, below
`false_alarm`: window k of M metrics is tested at level false_alarm / (k (k + 1) M), and those levels sum to it
(union bound; no independence is assumed, and all windows meet the same reference).

Two things keep the nominal level honest. Reference rows of one group are alike, so the reference counts as fewer rows
(Kish's design effect, from the variance between groups). And no-drift windows are simulated from the reference
itself, by groups; where they exceed the threshold more often than they should, it is raised to what was simulated.
Assumed: the rows of a live window are independent draws. One client that repeats itself a thousand times is drift.

Shape legend: R reference rows, W rows of a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy.evaluation.intervals import Floats

MIN_ROWS = 30  # of a window, and of a metric in it
SIMULATIONS = 2000


@dataclass(frozen=True)
class Reference:
    """What no drift looks like: per metric one value a row (R each, NaN where it could not be computed)."""

    values: dict[str, Floats]
    groups: NDArray[np.int64]


@dataclass(frozen=True)
class MetricDrift:
    """One metric in one window.

    Attributes:
        metric: its name.
        rows: live rows with a value.
        distance: largest difference of the two cumulative distributions, 0 to 1; None with too few rows.
        threshold: what it must exceed to count as drift.
        p_value: chance of such a distance without drift.
        level: below which it counts.
        median: of the window.
        reference_median: of the reference.
        drift: whether it does.
    """

    metric: str
    rows: int
    distance: float | None
    threshold: float | None
    p_value: float | None
    level: float
    median: float | None
    reference_median: float
    drift: bool


@dataclass(frozen=True)
class Window:
    """The test of one window; `number` counts from 1."""

    number: int
    rows: int
    metrics: list[MetricDrift]

    @property
    def drift(self) -> bool:
        """Whether any metric drifted."""
        return any(metric.drift for metric in self.metrics)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "window": self.number,
            "rows": self.rows,
            "drift": self.drift,
            "metrics": list(map(asdict, self.metrics)),
        }


class DriftMonitor:
    """Tests window after window against a reference and spends the false-alarm rate on them.

    Args:
        reference: at least MIN_ROWS rows.
        false_alarm: chance that a stream without drift ever raises an alarm.
        window: rows of a full window, for the calibration.
        seed: of the simulation.

    Attributes:
        simulated: share of simulated no-drift windows that raise an alarm as the first window.
        nominal: the share that the first window may have.
        scale: per metric, by how much its thresholds were raised after the simulation (1: not at all).
    """

    def __init__(self, reference: Reference, false_alarm: float, window: int, seed: int) -> None:
        self.false_alarm, self.window = false_alarm, window
        self.names = [name for name, values in reference.values.items() if np.isfinite(values).sum() >= MIN_ROWS]
        self._finite = {name: np.sort(values[np.isfinite(values)]) for name, values in reference.values.items()}
        self._effective = {name: _effective_size(reference.values[name], reference.groups) for name in self.names}
        self.scale = dict.fromkeys(self.names, 1.0)
        self.number = 0
        self.nominal = self.level(1) * len(self.names)
        distances = _simulated(reference, self.names, window, seed)
        for name in self.names:
            allowed = self.threshold(name, window, self.level(1))
            simulated = float(np.quantile(distances[name], 1 - self.level(1), method="higher"))
            self.scale[name] = max(1.0, simulated / allowed)
        exceeded = [distances[name] > self.threshold(name, window, self.level(1)) for name in self.names]
        self.simulated = float(np.mean(np.any(exceeded, axis=0))) if exceeded else 0.0

    def level(self, number: int) -> float:
        """Return the level of each metric in window `number`; over all metrics and windows they sum to the rate."""
        return self.false_alarm / (number * (number + 1) * max(1, len(self.names)))

    def threshold(self, name: str, rows: int, level: float) -> float:
        """Return the distance that `rows` rows of a metric must exceed at a level."""
        from scipy.special import kolmogi

        return float(self.scale[name] * kolmogi(level) / math.sqrt(self._pairs(name, rows)))

    def test(self, values: Mapping[str, Floats]) -> Window:
        """Test the next window: per metric one value a row (W each, NaN where it could not be computed)."""
        self.number += 1
        rows = max((len(column) for column in values.values()), default=0)
        return Window(self.number, rows, [self._metric(name, values[name]) for name in self.names])

    def _metric(self, name: str, values: Floats) -> MetricDrift:
        from scipy.special import kolmogorov

        level, reference = self.level(self.number), self._finite[name]
        live = np.sort(values[np.isfinite(values)])
        median = float(np.median(live)) if len(live) else None
        if len(live) < MIN_ROWS:
            found = (None, None, None)
            return MetricDrift(name, len(live), *found, level, median, float(np.median(reference)), False)
        distance = ks_distance(reference, live)
        threshold = self.threshold(name, len(live), level)
        p_value = float(kolmogorov(math.sqrt(self._pairs(name, len(live))) * distance / self.scale[name]))
        return MetricDrift(
            name, len(live), distance, threshold, p_value, level, median, float(np.median(reference)),
            distance > threshold,
        )  # fmt: skip

    def _pairs(self, name: str, rows: int) -> float:
        return self._effective[name] * rows / (self._effective[name] + rows)


def ks_distance(first: Floats, second: Floats) -> float:
    """Return the largest difference of two empirical distribution functions; both sorted, ties allowed."""
    points = np.concatenate([first, second])
    below = [np.searchsorted(values, points, side="right") / len(values) for values in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def group_numbers(groups: Sequence[str]) -> NDArray[np.int64]:
    """Return one number per row, equal for rows of one group."""
    return np.unique(np.asarray(groups), return_inverse=True)[1].astype(np.int64)


def _effective_size(values: Floats, groups: NDArray[np.int64]) -> float:
    """Return how many independent rows a metric's reference is worth: R over its mean design effect at the deciles."""
    finite = np.isfinite(values)
    value_R, group_R = values[finite], np.unique(groups[finite], return_inverse=True)[1]
    effects = []
    for decile in np.unique(np.quantile(value_R, np.arange(0.1, 1.0, 0.1))):
        below_R = (value_R <= decile).astype(float)
        share = below_R.mean()
        if 0 < share < 1:
            between = np.bincount(group_R, below_R - share)
            effects.append(float((between**2).sum() / (len(value_R) * share * (1 - share))))
    return len(value_R) / max(1.0, float(np.mean(effects)) if effects else 1.0)


def _simulated(reference: Reference, names: Sequence[str], window: int, seed: int) -> dict[str, Floats]:
    """Return distances of simulated no-drift windows: the reference drawn anew by groups, the window row by row."""
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(reference.groups == group) for group in np.unique(reference.groups)]
    num_rows = len(reference.groups)
    distances: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(SIMULATIONS if names else 0):
        drawn = np.concatenate([members[index] for index in generator.integers(len(members), size=len(members))])
        live = generator.integers(num_rows, size=window)
        for name in names:
            column = reference.values[name]
            sides = [np.sort(part[np.isfinite(part)]) for part in (column[drawn], column[live])]
            distances[name].append(ks_distance(*sides) if all(map(len, sides)) else 0.0)
    return {name: np.asarray(found) for name, found in distances.items()}
