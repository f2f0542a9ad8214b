"""Timings on a machine that others use too: ours and the peer take turns, and medians are compared."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def alternate(work: Mapping[str, Callable[[], Any]], repetitions: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each work, one after the other, in as many turns.

    A work that returns a number gives its own seconds (it left its preparation out), else it is timed here.
    """
    if warm_up:
        for run in work.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repetitions):
        # Every other turn goes backwards, so that nobody always follows the same neighbour.
        for name in sorted(work, reverse=bool(turn % 2)):
            gc.collect()
            start = time.perf_counter()
            own = work[name]()
            seconds[name].append(own if isinstance(own, float) else time.perf_counter() - start)
    return seconds


def median(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def ratio_of_turns(numerator: list[float], denominator: list[float]) -> dict[str, Any]:
    """The ratio of seconds of each turn, and their median: what disturbs one turn disturbs both."""
    ratios = [first / second for first, second in zip(numerator, denominator, strict=True)]
    return {"ratio": median(ratios), "ratios": ratios}
