"""Which demonstrations SFT does not see: a function of the group, near the fraction, nested, apart from the splits."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.config import SplitsConfig
from understudy.data.splits import split_of
from understudy.data.withholding import for_alignment, for_warm_start, is_withheld
from understudy.errors import ConfigError


@dataclass(frozen=True)
class Row:
    id: int
    group: str


ROWS = [Row(index, f"group-{index // 3}") for index in range(300)]
SPLITS = SplitsConfig(validation=0.1, test=0.2)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_the_fraction_is_met_over_the_training_groups(fraction: float) -> None:
    groups = [group for group in map(str, range(30_000)) if split_of(group, SPLITS) == "train"]
    share = sum(is_withheld(group, fraction) for group in groups) / len(groups)
    # Binomial: three standard deviations of a half over 20,000 groups are 0.011. Were the hash that of the splits,
    # whose training groups lie above 0.3, a fraction of 0.1 would withhold none.
    assert len(groups) > 20_000 and share == pytest.approx(fraction, abs=0.011)


def test_choices_never_move() -> None:
    assert [group for group in "abcdefghijkl" if is_withheld(group, 0.3)] == ["c", "i"]


@given(st.text(), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_greater_fraction_withholds_what_a_smaller_one_does(group: str, one: float, two: float) -> None:
    assert is_withheld(group, max(one, two)) or not is_withheld(group, min(one, two))
    assert not is_withheld(group, 0.0)


def test_both_parts_are_whole_groups_in_their_order_whatever_the_order_of_rows() -> None:
    shown, withheld = for_warm_start(ROWS, 0.3), for_alignment(ROWS, "withheld", 0.3)
    assert sorted([*shown, *withheld], key=lambda row: row.id) == ROWS
    assert not {row.group for row in shown} & {row.group for row in withheld}
    assert 45 < len(withheld) < 135 and shown == sorted(shown, key=lambda row: row.id)
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    assert set(for_warm_start(shuffled, 0.3)) == set(shown)
    # Growing the data moves nothing.
    assert for_warm_start(ROWS[:150], 0.3) == [row for row in shown if row.id < 150]


def test_nothing_is_withheld_at_0_and_all_are_aligned_on_by_all() -> None:
    assert for_warm_start(ROWS, 0.0) == ROWS == for_alignment(ROWS, "all", 0.3)


def test_an_empty_part_is_refused_with_its_numbers() -> None:
    (withheld, *_), (shown, *_) = (
        [row for row in ROWS if is_withheld(row.group, 0.5) is wanted] for wanted in (True, False)
    )
    with pytest.raises(ConfigError, match=r"withheld_fraction 0\.5 withholds all 2 .*\(1 groups\) from SFT\. Lower it"):
        for_warm_start([withheld, withheld], 0.5)
    with pytest.raises(ConfigError, match=r"withheld_fraction 0\.5 withholds none of 1 .*\(1 groups\)\. Raise it"):
        for_alignment([shown], "withheld", 0.5)


def test_a_fraction_that_withholds_none_is_refused_before_sft_not_after() -> None:
    few = ROWS[:90]  # 30 groups
    assert not any(is_withheld(row.group, 0.001) for row in few)
    with pytest.raises(
        ConfigError, match=r"0\.001 withholds none of 90 training demonstrations \(30 groups\) from SFT"
    ):
        for_warm_start(few, 0.001)
    assert for_warm_start(few, 0.0) == few
