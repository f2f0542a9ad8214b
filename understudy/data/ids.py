"""Whose id is taken: rows that have the id of an earlier row with other content.

A row without an id gets the SHA-256 of its content as one, so ids that look like such a digest are compared with those,
too. An entry has 16 bytes of the id, 8 of the content's digest, and the row's place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from understudy.data.pieces import CUT_BITS, pieces

ENTRY = np.dtype([("id_high", "<u8"), ("id_low", "<u8"), ("content", "<u8"), ("at", "<u8")])
FIRST_BYTE = 15  # of an entry: the byte that names its bucket, for a digest that of the rows it could be of
_BLOCK_ENTRIES = 1 << 15
DIGEST_CHARS = 64  # to be looked at first, which costs little
_DIGEST = re.compile("[0-9a-f]{64}")

Entries = npt.NDArray[np.void]
Places = npt.NDArray[np.uint64]


def is_digest(row_id: str) -> bool:
    """Whether an id could be the one that a row without an id gets."""
    return _DIGEST.fullmatch(row_id) is not None


def entry(row_id: str | None, content_digest: bytes, at: int) -> bytes:
    """Return the entry of a row that stands at the place `at`; None for a row without an id."""
    if row_id is None or (len(row_id) == DIGEST_CHARS and is_digest(row_id)):
        # From the back, since numbers are read so: a digest's first byte is the key's highest.
        key = (content_digest if row_id is None else bytes.fromhex(row_id))[15::-1]
    else:
        key = xxhash.xxh3_128_digest(row_id.encode())
    return key + content_digest[8:16] + at.to_bytes(8, "little")


def taken(paths: Sequence[Path], first_bit: int, limit_bytes: int, scratch: Path) -> Places:
    """Return the places of a bucket's rows whose id an earlier row has with other content.

    Rows alike in id and content are exact duplicates, not a conflict. The bucket's files are of entries; the other
    arguments are those of `pieces`.
    """
    contested = np.concatenate([_contested(piece) for piece in pieces(_Kind(), paths, first_bit, limit_bytes, scratch)])
    blocks = (block for path in paths for block in _blocks(path)) if len(contested) else iter(())
    return np.concatenate([np.empty(0, dtype=np.uint64), *(_later(block, contested) for block in blocks)])


class _Kind:
    """Entries as an array, by id; of each id the first one and the first with other content matter."""

    key_bits = 64  # those of `id_low`

    def none(self) -> Entries:
        return np.empty(0, dtype=ENTRY)

    def read(self, file: BinaryIO, num_bytes: int) -> Entries:
        return np.fromfile(file, ENTRY, max(1, num_bytes // ENTRY.itemsize))

    def joined(self, first: Entries, second: Entries) -> Entries:
        return np.concatenate((first, second)) if len(first) else second

    def sizes(self, batch: Entries) -> tuple[int, int]:
        return len(batch), batch.nbytes

    def in_order(self, batch: Entries) -> Entries:
        batch = batch[np.lexsort((batch["at"], batch["id_high"], batch["id_low"]))]
        starts = _starts(batch)
        first = np.maximum.accumulate(np.where(starts, np.arange(len(batch)), 0))
        (others,) = np.nonzero(batch["content"] != batch["content"][first])
        kept = starts
        kept[others[np.unique(first[others], return_index=True)[1]]] = True
        return batch[kept]

    def cut(self, batch: Entries, first_bit: int) -> Iterator[tuple[int, Entries]]:
        bits = (batch["id_low"] >> np.uint64(self.key_bits - first_bit - CUT_BITS)) & np.uint64((1 << CUT_BITS) - 1)
        ends = np.searchsorted(bits, np.arange((1 << CUT_BITS) + 1, dtype=np.uint64)).tolist()
        return ((index, batch[ends[index] : ends[index + 1]]) for index in np.unique(bits).tolist())

    def write(self, batch: Entries, file: BinaryIO) -> None:
        file.write(batch.tobytes())


def _starts(entries: Entries) -> npt.NDArray[np.bool_]:
    """Return where in entries by id a new id begins."""
    low, high = entries["id_low"], entries["id_high"]
    starts = np.ones(len(entries), dtype=bool)
    starts[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return starts


def _contested(piece: Entries) -> Entries:
    """Return the first entry of each id that has entries with other content."""
    return piece[:-1][~_starts(piece)[1:]]


def _later(block: Entries, contested: Entries) -> Any:
    """Return the places of entries whose content is not that of the first one of their id."""
    first = contested[np.minimum(np.searchsorted(contested["id_low"], block["id_low"]), len(contested) - 1)]
    same_id = (first["id_low"] == block["id_low"]) & (first["id_high"] == block["id_high"])
    return block["at"][same_id & (first["content"] != block["content"])]


def _blocks(path: Path) -> Iterator[Entries]:
    with path.open("rb") as file:
        while len(block := np.fromfile(file, ENTRY, _BLOCK_ENTRIES)):
            yield block
