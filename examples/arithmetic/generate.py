"""Generates demonstrations whose answers can be checked exactly, two close-ended tasks and one open-ended.

    python -m examples.arithmetic.generate sort --rows 2000 --seed 7 --out sort.jsonl

`sum` asks `12+34`, `sort` asks `sort 31524`: each has one right answer. `pick` asks `pick 31524`, and the expert writes
any three of the digits in order: up to ten right answers. The same seed gives the same bytes on every machine. The
group is what must not be in two splits: the unordered pair of a sum, the digits whatever their order. The judge is in
judge.py.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from examples.arithmetic.judge import PICKED
from examples.writing import write_jsonl

ROWS, SEED = 2000, 7
DIGITS = {"sum": 2, "sort": 5, "pick": 5}

Row = dict[str, Any]
Draw = Callable[[], float]


def generate(task: str, rows: int = ROWS, seed: int = SEED, digits: int | None = None) -> list[Row]:
    """Return `rows` rows, no two with the same prompt and response.

    Args:
        task: "sum", "sort" or "pick".
        rows: how many.
        seed: of the prompts, and of the expert's choice among right answers.
        digits: of each number of a sum, or of the digits to order; None is the task's own number.

    Raises:
        ValueError: the task is unknown, or more rows are asked for than there are distinct prompts.
    """
    if task not in _MAKERS:
        raise ValueError(f"There is no task {task!r}; there are {', '.join(_MAKERS)}.")
    width = digits or DIGITS[task]
    most = (9 * 10 ** (width - 1)) ** 2 if task == "sum" else 10**width
    if rows > most:
        raise ValueError(f"{rows} rows of {task!r} are asked for, there are {most} distinct prompts. Raise the digits.")
    # random() is the one method whose sequence Python promises to keep across versions.
    draw = random.Random(f"{task}/{width}/{seed}").random
    made: dict[str, Row] = {}
    while len(made) < rows:
        group, prompt, response = _MAKERS[task](draw, width)
        if prompt not in made:
            made[prompt] = {
                "id": f"{task}-{len(made):05d}",
                "group": group,
                "prompt": prompt,
                "response": response,
                "metadata": {"task": task},
            }
    return list(made.values())


def _sum(draw: Draw, digits: int) -> tuple[str, str, str]:
    low, high = 10 ** (digits - 1), 10**digits
    first, second = (low + int(draw() * (high - low)) for _ in range(2))
    return f"sum-{min(first, second)}-{max(first, second)}", f"{first}+{second}", str(first + second)


def _sort(draw: Draw, digits: int) -> tuple[str, str, str]:
    asked = _digits(draw, digits)
    return f"digits-{_ordered(asked)}", f"sort {asked}", _ordered(asked)


def _pick(draw: Draw, digits: int) -> tuple[str, str, str]:
    asked = _digits(draw, digits)
    left = list(asked)
    chosen = [left.pop(int(draw() * len(left))) for _ in range(PICKED)]
    return f"digits-{_ordered(asked)}", f"pick {asked}", _ordered(chosen)


def _digits(draw: Draw, digits: int) -> str:
    return "".join(str(int(draw() * 10)) for _ in range(digits))


def _ordered(digits: Iterable[str]) -> str:
    return "".join(sorted(digits))


_MAKERS = {"sum": _sum, "sort": _sort, "pick": _pick}


def main(argv: Iterable[str] | None = None) -> int:
    """Write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("task", choices=sorted(_MAKERS))
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--digits", type=int)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(None if argv is None else list(argv))
    try:
        rows = generate(options.task, options.rows, options.seed, options.digits)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    write_jsonl(options.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
