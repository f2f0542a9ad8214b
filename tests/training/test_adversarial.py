from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.helpers import align_config, examples, loop, params, random_policy

from understudy.config import AlignConfig, LoraConfig
from understudy.errors import ConfigError, Preempted, TrainingDiverged
from understudy.models.discriminator import create_discriminator, load_discriminator
from understudy.models.loading import with_lora
from understudy.models.scalar_head import ScalarHead, load_scalar_head
from understudy.training.adversarial import AlignResult, align, num_discriminator_outputs
from understudy.training.discriminating import auc
from understudy.training.loop import Loop
from understudy.training.replay import Replay, Sample
from understudy.training.state import Models

# The AIRL form reads the policy's log-probabilities, which dropout would change.
AIRL_WITH_DROPOUT = (
    "align.discriminator.form=airl",
    "align.discriminator.init=ngrams",
    "model.lora={rank: 2, alpha: 4, dropout: 0.3, target_modules: all-linear}",
    "align.learning_rate=1e-2",
)
OWN = "{hidden_size: 16, intermediate_size: 24, num_layers: 1, num_heads: 2}"


def _models(config: AlignConfig, lora: LoraConfig | None = None) -> Models:
    policy, reference = random_policy("llama"), random_policy("llama")
    if lora is not None:
        policy = reference = with_lora(policy, lora, seed=0)
    torch.manual_seed(7)
    num_outputs = num_discriminator_outputs(config)
    discriminator = create_discriminator(config.discriminator, num_outputs, reference, lambda: reference)
    return Models(policy, reference, discriminator)


def _run(folder: Path, *overrides: str, stop_after: int | None = None) -> tuple[Models, AlignResult, Loop]:
    config = align_config(*overrides)
    models = _models(config, params(*overrides).model.lora)
    rows = examples(models.policy)
    asked = iter(range(10**6))
    surroundings = loop(folder, lambda: stop_after is not None and next(asked) + 1 >= stop_after)
    return models, align(models, rows[:18], rows[18:], config, 1, surroundings), surroundings


def _all_weights(models: Models) -> list[torch.Tensor]:
    modules = (models.policy.model, models.discriminator)
    return [value.detach() for module in modules for value in module.parameters()]


def _same(first: Models, second: Models) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_all_weights(first), _all_weights(second), strict=True))


def test_two_runs_are_bit_identical_and_both_networks_moved(tmp_path: Path) -> None:
    first, one, _ = _run(tmp_path / "a")
    second, two, _ = _run(tmp_path / "b")
    assert _same(first, second)
    assert dataclasses.replace(one, train_seconds=0) == dataclasses.replace(two, train_seconds=0)
    fresh = _models(align_config())
    assert not torch.equal(first.policy.model.lm_head.weight, fresh.policy.model.lm_head.weight)
    assert float(first.discriminator.head.weight.detach().abs().sum()) > 0
    assert torch.equal(first.reference.model.lm_head.weight, fresh.reference.model.lm_head.weight)


@pytest.mark.parametrize(
    ("stop_after", "overrides"),
    [
        (1, ()),
        (2, ()),
        (3, ()),
        (2, ("align.policy_update=ppo",)),
        (3, ("align.method=selfplay",)),
        (2, ("align.sft_coefficient_start=0.5",)),
        (2, ("align.discriminator.init=shared_trunk",)),
        (2, ("align.discriminator.init=ngrams",)),
        (2, ("align.min_held_out_auc=0.99",)),
        (2, AIRL_WITH_DROPOUT),
        (3, AIRL_WITH_DROPOUT),
    ],
)
def test_stopped_and_resumed_ends_with_the_same_weights(
    tmp_path: Path, stop_after: int, overrides: tuple[str, ...]
) -> None:
    whole, result, history = _run(tmp_path / "whole", *overrides)
    with pytest.raises(Preempted, match=f"Stopped at round {stop_after}"):
        _run(tmp_path / "parts", *overrides, stop_after=stop_after)
    resumed, again, resumed_history = _run(tmp_path / "parts", *overrides)
    assert _same(whole, resumed)
    assert again.compute_token_passes == result.compute_token_passes
    assert resumed_history.history == history.history


@pytest.mark.parametrize(
    "overrides",
    [
        ["align.divergence=js"],
        ["align.divergence=forward_kl", "align.level=token"],
        ["align.divergence=alpha:0.5", "align.level=token", "align.absorbing=false", "align.discount=0.9"],
        ["align.discriminator.loss=bradley_terry"],
        ["align.discriminator.loss=bradley_terry_variance", "align.level=token"],
        ["align.discriminator.loss=variational", "align.divergence=js"],
        ["align.discriminator.form=airl", "align.level=token"],
        ["align.discriminator.form=airl"],
        ["align.policy_update=ppo"],
        ["align.policy_update=ppo", "align.level=token", "align.discount=0.9"],
        ["align.method=selfplay"],
        ["align.method=selfplay", "align.selfplay.loss=ipo"],
        ["align.method=selfplay", "align.selfplay.loss=kto"],
        ["align.method=selfplay", "align.selfplay.loss=slic"],
        ["align.method=iterative_sft"],
        ["align.method=rlhf"],
        ["align.discriminator.init=shared_trunk"],
        ["align.discriminator.init=shared_trunk", "align.level=token", "align.discriminator.form=airl"],
        ["align.discriminator.init=shared_trunk", "align.policy_update=ppo"],
        ["align.discriminator.init=own", f"align.discriminator.own={OWN}"],
        ["align.discriminator.init=ngrams"],
        ["align.discriminator.init=ngrams", "align.level=token", "align.discriminator.form=airl"],
        ["align.discriminator.init=ngrams", "align.policy_update=ppo"],
        ["align.discriminator.init=ngrams", "align.method=rlhf"],
    ],
    ids=lambda overrides: ",".join(o.removeprefix("align.") for o in overrides),
)
def test_rows_of_the_table_run_by_configuration_alone(tmp_path: Path, overrides: list[str]) -> None:
    _, result, surroundings = _run(tmp_path, *overrides)
    last = surroundings.history[-1]
    assert result.num_rounds == 4
    assert {"reward", "kl", "policy_loss", "held_out_auc"} <= set(last)
    # The reward model of RLHF is frozen after its warm-up; every other discriminator keeps learning.
    assert ("discriminator_accuracy" in last) == ("align.method=rlhf" not in overrides)
    assert all(value == value for value in last.values())


def test_the_reward_of_rlhf_is_the_frozen_models_own_score_whatever_the_form(tmp_path: Path) -> None:
    plain, _, _ = _run(tmp_path / "plain", "align.method=rlhf")
    airl, _, _ = _run(tmp_path / "airl", "align.method=rlhf", "align.discriminator.form=airl")
    assert _same(plain, airl)


def test_a_table_of_ngrams_costs_no_passes_however_often_it_learns(tmp_path: Path) -> None:
    passes = {}
    for init, updates in (("ngrams", 1), ("ngrams", 3), ("sft", 1), ("sft", 3)):
        overrides = (f"align.discriminator.init={init}", f"align.discriminator.updates_per_round={updates}")
        passes[init, updates] = _run(tmp_path / f"{init}{updates}", *overrides)[1].compute_token_passes
    # But for its bias, which rounds to a token a batch at most.
    assert 0 <= passes["ngrams", 3] - passes["ngrams", 1] < 100 < passes["sft", 3] - passes["sft", 1]
    assert passes["ngrams", 1] < passes["sft", 1]


def test_warm_up_leaves_the_policy_alone(tmp_path: Path) -> None:
    _, _, surroundings = _run(tmp_path)
    assert "policy_loss" not in surroundings.history[0] and "policy_loss" in surroundings.history[1]


def test_shared_trunk_holds_the_reference_once_and_does_not_change_it(tmp_path: Path) -> None:
    config = align_config()
    policy, reference = random_policy("llama"), random_policy("llama")
    before = reference.model.lm_head.weight.detach().clone()
    batch = reference.batch([[5, 6]], [[7, 8, 9]])
    logp_before = reference.response_logps(batch).detach()
    discriminator = ScalarHead.shared_with(reference, rank=2, num_outputs=1, dropout=0.0)
    rows = examples(policy)
    align(Models(policy, reference, discriminator), rows[:18], rows[18:], config, 1, loop(tmp_path))
    with reference.without_adapters(), torch.no_grad():
        assert torch.equal(reference.response_logps(batch), logp_before)
    assert torch.equal(reference.model.get_base_model().lm_head.weight, before)
    discriminator.eval()
    discriminator.save(tmp_path / "saved", {"level": "sequence"})
    loaded = load_scalar_head(tmp_path / "saved", policy).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), discriminator(batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ["align.discriminator.init=sft"],
        ["align.discriminator.init=shared_trunk"],
        ["align.discriminator.init=own", f"align.discriminator.own={OWN}"],
        ["align.discriminator.init=ngrams"],
    ],
    ids=["sft", "shared_trunk", "own", "ngrams"],
)
def test_discriminator_round_trips_through_its_folder(tmp_path: Path, overrides: list[str]) -> None:
    models, _, _ = _run(tmp_path / "run", *overrides)
    models.discriminator.save(tmp_path / "saved", {})
    batch = models.policy.batch([[5, 6]], [[7, 8, 9]])
    models.discriminator.eval()
    with torch.no_grad():
        loaded = load_discriminator(tmp_path / "saved", models.policy).eval()
        assert torch.equal(loaded(batch), models.discriminator(batch))
        assert float(loaded(batch).abs().max()) > 0


def test_not_finite_reward_stops_before_the_update(tmp_path: Path) -> None:
    config = align_config()
    models = _models(config)
    with torch.no_grad():
        models.discriminator.head.bias.fill_(float("nan"))
    rows = examples(models.policy)
    expected = r"align round 0, discriminator update on rows \['row-.*nothing was updated"
    with pytest.raises(TrainingDiverged, match=expected):
        align(models, rows, [], config, 1, loop(tmp_path))


@pytest.mark.parametrize(("num_long", "refused"), [(1, False), (2, True)])
def test_responses_beyond_the_horizon_are_told_and_too_many_refused(
    tmp_path: Path, num_long: int, refused: bool
) -> None:
    config = align_config("align.num_rounds=1")
    models = _models(config)
    rows = examples(models.policy)
    rows[5 : 5 + num_long] = [replace(row, response=[9] * 13) for row in rows[5 : 5 + num_long]]
    reason = "13 response tokens exceed align.rollout.max_response_tokens of 12"
    if refused:
        with pytest.raises(
            ConfigError, match=rf"2 of 24 demonstrations .* \(allowed: 5%\); the first: row-5: {reason}"
        ):
            align(models, rows, [], config, 1, loop(tmp_path))
        return
    held_out = [replace(row, id=f"held-{row.id}") for row in rows[4:6]]
    result = align(models, rows, held_out, config, 1, loop(tmp_path))
    assert result.skipped == [{"id": "row-5", "reason": reason}]
    assert result.held_out_skipped == [{"id": "held-row-5", "reason": reason}]


def test_auc_by_hand() -> None:
    assert auc(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.0])) == (1 + 1 + 0.5 + 1) / 4


def test_replay_forgets_the_oldest_and_round_trips() -> None:
    replay = Replay(2)
    for index in range(3):
        replay.add([Sample(index, [index, 9], index % 2 == 0), Sample(index, [4], True)])
    assert [sample.row for sample in replay.samples] == [1, 1, 2, 2]
    other = Replay(2)
    other.restore(replay.tensors())
    assert other.rounds == replay.rounds


def test_nothing_to_align_on_is_refused(tmp_path: Path) -> None:
    config = align_config()
    with pytest.raises(ConfigError, match="There is no demonstration to align on"):
        align(_models(config), [], [], config, 1, loop(tmp_path))
