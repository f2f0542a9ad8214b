"""The small protocol through which loops report; platform/ implements it, tests use a list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Tracker(Protocol):
    """Receives what a loop has to say; must be cheap and must never raise into the loop."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics at a step; the same step again replaces, so a retried step stays idempotent."""

    def progress(self, done: int, total: int, unit: str, shown: Mapping[str, float]) -> None:
        """Say how far the current phase is and which few numbers to show beside the bar."""


@dataclass
class ListTracker:
    """Keeps everything in memory, for tests."""

    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    progressed: list[tuple[int, int, str]] = field(default_factory=list)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append."""
        self.logged.append((step, dict(metrics)))

    def progress(self, done: int, total: int, unit: str, shown: Mapping[str, float]) -> None:
        """Append."""
        self.progressed.append((done, total, unit))
