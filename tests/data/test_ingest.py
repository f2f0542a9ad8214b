from __future__ import annotations

import errno
import gzip
import io
import json
import os
import random
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from support.refused_writes import files_of_at_most

from understudy.config import DataConfig
from understudy.data import ingest as ingest_module
from understudy.data.demonstrations import SPLITS, load_split
from understudy.data.files import temporary_folder, told_when_full, write_atomically
from understudy.data.ingest import ingest
from understudy.data.quarantine import RAW_LIMIT_CHARS
from understudy.data.sources import SourceFile, entries, list_sources
from understudy.data.summary import Summary, write_summary
from understudy.errors import ConfigError, DataRefused, IntegrityError, UnderstudyError


def rows(count: int = 60, start: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(start)
    return [
        {"prompt": f"prompt {index} {draw.random()}", "response": f"response {draw.random()} {index}"}
        for index in range(start, start + count)
    ]


def write(path: Path, items: Iterable[dict[str, Any] | bytes], newline: bytes = b"\n") -> Path:
    lines = [item if isinstance(item, bytes) else json.dumps(item).encode() for item in items]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(newline.join(lines) + newline)
    return path


def config(source: Path, **changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "source": str(source),
        "max_prompt_chars": 100,
        "max_response_chars": 100,
        "max_bad_fraction": 0.05,
        "near_duplicate_threshold": None,
        "splits": {"validation": 0.1, "test": 0.2},
        "unicode_form": "keep",
        "fields": None,
    }
    return DataConfig(**{**values, **changes})


def run(source: Path, workdir: Path, **changes: Any) -> tuple[dict[str, bytes], Summary, list[dict[str, Any]]]:
    """Return the bytes of all files of the version, the summary and the quarantined rows."""
    with ingest(list_sources(str(source)), config(source, **changes), workdir) as result:
        files = {path.name: path.read_bytes() for path in sorted(result.folder.iterdir())}
    return files, result.summary, quarantined(workdir)


def quarantined(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "quarantine.jsonl").read_text().splitlines()]


def names(workdir: Path) -> set[str]:
    return {str(path.relative_to(workdir)) for path in workdir.rglob("*")}


def test_rows_come_back_whole(tmp_path: Path) -> None:
    given = rows(59)
    given.append({"id": "x", "group": "g", "metadata": {"k": [1]}, "messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "p"}, {"role": "assistant", "content": "r"},
    ]})  # fmt: skip
    source = write(tmp_path / "a.jsonl", given)
    with ingest(list_sources(str(source)), config(source), tmp_path / "w") as result:
        loaded = [item for split in SPLITS for item in load_split(result.folder, split)]
    assert len(loaded) == result.summary.rows == 60
    assert {(d.prompt, d.response) for d in loaded} == {(r["prompt"], r["response"]) for r in given[:59]} | {("p", "r")}
    chat = next(d for d in loaded if d.id == "x")
    assert (chat.group, chat.metadata, [m["role"] for m in chat.messages]) == ("g", {"k": [1]}, ["system", "user"])
    assert (tmp_path / "w" / "quarantine.jsonl").read_bytes() == b""


def test_same_rows_same_bytes_whatever_order_files_and_format(tmp_path: Path) -> None:
    given = rows(200)
    shuffled = random.Random(0).sample(given, 200)
    one = write(tmp_path / "one.jsonl", given)
    many = tmp_path / "many"
    write(many / "b.jsonl", shuffled[:70], newline=b"\r\n")
    (many / "sub").mkdir()
    (many / "sub" / "c.jsonl.gz").write_bytes(gzip.compress(write(tmp_path / "t", shuffled[70:150]).read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(shuffled[150:]), many / "d.parquet")
    write(many / "README.md", [b"about"])
    first, _, _ = run(one, tmp_path / "w1")
    second, summary, _ = run(many, tmp_path / "w2")
    assert first == second
    assert summary.ignored_files == ["README.md"]
    assert set(first) == {"train.parquet", "validation.parquet", "test.parquet", "dataset.json"}


def test_the_number_of_buckets_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "a.jsonl", rows(300) + rows(20))
    first, summary, _ = run(source, tmp_path / "w1")
    monkeypatch.setattr("understudy.data.spool._BUCKET_BYTES", 100)
    second, _, _ = run(source, tmp_path / "w2")
    assert first == second
    assert summary.duplicates_exact == 20


INGEST_TWO_SIZES = """
import gzip, json, sys
from itertools import islice
from pathlib import Path
import pyarrow, pyarrow.parquet
from understudy.config import load_params
from understudy.data import spool, writing
from understudy.data.ingest import ingest
from understudy.data.sources import list_sources

folder, kind = Path(sys.argv[1]), sys.argv[2]
compressed = kind in ("gzip", "zstd")
spool._BUCKET_BYTES, writing._ROW_GROUP_ROWS = 3 << 20 if compressed else 1 << 18, 1024
if kind == "above the cap":
    spool._MAX_BUCKETS = 2

def peak_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

def rows(count):
    for index in range(count):
        row = {"id": f"i{index}", "prompt": f"p {index} {index**2}", "response": f"r {index} {index**3} " * 2}
        row["response"] += "the quick brown fox " * 60 * compressed
        one = {"prompt": "p " * 20, "response": "r " * 40}
        if kind == "one row":
            yield one
        elif kind == "one row with an id":
            yield one | {"id": "i"}
        elif kind == "one content":
            yield one | {"id": f"i{index}", "metadata": {"index": index}}
        elif kind == "one id":
            yield row | {"id": "i"} if index % 10 == 0 else one | {"id": "i", "response": f"r {index % 2}"}
        else:
            yield row

def write(count):
    if kind == "zstd":
        source = folder / f"{count}.parquet"
        table = rows(count)
        names = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "prompt", "response")])
        with pyarrow.parquet.ParquetWriter(source, names, compression="zstd") as writer:
            while part := list(islice(table, 1000)):
                writer.write_table(pyarrow.Table.from_pylist(part, schema=names))
        return source
    source = folder / (f"{count}.jsonl.gz" if kind == "gzip" else f"{count}.jsonl")
    with (gzip.open(source, "wt", 1) if kind == "gzip" else source.open("w")) as file:
        for index, row in enumerate(rows(count)):
            line = json.dumps(row) + "\\n"
            file.write("not JSON\\n" if index % 100 == 0 else line * 2 if index % 100 == 1 else line)
    return source

def ingest_rows(count):
    source = write(count)
    settings = [f"data.source={source}", "data.near_duplicate_threshold=null", "data.max_bad_fraction=1.0"]
    config = load_params(Path("params.yaml"), settings).data
    with ingest(list_sources(str(source)), config, folder / str(count)) as found:
        return found.summary.rows

print(json.dumps([(ingest_rows(count), peak_mib()) for count in (20_000, 60_000)]))
"""


@pytest.mark.parametrize(
    ("kind", "kept"),
    [
        ("plain", (19_800, 59_400)),
        ("gzip", (19_800, 59_400)),
        ("zstd", (20_000, 60_000)),
        ("above the cap", (19_800, 59_400)),
        ("one row", (1, 1)),
        ("one row with an id", (1, 1)),
        ("one content", (1, 1)),
        ("one id", (1, 1)),
    ],
)
def test_three_times_the_rows_take_no_more_memory(kind: str, kept: tuple[int, int], tmp_path: Path) -> None:
    """With small buckets and row groups, of which 2 MB of rows are several already.

    However well the file is compressed, however often a row, a content or an id stands there, and in few buckets, too.
    40,000 rows more add 7 to 33 MiB when a bucket is held whole, but here only 24 buckets more, which write through
    48 buffers of 32 KiB, 1.5 MiB.
    """
    command = [sys.executable, "-c", INGEST_TWO_SIZES, str(tmp_path), kind]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    (few, peak_of_few), (many, peak_of_many) = json.loads(done.stdout)
    assert (few, many) == kept
    assert peak_of_many - peak_of_few < 4


def test_growing_the_data_moves_no_row_to_another_split(tmp_path: Path) -> None:
    def placed(count: int) -> dict[str, str]:
        source = write(tmp_path / f"{count}.jsonl", rows(count))
        with ingest(list_sources(str(source)), config(source), tmp_path / "w") as result:
            return {d.prompt: split for split in SPLITS for d in load_split(result.folder, split)}

    small, large = placed(100), placed(300)
    assert (len(small), len(large)) == (100, 300)
    assert small.items() <= large.items()


def test_groups_and_equal_prompts_never_leak(tmp_path: Path) -> None:
    given = [{**row, "group": f"g{index % 15}"} for index, row in enumerate(rows(150))]
    given += [
        {"prompt": f"Same  prompt {i % 20}" if i % 2 else f"same prompt {i % 20}", "response": f"r{i}"}
        for i in range(80)
    ]
    source = write(tmp_path / "a.jsonl", given)
    with ingest(list_sources(str(source)), config(source), tmp_path / "w") as result:
        groups = {split: {d.group for d in load_split(result.folder, split)} for split in SPLITS}
        prompts = {
            split: {" ".join(d.prompt.lower().split()) for d in load_split(result.folder, split)} for split in SPLITS
        }
    for kind in (groups, prompts):
        assert not kind["train"] & kind["test"] and not kind["train"] & kind["validation"]
        assert not kind["test"] & kind["validation"]
        assert all(kind.values())


def test_quarantine_names_source_line_reason_and_raw(tmp_path: Path) -> None:
    given: list[Any] = [*rows(100)]
    given[3], given[50] = b'{"prompt": "caf\xe9 \\u0000", "response": 1}', b"not json " + b"y" * 2000
    source = write(tmp_path / "a.jsonl", [b"", *given[:20], b"   ", *given[20:]])
    _, summary, bad = run(source, tmp_path / "w")
    assert [(row["source"], row["line"], row["reason"]) for row in bad] == [
        (str(source), 5, "not UTF-8"),
        (str(source), 53, "not JSON"),
    ]
    assert bad[0]["raw"] == r'{"prompt": "caf\xe9 \u0000", "response": 1}'
    assert len(bad[1]["raw"]) == RAW_LIMIT_CHARS + 1
    assert (summary.rows_in, summary.bad, summary.rows) == (100, 2, 98)


def test_later_row_with_a_taken_id_is_refused_and_a_repeated_row_is_only_a_duplicate(tmp_path: Path) -> None:
    given = [{**row, "id": index} for index, row in enumerate(rows(60))]
    clash = {"id": "7", "prompt": "other", "response": "content"}
    write(tmp_path / "d" / "a.jsonl", given)
    write(tmp_path / "d" / "b.jsonl", [given[5], clash])
    _, summary, bad = run(tmp_path / "d", tmp_path / "w")
    assert [(Path(row["source"]).name, row["line"], row["reason"]) for row in bad] == [("b.jsonl", 2, "duplicate id")]
    assert json.loads(bad[0]["raw"]) == clash
    assert (summary.rows_in, summary.bad, summary.duplicates_exact, summary.rows) == (62, 1, 1, 60)


@pytest.mark.parametrize("buckets", ["one", "many"])
def test_an_id_that_is_the_digest_of_a_row_without_one_is_taken(
    buckets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a row of a version is exported, edited, and added to its source again; whichever comes first stays."""
    if buckets == "many":
        monkeypatch.setattr("understudy.data.spool._BUCKET_BYTES", 100)
    given = rows(60)

    def added(items: list[dict[str, Any]]) -> tuple[dict[str, list[str]], Summary, list[tuple[int, str, str]]]:
        source = write(tmp_path / "a.jsonl", items)
        with ingest(list_sources(str(source)), config(source), tmp_path / "w") as result:
            found: dict[str, list[str]] = {}
            for demonstration in (row for split in SPLITS for row in load_split(result.folder, split)):
                found.setdefault(demonstration.id, []).append(demonstration.response)
        bad = [(row["line"], row["reason"], row["detail"]) for row in quarantined(tmp_path / "w")]
        return found, result.summary, bad

    before = added(given)[0]
    digest = next(name for name, responses in before.items() if responses == [given[3]["response"]])
    edited = {**given[3], "id": digest, "response": "edited"}
    taken = f"an earlier row with other content has the id {digest!r}"

    found, summary, bad = added([*given, edited, given[3]])
    assert bad == [(61, "duplicate id", f"{taken}; a row without an id has the SHA-256 of its content")]
    assert (found, summary.rows_in, summary.rows, summary.duplicates_exact) == (before, 62, 60, 1)

    found, summary, bad = added([edited, *given, given[3]])
    assert bad == [
        (line, "duplicate id", f"{taken}, which this row, having none, would get from its content") for line in (5, 62)
    ]
    assert found == before | {digest: ["edited"]}
    assert (summary.rows_in, summary.rows, summary.duplicates_exact) == (62, 60, 0)

    unedited, other_case = {**given[3], "id": digest}, {**edited, "id": digest.upper()}
    found, summary, bad = added([*given, unedited, other_case])
    assert (found, summary.duplicates_exact, bad) == (before | {digest.upper(): ["edited"]}, 1, [])


def test_near_duplicates_go_before_the_split(tmp_path: Path) -> None:
    given = [
        {"prompt": f"p {i} " + "word " * 8, "response": f"{i} {random.Random(i).random()} " * 4} for i in range(60)
    ]
    copies = [{**row, "response": row["response"] + "."} for row in given[:10]]
    source = write(tmp_path / "a.jsonl", given + copies)
    _, summary, _ = run(source, tmp_path / "w", near_duplicate_threshold=0.9)
    assert (summary.duplicates_exact, summary.duplicates_near, summary.rows) == (0, 10, 60)
    _, summary, _ = run(source, tmp_path / "w", near_duplicate_threshold=None)
    assert summary.rows == 70


def refusal(source: Path, workdir: Path, **changes: Any) -> str:
    with pytest.raises(DataRefused) as caught:
        run(source, workdir, **changes)
    assert caught.value.exit_code == 3
    assert names(workdir) <= {"quarantine.jsonl"}
    return str(caught.value)


def test_too_many_bad_rows_are_refused_with_the_three_most_frequent_reasons(tmp_path: Path) -> None:
    bad = [b"x"] * 4 + [b"[]"] * 3 + [b'{"prompt": 1}'] * 2 + [b'{"prompt": ""}']
    message = refusal(write(tmp_path / "a.jsonl", [*rows(90), *bad]), tmp_path / "w")
    assert "10 of 100 rows" in message and "(10.0%), above data.max_bad_fraction 5.0%" in message
    assert "not JSON (4), not an object (3), wrong type (2)." in message
    assert "empty field" not in message
    assert len(quarantined(tmp_path / "w")) == 10


def test_exactly_the_allowed_fraction_is_accepted(tmp_path: Path) -> None:
    _, summary, _ = run(write(tmp_path / "a.jsonl", [*rows(95), *[b"x"] * 5]), tmp_path / "w")
    assert (summary.rows, summary.bad) == (95, 5)


# Named, because gzip writes the time into its bytes, and workers must agree on the names of tests.
@pytest.mark.parametrize(
    "content", [b"", b"\n\n  \n", b"\xef\xbb\xbf", gzip.compress(b"")], ids=["empty", "blank", "mark", "gzip"]
)
def test_empty_source_is_refused(content: bytes, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_bytes(content)
    assert "holds no rows at all" in refusal(source, tmp_path / "w")


def test_all_rows_bad_is_refused_even_when_any_fraction_is_allowed(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.jsonl", [b"{}"] * 3), tmp_path / "w", max_bad_fraction=1.0)
    assert "All 3 rows" in message and "missing field (3)" in message


def truncated_gzip(path: Path) -> None:
    whole = gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows(500)))
    path.write_bytes(whole[: len(whole) // 2])


def flipped_gzip(path: Path) -> None:
    whole = bytearray(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows(500))))
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)


def truncated_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(50)), path)
    path.write_bytes(path.read_bytes()[:-20])


def damaged_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(50)), path)
    whole = bytearray(path.read_bytes())
    whole[4:300] = b"\xff" * 296
    path.write_bytes(whole)


def write_arrow(path: Path, items: list[dict[str, Any]], kind: Callable[..., Any]) -> None:
    table = pyarrow.Table.from_pylist(items)
    with kind(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1100)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("b.parquet", b"", "Parquet"),
        ("b.parquet", b"PA", "Parquet"),
        ("b.arrow", b"", "Arrow"),
        ("b.arrow", b"\xff\xff", "Arrow"),
        ("b.arrow", b"ARRO", "Arrow"),
        ("b.jsonl.gz", b"", "gzip"),
        ("b.jsonl.gz", b"\x1f", "gzip"),
    ],
)
def test_a_download_that_hardly_began_is_refused_beside_good_files(
    name: str, content: bytes, kind: str, tmp_path: Path
) -> None:
    write(tmp_path / "d" / "a.jsonl", rows(60))
    (tmp_path / "d" / name).write_bytes(content)
    assert refusal(tmp_path / "d", tmp_path / "w") == (
        f"{tmp_path / 'd' / name} is truncated: by its name it is {kind}, and it ends after {len(content)} bytes, "
        "before it can say so. What is missing cannot be known, so nothing was ingested. Fetch or write the file "
        "again, or remove it."
    )


def test_a_file_that_says_what_it_is_and_no_more_is_damaged_as_that(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "a.parquet is truncated or damaged after row 0: " in refusal(tmp_path / "a.parquet", tmp_path / "w")


def test_files_without_rows_that_say_what_they_are_add_none(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.jsonl", rows(60))
    (tmp_path / "d" / "b.jsonl").write_bytes(b"")
    (tmp_path / "d" / "c.jsonl.gz").write_bytes(gzip.compress(b""))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows(1)).slice(1), tmp_path / "d" / "d.parquet")
    _, summary, bad = run(tmp_path / "d", tmp_path / "w")
    assert (summary.rows_in, len(summary.source_files), bad) == (60, 4, [])


def truncated_arrow_stream(path: Path) -> None:
    write_arrow(path, rows(50), pyarrow.ipc.new_stream)
    path.write_bytes(path.read_bytes()[:-500])


def truncated_arrow_file(path: Path) -> None:
    write_arrow(path, rows(50), pyarrow.ipc.new_file)
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("kind", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file], ids=["stream", "file"])
def test_both_formats_of_arrow_are_read_batch_by_batch(kind: Callable[..., Any], tmp_path: Path) -> None:
    path, given = tmp_path / "a.arrow", rows(5000)
    write_arrow(path, given, kind)
    num_read = 0

    class Counted(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal num_read
            data = super().read(-1 if size is None else size) or b""
            num_read += len(data)
            return data

    size = path.stat().st_size
    found = entries(SourceFile("a.arrow", size, lambda: cast(BinaryIO, Counted(path))))
    first = next(found)
    assert first[:3] == (1, 1, given[0]) and num_read < size / 3
    assert [(number, row) for number, _, row, _ in found] == list(enumerate(given[1:], 2))


@pytest.mark.parametrize(
    "damage",
    [
        truncated_gzip,
        flipped_gzip,
        truncated_parquet,
        damaged_parquet,
        truncated_arrow_stream,
        truncated_arrow_file,
    ],
)
def test_damaged_file_is_refused_by_name(damage: Callable[[Path], None], tmp_path: Path) -> None:
    source = tmp_path / "file.bin"
    damage(source)
    message = refusal(source, tmp_path / "w")
    assert str(source) in message and "truncated or damaged" in message


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"prompt": [1, 2], "response": ["a", "b"]}, "wrong type (2)"),
        ({"prompt": ["a", "b"]}, "missing field (2)"),
        ({"question": ["a"], "answer": ["b"]}, "missing field (1)"),
        ({"prompt": [b"a"], "response": ["b"]}, "wrong type (1)"),
        ({"prompt": [None], "response": ["b"]}, "missing field (1)"),
    ],
)
def test_parquet_of_another_shape(table: dict[str, list[Any]], reason: str, tmp_path: Path) -> None:
    source = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), source)
    assert reason in refusal(source, tmp_path / "w")


def test_parquet_text_that_is_not_utf8_costs_its_row_only(tmp_path: Path) -> None:
    given = rows(40)
    prompts = pyarrow.array([row["prompt"].encode() for row in given[:-1]] + [b"\xff\xfe"]).view(pyarrow.string())
    table = pyarrow.table({"prompt": prompts, "response": [row["response"] for row in given]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    _, summary, bad = run(tmp_path / "a.parquet", tmp_path / "w")
    assert (summary.rows, [(row["line"], row["reason"]) for row in bad]) == (39, [(40, "not UTF-8")])


def test_saved_hugging_face_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    given = [{**row, "messages": None, "id": index} for index, row in enumerate(rows(60))]
    parts = {"train": datasets.Dataset.from_list(given[:40]), "test": datasets.Dataset.from_list(given[40:])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "hf"))
    (tmp_path / "hf" / "train" / "cache-left.arrow").write_bytes(b"not listed in state.json")
    _, summary, _ = run(tmp_path / "hf", tmp_path / "w")
    assert (summary.rows, summary.bad, len(summary.source_files)) == (60, 0, 2)
    (tmp_path / "hf" / "train" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataRefused, match="lacks data-00000-of-00001.arrow"):
        list_sources(str(tmp_path / "hf"))


def test_huge_line_is_one_bad_row_and_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.data.sources.LINE_LIMIT_BYTES", 1000)
    given = rows(60)
    source = write(tmp_path / "a.jsonl", [*given[:30], json.dumps({"prompt": "x" * 50_000}).encode(), *given[30:]])
    _, summary, bad = run(source, tmp_path / "w")
    assert (summary.rows, [(row["line"], row["reason"]) for row in bad]) == (60, [(31, "too long")])


def test_last_line_cut_off(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", rows(60))
    source.write_bytes(source.read_bytes()[:-10])
    _, summary, bad = run(source, tmp_path / "w")
    assert (summary.rows, [(row["line"], row["reason"]) for row in bad]) == (59, [(60, "not JSON")])


def test_missing_source_and_directory_without_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere' does not exist"):
        list_sources(str(tmp_path / "nowhere"))
    write(tmp_path / "d" / "table.csv", [b"prompt,response"])
    with pytest.raises(DataRefused, match="holds table.csv"):
        list_sources(str(tmp_path / "d"))
    (tmp_path / "e").mkdir()
    with pytest.raises(DataRefused, match="it is empty"):
        list_sources(str(tmp_path / "e"))


@pytest.mark.parametrize(
    ("name", "lines", "words", "python"),
    [
        ("a.csv", ['prompt,response', 'p1,"r, 1"', 'p2,r2'], "It looks like CSV; one JSON object a line is read", True),
        ("a.json", json.dumps(rows(2), indent=1).splitlines(), "looks like one JSON array; one JSON object", True),
        ("a.json", [json.dumps(rows(2))], "line 1: the line is a list. It looks like one JSON array;", True),
        ("a.json", ["[", *(json.dumps(row) + "," for row in rows(2)), json.dumps(rows(1)[0]), "]"], "JSON array", True),
        ("a.json", json.dumps(rows(1)[0], indent=1).splitlines(), "looks like one JSON object over several", True),
        ("a.jsonl", ['{"input": "p", "output": "r"}'] * 3, "^All 3 rows of .* are bad: missing field .3.. The first is "
         "line 1: prompt is absent; it has the keys input, output. What the source .* data.fields", False),
        ("a.jsonl", ["prompt:", "p"], "^All 2 rows .* The first is line 1: .* Every refused row is in", False),
    ],
)  # fmt: skip
def test_what_is_refused_as_a_whole_is_told_by_its_first_row(
    tmp_path: Path, name: str, lines: list[str], words: str, python: bool
) -> None:
    source = write(tmp_path / name, [line.encode() for line in lines])
    with pytest.raises(DataRefused, match=words) as refused:
        run(source, tmp_path / "w")
    command = re.search("`python3 (-c '.*') < FILE > FILE.jsonl`", str(refused.value))
    assert bool(command) is python
    if command:
        done = subprocess.run(
            [sys.executable, *shlex.split(command[1])], input=source.read_bytes(), capture_output=True, check=True
        )
        assert set(json.loads(done.stdout.splitlines()[0])) == {"prompt", "response"}


def test_rows_of_text_parts_make_the_version_of_plain_text_and_duplicates_of_it(tmp_path: Path) -> None:
    def chat(row: dict[str, Any], split: bool) -> dict[str, Any]:
        texts = [("user", row["prompt"]), ("assistant", row["response"])]
        part: Callable[[str], dict[str, str]] = lambda text: {"type": "text", "text": text, "citations": "c"}  # noqa: E731
        return {
            "messages": [
                {"role": role, "content": [part(text[:3]), part(text[3:])] if split else text} for role, text in texts
            ]
        }

    plain = write(tmp_path / "plain.jsonl", [chat(row, split=False) for row in rows(60)])
    mixed = [chat(row, split) for row in rows(60) for split in (True, False)]
    files, summary, bad = run(write(tmp_path / "parts.jsonl", mixed), tmp_path / "w")
    assert (files, bad) == (run(plain, tmp_path / "v")[0], [])
    assert (summary.duplicates_exact, summary.ignored_fields) == (60, {"messages[].content[].citations": 60})


NAMED = {"prompt": "input", "response": "output", "group": "topic", "id": "key"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_fields_of_other_names_give_the_same_version(tmp_path: Path, suffix: str) -> None:
    ours = [{**row, "group": f"g{index % 9}", "id": f"i{index}"} for index, row in enumerate(rows(60))]
    theirs = [
        {**{NAMED[name]: value for name, value in row.items()}, "prompt": "not read", "messages": 1} for row in ours
    ]
    theirs.append({**theirs[0], "input": "another prompt of the same id"})
    source = tmp_path / f"theirs.{suffix}"
    if suffix == "jsonl":
        write(source, theirs)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(theirs), source)
    files, summary, bad = run(source, tmp_path / "w", fields=NAMED)
    assert files == run(write(tmp_path / "ours.jsonl", ours), tmp_path / "v")[0]
    assert summary.ignored_fields == {"messages": 61, "prompt": 61}
    assert [row["detail"] for row in bad] == ["an earlier row with other content has the id 'i0'"]


def test_a_named_field_that_a_row_lacks_refuses_it(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"input": "p", "output": "r"}] * 3)
    fields = {"prompt": "input", "response": "output", "group": "topic"}
    told = "line 1: topic, the group by data.fields, is absent; it has the keys input, output."
    with pytest.raises(DataRefused, match=f"All 3 rows .* missing field .3.. The first is {told}"):
        run(source, tmp_path / "w", fields=fields)
    with pytest.raises(DataRefused, match="line 1: response is absent; it has the keys input, output"):
        run(source, tmp_path / "w", fields={"prompt": "input"})


def test_chat_under_another_name_is_read_and_nothing_of_the_other_form(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r", "name": "x"}]
    source = write(tmp_path / "a.jsonl", [{"prompt": turns, "response": "not read"}])
    _, summary, bad = run(source, tmp_path / "w", fields={"messages": "prompt"})
    assert (summary.rows, bad, summary.ignored_fields) == (1, [], {"messages[].name": 1, "response": 1})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "text", "response": "text"}, "prompt and response are both read from 'text'; name another field"),
        ({"prompt": "a", "messages": "b"}, "messages and prompt or response are two forms of a row"),
        ({"promt": "a"}, "promt\n.*Extra inputs"),
        ({"prompt": ""}, "at least 1 character"),
    ],
)
def test_names_that_cannot_be_meant_are_refused(tmp_path: Path, fields: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(tmp_path, fields=fields)


def test_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = write(tmp_path / "a.jsonl", rows(60))
    (tmp_path / "w").mkdir()
    for where in ("writing.SplitWriter._flush", "spool.Spool.add", "spool.Spool.close"):
        with monkeypatch.context() as patch:
            patch.setattr(f"understudy.data.{where}", full)
            with pytest.raises(UnderstudyError, match="is full .No space left on device.*--workdir"):
                run(source, tmp_path / "w")
        assert names(tmp_path / "w") <= {"quarantine.jsonl"}


def test_a_full_disk_is_known_whoever_passes_it_on(tmp_path: Path) -> None:
    store = sqlite3.connect(":memory:")
    store.execute("PRAGMA max_page_count = 1")
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "a").write_bytes(b"x" * 5000)
    writes: dict[str, Callable[[], object]] = {
        "database or disk is full": lambda: store.execute("CREATE TABLE t (x)"),
        "File too large": lambda: shutil.copytree(tmp_path / "from", tmp_path / "to"),
    }
    for words, write in writes.items():
        with pytest.raises(UnderstudyError, match=f"^The disk that holds .* is full .*{words}.* Nothing half-written"):
            with files_of_at_most(4096), told_when_full(tmp_path):
                try:
                    write()
                except (sqlite3.Error, shutil.Error) as error:
                    raise RuntimeError("a library's own") from error
    with pytest.raises(sqlite3.OperationalError, match="no such table"), told_when_full(tmp_path):
        store.execute("SELECT * FROM absent")


def test_many_write_one_file_at_once_and_it_is_one_of_theirs(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda index: write_atomically(tmp_path / "a", b"%d" % index * 1000), range(200)))
    (path,) = tmp_path.iterdir()
    assert path.read_bytes() in {b"%d" % index * 1000 for index in range(200)}


def test_what_a_killed_process_left_long_ago_goes_and_what_another_works_in_stays(tmp_path: Path) -> None:
    base = tmp_path / "w" / "tmp"
    for name in ("work-dead", "work-at-it", "work-young"):
        (base / name).mkdir(parents=True)
        (base / name / "spool").write_bytes(b"rows")
    for name in ("work-dead", "work-at-it"):
        os.utime(base / name, (time.time() - 90_000, time.time() - 90_000))
    hold = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_EX); print(); sys.stdin.read()"
    command = [sys.executable, "-u", "-c", hold, str(base / "work-at-it")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline() == b"\n"
        with temporary_folder(tmp_path / "w") as folder:
            assert {path.name for path in base.iterdir()} == {"work-at-it", "work-young", folder.name}
        process.communicate()
    with temporary_folder(tmp_path / "w"):
        pass
    assert names(base) == {"work-young", "work-young/spool"}


def test_summary_of_a_known_file(tmp_path: Path) -> None:
    given = [{"prompt": "ab", "response": "one two"}] * 3 + [{"prompt": "привет", "response": "e\u0301", "extra": 1}]
    source = write(tmp_path / "a.jsonl", given)
    _, summary, _ = run(source, tmp_path / "w")
    assert summary.scripts == {"Latin": 2, "Cyrillic": 1}
    assert (summary.rows, summary.duplicates_exact, summary.words) == (2, 2, {"prompt": 2, "response": 3})
    assert (summary.nfc, summary.rows_not_nfc, summary.ignored_fields) == (False, 1, {"extra": 1})
    assert summary.length_quantiles["prompt"] == {"0": 2, "0.05": 2, "0.25": 2, "0.5": 6, "0.75": 6, "0.95": 6, "1": 6}
    write_summary(summary, "1f.dir", tmp_path / "w")
    page = (tmp_path / "w" / "ingest" / "summary.html").read_text()
    assert "2 demonstrations" in page and "Cyrillic" in page and "http" not in page
    written = json.loads((tmp_path / "w" / "ingest" / "summary.json").read_bytes())
    assert written == {"md5": "1f.dir", **summary.to_json()}


def test_page_escapes_what_the_source_says(tmp_path: Path) -> None:
    source = write(tmp_path / "<b>.jsonl", [{**row, "<script>": 1} for row in rows(20)])
    _, summary, _ = run(source, tmp_path / "w")
    write_summary(summary, "1f.dir", tmp_path / "w")
    page = (tmp_path / "w" / "ingest" / "summary.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;.jsonl" in page


def test_a_split_of_too_few_groups_for_an_interval_is_warned_of(tmp_path: Path) -> None:
    def warnings(num_groups: int, validation: float) -> list[str]:
        items = [{**row, "group": f"g{index % num_groups}"} for index, row in enumerate(rows(5 * num_groups))]
        source = write(tmp_path / "a.jsonl", items)
        return run(source, tmp_path / "w", splits={"validation": validation, "test": 0.1})[1].warnings

    told = "split has 3 groups (15 of 60 rows): below 6 an evaluation gives no 95% interval, and calls nothing better. "
    more = "Add demonstrations, use more groups, or raise data.splits."
    validation, test = warnings(12, 0.15)
    assert validation == f"The validation {told}{more}validation from 0.15."
    assert test == f"The test {told}{more}test from 0.1."
    assert warnings(12, 0) == [test]
    assert warnings(200, 0.15) == []


def test_empty_split_is_warned_of(tmp_path: Path) -> None:
    _, summary, _ = run(write(tmp_path / "a.jsonl", [{**row, "group": "g"} for row in rows(5)]), tmp_path / "w")
    assert sum(count == 0 for count in summary.splits.values()) == 2
    assert len(summary.warnings) == 2
    assert "split is empty: 5 rows fall into too few groups" in summary.warnings[0]


def test_reading_refuses_what_is_not_a_version(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="not a finished dataset version"):
        load_split(tmp_path, "train")
    with pytest.raises(ConfigError, match="no split 'dev'"):
        load_split(tmp_path, "dev")
    (tmp_path / "dataset.json").write_text('{"schema_version": 99}')
    with pytest.raises(IntegrityError, match="schema version 99"):
        load_split(tmp_path, "train")


def test_interrupt_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ingest_module, "write_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(write(tmp_path / "a.jsonl", rows(20)), tmp_path / "w")
    assert names(tmp_path / "w") == {"quarantine.jsonl"}
