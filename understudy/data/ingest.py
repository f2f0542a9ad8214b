"""From source files to a dataset version: validate, quarantine, deduplicate, split, write canonical Parquet.

    source files ─validate→ spool by content hash ─sort, deduplicate→ near-duplicates ─split by group→ Parquet
                    └→ quarantine

Memory holds one bucket of the spool and one row group, whatever the size of the source.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.config import DataConfig
from understudy.data.demonstrations import COLUMNS, SCHEMA_VERSION, SPLITS
from understudy.data.quarantine import Quarantine, printable
from understudy.data.rows import FIELDS, Limits, RowProblem, validate_row
from understudy.data.sources import Listing, entries
from understudy.data.splits import default_group, split_of
from understudy.data.spool import Spool, Spooled, place
from understudy.data.summary import Summary, TextStatistics, count_ignored, ignored_in_messages, render_html
from understudy.errors import DataRefused, UnderstudyError

QUARANTINE = "quarantine.jsonl"
_ROW_GROUP_ROWS = 8192
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Ingested:
    """A finished dataset folder inside a temporary one, its summary, and where refused rows were written."""

    folder: Path
    summary: Summary
    quarantine: Path


@contextmanager
def ingest(listing: Listing, config: DataConfig, workdir: Path) -> Iterator[Ingested]:
    """Build a dataset version in a temporary folder that lives as long as the context.

    The quarantine file is put in place before anything else, also when the data is refused; summary files
    follow once the dataset is finished.

    Raises:
        DataRefused: no rows, too many bad ones, or a damaged file.
        UnderstudyError: the disk is full; nothing half-written stays.
    """
    with told_when_full(workdir), temporary_folder(workdir) as scratch:
        summary = Summary(
            source=printable(config.source),
            source_files=[printable(file.name) for file in listing.files],
            ignored_files=[printable(name) for name in listing.ignored],
            unicode_form=config.unicode_form,
            near_duplicate_threshold=config.near_duplicate_threshold,
        )
        spool = Spool(_made(scratch / "spool"), sum(file.num_bytes for file in listing.files))
        quarantine = workdir / QUARANTINE
        repeated = _validate(listing, config, spool, scratch, quarantine, summary)
        _refuse_bad_data(config, summary, quarantine)
        removed = _near_duplicates(spool, repeated, config, scratch)
        folder = _made(scratch / "dataset")
        _write_dataset(_without(spool.unique_rows(repeated), removed), config, folder, summary)
        summary.duplicates_near = len(removed)
        summary.duplicates_exact = summary.rows_in - summary.bad - summary.rows - len(removed)
        _warn_about_empty_splits(config, summary)
        _write_summary(summary, workdir)
        yield Ingested(folder, summary, quarantine)


@contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """Turn a full disk into an error for people."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_DISK:
            raise
        raise UnderstudyError(
            f"The disk that holds {str(folder)!r} is full ({error.strerror or error}). Nothing half-written was "
            "left there. Free some space or choose another --workdir, then run the same command again."
        ) from error


@contextmanager
def temporary_folder(workdir: Path) -> Iterator[Path]:
    """Give a new folder on the disk of `workdir`, removed at the end whatever happens."""
    base = _made(workdir / "tmp")
    folder = Path(tempfile.mkdtemp(prefix="ingest-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another ingest still has its folder there
            base.rmdir()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file aside, make it durable, and put it in place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _validate(
    listing: Listing, config: DataConfig, spool: Spool, scratch: Path, quarantine: Path, summary: Summary
) -> set[int]:
    """Spool every good row, quarantine every bad one; return the places of rows whose id is taken."""
    limits = Limits(config.max_prompt_chars, config.max_response_chars, config.unicode_form)
    aside = scratch / QUARANTINE
    with aside.open("wb") as file:
        refused = Quarantine(file)
        try:
            _spool_valid_rows(listing, limits, spool, refused, summary)
            spool.close()
            repeated = spool.repeated_ids()
            _quarantine_repeated_ids(listing, repeated, refused)
        finally:
            spool.close()
        file.flush()
        os.fsync(file.fileno())
    aside.replace(quarantine)
    summary.bad = refused.num_rows
    summary.bad_by_reason = dict(sorted(refused.by_reason.items(), key=lambda item: (-item[1], item[0])))
    summary.rows_in = spool.num_rows + refused.num_rows - len(repeated)
    return repeated


def _spool_valid_rows(listing: Listing, limits: Limits, spool: Spool, refused: Quarantine, summary: Summary) -> None:
    known, add = FIELDS, spool.add
    for file_index, file in enumerate(listing.files):
        for number, row, raw in entries(file):
            if type(row) is dict:
                if not row.keys() <= known:
                    count_ignored(summary.ignored_fields, row.keys() - known)
                if "messages" in row:
                    count_ignored(summary.ignored_fields, ignored_in_messages(row["messages"]))
                try:
                    add(validate_row(row, limits, raw), place(file_index, number))
                except RowProblem as problem:
                    refused.add(file.name, number, problem, raw or row)
            elif isinstance(row, RowProblem):
                refused.add(file.name, number, row, raw)


def _quarantine_repeated_ids(listing: Listing, repeated: set[int], refused: Quarantine) -> None:
    """Read the sources once more for the raw text of these rows, which the spool does not keep."""
    if not repeated:
        return
    for file_index, file in enumerate(listing.files):
        for number, row, raw in entries(file):
            if place(file_index, number) in repeated and isinstance(row, dict):
                detail = f"an earlier row with other content has the id {row['id']!r}"
                refused.add(file.name, number, RowProblem("duplicate id", detail), raw or row)


def _refuse_bad_data(config: DataConfig, summary: Summary, quarantine: Path) -> None:
    reasons = ", ".join(f"{reason} ({count})" for reason, count in list(summary.bad_by_reason.items())[:3])
    where = f"Every refused row is in {quarantine} with its line and reason."
    if summary.rows_in == 0:
        raise DataRefused(
            f"The source {config.source!r} holds no rows at all. Expected one JSON object a line, or Parquet rows, "
            "with prompt and response or messages."
        )
    if summary.bad == summary.rows_in:
        raise DataRefused(f"All {summary.bad} rows of {config.source!r} are bad: {reasons}. {where} Correct it.")
    fraction = summary.bad / summary.rows_in
    if fraction > config.max_bad_fraction:
        raise DataRefused(
            f"{summary.bad} of {summary.rows_in} rows of {config.source!r} are bad ({fraction:.1%}), above "
            f"data.max_bad_fraction {config.max_bad_fraction:.1%}. Most frequent reasons: {reasons}. {where} "
            "Correct the source, or raise data.max_bad_fraction if losing them is intended."
        )


def _near_duplicates(spool: Spool, repeated: set[int], config: DataConfig, scratch: Path) -> set[int]:
    """Return the indices of near-duplicates among the rows without exact duplicates."""
    if config.near_duplicate_threshold is None:
        return set()
    from understudy.data.dedup import near_duplicates

    texts = (
        "\n".join([*(turn["content"] for turn in row.messages), row.response]) for row in spool.unique_rows(repeated)
    )
    folder = _made(scratch / "near")
    removed = near_duplicates(texts, spool.num_rows, config.near_duplicate_threshold, folder)
    shutil.rmtree(folder)
    return removed


def _without(rows: Iterator[Spooled], removed: set[int]) -> Iterator[Spooled]:
    return (row for index, row in enumerate(rows) if index not in removed) if removed else rows


def _write_dataset(rows: Iterator[Spooled], config: DataConfig, folder: Path, summary: Summary) -> None:
    statistics = TextStatistics()
    counts = dict.fromkeys(SPLITS, 0)
    with ExitStack() as stack:
        writers = {split: stack.enter_context(_SplitWriter(folder / f"{split}.parquet")) for split in SPLITS}
        for row in rows:
            group = row.group if row.group is not None else default_group(row.user_turns)
            split = split_of(group, config.splits)
            writers[split].add(row, group)
            counts[split] += 1
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
        "parquet_sha256": {split: _file_sha256(folder / f"{split}.parquet") for split in SPLITS},
    }
    write_atomically(folder / "dataset.json", json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n")


class _SplitWriter:
    """Writes canonical Parquet: fixed row groups and no metadata, so equal rows are equal bytes."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._pyarrow = pyarrow
        self._schema = pyarrow.schema([pyarrow.field(name, pyarrow.string(), nullable=False) for name in COLUMNS])
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd", store_schema=False)
        self._rows: list[tuple[str, ...]] = []

    def add(self, row: Spooled, group: str) -> None:
        sha256, messages_json, prompt, response, row_id, _, metadata_json = row
        name = row_id if row_id is not None else sha256
        self._rows.append((name, group, messages_json, prompt, response, metadata_json, sha256))
        if len(self._rows) == _ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        arrays = [self._pyarrow.array(column, type=self._pyarrow.string()) for column in zip(*self._rows, strict=True)]
        self._writer.write_table(self._pyarrow.table(arrays, schema=self._schema), row_group_size=_ROW_GROUP_ROWS)
        self._rows = []

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *rest: object) -> None:
        if error_type is None and self._rows:
            self._flush()
        self._writer.close()


def _warn_about_empty_splits(config: DataConfig, summary: Summary) -> None:
    wanted = {"train": 1.0, "validation": config.splits.validation, "test": config.splits.test}
    for split, fraction in wanted.items():
        if fraction > 0 and summary.splits[split] == 0:
            summary.warnings.append(
                f"The {split} split is empty: {summary.rows} rows fall into too few groups for a fraction of "
                f"{fraction:g}. Add demonstrations, use more groups, or raise data.splits."
            )


def _write_summary(summary: Summary, workdir: Path) -> None:
    data: dict[str, Any] = summary.to_json()
    folder = workdir / "ingest"
    write_atomically(folder / "summary.json", json.dumps(data, indent=1, ensure_ascii=False).encode() + b"\n")
    write_atomically(folder / "summary.html", render_html(data).encode())


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
