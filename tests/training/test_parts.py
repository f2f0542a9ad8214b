"""An update of discriminator or self-play in parts is the update at once, with the activations of a part."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training.helpers import align_config, examples, loop, random_policy

from understudy.models.discriminator import create_discriminator
from understudy.models.language_model import TokenBatch
from understudy.training.adversarial import objective_from
from understudy.training.discriminating import DiscriminatorTrainer
from understudy.training.policy_updates import SelfPlay
from understudy.training.state import AlignState, Models

SETTINGS = [
    [],
    ["align.level=token"],
    ["align.discriminator.form=airl"],
    ["align.discriminator.loss=bradley_terry"],
    ["align.discriminator.loss=bradley_terry_variance"],
    ["align.discriminator.loss=variational"],
]


def _trainer(folder: Path, *overrides: str) -> DiscriminatorTrainer:
    config = align_config("align.discriminator.init=sft", "align.discriminator.batch_pairs=12", *overrides)
    policy = random_policy("llama")
    objective = objective_from(config)
    torch.manual_seed(5)
    network = create_discriminator(
        config.discriminator, objective.num_outputs, random_policy("llama"), lambda: random_policy("llama")
    )
    models = Models(policy, random_policy("llama"), network)
    rows = examples(policy, 35)
    return DiscriminatorTrainer(AlignState(models, rows[:14], rows[14:], config, objective, 1, loop(folder)))


def _gradients(trainer: DiscriminatorTrainer, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, float], torch.Tensor]:
    """Numbers and gradient of an update, which is not made."""
    found: list[torch.Tensor] = []

    def watched(network: torch.nn.Module, *_: object) -> float:
        found.extend(value.grad.flatten() for value in network.parameters() if value.grad is not None)
        return float(torch.cat(found).norm())

    monkeypatch.setattr("understudy.training.discriminating.finite_update", watched)
    numbers = trainer._step(trainer.state.sample_round()[:12], 0)
    return numbers, torch.cat(found)


@pytest.mark.parametrize("settings", SETTINGS, ids=",".join)
def test_parts_give_the_loss_and_the_gradient_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    settings = [*settings, "align.discriminator.dropout=0.0"]
    whole, gradient = _gradients(_trainer(tmp_path / "whole", *settings), monkeypatch)
    told, found = _gradients(_trainer(tmp_path / "parts", *settings, "align.micro_batch_tokens=40"), monkeypatch)
    assert told == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert float((found - gradient).norm() / gradient.norm()) < 1e-4


def test_no_more_tokens_than_asked_for_have_activations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer(tmp_path, "align.micro_batch_tokens=60", "align.discriminator.dropout=0.5")
    read, seen = trainer.module.forward, []

    def watched(batch: TokenBatch, *rest: object, **more: object) -> torch.Tensor:
        output: torch.Tensor = read(batch, *rest, **more)
        seen.append((batch.num_rows * batch.ids_BS.shape[1], torch.is_grad_enabled(), output.detach().clone()))
        return output

    monkeypatch.setattr(trainer.module, "forward", watched)
    before = trainer.state.passes
    trainer._step(trainer.state.sample_round()[:12], 0)
    outputs, again = [entry for entry in seen if not entry[1]], [entry for entry in seen if entry[1]]
    assert len(outputs) == len(again) > 2
    assert max(tokens for tokens, _, _ in again) <= 60
    for (_, _, first), (_, _, second) in zip(outputs, again, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)  # under the same dropout
    assert trainer.state.passes > before


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_self_play_in_parts_has_the_loss_and_the_gradient_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    found = []
    for budget in (8192, 40):
        settings = ["align.method=selfplay", f"align.selfplay.loss={loss}", f"align.micro_batch_tokens={budget}"]
        trainer = _trainer(tmp_path / str(budget), *settings, "align.selfplay.batch_pairs=12")
        update = SelfPlay(trainer.state, trainer)
        samples = trainer.state.sample_round()[:12]
        opponents = torch.linspace(-30, -20, 12), torch.linspace(-25, -24, 12)
        numbers = update._prefer(trainer.state.as_expert(samples), samples, *opponents)
        gradient = torch.cat([value.grad.flatten() for value in trainer.state.policy.model.parameters()])
        found.append((numbers, gradient))
    (whole, gradient), (told, other) = found
    assert told == pytest.approx(whole, rel=1e-5)
    assert float((other - gradient).norm() / gradient.norm()) < 1e-4
