"""Mistakes that expectations forgive, found by mutating the code: each now fails a row of `verify`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from understudy.exact import pair_proofs, sample_proofs
from understudy.objectives import adversarial, discriminator, policy_gradient, ppo, selfplay

Patch = pytest.MonkeyPatch


def _failed(proof: Callable) -> list[str]:
    return [row.statement for row in proof(3, 3, torch.Generator().manual_seed(1)) if not row.passed]


def test_a_baseline_that_is_added(monkeypatch: Patch) -> None:
    right = policy_gradient.leave_one_out
    monkeypatch.setattr(adversarial, "leave_one_out", lambda r, k: 2 * r - right(r, k))
    assert _failed(sample_proofs.advantages) == ["each advantage, sequence: own return - mean of the others'"]


def test_a_ppo_clip_that_is_optimistic(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ppo.torch, "minimum", torch.maximum)
    assert "PPO-clip is pessimistic in both directions" in _failed(sample_proofs.ppo_definitions)


def test_pairs_across_prompts(monkeypatch: Patch) -> None:
    right = discriminator._pair_weights
    monkeypatch.setattr(discriminator, "_pair_weights", lambda *sides: torch.ones_like(right(*sides)))
    assert len(_failed(sample_proofs.discriminator_means)) == 2


def test_a_dpo_that_raises_its_own_samples(monkeypatch: Patch) -> None:
    def wrong(pairs: selfplay.PreferencePairs, *, beta: float) -> torch.Tensor:
        return pairs.mean(torch.nn.functional.softplus(-beta * (pairs.expert_ratio_B + pairs.sample_ratio_B)))

    monkeypatch.setitem(selfplay.PREFERENCE_LOSSES, "dpo", wrong)
    assert len(_failed(pair_proofs.preference_definitions)) == 3
