"""Statistics that are counted in batches are those of each row alone."""

from __future__ import annotations

import random

import pytest

from understudy.data import summary as summary_module
from understudy.data.summary import Summary, TextStatistics

ASCII = ["word", "a", " ", "  ", "\n", "\r\n", "\t", ".", "x y", "!~"]
OTHER = ["ä", "e\u0301", "\u00a0", "\u2003", "世", "привет "]


@pytest.mark.parametrize("batch_rows", [1, 7, 4096])
@pytest.mark.parametrize("pieces", [ASCII, ASCII + OTHER])
def test_words_and_lengths_are_those_of_each_text(
    pieces: list[str], batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary_module, "_BATCH_ROWS", batch_rows)
    draw = random.Random(5)
    texts = [
        ("".join(draw.choices(pieces, k=draw.randrange(9))), "".join(draw.choices(pieces, k=5))) for _ in range(50)
    ]
    statistics, found = TextStatistics(), Summary("", [], [], "keep")
    for prompt, response in texts:
        statistics.add(prompt, response)
    statistics.fill(found)
    assert found.words == {
        "prompt": sum(len(prompt.split()) for prompt, _ in texts),
        "response": sum(len(response.split()) for _, response in texts),
    }
    assert found.length_quantiles["prompt"]["1"] == max(len(prompt) for prompt, _ in texts)
    assert found.rows_not_nfc == sum("e\u0301" in prompt + response for prompt, response in texts)


def test_no_rows_are_no_words() -> None:
    statistics, found = TextStatistics(), Summary("", [], [], "keep")
    statistics.fill(found)
    assert (found.words, found.scripts, found.nfc) == ({"prompt": 0, "response": 0}, {}, True)
