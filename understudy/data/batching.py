"""Batches of similar lengths under a token budget, in an order that is a function of (seed, epoch)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

_BATCHES_PER_WINDOW = 32


def length_bucketed_batches(lengths: Sequence[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Group indices so that count times longest stays within the budget; every index appears once.

    Rows are shuffled, sorted by length within windows of some batches, cut, and the batches shuffled again,
    so that little is spent on padding and the order still differs in every epoch.

    Args:
        lengths: tokens of each row.
        batch_tokens: budget of a batch, padding included; a longer row stands alone.
        seed: of the run.
        epoch: counted from 0.
    """
    shuffle = random.Random(f"{seed}-{epoch}").shuffle
    order = list(range(len(lengths)))
    shuffle(order)
    mean_length = max(1.0, sum(lengths) / max(1, len(lengths)))
    window = max(1, int(_BATCHES_PER_WINDOW * batch_tokens / mean_length))
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        batches += _cut(sorted(order[start : start + window], key=lengths.__getitem__), lengths, batch_tokens)
    shuffle(batches)
    return batches


def endless_batches(lengths: Sequence[int], batch_tokens: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Batches of epoch 0, 1, 2 … from the `start`-th on: the cursor of a resumed run."""
    epoch, skipped = 0, 0
    while True:
        batches = length_bucketed_batches(lengths, batch_tokens, seed, epoch)
        if skipped + len(batches) > start:
            yield from batches[max(0, start - skipped) :]
        skipped += len(batches)
        epoch += 1


def _cut(ordered: list[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    current: list[int] = []
    for index in ordered:
        # Ascending order: the new row is the longest of its batch.
        if current and (len(current) + 1) * lengths[index] > batch_tokens:
            batches.append(current)
            current = []
        current.append(index)
    return [*batches, current] if current else batches
