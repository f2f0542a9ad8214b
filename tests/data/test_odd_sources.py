"""Sources that other programs leave behind: odd columns, odd file names, linked folders, fields nobody reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from support.capabilities import modes_hold

from understudy.config import DataConfig, SplitsConfig
from understudy.data.ingest import ingest
from understudy.data.rows import Limits, RowProblem, validate_row
from understudy.data.sources import list_sources
from understudy.data.splits import default_group
from understudy.data.summary import Summary, write_summary
from understudy.errors import ConfigError, DataRefused
from understudy.platform import s3_sources
from understudy.platform.object_storage import Location
from understudy.platform.steps.ingest import source_sha256

COUNT = 40


def columns() -> dict[str, Any]:
    return {
        "prompt": [f"prompt {index}" for index in range(COUNT)],
        "response": [f"response {index}" for index in range(COUNT)],
    }


def run(source: Path, workdir: Path) -> tuple[Summary, list[dict[str, Any]]]:
    config = DataConfig(
        source=str(source),
        max_prompt_chars=100,
        max_response_chars=100,
        max_bad_fraction=0.9,
        near_duplicate_threshold=None,
        splits=SplitsConfig(validation=0.1, test=0.2),
        unicode_form="keep",
        fields=None,
    )
    with ingest(list_sources(str(source)), config, workdir) as result:
        pass
    lines = (workdir / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return result.summary, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "odd",
    [
        pyarrow.array([2**62] * COUNT, type=pyarrow.timestamp("us")),  # a year that Python's datetime lacks
        pyarrow.array([1] * COUNT, type=pyarrow.timestamp("us", tz="Mars/Olympus")),
    ],
    ids=["year", "zone"],
)
def test_a_value_that_cannot_be_read_costs_nothing_in_a_column_that_is_not_read(odd: Any, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns() | {"crawled": odd}), tmp_path / "a.parquet")
    summary, bad = run(tmp_path / "a.parquet", tmp_path / "w")
    assert (summary.rows, bad, summary.ignored_fields) == (COUNT, [], {"crawled": COUNT})


def test_a_value_that_cannot_be_read_costs_its_row_where_it_is_read(tmp_path: Path) -> None:
    times = pyarrow.array([1] * (COUNT - 1) + [2**62], type=pyarrow.timestamp("us"))
    metadata = pyarrow.StructArray.from_arrays([times], ["crawled"])
    pyarrow.parquet.write_table(pyarrow.table(columns() | {"metadata": metadata}), tmp_path / "a.parquet")
    summary, bad = run(tmp_path / "a.parquet", tmp_path / "w")
    assert summary.rows == COUNT - 1
    assert [(row["line"], row["reason"]) for row in bad] == [(COUNT, "wrong type")]
    assert bad[0]["detail"].startswith("metadata holds a struct<crawled: timestamp[us]> that cannot be read")


def test_two_columns_of_one_name_are_refused_as_two_keys_are(tmp_path: Path) -> None:
    arrays = [pyarrow.array(columns()[name]) for name in ("prompt", "prompt", "response")]
    table = pyarrow.Table.from_arrays(arrays, names=["prompt", "prompt", "response"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataRefused, match=r"duplicate key \(40\)"):
        run(tmp_path / "a.parquet", tmp_path / "w")


def test_a_file_name_that_is_not_utf8_is_shown_escaped(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    name = os.fsencode(tmp_path / "in") + b"/na\xefve.jsonl"
    lines = [json.dumps({"prompt": f"p{index}", "response": "r"}) for index in range(COUNT)]
    with open(name, "wb") as file:
        file.write("\n".join([*lines, "[]"]).encode())
    summary, bad = run(tmp_path / "in", tmp_path / "w")
    assert summary.rows == COUNT and summary.source_files[0].endswith("na\\udcefve.jsonl")
    assert bad[0]["source"] == summary.source_files[0]
    write_summary(summary, "1f.dir", tmp_path / "w")
    written = json.loads((tmp_path / "w" / "ingest" / "summary.json").read_bytes())
    assert written["source_files"] == summary.source_files


def test_linked_and_hidden_folders_are_not_read_but_named(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    for folder in (source / ".cache", source / "part", elsewhere):
        folder.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.table(columns()), folder / "a.parquet")
    (source / "linked").symlink_to(elsewhere)
    (source / "part" / "loop").symlink_to(source)
    summary, _ = run(source, tmp_path / "w")
    assert summary.ignored_files == [".cache/", "linked/", "part/loop/"]
    assert summary.rows_in == COUNT


def write_lines(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": f"p{i}", "response": f"r{i}"}) + "\n" for i in range(COUNT)))
    return path


def test_a_folder_that_may_not_be_read_is_an_error_not_an_empty_one(tmp_path: Path) -> None:
    source = tmp_path / "d"
    write_lines(source / "a.jsonl")
    write_lines(source / "sub" / "b.jsonl")
    for unreadable in (source / "sub", source):
        unreadable.chmod(0)
        with modes_hold(), pytest.raises(ConfigError) as refused:
            list_sources(str(source))
        unreadable.chmod(0o755)
        assert str(refused.value) == f"{unreadable} cannot be read: Permission denied. Check the path and its rights."
    assert run(source, tmp_path / "w")[0].rows_in == 2 * COUNT


def test_a_folder_that_only_tells_names_is_an_error_too(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d" / "a.jsonl")
    path.parent.chmod(0o444)
    with modes_hold(), pytest.raises(ConfigError, match=r"a\.jsonl cannot be read: Permission denied"):
        list_sources(str(path.parent))
    path.parent.chmod(0o755)


def test_a_file_that_may_not_be_read_is_named_by_ingest_and_by_its_digest(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d" / "a.jsonl")
    path.chmod(0)
    with modes_hold():
        for read in (lambda: run(path, tmp_path / "w"), lambda: source_sha256(str(path.parent))):
            with pytest.raises(
                ConfigError, match=r"a\.jsonl cannot be read: Permission denied\. Check the path and its"
            ):
                read()


def test_a_bucket_is_listed_by_the_rules_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        ".git/objects/a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", ".ipynb_checkpoints/b-checkpoint.jsonl",
        ".hidden.jsonl", "README.md", "a.jsonl", "cache-1.jsonl", "part/.tmp/c.jsonl", "part/b.jsonl",
    ]  # fmt: skip
    for name in names:
        write_lines(tmp_path / "data" / name)
    objects = [{"Key": f"all/.data/{name}", "Size": 1, "ETag": "e"} for name in names]
    monkeypatch.setattr(s3_sources, "_objects", lambda location: iter(objects))
    local, stored = list_sources(str(tmp_path / "data")), s3_sources.list_s3_sources("s3://bucket/all/.data")
    read = ["a.jsonl", "cache-1.jsonl", "part/b.jsonl"]
    assert [file.name for file in stored.files] == [Location("bucket", f"all/.data/{name}").uri for name in read]
    assert [file.name for file in local.files] == [str(tmp_path / "data" / name) for name in read]
    assert sorted(stored.ignored) == [f"all/.data/{name}" for name in sorted(local.ignored)]
    assert sorted(local.ignored) == [".git/", ".hidden.jsonl", ".ipynb_checkpoints/", "README.md", "part/.tmp/"]


def test_what_stands_in_messages_beside_role_and_content_is_counted(tmp_path: Path) -> None:
    def row(index: int, **more: Any) -> str:
        turns = [{"role": "user", "content": f"u{index}", "name": None}, {"role": "assistant", "content": "a", **more}]
        return json.dumps({"messages": turns})

    lines = [row(index) for index in range(COUNT)]
    lines[:2] = [row(0, tool_calls=[{"id": "x"}]), row(1, tool_calls=[], weight=0)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    summary, bad = run(tmp_path / "a.jsonl", tmp_path / "w")
    assert bad == [] and summary.ignored_fields == {"messages[].tool_calls": 2, "messages[].weight": 1}


@pytest.mark.parametrize(
    ("row", "where"),
    [
        ({"prompt": "fine", "response": "bell\x07"}, "in the response after 'bell'"),
        ({"prompt": "bell\x07", "response": "fine"}, "in the prompt after 'bell'"),
        ({"prompt": "fine", "response": "fine", "group": "\x07"}, "in the id or group after ''"),
        (
            {
                "messages": [
                    {"role": "system", "content": "fine"},
                    {"role": "user", "content": "bell\x07"},
                    {"role": "assistant", "content": "fine"},
                ]
            },
            "in the turn 2 of the context after 'bell'",
        ),
    ],
)
def test_a_control_character_is_found_in_its_field(row: dict[str, Any], where: str) -> None:
    with pytest.raises(RowProblem) as refused:
        validate_row(row, Limits(100, 100))
    assert refused.value.detail == f"U+0007 {where}"


def test_composed_and_decomposed_prompts_share_a_group() -> None:
    assert default_group(["Caf\u00e9"]) == default_group(["cafe\u0301"]) != default_group(["cafe"])
    # Text in ASCII keeps the group it always had.
    assert default_group(["A  b"]) == "prompt-c8687a08aa5d6ed2044328fa6a697ab8"
