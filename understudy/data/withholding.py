"""Demonstrations that the SFT warm start does not see, so that alignment meets some that are new to its policy.

Decided by the group alone, as the splits are: the same rows whatever their order, growing data moves nothing, and a
greater fraction withholds what a smaller one does and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

from understudy.data.splits import group_position
from understudy.errors import ConfigError


class Grouped(Protocol):
    """The part of a demonstration that decides."""

    @property
    def group(self) -> str:
        """Rows of one group are withheld together."""


G = TypeVar("G", bound=Grouped)


def is_withheld(group: str, fraction: float) -> bool:
    """Whether SFT leaves out the rows of a training group, given the fraction of groups that it leaves out."""
    # Not the hash that splits, in which the training groups are those above the held-out ones.
    return group_position(f"withheld\x00{group}") < fraction


def for_warm_start(train: Sequence[G], fraction: float) -> list[G]:
    """Training rows that the SFT warm start sees, in their order.

    Raises:
        ConfigError: `sft.withheld_fraction` leaves it none, or withholds none.
    """
    shown = [row for row in train if not is_withheld(row.group, fraction)]
    if train and not shown:
        raise ConfigError(
            f"sft.withheld_fraction {fraction:g} withholds all {len(train)} training demonstrations "
            f"({_num_groups(train)} groups) from SFT. Lower it, or give demonstrations of more groups."
        )
    if fraction > 0 and len(shown) == len(train):
        raise ConfigError(
            f"sft.withheld_fraction {fraction:g} withholds none of {len(train)} training demonstrations "
            f"({_num_groups(train)} groups) from SFT. Raise it, or set it to 0."
        )
    return shown


def for_alignment(train: Sequence[G], which: Literal["all", "withheld"], fraction: float) -> list[G]:
    """Training rows that give the alignment prompts and expert responses, in their order.

    Args:
        train: all training rows.
        which: `align.demonstrations`.
        fraction: `sft.withheld_fraction`; read for "withheld" alone.

    Raises:
        ConfigError: none is withheld.
    """
    if which == "all":
        return list(train)
    withheld = [row for row in train if is_withheld(row.group, fraction)]
    if not withheld:
        raise ConfigError(
            f"align.demonstrations is withheld, but sft.withheld_fraction {fraction:g} withholds none of {len(train)} "
            f"training demonstrations ({_num_groups(train)} groups). Raise it, or set align.demonstrations to all."
        )
    return withheld


def _num_groups(rows: Sequence[Grouped]) -> int:
    return len({row.group for row in rows})
