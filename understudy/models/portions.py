"""How many logits exist at a time; without torch, so that a formula for memory can ask, too."""

from __future__ import annotations

# What the backward pass needs of more logits than these is made again: twice through the head costs less than memory
# that is not there.
WHOLE_LOGITS = 1 << 26
# A CPU makes so many at a time, which its caches hold, in as many rows as make reading the head's weights worth it.
_CPU_LOGITS, _CPU_ROWS = 1 << 20, 128


def cpu_rows(vocabulary: int) -> int:
    """Rows whose logits a CPU makes at a time, if that many logits may exist."""
    return max(_CPU_ROWS, _CPU_LOGITS // vocabulary)
