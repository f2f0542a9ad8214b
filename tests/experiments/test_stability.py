"""Stability: the tasks' rules, the settings that a run claims, verdicts, and the page as the raw numbers say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import blocks
from experiments.stability import lists, sections, similarity
from experiments.stability.__main__ import RESULTS, main
from experiments.stability.report import load, pages, tables, verdict
from experiments.stability.study import (
    DEFAULT_ROUNDS,
    ROOT,
    SOURCE,
    default_case,
    long_case,
    recipe_case,
    rounds_case,
    sections_case,
)
from understudy.config import load_params
from understudy.models.loading import create_policy


def _params(overrides: Any) -> Any:
    return load_params(ROOT / "params.yaml", tuple(overrides))


def test_the_expert_of_either_task_is_perfect_and_prompts_differ() -> None:
    for judge, rows in (
        (sections.judge, sections.rows(132, 4, 3, seed=0)),
        (lists.judge, lists.rows(200, range(3, 9), seed=0)),
    ):
        assert len({row["prompt"] for row in rows}) == len(rows)
        assert all(judge(row["prompt"], row["response"], "") == 1 for row in rows)
    words = [line.split()[2] for row in sections.rows(132, 4, 3, seed=0) for line in row["response"].split("\n")]
    first = np.mean([word == row["group"].split()[0] for row, word in zip(_each(12), words, strict=True)])
    assert 0.65 < first < 0.75 and sections.rows(5, 4, 3, seed=0) != sections.rows(5, 4, 3, seed=1)


def _each(num: int) -> list[dict[str, Any]]:
    return [row for row in sections.rows(132, 4, 3, seed=0) for _ in range(num)]


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("a 1 red\na 2 blue\nb 1 blue\nb 2 red", 1.0),
        ("a 1 red\na 2 green\nb 1 blue\nb 2 red", 0.75),  # not one of the two words
        ("a 1 red\nb 1 blue\nb 2 red", 0.25),  # a slip moves all that follows
        ("a 1 red\na 2 blue", 0.5),
        ("a 1 red\na 2 blue\nb 1 blue\nb 2 red\nc 1 red", 0.8),
        ("", 0.0),
    ],
)
def test_the_rule_of_sections(response: str, score: float) -> None:
    assert sections.judge("write 2 by 2 red blue", response, "") == score


def test_the_default_run_is_params_yaml_but_for_rounds_divergence_and_judges() -> None:
    plain, params = _params(()), _params(default_case("js", 0).overrides)
    assert (params.align.divergence, params.align.num_rounds) == ("js", 5 * DEFAULT_ROUNDS)
    assert params.model_copy(update={"align": plain.align, "evaluation": plain.evaluation}) == plain
    align = params.align.model_copy(update={"divergence": plain.align.divergence, "num_rounds": DEFAULT_ROUNDS})
    assert align == plain.align
    assert [judge.name for judge in params.evaluation.judges] == ["validity", "minilm", "chrf"]
    assert params.evaluation.judges[0] == plain.evaluation.judges[0]
    assert params.evaluation.model_copy(update={"judges": plain.evaluation.judges}) == plain.evaluation


def test_the_recipes_run_is_the_default_by_the_presets_alignment() -> None:
    default, params = _params(default_case("reverse_kl", 0).overrides), _params(recipe_case(0).overrides)
    preset = load_params(ROOT / "params.yaml", (), [ROOT / "pipelines/runs/cpu-many.yaml"])
    assert params.align == preset.align.model_copy(update={"num_rounds": 5 * DEFAULT_ROUNDS})
    assert params.model_copy(update={"align": default.align}) == default


def test_an_expert_of_sections_takes_the_1024_tokens_that_a_policy_may(tmp_path: Path) -> None:
    case = sections_case(0)
    case.demonstrations(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / SOURCE).read_text().splitlines()]
    params = _params(case.overrides)
    assert params.align.rollout.max_response_tokens == params.evaluation.max_response_tokens == 1024
    assert params.align.health == _params(()).align.health
    policy = create_policy(params.model, (text for row in rows for text in (row["prompt"], row["response"])), 0)
    lengths = [len(policy.encode_response(row["response"])) for row in rows]
    assert len(rows) == 132 and 1000 <= min(lengths) <= max(lengths) <= 1024


def test_recorded_settings_are_those_of_the_cases() -> None:
    cases = [rounds_case(name, seed) for name in ("reverse_kl", "js") for seed in range(3)]
    cases += [
        *(default_case(name, seed) for name in ("reverse_kl", "js") for seed in range(3)),
        *(recipe_case(seed) for seed in range(3)),
        long_case(0),
        *(sections_case(seed) for seed in range(3)),
    ]
    recorded = {f"{item['case']}-{item['seed']}": _params(item["overrides"]) for item in load(RESULTS)}
    ours = {case.label: _params(item.replace(f"{ROOT}/", "") for item in case.overrides) for case in cases}
    assert recorded == ours


def _result(low: float = -0.1, high: float = 0.1, stopped_by: str | None = None) -> dict[str, Any]:
    def both(high: float) -> dict[str, Any]:
        found = {"length_tokens": {"value": 5.0}, "judge_a": {"value": 0.5}, "judge_b": {"value": 0.25}}
        difference = {"value": 0.0, "low": low, "high": high}
        return {"sft": found, "aligned": found, "differences": {"a": difference, "b": difference | {"high": 0.2}}}

    row = {"response_tokens": 5.0, "distinct_2": 0.5, "entropy": 1.0, "kl": 0.1, "held_out_auc": 0.6}
    return {
        "case": "x",
        "seed": 0,
        "rounds": 1,
        "stopped_by": stopped_by,
        "history": [row],
        "evaluation": {"T=1": both(0.1), "tuned": both(high)},
    }


def test_a_verdict_names_the_gate_or_the_judge_and_decoding() -> None:
    assert verdict(_result()) == "healthy" and verdict(_result(high=0.0)) == "healthy"
    assert verdict(_result(high=-0.01)) == "below SFT (a, tuned)"
    assert verdict(_result(high=-0.01, stopped_by="kl: too far")) == "stopped by kl; below SFT (a, tuned)"
    assert verdict(_result(stopped_by="kl: too far")) == "stopped by kl"


def test_a_difference_of_too_few_groups_is_no_verdict() -> None:
    result = _result()
    result["evaluation"]["tuned"]["differences"]["a"] = {"value": -0.5, "low": None, "high": None, "n": 9, "groups": 3}
    assert verdict(result) == "healthy"
    assert "| -0.500 (not measured: 3 groups) |" in tables([result])


def test_each_judge_has_a_row() -> None:
    lines = tables([_result()]).splitlines()
    assert "| x | 0 | 5.0 → 5.0 | – → – | a | 0.500 → 0.500 | +0.000 [-0.100, +0.100] |" in lines[-2]
    assert lines[-1].startswith("|  |  |  |  | b | 0.250 → 0.250 | +0.000 [-0.100, +0.200] |")


def test_similarity_is_of_one_response_to_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def embeddings(texts: list[str], folder: Path) -> torch.Tensor:
        asked.append((texts, folder))
        return torch.tensor([[0.6, 0.8]] if texts == ["response"] else [[0.0, 1.0]])

    monkeypatch.setattr(similarity.minilm, "embeddings", embeddings)
    assert similarity.judge("prompt", "response", "reference") == pytest.approx(0.8)
    assert asked == [(["response"], similarity.WEIGHTS), (["reference"], similarity.WEIGHTS)]


def test_the_page_is_what_the_raw_numbers_say() -> None:
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert blocks.filled(text, pages(load(RESULTS))["results.md"]) == text, (
        "run `python -m experiments.stability --report`"
    )


def test_runs_end_as_the_page_says() -> None:
    ends = {f"{item['case']}-{item['seed']}": verdict(item) for item in load(RESULTS)}
    assert len(ends) == 19 and ends.pop("long-0") == "stopped by auc"
    below = "below SFT (minilm, tuned; chrf, tuned; minilm, greedy; chrf, greedy)"
    recipe = [ends.pop(f"recipe-{seed}") for seed in range(3)]
    assert recipe == [*[f"stopped by distinct_2; {below}"] * 2, "stopped by distinct_2"]
    assert set(ends.values()) == {"healthy"}
    (long,) = (item for item in load(RESULTS) if item["case"] == "long")
    assert [row["held_out_auc"] for row in long["history"] if "held_out_auc" in row][-3:] == [1.0] * 3
    # What comes back is SFT's policy: the last that was healthy.
    aligned, sft = (long["evaluation"]["T=1"][name]["judge_rule"]["value"] for name in ("aligned", "sft"))
    assert aligned == sft


def test_how_far_the_default_model_moved_is_as_the_page_says() -> None:
    """The longest responses, the fewest distinct pairs and the lowest entropy of a round, beside SFT's in the table."""
    found: dict[str, list[float]] = {"response_tokens": [], "distinct_2": [], "entropy": []}
    for item in (item for item in load(RESULTS) if item["case"].startswith("default-")):
        for name, ratios in found.items():
            values = [row[name] for row in item["history"] if "kl" in row]
            ratios.append((max if name == "response_tokens" else min)(values) / values[0])
    most = max(found["response_tokens"]), min(found["distinct_2"]), min(found["entropy"])
    said = "at most {:.2f} times SFT's, the fewest distinct pairs {:.2f} and the lowest entropy {:.2f} of SFT's"
    text = " ".join((ROOT / "docs/results.md").read_text(encoding="utf-8").split())
    assert said.format(*most) in text


@pytest.mark.slow
def test_a_smoke_run_writes_what_the_tables_read_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--smoke", "--only", "sections", "--out", str(tmp_path)]
    assert main(command) == 0
    assert "| sections | 0 |" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    made = json.loads(path.read_text())
    assert made["case"] == "sections" and not any(str(ROOT) in item for item in made["overrides"])
    assert set(made["evaluation"]["T=1"]["differences"]) == {"rule"} and made["rounds"] == 1
    assert main(command) == 0 and path.stat().st_mtime_ns == written
