"""Whether a model has seen what it is judged by: test rows among those that anything behind it trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path


def row_digests(folder: Path, split: str) -> Iterator[bytes]:
    """Give a digest of each row's context and response; its id, group and metadata do not count."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(folder / f"{split}.parquet") as file:
        for batch in file.iter_batches(columns=["messages_json", "response"]):
            columns = batch.to_pydict()
            for messages, response in zip(columns["messages_json"], columns["response"], strict=True):
                yield hashlib.sha256(f"{messages}\0{response}".encode("utf-8", "surrogatepass")).digest()


def seen_test_rows(test_folder: Path, train_folder: Path) -> tuple[int, int]:
    """Return how many rows of one version's test split are in another's train split, and how many there are."""
    test = set(row_digests(test_folder, "test"))
    return len(test.intersection(row_digests(train_folder, "train"))), len(test)
