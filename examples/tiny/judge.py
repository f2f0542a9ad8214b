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


# Ways to ask, by task; the last word of a prompt that is not in its template is the thing asked about.
TEMPLATES = {
    "colour": ("colour of {}?", "{} colour?", "which colour is {}?"),
    "opposite": ("opposite of {}?", "not {} but?", "reverse {}"),
    "count": ("count to {}", "numbers up to {}"),
    "next": ("after {}?", "{} and then?", "what follows {}?"),
}


def answers(prompt: str) -> list[str]:
    """All valid responses, the expert's favourite first; empty for a prompt that is not of this task."""
    for task, templates in TEMPLATES.items():
        for template in templates:
            head, tail = template.split("{}")
            if prompt.startswith(head) and prompt.endswith(tail) and len(prompt) > len(head) + len(tail):
                if valid := _answers(task, prompt[len(head) : len(prompt) - len(tail)]):
                    return valid
    return []


def _answers(task: str, thing: str) -> list[str]:
    if task == "colour" and thing in COLOURS:
        colour = COLOURS[thing]
        return [colour, f"it is {colour}", f"{thing} is {colour}", f"{colour}!"]
    if task == "opposite" and thing in OPPOSITES:
        other = OPPOSITES[thing]
        return [other, f"it is {other}", f"not {thing} but {other}"]
    if task == "count" and thing in NUMBERS:
        digits = [str(value + 1) for value in range(NUMBERS[thing])]
        return [" ".join(digits), ",".join(digits), "-".join(digits)] if len(digits) > 1 else ["1", "one"]
    if task == "next" and NUMBERS.get(thing, len(NUMBERS)) < len(NUMBERS):
        following = list(NUMBERS)[NUMBERS[thing]]
        return [following, str(NUMBERS[thing] + 1), f"it is {following}"]
    return []


def judge(prompt: str, response: str, reference: str) -> float:
    """Return 1.0 for a valid response, 0.0 for any other, NaN (undecided) for a prompt that is not of this task."""
    valid = answers(prompt)
    return (1.0 if response.strip() in valid else 0.0) if valid else math.nan
