"""A write that the operating system refuses is an OSError, whoever writes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def refused_as_os_error(path: Path) -> Iterator[None]:
    """Within this context safetensors tells a full disk as all others do, and not by an exception of its own.

    Raises:
        OSError: with the system's number and `path`.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        told = re.search(r"\(os error (\d+)\)", str(error))
        if told is None:
            raise
        number = int(told[1])
        raise OSError(number, os.strerror(number), str(path)) from error
