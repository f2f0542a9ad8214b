from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from understudy.evaluation import metrics

CONFIDENCE = 0.95
WORDS = [f"w{index}" for index in range(30)]


def random_texts(generator, count: int, words=WORDS, length: int = 12) -> list[str]:
    return [" ".join(generator.choice(words, length)) for _ in range(count)]


def test_words_keep_signs_and_letters_of_any_script():
    assert metrics.words("dest: /etc/x  ключ=1\n") == ["dest", ":", "/", "etc", "/", "x", "ключ", "=", "1"]


def test_distinct_by_hand():
    texts = ["a b a b", "a b c"]
    assert metrics.distinct_n(texts, 1) == pytest.approx(3 / 7)
    assert metrics.distinct_n(texts, 2) == pytest.approx(3 / 5)  # ab ba ab | ab bc
    assert metrics.distinct_n(texts, 3) == pytest.approx(3 / 3)
    assert math.isnan(metrics.distinct_n(["a", ""], 2))


def test_distinct_interval_is_the_jackknife_by_hand():
    texts = ["a b a b", "c d c d", "e f e f", "g", "h", "i"]
    found = metrics.distinct_interval(texts, 1, range(6), CONFIDENCE)
    influence = 9 / 15 - np.array([7 / 11] * 3 + [8 / 14] * 3)  # two letters of four signs, or one of one
    skewness = (influence - influence.mean()) ** 3 / influence.std() ** 3
    variance = 5 / 6 * (influence**2).sum() * (1 + 1.5 * skewness.mean() ** 2 / 6)
    assert found.value == pytest.approx(9 / 15) == metrics.distinct_n(texts, 1)
    assert found.low == pytest.approx(9 / 15 - 2.570582 * math.sqrt(variance), abs=1e-4)
    assert found.n == found.groups == 6
    assert not metrics.distinct_interval(texts[:5], 1, range(5), CONFIDENCE).measured


def test_distinct_interval_does_not_care_how_prompts_are_split_within_a_cluster():
    more = ["a g", "b h", "c i", "d j"]
    joined = metrics.distinct_interval(["a b c", "d e f", "a e", *more], 1, range(7), CONFIDENCE)
    split = metrics.distinct_interval(["a b", "c", "d e f", "a e", *more], 1, [0, *range(7)], CONFIDENCE)
    assert (split.low, split.high) == pytest.approx((joined.low, joined.high))


def test_self_bleu_is_100_for_copies_and_low_for_strangers():
    copies = metrics.self_bleu(["a b c d e"] * 4, seed=1)
    assert copies == pytest.approx([100.0] * 4)
    strangers = metrics.self_bleu(["a b c d e", "f g h i j", "k l m n o"], seed=1)
    assert strangers.max() < 1e-6
    assert len(metrics.self_bleu(["alone"], seed=1)) == 0


def test_self_bleu_counts_groups_of_the_texts_that_it_took():
    texts = random_texts(np.random.default_rng(0), 60)
    found = metrics.self_bleu_interval(texts, 1, np.arange(60) // 2, CONFIDENCE)
    assert found.value == pytest.approx(metrics.self_bleu(texts, 1).mean()) and found.n == metrics.SELF_BLEU_TEXTS
    chosen = sorted(np.random.default_rng(1).permutation(60)[:48])
    assert found.groups == len({index // 2 for index in chosen})
    assert metrics.self_bleu_interval(["alone"], 1, [0], CONFIDENCE) is None


def test_self_bleu_takes_a_seeded_sample():
    texts = random_texts(np.random.default_rng(0), 30)
    assert len(metrics.self_bleu(texts, seed=1, max_texts=10)) == 10
    assert metrics.self_bleu(texts, 1, 10).tolist() == metrics.self_bleu(texts, 1, 10).tolist()
    assert metrics.self_bleu(texts, 1, 10).tolist() != metrics.self_bleu(texts, 2, 10).tolist()


def test_nll_is_per_token_over_the_set():
    found = metrics.nll([-10.0, -2.0], [4, 4], [0, 1], CONFIDENCE)
    assert found["nll"].value == pytest.approx(1.5)
    assert found["perplexity"].value == pytest.approx(math.exp(1.5))
    assert metrics.nll([-8.0, -1.0], [8, 2], [0, 1], CONFIDENCE)["nll"].value == pytest.approx(0.9)  # not (1 + 0.5) / 2
    found = metrics.nll([-8.0, -1.0, -3.0, -4.0, -5.0, -6.0], [8, 2, 3, 3, 3, 3], range(6), CONFIDENCE)
    assert found["perplexity"].high == pytest.approx(math.exp(found["nll"].high))


def test_kl_estimate_finds_the_exact_kl_of_two_categoricals():
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4])
    exact_per_token = float((policy * np.log(policy / reference)).sum())
    generator = np.random.default_rng(4)
    tokens = [generator.choice(3, 5, p=policy) for _ in range(3000)]
    found = metrics.kl_to_reference(
        [np.log(policy[row]) for row in tokens], [np.log(reference[row]) for row in tokens], range(3000), CONFIDENCE
    )
    assert found.low < 5 * exact_per_token < found.high
    assert found.value == pytest.approx(5 * exact_per_token, rel=0.1)


def test_auc_of_disjoint_texts_is_one():
    generator = np.random.default_rng(1)
    expert, generated = random_texts(generator, 40), random_texts(generator, 40, words=["qq", "zz"])
    found = metrics.classifier_auc(expert, generated, np.arange(40), CONFIDENCE, 5)
    assert found.value == 1.0
    assert found.high == 1.0 and found.low == pytest.approx(0.025 ** (1 / 40))


def test_auc_of_copies_is_exactly_one_half():
    expert = random_texts(np.random.default_rng(2), 30)
    assert metrics.classifier_auc(expert, list(expert), np.arange(30), CONFIDENCE, 5).value == 0.5


def test_auc_of_identical_distributions_covers_one_half():
    """Of 60 nominal 95% intervals that are 90% in truth, 46 or fewer cover with probability below 0.003."""
    generator = np.random.default_rng(3)
    found = [
        metrics.classifier_auc(random_texts(generator, 40), random_texts(generator, 40), np.arange(40), CONFIDENCE, 5)
        for _ in range(60)
    ]
    assert binom.cdf(46, 60, 0.9) < 0.003
    assert sum(not one.excludes(0.5) for one in found) > 46
    assert np.mean([one.value for one in found]) == pytest.approx(0.5, abs=0.03)


def test_folds_keep_clusters_together():
    """Each text occurs once as expert and once as generated, labelled at random, and five times in its cluster.

    A classifier that saw copies of a held-out text would know their labels; one that does not is at chance.
    """
    generator = np.random.default_rng(6)
    expert, generated = random_texts(generator, 30), random_texts(generator, 30)
    labels = np.repeat(np.arange(30), 5)
    copies = [text for text in expert for _ in range(5)], [text for text in generated for _ in range(5)]
    leaking = metrics.classifier_auc(*copies, np.arange(150), CONFIDENCE, 5)
    grouped = metrics.classifier_auc(*copies, labels, CONFIDENCE, 5)
    assert leaking.value > 0.95
    assert not grouped.excludes(0.5)


def test_auc_ignores_surrounding_white_space_and_needs_four_clusters():
    expert = random_texts(np.random.default_rng(2), 30)
    padded = [text + "\n" for text in expert]
    assert metrics.classifier_auc(expert, padded, np.arange(30), CONFIDENCE, 5).value == 0.5
    assert metrics.classifier_auc(expert[:6], padded[:6], [0, 0, 1, 1, 2, 2], CONFIDENCE, 5) is None
    assert metrics.classifier_auc(["", "", "", ""], [""] * 4, np.arange(4), CONFIDENCE, 5).value == 0.5
