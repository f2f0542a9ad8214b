from __future__ import annotations

from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.data.batching import endless_batches, length_bucketed_batches


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=200), st.integers(1, 100), st.integers(0, 3))
def test_every_row_once_and_budget_kept(lengths: list[int], budget: int, epoch: int) -> None:
    batches = length_bucketed_batches(lengths, budget, seed=3, epoch=epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def test_padding_is_small_and_epochs_differ() -> None:
    lengths = [1 + (37 * i) % 100 for i in range(2000)]
    batches = length_bucketed_batches(lengths, 1000, seed=0, epoch=0)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded / sum(lengths) < 1.1
    assert batches != length_bucketed_batches(lengths, 1000, seed=0, epoch=1)
    assert batches == length_bucketed_batches(lengths, 1000, seed=0, epoch=0)


def test_endless_batches_resume_anywhere() -> None:
    lengths = [5, 9, 2, 7, 7, 3, 8]
    everything = list(islice(endless_batches(lengths, 16, seed=1), 40))
    for start in range(0, 30, 7):
        assert list(islice(endless_batches(lengths, 16, seed=1, start=start), 10)) == everything[start : start + 10]
