"""Timings on a machine that others use too: contenders take turns, each in a process of its own; medians are compared.

What ran before in a process changes what runs after it, the allocator's state above all: beside our step of one kind
RLOO took 11 to 20% longer than beside the other (docs/lab-notes.md).
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Usage(NamedTuple):
    """What this process has used up to now."""

    seconds: float
    minor_faults: int
    system_seconds: float


def usage() -> Usage:
    """Wall clock, pages that the system had to give without reading a disk, and seconds within the system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(time.perf_counter(), used.ru_minflt, used.ru_stime)


@dataclass(frozen=True)
class Turn:
    """What was timed of one contender: without start-up, imports and building models, which it leaves out itself."""

    tokens: int
    seconds: float
    minor_faults: int
    system_seconds: float
    process: int

    @classmethod
    def between(cls, start: Usage, end: Usage, tokens: int) -> Turn:
        """This process's turn."""
        faults, system_seconds = end.minor_faults - start.minor_faults, end.system_seconds - start.system_seconds
        return cls(tokens, end.seconds - start.seconds, faults, system_seconds, os.getpid())


Contender = Callable[[], Turn]
Turns = Mapping[str, Sequence[Turn]]


def take_turns(contenders: Mapping[str, Contender], repetitions: int) -> dict[str, list[Turn]]:
    """Turns of contenders that can be pickled, each in a fresh process and the same environment."""
    return alternate({name: partial(alone, contender) for name, contender in contenders.items()}, repetitions)


def alone(contender: Contender) -> Turn:
    """One turn in a process that does nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=use_one_thread) as process:
        return process.submit(contender).result()


def use_one_thread() -> None:
    """Whatever the environment says."""
    import torch

    torch.set_num_threads(1)


def alternate(work: Mapping[str, Callable[[], T]], repetitions: int) -> dict[str, list[T]]:
    """What each work returns, one after the other, in as many turns."""
    found: dict[str, list[T]] = {name: [] for name in work}
    for turn in range(repetitions):
        # Every other turn goes backwards, so that nobody always follows the same neighbour.
        for name in sorted(work, reverse=bool(turn % 2)):
            found[name].append(work[name]())
    return found


def compared(turns: Turns, peer: str) -> dict[str, Any]:
    """Tokens per second of "ours" and a peer, their ratio, and the raw numbers of all turns."""
    rates = {name: [turn.tokens / turn.seconds for turn in turns[name]] for name in ("ours", peer)}
    columns = [field.name for field in fields(Turn)]
    return {
        "ours": median(rates["ours"]),
        "peer": median(rates[peer]),
        **ratio_of_turns(rates["ours"], rates[peer]),
        **{column: {name: [getattr(turn, column) for turn in turns[name]] for name in turns} for column in columns},
    }


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def ratio_of_turns(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """The ratio within each turn, and their median: what disturbs one turn disturbs both."""
    ratios = [first / second for first, second in zip(numerator, denominator, strict=True)]
    return {"ratio": median(ratios), "ratios": ratios}
