"""File modes that hold for the tests even when root runs them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_VERSION_3 = 0x20080522
_PASS_ALL_MODES = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextmanager
def modes_hold() -> Iterator[None]:
    """Take from this thread, for as long as the context lasts, what lets root read and write whatever its mode.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)  # 0: this thread
    before = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; of capabilities 0 to 31, then of 32 to 63
    _checked(libc.capget(header, before))
    reduced = (ctypes.c_uint32 * 6)(*before)
    reduced[0] &= ~_PASS_ALL_MODES
    _checked(libc.capset(header, reduced))
    try:
        yield
    finally:
        _checked(libc.capset(header, before))


def _checked(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), "the capabilities could not be read or set")
