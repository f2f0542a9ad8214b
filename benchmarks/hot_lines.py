"""Which lines of the library take the processor's time: samples of the running line, at little cost to what is run."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
_LIBRARY = ROOT / "understudy"
_INTERVAL_SECONDS = 0.001  # of processor time; the kernel's own tick may be longer

Line = tuple[str, str, int]  # file below the root, function, number


@contextmanager
def sampled_lines() -> Iterator[Counter[Line]]:
    """Add up the processor's seconds by the innermost line of the library that is running when a sample is taken.

    What other libraries do counts for the line that called them. Python sees a sample as such a call returns, where a
    function begins or a loop goes round, so one is worth the time since the sample before: a long call is one sample,
    not a rare one, and a `def` has what its caller did before the call.

    Raises:
        ValueError: not in the main thread.
    """
    seconds: Counter[Line] = Counter()
    last = time.process_time()

    def take(number: int, frame: FrameType | None) -> None:
        nonlocal last
        now = time.process_time()
        if (line := _innermost(frame)) is not None:
            seconds[line] += now - last  # type: ignore[assignment]
        last = now

    before = signal.signal(signal.SIGPROF, take)
    signal.setitimer(signal.ITIMER_PROF, _INTERVAL_SECONDS, _INTERVAL_SECONDS)
    try:
        yield seconds
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)


def _innermost(frame: FrameType | None) -> Line | None:
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(_LIBRARY):
            number = frame.f_lineno or frame.f_code.co_firstlineno  # none in what the compiler adds, as around `del`
            return str(path.relative_to(ROOT)), frame.f_code.co_qualname, number
        frame = frame.f_back
    return None


def as_shares(seconds: Counter[Line], count: int) -> list[dict[str, Any]]:
    """The `count` lines that take the most, each with its share of all and with its text, the most first."""
    total = sum(seconds.values())
    found = []
    for (path, function, number), took in seconds.most_common(count):
        text = (ROOT / path).read_text(encoding="utf-8").splitlines()[number - 1].strip()
        found.append({"path": path, "function": function, "line": number, "text": text, "share": took / total})
    return found
