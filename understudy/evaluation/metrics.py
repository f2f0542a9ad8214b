"""Metrics over texts and numbers: pure functions, each with its interval.

Shape legend: P prompts (one expert text and one generated text each), T tokens of one response.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from understudy.evaluation import intervals
from understudy.evaluation.intervals import POSITIVE, SHARE, Floats, Interval

_WORD = re.compile(r"\w+|[^\w\s]")
PERCENT = (0.0, 100.0)
SELF_BLEU_TEXTS = 48  # pairwise, so the cost grows with the square


def words(text: str) -> list[str]:
    """Split into runs of word characters and single other signs; white space only separates."""
    return _WORD.findall(text)


def distinct_n(texts: Iterable[str], n: int) -> float:
    """Return distinct n-grams over all n-grams of the set (Li et al. 2016); NaN when no text has n words."""
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def distinct_left_out(texts: Sequence[str], n: int, clusters: ArrayLike) -> tuple[float, dict[int, float]] | None:
    """Return distinct-n and, for each cluster that is not all there is, distinct-n without it; None without n-grams."""
    labels = np.asarray(clusters)
    total, owners = 0, dict[tuple[str, ...], int]()
    totals = dict.fromkeys(labels.tolist(), 0)
    shared = -1
    for text, label in zip(texts, labels.tolist(), strict=True):
        for gram in _ngrams(text, n):
            total += 1
            totals[label] += 1
            owners[gram] = label if owners.get(gram, label) == label else shared
    if not total:
        return None
    only_here = dict.fromkeys(totals, 0)
    for owner in owners.values():
        if owner != shared:
            only_here[owner] += 1
    left_out = {
        label: (len(owners) - only_here[label]) / (total - totals[label]) for label in totals if totals[label] < total
    }
    return len(owners) / total, left_out


def distinct_interval(texts: Sequence[str], n: int, clusters: ArrayLike, confidence: float) -> Interval | None:
    """Return distinct-n with its interval; None without n-grams."""
    found = distinct_left_out(texts, n, clusters)
    if found is None:
        return None
    value, without = found
    left_out = [without.get(label, value) for label in np.unique(np.asarray(clusters)).tolist()]
    return intervals.of_set(value, left_out, len(texts), confidence, SHARE)


def self_bleu(texts: Sequence[str], seed: int, max_texts: int = SELF_BLEU_TEXTS) -> Floats:
    """Return, for each of a seeded sample of texts, its BLEU (0 to 100) against all others (Zhu et al. 2018).

    High means that the texts repeat one another. Empty when there are fewer than two texts.
    """
    from sacrebleu.metrics.bleu import BLEU

    if len(texts) < 2:
        return np.zeros(0)
    tokenised = [" ".join(words(texts[index])) for index in _sample(len(texts), seed, max_texts)]
    bleu = BLEU(effective_order=True, tokenize="none")
    scores = [
        bleu.sentence_score(text, tokenised[:index] + tokenised[index + 1 :]).score
        for index, text in enumerate(tokenised)
    ]
    return np.asarray(scores)


def self_bleu_interval(texts: Sequence[str], seed: int, clusters: ArrayLike, confidence: float) -> Interval | None:
    """Return the mean of `self_bleu` with its interval; None when there are fewer than two texts."""
    values = self_bleu(texts, seed)
    chosen = _sample(len(texts), seed, SELF_BLEU_TEXTS)[: len(values)]
    return intervals.mean(values, np.asarray(clusters)[chosen], confidence, PERCENT)


def chrf(texts: Sequence[str], references: Sequence[str]) -> Floats:
    """Return the character F-score (0 to 100, Popović 2015) of each text against its own reference (P)."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    return np.asarray(
        [metric.sentence_score(text, [reference]).score for text, reference in zip(texts, references, strict=True)]
    )


def nll(logp_sums: ArrayLike, token_counts: ArrayLike, clusters: ArrayLike, confidence: float) -> dict[str, Interval]:
    """Return NLL per token (nats) and perplexity of a set, from log-probability sums and token counts (P).

    The mean is over tokens, not over responses: sum of -log p over sum of tokens.
    """
    values = -np.asarray(logp_sums, dtype=np.float64)
    interval = intervals.mean(values, clusters, confidence, POSITIVE, token_counts)
    if interval is None:
        return {}
    value, low, high = (math.exp(min(number, 700.0)) for number in (interval.value, interval.low, interval.high))
    return {"nll": interval, "perplexity": Interval(value, low, high, interval.n, interval.groups)}


def kl_to_reference(
    logp_policy: Sequence[ArrayLike],
    logp_reference: Sequence[ArrayLike],
    clusters: ArrayLike,
    confidence: float,
) -> Interval | None:
    """Estimate KL(policy || reference) per sequence (nats) from samples of the policy at T=1.

    Args:
        logp_policy: per sample, log-probabilities of its tokens under the policy that wrote it (T).
        logp_reference: the same tokens under the reference (T).
        clusters: cluster of each sample's prompt (P).
        confidence: of the interval.

    Unbiased mean of log(policy / reference); chance may make it negative, the interval says how much that means.
    """
    ratios = [
        float(np.sum(np.asarray(policy, dtype=np.float64) - np.asarray(reference, dtype=np.float64)))
        for policy, reference in zip(logp_policy, logp_reference, strict=True)
    ]
    return intervals.mean(ratios, clusters, confidence)


def classifier_auc(
    expert_texts: Sequence[str],
    generated_texts: Sequence[str],
    clusters: ArrayLike,
    confidence: float,
    seed: int,
    num_folds: int = 5,
) -> Interval | None:
    """Return how well a fresh classifier tells expert from generated text: 0.5 not at all, 1 always.

    Character n-grams and a logistic regression, a different architecture from the discriminator that the policy was
    trained against. Folds, drawn by `seed`, keep all prompts of a cluster together. Surrounding white space is not
    shown to it. The interval reflects the choice of prompts, not that of the folds. None with fewer than four clusters.
    """
    label_P = np.unique(np.asarray(clusters), return_inverse=True)[1]
    if not len(label_P) or label_P.max() < 3:
        return None
    texts = [text.strip() for text in (*expert_texts, *generated_texts)]
    scores = _held_out_scores(texts, label_P, min(num_folds, int(label_P.max()) + 1), seed)
    return intervals.auc(scores[: len(label_P)], scores[len(label_P) :], label_P, confidence)


def _sample(num_texts: int, seed: int, max_texts: int) -> list[int]:
    return sorted(np.random.default_rng(seed).permutation(num_texts)[:max_texts].tolist())


def _held_out_scores(texts: Sequence[str], label_P: NDArray[np.int64], num_folds: int, seed: int) -> Floats:
    """Score 2P texts, the first P of them expert, each by the model of the folds without its cluster."""
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    num_prompts, num_clusters = len(label_P), int(label_P.max()) + 1
    scores = np.zeros(2 * num_prompts)
    # Counting looks at no label, so it is done once; document frequencies and weights are learned per fold.
    vectorizer = CountVectorizer(analyzer="char", ngram_range=(1, 4), lowercase=False, max_features=20_000)
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # every text is empty
        return scores
    is_expert = np.repeat([1, 0], num_prompts)
    fold_of_cluster = np.random.default_rng(seed).permutation(num_clusters) % num_folds
    fold = np.tile(fold_of_cluster[label_P], 2)
    for held_out in range(num_folds):
        train, test = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
        tfidf = TfidfTransformer(sublinear_tf=True).fit(counts[train])
        model = LogisticRegression(C=10.0, max_iter=200).fit(tfidf.transform(counts[train]), is_expert[train])
        scores[test] = model.decision_function(tfidf.transform(counts[test]))
    return scores.round(9)  # equal texts get equal scores, whatever the order of the sums


def _ngrams(text: str, n: int) -> Iterable[tuple[str, ...]]:
    tokens = words(text)
    return zip(*(tokens[start:] for start in range(n)), strict=False)
