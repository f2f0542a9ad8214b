"""Parts of objectives by name, without torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """Return the entry of that name; `what` says what it names.

    Raises:
        ValueError: there is none, with the closest name and all that there are.
    """
    if name not in table:
        raise unknown(name, what, list(table), list(table))
    return table[name]


def unknown(name: str, what: str, candidates: Sequence[str], known: Sequence[str]) -> ValueError:
    """Return the error for a name that nothing has: the closest of the candidates, and what is known."""
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.4)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return ValueError(f"Unknown {what} {name!r}. {hint}Known: {', '.join(known)}.")
