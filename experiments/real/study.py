"""What the cells say together: every interval resamples seeds and clusters of prompts, paired between arms.

Shapes: S seeds, P prompts, C clusters of prompts, Q draws of seeds, M draws of clusters, N = Q M, K totals.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.bar1.seeds import expanded_tail
from experiments.real.arms import ARMS
from understudy.evaluation.intervals import Interval

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]  # from weighted totals (K, N) to values (N,)
CONFIDENCE = 0.95
SEED = 0  # of what is drawn
MOST_SEEDS_ENUMERATED, DRAWS_OF_SEEDS = 6, 500
_SORTED_PART = 8  # of all draws: limits lie far out
DECODINGS = ("T=1", "tuned")
DECIDING = "scores"  # of the task's own judge; others are named as in "others"


class Key(NamedTuple):
    """Cells that may be compared: task, number of demonstrations, settings over the task's own."""

    task: str
    size: str
    settings: str = ""


Cells = dict[Key, dict[str, dict[int, dict[str, Any]]]]  # → arm → seed → cell


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
    """

    value_SP: Floats
    cluster_P: NDArray[np.int64]


def load_cells(folder: Path) -> Cells:
    """Read all cells of a folder; arms in the order of `ARMS`, seeds ascending.

    Raises:
        ValueError: cells of the same settings answer different test prompts, so that they cannot be paired, or were
            measured differently.
    """
    found: Cells = {}
    first: dict[tuple[object, ...], tuple[Path, _Shared]] = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text())
        key = _key(cell)
        _refuse_unlike(path, cell, first)
        found.setdefault(key, {}).setdefault(cell["arm"], {})[cell["seed"]] = cell
    return {
        key: {name: dict(sorted(arms[name].items())) for name in ARMS if name in arms} for key, arms in found.items()
    }


class _Shared(NamedTuple):
    """What cells of one key must have in common.

    Attributes:
        name: of it; with a seed where only cells of one seed share it.
        value: of one cell.
        told: the value in words.
        changed: what has, where two cells differ.
    """

    name: tuple[object, ...]
    value: Any
    told: str
    changed: str


def _refuse_unlike(path: Path, cell: dict[str, Any], first: dict[tuple[object, ...], tuple[Path, _Shared]]) -> None:
    """Compare what a cell tells with the first of its like that tells it, too; not every cell tells everything.

    A cell from before a task or its source changed would be compared with what it was not.
    """
    for mine in _shared(cell):
        other, wanted = first.setdefault((_key(cell), *mine.name), (path, mine))
        if mine.value != wanted.value:
            raise ValueError(
                f"{path.name} {mine.told} and {other.name} {wanted.told}, with the same settings: {mine.changed} "
                "between them. Delete the older and run it again, or keep one of both in another --out."
            )


def _shared(cell: dict[str, Any]) -> Iterator[_Shared]:
    at = cell["decodings"]["T=1"]
    num, clusters = len(at["scores"]), at["clusters"]
    yield _Shared(("prompts",), num, f"has {num} test prompts", "params.yaml has changed")
    fetched = "their demonstrations have changed"
    yield _Shared(("clusters",), clusters, f"has test prompts in {max(clusters) + 1} groups", fetched)
    if digest := cell.get("test_sha256"):
        yield _Shared(("test_sha256",), digest, f"has the test rows {digest[:12]}", fetched)
    if counts := cell.get("expert_tokens"):
        # Under one seed all arms share a tokenizer.
        yield _Shared(("expert_tokens", cell["seed"]), counts, f"has {sum(counts)} tokens by experts", fetched)
    settings = [told for told in cell.get("overrides", ()) if told.startswith("evaluation.")]
    measured = f"was measured with {', '.join(settings) or 'no settings of its own'}"
    yield _Shared(("evaluation",), settings, measured, "the task has changed")


def _key(cell: dict[str, Any]) -> Key:
    """What may be compared: the same task, number of demonstrations and settings; a cell that names none has none."""
    return Key(cell["task"], str(cell["size"] or "all"), ", ".join(cell.get("settings", ())))


def mean(pairs: Paired) -> Interval | None:
    """Mean of the decided values."""
    return _resampled(pairs, [pairs.value_SP], lambda total_KN: total_KN[1] / total_KN[0])


def of_seeds(values: Iterable[float | None]) -> Interval | None:
    """Mean over seeds of a number that a seed has one of; t interval (a bootstrap of five is too narrow)."""
    from scipy.special import stdtrit

    value_S = np.asarray([value for value in values if value is not None], dtype=np.float64)
    if not len(value_S):
        return None
    middle = float(value_S.mean())
    if len(value_S) < 2:
        return Interval(middle, math.nan, math.nan, 1, 1)
    half = float(stdtrit(len(value_S) - 1, (1 + CONFIDENCE) / 2)) * float(value_S.std(ddof=1)) / math.sqrt(len(value_S))
    return Interval(middle, middle - half, middle + half, len(value_S), len(value_S))


def judged(cells: dict[int, dict[str, Any]], decoding: str, judge: str = DECIDING) -> Paired:
    """Scores of one contender."""
    return _paired(_scores(cells, decoding, judge), cells, decoding)


def win_rate(
    ours: dict[int, dict[str, Any]],
    ours_at: str,
    theirs: dict[int, dict[str, Any]],
    theirs_at: str,
    judge: str = DECIDING,
) -> tuple[Interval | None, Interval | None]:
    """How often ours scores higher on the same prompt and seed, ties half; and the same at equal length.

    At equal length: the intercept of a regression of the win on tanh of the standardised difference in length.
    """
    seeds = sorted(set(ours) & set(theirs))
    ours, theirs = {seed: ours[seed] for seed in seeds}, {seed: theirs[seed] for seed in seeds}
    if not seeds:
        return None, None
    gap_SP = _scores(ours, ours_at, judge) - _scores(theirs, theirs_at, judge)
    pairs = _paired(np.where(np.isnan(gap_SP), np.nan, 0.5 + 0.5 * np.sign(gap_SP)), ours, ours_at)
    longer_SP = _table(ours, ours_at, "lengths") - _table(theirs, theirs_at, "lengths")
    spread = float(longer_SP.std())
    tilt_SP = np.tanh(longer_SP / spread) if spread else np.zeros_like(gap_SP)
    win_SP = pairs.value_SP
    return mean(pairs), _resampled(pairs, [win_SP, tilt_SP, tilt_SP**2, tilt_SP * win_SP], _intercept)


def best_sft(arms: dict[str, dict[int, dict[str, Any]]]) -> Contender:
    """The SFT arm and decoding with the highest score on validation rows, mean over seeds."""
    found = best_of("sft", arms)
    if found is None:
        raise ValueError(f"None of {', '.join(arms)} is SFT, which all are compared with; run the arm `sft`.")
    return found


def best_of(role: str, arms: dict[str, dict[int, dict[str, Any]]]) -> Contender | None:
    """The arm of a role and the decoding with the highest score on validation rows; of equals the first in `ARMS`."""
    scores = {
        Contender(name, decoding): on_validation(cells, decoding)
        for name, cells in arms.items()
        if ARMS[name].role == role
        for decoding in DECODINGS
    }
    return max(scores, key=lambda contender: scores[contender], default=None)


def on_validation(cells: dict[int, dict[str, Any]], decoding: str) -> float:
    """Score on validation rows, mean over seeds."""
    found = [cell["validation"][cell["tuned"] if decoding == "tuned" else "T=1"] for cell in cells.values()]
    return float(np.mean(found))


def _scores(cells: dict[int, dict[str, Any]], decoding: str, judge: str) -> Floats:
    """A judge's scores; a mean beside them may have the judge's name, as chrF's has, and is not meant."""
    if judge == DECIDING:
        return _table(cells, decoding, DECIDING)
    return _rows(cell["decodings"][decoding]["others"][judge] for cell in cells.values())


def _table(cells: dict[int, dict[str, Any]], decoding: str, field: str) -> Floats:
    return _rows(cell["decodings"][decoding][field] for cell in cells.values())


def _rows(rows: Iterable[list[float | None]]) -> Floats:
    return np.asarray([[math.nan if value is None else value for value in row] for row in rows], dtype=np.float64)


def _paired(value_SP: Floats, cells: dict[int, dict[str, Any]], decoding: str) -> Paired:
    clusters = next(iter(cells.values()))["decodings"][decoding]["clusters"]
    return Paired(value_SP, np.asarray(clusters, dtype=np.int64))


def _intercept(total_KN: Floats) -> Floats:
    """Of the regression of wins on the tilt; totals of 1, win, tilt, tilt² and tilt·win."""
    total, wins, first, second, product = total_KN
    below, mean_win = total * second - first**2, wins / total
    known = below > 1e-9 * total**2  # else lengths do not differ
    slope = (total * product - first * wins) / np.where(known, below, 1.0)
    intercept: Floats = np.where(known, mean_win - slope * first / total, mean_win)
    return intercept


def _resampled(pairs: Paired, columns: list[Floats], statistic: Statistic) -> Interval | None:
    """Interval of a statistic of totals over (S, P) columns, seeds and clusters drawn anew, each by itself.

    Every draw of seeds meets every draw of clusters. A total is linear in the weights, so it is taken of each cluster
    first. The statistic sees the totals of one and of the columns, in this order. Expanded percentiles as in
    experiments.bar1.seeds, by the smaller of the numbers of seeds and clusters.
    """
    known_SP = np.isfinite(pairs.value_SP)
    if not known_SP.any():
        return None
    num_seeds, num_clusters = len(known_SP), int(pairs.cluster_P.max()) + 1
    seed_QS, chance_Q = _seed_draws(num_seeds)
    cluster_MC = _cluster_draws(num_clusters, len(chance_Q))
    member_PC = (pairs.cluster_P[:, None] == np.arange(num_clusters)).astype(np.float64)
    tables = [np.where(known_SP, column, 0.0) @ member_PC for column in (np.ones_like(pairs.value_SP), *columns)]
    total_KN = np.stack([(seed_QS @ (cluster_MC @ table_SC.T).T).ravel() for table_SC in tables])
    chance_N, drawn_N = np.repeat(chance_Q, len(cluster_MC)), total_KN[0] > 0
    if not drawn_N.all():
        total_KN, chance_N = total_KN[:, drawn_N], chance_N[drawn_N]
    value = statistic(np.asarray([[table_SC.sum()] for table_SC in tables]))
    num_units = min(num_seeds, num_clusters) if num_seeds > 1 else num_clusters
    low, high = _quantiles(statistic(total_KN), chance_N, num_units)
    return Interval(float(value[0]), low, high, int(known_SP.sum()), num_units)


@functools.cache
def _seed_draws(num: int) -> tuple[Floats, Floats]:
    """How often each seed is in a draw of `num` (Q, S), and each draw's probability (Q).

    Of few seeds all draws there are: the limits lie so far out (of five seeds at 0.1%) that chance would make them.
    """
    if num > MOST_SEEDS_ENUMERATED:
        drawn = np.random.default_rng([SEED, num]).multinomial(num, np.full(num, 1 / num), size=DRAWS_OF_SEEDS)
        return drawn.astype(np.float64), np.full(DRAWS_OF_SEEDS, 1 / DRAWS_OF_SEEDS)
    rows = itertools.combinations_with_replacement(range(num), num)
    count_QS = np.asarray([np.bincount(row, minlength=num) for row in rows], dtype=np.float64)
    orders = [math.factorial(num) / math.prod(math.factorial(int(count)) for count in row) for row in count_QS]
    return count_QS, np.asarray(orders) / num**num


@functools.cache
def _cluster_draws(num: int, num_seed_draws: int) -> Floats:
    """How often each cluster is in a draw (M, C), the same at every call; more draws where there are fewer of seeds."""
    draws = min(10_000, max(1_000, 50_000 // num_seed_draws))
    return np.random.default_rng(SEED).multinomial(num, np.full(num, 1 / num), size=draws).astype(np.float64)


def _quantiles(found_N: Floats, chance_N: Floats, num: int) -> tuple[float, float]:
    if num < 2:
        return math.nan, math.nan
    tail = expanded_tail(num, CONFIDENCE) * float(chance_N.sum()) * (1 - 1e-9)  # sums of chances are rounded
    return _lower_limit(found_N, chance_N, tail), -_lower_limit(-found_N, chance_N, tail)


def _lower_limit(found_N: Floats, chance_N: Floats, tail: float) -> float:
    """The value up to which the chances come to the tail; all are put in order only if the lowest are not enough."""
    for num in (max(1, len(found_N) // _SORTED_PART), len(found_N)):
        lowest = np.argpartition(found_N, num - 1)[:num]
        order = lowest[np.argsort(found_N[lowest])]
        below = np.cumsum(chance_N[order])
        if below[-1] >= tail:
            break
    return float(found_N[order[np.searchsorted(below, tail)]])
