"""The task of both runs: number the lines and write one of two given words on each, up to a given line.

The expert writes a prompt's first word on seven lines of ten and stops where it was told. Which word comes on which
line is open; the numbers, the words and the end are not. Groups are pairs of words, so test prompts name pairs that
were never seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import permutations, product
from typing import Any

WORDS = ("red", "blue", "green", "black", "white", "gold", "pink", "grey", "teal", "lime", "rust", "sand")
FIRST_WORD = 0.7


def rows(count: int, num_lines: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """Return `count` demonstrations with distinct prompts, lists of so many lines."""
    draw = random.Random(seed)
    prompts = list(product(permutations(WORDS, 2), num_lines))
    draw.shuffle(prompts)
    made = []
    for (first, second), last in prompts[:count]:
        lines = [f"{index + 1} {first if draw.random() < FIRST_WORD else second}" for index in range(last)]
        prompt = f"list {first} {second} to {last}"
        made.append({"prompt": prompt, "response": "\n".join(lines), "group": f"{first} {second}"})
    return made


def judge(prompt: str, response: str, reference: str) -> float:
    """Return the share of right lines: the number that is due and one of the two words; missing and extra ones count.

    1 is a perfect list.
    """
    _, first, second, _, last = prompt.split()
    wanted, written = int(last), response.split("\n")
    right = {word: [f"{index + 1} {word}" for index in range(wanted)] for word in (first, second)}
    num_right = sum(line in (right[first][index], right[second][index]) for index, line in enumerate(written[:wanted]))
    return num_right / max(wanted, len(written))
