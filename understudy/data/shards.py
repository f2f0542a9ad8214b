"""Parts of an ingest that run anywhere: each validates a part of the source into a folder, and one merge joins them.

    plan_shard → ingest_shard, once for each shard → understudy.data.ingest.merge_shards

A shard's folder holds the spool of its valid rows, their explicit ids, the rows it refused, the bands of its rows for
the near-duplicate search, and at last `shard.json`. An ingest in one process is an ingest of one shard, so any
number of shards gives the same dataset version, quarantine file and refusals.

A shard may begin and end within a file. It has the lines that start between its two cuts, so a cut need not know where
lines begin. It does not know how many lines are before it: it numbers its lines from its first one, and the merge adds
what earlier shards counted, for else each shard would have to read all that is before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from understudy.config import DataConfig
from understudy.data.dedup import Bander
from understudy.data.files import made, write_atomically
from understudy.data.ids import Places
from understudy.data.quarantine import Quarantine, with_lines_before
from understudy.data.rows import Limits, RowProblem, field_names, validate_row
from understudy.data.sources import Listing, Part, SourceFile, entries, has_parts
from understudy.data.spool import Spool, SpooledRows, num_buckets, place
from understudy.data.summary import count_ignored, ignored_in_messages
from understudy.errors import DataRefused, IntegrityError

QUARANTINE = "quarantine.jsonl"
REPORT = "shard.json"
FORMAT = 3
_BANDS = "bands"
_SHA256_BYTES = 32
# Params on which a shard's content depends; splits and the fraction of bad rows are the merge's.
_SETTINGS = ("source", "fields", "max_prompt_chars", "max_response_chars", "unicode_form", "near_duplicate_threshold")


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`: of a listing, from byte `first_byte` of `first_file` to before `end_byte` of `end_file`.

    Byte 0 is the start of a file, so where `end_byte` is 0, nothing of `end_file` belongs to the shard.
    """

    index: int
    count: int
    first_file: int
    first_byte: int
    end_file: int
    end_byte: int

    def parts(self) -> list[tuple[int, Part]]:
        """Return the index of each file that the shard reads, and what it reads of it; none is possible."""
        files = range(self.first_file, self.end_file + (self.end_byte > 0))
        return [
            (
                index,
                Part(
                    start=self.first_byte if index == self.first_file else 0,
                    end=self.end_byte if index == self.end_file else None,
                ),
            )
            for index in files
        ]


@dataclass(frozen=True)
class ShardReport:
    """What `shard.json` says: which part this is of what, and what was found in it.

    `begins_at` and `ends_at` are those of its parts of the files that it enters and leaves within, 0 if none.
    `lines_of_end_file` are the lines it has of the file that it leaves within, and `refused_of_first_file` the rows it
    refused of the file that it entered within, which stand first in its quarantine with lines counted from `begins_at`.
    """

    format: int
    index: int
    count: int
    first_file: int
    first_byte: int
    end_file: int
    end_byte: int
    begins_at: int
    ends_at: int
    lines_of_end_file: int
    refused_of_first_file: int
    listing_sha256: str
    settings: dict[str, Any]
    num_buckets: int
    rows: int
    bad_by_reason: dict[str, int]
    ignored_fields: dict[str, int]


def plan_shards(listing: Listing, count: int) -> tuple[Shard, ...]:
    """Cut the files, in reading order, into `count` runs of about equally many bytes; small listings leave some empty.

    A file that cannot be read in parts, being compressed, goes to one shard as a whole.

    Raises:
        ValueError: `count` is below 1.
        ConfigError: a file to be cut cannot be opened.
        DataRefused: a file to be cut ends before it can say what it is.
    """
    if count < 1:
        raise ValueError(f"the number of shards is {count}, it must be at least 1")
    return tuple(plan_shard(listing, index, count) for index in range(count))


def plan_shard(listing: Listing, index: int, count: int) -> Shard:
    """Return one shard of `plan_shards`, looking into no more files than the two it is cut in."""
    return Shard(index, count, *_cut(listing, index, count), *_cut(listing, index + 1, count))


def _cut(listing: Listing, index: int, count: int) -> tuple[int, int]:
    """Return file and byte at which shard `index` begins; for `index = count`, where the last one ends."""
    if index in (0, count):
        return (0 if index == 0 else len(listing.files)), 0
    total = sum(file.num_bytes for file in listing.files)
    # Empty files count as a byte each, if there are no others.
    sizes = [file.num_bytes if total else 1 for file in listing.files]
    inside = sum(sizes) * index // count
    for file_index, size in enumerate(sizes):
        if inside < size:
            if inside == 0 or has_parts(listing.files[file_index]):
                return file_index, inside
            # Whole, to the shard that has its middle.
            return file_index + (2 * inside > size), 0
        inside -= size
    return len(sizes), 0


def ingest_shard(listing: Listing, shard: Shard, config: DataConfig, folder: Path) -> ShardReport:
    """Validate the shard's lines into `folder`, which is made; its report is written last.

    Raises:
        DataRefused: a file is truncated or damaged.
        OSError: the disk is full.
    """
    buckets = num_buckets(sum(file.num_bytes for file in listing.files))
    spool = Spool(made(folder), buckets)
    ignored: dict[str, int] = {}
    parts, refused_first = shard.parts(), 0
    with (folder / QUARANTINE).open("wb") as file:
        refused = Quarantine(file)
        try:
            for index, part in parts:
                _spool_valid_rows(listing.files[index], index, part, limits_of(config), spool, refused, ignored)
                if part.start:
                    refused_first = refused.num_rows
        finally:
            spool.close()
    if config.near_duplicate_threshold is not None:
        _write_bands(folder, SpooledRows([folder], buckets, folder), config.near_duplicate_threshold)
    report = ShardReport(
        format=FORMAT,
        **dataclasses.asdict(shard),
        begins_at=parts[0][1].begins_at if shard.first_byte else 0,
        ends_at=parts[-1][1].ends_at if shard.end_byte else 0,
        lines_of_end_file=parts[-1][1].num_lines if shard.end_byte else 0,
        refused_of_first_file=refused_first,
        listing_sha256=listing_sha256(listing),
        settings=_settings(config),
        num_buckets=buckets,
        rows=spool.num_rows,
        bad_by_reason=dict(refused.by_reason),
        ignored_fields=ignored,
    )
    write_atomically(folder / REPORT, json.dumps(dataclasses.asdict(report), indent=1).encode() + b"\n")
    return report


class Shards:
    """All finished shards of one ingest, in the order of their files.

    Raises:
        IntegrityError: shards are missing, unfinished, of another ingest, or there twice.
        DataRefused: the source's files changed since a shard read them.
    """

    def __init__(self, listing: Listing, folders: Sequence[Path], config: DataConfig, scratch: Path) -> None:
        """Join the shards in `folders`, which are left as they are; temporary files go to `scratch`, which exists."""
        found = sorted(((_read_report(folder), folder) for folder in folders), key=lambda item: item[0].index)
        self.reports, self.folders = [report for report, _ in found], [folder for _, folder in found]
        _check(self.reports, listing, config)
        self.rows = SpooledRows(self.folders, self.reports[0].num_buckets, scratch)

    @property
    def num_rows(self) -> int:
        """Valid rows, exact duplicates and repeated ids among them."""
        return sum(report.rows for report in self.reports)

    @property
    def bad_by_reason(self) -> Counter[str]:
        """Refused rows by reason."""
        total: Counter[str] = Counter()
        for report in self.reports:
            total.update(report.bad_by_reason)
        return total

    @property
    def ignored_fields(self) -> dict[str, int]:
        """Fields that no schema names, by how many rows have them."""
        total: dict[str, int] = {}
        for report in self.reports:
            count_ignored(total, report.ignored_fields)
        return total

    def copy_refused(self, file: BinaryIO) -> None:
        """Write the rows that the shards refused to `file`, in reading order, with the lines of their whole files."""
        num_lines_before = 0
        for report, folder in zip(self.reports, self.folders, strict=True):
            with (folder / QUARANTINE).open("rb") as part:
                file.writelines(
                    with_lines_before(record, num_lines_before) for record in islice(part, report.refused_of_first_file)
                )
                shutil.copyfileobj(part, file)
            # A shard within one file leaves all lines before it to the next one, beside its own.
            stays = report.first_file == report.end_file
            num_lines_before = report.lines_of_end_file + (num_lines_before if stays else 0)

    def texts_with_bands(self, threshold: float, without: Places) -> Iterator[tuple[str, npt.NDArray[np.uint64]]]:
        """Yield text and bands of every row without exact duplicates, in the order of `SpooledRows.unique_rows`."""
        found = heapq.merge(*(_read_bands(folder / _BANDS, threshold) for folder in self.folders))
        for row in self.rows.unique_rows(without):
            sha256 = bytes.fromhex(row.sha256)
            # The same row in two shards, and rows left out, have bands that nobody asks for.
            bands = next((bands for other, bands in found if other == sha256), None)
            if bands is None:
                raise IntegrityError(f"No shard has the bands of row {row.sha256}. Run ingest again.")
            yield row.text, np.frombuffer(bands, dtype=np.uint64)


def listing_sha256(listing: Listing) -> str:
    """Digest of the files' names, sizes and versions, by which shards know that they are parts of the same source."""
    lines = [f"{file.num_bytes} {file.version} {file.name}\n" for file in listing.files]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _spool_valid_rows(
    file: SourceFile,
    index: int,
    part: Part,
    limits: Limits,
    spool: Spool,
    refused: Quarantine,
    ignored: dict[str, int],
) -> None:
    names, add = limits.names or field_names(None), spool.add
    known, messages = frozenset(names.values()), names.get("messages")
    for number, position, row, raw in entries(file, part, known):
        if type(row) is dict:
            if not row.keys() <= known:
                count_ignored(ignored, dict.fromkeys(sorted(row.keys() - known), 1))
            if messages in row:
                count_ignored(ignored, dict.fromkeys(sorted(ignored_in_messages(row[messages])), 1))
            try:
                add(validate_row(row, limits, raw), place(index, position))
            except RowProblem as problem:
                refused.add(file.name, number, problem, raw or row)
        elif isinstance(row, RowProblem):
            refused.add(file.name, number, row, raw)


def _write_bands(folder: Path, rows: SpooledRows, threshold: float) -> None:
    bander = Bander(threshold)
    with (folder / _BANDS).open("wb", buffering=1 << 18) as file:
        for row in rows.unique_rows():
            file.write(bytes.fromhex(row.sha256) + bander.bands(row.text).tobytes())


def _read_bands(path: Path, threshold: float) -> Iterator[tuple[bytes, bytes]]:
    size = _SHA256_BYTES + 8 * Bander(threshold).num_bands
    with path.open("rb", buffering=1 << 18) as file:
        while entry := file.read(size):
            yield entry[:_SHA256_BYTES], entry[_SHA256_BYTES:]


def _read_report(folder: Path) -> ShardReport:
    path = folder / REPORT
    if not path.is_file():
        raise IntegrityError(f"{folder} holds no {REPORT}, so it is not a finished shard. Run its shard again.")
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != FORMAT:
            raise IntegrityError(f"{path} has format {data['format']}, this program reads {FORMAT}. Run ingest again.")
        return ShardReport(**data)
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is not the report of a shard: {error!r}. Run its shard again.") from error


def _check(reports: list[ShardReport], listing: Listing, config: DataConfig) -> None:
    counts, indexes = sorted({report.count for report in reports}), [report.index for report in reports]
    if len(counts) != 1 or indexes != list(range(counts[0])):
        raise IntegrityError(
            f"Shards {indexes} of {counts or 'none'} are there; each of one ingest is needed once. Run ingest again."
        )
    here, wanted = listing_sha256(listing), _settings(config)
    for report in reports:
        if report.listing_sha256 != here:
            raise DataRefused(
                f"The files of {config.source!r} changed while they were ingested: shard {report.index} saw "
                f"{report.listing_sha256[:12]}, now they are {here[:12]} (names, sizes, versions). Run ingest again."
            )
        if report.settings != wanted:
            other = {name: value for name, value in report.settings.items() if wanted.get(name) != value}
            raise IntegrityError(f"Shard {report.index} was made with {other}, not as now {wanted}. Run ingest again.")
    _check_seams(reports, listing, config)


def _check_seams(reports: list[ShardReport], listing: Listing, config: DataConfig) -> None:
    """Refuse shards that do not join to the whole source, as when a file was written while its parts were read."""
    here = (0, 0, 0)
    for report in reports:
        if here != (report.first_file, report.first_byte, report.begins_at):
            break
        here = (report.end_file, report.end_byte, report.ends_at)
    else:
        if here == (len(listing.files), 0, 0):
            return
        raise IntegrityError(f"The shards end with file {here[0]} of {len(listing.files)}. Run ingest again.")
    raise DataRefused(
        f"The files of {config.source!r} changed while they were ingested: up to shard {report.index} they were read "
        f"to byte {here[2]} (cut at {here[1]}) of file {here[0]}, and it began at byte {report.begins_at} (cut at "
        f"{report.first_byte}) of file {report.first_file}. Run ingest again."
    )


def limits_of(config: DataConfig) -> Limits:
    """Return how the params have rows validated."""
    names = field_names(config.fields) if config.fields else None
    return Limits(config.max_prompt_chars, config.max_response_chars, config.unicode_form, names)


def _settings(config: DataConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", include=set(_SETTINGS))
