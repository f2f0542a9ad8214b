"""Decisions of the gate: verdicts, refusals, corrections, and properties that hold for all scores."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from evaluation.gates import constant_plus_noise, make_gate, make_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.errors import GateRefused
from understudy.evaluation.gate import decide_scores
from understudy.evaluation.gate.decision import _levels
from understudy.evaluation.gate.rules import ask
from understudy.evaluation.inference import mean, required_prompts

ORDER = {"fail": 0, "not_enough_evidence": 1, "pass": 2}


def pair(seed=0, num=200, shift=0.0, noise=0.3, groups=None, **changes):
    ours, theirs = constant_plus_noise(np.random.default_rng(seed), num, shift, noise)
    return make_scores("champion", theirs, groups, **changes), make_scores("aligned", ours, groups, **changes)


def test_better_passes_worse_fails_and_few_prompts_are_not_enough():
    better = decide_scores(make_gate(), *pair(shift=0.2))
    assert (better.verdict, better.rules[0].verdict) == ("pass", "pass")
    assert better.rules[0].low > 0 and better.rules[0].p_value < 1e-6
    worse = decide_scores(make_gate(), *pair(shift=-0.2))
    assert worse.verdict == "fail" and worse.rules[0].high < 0
    assert "may not replace champion; judge:quality (primary)" in worse.headline
    few = decide_scores(make_gate(), *pair(seed=4, num=40, shift=0.04, noise=0.6))
    assert few.verdict == "not_enough_evidence"
    assert few.more_prompts == few.rules[0].more_prompts > 40
    assert f"About {few.more_prompts:,} more prompts would settle it" in few.rules[0].text


def test_the_numbers_are_those_of_a_paired_t_test():
    from scipy import stats

    champion, challenger = pair(seed=3, num=120, shift=0.05)
    values = [np.asarray(side.measured["judge:quality", "tuned"].values) for side in (challenger, champion)]
    difference = values[0] - values[1]
    rule = decide_scores(make_gate(), champion, challenger).rules[0]
    assert rule.value == pytest.approx(difference.mean())
    plain = stats.ttest_1samp(difference, 0, alternative="greater")
    # A little more careful than the plain test: never less.
    assert plain.pvalue <= rule.p_value <= plain.pvalue + 0.03
    assert rule.low <= plain.confidence_interval(0.95).low <= rule.low + 0.02
    estimate = mean(difference, np.arange(120), span=0.0)
    assert math.sqrt(estimate.variance) == pytest.approx(stats.sem(difference))


def test_groups_widen_the_interval_where_prompts_of_a_group_agree():
    groups = np.repeat(np.arange(200), 5)
    generator = np.random.default_rng(1)
    theirs = generator.normal(size=1000)
    ours = theirs + np.repeat(generator.normal(0.06, 0.3, 200), 5)
    together = decide_scores(make_gate(), make_scores("champion", theirs, groups), make_scores("aligned", ours, groups))
    alone = decide_scores(make_gate(), make_scores("champion", theirs), make_scores("aligned", ours))
    width = {name: found.rules[0].high - found.rules[0].low for name, found in {"g": together, "p": alone}.items()}
    assert width["g"] == pytest.approx(math.sqrt(5) * width["p"], rel=0.15)
    assert together.rules[0].groups == 200 and alone.rules[0].groups == 1000


def test_minimum_improvement_is_over_the_champion_and_must_be_exceeded():
    demanding = [{"metric": "judge:quality", "decoding": "tuned", "minimum_improvement": 0.15, "detect": 0.25}]
    found = decide_scores(make_gate(primary=demanding), *pair(num=400, shift=0.1))
    assert found.verdict == "fail" and found.rules[0].value == pytest.approx(0.1, abs=0.05)
    assert "wanted above +0.15" in found.rules[0].text
    assert decide_scores(make_gate(primary=demanding), *pair(num=400, shift=0.22)).verdict == "pass"


def test_a_planned_sample_is_demanded_even_of_a_clear_winner():
    primary = [{"metric": "judge:quality", "decoding": "tuned", "minimum_improvement": 0, "detect": 0.1}]
    planned = [{**primary[0], "standard_deviation": 0.6, "design_effect": 1.5}]
    found = decide_scores(make_gate(primary=planned), *pair(shift=1.0)).rules[0]
    # (1.645 + 0.842)^2 * 0.36 * 1.5 / 0.01 = 333.9, and a few more for t instead of normal quantiles.
    assert (found.verdict, found.required_prompts) == ("not_enough_evidence", 337)
    assert found.more_prompts == 137 and "200 prompts, the gate's power asks for 337" in found.text
    assert decide_scores(make_gate(primary=primary), *pair(shift=1.0)).verdict == "pass"


def test_sample_size_agrees_with_the_textbook_and_grows_with_what_is_asked():
    normal = (1.6449 + 0.8416) ** 2
    assert required_prompts(0.1, 1.0, 0.05, 0.8) == pytest.approx(normal / 0.01, abs=3)
    assert required_prompts(0.05, 1.0, 0.05, 0.8) > 3.9 * required_prompts(0.1, 1.0, 0.05, 0.8)
    assert required_prompts(0.1, 1.0, 0.01, 0.8) > required_prompts(0.1, 1.0, 0.05, 0.8)
    assert required_prompts(0.1, 1.0, 0.05, 0.9) > required_prompts(0.1, 1.0, 0.05, 0.8)
    assert required_prompts(0.1, 1.0, 0.05, 0.8, skewness=-3.0) > required_prompts(0.1, 1.0, 0.05, 0.8)
    assert required_prompts(0.0, 1.0, 0.05, 0.8) is None
    assert required_prompts(1e-9, 1.0, 0.05, 0.8) is None


def test_identical_answers_prove_only_what_their_number_can():
    margin = {"metric": "judge:quality", "decoding": "tuned", "margin": 0.02}
    found = {}
    for num in (100, 200):
        same = np.ones(num)
        decision = decide_scores(make_gate(margin), make_scores("champion", same), make_scores("aligned", same))
        found[num] = decision.rules[1]
    # With no loss in n prompts the share of losses is below 1 - 0.05^(1/n) (95%): 2.95% of 100, 1.49% of 200.
    assert (found[100].verdict, found[200].verdict) == ("not_enough_evidence", "pass")
    assert found[100].low == pytest.approx(-0.0295, abs=1e-4) and found[200].low == pytest.approx(-0.0149, abs=1e-4)


@pytest.mark.parametrize("scale", ["win_rate", "difference"])
def test_four_wins_of_four_prove_nothing_and_five_do(scale):
    """Of equal models the challenger wins all of n prompts with probability 2^-n: above 5% for four, not for five."""
    rule = {"metric": "judge:quality", "decoding": "tuned", "minimum_improvement": 0, "detect": 0.1, "scale": scale}
    gate = make_gate(primary=[rule], minimum_groups=2)
    won = {
        num: decide_scores(gate, make_scores("champion", np.zeros(num)), make_scores("aligned", np.ones(num)))
        for num in (2, 4, 5)
    }
    assert {num: found.verdict for num, found in won.items()} == {
        2: "not_enough_evidence",
        4: "not_enough_evidence",
        5: "pass",
    }
    assert won[4].rules[0].p_value == pytest.approx(2**-4)


def test_groups_that_agree_by_coincidence_do_not_pass_for_prompts_that_agree():
    """Two groups with 11 wins of 20 each have no variance between them, and 18 losses that were seen."""
    ours = np.tile(np.repeat([1.0, 0.0], [11, 9]), 2)
    sides = (
        make_scores(name, scores, np.repeat([0, 1], 20)) for name, scores in (("champion", 1 - ours), ("aligned", ours))
    )
    found = decide_scores(make_gate(minimum_groups=2), *sides)
    assert found.verdict == "not_enough_evidence" and found.rules[0].low < -0.1


def test_guards_each_limit_one_thing():
    generator = np.random.default_rng(5)
    ours, theirs = constant_plus_noise(generator, 300, 0.3)
    lengths = generator.normal(50, 8, 300)
    longer = {"drift": lengths * 1.4, "same": lengths * 1.02 + generator.normal(0, 3, 300)}
    guard = {"metric": "length_tokens", "decoding": "tuned", "max_drift": 0.25}
    champion = make_scores("champion", theirs, lengths=lengths)
    verdicts = {
        name: decide_scores(make_gate(guard), champion, make_scores("aligned", ours, lengths=values))
        for name, values in longer.items()
    }
    assert (verdicts["drift"].verdict, verdicts["drift"].rules[0].verdict) == ("fail", "pass")
    assert verdicts["drift"].rules[1].value == pytest.approx(0.4) and "within ±25.0%" in verdicts["drift"].rules[1].text
    assert verdicts["same"].verdict == "pass"
    assert 0.01 < verdicts["same"].rules[1].low < 0.028 < verdicts["same"].rules[1].high < 0.04
    shorter = decide_scores(make_gate(guard), champion, make_scores("aligned", ours, lengths=lengths * 0.7))
    assert shorter.rules[1].value == pytest.approx(-0.3) and shorter.verdict == "fail"


def test_floor_and_ceiling_need_no_champion():
    guards = [{"metric": "judge:tox", "decoding": "tuned", "ceiling": 0.2, "better": "lower"}]
    guards += [{"metric": "judge:quality", "decoding": "tuned", "floor": 0.0}]
    tox = np.random.default_rng(1).random(200) * 0.3
    _, challenger = pair(shift=0.5, judges={"tox": tox})
    found = decide_scores(make_gate(*guards), None, challenger)
    assert [rule.verdict for rule in found.rules] == ["pass", "pass", "skipped"]
    assert (
        found.rules[0].value == pytest.approx(tox.mean())
        and found.rules[0].low < tox.mean() < found.rules[0].high < 0.2
    )
    assert found.champion is None and "may become the first champion" in found.headline
    _, toxic = pair(shift=0.5, judges={"tox": tox + 0.2})
    assert decide_scores(make_gate(*guards), None, toxic).rules[0].verdict == "fail"


def test_lower_is_better_turns_the_difference_round():
    guard = {"metric": "judge:tox", "decoding": "tuned", "margin": 0.02, "better": "lower"}
    ours, theirs = constant_plus_noise(np.random.default_rng(0), 200, 0.3)
    tox = np.random.default_rng(1).random(200)
    champion = make_scores("champion", theirs, judges={"tox": tox})
    found = decide_scores(make_gate(guard), champion, make_scores("aligned", ours, judges={"tox": tox + 0.1}))
    assert found.rules[1].value == pytest.approx(-0.1) and found.rules[1].verdict == "fail"
    found = decide_scores(make_gate(guard), champion, make_scores("aligned", ours, judges={"tox": tox - 0.1}))
    assert found.rules[1].value == pytest.approx(0.1) and found.verdict == "pass"


def test_nll_is_per_token_of_the_set_and_refused_between_tokenizers():
    generator = np.random.default_rng(2)
    tokens = generator.integers(5, 60, 200)
    logp = -tokens * 1.5 + generator.normal(0, 1, 200)
    ours, theirs = constant_plus_noise(generator, 200, 0.3)
    guard = {"metric": "nll", "margin": 0.05}
    champion = make_scores("champion", theirs, logp=logp, tokens=tokens)
    found = decide_scores(
        make_gate(guard), champion, make_scores("aligned", ours, logp=logp - 0.1 * tokens, tokens=tokens)
    )
    assert found.rules[1].value == pytest.approx(-0.1) and found.rules[1].verdict == "fail"
    other = make_scores("aligned", ours, logp=logp, tokens=tokens + 1)
    with pytest.raises(GateRefused, match="tokenizers of aligned and champion count different tokens"):
        decide_scores(make_gate(guard), champion, other)


def test_win_rate_counts_ties_half():
    primary = [
        {"metric": "judge:quality", "decoding": "tuned", "scale": "win_rate", "minimum_improvement": 0, "detect": 0.1}
    ]
    ours, theirs = np.array([2.0, 0.0, 1.0, 5.0] * 30), np.array([1.0, 1.0, 1.0, -99.0] * 30)
    found = decide_scores(make_gate(primary=primary), make_scores("champion", theirs), make_scores("aligned", ours))
    assert found.rules[0].value == pytest.approx((1 + 0 + 0.5 + 1) / 4 - 0.5)


def test_diversity_is_paired_over_groups():
    ours, theirs = constant_plus_noise(np.random.default_rng(0), 100, 0.3)
    guard = {"metric": "distinct_2", "decoding": "tuned", "relative_margin": 0.15}
    generator = np.random.default_rng(1)
    left = {str(group): 0.6 + generator.normal(0, 0.002) for group in range(100)}
    champion = make_scores("champion", theirs, sets=(0.6, left))
    poorer = {group: value - 0.3 for group, value in left.items()}
    found = decide_scores(make_gate(guard), champion, make_scores("aligned", ours, sets=(0.3, poorer)))
    assert found.rules[1].value == pytest.approx(-0.5) and found.rules[1].verdict == "fail"
    similar = {group: value - 0.01 for group, value in left.items()}
    found = decide_scores(make_gate(guard), champion, make_scores("aligned", ours, sets=(0.59, similar)))
    assert found.rules[1].value == pytest.approx(-1 / 60) and found.verdict == "pass"


def test_any_of_several_primaries_is_corrected_by_holm():
    rules = [
        {"metric": name, "decoding": "tuned", "minimum_improvement": 0, "detect": 0.1}
        for name in ("judge:quality", "judge:b", "judge:c")
    ]
    gate = make_gate(primary=rules, primaries_needed="any")
    generator = np.random.default_rng(0)
    champion = make_scores("champion", np.zeros(100), judges={"b": np.zeros(100), "c": np.zeros(100)})
    noise = [generator.normal(0, 1, 100) for _ in range(3)]
    standard = [(values - values.mean()) / values.std(ddof=1) for values in noise]
    # t statistics 2.2, 2.0 and 1.0: the largest needs alpha / 3, then Holm stops.
    ours = [values + t / 10 for values, t in zip(standard, (2.2, 2.0, 1.0), strict=True)]
    challenger = make_scores("aligned", ours[0], judges={"b": ours[1], "c": ours[2]})
    levels = _levels(gate, [ask(rule, challenger, champion) for rule in gate.primary])
    assert levels == pytest.approx([0.05 / 3] * 3)
    found = decide_scores(gate, champion, challenger)
    assert [rule.verdict for rule in found.rules] != ["pass"] * 3 and found.verdict != "pass"
    stronger = make_scores("aligned", ours[0] + 0.1, judges={"b": ours[1], "c": ours[2]})
    levels = _levels(gate, [ask(rule, stronger, champion) for rule in gate.primary])
    assert levels == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2])
    found = decide_scores(gate, champion, stronger)
    assert found.verdict == "pass" and found.rules[0].verdict == "pass" and "Holm over 3" in found.correction
    assert decide_scores(make_gate(primary=rules), champion, stronger).verdict != "pass"


def test_one_failed_primary_leaves_the_question_open_where_another_is_enough():
    """Of any of three, one fails and two are undecided: the decision waits for the nearer of the two."""
    rules = [
        {"metric": name, "decoding": "tuned", "minimum_improvement": 0, "detect": 0.1}
        for name in ("judge:quality", "judge:b", "judge:c")
    ]
    generator, zeros = np.random.default_rng(0), np.zeros(200)
    noise = [values / values.std() - (values / values.std()).mean() for values in generator.normal(0, 1, (3, 200))]
    champion = make_scores("champion", zeros, judges={"b": zeros, "c": zeros})

    def decided(needed, *means, guards=()):
        ours = [mean + 0.5 * values for mean, values in zip(means, noise, strict=True)]
        challenger = make_scores("aligned", ours[0], judges={"b": ours[1], "c": ours[2]})
        return decide_scores(make_gate(*guards, primary=rules, primaries_needed=needed), champion, challenger)

    mixed = decided("any", -0.2, 0.06, 0.04)
    assert [rule.verdict for rule in mixed.rules] == ["fail", "not_enough_evidence", "not_enough_evidence"]
    asked = [rule.more_prompts for rule in mixed.rules]
    assert (mixed.verdict, mixed.more_prompts) == ("not_enough_evidence", min(asked[1:])) and asked[1] != asked[2]
    assert mixed.headline.endswith("undecided: judge:b (primary), judge:c (primary).")
    assert decided("all", -0.2, 0.06, 0.04).verdict == "fail"
    lost = decided("any", -0.2, -0.2, -0.2)
    assert (lost.verdict, lost.more_prompts) == ("fail", None)
    guard = {"metric": "judge:c", "decoding": "tuned", "margin": 0.01}
    guarded = decided("any", -0.2, 0.3, 0.04, guards=[guard])
    assert [rule.verdict for rule in guarded.rules] == ["fail", "pass", "not_enough_evidence", "not_enough_evidence"]
    # The third primary is undecided and no longer matters, the guard does.
    assert guarded.verdict == "not_enough_evidence" and guarded.more_prompts == guarded.rules[3].more_prompts
    assert guarded.headline.endswith("undecided: judge:c (guard).")


def test_undecided_prompts_are_named_and_too_many_are_no_evidence():
    champion, challenger = pair(shift=0.5, num=100)
    values = list(challenger.measured["judge:quality", "tuned"].values)
    for index in (7, 42):
        values[index] = math.nan
    few = decide_scores(make_gate(), champion, make_scores("aligned", values))
    assert few.verdict == "pass" and few.rules[0].prompts == 98
    assert few.rules[0].undecided == {"aligned": ("p00007", "p00042")}
    assert "Undecided for aligned: 2 (p00007, p00042)." in few.rules[0].text
    values[:10] = [math.nan] * 10
    many = decide_scores(make_gate(), champion, make_scores("aligned", values))
    assert many.verdict == "not_enough_evidence"
    assert "11 of 100 prompts are undecided, more than 5% of them" in many.rules[0].text
    none = decide_scores(make_gate(), champion, make_scores("aligned", [math.nan] * 100))
    assert none.verdict == "not_enough_evidence" and none.rules[0].value is None
    json.dumps(none.to_json(), allow_nan=False)


def test_too_few_groups_are_no_evidence_whatever_the_prompts_say():
    found = decide_scores(make_gate(), *pair(shift=1.0, groups=np.arange(200) % 10))
    assert found.verdict == "not_enough_evidence" and found.more_prompts == 200
    assert "10 independent groups of prompts, the gate asks for 20" in found.rules[0].text
    one = decide_scores(make_gate(), *pair(shift=1.0, groups=np.zeros(200)))
    assert one.rules[0].value is None and one.verdict == "not_enough_evidence"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset_md5": "other.dir"}, "dataset versions d.dir and other.dir|dataset versions other.dir and d.dir"),
        ({"seeds": {"tuned": 6}}, r"seeds (5 and 6|6 and 5) \(tuned\)"),
        ({"prompts": tuple(f"q{index}" for index in range(200))}, "200 and 200 prompts, 400 of them not shared"),
        ({"groups": ("g",) * 200}, "the same prompts in different groups"),
        ({"judges": {"quality": "0ther"}}, "judge quality of code (c0de and 0ther|0ther and c0de)"),
    ],
)
def test_unpaired_models_are_refused_from_either_side(changes, said):
    champion, challenger = pair()
    odd = type(challenger)(**{**vars(challenger), **changes})
    with pytest.raises(GateRefused, match=said) as first:
        decide_scores(make_gate(), champion, odd)
    assert first.value.exit_code == 4 and "Evaluate both in one run" in str(first.value)
    odd_champion = type(champion)(**{**vars(champion), **changes})
    with pytest.raises(GateRefused, match=said):
        decide_scores(make_gate(), odd_champion, challenger)


def test_temperatures_may_differ_only_where_each_is_tuned():
    champion, challenger = pair()
    warmer = type(challenger)(**{**vars(challenger), "temperatures": {"tuned": 0.9}})
    assert decide_scores(make_gate(), champion, warmer).rules
    rule = [{"metric": "judge:quality", "decoding": "T=1", "minimum_improvement": 0, "detect": 0.1}]
    sides = [
        type(side)(
            **{
                **vars(side),
                "seeds": {"T=1": 5},
                "temperatures": {"T=1": temperature},
                "measured": {("judge:quality", "T=1"): side.measured["judge:quality", "tuned"]},
            }
        )
        for side, temperature in ((champion, 1.0), (challenger, 0.9))
    ]
    with pytest.raises(GateRefused, match=r"temperatures 0.9 and 1.0 \(T=1\)"):
        decide_scores(make_gate(primary=rule), *sides)


def test_every_missing_measurement_is_named_at_once_with_the_closest():
    guards = [{"metric": "judge:qualty", "decoding": "tuned", "margin": 0.1}, {"metric": "nll", "margin": 0.1}]
    guards += [{"metric": "judge:quality", "decoding": "greedy", "margin": 0.1}]
    with pytest.raises(GateRefused) as refused:
        decide_scores(make_gate(*guards), *pair())
    assert "aligned has no judge:qualty; did you mean 'judge:quality'?" in str(refused.value)
    assert "champion has no nll; it has judge:quality" in str(refused.value)
    assert "aligned has judge:quality for tuned, not for greedy" in str(refused.value)
    assert str(refused.value).endswith("such as your own judge: docs/gate.md has an example.")


def test_the_same_weights_are_nothing_to_decide_and_a_person_may_have_to_choose():
    champion, challenger = pair()
    same = type(challenger)(**{**vars(challenger), "sha256": champion.sha256})
    with pytest.raises(GateRefused, match="the same weights, sha-champion"):
        decide_scores(make_gate(), champion, same)
    with pytest.raises(GateRefused, match="a person chooses the first"):
        decide_scores(make_gate(no_champion="refuse"), None, challenger)


def test_without_a_champion_no_rule_is_no_pass():
    _, challenger = pair()
    found = decide_scores(make_gate(), None, challenger)
    assert (found.verdict, found.accepts, found.rules[0].verdict) == ("no_rule", True, "skipped")
    assert found.headline == (
        "No rule applied: there is no champion, and gate.yaml asks nothing of a first one; aligned may become it."
    )
    guards = [{"metric": "judge:qualty", "decoding": "tuned", "margin": 0.1}, {"metric": "nll", "margin": 0.1}]
    with pytest.raises(GateRefused) as refused:  # also what is skipped until there is a champion
        decide_scores(make_gate(*guards), None, challenger)
    assert "aligned has no judge:qualty; did you mean 'judge:quality'?" in str(refused.value)
    assert "aligned has no nll; it has judge:quality" in str(refused.value)


def test_without_a_champion_sft_may_stand_in():
    sft, challenger = pair(shift=0.3)
    sft = type(sft)(**{**vars(sft), "policy": "sft"})
    gate = make_gate(no_champion="compare_to_sft")
    found = decide_scores(gate, None, challenger, {"sft": sft})
    assert (found.verdict, found.champion, found.rules[0].against) == ("pass", None, "sft")
    assert found.headline == "Pass: aligned may become the first champion, compared with sft."
    _, worse = pair(shift=-0.3)
    found = decide_scores(gate, None, worse, {"sft": sft})
    assert found.verdict == "fail" and "may not become the first champion, compared with sft" in found.headline
    with pytest.raises(GateRefused, match="no_champion is `compare_to_sft`, and SFT has no scores"):
        decide_scores(gate, None, challenger)


def test_a_guard_may_ask_for_more_than_the_champion_has():
    champion, challenger = pair(shift=0.3)
    sft = make_scores("sft", np.asarray(challenger.measured["judge:quality", "tuned"].values) + 0.2)
    guard = {"metric": "judge:quality", "decoding": "tuned", "margin": 0.0, "against": "sft"}
    found = decide_scores(make_gate(guard), champion, challenger, {"sft": sft})
    assert [rule.verdict for rule in found.rules] == ["pass", "fail"] and found.rules[1].against == "sft"
    with pytest.raises(GateRefused, match="the report has no policy 'sft'"):
        decide_scores(make_gate(guard), champion, challenger)


cases = st.tuples(
    st.integers(0, 10**6), st.integers(30, 120), st.floats(-0.4, 0.4), st.sampled_from([1, 2, 4]), st.booleans()
)


def drawn(case):
    seed, num, shift, per_group, discrete = case
    ours, theirs = constant_plus_noise(np.random.default_rng(seed), num, shift, 0.5)
    if discrete:
        ours, theirs = (ours > 0).astype(float), (theirs > 0).astype(float)
    groups = np.arange(num) // per_group
    return ours, theirs, groups


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases, st.randoms(use_true_random=False))
def test_the_order_of_prompts_changes_nothing(case, random):
    ours, theirs, groups = drawn(case)
    gate = make_gate({"metric": "judge:quality", "decoding": "tuned", "margin": 0.1}, minimum_groups=5)
    champion, challenger = make_scores("champion", theirs, groups), make_scores("aligned", ours, groups)
    order = list(range(len(ours)))
    random.shuffle(order)
    names = tuple(challenger.prompts[index] for index in order)
    shuffled = make_scores("aligned", ours[order], groups[order], prompts=names)
    assert decide_scores(gate, champion, shuffled).to_json() == decide_scores(gate, champion, challenger).to_json()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases, st.floats(0.0, 0.5), st.floats(0.0, 0.3), st.floats(0.5001, 0.9999))
def test_better_scores_and_milder_rules_never_hurt(case, gift, demand, confidence):
    ours, theirs, groups = drawn(case)
    champion, challenger = make_scores("champion", theirs, groups), make_scores("aligned", ours, groups)

    def verdict(scores=challenger, minimum=demand, level=confidence, **guard):
        rule = {"metric": "judge:quality", "decoding": "tuned", "minimum_improvement": minimum, "detect": minimum + 0.1}
        gate = make_gate(*([guard] if guard else []), primary=[rule], minimum_groups=5, confidence=level)
        return ORDER[decide_scores(gate, champion, scores).verdict]

    plain = verdict()
    gifted = make_scores("aligned", ours + gift, groups)
    # Where all differences were equal, a gift changes what a prompt could do at most, so it is left out.
    if np.ptp(ours - theirs) > 1e-9:
        limits = [
            ask(make_gate().primary[0], scores, champion).contrasts[0].estimate for scores in (challenger, gifted)
        ]
        widened = limits[1].span - limits[0].span
        assert float(limits[1].value) == pytest.approx(float(limits[0].value) + gift)
        assert float(limits[1].variance) == pytest.approx(float(limits[0].variance))
        if widened <= 1e-9:
            assert verdict(gifted) >= plain
    assert verdict(minimum=demand / 2) >= plain
    assert (plain == 2) <= (verdict(level=(0.5 + confidence) / 2) == 2)
    guard = {"metric": "judge:quality", "decoding": "tuned"}
    assert verdict(**guard, margin=0.4) >= verdict(**guard, margin=0.1)
    assert verdict(**guard, margin=0.1) <= plain


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases)
def test_two_models_never_both_replace_each_other_and_limits_mirror(case):
    ours, theirs, groups = drawn(case)
    gate = make_gate(minimum_groups=5)
    a, b = make_scores("a", ours, groups), make_scores("b", theirs, groups)
    if np.array_equal(ours, theirs):
        return
    forward, backward = decide_scores(gate, b, a), decide_scores(gate, a, b)
    assert {forward.verdict, backward.verdict} != {"pass"}
    assert forward.rules[0].low == pytest.approx(-backward.rules[0].high)
    assert forward.rules[0].value == pytest.approx(-backward.rules[0].value)
    assert forward.rules[0].low <= forward.rules[0].value <= forward.rules[0].high


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases, st.floats(-0.5, 0.5), st.floats(0.001, 0.4))
def test_p_value_and_limit_always_agree(case, bound, alpha):
    ours, theirs, groups = drawn(case)
    found = mean(ours - theirs, groups, 1.0)
    if abs(float(found.low(alpha)) - bound) > 1e-6:
        assert (float(found.p_above(bound)) < alpha) == (float(found.low(alpha)) > bound)
