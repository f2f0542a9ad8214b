"""From source files to a dataset version: validate, quarantine, deduplicate, split, write canonical Parquet.

    source files ─validate→ spool by content hash ─sort, deduplicate→ near-duplicates ─split by group→ Parquet
                    └→ quarantine

The first arrow is `understudy.data.shards`, in one shard or several; the rest, here, joins them. Memory holds one
bucket of the spool, or a piece of a large one, and one row group, whatever the size of the source, its compression and
its repeats; beside them 8 bytes for each row that is refused for its id, and the near-duplicate search's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.config import DataConfig
from understudy.data.files import made, temporary_folder, told_when_full
from understudy.data.ids import Places, is_digest
from understudy.data.quarantine import Quarantine, printable
from understudy.data.rows import Limits, RowProblem, field_names, validate_row
from understudy.data.shards import QUARANTINE, Shards, ingest_shard, limits_of, plan_shards
from understudy.data.sources import Listing, entries
from understudy.data.spool import Spooled, content_of, file_of, place
from understudy.data.summary import Summary
from understudy.data.writing import ENOUGH_GROUPS, write_dataset
from understudy.errors import DataRefused


@dataclass(frozen=True)
class Ingested:
    """A finished dataset folder inside a temporary one, its summary, and where refused rows were written."""

    folder: Path
    summary: Summary
    quarantine: Path


@contextmanager
def ingest(listing: Listing, config: DataConfig, workdir: Path) -> Iterator[Ingested]:
    """Build a dataset version in a temporary folder that lives as long as the context.

    The quarantine file is put in place before anything else, also when the data is refused.

    Raises:
        DataRefused: no rows, too many bad ones, or a damaged file.
        UnderstudyError: the disk is full; nothing half-written stays.
    """
    with told_when_full(workdir), temporary_folder(workdir) as scratch:
        (whole,) = plan_shards(listing, 1)
        ingest_shard(listing, whole, config, scratch / "shard")
        yield _merged(listing, [scratch / "shard"], config, scratch, workdir)


@contextmanager
def merge_shards(listing: Listing, folders: Sequence[Path], config: DataConfig, workdir: Path) -> Iterator[Ingested]:
    """Build from all shards of `listing`, in `folders` of any order, what `ingest` builds from the files themselves.

    Raises:
        IntegrityError: shards are missing, unfinished, of another ingest, or there twice.
        DataRefused: as `ingest`; also when the source changed since a shard read it.
        UnderstudyError: the disk is full; nothing half-written stays.
    """
    with told_when_full(workdir), temporary_folder(workdir) as scratch:
        yield _merged(listing, folders, config, scratch, workdir)


def _merged(listing: Listing, folders: Sequence[Path], config: DataConfig, scratch: Path, workdir: Path) -> Ingested:
    shards = Shards(listing, folders, config, scratch)
    summary = Summary(
        source=printable(config.source),
        source_files=[printable(file.name) for file in listing.files],
        ignored_files=[printable(name) for name in listing.ignored],
        unicode_form=config.unicode_form,
        near_duplicate_threshold=config.near_duplicate_threshold,
        ignored_fields=shards.ignored_fields,
    )
    quarantine = workdir / QUARANTINE
    repeated = shards.rows.repeated_ids()
    _gather_quarantine(listing, shards, repeated, config, scratch, quarantine, summary)
    _refuse_bad_data(config, summary, quarantine)
    removed = _near_duplicates(shards, repeated, config, scratch)
    folder = made(scratch / "dataset")
    groups = write_dataset(_without(shards.rows.unique_rows(repeated), removed), config, folder, summary)
    summary.duplicates_near = len(removed)
    summary.duplicates_exact = summary.rows_in - summary.bad - summary.rows - len(removed)
    summary.warnings += [*empty_splits(config, summary), *_small_splits(config, summary, groups)]
    return Ingested(folder, summary, quarantine)


def _gather_quarantine(
    listing: Listing,
    shards: Shards,
    repeated: Places,
    config: DataConfig,
    scratch: Path,
    quarantine: Path,
    summary: Summary,
) -> None:
    """Put what the shards refused, and then the rows whose id is taken, into one file; fill the summary's counts."""
    aside = scratch / QUARANTINE
    with aside.open("wb") as file:
        shards.copy_refused(file)
        refused = Quarantine(file, shards.bad_by_reason)
        _quarantine_repeated_ids(listing, repeated, config, refused)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(quarantine)
    summary.bad = refused.num_rows
    summary.bad_by_reason = dict(sorted(refused.by_reason.items(), key=lambda item: (-item[1], item[0])))
    summary.rows_in = shards.num_rows + refused.num_rows - len(repeated)


def _quarantine_repeated_ids(listing: Listing, repeated: Places, config: DataConfig, refused: Quarantine) -> None:
    """Read their files once more for the raw text of these rows, which the spool does not keep."""
    limits, names = limits_of(config), frozenset(field_names(config.fields).values())
    wanted = map(int, repeated)  # rising, as rows are read
    at = next(wanted, None)
    while at is not None:
        index = file_of(at)
        for number, position, row, raw in entries(listing.files[index], read=names):
            here = place(index, position)
            while at is not None and at < here:  # no longer there
                at = next(wanted, None)
            if at == here and isinstance(row, dict):
                refused.add(listing.files[index].name, number, _taken(row, raw, limits), raw or row)
        while at is not None and file_of(at) == index:
            at = next(wanted, None)


def _taken(row: dict[str, Any], raw: bytes | None, limits: Limits) -> RowProblem:
    """Return the problem of a row whose id an earlier one has; of one that changed since it was read, that it has."""
    try:
        valid = validate_row(row, limits, raw)
    except RowProblem as problem:
        return problem
    digest = hashlib.sha256(content_of(valid.messages, valid.response)).hexdigest()
    taken = f"an earlier row with other content has the id {digest if valid.id is None else valid.id!r}"
    if valid.id is None:
        taken += ", which this row, having none, would get from its content"
    elif is_digest(valid.id):
        taken += "; a row without an id has the SHA-256 of its content"
    return RowProblem("duplicate id", taken)


def _refuse_bad_data(config: DataConfig, summary: Summary, quarantine: Path) -> None:
    reasons = ", ".join(f"{reason} ({count})" for reason, count in list(summary.bad_by_reason.items())[:3])
    where = f"Every refused row is in {quarantine} with its line and reason."
    if summary.rows_in == 0:
        raise DataRefused(
            f"The source {config.source!r} holds no rows at all. Expected one JSON object a line, or Parquet rows, "
            "with prompt and response or messages."
        )
    if summary.bad == summary.rows_in:
        raise DataRefused(
            f"All {summary.bad} rows of {config.source!r} are bad: {reasons}. {_first_refused(quarantine, summary)} "
            f"{where} Correct it."
        )
    fraction = summary.bad / summary.rows_in
    if fraction > config.max_bad_fraction:
        raise DataRefused(
            f"{summary.bad} of {summary.rows_in} rows of {config.source!r} are bad ({fraction:.1%}), above "
            f"data.max_bad_fraction {config.max_bad_fraction:.1%}. Most frequent reasons: {reasons}. "
            f"{_first_refused(quarantine, summary)} {where} "
            "Correct the source, or raise data.max_bad_fraction if losing them is intended."
        )


def _first_refused(quarantine: Path, summary: Summary) -> str:
    """Say of the first refused row what is wrong with it, and of what is not JSON lines what it looks like."""
    with quarantine.open("rb") as file:
        first = json.loads(file.readline())
    place = f"{first['source']}, line {first['line']}" if len(summary.source_files) > 1 else f"line {first['line']}"
    said = f"The first is {place}: {first['detail']}."
    if first["reason"] == "missing field":
        said += " What the source calls its fields can be told by data.fields, as {prompt: input, response: output}."
    start = first["raw"].lstrip("\ufeff").lstrip()
    if start.startswith("["):
        form, read = "one JSON array", "json.load(sys.stdin)"
    elif first["reason"] != "not JSON":
        return said
    elif start.rstrip() == "{":
        form, read = "one JSON object over several lines", "[json.load(sys.stdin)]"
    elif "," in start and not start.startswith("{") and summary.bad == summary.rows_in:
        form, read = "CSV", "csv.DictReader(sys.stdin)"
    else:
        return said
    return (
        f"{said} It looks like {form}; one JSON object a line is read: `python3 -c 'import csv, json, sys; "
        f"[print(json.dumps(row)) for row in {read}]' < FILE > FILE.jsonl` writes that."
    )


def _near_duplicates(shards: Shards, repeated: Places, config: DataConfig, scratch: Path) -> set[int]:
    """Return the indices of near-duplicates among the rows without exact duplicates."""
    threshold = config.near_duplicate_threshold
    if threshold is None:
        return set()
    from understudy.data.dedup import similar_rows

    folder = made(scratch / "near")
    rows = shards.texts_with_bands(threshold, repeated)
    removed = similar_rows(rows, shards.num_rows, threshold, folder)
    shutil.rmtree(folder)
    return removed


def _without(rows: Iterator[Spooled], removed: set[int]) -> Iterator[Spooled]:
    return (row for index, row in enumerate(rows) if index not in removed) if removed else rows


def empty_splits(config: DataConfig, summary: Summary) -> list[str]:
    """Say which splits have no row although the params want some in them."""
    wanted = {"train": 1.0, "validation": config.splits.validation, "test": config.splits.test}
    return [
        f"The {split} split is empty: {summary.rows} rows fall into too few groups for a fraction of "
        f"{fraction:g}. Add demonstrations, use more groups, or raise data.splits."
        for split, fraction in wanted.items()
        if fraction > 0 and summary.splits[split] == 0
    ]


def _small_splits(config: DataConfig, summary: Summary, groups: Mapping[str, int]) -> Iterator[str]:
    """Say which splits that evaluation reads have rows, and too few groups to measure anything with an interval."""
    for split, fraction in {"validation": config.splits.validation, "test": config.splits.test}.items():
        if 0 < groups[split] < ENOUGH_GROUPS:
            yield (
                f"The {split} split has {groups[split]} group{'s' if groups[split] > 1 else ''} "
                f"({summary.splits[split]} of {summary.rows} rows): below {ENOUGH_GROUPS} an evaluation gives no 95% "
                f"interval, and calls nothing better. Add demonstrations, use more groups, or raise "
                f"data.splits.{split} from {fraction:g}."
            )
