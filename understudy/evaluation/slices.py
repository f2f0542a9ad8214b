"""Where a challenger got better and worse: the paired score difference by prompt length, group and kind of prompt.

Exploratory: many slices are looked at, so some will stand out by chance alone; the page says how many to expect.

Shape legend: P prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy.data.demonstrations import Demonstration
from understudy.evaluation.intervals import Interval, cluster_ids, difference
from understudy.evaluation.result import EvaluationResult
from understudy.evaluation.sides import Pair

MIN_PROMPTS = 5  # of a slice that is shown by itself
MAX_GROUPS = 12
PROMPTS_PER_CLUSTER = 20
MAX_CLUSTERS = 8
MAX_WORD = 24
NUM_REGRESSIONS = 20


@dataclass(frozen=True)
class Slice:
    """Some of the prompts.

    Attributes:
        kind: "prompt length", "group" or "topic".
        name: which one.
        prompts: how many prompts it has.
        decided: on how many of them both were scored.
        better: where the challenger scored higher.
        worse: where it scored lower.
        difference: mean score of the challenger minus the reference's.
    """

    kind: str
    name: str
    prompts: int
    decided: int
    better: int
    worse: int
    difference: Interval | None

    @property
    def stands_out(self) -> bool:
        """Whether the interval excludes no difference."""
        return self.difference is not None and self.difference.excludes(0.0)


def slices_of(result: EvaluationResult, pair: Pair) -> list[Slice]:
    """Return all slices with MIN_PROMPTS prompts or more: lengths in order, groups and topics the worst first."""
    prompts = [row.prompt for row in result.test]
    lengths = [_slice(result, pair, "prompt length", *each) for each in _by_length(prompts)]
    groups = [_slice(result, pair, "group", *each) for each in _by_group(result.test)]
    topics = [_slice(result, pair, "topic", *each) for each in _by_topic(prompts, pair.seed)]
    return [*lengths, *_worst_first(groups), *_worst_first(topics)]


def regressions_of(pair: Pair) -> list[int]:
    """Return the prompts that got worse, the worst first; equal losses are ordered by chrF, then by their place."""
    gain_P = pair.gain_P
    worse = np.flatnonzero(np.nan_to_num(gain_P) < 0).tolist()
    return sorted(worse, key=lambda row: (gain_P[row], pair.chrf_gain_P[row], row))[:NUM_REGRESSIONS]


def _slice(result: EvaluationResult, pair: Pair, kind: str, name: str, rows: NDArray[np.int64]) -> Slice:
    gain = pair.gain_P[rows]
    clusters = result.clusters[rows]
    if kind == "group":
        # It speaks of this group alone, so its prompts are the unit; equal ones are still one.
        clusters = cluster_ids(rows.tolist(), [result.test[row].prompt for row in rows])
    return Slice(
        kind=kind,
        name=name,
        prompts=len(rows),
        decided=int(np.isfinite(gain).sum()),
        better=int((gain > 0).sum()),
        worse=int((gain < 0).sum()),
        difference=difference(pair.ours_P[rows], pair.theirs_P[rows], clusters, pair.confidence),
    )


def _by_length(prompts: Sequence[str]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield quarters of the prompts by length in characters; equal lengths stay together, so fewer are possible."""
    lengths = np.asarray([len(prompt) for prompt in prompts])
    edges = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75], method="inverted_cdf"))
    part = np.searchsorted(edges, lengths, side="left")
    for number in np.unique(part):
        rows = np.flatnonzero(part == number)
        if len(rows) >= MIN_PROMPTS:
            low, high = int(lengths[rows].min()), int(lengths[rows].max())
            yield (f"{low} to {high} characters" if low < high else f"{low} characters"), rows


def _by_group(test: Sequence[Demonstration]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    names, number, counts = np.unique([row.group for row in test], return_inverse=True, return_counts=True)
    if len(names) < 2:
        return
    largest = sorted(range(len(names)), key=lambda index: (-counts[index], names[index]))[:MAX_GROUPS]
    for index in largest:
        if counts[index] >= MIN_PROMPTS:
            yield str(names[index]), np.flatnonzero(number == index)


def _by_topic(prompts: Sequence[str], seed: int) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Yield clusters of prompts (TF-IDF, k-means), each named by the words that set it apart."""
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    num_clusters = min(MAX_CLUSTERS, len(prompts) // PROMPTS_PER_CLUSTER)
    if num_clusters < 2:
        return
    vectorizer = TfidfVectorizer(sublinear_tf=True, max_df=0.5, max_features=5000, token_pattern=r"(?u)\b[^\W\d_]\w+\b")
    try:
        vectors: Any = vectorizer.fit_transform(prompts)
    except ValueError:  # no word that some prompts share and others lack
        return
    num_clusters = min(num_clusters, len({(row.indices.tobytes(), row.data.tobytes()) for row in vectors}))
    if num_clusters < 2:
        return
    model = KMeans(num_clusters, n_init=4, random_state=seed % 2**32).fit(vectors)
    words = vectorizer.get_feature_names_out()
    for number, centre in enumerate(model.cluster_centers_):
        rows = np.flatnonzero(model.labels_ == number)
        if len(rows) >= MIN_PROMPTS:
            # Equal weights in the order of the words: sorting must not depend on the machine.
            top = sorted(np.flatnonzero(centre), key=lambda word: (-round(float(centre[word]), 9), word))[:3]
            yield ", ".join(_short(str(words[word])) for word in top) or "no words", rows


def _short(word: str) -> str:
    return word if len(word) <= MAX_WORD else f"{word[:MAX_WORD]}…"


def _worst_first(slices: list[Slice]) -> list[Slice]:
    return sorted(slices, key=lambda each: (each.difference.value if each.difference else 0.0, each.name))
