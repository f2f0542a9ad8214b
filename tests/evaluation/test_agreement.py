from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import cohen_kappa_score

from understudy.evaluation.agreement import agreement, cohen_kappa, kendall_tau


def test_kappa_and_tau_are_those_of_the_libraries():
    generator = np.random.default_rng(0)
    a, b = generator.integers(-1, 2, (2, 400)).astype(float)
    b[:200] = a[:200]
    assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)
    one, other = generator.integers(0, 5, (2, 1, 30)).astype(float)
    assert kendall_tau(one, other) == pytest.approx(kendalltau(one[0], other[0]).statistic, abs=1e-12)


def test_intervals_cover_and_shrink_with_prompts():
    def line(num_prompts, seed):
        generator = np.random.default_rng(seed)
        a = generator.integers(0, 2, (num_prompts, 2)).astype(float)
        flip = generator.random((num_prompts, 2)) < 0.1
        b = np.where(flip, 1 - a, a)
        scores = {"x": [a[:, 0], a[:, 1]], "y": [b[:, 0], b[:, 1]]}
        return agreement(scores, np.arange(num_prompts), 0.95, (0, 1))[0]

    truth = line(100_000, 1)
    found = [line(150, seed) for seed in range(40)]
    for name in ("kappa", "tau"):
        inside = sum(each[f"{name}_low"] <= truth[name] <= each[f"{name}_high"] for each in found)
        assert 35 <= inside <= 40
    wide, narrow = (line(size, 3) for size in (50, 1600))
    assert (wide["kappa_high"] - wide["kappa_low"]) > 3 * (narrow["kappa_high"] - narrow["kappa_low"])


def test_agreement_in_full_in_reverse_and_where_nothing_can_be_said():
    up = np.asarray([1.0, 2.0, 3.0, 4.0, np.nan])
    scores = {"a": [up, 2 - up], "same": [10 * up, 10 * (2 - up)], "reverse": [-up, up - 2], "flat": [up * 0, up * 0]}
    lines = {line["judges"]: line for line in agreement(scores, np.arange(5), 0.95, (0, 1))}
    assert len(lines) == 6
    assert (lines["a and same"]["tau"], lines["a and same"]["kappa"], lines["a and same"]["prompts"]) == (1, 1, 4)
    assert lines["a and reverse"]["tau"] == -1 and lines["a and reverse"]["kappa"] == pytest.approx(0.2)
    assert lines["a and flat"]["tau"] is None and lines["a and flat"]["kappa"] == 0
    assert agreement({"a": [up[3:], up[3:]], "b": [up[3:], up[3:]]}, [0, 1], 0.95, None) == []


def test_prompts_of_one_cluster_have_an_agreement_without_an_interval_and_without_a_warning():
    up = np.asarray([1.0, 2.0, 3.0, 4.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (line,) = agreement({"a": [up, 2 - up], "same": [10 * up, 20 - 10 * up]}, ["one"] * 4, 0.95, (0, 1))
    assert (line["kappa"], line["tau"], line["prompts"]) == (1, 1, 4)
    assert [line[f"{name}_{end}"] for name in ("kappa", "tau") for end in ("low", "high")] == [None] * 4


def test_an_evaluation_with_two_judges_tells_how_far_they_agree(fakes):
    from understudy.evaluation.evaluate import evaluate
    from understudy.evaluation.report import render_report

    class Contrary(fakes.Judge):
        name = "contrary"

        def scores(self, *texts):
            return -super().scores(*texts)

        def report(self):
            return {"cost": 0.25}

        def note(self):
            return "Contrary cost 0.25."

    errors = {"sft": 0.08, "aligned": 0.04}
    result = evaluate(
        fakes.config(), 7, list(errors), fakes.Models(errors), fakes.demonstrations(60),
        fakes.demonstrations(40, start=1000), [fakes.Judge(), Contrary()],
    )  # fmt: skip
    (line,) = result.to_json()["judge_agreement"]
    assert (line["judges"], line["tau"], line["prompts"]) == ("no_oops and contrary", -1.0, 60)
    assert result.to_json()["judge_details"] == {"contrary": {"cost": 0.25}}
    page = render_report(result, {}, {}, "x", None, result.to_json())
    assert "Contrary cost 0.25." in page and "no_oops and contrary" in page
