"""Slices, sides and regressions on scores chosen by hand."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from understudy.evaluation.sides import CHRF, pair_of, side_by_side
from understudy.evaluation.slices import MIN_PROMPTS, regressions_of, slices_of

ERRORS = {"base": 0.9, "sft": 0.04, "aligned": 0.06, "champion": 0.03}


@pytest.fixture(scope="module")
def whole(fakes):
    return fakes.result(ERRORS)


@pytest.fixture
def result(whole):
    return copy.deepcopy(whole)


def set_scores(result, ours, theirs, reference="champion"):
    for policy, scores in (("aligned", ours), (reference, theirs)):
        generated = result.generated[policy]["tuned"]
        generated.scores["no_oops"] = np.asarray(scores, dtype=float)


def test_the_reference_is_the_champion_else_sft_and_the_measure_the_judge_else_chrf(fakes, result):
    pair = pair_of(result)
    assert (pair.challenger, pair.reference, pair.decoding, pair.measure) == ("aligned", "champion", "tuned", "no_oops")
    without = fakes.result({"base": 0.9, "sft": 0.04, "aligned": 0.06})
    assert pair_of(without).reference == "sft"
    unjudged = fakes.result({"sft": 0.1, "aligned": 0.1}, judged=False, judges=(), tuning_judge=None)
    assert pair_of(unjudged).measure == CHRF
    assert pair_of(fakes.result({"base": 0.9, "sft": 0.1})) is None


def test_sides_are_paired_and_say_which_way(result):
    num = len(result.test)
    set_scores(result, [1.0] * num, [0.0] * (num // 2) + [1.0] * (num // 2))
    rows = {side.label: side for side in side_by_side(result, pair_of(result))}
    assert list(rows) == ["no_oops", "chrF", "distinct-2", "tokens", "ended", "NLL/char"]
    assert rows["no_oops"].difference.value == pytest.approx(0.5) and rows["no_oops"].outcome == "better"
    # The challenger's NLL per token is 1.06, the champion's 1.03; per character it is worse by as much.
    sums, _ = result.likelihood["aligned"]
    theirs, _ = result.likelihood["champion"]
    characters = sum(len(row.response) + 1 for row in result.test)
    assert rows["NLL/char"].difference.value == pytest.approx((theirs.sum() - sums.sum()) / characters)
    assert rows["NLL/char"].outcome == "worse"
    ours, other = (rows["distinct-2"].challenger, rows["distinct-2"].reference)
    assert rows["distinct-2"].difference.value == pytest.approx(ours.value - other.value)
    assert rows["tokens"].outcome == "no difference shown"


def test_a_slice_has_its_prompts_its_mean_and_an_interval(result):
    num = len(result.test)
    lengths = np.asarray([len(row.prompt) for row in result.test])
    longest = lengths > np.quantile(lengths, 0.75, method="inverted_cdf")
    set_scores(result, np.where(longest, 0.0, 1.0), np.ones(num))
    pair = pair_of(result)
    by_length = [each for each in slices_of(result, pair) if each.kind == "prompt length"]
    assert sum(each.prompts for each in by_length) == num
    worst = by_length[-1]
    assert (worst.prompts, worst.better, worst.worse, worst.difference.value) == (longest.sum(), 0, longest.sum(), -1.0)
    assert worst.stands_out and not any(each.stands_out for each in by_length[:-1])
    # All of a slice equal is no proof of no difference: the interval is as wide as unseen prompts could make it.
    assert by_length[0].difference.low < -0.05 and by_length[0].difference.high > 0.05


def test_groups_and_topics_are_named_and_the_worst_comes_first(result):
    num = len(result.test)
    groups = ["big" if index % 2 else "other" if index % 4 else f"own {index}" for index in range(num)]
    topics = ["cron schedule minute" if index < num // 2 else "repository clone branch" for index in range(num)]
    for index, row in enumerate(result.test):
        prompt = f"{topics[index]} {index}"
        result.test[index] = dataclasses.replace(row, group=groups[index], prompt=prompt)
    theirs = np.ones(num)
    set_scores(result, [0.0 if "clone" in topic else 1.0 for topic in topics], theirs)
    slices = slices_of(result, pair_of(result))
    found = {each.name: each for each in slices if each.kind == "group"}
    assert {name: each.prompts for name, each in found.items()} == {"big": num // 2, "other": num // 4}
    named = [each for each in slices if each.kind == "topic"]
    assert sum(each.prompts for each in named) == num and named[0].difference.value == -1.0
    assert {"repository", "clone", "branch"} & set(named[0].name.split(", "))
    assert all(each.prompts >= MIN_PROMPTS for each in slices)


def test_undecided_prompts_count_as_prompts_but_not_as_decided(result):
    num = len(result.test)
    set_scores(result, [np.nan] * 10 + [0.0] * (num - 10), np.ones(num))
    slices = slices_of(result, pair_of(result))
    by_length = [each for each in slices if each.kind == "prompt length"]
    assert sum(each.prompts - each.decided for each in by_length) == 10
    assert not set(regressions_of(pair_of(result))) & set(range(10))


def test_regressions_are_the_largest_losses_and_equal_ones_are_ordered_by_chrf(result):
    num = len(result.test)
    ours = np.ones(num)
    ours[[5, 7, 9, 11]] = [0.5, 0.0, 0.5, 1.5]
    set_scores(result, ours, np.ones(num))
    pair = pair_of(result)
    ordered = sorted([5, 9], key=lambda row: (pair.chrf_gain_P[row], row))
    assert regressions_of(pair) == [7, *ordered]
    set_scores(result, np.zeros(num), np.ones(num))
    assert len(regressions_of(pair_of(result))) == 20


def test_equal_prompts_or_words_that_none_share_give_no_topics(result):
    for prompt in ("the same", "??? 12 34"):
        result.test[:] = [dataclasses.replace(row, prompt=prompt) for row in result.test]
        kinds = {each.kind for each in slices_of(result, pair_of(result))}
        assert "topic" not in kinds and "prompt length" in kinds
