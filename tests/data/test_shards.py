"""Any number of shards, cut anywhere, gives what one process gives: version, quarantine file, summary, refusals."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from understudy.config import DataConfig
from understudy.data.ingest import ingest, merge_shards
from understudy.data.shards import Shard, ingest_shard, plan_shards
from understudy.data.sources import Listing, SourceFile, list_sources
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


def cut_by_chance(num_files: int, seed: int) -> list[Shard]:
    draw = random.Random(seed)
    count = draw.randrange(1, num_files + 2)
    cuts = [0, *sorted(draw.randrange(num_files + 1) for _ in range(count - 1)), num_files]
    return [Shard(index, count, cuts[index], cuts[index + 1]) for index in range(count)]


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
    assert summary["bad_by_reason"]["duplicate id"] >= 2 and summary["duplicates_exact"] >= 1
    assert summary["ignored_fields"] == {"extra": 1, "more": 1}
    assert (summary["duplicates_near"] > 0) == (threshold is not None)
    cuts = [plan_shards(listing, count) for count in (1, 2, 3, len(listing.files) + 2)]
    for number, shards in enumerate([*cuts, cut_by_chance(len(listing.files), seed)]):
        assert merged(listing, shards, settings, tmp_path / f"w{number}") == expected


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


@pytest.mark.parametrize("sizes", [[], [0, 0, 0], [5], [1, 1, 1, 1], [100, 1, 1, 1], [1, 1, 1, 100], [3, 0, 7, 2, 9]])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_plan_holds_every_file_once_in_order(sizes: list[int], count: int) -> None:
    listing = Listing(tuple(SourceFile(f"{index}", size, lambda: None) for index, size in enumerate(sizes)))  # type: ignore[arg-type, return-value]
    shards = plan_shards(listing, count)
    assert [(shard.index, shard.count) for shard in shards] == [(index, count) for index in range(count)]
    assert [index for shard in shards for index in range(shard.first_file, shard.end_file)] == list(range(len(sizes)))
    if sizes and sum(sizes):
        largest = max(sum(sizes[shard.first_file : shard.end_file]) for shard in shards)
        assert largest <= sum(sizes) / count + max(sizes)


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
    report.write_text(json.dumps(json.loads(text) | {"format": 2}))
    refused(IntegrityError, "has format 2, this program reads 1", folders)
    report.unlink()
    refused(IntegrityError, "not a finished shard", folders)
    report.write_text(text)
    with (source / "9.jsonl").open("wb") as file:
        file.write(b"{}\n")
    refused(DataRefused, "changed while they were ingested: shard 0 saw", folders)
