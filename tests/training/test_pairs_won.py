"""What a pairwise loss leaves undefined, a constant of the prompt, takes no part in how well it tells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training.helpers import align_config, examples, loop, random_policy

from understudy.models.language_model import TokenBatch
from understudy.training.adversarial import objective_from
from understudy.training.discriminating import DiscriminatorTrainer, auc, pairs_won
from understudy.training.examples import Example
from understudy.training.methods import composed
from understudy.training.replay import Sample
from understudy.training.state import AlignState, Models

PAIRWISE = (
    ["align.method=rlhf"],
    ["align.discriminator.loss=bradley_terry"],
    ["align.discriminator.loss=bradley_terry", "align.level=token"],
    ["align.discriminator.loss=bradley_terry_variance"],
)


class _ByPrompt(nn.Module):
    """R = c(x) + 1 where the expert wrote the response, c(x) ~ 10 N(0, 1): always right about two of one prompt."""

    def __init__(self, rows: list[Example]) -> None:
        super().__init__()
        chance = torch.Generator().manual_seed(3)
        self.constant = {tuple(row.prompt): 10 * float(torch.randn((), generator=chance)) for row in rows}
        self.expert = {(*row.prompt, *row.response) for row in rows}
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, batch: TokenBatch) -> Tensor:
        score_B = []
        for ids_S, attention_S, mask_T in zip(batch.ids_BS, batch.attention_BS, batch.mask_BT, strict=True):
            ids = ids_S[attention_S.bool()].tolist()
            prompt = tuple(ids[: len(ids) - int(mask_T.sum())])
            score_B.append(self.constant[prompt] + float(tuple(ids) in self.expert))
        return torch.tensor(score_B)[:, None, None].expand(*batch.mask_BT.shape, 2) + self.shift


def _trainer(folder: Path, overrides: list[str], network: type[_ByPrompt] = _ByPrompt) -> DiscriminatorTrainer:
    config, _ = composed(align_config("align.discriminator.learning_rate=1e-9", *overrides))
    policy = random_policy("llama")
    rows = examples(policy, 35)
    models = Models(policy, random_policy("llama"), network(rows))  # type: ignore[arg-type]
    state = AlignState(models, rows[:14], rows[14:], config, objective_from(config), 1, loop(folder))
    return DiscriminatorTrainer(state)


@pytest.mark.parametrize("overrides", PAIRWISE, ids=lambda overrides: ",".join(overrides))
def test_all_pairs_of_one_prompt_won_is_one_whatever_the_prompts_constant(tmp_path: Path, overrides: list[str]) -> None:
    trainer = _trainer(tmp_path, overrides)
    assert trainer.held_out_auc() == 1.0
    assert trainer.update(trainer.state.sample_round())["discriminator_accuracy"] == pytest.approx(1.0)


def test_logits_of_a_loss_over_all_responses_are_compared_across_prompts(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, [])
    assert 0.5 < trainer.held_out_auc() < 0.65
    assert 0.4 < trainer.update(trainer.state.sample_round())["discriminator_accuracy"] < 0.65


def test_pairs_won_by_hand() -> None:
    expert, policy = torch.tensor([3.0, -5.0, 7.0, 0.0]), torch.tensor([2.0, -5.0, 9.0, -1.0])
    assert pairs_won(expert, policy) == (1 + 0.5 + 0 + 1) / 4
    assert auc(expert, policy) == (3 + 0.5 + 3 + 2) / 16


class _PerPrompt(_ByPrompt):
    """R = a weight of the prompt, 0 at first, where the expert wrote the response: its gradient is the prompt's."""

    def __init__(self, rows: list[Example]) -> None:
        super().__init__(rows)
        self.constant = dict.fromkeys(self.constant, 0.0)
        self.index = {prompt: index for index, prompt in enumerate(self.constant)}
        self.weight = nn.Parameter(torch.zeros(len(self.index)))

    def forward(self, batch: TokenBatch) -> Tensor:
        is_expert_BTn = super().forward(batch) - self.shift
        rows = zip(batch.ids_BS, batch.attention_BS, batch.mask_BT, strict=True)
        prompts = [
            tuple(ids_S[attention_S.bool()].tolist()[: -int(mask_T.sum())]) for ids_S, attention_S, mask_T in rows
        ]
        return is_expert_BTn * self.weight[[self.index[prompt] for prompt in prompts]][:, None, None]


def test_a_prompt_moves_a_pairwise_discriminator_in_proportion_to_its_samples(tmp_path: Path) -> None:
    overrides = [
        "align.discriminator.loss=bradley_terry",
        "align.discriminator.label_smoothing=0",
        "align.discriminator.batch_pairs=5",
        "align.discriminator.warmup_updates_per_round=1",
    ]
    trainer = _trainer(tmp_path, overrides, _PerPrompt)
    samples = [Sample(row, [7, 9], True) for row in (3, 3, 3, 3, 5)]
    told = trainer.update(samples)
    # Where all scores are 0 a pair's slope is a half: 4 of 5 samples are of one prompt.
    assert told["discriminator_gradient_norm"] == pytest.approx(0.5 * (0.8**2 + 0.2**2) ** 0.5, rel=1e-5)
