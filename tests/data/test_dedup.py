from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import pytest

from understudy.data.dedup import Bander, jaccard, shingles, similar_rows


def texts_with_copies(num_originals: int = 150, seed: int = 3) -> list[str]:
    """Originals, lightly edited copies of a third of them, and heavily edited ones."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(3, 8))) for _ in range(400)]
    originals = [" ".join(draw.choices(words, k=40)) for _ in range(num_originals)]
    light = [text[:100] + "#" + text[101:] for text in originals[::3]]
    heavy = [" ".join(word if draw.random() < 0.7 else "changed" for word in text.split()) for text in originals[::3]]
    texts = originals + light + heavy
    draw.shuffle(texts)
    return texts


def near_duplicates(texts: list[str], max_rows: int, threshold: float, folder: Path) -> set[int]:
    bander = Bander(threshold)
    return similar_rows(((text, bander.bands(text)) for text in texts), max_rows, threshold, folder)


def brute_force(texts: list[str], threshold: float) -> set[int]:
    """Compare everything with everything."""
    sets = [shingles(text) for text in texts]
    removed: set[int] = set()
    for later in range(len(texts)):
        if any(jaccard(sets[later], sets[earlier]) >= threshold for earlier in set(range(later)) - removed):
            removed.add(later)
    return removed


@pytest.mark.parametrize("threshold", [0.7, 0.9])
def test_finds_what_comparing_everything_finds(threshold: float, tmp_path: Path) -> None:
    texts = texts_with_copies()
    removed = near_duplicates(texts, len(texts), threshold, tmp_path)
    expected = brute_force(texts, threshold)
    assert len(expected) >= 50
    assert removed == expected


def test_no_pair_of_kept_texts_is_similar_and_no_dissimilar_one_is_removed(tmp_path: Path) -> None:
    texts = texts_with_copies(seed=9)
    removed = near_duplicates(texts, len(texts) + 10, 0.9, tmp_path)
    kept = [shingles(text) for index, text in enumerate(texts) if index not in removed]
    assert max(jaccard(a, b) for a, b in combinations(kept, 2)) < 0.9
    for index in removed:
        assert max(jaccard(shingles(texts[index]), other) for other in kept) >= 0.9


def test_hand_value() -> None:
    assert jaccard(shingles("abcdefg"), shingles("abcdefh")) == pytest.approx(2 / 4)
    assert shingles("abc") == {"abc"}


def test_one_template_repeated_is_found_quickly(tmp_path: Path) -> None:
    texts = ["the same long template with many words in it, over and over, number " + str(i % 10) for i in range(3000)]
    assert len(near_duplicates(texts, 3000, 0.9, tmp_path)) == 2999


def test_nothing_to_compare(tmp_path: Path) -> None:
    assert near_duplicates([], 0, 0.9, tmp_path) == set()
