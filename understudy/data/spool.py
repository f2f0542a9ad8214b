"""Sorting more rows than memory holds: valid rows go to bucket files by content hash, each sorted on its own.

Read back bucket by bucket, rows come in the order of their content hash whatever the order of the sources, the
number of buckets and the number of spools, which is what makes a dataset version depend on its rows alone. How many
bytes of rows a source holds is not known before it is read, so a bucket may be too large: it is read in pieces.
"""

from __future__ import annotations

import hashlib
import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, compress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import orjson

from understudy.data import ids
from understudy.data.pieces import CUT_BITS, pieces
from understudy.data.rows import Row, new_tuple

_BUCKET_BYTES = 24 * 1024 * 1024
_MAX_BUCKETS = 256
# A row is longer than its line was: its digest stands before it, and its prompt there twice.
_HELD_BUCKETS = 2
_NO_ID = b"\t[null,"  # begins what follows the response; JSON text has no raw tab, so it stands nowhere else
_BUFFER_BYTES = 32 * 1024
_POSITION_BITS = 44  # room for 2^44 bytes a file, 17.6 TB, and 2^20 files in one 64-bit place


class Spooled(NamedTuple):
    """A valid row with the SHA-256 of its messages and response; `messages` is canonical JSON text."""

    sha256: str
    messages_json: str
    prompt: str
    response: str
    id: str | None
    group: str | None
    metadata_json: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The context, parsed."""
        turns: list[dict[str, str]] = orjson.loads(self.messages_json)
        return turns

    @property
    def user_turns(self) -> list[str]:
        """Texts of the user's turns; a context of one turn, the usual one, is not parsed."""
        # A key is followed by a colon; within a text its quotation marks would be escaped.
        if self.messages_json.count('"role":') == 1:
            return [self.prompt]
        return [turn["content"] for turn in self.messages if turn["role"] == "user"]

    @property
    def text(self) -> str:
        """Context and response, in which near-duplicates are looked for; the content hash determines it."""
        return "\n".join([*(turn["content"] for turn in self.messages), self.response])


def place(file_index: int, position: int) -> int:
    """Return one number for a row's file and its position there, in reading order.

    The position is a byte, or the row of a table: unlike a line's number, who reads a part of the file knows it.
    """
    return file_index << _POSITION_BITS | position


def num_buckets(source_bytes: int) -> int:
    """Return into how many buckets sources of this size go: a power of two up to 256, so that most fit as a whole."""
    # The first byte of the hash names the bucket.
    wanted = min(_MAX_BUCKETS, max(1, source_bytes // _BUCKET_BYTES + 1))
    return 1 << (wanted - 1).bit_length()


def file_of(at: int) -> int:
    """Return the file's number of a `place`."""
    return at >> _POSITION_BITS


def content_of(messages: list[dict[str, str]], response: str) -> bytes:
    """Return the text of which the SHA-256 names a row."""
    # JSON text has no raw tab and no raw newline, so they can separate it.
    return b"\t".join((orjson.dumps(messages), orjson.dumps(response)))


class Spool:
    """Writes valid rows to `count` bucket files under `folder`, and the explicit ids among them."""

    def __init__(self, folder: Path, count: int) -> None:
        self._shift = 8 - (count - 1).bit_length()
        self._count = count
        self._folder = folder
        self._stack = ExitStack()
        self._writes: list[Callable[[bytes], int]] = [self._open("rows", i).write for i in range(count)]
        self._id_writes: list[Callable[[bytes], int]] = []
        self._has_digests = False
        self.num_rows = 0

    def add(self, row: Row, at: int) -> None:
        """Keep a valid row that stands at `place(file, position)`."""
        row_id, group, messages, prompt, response, metadata_json = row
        content = content_of(messages, response)
        digest = hashlib.sha256(content).digest()
        rest = orjson.dumps((row_id, group, metadata_json, prompt))
        line = b"\t".join((digest.hex().encode(), content, rest, b"%d\n" % at))
        self._writes[digest[0] >> self._shift](line)
        if row_id is not None:
            self._add_id(row_id, digest, at)
        self.num_rows += 1

    def close(self) -> None:
        """Flush and close all bucket files; a full disk shows here at the latest."""
        self._stack.close()

    def _add_id(self, row_id: str, content_digest: bytes, at: int) -> None:
        if not self._id_writes:
            self._id_writes = [self._open("ids", i).write for i in range(self._count)]
        if len(row_id) == ids.DIGEST_CHARS and ids.is_digest(row_id) and not self._has_digests:
            self._has_digests = True
            _digests(self._folder).touch()
        entry = ids.entry(row_id, content_digest, at)
        self._id_writes[entry[ids.FIRST_BYTE] >> self._shift](entry)

    def _open(self, kind: str, index: int) -> BinaryIO:
        return self._stack.enter_context(_path(self._folder, kind, index).open("wb", buffering=_BUFFER_BYTES))


class SpooledRows:
    """Reads what one or several closed spools of `count` buckets hold, as if one had written it all."""

    def __init__(self, folders: Sequence[Path], count: int, scratch: Path) -> None:
        """Read from `folders`, which are left as they are; temporary files go to `scratch`, which exists."""
        self._folders, self._count, self._scratch = folders, count, scratch
        self._shared_bits = (count - 1).bit_length()

    def repeated_ids(self) -> ids.Places:
        """Return the places, rising, of rows whose id an earlier row has with other content.

        Rows alike in id and content are exact duplicates, not a conflict. A row without an id gets its content's
        digest as one, with which an id that is such a digest may be in conflict.
        """
        limit_bytes = _BUCKET_BYTES // 2  # sorting entries takes a few times as much as they do
        has_digests = any(_digests(folder).exists() for folder in self._folders)
        found = [np.empty(0, dtype=np.uint64)]
        with tempfile.TemporaryDirectory(prefix="ids-", dir=self._scratch) as folder:
            for index in range(self._count):
                paths = self._paths("ids", index)
                if has_digests:
                    paths.append(self._write_given_ids(index, Path(folder) / "given"))
                if paths:
                    found.append(ids.taken(paths, self._shared_bits, limit_bytes, self._scratch))
        return np.sort(np.concatenate(found))

    def _write_given_ids(self, index: int, path: Path) -> Path:
        """Write an entry for each row of a bucket that has no id, and so is given its digest; return the path."""
        with path.open("wb") as given:
            for rows in self._paths("rows", index):
                with rows.open("rb") as file:
                    for line in file:
                        if _NO_ID in line:
                            given.write(ids.entry(None, bytes.fromhex(line[:64].decode()), _place_of(line)))
        return path

    def unique_rows(self, without: ids.Places | None = None) -> Iterator[Spooled]:
        """Yield rows in the order of their content hash, one of each, leaving out the places in `without`.

        Of exact duplicates the one with the smallest canonical text stays: with an id before without, then by
        id, group and metadata.
        """
        loads, lines = orjson.loads, _Lines(without)
        limit_bytes = _HELD_BUCKETS * _BUCKET_BYTES
        for index in range(self._count):
            paths = self._paths("rows", index)
            for piece in pieces(lines, paths, self._shared_bits, limit_bytes, self._scratch):
                for line in piece:
                    sha256, messages, response, rest, _ = line.split(b"\t")
                    row_id, group, metadata_json, prompt = loads(rest)
                    row = (sha256.decode(), messages.decode(), prompt, loads(response), row_id, group, metadata_json)
                    yield new_tuple(Spooled, row)
                del piece  # before the next one is read

    def _paths(self, kind: str, index: int) -> list[Path]:
        # A spool without ids has no file for them.
        return [path for folder in self._folders if (path := _path(folder, kind, index)).exists()]


def _path(folder: Path, kind: str, index: int) -> Path:
    return folder / f"{kind}-{index:03d}"


def _digests(folder: Path) -> Path:
    """Return the file that is there if a spool has ids that are digests; most have none, and need not be asked more."""
    return folder / "digests"


def _place_of(line: bytes) -> int:
    return int(line[line.rindex(b"\t") + 1 :])


class _Lines:
    """Spooled rows as lines, by their content hash; of each hash the smallest line matters."""

    key_bits = 128  # more than ever are needed

    def __init__(self, without: ids.Places | None) -> None:
        """Leave out the rows at the places in `without`, which rise."""
        self._without = without

    def none(self) -> list[bytes]:
        return []

    def read(self, file: BinaryIO, num_bytes: int) -> list[bytes]:
        return file.readlines(num_bytes)

    def joined(self, first: list[bytes], second: list[bytes]) -> list[bytes]:
        first += second
        return first

    def sizes(self, batch: list[bytes]) -> tuple[int, int]:
        return len(batch), sum(map(len, batch))

    def in_order(self, batch: list[bytes]) -> list[bytes]:
        if self._without is not None and len(self._without):
            batch = self._wanted(batch, self._without)
        batch.sort()
        return [line for line, before in zip(batch, chain((b"",), batch), strict=False) if line[:64] != before[:64]]

    def cut(self, batch: list[bytes], first_bit: int) -> Iterator[tuple[int, list[bytes]]]:
        if not batch:
            return
        shift = self.key_bits - first_bit - CUT_BITS
        shared = int(batch[0][:32], 16) >> shift >> CUT_BITS << CUT_BITS
        start, last = 0, (1 << CUT_BITS) - 1
        for index in range(last + 1):
            next_key = b"%032x" % ((shared + index + 1) << shift)
            end = len(batch) if index == last else bisect_left(batch, next_key, start)
            if end > start:
                yield index, batch[start:end]
            start = end

    def write(self, batch: list[bytes], file: BinaryIO) -> None:
        file.writelines(batch)

    @staticmethod
    def _wanted(batch: list[bytes], without: ids.Places) -> list[bytes]:
        places = np.fromiter(map(_place_of, batch), dtype=np.uint64, count=len(batch))
        found = without[np.minimum(np.searchsorted(without, places), len(without) - 1)]
        return list(compress(batch, (found != places).tolist()))
