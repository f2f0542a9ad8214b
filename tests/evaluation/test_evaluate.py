from __future__ import annotations

import json
import re

import numpy as np
import pytest

from understudy.evaluation.evaluate import evaluate
from understudy.evaluation.judges import CallableJudge
from understudy.evaluation.report import render_report
from understudy.evaluation.sides import pair_of, side_by_side
from understudy.evaluation.slices import slices_of


def test_same_seed_same_numbers_other_seed_others(fakes):
    first, second = fakes.result(), fakes.result()
    assert json.dumps(first.to_json(), allow_nan=False) == json.dumps(second.to_json(), allow_nan=False)
    models, rows = fakes.Models({"sft": 0.1, "aligned": 0.1}), fakes.demonstrations(40)
    other = evaluate(fakes.config(), 8, ["sft", "aligned"], models, rows, rows, [fakes.Judge()])
    assert other.to_json()["metrics"] != first.to_json()["metrics"]


def test_better_policy_wins_and_worse_policy_loses(fakes):
    better = fakes.result({"sft": 0.15, "aligned": 0.01, "sft_longer": 0.15})
    assert better.verdict.outcome == "aligned"
    assert fakes.result({"sft": 0.01, "aligned": 0.15}).verdict.outcome == "sft"
    assert fakes.result({"sft": 0.05, "aligned": 0.05}).verdict.outcome == "no_difference"


def test_temperature_is_tuned_on_validation_only_and_for_each_policy(fakes):
    models = fakes.Models({"sft": 0.1, "aligned": 0.1})
    asked: list[tuple[str, str]] = []
    sample = models.sample

    def spying(policy, demonstrations, decoding, seed):
        asked.append((decoding.name, demonstrations[0].id[:1]))
        return sample(policy, demonstrations, decoding, seed)

    models.sample = spying
    test, validation = fakes.demonstrations(30), fakes.demonstrations(30, start=5000)
    result = evaluate(fakes.config(), 7, ["sft", "aligned"], models, test, validation, [fakes.Judge()])
    assert {prefix for name, prefix in asked if name == "tuning"} == {"5"}
    assert "5" not in {prefix for name, prefix in asked if name != "tuning"}
    assert result.temperatures == {"sft": 0.3, "aligned": 0.3}  # fewer errors at lower temperatures
    assert result.generated["sft"]["tuned"].decoding.temperature == 0.3
    assert set(result.tuning["sft"]) == {0.3, 0.7}


def test_all_policies_meet_the_same_randomness(fakes):
    models = fakes.Models({"sft": 0.1, "aligned": 0.1})
    rows = fakes.demonstrations(20)
    evaluate(fakes.config(), 7, ["sft", "aligned"], models, rows, rows, [fakes.Judge()])
    seeds = {name: {seed for _, decoding, seed in models.calls if decoding == name} for name in ("greedy", "T=1")}
    assert [len(found) for found in seeds.values()] == [1, 1]


def test_without_a_judge_the_tuned_temperature_is_one_and_nothing_is_claimed(fakes):
    config = fakes.config(judges=(), tuning_judge=None)
    models, rows = fakes.Models({"sft": 0.1, "aligned": 0.1}), fakes.demonstrations(30)
    result = evaluate(config, 7, ["sft", "aligned"], models, rows, rows, [])
    assert result.temperatures == {"sft": 1.0, "aligned": 1.0}
    assert result.generated["sft"]["tuned"] is result.generated["sft"]["T=1"]
    assert result.verdict.outcome == "not_measured"
    assert any("tuned temperature is 1" in note for note in result.notes)


def test_metrics_that_the_report_promises(fakes):
    result = fakes.result()
    tuned = {"judge_no_oops", "length_characters", "length_tokens", "distinct_1", "distinct_2", "distinct_3"}
    tuned |= {"self_bleu", "eos_rate", "chrf_to_expert", "classifier_auc"}
    assert set(result.metrics["aligned"]["tuned"]) == tuned
    assert set(result.metrics["aligned"]["T=1"]) == tuned | {"kl_to_sft"}
    assert set(result.metrics["aligned"]["expert_text"]) == {"nll", "perplexity", "nll_minus_sft"}
    assert set(result.metrics["base"]) == {"expert_text", "T=1"}
    assert result.metrics["base"]["T=1"]["length_tokens"].n == 10
    assert result.metrics["sft"]["expert_text"]["nll"].value == pytest.approx(1.04)
    assert result.metrics["base"]["expert_text"]["nll_minus_sft"].value == pytest.approx(0.86)
    for decodings in result.metrics.values():
        for values in decodings.values():
            assert all(found.low <= found.value <= found.high for found in values.values() if found.measured)
    unmeasured = {
        policy
        for policy, decodings in result.metrics.items()
        for values in decodings.values()
        if not all(found.measured for found in values.values())
    }
    assert unmeasured == {"base"}  # a glance at 10 prompts, which are of 5 groups


def test_kl_is_the_sum_over_tokens_of_the_log_ratio(fakes):
    result = fakes.result({"sft": 0.3, "aligned": 0.1})
    lengths = [sample.num_tokens for sample in result.generated["aligned"]["T=1"].samples]
    assert result.metrics["aligned"]["T=1"]["kl_to_sft"].value == pytest.approx(0.2 * np.mean(lengths))


def test_undecided_answers_are_excluded_and_counted(fakes):
    rows = fakes.demonstrations(30)
    judge = CallableJudge("even", lambda prompt, response, reference: None if "1" in prompt else 1.0)
    models = fakes.Models({"sft": 0.1, "aligned": 0.1})
    config = fakes.config(judges=({"name": "even", "kind": "callable", "target": "x.py:f"},), tuning_judge=None)
    result = evaluate(config, 7, ["sft", "aligned"], models, rows, rows, [judge])
    undecided = sum("1" in row.prompt for row in rows)
    assert result.comparisons[0].undecided == undecided
    assert result.metrics["sft"]["T=1"]["judge_even"].n == 30 - undecided
    assert result.to_json()["responses"]["sft"]["T=1"]["scores"]["even"].count(None) == undecided


def test_progress_ends_at_its_own_total(fakes):
    seen: list[tuple[int, int]] = []
    rows = fakes.demonstrations(30)
    models = fakes.Models({"base": 0.9, "sft": 0.1, "aligned": 0.1})
    evaluate(
        fakes.config(),
        7,
        ["base", "sft", "aligned"],
        models,
        rows,
        rows,
        [fakes.Judge()],
        {"base": 5},
        lambda done, total: seen.append((done, total)),
    )
    # two policies: two temperatures on 30 validation prompts, three decodings of 30 test prompts; the base: 5
    assert seen[-1] == (2 * (2 * 30 + 3 * 30) + 5,) * 2
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_one_prompt_is_enough_to_finish(fakes):
    result = fakes.result({"sft": 0.1, "aligned": 0.1}, num_test=1)
    assert result.verdict.outcome == "not_measured"
    assert "the prompts are of 1 group, and an interval at 95% takes 6" in result.verdict.headline
    assert json.dumps(result.to_json(), allow_nan=False)


def test_one_prompt_and_few_groups_are_called_neither_better_nor_worse(fakes):
    """The page says how few groups there are where it would else have an interval."""
    one, few = (fakes.result({"sft": 0.3, "aligned": 0.01}, num_test=num) for num in (1, 10))
    for result, said in ((one, "1 group"), (few, "5 groups")):
        sides = side_by_side(result, pair_of(result))
        assert {side.outcome for side in sides} == {"not measured"}
        assert not any(each.stands_out for each in slices_of(result, pair_of(result)))
        page = render_report(result, {}, {}, "x")
        assert f"not measured: {said}</small>" in page and not re.search(r"\bnan\b", page)
        assert any(note.endswith("That is too few for intervals at 95%, which take 6.") for note in result.notes)
    assert fakes.result({"sft": 0.3, "aligned": 0.01}).verdict.outcome == "aligned"
