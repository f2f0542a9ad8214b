"""A bucket of any size in pieces that fit into memory: each in order, and no key in two of them.

A bucket that fits is one piece. Of a larger one repeats go while it is read, since all that repeats a key is in the
same bucket, and what stays is cut, if it is still too much, by the next bits of the keys into files, each a smaller
bucket. So memory depends neither on how well a source was compressed nor on how often a row stands in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, TypeVar

CUT_BITS = 6
# Of a bucket that does not fit, less is held at a time: repeats may be most of it.
_PART_HELD = 4

Batch = TypeVar("Batch")


class Kind(Protocol[Batch]):
    """What a bucket holds: entries with a key of some bits, of which batches are held in memory."""

    key_bits: int

    def none(self) -> Batch:
        """Return a batch without entries."""

    def read(self, file: BinaryIO, num_bytes: int) -> Batch:
        """Read about as many bytes, at least one entry; none at the end of the file."""

    def joined(self, first: Batch, second: Batch) -> Batch:
        """Return both, of which the first is not used any more."""

    def sizes(self, batch: Batch) -> tuple[int, int]:
        """Return how many entries these are, and of how many bytes."""

    def in_order(self, batch: Batch) -> Batch:
        """Return the entries by rising keys, without those that matter no more beside others of their key."""

    def cut(self, batch: Batch, first_bit: int) -> Iterator[tuple[int, Batch]]:
        """Yield what `in_order` returned in parts by `CUT_BITS` bits of the key from `first_bit`; none is empty."""

    def write(self, batch: Batch, file: BinaryIO) -> None:
        """Write the batch so that `read` reads it."""


def pieces(
    kind: Kind[Batch], paths: Sequence[Path], first_bit: int, limit_bytes: int, scratch: Path
) -> Iterator[Batch]:
    """Yield what the files of a bucket hold, as `kind.in_order` would return it, in pieces of up to about the limit.

    Who goes on to the next piece should hold the one before no more.

    Args:
        kind: how entries are read, ordered and written.
        paths: the bucket's files.
        first_bit: the bits before it are those that all keys of the bucket share.
        limit_bytes: of what is held at a time; one entry may be more.
        scratch: receives temporary files, about as large as the bucket where that does not fit.
    """
    sizes = {path: path.stat().st_size for path in paths}
    if sum(sizes.values()) <= limit_bytes:
        yield kind.in_order(_whole(kind, sizes))
        return
    with tempfile.TemporaryDirectory(prefix="cut-", dir=scratch) as folder:
        rest = _cut_to_fit(kind, paths, first_bit, limit_bytes // _PART_HELD, Path(folder))
        parts = sorted(Path(folder).iterdir())
        if not parts:
            yield rest
        del rest
        for part in parts:
            yield from pieces(kind, [part], first_bit + CUT_BITS, limit_bytes, scratch)
            part.unlink()


def _whole(kind: Kind[Batch], sizes: Mapping[Path, int]) -> Batch:
    held = kind.none()
    for path, num_bytes in sizes.items():
        with path.open("rb") as file:
            held = kind.joined(held, kind.read(file, num_bytes))
    return held


def _cut_to_fit(kind: Kind[Batch], paths: Sequence[Path], first_bit: int, full_bytes: int, folder: Path) -> Batch:
    """Read a bucket; return it in order if without repeats it fits, else leave it in files named after their bits."""
    has_bits = first_bit + CUT_BITS <= kind.key_bits  # else only equal keys are left
    held, held_bytes = kind.none(), 0
    for batch in _batches(kind, paths, full_bytes // 2):
        held_bytes += kind.sizes(batch)[1]
        held = kind.joined(held, batch)
        if held_bytes < full_bytes:
            continue
        held = kind.in_order(held)
        num_entries, held_bytes = kind.sizes(held)
        if held_bytes > full_bytes // 2 and num_entries > 1 and has_bits:
            _spill(kind, held, first_bit, folder)
            held, held_bytes = kind.none(), 0
    held = kind.in_order(held)
    if not any(folder.iterdir()):
        return held
    _spill(kind, held, first_bit, folder)
    return kind.none()


def _batches(kind: Kind[Batch], paths: Sequence[Path], num_bytes: int) -> Iterator[Batch]:
    for path in paths:
        with path.open("rb") as file:
            while kind.sizes(batch := kind.read(file, max(1, num_bytes)))[0]:
                yield batch


def _spill(kind: Kind[Batch], held: Batch, first_bit: int, folder: Path) -> None:
    for index, part in kind.cut(held, first_bit):
        with (folder / f"{index:02d}").open("ab") as file:
            kind.write(part, file)
