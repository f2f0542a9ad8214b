"""Sorting more rows than memory holds: valid rows go to bucket files by content hash, each sorted on its own.

Read back bucket by bucket, rows come in the order of their content hash whatever the order of the sources, the
number of buckets and the number of spools, which is what makes a dataset version depend on its rows alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import orjson
import xxhash

from understudy.data.rows import Row, new_tuple

_BUCKET_BYTES = 24 * 1024 * 1024
_MAX_BUCKETS = 256
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
    """Return into how many buckets sources of this size go: a power of two up to 256, each small enough to sort."""
    # The first byte of the hash names the bucket.
    wanted = min(_MAX_BUCKETS, max(1, source_bytes // _BUCKET_BYTES + 1))
    return 1 << (wanted - 1).bit_length()


def file_of(at: int) -> int:
    """Return the file's number of a `place`."""
    return at >> _POSITION_BITS


class Spool:
    """Writes valid rows to `count` bucket files under `folder`, and the explicit ids among them."""

    def __init__(self, folder: Path, count: int) -> None:
        self._shift = 8 - (count - 1).bit_length()
        self._count = count
        self._folder = folder
        self._stack = ExitStack()
        self._writes: list[Callable[[bytes], int]] = [self._open("rows", i).write for i in range(count)]
        self._id_writes: list[Callable[[bytes], int]] = []
        self.num_rows = 0

    def add(self, row: Row, at: int) -> None:
        """Keep a valid row that stands at `place(file, position)`."""
        row_id, group, messages, prompt, response, metadata_json = row
        # JSON text has no raw tab and no raw newline, so they can separate it.
        content = b"%b\t%b" % (orjson.dumps(messages), orjson.dumps(response))
        digest = hashlib.sha256(content).digest()
        rest = orjson.dumps((row_id, group, metadata_json, prompt))
        self._writes[digest[0] >> self._shift](b"%b\t%b\t%b\t%d\n" % (digest.hex().encode(), content, rest, at))
        if row_id is not None:
            self._add_id(row_id, digest, at)
        self.num_rows += 1

    def close(self) -> None:
        """Flush and close all bucket files; a full disk shows here at the latest."""
        self._stack.close()

    def _add_id(self, row_id: str, content_digest: bytes, at: int) -> None:
        if not self._id_writes:
            self._id_writes = [self._open("ids", i).write for i in range(self._count)]
        id_digest = xxhash.xxh3_128_digest(row_id.encode())
        entry = id_digest + content_digest[8:16] + at.to_bytes(8, "little")
        self._id_writes[id_digest[15] >> self._shift](entry)

    def _open(self, kind: str, index: int) -> BinaryIO:
        return self._stack.enter_context(_path(self._folder, kind, index).open("wb", buffering=_BUFFER_BYTES))


class SpooledRows:
    """Reads what one or several closed spools of `count` buckets hold, as if one had written it all."""

    def __init__(self, folders: Sequence[Path], count: int) -> None:
        self._folders, self._count = folders, count

    def repeated_ids(self) -> set[int]:
        """Return the places of rows whose id an earlier row has with other content.

        Rows alike in id and content are exact duplicates, not a conflict.
        """
        import numpy as np

        places: set[int] = set()
        kind = np.dtype([("id_high", "<u8"), ("id_low", "<u8"), ("content", "<u8"), ("at", "<u8")])
        for index in range(self._count):
            parts = [np.fromfile(path, dtype=kind) for path in self._paths("ids", index)]
            if not any(map(len, parts)):
                continue
            table = np.concatenate(parts)
            table = table[np.lexsort((table["at"], table["id_low"], table["id_high"]))]
            starts = np.ones(len(table), dtype=bool)
            starts[1:] = (table["id_high"][1:] != table["id_high"][:-1]) | (table["id_low"][1:] != table["id_low"][:-1])
            first = np.maximum.accumulate(np.where(starts, np.arange(len(table)), 0))
            places.update(table["at"][table["content"] != table["content"][first]].tolist())
        return places

    def unique_rows(self, without: Collection[int] = ()) -> Iterator[Spooled]:
        """Yield rows in the order of their content hash, one of each, leaving out the places in `without`.

        Of exact duplicates the one with the smallest canonical text stays: with an id before without, then by
        id, group and metadata.
        """
        loads = orjson.loads
        for index in range(self._count):
            last = b""
            lines: list[bytes] = []
            for path in self._paths("rows", index):
                with path.open("rb") as file:
                    lines += file
            lines.sort()
            for line in lines:
                sha256 = line[:64]
                if sha256 == last:
                    continue
                _, messages, response, rest, at = line.split(b"\t")
                if without and int(at) in without:
                    continue
                last = sha256
                row_id, group, metadata_json, prompt = loads(rest)
                row = (sha256.decode(), messages.decode(), prompt, loads(response), row_id, group, metadata_json)
                yield new_tuple(Spooled, row)

    def _paths(self, kind: str, index: int) -> list[Path]:
        # A spool without ids has no file for them.
        return [path for folder in self._folders if (path := _path(folder, kind, index)).exists()]


def _path(folder: Path, kind: str, index: int) -> Path:
    return folder / f"{kind}-{index:03d}"
