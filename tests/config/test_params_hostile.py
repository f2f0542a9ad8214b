"""Params as nobody should write them: every problem is told, at once, and nothing is quietly decided."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tiny import ROOT, run_pipeline

from understudy.config import load_params
from understudy.errors import ConfigError

PARAMS = ROOT / "params.yaml"


def refusal(*overrides: str, path: Path = PARAMS) -> str:
    with pytest.raises(ConfigError) as refused:
        load_params(path, overrides)
    return str(refused.value)


def test_an_override_of_the_wrong_form_hides_no_other_problem() -> None:
    message = refusal("evaluation.judges.0.name=x", "sft.epochz=3", "alignment", "sft.epochs.x=1", "seed=[", "seed=-1")
    assert "params.yaml: 6 problems:" in message
    for told in (
        "'judges' is a list; give all of it, as judges=[…]",
        "did you mean 'sft.epochs'?",
        "--set 'alignment' is not of the form section.key=value",
        "'epochs' is a value (8), it has no keys below it",
        "the value is not valid YAML",
        "seed: Input should be greater than or equal to 0",
    ):
        assert told in message


@pytest.mark.parametrize("cold", ["0", "-1", "-0.5"])
def test_a_temperature_that_cannot_be_sampled_at_is_refused_and_greedy_is_named(cold: str) -> None:
    message = refusal(f"evaluation.temperatures=[0.7, {cold}]")
    assert f"evaluation.temperatures: [{float(cold)}] cannot be sampled at; give numbers above 0" in message
    assert "every policy is also decoded greedily, as the decoding `greedy`" in message


@pytest.mark.parametrize("override", [".=1", "sft.=1", ".epochs=1", "sft..epochs=1", "=1", "sft. =1"])
def test_an_empty_name_is_not_of_the_form(override: str) -> None:
    assert "is not of the form section.key=value" in refusal(override)


def test_a_key_that_stands_twice_is_refused_and_not_the_last_one_taken(tmp_path: Path) -> None:
    text = PARAMS.read_text(encoding="utf-8")
    (tmp_path / "twice.yaml").write_text(text.replace("seed: 7\n", "seed: 7\nseed: 8\n"), encoding="utf-8")
    message = refusal(path=tmp_path / "twice.yaml")
    assert "the key 'seed' stands twice" in message and "line 3" in message
    assert "the key True stands twice" in refusal("model.lora={yes: 1, true: 2}")
    assert "the key 'rank' stands twice" in refusal("model.lora={rank: 1, rank: 2}")


def test_anchors_and_merge_keys_are_yaml_as_ever(tmp_path: Path) -> None:
    text = PARAMS.read_text(encoding="utf-8").replace(
        "  splits: {validation: 0.1, test: 0.1}", "  splits: {<<: &half {validation: 0.2}, <<: *half, test: 0.1}"
    )
    (tmp_path / "merged.yaml").write_text(text, encoding="utf-8")
    assert load_params(tmp_path / "merged.yaml").data.splits.validation == 0.2


def test_a_missing_source_hides_no_other_problem(tmp_path: Path) -> None:
    done = run_pipeline(
        tmp_path / "w", "data.source=nowhere.jsonl", "align.divergence=revers_kl", "model.scratch.num_heads=7"
    )
    assert done.returncode == 2
    assert "Preflight found 4 problems" in done.stderr
    for told in (
        "'nowhere.jsonl' does not exist",
        "Did you mean 'reverse_kl'?",
        "is not a multiple of num_heads 7",
        "num_heads 7 is not a multiple of",
    ):
        assert told in done.stderr
    alone = run_pipeline(tmp_path / "w", "data.source=nowhere.jsonl")
    assert alone.returncode == 2 and alone.stderr.startswith("The source 'nowhere.jsonl' does not exist")
