"""Likelihood sums and weights by hand."""

from __future__ import annotations

import pytest
import torch

from understudy.objectives.likelihood import nll_sum_and_weight, occupancy_weights

LOGP = torch.tensor([[-1.0, -2.0, -4.0, -7.0], [-1.0, -1.0, -1.0, -1.0]], dtype=torch.float64)
MASK = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1]])  # K + 1 = 2 and 4 tokens; one starts late
SETTINGS = {"horizon": 5, "discount": 1.0, "absorbing": False}


@pytest.mark.parametrize(
    ("name", "absorbing", "discount", "total", "weight"),
    [
        ("token_nll", False, 1.0, 6 + 4, 6),
        ("trajectory", False, 1.0, 6 + 4, 2),
        ("occupancy", False, 1.0, (2 * 2 + 1 * 4) + (4 + 3 + 2 + 1), 3 + 10),
        ("occupancy", True, 1.0, (5 * 2 + 4 * 4) + (5 + 4 + 3 + 2), 9 + 14),
        ("occupancy", False, 0.5, (1.5 * 2 + 0.5 * 4) + (1.875 + 0.875 + 0.375 + 0.125), 2 + 3.25),
    ],
)
def test_sum_and_weight(name: str, absorbing: bool, discount: float, total: float, weight: float) -> None:
    got = nll_sum_and_weight(name, LOGP, MASK, horizon=5, discount=discount, absorbing=absorbing)
    assert got[0].item() == pytest.approx(total)
    assert got[1].item() == pytest.approx(weight)


def test_eos_counts_unlike_in_the_printed_equation() -> None:
    last = occupancy_weights(MASK, horizon=5, discount=1.0, absorbing=False)[1, 3]
    assert last == 1  # Eq 12 prints (K - k)/K = 0 here, so stopping would never be learned
    assert occupancy_weights(MASK, horizon=5, discount=1.0, absorbing=True)[0, 2] == 4


def test_a_row_of_a_split_batch_adds_up() -> None:
    whole = nll_sum_and_weight("occupancy", LOGP, MASK, **SETTINGS)  # type: ignore[arg-type]
    parts = [nll_sum_and_weight("occupancy", LOGP[i : i + 1], MASK[i : i + 1], **SETTINGS) for i in (0, 1)]  # type: ignore[arg-type]
    assert sum(part[0] for part in parts) == whole[0]
    assert sum(part[1] for part in parts) == whole[1]


def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'token_nll'"):
        nll_sum_and_weight("token_nl", LOGP, MASK, **SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="4 tokens, the horizon is 3"):
        nll_sum_and_weight("occupancy", LOGP, MASK, horizon=3, discount=1.0, absorbing=True)
