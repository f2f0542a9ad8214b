"""What a proof says: rows with an error and the bound it must keep."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Row:
    """One checked statement: it holds when `error` is finite and below `bound`."""

    proof: int
    system: str
    statement: str
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        """Say whether the statement holds."""
        return math.isfinite(self.error) and self.error < self.bound

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; an error that is not a number is None."""
        return asdict(self) | {"error": self.error if math.isfinite(self.error) else None, "passed": self.passed}


def relative_error(value: Tensor, truth: Tensor) -> float:
    """|value - truth| / |truth|, Euclidean."""
    return float((value - truth).norm() / truth.norm().clamp(min=1e-300))


def cosine(first: Tensor, second: Tensor) -> float:
    """Cosine of the angle between two flattened tensors."""
    return float((first * second).sum() / (first.norm() * second.norm()).clamp(min=1e-300))
