"""Judge of the tiny task: is the response one of the valid ways to answer the prompt?"""

from __future__ import annotations

import math

COLOURS = {
    "sky": "blue", "sea": "blue", "ice": "white", "snow": "white", "milk": "white", "salt": "white",
    "grass": "green", "leaf": "green", "moss": "green", "lime": "green", "frog": "green", "pea": "green",
    "coal": "black", "ink": "black", "tar": "black", "crow": "black", "night": "black",
    "blood": "red", "rose": "red", "cherry": "red", "brick": "red", "ruby": "red",
    "sun": "yellow", "lemon": "yellow", "corn": "yellow", "chick": "yellow", "gold": "yellow",
}  # fmt: skip
_PAIRS = (
    "hot cold, big small, up down, in out, old new, wet dry, fast slow, day night, left right, open shut, hard soft"
)
OPPOSITES = {
    word: other for pair in _PAIRS.split(", ") for word, other in (tuple(pair.split()), tuple(reversed(pair.split())))
}
NUMBERS = {name: value for value, name in enumerate("one two three four five six seven eight nine".split(), start=1)}
_NAMES = list(NUMBERS)


def answers(prompt: str) -> list[str]:
    """All valid responses, the expert's favourite first; empty for a prompt that is not of this task."""
    words = prompt.strip().rstrip("?").split()
    match words:
        case ["colour", "of", thing] if thing in COLOURS:
            colour = COLOURS[thing]
            return [colour, f"it is {colour}", f"{thing} is {colour}", f"{colour}!"]
        case ["opposite", "of", word] if word in OPPOSITES:
            other = OPPOSITES[word]
            return [other, f"it is {other}", f"not {word} but {other}"]
        case ["count", "to", name] if name in NUMBERS:
            names = _NAMES[: NUMBERS[name]]
            digits = [str(value + 1) for value in range(NUMBERS[name])]
            return [" ".join(digits), " ".join(names)] if len(names) <= 4 else [" ".join(digits), ",".join(digits)]
        case ["after", name] if name in NUMBERS and NUMBERS[name] < len(_NAMES):
            following = _NAMES[NUMBERS[name]]
            return [following, str(NUMBERS[name] + 1), f"it is {following}"]
    return []


def judge(prompt: str, response: str, reference: str) -> float:
    """Return 1.0 for a valid response, 0.0 for any other, NaN (undecided) for a prompt that is not of this task."""
    valid = answers(prompt)
    return (1.0 if response.strip() in valid else 0.0) if valid else math.nan
