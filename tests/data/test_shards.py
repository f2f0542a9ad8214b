"""Any number of shards, cut anywhere, gives what one process gives: version, quarantine file, summary, refusals."""

from __future__ import annotations

import gzip
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from understudy.config import DataConfig
from understudy.data.ingest import ingest, merge_shards
from understudy.data.shards import Shard, ingest_shard, plan_shard, plan_shards
from understudy.data.sources import Listing, Part, SourceFile, entries, list_sources
from understudy.errors import DataRefused, IntegrityError

TINY = Path(__file__).parents[2] / "examples" / "tiny" / "demonstrations.jsonl"
NASTY: list[bytes] = [
    b'{"prompt": "p", "response": "r", "extra": 1}',
    b'{"prompt": "p", "response": "r", "group": "g"}',  # an exact duplicate
    b'{"id": 7, "prompt": "taken", "response": "first"}',
    b'{"id": "7", "prompt": "taken", "response": "second"}',  # the id is taken
    b'{"id": 7, "prompt": "taken", "response": "first"}',  # id and content alike: a duplicate only
    b'{"id": 7, "prompt": "taken", "response": "third"}',
    b'{"prompt": "' + b"long " * 30 + b'", "response": "' + b"answer " * 20 + b'"}',
    b'{"prompt": "' + b"long " * 30 + b'", "response": "' + b"answer " * 20 + b'!"}',  # a near-duplicate
    b'{"prompt": "Long ' + b"long " * 29 + b'", "response": "' + b"answer " * 20 + b'"}',
    b"not JSON",
    b"\xff\xfe",
    b'{"prompt": "p", "prompt": "q", "response": "r"}',
    b'{"prompt": "", "response": "r"}',
    b'{"prompt": "\\u0007", "response": "r", "id": 7}',
    b"",
    b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], "more": 2}',
    b'{"prompt": "named", "response": "by its content"}',
    b'{"id": "%b", "prompt": "named", "response": "by the content of another"}'
    % sha256(b'[{"role":"user","content":"named"}]\t"by its content"').hexdigest().encode(),
]
LINE_ENDS = (b"\n", b"\n", b"\r\n", b" \n", b"\n\n", b"\n\r\n", b"\n\xef\xbb\xbf\n")
LIMIT_BYTES = 700
WIDE: list[bytes] = [
    '{"prompt": "Schöne Grüße", "response": "日本語 🙂🙂🙂"}'.encode(),
    '{"prompt": "ü", "response": "🙂"'.encode(),  # not JSON
    b'{"prompt": "' + "日".encode()[:2] + b'", "response": "cut off within a character"}',
    b"\xfe" * 40,
    b'{"prompt": "p", "response": "' + b"x" * LIMIT_BYTES + b'"}',
    b'{"prompt": "p", "response": "' + b"x" * 5 * LIMIT_BYTES + b'"}',
]
Found = tuple[dict[str, bytes], bytes, dict[str, Any]]


def config(source: Path, **changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "source": str(source),
        "max_prompt_chars": 2000,
        "max_response_chars": 4000,
        "max_bad_fraction": 0.5,
        "near_duplicate_threshold": 0.8,
        "splits": {"validation": 0.1, "test": 0.2},
        "unicode_form": "keep",
        "fields": None,
    }
    return DataConfig(**{**values, **changes})


def write_files(folder: Path, num_files: int, seed: int) -> Path:
    """The tiny demonstrations and the nasty rows, shuffled into files of chance sizes, some compressed, some empty."""
    draw = random.Random(seed)
    lines = TINY.read_bytes().splitlines()[:60] + NASTY
    draw.shuffle(lines)
    cuts = sorted(draw.randrange(len(lines) + 1) for _ in range(num_files - 1))
    folder.mkdir(parents=True)
    for index, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(lines)], strict=True)):
        content = b"".join(line + b"\n" for line in lines[start:end])
        if draw.random() < 0.3:
            (folder / f"{index}.jsonl.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{index}.jsonl").write_bytes(content)
    return folder


def whole(listing: Listing, settings: DataConfig, workdir: Path) -> Found:
    with ingest(listing, settings, workdir) as found:
        files = {path.name: path.read_bytes() for path in sorted(found.folder.iterdir())}
        return files, (workdir / "quarantine.jsonl").read_bytes(), found.summary.to_json()


def merged(listing: Listing, shards: Sequence[Shard], settings: DataConfig, workdir: Path) -> Found:
    folders = [workdir / "shards" / f"{shard.index}" for shard in shards]
    for shard, folder in zip(shards, folders, strict=True):
        ingest_shard(listing, shard, settings, folder)
    # Shards end in any order.
    random.Random(len(shards)).shuffle(folders)
    with merge_shards(listing, folders, settings, workdir) as found:
        files = {path.name: path.read_bytes() for path in sorted(found.folder.iterdir())}
        return files, (workdir / "quarantine.jsonl").read_bytes(), found.summary.to_json()


def between(cuts: Sequence[tuple[int, int]]) -> list[Shard]:
    """Shards between cuts, which are files and bytes in them."""
    pairs = list(zip(cuts, cuts[1:], strict=False))
    return [Shard(index, len(pairs), *start, *end) for index, (start, end) in enumerate(pairs)]


def cut_by_chance(num_files: int, seed: int) -> list[Shard]:
    draw = random.Random(seed)
    inner = sorted(draw.randrange(num_files + 1) for _ in range(draw.randrange(num_files + 1)))
    return between([(index, 0) for index in (0, *inner, num_files)])


def write_one_file(path: Path, draw: random.Random) -> bytes:
    """All rows in lines of all kinds of ends; sometimes a byte order mark, sometimes no end of the last line."""
    lines = TINY.read_bytes().splitlines()[:40] + NASTY + WIDE
    draw.shuffle(lines)
    content = b"".join(line + draw.choice(LINE_ENDS) for line in lines)
    content = draw.choice((b"", b"\xef\xbb\xbf", b"\n")) + content
    path.write_bytes(content.rstrip(b"\r\n ") if draw.random() < 0.5 else content)
    return path.read_bytes()


def nasty_bytes(content: bytes, draw: random.Random) -> int:
    """Where a cut is likely to hurt: around the start of a line, within a long line, anywhere, near the ends."""
    starts = [0, *(index + 1 for index, byte in enumerate(content[:-1]) if byte == ord("\n"))]
    around = draw.choice(starts) + draw.choice((-2, -1, 0, 1, 2))
    long = content.index(b"x" * LIMIT_BYTES) + draw.randrange(LIMIT_BYTES)
    anywhere = draw.randrange(len(content))
    return min(max(draw.choice((around, around, long, anywhere, 1, len(content) - 1)), 0), len(content) - 1)


@pytest.mark.parametrize("threshold", [0.8, None])
@pytest.mark.parametrize("seed", range(4))
def test_any_cut_gives_the_version_of_one_process(
    seed: int, threshold: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.data.spool._BUCKET_BYTES", 2000)
    source = write_files(tmp_path / "source", 3 + seed, seed)
    listing, settings = list_sources(str(source)), config(source, near_duplicate_threshold=threshold)
    expected = whole(listing, settings, tmp_path / "one")
    summary = expected[2]
    assert summary["bad_by_reason"]["duplicate id"] >= 3 and summary["duplicates_exact"] >= 1
    assert summary["ignored_fields"] == {"extra": 1, "more": 1}
    assert (summary["duplicates_near"] > 0) == (threshold is not None)
    cuts = [plan_shards(listing, count) for count in (1, 2, 3, len(listing.files) + 2)]
    for number, shards in enumerate([*cuts, cut_by_chance(len(listing.files), seed)]):
        assert merged(listing, shards, settings, tmp_path / f"w{number}") == expected


@pytest.mark.parametrize("seed", range(8))
def test_any_cut_within_files_gives_the_version_of_one_process(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.data.spool._BUCKET_BYTES", 2000)
    monkeypatch.setattr("understudy.data.sources.LINE_LIMIT_BYTES", LIMIT_BYTES)
    draw = random.Random(seed)
    (tmp_path / "source").mkdir()
    contents = [write_one_file(tmp_path / "source" / f"{name}.jsonl", draw) for name in ("a", "b")]
    threshold = (0.8, None, None, None)[seed % 4]  # each shard takes its time for the bands
    settings = config(tmp_path / "source", max_bad_fraction=0.9, near_duplicate_threshold=threshold)
    listing = list_sources(str(tmp_path / "source"))
    expected = whole(listing, settings, tmp_path / "one")
    assert {"duplicate id", "too long", "not UTF-8", "not JSON"} <= set(expected[2]["bad_by_reason"])
    assert b" has the SHA-256 of its content" in expected[1] or b" would get from its content" in expected[1]
    plans = [plan_shards(listing, count) for count in (2, 3, 29)]
    for _ in range(3):
        inner = sorted((file, nasty_bytes(contents[file], draw)) for file in draw.choices((0, 1), k=draw.randrange(9)))
        plans.append(tuple(between([(0, 0), *inner, (2, 0)])))
    for number, shards in enumerate(plans):
        assert merged(listing, shards, settings, tmp_path / f"w{number}") == expected, shards


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n\r\n"])
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n\r\n"])
def test_a_cut_at_any_byte_leaves_each_line_to_one_part(
    start: bytes, end: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.data.sources.LINE_LIMIT_BYTES", 60)
    rows = ['{"prompt": "ü🙂", "response": "1"}'.encode(), b"\xff", b"", b'{"prompt": "' + b"x" * 130 + b'"}', b"{}"]
    content = start + b"\r\n".join(rows[:3]) + b"\n" + b"\n".join(rows) + end
    (tmp_path / "a.jsonl").write_bytes(content)
    (file,) = list_sources(str(tmp_path / "a.jsonl")).files

    def read(part: Part) -> list[tuple[int, int, str, bytes | None]]:
        return [(number, position, repr(row), raw) for number, position, row, raw in entries(file, part)]

    alone = Part()
    expected = read(alone)
    assert (alone.num_lines, alone.begins_at, alone.ends_at) == (len(content.splitlines()), 0, len(content))
    for cut in range(1, len(content)):
        for second in (cut, min(cut + 7, len(content)), len(content)):
            parts = [Part(0, cut), Part(cut, second), Part(second)]
            found, before = [], 0
            for part in parts:
                found += [(number + before, *rest) for number, *rest in read(part)]
                before += part.num_lines
            assert (found, before) == (expected, alone.num_lines), (cut, second)
            assert parts[0].ends_at == parts[1].begins_at and parts[1].ends_at == parts[2].begins_at


def test_parquet_is_cut_between_row_groups(tmp_path: Path) -> None:
    texts = [
        {"prompt": f"prompt {index}", "response": random.Random(index).randbytes(900).hex()} for index in range(60)
    ]
    texts[7]["prompt"] = texts[55]["response"] = ""
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts), path, row_group_size=9)
    listing, settings = list_sources(str(path)), config(path)
    expected = whole(listing, settings, tmp_path / "one")
    assert [json.loads(line)["line"] for line in expected[1].splitlines()] == [8, 56]
    size = path.stat().st_size
    cuts = [[size // 2], [size // 3, size // 2, size // 2, size - 1], [1, 4, 5]]
    plans = [plan_shards(listing, 4), *(between([(0, 0), *((0, byte) for byte in inner), (1, 0)]) for inner in cuts)]
    for number, shards in enumerate(plans):
        assert merged(listing, shards, settings, tmp_path / f"w{number}") == expected
    reports = [json.loads(path.read_text()) for path in sorted((tmp_path / "w0" / "shards").glob("*/shard.json"))]
    assert sum(report["rows"] for report in reports) == 58 and max(report["rows"] for report in reports) <= 27


def test_how_the_rows_lie_in_files_plays_no_part_either(tmp_path: Path) -> None:
    # Without ids: which of two rows keeps an id is decided by reading order.
    lines = [line for line in NASTY if b'"id"' not in line] + TINY.read_bytes().splitlines()[:20]
    versions = []
    for seed, num_files in enumerate((1, 4, 9)):
        random.Random(seed).shuffle(lines)
        source = tmp_path / f"s{seed}"
        source.mkdir()
        for index in range(num_files):
            content = b"".join(line + b"\n" for line in lines[index::num_files])
            (source / f"{index}.jsonl").write_bytes(content)
        listing, settings = list_sources(str(source)), config(source)
        versions.append(merged(listing, plan_shards(listing, 3), settings, tmp_path / f"w{seed}")[0])
    assert versions[0] == versions[1] == versions[2]


def test_any_cut_reads_the_names_of_the_source(tmp_path: Path) -> None:
    lines = [line.replace(b'"prompt"', b'"input"', 1) for line in TINY.read_bytes().splitlines()[:60]]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*lines, b'{"prompt": "p", "response": "r"}']))
    listing, settings = list_sources(str(tmp_path)), config(tmp_path, fields={"prompt": "input"})
    alone = whole(listing, settings, tmp_path / "alone")
    assert merged(listing, plan_shards(listing, 3), settings, tmp_path / "merged") == alone
    assert (alone[2]["bad"], alone[2]["rows_in"]) == (1 + 6, 61)  # six are chats
    with pytest.raises(IntegrityError, match="was made with .*'fields': None"):
        ingest_shard(listing, plan_shard(listing, 0, 1), config(tmp_path), tmp_path / "shard")
        with merge_shards(listing, [tmp_path / "shard"], settings, tmp_path / "w"):
            pass


def test_too_many_bad_rows_are_refused_in_the_same_words(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", 5, 1)
    listing, settings = list_sources(str(source)), config(source, max_bad_fraction=0.05)
    workdir = tmp_path / "w"
    with pytest.raises(DataRefused) as alone:
        whole(listing, settings, workdir)
    alone_quarantine = (workdir / "quarantine.jsonl").read_bytes()
    with pytest.raises(DataRefused) as together:
        merged(listing, plan_shards(listing, 3), settings, workdir)
    assert str(alone.value) == str(together.value)
    assert "above data.max_bad_fraction 5.0%" in str(together.value)
    assert (workdir / "quarantine.jsonl").read_bytes() == alone_quarantine


def listing_of(sizes: Sequence[int], content: Callable[[int], bytes]) -> Listing:
    """Files that begin as their content says, and claim any size."""
    return Listing(
        tuple(
            SourceFile(f"{index}", size, lambda index=index: io.BytesIO(content(index)))  # type: ignore[misc]
            for index, size in enumerate(sizes)
        )
    )


SIZES = [[], [0, 0, 0], [5], [1, 1, 1, 1], [100, 1, 1, 1], [1, 1, 1, 100], [0, 3, 0, 7, 2, 9, 0], [1000]]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_plan_holds_every_whole_file_once_in_order(sizes: list[int], count: int) -> None:
    shards = plan_shards(listing_of(sizes, lambda _: gzip.compress(b"")), count)
    assert [(shard.index, shard.count) for shard in shards] == [(index, count) for index in range(count)]
    assert {(shard.first_byte, shard.end_byte) for shard in shards} == {(0, 0)}
    assert [index for shard in shards for index in range(shard.first_file, shard.end_file)] == list(range(len(sizes)))
    if sizes and sum(sizes):
        largest = max(sum(sizes[shard.first_file : shard.end_file]) for shard in shards)
        assert largest <= sum(sizes) / count + max(sizes)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_plan_holds_every_byte_of_lines_once_in_order_and_evenly(sizes: list[int], count: int) -> None:
    shards = plan_shards(listing_of(sizes, lambda _: b"{}\n"), count)

    def held(shard: Shard) -> Iterator[tuple[int, int]]:
        for index, part in shard.parts():
            for byte in range(part.start, sizes[index] if part.end is None else part.end):
                yield index, byte

    assert [at for shard in shards for at in held(shard)] == [
        (index, byte) for index, size in enumerate(sizes) for byte in range(size)
    ]
    for shard in shards:
        assert abs(sum(1 for _ in held(shard)) - sum(sizes) / count) < 1


@pytest.mark.parametrize(
    ("sizes", "cut"), [([60, 40], 1), ([40, 60], 1), ([1, 98, 1], 1), ([2, 98, 0], 1), ([0, 98, 2], 2)]
)
def test_a_whole_file_goes_to_the_shard_that_has_its_middle(sizes: list[int], cut: int) -> None:
    assert plan_shards(listing_of(sizes, lambda _: gzip.compress(b"")), 2)[0].end_file == cut


def test_a_shard_looks_into_no_file_that_it_is_not_cut_in() -> None:
    looked: list[int] = []

    def content(index: int) -> bytes:
        looked.append(index)
        return b"{}\n"

    listing = listing_of([10] * 9, content)
    assert plan_shard(listing, 1, 4) == Shard(1, 4, 2, 2, 4, 5) == plan_shards(listing, 4)[1]
    assert looked[:2] == [2, 4]


def test_no_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="number of shards is 0"):
        plan_shards(Listing(()), 0)


def test_wrong_shards_are_refused(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", 4, 2)
    listing, settings = list_sources(str(source)), config(source)
    folders = [tmp_path / f"{index}" for index in range(3)]
    for shard, folder in zip(plan_shards(listing, 3), folders, strict=True):
        ingest_shard(listing, shard, settings, folder)

    def refused(kind: type[Exception], message: str, given: list[Path], settings: DataConfig = settings) -> None:
        with (
            pytest.raises(kind, match=message),
            merge_shards(list_sources(str(source)), given, settings, tmp_path / "w"),
        ):
            pass

    refused(IntegrityError, r"Shards \[0, 2\] of \[3\] are there", [folders[2], folders[0]])
    refused(IntegrityError, r"Shards \[0, 1, 1, 2\] of \[3\]", [*folders, folders[1]])
    refused(IntegrityError, "Shards .* of none are there", [])
    changed = config(source, max_prompt_chars=10)
    refused(IntegrityError, r"Shard 0 was made with \{'max_prompt_chars': 2000\}", folders, changed)
    report = folders[1] / "shard.json"
    text = report.read_text()
    report.write_text(json.dumps(json.loads(text) | {"format": 1}))
    refused(IntegrityError, "has format 1, this program reads 3", folders)
    report.unlink()
    refused(IntegrityError, "not a finished shard", folders)
    report.write_text(text)
    with (source / "9.jsonl").open("wb") as file:
        file.write(b"{}\n")
    refused(DataRefused, "changed while they were ingested: shard 0 saw", folders)


def test_a_file_rewritten_between_its_parts_is_refused_even_if_its_size_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [b'{"prompt": "%d", "response": "%s"}\n' % (index, b"r" * index) for index in range(1, 40)]
    path.write_bytes(b"".join(rows))
    listing, settings = list_sources(str(path)), config(path)
    first, second = plan_shards(listing, 2)
    ingest_shard(listing, first, settings, tmp_path / "0")
    path.write_bytes(b"".join(reversed(rows)))
    assert list_sources(str(path)).files[0].num_bytes == listing.files[0].num_bytes
    ingest_shard(listing, second, settings, tmp_path / "1")
    with (
        pytest.raises(DataRefused, match=r"changed while they were ingested: up to shard 1 they were read to byte \d+"),
        merge_shards(list_sources(str(path)), [tmp_path / "0", tmp_path / "1"], settings, tmp_path / "w"),
    ):
        pass


def test_a_file_that_became_one_without_parts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n" * 40)
    listing = list_sources(str(path))
    (_, second) = plan_shards(listing, 2)
    path.write_bytes(gzip.compress(b"{}\n"))
    with pytest.raises(DataRefused, match=r"a\.jsonl changed while it was ingested: .* now it is gzip"):
        ingest_shard(listing, second, config(path), tmp_path / "1")


def test_shards_that_do_not_reach_the_end_are_refused(tmp_path: Path) -> None:
    source = write_files(tmp_path / "source", 4, 2)
    listing, settings = list_sources(str(source)), config(source)
    with pytest.raises(IntegrityError, match="The shards end with file 3 of 4"):
        merged(listing, between([(0, 0), (2, 0), (3, 0)]), settings, tmp_path / "w")
    with pytest.raises(DataRefused, match=r"up to shard 1 they were read to byte 0 \(cut at 0\) of file 2"):
        merged(listing, [Shard(0, 2, 0, 0, 2, 0), Shard(1, 2, 3, 0, 4, 0)], settings, tmp_path / "x")
