from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from examples.arithmetic.generate import generate, main
from examples.arithmetic.judge import judge


@pytest.mark.parametrize("task", ["sum", "sort", "pick"])
def test_the_expert_is_always_right_and_prompts_differ(task: str) -> None:
    rows = generate(task, rows=600, seed=3)
    assert [judge(row["prompt"], row["response"], "") for row in rows] == [1.0] * 600
    assert len({row["prompt"] for row in rows}) == 600
    assert generate(task, rows=600, seed=3) == rows != generate(task, rows=600, seed=4)


@pytest.mark.parametrize(
    ("prompt", "right", "wrong"),
    [
        ("12+34", ["46", " 46\n"], ["45", "046", "46.", "+46", "", "4 6", "46 46", "٤٦", "12+34", "-46"]),
        ("sort 31524", ["12345"], ["1235", "123455", "54321", "1 2 3 4 5", "12344", "", "abcde", "12345."]),
        ("sort 30500", ["00035"], ["0035", "35", "30500"]),
        ("pick 31524", ["123", "245", "135"], ["321", "12", "1234", "112", "126", "", "1,2,3", "12x"]),
        ("pick 11522", ["112", "115", "225"], ["111", "555", "155"]),
    ],
)
def test_the_judge_catches_broken_text(prompt: str, right: list[str], wrong: list[str]) -> None:
    assert {text: judge(prompt, text, "") for text in right} == dict.fromkeys(right, 1.0)
    assert {text: judge(prompt, text, "") for text in wrong} == dict.fromkeys(wrong, 0.0)


@pytest.mark.parametrize("prompt", ["", "12-34", "sort", "sort abc", "pick 1 2 3", "please sort 31524"])
def test_the_judge_is_undecided_about_other_tasks(prompt: str) -> None:
    assert math.isnan(judge(prompt, "12345", "12345"))


def test_no_answer_leaks_over_groups() -> None:
    groups: dict[str, str] = {}
    for row in generate("sort", rows=3000):
        assert groups.setdefault(row["response"], row["group"]) == row["group"]
    assert max(Counter(groups.values()).values()) == 1
    sums = generate("sum", rows=4000)
    pairs = {tuple(sorted(row["prompt"].split("+"))): row["group"] for row in sums}
    assert len(pairs) == len({row["group"] for row in sums}) < 4000


def test_the_expert_of_pick_has_many_modes_equally_often() -> None:
    rows = generate("pick", rows=20_000, digits=6)
    distinct = [row for row in rows if len(set(row["prompt"].removeprefix("pick "))) == 6]
    ranks = Counter(
        tuple(sorted(row["prompt"].removeprefix("pick ")).index(digit) for digit in row["response"]) for row in distinct
    )
    shares = [count / len(distinct) for count in ranks.values()]
    assert len(shares) == 20
    assert (min(shares), max(shares)) == (pytest.approx(0.05, abs=0.012), pytest.approx(0.05, abs=0.012))


def test_too_many_rows_and_unknown_tasks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="8101 rows of 'sum' are asked for, there are 8100 distinct prompts"):
        generate("sum", rows=8101)
    with pytest.raises(ValueError, match="no task 'times'; there are sum, sort, pick"):
        generate("times")
    assert main(["sum", "--rows", "9000", "--out", str(tmp_path / "rows.jsonl")]) == 2
    assert "8100 distinct prompts" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_rows_are_written_as_demonstrations(tmp_path: Path) -> None:
    assert main(["pick", "--rows", "5", "--out", str(tmp_path / "rows.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"pick-{number:05d}" for number in range(5)]
    assert set(rows[0]) == {"id", "group", "prompt", "response", "metadata"}
