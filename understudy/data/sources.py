"""From a source string to files, and from files to rows, without holding more than one row group in memory.

Formats are told by content, not by name: Parquet, gzip, Arrow files and Arrow streams (the files of a Hugging Face
dataset folder) by their first bytes, everything else is read as JSON lines; only a file that ends before it can say
what it is, is told by its name. Object storage is listed by `platform/`,
which hands the same `SourceFile`s over. Lines and Parquet can be read in parts by bytes: a part has the lines, or the
row groups, that start in it, so that parts side by side have each of them once wherever they were cut.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import zlib
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from understudy.data.rows import FIELDS, RowProblem, parse_line
from understudy.errors import ConfigError, DataRefused

SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".json", ".json.gz", ".parquet", ".arrow")
DESCRIPTIONS = frozenset({"state.json", "dataset_info.json", "dataset_dict.json"})  # of a saved dataset, beside it
LINE_LIMIT_BYTES = 8 * 1024 * 1024
_TABLE_BATCH_ROWS = 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ARROW_STREAM, _ARROW_FILE = b"\xff\xff\xff\xff", b"ARROW1"
_PARQUET, _GZIP = b"PAR1", b"\x1f\x8b"
_BY_NAME = {
    ".parquet": ("Parquet", (_PARQUET,)),
    ".arrow": ("Arrow", (_ARROW_STREAM, _ARROW_FILE)),
    ".gz": ("gzip", (_GZIP,)),
}

# Number from 1, position in the file (first byte of a line, number of a table's row), row, raw bytes of a line.
Entry = tuple[int, int, dict[str, Any] | RowProblem, bytes | None]


@dataclass(frozen=True)
class SourceFile:
    """One file of demonstrations; `open` gives a fresh binary stream, seekable when the file holds a table.

    `version` is what its store calls the content, if it has a word for it: an ETag.
    """

    name: str
    num_bytes: int
    open: Callable[[], BinaryIO]
    version: str = ""


@dataclass
class Part:
    """Bytes `start` to before `end` of a file, to its last where that is None; reading it fills in the rest.

    `begins_at` and `ends_at` are where the first line of the part begins and where the first one behind it would, so
    that of two parts side by side the one ends where the other begins, if both saw the same file. `num_lines` are its
    lines, blank ones too; 0 for a table.
    """

    start: int = 0
    end: int | None = None
    begins_at: int = 0
    ends_at: int = 0
    num_lines: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the file."""
        return self.start == 0 and self.end is None


@dataclass(frozen=True)
class Listing:
    """The files of one source in reading order, and the names that were left out."""

    files: tuple[SourceFile, ...]
    ignored: tuple[str, ...] = ()


def list_sources(source: str) -> Listing:
    """List the files of a local source: a file, a directory of files, or a Hugging Face dataset folder.

    Raises:
        ConfigError: nothing is there, or it, or a folder in it, cannot be read.
        DataRefused: a directory without a single file of a known kind.
    """
    try:
        return _listed(source)
    except OSError as error:
        raise _unreadable(error.filename or source, error) from error


def _listed(source: str) -> Listing:
    path = Path(source).expanduser()
    if not path.exists():
        raise ConfigError(
            f"The source {source!r} does not exist. Name a JSONL, JSONL.gz or Parquet file, a Hugging Face dataset "
            "folder, a directory of these, or s3://bucket/prefix."
        )
    if path.is_file():
        return Listing((_local(path),))
    if not path.is_dir():
        raise ConfigError(f"The source {source!r} is neither a file nor a directory. Name one of those, or s3://….")
    files, ignored = _walk(path)
    if not files:
        found = f"it holds {', '.join(ignored[:5])}" if ignored else "it is empty"
        raise DataRefused(
            f"The directory {source!r} has no demonstrations: {found}. Files must end in {', '.join(SUFFIXES)}."
        )
    return Listing(tuple(files), tuple(ignored))


def entries(file: SourceFile, part: Part | None = None, read: Collection[str] = FIELDS) -> Iterator[Entry]:
    """Yield `(number, position, row or its problem, raw bytes if the file has lines)`; blank lines are skipped.

    In a table, a value that cannot be decoded costs the row only in the columns `read`.

    Lines are numbered from the start of the part, for their count before it is known only to who read that; positions
    and the rows of a table are numbered from the start of the file.

    Raises:
        DataRefused: the file breaks off or is damaged, so that nobody knows what is missing.
    """
    part = part or Part()
    kind = _kind(file)
    if not part.is_whole and kind not in _IN_PARTS:
        raise DataRefused(
            f"{file.name} changed while it was ingested: it was planned to be read in parts, and now it is {kind}, "
            "which cannot be. Run ingest again."
        )
    if kind == "Parquet":
        yield from _parquet_rows(file, part, read)
    elif kind == "Arrow":
        yield from _arrow_rows(file, read)
    else:
        yield from _json_lines(file, part, compressed=kind == "gzip")


def has_parts(file: SourceFile) -> bool:
    """Whether the file can be read in parts: lines that are not compressed, and Parquet, whose row groups are whole."""
    return _kind(file) in _IN_PARTS


_IN_PARTS = ("JSON lines", "Parquet")


def _kind(file: SourceFile) -> str:
    with closing(file.open()) as stream:
        magic = stream.read(10)
    _refuse_cut_off(file.name, magic)
    if magic.startswith(_PARQUET):
        return "Parquet"
    if magic.startswith((_ARROW_STREAM, _ARROW_FILE)):
        return "Arrow"
    return "gzip" if magic.startswith(_GZIP) else "JSON lines"


def _refuse_cut_off(name: str, magic: bytes) -> None:
    """Refuse a file that by its name is no lines, and ends within the bytes that say so, as where a download failed."""
    for suffix, (kind, magics) in _BY_NAME.items():
        if name.endswith(suffix) and any(known.startswith(magic) and known != magic for known in magics):
            raise DataRefused(
                f"{name} is truncated: by its name it is {kind}, and it ends after {len(magic)} bytes, before it can "
                "say so. What is missing cannot be known, so nothing was ingested. Fetch or write the file again, or "
                "remove it."
            )


def _unreadable(name: str, error: OSError) -> ConfigError:
    return ConfigError(f"{name} cannot be read: {error.strerror or error}. Check the path and its rights.")


def _damaged(file: SourceFile, number: int, error: Exception) -> DataRefused:
    return DataRefused(
        f"{file.name} is truncated or damaged after row {number}: {error}. What is missing cannot be known, so "
        "nothing was ingested. Fetch or write the file again."
    )


def _json_lines(file: SourceFile, part: Part, compressed: bool) -> Iterator[Entry]:
    with closing(file.open()) as opened:
        stream: BinaryIO = opened
        if compressed:
            stream = io.BufferedReader(gzip.GzipFile(fileobj=opened), 1 << 18)
        for number, position, line in _lines(file, stream, part):
            if _is_cut_off(line):
                problem = RowProblem("too long", f"the line exceeds {LINE_LIMIT_BYTES} bytes")
                yield number, position, problem, line[:4096]
                continue
            try:
                yield number, position, parse_line(line), line
            except RowProblem as problem:
                if line.strip() and line.strip() != _BYTE_ORDER_MARK:
                    yield number, position, problem, line


def _lines(file: SourceFile, stream: BinaryIO, part: Part) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, first byte and bytes of every line that starts in the part; the last may end behind it."""
    number, end = 0, sys.maxsize if part.end is None else part.end
    try:
        position = part.begins_at = _first_line(stream, part.start)
        while position < end and (line := stream.readline(LINE_LIMIT_BYTES)):
            number += 1
            start, position = position, position + len(line)
            if _is_cut_off(line):
                position += _skip_line(stream)
            yield number, start, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(file, number, error) from error
    part.num_lines, part.ends_at = number, position


def _first_line(stream: BinaryIO, start: int) -> int:
    """Move to the first line that starts at byte `start` or behind it, and return its first byte."""
    if start == 0:
        return 0
    # From the byte before: if that ends a line, the line at `start` is the first.
    stream.seek(start - 1)
    return start - 1 + _skip_line(stream)


def _is_cut_off(line: bytes) -> bool:
    return len(line) == LINE_LIMIT_BYTES and not line.endswith(b"\n")


def _skip_line(stream: BinaryIO) -> int:
    """Read to the end of the line; return how many bytes that were."""
    num_bytes = 0
    while rest := stream.readline(LINE_LIMIT_BYTES):
        num_bytes += len(rest)
        if rest.endswith(b"\n"):
            break
    return num_bytes


def _parquet_rows(file: SourceFile, part: Part, read: Collection[str]) -> Iterator[Entry]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with closing(file.open()) as stream, pyarrow.parquet.ParquetFile(stream) as table:
            groups, number = _row_groups(table.metadata, part, file.num_bytes)
            for batch in table.iter_batches(batch_size=_TABLE_BATCH_ROWS, row_groups=groups):
                yield from _batch_rows(batch, number, read)
                number += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(file, number, error) from error


def _row_groups(metadata: Any, part: Part, file_bytes: int) -> tuple[range, int]:
    """Return which row groups start in the part, and how many rows stand before them."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    # Rising, so that the groups of a part are neighbours, even if some writer should order them otherwise.
    starts = list(accumulate((group.column(0).data_page_offset if group.num_columns else 0 for group in groups), max))
    first = bisect_left(starts, part.start)
    end = len(starts) if part.end is None else bisect_left(starts, part.end)
    part.begins_at, part.ends_at = (starts[index] if index < len(starts) else file_bytes for index in (first, end))
    return range(first, end), sum(group.num_rows for group in groups[:first])


def _arrow_rows(file: SourceFile, read: Collection[str]) -> Iterator[Entry]:
    import pyarrow

    number = 0
    try:
        with closing(file.open()) as stream:
            for batch in _arrow_batches(stream):
                for start in range(0, batch.num_rows, _TABLE_BATCH_ROWS):
                    part = batch.slice(start, _TABLE_BATCH_ROWS)
                    yield from _batch_rows(part, number, read)
                    number += part.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(file, number, error) from error


def _arrow_batches(stream: BinaryIO) -> Iterator[Any]:
    """Yield the batches of either of Arrow's formats one by one: of a stream, or of a file, whose index is its end."""
    import pyarrow.ipc

    is_file = stream.read(len(_ARROW_FILE)) == _ARROW_FILE
    stream.seek(0)
    if is_file:
        with pyarrow.ipc.open_file(stream) as reader:
            yield from (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        with pyarrow.ipc.open_stream(stream) as reader:
            yield from reader


def _batch_rows(batch: Any, done: int, read: Collection[str]) -> Iterator[Entry]:
    names = batch.schema.names
    if repeated := sorted({name for name in names if names.count(name) > 1 and name in read}):
        problem = RowProblem("duplicate key", f"{', '.join(repeated)} names more than one column")
        rows: list[dict[str, Any] | RowProblem] = [problem] * batch.num_rows
    else:
        try:
            rows = batch.to_pylist()
        except _UNREADABLE:
            rows = [_decoded_row(batch, index, read) for index in range(batch.num_rows)]
    for index, row in enumerate(rows):
        yield done + index + 1, done + index + 1, row, None


# Of one value: text that is not UTF-8, a time that Python has no word for, a time zone nobody knows.
_UNREADABLE = (ValueError, OverflowError, LookupError, TypeError)


def _decoded_row(batch: Any, index: int, read: Collection[str]) -> dict[str, Any] | RowProblem:
    """Decode value by value; one that cannot be read costs the row only in a column that is read."""
    row: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.slice(index, 1).columns, strict=True):
        try:
            row[name] = column[0].as_py()
        except _UNREADABLE as error:
            if name not in read:
                row[name] = None
            elif isinstance(error, UnicodeDecodeError):
                return RowProblem("not UTF-8", f"{name}: {error}")
            else:
                return RowProblem("wrong type", f"{name} holds a {column.type} that cannot be read: {error}")
    return row


def _local(path: Path) -> SourceFile:
    def opened() -> BinaryIO:
        try:
            return path.open("rb", buffering=1 << 18)
        except OSError as error:
            raise _unreadable(str(path), error) from error

    return SourceFile(str(path), path.stat().st_size, opened)


def _walk(root: Path) -> tuple[list[SourceFile], list[str]]:
    files: list[SourceFile] = []
    ignored: list[str] = []
    # Without `onerror` a folder that may not be read would be taken for an empty one.
    for folder, subfolders, names in os.walk(root, onerror=_raise):
        here = Path(folder)
        # A link to a folder may lead back here; it is named instead of followed.
        left_out = [name for name in subfolders if name.startswith(".") or (here / name).is_symlink()]
        ignored += [f"{(here / name).relative_to(root)}/" for name in sorted(left_out)]
        subfolders[:] = sorted(set(subfolders) - set(left_out))
        saved = _saved_dataset_files(here, names)
        for name in sorted(names):
            path = here / name
            wanted = path.name in saved if saved is not None else name.endswith(SUFFIXES) and name not in DESCRIPTIONS
            if name.startswith(".") or not wanted or not path.is_file():
                if name not in DESCRIPTIONS:
                    ignored.append(str(path.relative_to(root)))
            else:
                files.append(_local(path))
    return files, ignored


def _raise(error: OSError) -> None:
    raise error


def _saved_dataset_files(folder: Path, names: list[str]) -> set[str] | None:
    """Names of the data files when `folder` was written by `Dataset.save_to_disk`, else None."""
    if not {"state.json", "dataset_info.json"} <= set(names):
        return None
    try:
        listed = {item["filename"] for item in json.loads((folder / "state.json").read_bytes())["_data_files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataRefused(f"{folder / 'state.json'} lists no data files: {error!r}. Save the dataset again.") from error
    if missing := sorted(listed - set(names)):
        raise DataRefused(f"The saved dataset {folder} lacks {', '.join(missing)} of its state.json. Copy it again.")
    return listed
