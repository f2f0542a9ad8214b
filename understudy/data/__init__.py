"""Demonstrations: reading, validating, deduplicating, splitting, and the canonical dataset version."""

from __future__ import annotations

from understudy.data.demonstrations import SPLITS, Demonstration, iterate_split, load_split

__all__ = ["SPLITS", "Demonstration", "iterate_split", "load_split"]
