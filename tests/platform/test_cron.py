"""Our reading of cron is KFP's (robfig/cron v1), but stricter: six fields, at most one run an hour."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kfp_rules import parse_cron

from understudy.platform.cron import _sets, cron_problem

NUMBER = st.integers(0, 62).map(str)
WORD = st.sampled_from(["*", "?", "mon", "JAN", "-1", "x", ""]) | NUMBER
PART = st.one_of(
    WORD,
    st.tuples(WORD, NUMBER).map("-".join),
    st.tuples(WORD, NUMBER).map("/".join),
    st.tuples(NUMBER, NUMBER, NUMBER).map(lambda parts: f"{parts[0]}-{parts[1]}/{parts[2]}"),
)
FIELD = st.lists(PART, min_size=1, max_size=2).map(",".join)


@settings(max_examples=400, deadline=None)
@given(st.lists(FIELD, min_size=6, max_size=6).map(" ".join))
def test_what_we_take_kfp_takes_and_reads_alike(expression: str) -> None:
    if cron_problem(expression) is None:
        assert _sets(expression) == parse_cron(expression)


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("0 3 * * 1", "has 5 fields, KFP's cron has 6 (second minute hour day month weekday); KFP would take it"),
        ("0 0 3 * * 1 2026", "has 7 fields"),
        ("@weekly", "has 1 fields"),
        ("0 60 3 * * 1", "minute '60' is outside 0-59"),
        ("0 0 24 * * *", "hour '24' is outside 0-23"),
        ("0 0 3 0 * *", "day '0' is outside 1-31"),
        ("0 0 3 * * 7", "weekday '7' is outside 0-6"),
        ("0 0 3 * * fri-mon", "weekday 'fri-mon' is an empty range"),
        ("0 0 */0 * * *", "hour '*/0' is an empty range"),
        ("0 0 3 * * L", "weekday 'L' is not a number, name, range or step"),
        ("0 */5 * * * *", "starts more than one run an hour"),
        ("* 0 3 * * *", "starts more than one run an hour"),
    ],
)
def test_what_is_refused(expression: str, words: str) -> None:
    assert words in str(cron_problem(expression))


@pytest.mark.parametrize("part", ["*/\u0663", "\u0662", "1-\uff12", "\u00b2"])
def test_digits_of_other_scripts_are_refused(part: str) -> None:
    assert "is not a number, name, range or step" in str(cron_problem(f"0 0 2 * * {part}"))
