"""Rows in canonical order to a dataset version: splits by group, canonical Parquet, a manifest, statistics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from understudy.config import DataConfig
from understudy.data.demonstrations import COLUMNS, SCHEMA_VERSION, SPLITS
from understudy.data.files import file_sha256, write_atomically
from understudy.data.splits import default_group, split_of
from understudy.data.spool import Spooled
from understudy.data.summary import Summary, TextStatistics

ENOUGH_GROUPS = 6  # for an interval of 95%: docs/gate.md
_ROW_GROUP_ROWS = 8192


def write_dataset(rows: Iterator[Spooled], config: DataConfig, folder: Path, summary: Summary) -> dict[str, int]:
    """Split the rows, which come in canonical order, write them and fill the summary.

    Returns:
        The groups in each split, counted up to `ENOUGH_GROUPS`.
    """
    statistics = TextStatistics()
    counts = dict.fromkeys(SPLITS, 0)
    groups: dict[str, set[str]] = {split: set() for split in SPLITS}
    with ExitStack() as stack:
        writers = {split: stack.enter_context(SplitWriter(folder / f"{split}.parquet")) for split in SPLITS}
        for row in rows:
            group = row.group if row.group is not None else default_group(row.user_turns)
            split = split_of(group, config.splits)
            writers[split].add(row, group)
            counts[split] += 1
            if len(groups[split]) < ENOUGH_GROUPS:
                groups[split].add(group)
            statistics.add(row.prompt, row.response)
    statistics.fill(summary)
    summary.splits, summary.rows = counts, sum(counts.values())
    # Only what follows from the rows: no time, no path, no setting that left the rows as they are.
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "columns": list(COLUMNS),
        "rows": summary.rows,
        "splits": counts,
        "nfc": summary.nfc,
        "parquet_sha256": {split: file_sha256(folder / f"{split}.parquet") for split in SPLITS},
    }
    write_atomically(folder / "dataset.json", json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")
    return {split: len(found) for split, found in groups.items()}


class SplitWriter:
    """Writes canonical Parquet: fixed row groups and no metadata, so equal rows are equal bytes."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._pyarrow = pyarrow
        self._schema = pyarrow.schema([pyarrow.field(name, pyarrow.string(), nullable=False) for name in COLUMNS])
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd", store_schema=False)
        self._rows: list[tuple[str, ...]] = []

    def add(self, row: Spooled, group: str) -> None:
        """Write one row, or keep it until its row group is full."""
        sha256, messages_json, prompt, response, row_id, _, metadata_json = row
        name = row_id if row_id is not None else sha256
        self._rows.append((name, group, messages_json, prompt, response, metadata_json, sha256))
        if len(self._rows) == _ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        arrays = [self._pyarrow.array(column, type=self._pyarrow.string()) for column in zip(*self._rows, strict=True)]
        self._writer.write_table(self._pyarrow.table(arrays, schema=self._schema), row_group_size=_ROW_GROUP_ROWS)
        self._rows = []

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *rest: object) -> None:
        if error_type is None and self._rows:
            self._flush()
        self._writer.close()
