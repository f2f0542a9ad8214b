"""Generates a tiny instruction task, for tests: say something small about a thing, in one of several valid ways.

    python -m examples.tiny.generate --rows 400 --seed 7 --out examples/tiny/demonstrations.jsonl

Each prompt has several right responses (`colour of sky?` may be answered `blue` or `it is blue`), so that a
model has a distribution to match and not one string; the same seed gives the same bytes on every machine.
A tenth of the rows are chat `messages`. The judge in judge.py knows all right responses.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from examples.tiny.judge import COLOURS, NUMBERS, OPPOSITES, TEMPLATES, answers
from examples.writing import write_jsonl

ROWS, SEED = 400, 7
CHAT_EVERY = 10
# Experts prefer the first ways: the weights of the valid responses of one prompt.
WEIGHTS = (5, 3, 2, 1)

Row = dict[str, Any]


def prompts() -> list[tuple[str, str]]:
    """All (group, prompt) pairs, in a fixed order; the group is the thing asked about, however it is asked."""
    things: dict[str, Iterable[str]] = {
        "colour": COLOURS,
        "opposite": OPPOSITES,
        "count": NUMBERS,
        "next": list(NUMBERS)[:-1],
    }
    return [
        (f"{task}-{thing}", template.format(thing))
        for task, templates in TEMPLATES.items()
        for thing in things[task]
        for template in templates
    ]


def generate(rows: int = ROWS, seed: int = SEED) -> list[Row]:
    """Return `rows` rows, no two with the same prompt and response.

    Raises:
        ValueError: more rows are asked for than there are distinct ones.
    """
    pool = prompts()
    most = sum(len(answers(prompt)) for _, prompt in pool)
    if rows > most:
        raise ValueError(f"{rows} rows are asked for, there are {most} distinct ones")
    # random() is the one method whose sequence Python promises to keep across versions.
    draw = random.Random(seed).random
    made: dict[tuple[str, str], Row] = {}
    while len(made) < rows:
        group, prompt = pool[int(draw() * len(pool))]
        valid = answers(prompt)
        response = valid[_weighted(draw(), WEIGHTS[: len(valid)])]
        if (prompt, response) not in made:
            made[prompt, response] = _row(len(made), group, prompt, response)
    return list(made.values())


def _row(index: int, group: str, prompt: str, response: str) -> Row:
    row: Row = {"id": f"tiny-{index:04d}", "group": group, "metadata": {"task": group.split("-")[0]}}
    if index % CHAT_EVERY:
        return row | {"prompt": prompt, "response": response}
    turns = [("user", prompt), ("assistant", response)]
    return row | {"messages": [{"role": role, "content": content} for role, content in turns]}


def _weighted(uniform: float, weights: tuple[int, ...]) -> int:
    remaining = uniform * sum(weights)
    for index, weight in enumerate(weights):
        remaining -= weight
        if remaining < 0:
            return index
    return len(weights) - 1


def main(argv: Iterable[str] | None = None) -> int:
    """Write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("demonstrations.jsonl"))
    options = parser.parse_args(None if argv is None else list(argv))
    write_jsonl(options.out, generate(options.rows, options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
