"""Near-duplicates: MinHash signatures propose pairs, the true Jaccard similarity of their shingles decides.

Rows come in the order of their content hash. A row is removed when an earlier row that stays is at least
`threshold` similar, so every removed row has a kept one beside it, and file order plays no part. Signatures and
texts lie on disk; in memory are about 40 bytes a row while one band is sorted, and the rows that share a band.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

SHINGLE_CHARS = 5
_NUM_PERMUTATIONS = 128
_SEED = 1
# A row is compared with the candidates that share most bands with it. The caps keep a data set of one repeated
# template from costing quadratic time; both are far above what distinct texts reach.
_MAX_COMPARED = 32
_MAX_KEPT_PER_BAND = 256


def shingles(text: str) -> frozenset[str]:
    """Return all substrings of `SHINGLE_CHARS` characters; a shorter text is its own only shingle."""
    if len(text) <= SHINGLE_CHARS:
        return frozenset((text,))
    return frozenset([text[start : start + SHINGLE_CHARS] for start in range(len(text) - SHINGLE_CHARS + 1)])


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """Return |A ∩ B| / |A ∪ B| of two non-empty sets."""
    common = len(first & second)
    return common / (len(first) + len(second) - common)


class Bander:
    """Turns a text into one number a band; texts that are `threshold` similar are likely to share a number."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        lsh = MinHashLSH(threshold=min(threshold, 0.99), num_perm=_NUM_PERMUTATIONS, weights=(0.1, 0.9))
        self.num_bands, self._used = lsh.b, lsh.b * lsh.r
        self._template = MinHash(
            num_perm=_NUM_PERMUTATIONS, seed=_SEED, hashfunc=xxhash.xxh32_intdigest, scheme="affine32"
        )

    def bands(self, text: str) -> npt.NDArray[np.uint64]:
        """Return the numbers, shape (num_bands,)."""
        signature = self._template.copy()
        signature.update_batch([shingle.encode() for shingle in shingles(text)])
        values = np.ascontiguousarray(signature.hashvalues[: self._used]).reshape(self.num_bands, -1)
        return np.array([xxhash.xxh3_64_intdigest(band.tobytes()) for band in values], dtype=np.uint64)


def similar_rows(
    rows: Iterable[tuple[str, npt.NDArray[np.uint64]]], max_rows: int, threshold: float, folder: Path
) -> set[int]:
    """Return the indices of rows to remove; `folder` receives temporary files.

    Args:
        rows: prompt and response of each row and its bands by a `Bander` of this threshold, in a canonical order.
        max_rows: at least as many as there are rows.
        threshold: Jaccard similarity in (0, 1] from which two texts count as one.
        folder: an existing folder for signatures and texts.
    """
    num_bands = Bander(threshold).num_bands
    bands = np.memmap(folder / "bands", dtype=np.uint64, mode="w+", shape=(num_bands, max(1, max_rows)))
    store = _Texts(folder / "texts", max_rows)
    num_rows = 0
    for num_rows, (text, values) in enumerate(rows, start=1):  # noqa: B007
        bands[:, num_rows - 1] = values
        store.add(text)
    store.finish()
    shared = _shared_bands(bands, num_rows, folder)
    return _greedy(shared, store, threshold)


def _shared_bands(bands: Any, num_rows: int, folder: Path) -> Any:
    """Return an array (rows, bands) on disk: the number of the band's value if several rows have it, else -1."""
    num_bands = bands.shape[0]
    shared = np.memmap(folder / "shared", dtype=np.int32, mode="w+", shape=(max(1, num_rows), num_bands))
    for band in range(num_bands):
        _, inverse, counts = np.unique(bands[band, :num_rows], return_inverse=True, return_counts=True)
        shared[:num_rows, band] = np.where(counts[inverse] > 1, inverse, -1)
    return shared[:num_rows]


def _greedy(shared: Any, store: _Texts, threshold: float) -> set[int]:
    removed: set[int] = set()
    kept: dict[tuple[int, int], list[int]] = defaultdict(list)
    cached = lru_cache(maxsize=4096)(lambda index: shingles(store.get(index)))
    block = 65536
    for start in range(0, len(shared), block):
        part = np.asarray(shared[start : start + block])
        for offset in np.flatnonzero((part >= 0).any(axis=1)).tolist():
            index = start + offset
            keys = [(band, value) for band, value in enumerate(part[offset].tolist()) if value >= 0]
            votes = Counter(candidate for key in keys for candidate in kept.get(key, ()))
            ranked = sorted(votes, key=lambda candidate: (-votes[candidate], candidate))[:_MAX_COMPARED]
            if any(jaccard(cached(index), cached(candidate)) >= threshold for candidate in ranked):
                removed.add(index)
                continue
            for key in keys:
                if len(kept[key]) < _MAX_KEPT_PER_BAND:
                    kept[key].append(index)
    return removed


class _Texts:
    """Texts on disk, read back by index."""

    def __init__(self, path: Path, max_rows: int) -> None:
        self._path = path
        self._ends = np.memmap(path.with_suffix(".ends"), dtype=np.uint64, mode="w+", shape=(max_rows + 1,))
        self._file: BinaryIO = path.open("wb", buffering=1 << 18)
        self._num_rows = 0
        self._num_bytes = 0

    def add(self, text: str) -> None:
        self._num_bytes += self._file.write(text.encode())
        self._num_rows += 1
        self._ends[self._num_rows] = self._num_bytes

    def finish(self) -> None:
        self._file.close()
        self._file = self._path.open("rb")

    def get(self, index: int) -> str:
        start, end = int(self._ends[index]), int(self._ends[index + 1])
        self._file.seek(start)
        return self._file.read(end - start).decode()
