"""The task over 1,024 tokens: sections named by a letter, lines numbered within each, one of two words a line.

What is due next can be read off the line before, so that a small policy can learn it, and one slip moves all that
follows out of its place, so that a policy that rarely slips is still told from one that never does. The expert writes
a prompt's first word on seven lines of ten. Groups are pairs of words, so test prompts name pairs that were never seen.
"""

from __future__ import annotations

import random
from itertools import permutations
from string import ascii_lowercase
from typing import Any

from experiments.stability.lists import FIRST_WORD, WORDS


def rows(count: int, num_sections: int, num_lines: int, seed: int) -> list[dict[str, Any]]:
    """Return `count` demonstrations with distinct prompts, each of so many sections with so many lines."""
    draw = random.Random(seed)
    pairs = list(permutations(WORDS, 2))
    draw.shuffle(pairs)
    made = []
    for first, second in pairs[:count]:
        words = [first if draw.random() < FIRST_WORD else second for _ in range(num_sections * num_lines)]
        lines = [f"{place} {word}" for place, word in zip(_places(num_sections, num_lines), words, strict=True)]
        prompt = f"write {num_sections} by {num_lines} {first} {second}"
        made.append({"prompt": prompt, "response": "\n".join(lines), "group": f"{first} {second}"})
    return made


def judge(prompt: str, response: str, reference: str) -> float:
    """Return the share of right lines: in their place, with one of the two words; missing and extra ones count.

    1 is a perfect response.
    """
    _, num_sections, _, num_lines, first, second = prompt.split()
    places, written = _places(int(num_sections), int(num_lines)), response.split("\n")
    num_right = sum(
        line in (f"{place} {first}", f"{place} {second}") for place, line in zip(places, written, strict=False)
    )
    return num_right / max(len(places), len(written))


def _places(num_sections: int, num_lines: int) -> list[str]:
    return [f"{letter} {number}" for letter in ascii_lowercase[:num_sections] for number in range(1, num_lines + 1)]
