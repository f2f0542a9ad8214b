"""What the cells say together: every interval resamples seeds and clusters of prompts, paired between arms.

Shapes: S seeds, P prompts, C clusters of prompts, N resamples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.real.arms import ARMS
from understudy.evaluation.intervals import Interval

Cells = dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]]  # (task, size) → arm → seed → cell
Floats = NDArray[np.float64]
RESAMPLES, CONFIDENCE = 2000, 0.95
DECODINGS = ("T=1", "tuned")


@dataclass(frozen=True)
class Contender:
    """An arm at a decoding."""

    arm: str
    decoding: str


@dataclass(frozen=True)
class Paired:
    """Prompts that two contenders answered under the same seeds.

    Attributes:
        value_SP: one number a seed and prompt; NaN where undecided.
        cluster_P: cluster of each prompt.
        other_SP: a second number, for ratios and regressions; ones if there is none.
    """

    value_SP: Floats
    cluster_P: NDArray[np.int64]
    other_SP: Floats


def load_cells(folder: Path) -> Cells:
    """Read all cells of a folder; arms in the order of `ARMS`, seeds ascending."""
    found: Cells = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text())
        arms = found.setdefault((cell["task"], str(cell["size"] or "all")), {})
        arms.setdefault(cell["arm"], {})[cell["seed"]] = cell
    return {
        key: {name: dict(sorted(arms[name].items())) for name in ARMS if name in arms} for key, arms in found.items()
    }


def mean(pairs: Paired) -> Interval | None:
    """Mean of the decided values."""
    return _resampled(pairs, lambda weight, value, other: (weight * value).sum() / (weight * other).sum())


def of_seeds(values: Iterable[float | None]) -> Interval | None:
    """Mean over seeds of a number that a seed has one of; t interval (a bootstrap of five is too narrow)."""
    from scipy.special import stdtrit

    value_S = np.asarray([value for value in values if value is not None], dtype=np.float64)
    if not len(value_S):
        return None
    middle = float(value_S.mean())
    if len(value_S) < 2:
        return Interval(middle, math.nan, math.nan, 1)
    half = float(stdtrit(len(value_S) - 1, (1 + CONFIDENCE) / 2)) * float(value_S.std(ddof=1)) / math.sqrt(len(value_S))
    return Interval(middle, middle - half, middle + half, len(value_S))


def judged(cells: dict[int, dict[str, Any]], decoding: str) -> Paired:
    """Scores of one contender."""
    score_SP = _table(cells, decoding, "scores")
    return _paired(score_SP, cells, decoding)


def win_rate(
    ours: dict[int, dict[str, Any]], ours_at: str, theirs: dict[int, dict[str, Any]], theirs_at: str
) -> tuple[Interval | None, Interval | None]:
    """How often ours scores higher on the same prompt and seed, ties half; and the same at equal length.

    At equal length: the intercept of a regression of the win on tanh of the standardised difference in length.
    """
    seeds = sorted(set(ours) & set(theirs))
    ours, theirs = {seed: ours[seed] for seed in seeds}, {seed: theirs[seed] for seed in seeds}
    if not seeds:
        return None, None
    gap_SP = _table(ours, ours_at, "scores") - _table(theirs, theirs_at, "scores")
    win_SP = np.where(np.isnan(gap_SP), np.nan, 0.5 + 0.5 * np.sign(gap_SP))
    longer_SP = _table(ours, ours_at, "lengths") - _table(theirs, theirs_at, "lengths")
    spread = float(longer_SP.std())
    pairs = _paired(win_SP, ours, ours_at)
    controlled = Paired(win_SP, pairs.cluster_P, np.tanh(longer_SP / spread) if spread else np.zeros_like(win_SP))
    return mean(pairs), _resampled(controlled, _intercept)


def best_sft(arms: dict[str, dict[int, dict[str, Any]]]) -> Contender:
    """The SFT arm and decoding with the highest score on validation rows, mean over seeds."""
    scores = {
        Contender(name, decoding): float(np.mean([_on_validation(cell, decoding) for cell in cells.values()]))
        for name, cells in arms.items()
        if ARMS[name].role == "sft"
        for decoding in DECODINGS
    }
    return max(scores, key=lambda contender: scores[contender])


def _on_validation(cell: dict[str, Any], decoding: str) -> float:
    return float(cell["validation"][cell["tuned"] if decoding == "tuned" else "T=1"])


def _table(cells: dict[int, dict[str, Any]], decoding: str, field: str) -> Floats:
    return np.asarray(
        [
            [math.nan if value is None else value for value in cell["decodings"][decoding][field]]
            for cell in cells.values()
        ],
        dtype=np.float64,
    )


def _paired(value_SP: Floats, cells: dict[int, dict[str, Any]], decoding: str) -> Paired:
    clusters = np.asarray(next(iter(cells.values()))["decodings"][decoding]["clusters"], dtype=np.int64)
    return Paired(value_SP, clusters, np.isfinite(value_SP).astype(np.float64))


def _intercept(weight: Floats, win: Floats, longer: Floats) -> float:
    total, first, second = weight.sum(), (weight * longer).sum(), (weight * longer**2).sum()
    below = total * second - first**2
    mean_win = (weight * win).sum() / total
    if below <= 1e-9 * total**2:
        return float(mean_win)
    slope = (total * (weight * longer * win).sum() - first * (weight * win).sum()) / below
    return float(mean_win - slope * first / total)


def _resampled(pairs: Paired, statistic: Callable[[Floats, Floats, Floats], Any]) -> Interval | None:
    """Interval of statistic(weight, value, other) of (S, P) tables, seeds and clusters drawn anew, each by itself.

    Expanded percentiles as in understudy.evaluation.intervals, by the smaller of the numbers of seeds and clusters.
    """
    known = np.isfinite(pairs.value_SP)
    if not known.any():
        return None
    value_SP, decided_SP = np.where(known, pairs.value_SP, 0.0), known.astype(np.float64)
    num_seeds, num_clusters = len(value_SP), int(pairs.cluster_P.max()) + 1
    chance = np.random.default_rng(0)
    found = []
    for _ in range(RESAMPLES):
        seed_S = np.bincount(chance.integers(num_seeds, size=num_seeds), minlength=num_seeds)
        cluster_C = np.bincount(chance.integers(num_clusters, size=num_clusters), minlength=num_clusters)
        weight_SP = seed_S[:, None] * cluster_C[pairs.cluster_P] * decided_SP
        if weight_SP.any():
            found.append(float(statistic(weight_SP, value_SP, pairs.other_SP)))
    low, high = _quantiles(found, min(num_seeds, num_clusters) if num_seeds > 1 else num_clusters)
    return Interval(float(statistic(decided_SP, value_SP, pairs.other_SP)), low, high, int(known.sum()))


def _quantiles(found: Sequence[float], num: int) -> tuple[float, float]:
    from scipy.special import ndtr, stdtrit

    if num < 2:
        return math.nan, math.nan
    tail = float(ndtr(math.sqrt(num / (num - 1)) * stdtrit(num - 1, (1 - CONFIDENCE) / 2)))
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)
