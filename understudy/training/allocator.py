"""What the C library does with memory that is freed: kept for the next round, it need not be asked for again."""

from __future__ import annotations

import ctypes

# Names of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = (1 << 30, 1 << 25)  # older versions refuse a threshold above the second


def keep_freed_memory() -> bool:
    """Let this process keep freed buffers of up to a gibibyte; False where the C library is not glibc.

    A round frees what it made. Given back to the system, which glibc does with large blocks, each of its pages is
    asked for, and cleared, again in the next round: 5% of an align step of a million parameters (docs/speed.md).
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    for name in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        if not any(library.mallopt(name, size) for size in _KEPT_BYTES):
            return False
    return True
