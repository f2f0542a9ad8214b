"""Proof 3 over five seeds: sampled responses and learned discriminators descend the exact divergence."""

from __future__ import annotations

import pytest
import torch

from understudy.exact.learned_proofs import everything_learned
from understudy.objectives import adversarial


@pytest.mark.parametrize("seed", range(5))
def test_everything_learned(seed: int) -> None:
    rows = list(everything_learned(4, 3, torch.Generator().manual_seed(seed)))
    assert len(rows) == 5
    assert all(row.passed for row in rows), rows
    assert rows[0].bound == pytest.approx(0.2208, abs=1e-4)  # (39 + 2 sqrt(39 x) + 2 x)/512, x = log 1e6


def test_a_reward_of_the_wrong_sign_learns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    right = adversarial.log_ratio
    monkeypatch.setattr(adversarial, "log_ratio", lambda scores: -right(scores))
    first = next(everything_learned(4, 3, torch.Generator().manual_seed(0)))
    assert not first.passed and first.error > 1
