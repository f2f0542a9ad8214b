"""Rows of a stream: a file, standard input, or a file that grows; bad rows go to a quarantine file, never further."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from understudy.data.demonstrations import Demonstration
from understudy.data.quarantine import Quarantine
from understudy.data.rows import RowProblem
from understudy.errors import ConfigError
from understudy.platform.watch import MAX_LINE_BYTES, parse_row

POLL_SECONDS = 0.5


class Stream:
    """Good rows of a stream, counted; a context manager that closes the quarantine file.

    Args:
        source: a path, or "-" for standard input.
        follow: wait for more at the end; a file that is replaced or cut is read from its beginning.
        quarantine: where refused rows are appended, created when the first is met.

    Attributes:
        num_rows: good rows read.
        num_lines: lines read.
        on_line: called after each row, good or refused.

    Raises:
        ConfigError: there is no such file.
    """

    def __init__(self, source: str, follow: bool, quarantine: Path) -> None:
        if source != "-" and not Path(source).is_file():
            raise ConfigError(f"There is no stream at {source!r}. Name a file of JSON lines, or - for standard input.")
        self.source, self.follow, self.quarantine = source, follow, quarantine
        self.num_rows = self.num_lines = 0
        self.on_line: Callable[[], None] = lambda: None
        self._refused: Quarantine | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def num_refused(self) -> int:
        """Rows in quarantine."""
        return self._refused.num_rows if self._refused else 0

    @property
    def reasons(self) -> dict[str, int]:
        """Refused rows by reason."""
        return dict(self._refused.by_reason) if self._refused else {}

    def rows(self) -> Iterator[Demonstration]:
        """Yield the good rows."""
        for line in self._lines():
            self.num_lines += 1
            if not line.strip():
                continue
            try:
                row = parse_row(line)
            except RowProblem as problem:
                self._refuse(problem, line)
                self.on_line()
                continue
            self.num_rows += 1
            self.on_line()
            yield row

    def _refuse(self, problem: RowProblem, line: bytes) -> None:
        if self._refused is None:
            self.quarantine.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: whoever looks while the stream is followed sees every row.
            self._file = self.quarantine.open("ab", buffering=0)
            self._refused = Quarantine(self._file)
        self._refused.add(self.source, self.num_lines, problem, line)

    def _lines(self) -> Iterator[bytes]:
        if self.source == "-":
            yield from _whole_lines(sys.stdin.buffer)
            return
        with open(self.source, "rb") as file:
            if not self.follow:
                yield from _whole_lines(file)
                return
        yield from self._followed()

    def _followed(self) -> Iterator[bytes]:
        """Yield lines as they are finished, for ever."""
        file, begun = open(self.source, "rb"), b""
        try:
            while True:
                begun += file.readline(MAX_LINE_BYTES + 2)
                if begun.endswith(b"\n") or len(begun) > MAX_LINE_BYTES + 1:
                    yield begun
                    if not begun.endswith(b"\n"):
                        _skip_line(file)
                    begun = b""
                elif _is_another(self.source, file):
                    file.close()
                    file, begun = open(self.source, "rb"), b""
                else:
                    time.sleep(POLL_SECONDS)
        finally:
            file.close()


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines, of one that is too long only so much as shows that."""
    while line := file.readline(MAX_LINE_BYTES + 2):
        yield line
        if len(line) > MAX_LINE_BYTES + 1 and not line.endswith(b"\n"):
            _skip_line(file)


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
        pass


def _is_another(path: str, file: BinaryIO) -> bool:
    """Tell whether the path names another file than the open one, or one that was cut."""
    try:
        now, then = os.stat(path), os.fstat(file.fileno())
    except OSError:
        return False
    return (now.st_ino, now.st_dev) != (then.st_ino, then.st_dev) or now.st_size < file.tell()
