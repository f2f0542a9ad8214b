"""How much each pair of a pairwise loss counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from understudy.objectives import divergence
from understudy.objectives.discriminator import DISCRIMINATOR_LOSSES, DiscriminatorScores

PAIRWISE = [name for name, loss in DISCRIMINATOR_LOSSES.items() if loss.pairwise]


def _side(score_B: Tensor, prompts: list[int] | None, weights: list[float] | None = None) -> DiscriminatorScores:
    score_B1, prompt_B = score_B[:, None], None if prompts is None else torch.tensor(prompts)
    weight_B = None if weights is None else torch.tensor(weights)
    return DiscriminatorScores(
        score_B1, torch.ones_like(score_B1).bool(), prompt_B, torch.zeros_like(score_B1), weight_B
    )


def _gradient_of_samples(name: str, expert: DiscriminatorScores, prompts: list[int], *weights: list[float]) -> Tensor:
    """Twice the loss's gradient in each sample's score where all scores are equal: the weight of the sample."""
    score_P = torch.zeros(len(prompts), requires_grad=True)
    loss = DISCRIMINATOR_LOSSES[name](expert, _side(score_P, prompts, *weights), divergence=divergence("reverse_kl"))
    (slope_P,) = torch.autograd.grad(2 * loss, score_P)
    return slope_P


@pytest.mark.parametrize("name", PAIRWISE)
@pytest.mark.parametrize("expert_rows", [[0, 0, 0, 0, 1], [0, 1], [0, 1, 1, 1]])
def test_a_prompt_counts_as_its_samples_do_however_often_its_expert_row_is_repeated(
    name: str, expert_rows: list[int]
) -> None:
    expert = _side(torch.zeros(len(expert_rows)), expert_rows)
    slope_P = _gradient_of_samples(name, expert, [0, 0, 0, 0, 1])
    torch.testing.assert_close(slope_P, torch.full((5,), 0.2))


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_samples_weight_is_its_own_and_an_experts_is_among_its_prompts(name: str) -> None:
    expert = _side(torch.tensor([0.0, 100.0, 0.0]), [0, 0, 1], [1.0, 0.0, 5.0])
    slope_P = _gradient_of_samples(name, expert, [0, 0, 1], [1.0, 3.0, 4.0])
    torch.testing.assert_close(slope_P, torch.tensor([0.125, 0.375, 0.5]))


@pytest.mark.parametrize("weighted", ["expert", "policy"])
def test_weights_without_prompts_are_refused_because_no_pair_would_read_them(weighted: str) -> None:
    sides = {
        name: _side(torch.zeros(2), None, [1.0, 3.0] if name == weighted else None) for name in ("expert", "policy")
    }
    with pytest.raises(ValueError, match="weights of pairs need prompt_B.*give both sides prompt ids"):
        DISCRIMINATOR_LOSSES["bradley_terry"](sides["expert"], sides["policy"], divergence=divergence("reverse_kl"))
