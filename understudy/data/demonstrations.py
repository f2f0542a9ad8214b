"""One demonstration, and how a dataset version stores it.

A dataset version is a folder of `train.parquet`, `validation.parquet`, `test.parquet` and `dataset.json`.
Each Parquet row is one demonstration in the columns of `COLUMNS`; nested values are canonical JSON text, so
that the same rows always give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from understudy.errors import ConfigError, IntegrityError

SCHEMA_VERSION = 1
SPLITS = ("train", "validation", "test")
COLUMNS = ("id", "group", "messages_json", "prompt", "response", "metadata_json", "row_sha256")


@dataclass(frozen=True)
class Demonstration:
    """What an expert answered to one prompt.

    Attributes:
        id: the row's own id, or the SHA-256 of its content.
        group: demonstrations of one group are always in the same split.
        messages: the context in order, each `{"role": "system" | "user" | "assistant", "content": text}`;
            the demonstration itself is not among them.
        prompt: the content of the last user turn in `messages`.
        response: what the expert answered.
        metadata: whatever the source carried; never read by training.
    """

    id: str
    group: str
    messages: tuple[dict[str, str], ...]
    prompt: str
    response: str
    metadata: dict[str, Any] = field(default_factory=dict)


def iterate_split(folder: Path, split: str) -> Iterator[Demonstration]:
    """Yield the demonstrations of one split in stored order, reading one row group at a time.

    Raises:
        ConfigError: `split` is not one of `SPLITS`.
        IntegrityError: the folder is not a dataset version, or one of another schema.
    """
    import pyarrow
    import pyarrow.parquet

    path = _split_path(folder, split)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if tuple(file.schema_arrow.names) != COLUMNS:
                raise IntegrityError(
                    f"{path} has columns {file.schema_arrow.names}, expected {list(COLUMNS)}. "
                    "It was written by another version; run ingest again."
                )
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield Demonstration(
                        id=row["id"],
                        group=row["group"],
                        messages=tuple(json.loads(row["messages_json"])),
                        prompt=row["prompt"],
                        response=row["response"],
                        metadata=json.loads(row["metadata_json"]),
                    )
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}. Fetch the dataset version again.") from error


def load_split(folder: Path, split: str) -> list[Demonstration]:
    """Return the demonstrations of one split of the dataset version in `folder`, in stored order.

    Raises:
        ConfigError: `split` is not one of `SPLITS`.
        IntegrityError: the folder is not a dataset version, or one of another schema.
    """
    return list(iterate_split(folder, split))


def _split_path(folder: Path, split: str) -> Path:
    if split not in SPLITS:
        raise ConfigError(f"There is no split {split!r}; a dataset version has {', '.join(SPLITS)}.")
    manifest = folder / "dataset.json"
    if not manifest.is_file():
        raise IntegrityError(f"{folder} holds no dataset.json, so it is not a finished dataset version. Run ingest.")
    try:
        version = json.loads(manifest.read_bytes())["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{manifest} is not a dataset manifest: {error!r}. Run ingest again.") from error
    if version != SCHEMA_VERSION:
        raise IntegrityError(f"{manifest} has schema version {version}, this program reads {SCHEMA_VERSION}.")
    return folder / f"{split}.parquet"
