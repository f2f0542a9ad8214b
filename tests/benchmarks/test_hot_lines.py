"""Samples of running lines have the weight of the time that the lines took."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import page
from benchmarks.hot_lines import as_shares, sampled_lines
from benchmarks.ingesting import main, write_rows
from understudy.data.splits import default_group, group_position


def test_short_calls_and_a_few_long_ones_weigh_what_they_take() -> None:
    took: Counter[str] = Counter()
    long = "word " * 4_000_000  # of one call, some tenths of a second in few calls of the C library
    with sampled_lines() as seconds:
        start = time.process_time()
        default_group([long])
        took["default_group"] = time.process_time() - start  # type: ignore[assignment]
        start = time.process_time()
        while time.process_time() - start < 0.5:
            group_position("group")
        took["group_position"] = time.process_time() - start  # type: ignore[assignment]
    found: Counter[str] = Counter()
    for (path, function, _), of_line in seconds.items():
        assert path == "understudy/data/splits.py"
        found[function.partition(".<locals>")[0]] += of_line
    # The loop's own lines are not the library's: of the short calls a part is seen.
    assert found["default_group"] == pytest.approx(took["default_group"], rel=0.1)
    assert 0.3 < found["group_position"] / took["group_position"] < 1.1


def test_shares_are_of_all_lines_and_name_their_text() -> None:
    path = "understudy/data/splits.py"
    text = (Path(__file__).parents[2] / path).read_text().splitlines()
    number = 1 + next(index for index, line in enumerate(text) if "def split_of" in line)
    seconds: Counter[tuple[str, str, int]] = Counter()
    for line, took in ((number, 3.0), (number + 1, 0.5), (number + 2, 0.5)):
        seconds[path, "split_of", line] += took  # type: ignore[assignment]
    first, second = as_shares(seconds, 2)
    assert (first["share"], second["share"]) == (0.75, 0.125)
    assert first["text"].startswith("def split_of(") and first["line"] == number


def test_an_ingest_says_which_lines_take_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "rows.jsonl"
    write_rows(source, 20_000)
    main([str(source), "--lines"])
    report = json.loads(capsys.readouterr().out)
    shares = [line["share"] for line in report["lines"]]
    assert report["kept"] > 19_000 and shares == sorted(shares, reverse=True) and 0.2 < sum(shares) <= 1
    assert any(line["function"] == "SplitWriter._flush" for line in report["lines"])
    row = {"suite": "profile", "name": "profile of the ingest of 20,000 rows", "lines": report["lines"][:1]}
    row["lines"][0] |= {"share": 0.25, "text": "a | b"}
    row |= {"load_average_before": (0, 0, 0), "load_average_after": (1, 0, 0)}
    assert page.lines([row]).splitlines()[2:] == [
        f"| 25.0% | `{row['lines'][0]['path']}: {row['lines'][0]['function']}` | `a \\| b` |",
        "",
        "All other lines take 75%, none above 25.0%. Load 0.0 to 1.0.",
    ]
