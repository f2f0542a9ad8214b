from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.config import SplitsConfig
from understudy.data.splits import default_group, group_position, split_of
from understudy.data.spool import Spooled

FRACTIONS = SplitsConfig(validation=0.1, test=0.2)


def test_fractions_are_met_over_many_groups() -> None:
    splits = [split_of(f"group-{index}", FRACTIONS) for index in range(20_000)]
    # Binomial: three standard deviations of a fraction of 0.2 over 20,000 groups are 0.0085.
    assert splits.count("test") / 20_000 == pytest.approx(0.2, abs=0.0085)
    assert splits.count("validation") / 20_000 == pytest.approx(0.1, abs=0.0065)


def test_positions_never_move() -> None:
    assert group_position("a") == pytest.approx(0.7913742705223815, abs=1e-15)
    assert group_position("b") == pytest.approx(0.24273539101725328, abs=1e-15)
    splits = [split_of(group, FRACTIONS) for group in "abcdef"]
    assert splits == ["train", "validation", "test", "test", "validation", "test"]


@given(st.text())
def test_position_is_a_fraction_for_any_text(group: str) -> None:
    assert 0 <= group_position(group) < 1


def test_changing_validation_keeps_the_test_split() -> None:
    other = SplitsConfig(validation=0.5, test=0.2)
    groups = [f"g{index}" for index in range(500)]
    assert [g for g in groups if split_of(g, FRACTIONS) == "test"] == [
        g for g in groups if split_of(g, other) == "test"
    ]


def test_equal_prompts_share_a_group_whatever_case_spacing_and_system() -> None:
    first, second, third = ["Install  nginx\n"], ["install NGINX"], ["install apache"]
    assert default_group(first) == default_group(second) != default_group(third)


def test_user_turns_are_those_of_the_context() -> None:
    def turns(*messages: tuple[str, str]) -> list[str]:
        context = [{"role": role, "content": content} for role, content in messages]
        text = orjson.dumps(context).decode()
        return Spooled("", text, messages[-1][1], "", None, None, "{}").user_turns

    assert turns(("user", "a")) == ["a"]
    assert turns(("system", "s"), ("user", "a")) == ["a"]
    assert turns(("user", "a"), ("assistant", "b"), ("user", "c")) == ["a", "c"]
    assert turns(("user", '[{"role":"user","role": 1}]')) == ['[{"role":"user","role": 1}]']
