"""Where the align step's time goes: its phases by the function that does them, and torch's operations."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.aligning import OurStep, Work

ROOT = Path(__file__).parents[1]
_NUM_OPERATIONS = 8


def measure(work: Work, rounds: int) -> dict[str, Any]:
    """Shares of a round's time: phases without a profiler's own cost, operations with it."""
    from torch.profiler import ProfilerActivity, profile

    with _phases() as (seconds, where):
        whole = OurStep(work).seconds(rounds)
    phases = {name: took / (rounds + 1) for name, took in seconds.items()}
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        OurStep(work).seconds(1)
    operations: Counter[str] = Counter()
    for event in profiler.key_averages():
        operations[event.key] += event.self_cpu_time_total
    return {
        "name": f"profile of the {work.name}",
        "unit": "s a round",
        "ours": whole,
        "phases": {name: {"seconds": took, "where": where[name]} for name, took in phases.items()},
        "operations": largest_shares(operations, _NUM_OPERATIONS),
        "peer": None,
        "ratio": None,
    }


def largest_shares(parts: Mapping[str, float], count: int) -> dict[str, float]:
    """The `count` largest parts, largest first, as shares of all parts together."""
    total = sum(parts.values())
    return {name: part / total for name, part in Counter(parts).most_common(count)}


@contextmanager
def _phases() -> Iterator[tuple[Counter[str], dict[str, str]]]:
    """Time the functions that make up a round while the context lasts."""
    from understudy.training.discriminating import DiscriminatorTrainer
    from understudy.training.seen import SeenByReference
    from understudy.training.state import AlignState
    from understudy.training.updating import Update

    parts: dict[str, tuple[Any, str]] = {
        "sampling": (AlignState, "sample_round"),
        "reference reads for all who ask": (SeenByReference, "read"),
        "discriminator's updates": (DiscriminatorTrainer, "_step"),
        "scoring by the discriminator": (Update, "score"),
        "policy's forward and backward pass": (Update, "accumulate"),
        "policy's optimiser": (Update, "step"),
    }
    seconds: Counter[str] = Counter()
    before = {name: getattr(owner, method) for name, (owner, method) in parts.items()}
    try:
        for name, (owner, method) in parts.items():
            setattr(owner, method, _timed(before[name], name, seconds))
        yield seconds, {name: _where(function) for name, function in before.items()}
    finally:
        for name, (owner, method) in parts.items():
            setattr(owner, method, before[name])


def _timed(function: Callable[..., Any], name: str, seconds: Counter[str]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds[name] += time.perf_counter() - start  # type: ignore[assignment]

    return run


def _where(function: Callable[..., Any]) -> str:
    function = inspect.unwrap(function)
    path = Path(inspect.getsourcefile(function) or "").resolve().relative_to(ROOT)
    return f"{path}: {function.__qualname__}"
