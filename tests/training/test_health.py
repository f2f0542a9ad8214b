from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training.helpers import ROOT, align_config, examples, loop, params, random_policy

from understudy.config import AlignConfig, HealthConfig, load_params
from understudy.errors import ConfigError, Preempted
from understudy.models.scalar_head import ScalarHead
from understudy.training.adversarial import AlignResult, align, num_discriminator_outputs
from understudy.training.health import Verdict, distinct_pairs, examine
from understudy.training.loop import Loop
from understudy.training.state import Models

WARMUP = 2
STEADY = {"response_tokens": 50.0, "distinct_2": 0.5, "entropy": 1.2, "kl": 2.0}


def _limits(**changed: Any) -> HealthConfig:
    return params().align.health.model_copy(update=changed)


def _history(**changes: list[float]) -> list[dict[str, float]]:
    """Two warm-up rounds and a steady first policy round, then rounds that differ by the changed numbers."""
    rounds = [dict(STEADY) for _ in range(WARMUP + 1)]
    for values in zip(*changes.values(), strict=True):
        rounds.append(STEADY | dict(zip(changes, values, strict=True)))
    for entry in rounds[:WARMUP]:
        del entry["kl"], entry["entropy"]
    return [{"step": step + 1, **entry} for step, entry in enumerate(rounds)]


def _verdict(limits: HealthConfig | None = None, **changes: list[float]) -> Verdict:
    return examine(_history(**changes), limits or _limits(), WARMUP)


# What drives each gate out of its limits, just within them, and what it then says.
DEGRADING = [
    ("response_tokens", 110.0, 90.0, "length", "110 tokens, 2.2 times the SFT policy's 50; healthy is 0.4 to 2"),
    ("response_tokens", 15.0, 25.0, "length", "15 tokens, 0.3 times the SFT policy's 50; healthy is 0.4 to 2"),
    ("entropy", 0.24, 0.36, "entropy", "0.24 nats a token, 0.2 times the SFT policy's 1.2; healthy is at least 0.25"),
    ("distinct_2", 0.1, 0.26, "distinct_2", "0.1 of all, 0.2 times the SFT policy's 0.5; healthy is at least 0.5"),
    ("kl", 60.0, 45.0, "kl", "1.2 nats a token (60 a response); healthy is below 1"),
    (
        "reward_clipped_fraction",
        0.99,
        0.85,
        "reward_clip",
        "0.99 of the rewards were cut to align.reward_clip, where all samples look alike; healthy is below 0.9",
    ),
]
OFF = {
    "length": "length_ratio",
    "entropy": "min_entropy_fraction",
    "distinct_2": "min_distinct_2_fraction",
    "kl": "max_kl_per_token",
    "reward_clip": "max_reward_clipped_fraction",
    "auc": "max_held_out_auc",
}


@pytest.mark.parametrize(("number", "bad", "fine", "gate", "told"), DEGRADING)
def test_a_gate_fires_after_three_bad_rounds_in_a_row_and_not_before(
    number: str, bad: float, fine: float, gate: str, told: str
) -> None:
    fired = _verdict(**{number: [bad, bad, bad]})
    assert not fired.healthy and fired.stopped_by is not None
    assert fired.stopped_by.startswith(f"{gate}: ") and told in fired.stopped_by
    assert "violated 3 times in a row (rounds 4 to 6). To go on differently, " in fired.stopped_by
    remedy = "align.reward_clip, lower align.discriminator" if gate == "reward_clip" else "align.learning_rate"
    assert remedy in fired.stopped_by and OFF[gate] in fired.stopped_by

    assert _verdict(**{number: [fine] * 9}) == dataclasses.replace(_verdict(**{number: [fine]}), stopped_by=None)
    assert _verdict(**{number: [fine] * 9}).healthy
    for not_yet in ([bad, bad], [bad, bad, fine, bad, bad], [bad, bad, bad, fine]):
        verdict = _verdict(**{number: not_yet})
        assert verdict.stopped_by is None and verdict.healthy == (not_yet[-1] == fine)
    off = _verdict(_limits(**{OFF[gate]: None}), **{number: [bad] * 9})
    assert off.healthy and off.stopped_by is None and gate not in off.values


def test_auc_counts_as_pinned_from_its_limit_on_and_only_where_it_was_measured() -> None:
    def measured(*values: float) -> list[dict[str, float]]:
        history = _history(kl=[2.0] * (2 * len(values)))
        for index, value in enumerate(values):
            history[WARMUP + 1 + 2 * index]["held_out_auc"] = value
        return history

    limits = _limits(auc_measurements=3)
    fired = examine(measured(0.6, 1.0, 0.99, 1.0), limits, WARMUP)
    assert fired.stopped_by is not None and fired.stopped_by.startswith("auc: ")
    assert "held-out AUC is 1; healthy is below 0.99, violated 3 times in a row (rounds 6 to 10)" in fired.stopped_by
    assert "align.discriminator.updates_per_round" in fired.stopped_by
    assert examine(measured(1.0, 1.0, 0.989, 1.0, 1.0), limits, WARMUP).stopped_by is None
    assert examine(measured(0.989, 0.989, 0.989, 0.989), limits, WARMUP).healthy
    assert examine(measured(1.0, 1.0, 1.0), _limits(max_held_out_auc=None), WARMUP).healthy
    # Before the policy moves, a discriminator that is always right says nothing about the policy.
    before = [entry | ({"held_out_auc": 1.0} if entry["step"] <= WARMUP else {}) for entry in _history(kl=[2.0])]
    assert examine(before, _limits(auc_measurements=1), WARMUP) == Verdict(
        True, None, {"length": 1.0, "entropy": 1.0, "distinct_2": 1.0, "kl": 0.04}
    )


def test_warm_up_is_never_judged_and_its_lengths_are_part_of_the_reference() -> None:
    history = _history(kl=[2.0])
    assert examine(history[:WARMUP], _limits(), WARMUP) == Verdict(True, None, {})
    history[0]["response_tokens"] = 110.0
    # (110 + 50 + 50) / 3 = 70 tokens.
    assert examine(history, _limits(), WARMUP).values["length"] == pytest.approx(50 / 70)


def test_a_number_that_is_none_is_unhealthy_and_nothing_left_to_lose_is_not() -> None:
    assert not _verdict(kl=[math.nan]).healthy
    assert "kl: " in str(_verdict(kl=[math.nan] * 3).stopped_by)
    history = _history(entropy=[0.0] * 4)
    for entry in history:
        entry["entropy"] = 1e-5 if entry["step"] == WARMUP + 1 else 0.0
    assert examine(history, _limits(), WARMUP).healthy


@pytest.mark.parametrize(("before", "healthy"), [(0.04, True), (0.06, False)])
def test_a_policy_that_is_sure_already_cannot_lose_its_entropy(before: float, healthy: bool) -> None:
    history = _history(entropy=[0.0] * 4)
    for entry in history:
        entry["entropy"] = before if entry["step"] == WARMUP + 1 else 0.001
    assert examine(history, _limits(), WARMUP).healthy == healthy


def test_distinct_pairs_by_hand() -> None:
    assert distinct_pairs([[1, 2, 1, 2], [2, 1]]) == 2 / 4
    assert distinct_pairs([[5], []]) == 0.0


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "align.health.max_kl=3",
            r"align\.health\.max_kl: unknown key; did you mean .*max_kl_per_token",
        ),
        ("align.health.length_ratio=[1.5, 2]", r"length_ratio \[1\.5, 2\.0\] must be \[shortest, longest\]"),
        ("align.health.patience_rounds=0", r"align\.health\.patience_rounds: .*greater than 0"),
        ("align.health.max_held_out_auc=0.4", r"align\.health\.max_held_out_auc: .*greater than 0\.5"),
    ],
)
def test_limits_that_make_no_sense_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        params(override)


ABSURD = [
    "align.num_rounds=12",
    "align.learning_rate=0.02",
    "align.schedule=constant",
    "align.warmup_fraction=0",
    "align.checkpoint_every_rounds=1",
]


def _models(config: AlignConfig) -> Models:
    policy, reference = random_policy("llama"), random_policy("llama")
    torch.manual_seed(7)
    return Models(policy, reference, ScalarHead.copied_from(reference, num_discriminator_outputs(config), 0.1))


def _run(folder: Path, *overrides: str, stop_after: int = 10**6) -> tuple[Models, AlignResult, Loop]:
    config = align_config(*ABSURD, *overrides)
    models, asked = _models(config), iter(range(10**6))
    rows, surroundings = examples(models.policy), loop(folder, lambda: next(asked) + 1 >= stop_after)
    return models, align(models, rows[:18], rows[18:], config, 1, surroundings), surroundings


def _policy_weights(models: Models) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in models.policy.model.named_parameters()}


def _equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_an_absurd_learning_rate_is_stopped_and_the_last_healthy_weights_come_back(tmp_path: Path) -> None:
    models, result, surroundings = _run(tmp_path / "gated")
    assert result.stopped_by is not None and result.stopped_by.startswith("kl: ")
    assert f"Returned are the weights of after round {result.healthy_round}, " in result.stopped_by
    # Three bad rounds in a row end the run, long before the 13th; the round before those was the last healthy one.
    values = [entry["health/kl"] for entry in surroundings.history if "health/kl" in entry]
    assert [value > 1.0 for value in values[-4:]] == [False, True, True, True]
    assert result.num_rounds == len(surroundings.history) == result.healthy_round + 4 < 13

    # A run that is interrupted after just as many rounds has those weights in its checkpoint.
    with pytest.raises(Preempted):
        _run(tmp_path / "short", stop_after=result.healthy_round)
    checkpoint = loop(tmp_path / "short").latest()
    assert checkpoint is not None and checkpoint.step == result.healthy_round
    expected = {name.removeprefix("policy."): value for name, value in checkpoint.tensors.items()}
    returned = _policy_weights(models)
    assert _equal(returned, {name: expected[name] for name in returned})
    fresh = _policy_weights(_models(align_config(*ABSURD)))
    assert not _equal(returned, fresh)

    # What was kept for this is in the checkpoint of the stopped run, beside the weights that went astray.
    stopped = loop(tmp_path / "gated").latest()
    assert stopped is not None and stopped.step == result.num_rounds
    assert torch.equal(stopped.tensors["healthy.model.norm.weight"], expected["model.norm.weight"])
    assert not torch.equal(stopped.tensors["policy.model.norm.weight"], expected["model.norm.weight"])


def test_interrupted_anywhere_a_stopped_run_ends_with_the_same_weights_and_reason(tmp_path: Path) -> None:
    models, result, surroundings = _run(tmp_path / "whole")
    expected = _policy_weights(models)
    # After a healthy round, between violations, after the verdict: and once more after it all ended.
    for attempt, stop_after in enumerate((result.healthy_round, 2, 1, 10**6, 10**6)):
        try:
            resumed, again, resumed_loop = _run(tmp_path / "parts", stop_after=stop_after)
        except Preempted:
            assert attempt < 3
    assert _equal(_policy_weights(resumed), expected)
    assert (again.stopped_by, again.healthy_round, again.compute_token_passes) == (
        result.stopped_by,
        result.healthy_round,
        result.compute_token_passes,
    )
    assert resumed_loop.history == surroundings.history


def test_a_policy_never_healthy_again_comes_back_as_the_sft_policy(tmp_path: Path) -> None:
    models, result, _ = _run(tmp_path, "align.learning_rate=0.3", "align.health.max_kl_per_token=0.001")
    assert result.stopped_by is not None and result.healthy_round == 1  # the discriminator's warm-up
    assert _equal(_policy_weights(models), _policy_weights(_models(align_config())))


def test_without_gates_the_same_run_goes_on_to_its_end_and_keeps_nothing(tmp_path: Path) -> None:
    off = [f"align.health.{name}=null" for name in OFF.values()]
    _, result, surroundings = _run(tmp_path / "off", *off, "align.num_rounds=8")
    assert (result.num_rounds, result.stopped_by) == (9, None)
    assert not [name for entry in surroundings.history for name in entry if name.startswith("health/")]
    checkpoint = loop(tmp_path / "off").latest()
    assert checkpoint is not None and not [name for name in checkpoint.tensors if name.startswith("healthy")]
    # Gates only watch: as long as none fires, the run is the same to the bit.
    watched, _, _ = _run(tmp_path / "on", "align.num_rounds=4", "align.health.patience_rounds=99")
    alone, _, _ = _run(tmp_path / "four", *off, "align.num_rounds=4")
    assert _equal(_policy_weights(watched), _policy_weights(alone))


def test_a_discriminator_that_is_always_right_ends_the_run(tmp_path: Path) -> None:
    """The expert says one word again and again, which a random policy does not, and the policy hardly moves."""
    config = align_config(
        *ABSURD,
        "align.learning_rate=1e-7",
        "align.held_out_every_rounds=1",
        "align.discriminator.learning_rate=0.01",
        "align.discriminator.updates_per_round=8",
    )
    models, surroundings = _models(config), loop(tmp_path)
    said = models.policy.encode_response("alpha " * 4)
    rows = [dataclasses.replace(row, response=said) for row in examples(models.policy)]
    result = align(models, rows[:18], rows[18:], config, 1, surroundings)
    aucs = [entry["held_out_auc"] for entry in surroundings.history]
    assert result.stopped_by is not None and result.stopped_by.startswith("auc: the discriminator's held-out AUC is 1;")
    assert "violated 3 times in a row" in result.stopped_by
    assert [auc >= 0.99 for auc in aucs[-3:]] == [True] * 3 and result.num_rounds == len(aucs) < 13
    assert result.healthy_round == 1 and _equal(_policy_weights(models), _policy_weights(_models(config)))


@pytest.mark.parametrize("preset", [None, *sorted((ROOT / "pipelines/runs").glob("*.yaml"))])
def test_the_auc_gate_can_stop_the_default_run_and_every_preset(preset: Path | None) -> None:
    config = load_params(ROOT / "params.yaml", presets=[preset] if preset else []).align
    warmup = config.discriminator.warmup_rounds
    rounds = warmup + config.num_rounds
    history = [{"step": step, **STEADY} for step in range(1, rounds + 1)]
    for entry in history:
        if entry["step"] % config.held_out_every_rounds == 0 or entry["step"] == rounds:
            entry["held_out_auc"] = 1.0
    stopped = str(examine(history, config.health, warmup).stopped_by)
    assert stopped.startswith("auc: ") and "violated" in stopped


def test_rewards_that_are_all_clipped_end_the_run_with_the_sft_policy(tmp_path: Path) -> None:
    clipped = ("align.reward_clip=1e-6", "align.learning_rate=1e-4")
    models, result, _ = _run(tmp_path / "on", *clipped)
    assert result.stopped_by is not None and result.stopped_by.startswith("reward_clip: 1 of the rewards were cut")
    config = align_config(*ABSURD)
    # Unhealthy from the first policy round: what sampled it, the SFT policy, comes back.
    assert result.num_rounds == config.discriminator.warmup_rounds + 3
    assert _equal(_policy_weights(models), _policy_weights(_models(config)))
    _, result, _ = _run(tmp_path / "off", *clipped, "align.health.max_reward_clipped_fraction=null")
    assert result.stopped_by is None
