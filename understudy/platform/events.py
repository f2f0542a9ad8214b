"""What happens during a run, one JSON object a line, appended to `events.jsonl`.

Every event is {"t": seconds since the epoch, "step": name, "kind": one of KINDS, …}. Several processes append
to one file: each event is one write to a file opened for appending, so lines never mix. A process that is killed
may leave its last line incomplete; readers skip it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from understudy.tracker import Tracker

Kind = Literal["start", "progress", "metrics", "finish", "failed", "cached", "note"]
FILE_NAME = "events.jsonl"


class EventLog:
    """Appends events of one run; never raises into the work that it describes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, step: str, kind: Kind, **values: Any) -> None:
        """Append one event; numbers that JSON cannot hold become null."""
        event = {"t": round(time.time(), 3), "step": step, "kind": kind, **values}
        line = json.dumps(_finite(event), ensure_ascii=False, default=str) + "\n"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line.encode("utf-8", "replace"))
            finally:
                os.close(descriptor)
        except OSError:
            # A full disk must not stop a step whose own writes report it better.
            return


class EventReader:
    """Reads what was appended since the last call, whole lines only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """Return new events in order; incomplete or damaged lines are left out."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data.rfind(b"\n") + 1
        self._offset += complete
        events = (_parse(line) for line in data[:complete].splitlines())
        return [event for event in events if event is not None]


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return all whole events of a file; an absent file has none."""
    return EventReader(path).read()


class EventTracker:
    """A Tracker that writes events; progress at most every `interval_seconds`, and always when complete."""

    def __init__(self, log: EventLog, step: str, interval_seconds: float = 0.25) -> None:
        self._log = log
        self._step = step
        self._interval_seconds = interval_seconds
        self._next_progress = 0.0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of one step."""
        self._log.write(self._step, "metrics", index=step, metrics=dict(metrics))

    def progress(self, done: int, total: int, unit: str, shown: Mapping[str, float]) -> None:
        """Append how far the phase is, unless one was appended a moment ago."""
        now = time.monotonic()
        if now < self._next_progress and done < total:
            return
        self._next_progress = now + self._interval_seconds
        self._log.write(self._step, "progress", done=done, total=total, unit=unit, shown=dict(shown))


class CompositeTracker:
    """Hands everything to several trackers."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand the metrics to every tracker."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def progress(self, done: int, total: int, unit: str, shown: Mapping[str, float]) -> None:
        """Hand the progress to every tracker."""
        for tracker in self._trackers:
            tracker.progress(done, total, unit, shown)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "step" in event and "kind" in event else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
