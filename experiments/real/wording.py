"""How contenders, settings and intervals are written in the tables."""

from __future__ import annotations

import math
from dataclasses import replace

from experiments.real.arms import ARMS
from experiments.real.study import Contender, Key
from experiments.real.tasks import in_words
from understudy.evaluation.intervals import Interval


def contender(named: Contender) -> str:
    """An arm's label and its decoding."""
    return f"{ARMS[named.arm].label.replace('*', '')} ({named.decoding})"


def in_brackets(key: Key) -> str:
    """What keeps cells apart from those of the task's own settings; nothing where these are theirs."""
    return f" ({in_words(key.settings)})" if key.settings else ""


def size(name: str) -> str:
    """A number of demonstrations."""
    return name if name == "all" else f"{int(name):,}"


def clipped(interval: Interval | None) -> Interval | None:
    """An interval of what is between 0 and 1."""
    return interval and replace(interval, low=max(interval.low, 0.0), high=min(interval.high, 1.0))


def shown(interval: Interval | None) -> str:
    """A value with its limits, where they are known."""
    if interval is None:
        return ""
    known = f" [{interval.low:.3f}, {interval.high:.3f}]" if math.isfinite(interval.low) else ""  # else one seed
    return f"{interval.value:.3f}{known}"


def percent(interval: Interval | None) -> str:
    """A share with its limits, which a regression's may pass 0 or 1."""
    if (within := clipped(interval)) is None:
        return ""
    return f"{100 * within.value:.1f}% [{100 * within.low:.1f}, {100 * within.high:.1f}]"


def number(interval: Interval | None, digits: int) -> str:
    """A value alone."""
    return "" if interval is None else f"{interval.value:.{digits}f}"
