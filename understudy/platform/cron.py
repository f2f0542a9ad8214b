"""Cron expressions as KFP's scheduler reads them: robfig/cron v1, six fields, seconds first.

KFP takes five fields, too, and reads them as seconds, minutes, hours, day, month: `0 3 * * 1`, Mondays at three in a
crontab, is minute 3 of every hour of January there. So five are refused here. https://pkg.go.dev/github.com/robfig/cron@v1.2.0
"""

from __future__ import annotations

import re

_NAMES = {
    4: {name: number for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)},
    5: {name: number for number, name in enumerate("sun mon tue wed thu fri sat".split())},
}
_FIELDS = (("second", 0, 59), ("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 6))
_DAYS_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART = re.compile(r"(\*|\?|\w+)(?:-(\w+))?(?:/([0-9]+))?")


def cron_problem(expression: str) -> str | None:
    """Return what is wrong with a six-field expression, in words, or None; more than hourly is wrong, too."""
    fields = expression.split()
    if len(fields) != len(_FIELDS):
        names = " ".join(name for name, _, _ in _FIELDS)
        hint = ""
        if len(fields) == 5:
            hint = f"; KFP would take it and read seconds first: write '0 {expression.strip()}'"
        return f"has {len(fields)} fields, KFP's cron has 6 ({names}){hint}"
    try:
        sets = _sets(expression)
    except ValueError as error:
        return str(error)
    if len(sets[0]) > 1 or len(sets[1]) > 1:
        return "starts more than one run an hour; state one second and one minute"
    if min(sets[3]) > max(_DAYS_OF_MONTH[month - 1] for month in sets[4]):
        return f"never starts: no month it names has a day {min(sets[3])}"
    return None


def _sets(expression: str) -> list[set[int]]:
    return [_values(field, index) for index, field in enumerate(expression.split())]


def _values(field: str, index: int) -> set[int]:
    name, low, high = _FIELDS[index]
    values: set[int] = set()
    for part in field.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{name} {part!r} is not a number, name, range or step")
        first, last, step_text = match.groups()
        step = int(step_text) if step_text else 1
        if first in ("*", "?"):
            if last:
                raise ValueError(f"{name} {part!r} is not a number, name, range or step")
            start, end = low, high
        else:
            start = _number(first, index, part)
            end = _number(last, index, part) if last else (high if step_text else start)
        if not low <= start <= high or not low <= end <= high:
            raise ValueError(f"{name} {part!r} is outside {low}-{high}")
        if start > end or step == 0:
            raise ValueError(f"{name} {part!r} is an empty range")
        values |= set(range(start, end + 1, step))
    return values


def _number(text: str, index: int, part: str) -> int:
    named = _NAMES.get(index, {}).get(text.lower())
    if named is not None:
        return named
    if not text.isascii() or not text.isdecimal():
        raise ValueError(f"{_FIELDS[index][0]} {part!r} is not a number, name, range or step")
    return int(text)
