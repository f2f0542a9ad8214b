"""Which split a demonstration belongs to: decided by its group alone, so that growing the data moves nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from unicodedata import normalize

from understudy.config import SplitsConfig


def split_of(group: str, fractions: SplitsConfig) -> str:
    """Return "test", "validation" or "train" by comparing the group's hash in [0, 1) with the fractions.

    The test split takes the lowest hashes, so that changing the validation fraction keeps the test split.
    """
    position = group_position(group)
    if position < fractions.test:
        return "test"
    return "validation" if position < fractions.test + fractions.validation else "train"


def group_position(group: str) -> float:
    """Map a group to [0, 1): the first 53 bits of its SHA-256, which a float holds exactly."""
    return (int.from_bytes(hashlib.sha256(group.encode()).digest()[:8]) >> 11) / (1 << 53)


def default_group(user_turns: Sequence[str]) -> str:
    """Name the group of a row that states none: equal user turns share one.

    Case, spacing and Unicode's composed or decomposed spelling of a character make no difference.
    """
    turns = "\x00".join([" ".join(_folded(turn).split()) for turn in user_turns])
    return "prompt-" + hashlib.sha256(turns.encode()).hexdigest()[:32]


def _folded(text: str) -> str:
    return text.casefold() if text.isascii() else normalize("NFC", normalize("NFC", text).casefold())
