from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from examples.tiny import generate
from examples.tiny.judge import answers, judge

COMMITTED = Path(generate.__file__).with_name("demonstrations.jsonl")


def test_committed_rows_are_what_the_generator_writes(tmp_path: Path) -> None:
    generate.main(["--out", str(tmp_path / "rows.jsonl")])
    assert (tmp_path / "rows.jsonl").read_bytes() == COMMITTED.read_bytes()
    assert len(COMMITTED.read_bytes()) < 200_000


def test_rows() -> None:
    rows = generate.generate()
    turns = [row.get("messages") or [{"content": row["prompt"]}, {"content": row["response"]}] for row in rows]
    pairs = [(user["content"], assistant["content"]) for user, assistant in turns]
    assert len(rows) == len(set(pairs)) == len({row["id"] for row in rows}) == 400
    assert sum("messages" in row for row in rows) == 40
    assert max(len(response) for _, response in pairs) <= 20
    assert all(judge(prompt, response, response) == 1.0 for prompt, response in pairs)
    assert max(Counter(prompt for prompt, _ in pairs).values()) >= 3  # several experts' answers to one prompt
    assert len({row["group"] for row in rows}) == 66


def test_another_seed_gives_other_rows() -> None:
    assert generate.generate(50, seed=1) != generate.generate(50, seed=2)
    assert generate.generate(50, seed=1) == generate.generate(100, seed=1)[:50]


def test_more_rows_than_there_are() -> None:
    with pytest.raises(ValueError, match="100000 rows are asked for, there are 646"):
        generate.generate(100_000)


def test_judge() -> None:
    assert judge("colour of sky?", " it is blue\n", "blue") == 1.0
    assert judge("colour of sky?", "red", "blue") == 0.0
    assert judge("count to three", "1 2 3", "1 2 3") == 1.0
    assert judge("count to three", "1 2 3 4", "1 2 3") == 0.0
    assert math.isnan(judge("who are you?", "blue", "blue"))
    assert answers("colour of ?") == []


def test_rows_are_json_objects() -> None:
    for line in COMMITTED.read_text().splitlines():
        assert {"id", "group", "metadata"} < json.loads(line).keys()
