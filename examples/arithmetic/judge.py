"""Judge of the arithmetic tasks: a sum, the digits in order, or three of the digits in order, exactly checked."""

from __future__ import annotations

import math
import re
from collections import Counter

PICKED = 3

_SUM = re.compile(r"([0-9]+)\+([0-9]+)")
_DIGITS = re.compile(r"(sort|pick) ([0-9]+)")
_NUMBER = re.compile(r"0|[1-9][0-9]*")


def judge(prompt: str, response: str, reference: str) -> float:
    """Return 1.0 for a right answer, 0.0 for any other, NaN (undecided) for a prompt of another task.

    Answers are ASCII digits; a sum has no leading zeros. Surrounding white space is not read.
    """
    answer = response.strip()
    if asked := _SUM.fullmatch(prompt.strip()):
        return float(bool(_NUMBER.fullmatch(answer)) and int(answer) == int(asked[1]) + int(asked[2]))
    if asked := _DIGITS.fullmatch(prompt.strip()):
        in_order = "".join(sorted(answer)) == answer
        there, used = Counter(asked[2]), Counter(answer)
        wanted = len(asked[2]) if asked[1] == "sort" else PICKED
        return float(in_order and used <= there and len(answer) == wanted)
    return math.nan
