"""Where refused rows go: one JSON line each, with source, line, reason, particulars and the raw text escaped."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, BinaryIO

import orjson

from understudy.data.rows import RowProblem

RAW_LIMIT_CHARS = 500


class Quarantine:
    """Writes refused rows to an open binary file and counts them by reason."""

    def __init__(self, file: BinaryIO, before: Counter[str] | None = None) -> None:
        """Write to `file`, which holds the rows counted in `before` already."""
        self._file = file
        self.by_reason: Counter[str] = before or Counter()

    @property
    def num_rows(self) -> int:
        """Rows refused so far."""
        return self.by_reason.total()

    def add(self, source: str, line: int, problem: RowProblem, raw: bytes | dict[str, Any] | None) -> None:
        """Write one refused row; bytes that are not UTF-8 appear as escapes, long text is cut off."""
        record = {
            "source": printable(source),
            "line": line,
            "reason": problem.reason,
            "detail": printable(problem.detail),
            "raw": _shown(raw),
        }
        self.by_reason[problem.reason] += 1
        self._file.write(orjson.dumps(record) + b"\n")


def with_lines_before(record: bytes, num_lines: int) -> bytes:
    """Return the quarantine's line of a row with its line number counted from `num_lines` lines earlier."""
    told = orjson.loads(record)
    return orjson.dumps(told | {"line": told["line"] + num_lines}) + b"\n"


def printable(text: str) -> str:
    """Return text that UTF-8 can write: a lone surrogate, as in a file name of other bytes, appears as an escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def _shown(raw: bytes | dict[str, Any] | None) -> str:
    if raw is None:
        return ""
    if isinstance(raw, bytes):
        # Four bytes a character at most, so the cut never leaves half a character inside the limit.
        text = raw[: 4 * RAW_LIMIT_CHARS + 4].rstrip(b"\r\n").decode("utf-8", "backslashreplace")
    else:
        text = printable(json.dumps(raw, ensure_ascii=False, default=repr))
    return text if len(text) <= RAW_LIMIT_CHARS else text[:RAW_LIMIT_CHARS] + "…"
