"""The policy is held while the discriminator tells no better than `align.min_held_out_auc` on held-out prompts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from training.helpers import align_config, examples, loop, params, random_policy

from understudy.errors import ConfigError, Preempted
from understudy.models.scalar_head import ScalarHead
from understudy.training.adversarial import AlignResult, align, num_discriminator_outputs
from understudy.training.discriminating import DiscriminatorTrainer
from understudy.training.health import examine
from understudy.training.loop import Loop
from understudy.training.state import Models

GATED = ("align.min_held_out_auc=0.6", "align.num_rounds=5", "align.held_out_every_rounds=1")
# AUC measured after each round, the first being the warm-up's; the second and the fifth round follow one below 0.6.
MEASURED = {1: 0.59, 2: 0.6, 3: 0.7, 4: 0.59, 5: 0.65, 6: 0.5}


def _run(
    folder: Path, *overrides: str, stop_after: int = 10**6, num_held_out: int = 6
) -> tuple[Models, AlignResult, Loop]:
    config = align_config(*overrides)
    policy, reference = random_policy("llama"), random_policy("llama")
    torch.manual_seed(7)
    models = Models(policy, reference, ScalarHead.copied_from(reference, num_discriminator_outputs(config), 0.1))
    asked, rows = iter(range(10**6)), examples(policy)
    surroundings = loop(folder, lambda: next(asked) + 1 >= stop_after)
    held_out = rows[18 : 18 + num_held_out]
    return models, align(models, rows[:18], held_out, config, 1, surroundings), surroundings


def _script(monkeypatch: pytest.MonkeyPatch, measured: dict[int, float]) -> list[int]:
    """Let the measurement after so many rounds give this AUC; returns where it was asked."""
    asked: list[int] = []

    def auc(self: DiscriminatorTrainer) -> float:
        asked.append(self.state.round)
        return measured[self.state.round]

    monkeypatch.setattr(DiscriminatorTrainer, "held_out_auc", auc)
    return asked


def _weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return [value.detach().clone() for value in module.parameters()]


def _equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(one, two) for one, two in zip(_weights(first), _weights(second), strict=True))


def test_below_the_limit_the_discriminator_learns_and_the_policy_stays(tmp_path: Path) -> None:
    models, result, surroundings = _run(tmp_path, "align.min_held_out_auc=0.999", "align.sft_coefficient_start=1")
    assert _equal(models.policy.model, random_policy("llama").model)
    assert float(models.discriminator.head.weight.detach().abs().sum()) > 0
    assert (result.num_rounds, result.policy_held_rounds) == (4, 3)
    assert [entry.get("policy_held_rounds") for entry in surroundings.history] == [None, 1, 2, 3]
    assert all("discriminator_loss" in entry and "policy_loss" not in entry for entry in surroundings.history)


def test_the_last_measurement_decides_and_held_rounds_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _script(monkeypatch, MEASURED)
    _, result, surroundings = _run(tmp_path / "gated", *GATED, "align.schedule=cosine")
    moved = [entry["step"] for entry in surroundings.history if "policy_loss" in entry]
    # 0.6 itself is enough.
    assert moved == [3, 4, 6] and asked == [1, 2, 3, 4, 5, 6]
    assert [entry.get("policy_held_rounds") for entry in surroundings.history] == [None, 1, 1, 1, 2, 2]
    assert (result.num_rounds, result.policy_held_rounds, result.held_out_auc) == (6, 2, 0.5)
    _, free, all_moved = _run(tmp_path / "free", "align.num_rounds=5", "align.schedule=cosine")
    assert free.policy_held_rounds == 0 and "policy_held_rounds" not in all_moved.history[-1]
    for name in ("learning_rate", "kl_coefficient"):
        of_step = {entry["step"]: entry.get(name) for entry in all_moved.history}
        assert [entry[name] for entry in surroundings.history if name in entry] == [of_step[step] for step in moved]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 5])
def test_stopped_and_resumed_it_holds_the_same_rounds(
    stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Measured every other round, or while held: what a resumed run knows of the last AUC is what its checkpoint says.
    gated = (*GATED, "align.held_out_every_rounds=2")
    _script(monkeypatch, {1: 0.5, 2: 0.7, 4: 0.5, 5: 0.5, 6: 0.7})
    whole, result, history = _run(tmp_path / "whole", *gated)
    assert result.policy_held_rounds == 3 and [e["step"] for e in history.history if "kl" in e] == [3, 4]
    with pytest.raises(Preempted):
        _run(tmp_path / "parts", *gated, stop_after=stop_after)
    resumed, again, resumed_history = _run(tmp_path / "parts", *gated)
    assert _equal(whole.policy.model, resumed.policy.model) and _equal(whole.discriminator, resumed.discriminator)
    assert dataclasses.replace(again, train_seconds=0) == dataclasses.replace(result, train_seconds=0)
    assert resumed_history.history == history.history


def test_a_policy_that_is_never_held_is_the_same_to_the_bit(tmp_path: Path) -> None:
    # 0.5 is below what the discriminator reaches on random words; it is measured once more, after the warm-up.
    free, one, _ = _run(tmp_path / "free")
    gated, two, surroundings = _run(tmp_path / "gated", "align.min_held_out_auc=0.5")
    assert two.policy_held_rounds == 0 and one.held_out_auc == two.held_out_auc
    assert _equal(free.policy.model, gated.policy.model) and _equal(free.discriminator, gated.discriminator)
    assert [entry["step"] for entry in surroundings.history if "held_out_auc" in entry] == [1, 2, 4]
    assert two.compute_token_passes > one.compute_token_passes


@pytest.mark.parametrize(("warmup_rounds", "expected"), [(0, [0, 5]), (2, [2, 7])])
def test_it_is_measured_before_the_first_policy_round(
    warmup_rounds: int, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _script(monkeypatch, dict.fromkeys(range(8), 0.8))
    warm_up = f"align.discriminator.warmup_rounds={warmup_rounds}"
    _, result, _ = _run(tmp_path, *GATED, "align.held_out_every_rounds=100", warm_up)
    assert asked == expected and result.policy_held_rounds == 0


def test_a_held_policy_goes_on_as_soon_as_the_discriminator_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _script(monkeypatch, {1: 0.5, 2: 0.5, 3: 0.7, 6: 0.7})
    _, result, surroundings = _run(tmp_path, *GATED, "align.held_out_every_rounds=100")
    assert asked == [1, 2, 3, 6] and result.policy_held_rounds == 2
    assert [entry["step"] for entry in surroundings.history if "policy_loss" in entry] == [4, 5, 6]


def test_self_play_which_does_not_follow_the_discriminator_cannot_be_held() -> None:
    with pytest.raises(ConfigError, match="min_held_out_auc is 0.6 but align.method selfplay does not follow"):
        params("align.min_held_out_auc=0.6", "align.method=selfplay")


def test_health_gates_leave_held_rounds_out() -> None:
    def entry(step: int, kl: float) -> dict[str, float]:
        return {"step": step, "response_tokens": 10.0, "distinct_2": 0.5, "entropy": 2.0, "kl": kl}

    def held(step: int) -> dict[str, float]:
        return {"step": step, "response_tokens": 10.0, "distinct_2": 0.5, "policy_held_rounds": 1.0}

    limits = align_config("align.health.max_kl_per_token=1.0", "align.health.patience_rounds=2").health
    history = [held(2), entry(3, 0.0), entry(4, 15.0), held(5), held(6), entry(7, 15.0)]
    verdict = examine(history, limits, warmup_rounds=1)
    assert verdict.stopped_by is not None and "violated 2 times in a row (rounds 4 to 7)" in verdict.stopped_by
    assert examine(history[:-1], limits, warmup_rounds=1).stopped_by is None


def test_without_validation_rows_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="min_held_out_auc is 0.6, but none of 0 validation demonstrations"):
        _run(tmp_path, *GATED, num_held_out=0)
    with pytest.raises(ConfigError, match=r"min_held_out_auc is 0.6 but data.splits.validation is 0"):
        params("align.min_held_out_auc=0.6", "data.splits.validation=0")
    for value in (0.4, 1.0):
        with pytest.raises(ConfigError, match=r"align\.min_held_out_auc"):
            align_config(f"align.min_held_out_auc={value}")
