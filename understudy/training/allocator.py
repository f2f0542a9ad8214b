"""What the C library does with memory that is freed: kept for the next round, it need not be asked for again."""

from __future__ import annotations

import ctypes

# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Most of what a round of a million parameters makes is smaller. Larger blocks go back to the system: kept, they leave
# gaps that nothing fits into, and with a vocabulary of 151,936 the head's passes took twice the memory.
_KEPT_BLOCK_BYTES, _KEPT_BYTES = 20 << 20, 1 << 30


def keep_freed_memory() -> bool:
    """Let this process keep freed buffers of up to 20 MiB; False where the C library is not glibc.

    A round frees what it made. Given back to the system, which glibc does with large blocks, each of its pages is
    asked for, and cleared, again in the next round: 5% of an align step of a million parameters (docs/speed.md).
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    thresholds = ((_M_MMAP_THRESHOLD, _KEPT_BLOCK_BYTES), (_M_TRIM_THRESHOLD, _KEPT_BYTES))
    return all(library.mallopt(name, size) for name, size in thresholds)
