"""Warnings on combinations that run but descend something else; exact combinations stay silent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from understudy.config import load_params
from understudy.platform.steps import preflight
from understudy.platform.steps.objective_warnings import STATED, STATED_LABEL_SMOOTHING, objective_warnings

ROOT = Path(__file__).parents[2]


def _warnings(*overrides: str) -> list[str]:
    return objective_warnings(load_params(ROOT / "params.yaml", [f"align.{item}" for item in overrides]).align)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["discriminator.loss=bradley_terry"],
        ["discriminator.loss=bradley_terry", "level=token"],
        ["discriminator.loss=bradley_terry", "divergence=alpha:0"],
        ["divergence=js", "level=token", "absorbing=false"],
        ["divergence=forward_kl", "discriminator.loss=variational"],
        ["divergence=log_d", "level=token"],
        ["method=rlhf"],
        # Both read the form: best-of-n ranks by the log-ratio, and self-play reports the AUC of one.
        ["method=iterative_sft", "discriminator.form=airl"],
        ["method=selfplay", "discriminator.form=airl"],
        ["min_held_out_auc=0.6"],
        ["method=selfplay"],
        ["method=iterative_sft", "discriminator.loss=bradley_terry"],
        ["method=selfplay", "kl_coefficient_start=0", "kl_coefficient_end=0"],
        ["method=selfplay", "discriminator.warmup_rounds=0", "discriminator.updates_per_round=0"],
        ["method=rlhf", "policy_update=ppo", "reward_clip=5"],
        ["divergence=js", "discriminator.loss=variational", "discriminator.label_smoothing=0"],
    ],
)
def test_exact_combinations_are_silent(overrides: list[str]) -> None:
    assert _warnings(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["discriminator.loss=bradley_terry", "divergence=js"], ["bradley_terry", "divergence js", "logistic"]),
        (["discriminator.loss=bradley_terry", "level=token", "absorbing=false"], ["length bias", "absorbing=true"]),
        (["discriminator.loss=bradley_terry_variance"], ["variance differs", "loss=bradley_terry "]),
        (["divergence=log_d", "level=token", "absorbing=false"], ["-log 2 a token"]),
        (["rollout.temperature=0.7"], ["temperature 0.7", "top_p 1 "]),
        (["method=selfplay", "divergence=js"], ["divergence js is not read", "selfplay"]),
        (["method=rlhf", "divergence=forward_kl"], ["forward_kl is not read", "reverse_kl"]),
        (["method=rlhf", "level=token"], ["level token is not read"]),
        (["method=rlhf", "discriminator.form=airl"], ["form airl is not read with align.method rlhf", "form=plain"]),
        (["discount=0.9"], ["discount 0.9 is not read"]),
        (["method=rlhf", "min_held_out_auc=0.6"], ["min_held_out_auc 0.6", "stays held", "warmup_rounds"]),
        (["discriminator.updates_per_round=0", "min_held_out_auc=0.6"], ["min_held_out_auc 0.6", "stays held"]),
        (["method=selfplay", "policy_update=ppo"], ["align.policy_update ppo is not read with align.method selfplay"]),
        (
            ["method=iterative_sft", "kl_coefficient_start=0.2", "kl_coefficient_end=0.2", "reward_clip=5"],
            ["kl_coefficient_start 0.2, align.kl_coefficient_end 0.2, align.reward_clip 5.0 are not", "iterative_sft"],
        ),
        (
            ["divergence=js", "discriminator.loss=variational", "discriminator.label_smoothing=0.2"],
            ["label_smoothing 0.2 is not read", "variational"],
        ),
    ],
)
def test_what_each_inexact_combination_says(overrides: list[str], parts: list[str]) -> None:
    (warning,) = _warnings(*overrides)
    assert all(part in warning for part in parts), warning


def test_what_counts_as_left_alone_is_what_params_yaml_states() -> None:
    align = load_params(ROOT / "params.yaml").align
    assert {name: getattr(align, name) for name in STATED} == STATED
    assert align.discriminator.label_smoothing == STATED_LABEL_SMOOTHING


def test_several_warnings_come_together() -> None:
    found = _warnings("discriminator.loss=bradley_terry_variance", "divergence=js", "level=token", "absorbing=false")
    assert len(found) == 3


def test_preflight_says_it_in_the_output_and_in_the_event_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path))
    monkeypatch.setenv("UNDERSTUDY_RUN_DIR", str(tmp_path / "run"))
    for name in ("MLFLOW_TRACKING_URI", "UNDERSTUDY_STORAGE_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    source = f"data.source={ROOT / 'examples/tiny/demonstrations.jsonl'}"
    pairs = ["align.divergence=js", "align.discriminator.loss=bradley_terry", "evaluation.judges=[]"]
    config: dict[str, Any] = load_params(ROOT / "params.yaml", [source, *pairs]).model_dump(mode="json")
    assert preflight.run(config) == "ok"
    assert "Warning: align.discriminator.loss bradley_terry with align.divergence js is inexact" in (
        capsys.readouterr().out
    )
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    notes = [event["message"] for event in events if event["kind"] == "note"]
    assert len(notes) == 1 and notes[0].endswith("align.discriminator.loss=logistic.")
