"""A proof that cannot fail proves nothing: each deliberate mistake in the production code makes `verify` fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
import torch

from understudy.exact import verify as proofs
from understudy.objectives import (
    adversarial,
    best_of_n,
    bradley_terry,
    discriminator,
    likelihood,
    masking,
    policy_gradient,
    ppo,
    selfplay,
)
from understudy.objectives.divergences import DIVERGENCES

Patch = pytest.MonkeyPatch


def _failing(numbers: set[int], vocab: int = 3, horizon: int = 3) -> list[str]:
    chosen = [proof for proof in proofs.PROOFS if proof[0] in numbers]
    failed = []
    for number, name, proof in chosen:
        rows: Iterator = proof(vocab, horizon, torch.Generator().manual_seed(number))
        try:
            failed += [row.statement for row in rows if not row.passed]
        except Exception as error:
            failed.append(f"{name}: {error}")
    return failed


def _negated(function: Callable) -> Callable:
    def negated(*args: object, **kwargs: object) -> object:
        value = function(*args, **kwargs)
        return (-value[0], *value[1:]) if isinstance(value, tuple) else -value

    return negated


def test_untouched_code_passes() -> None:
    assert _failing({1, 2, 4, 5, 6, 7, 8, 10, 11}) == []


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_sign_of_a_reward(monkeypatch: Patch, name: str) -> None:
    row = DIVERGENCES[name]
    wrong = dataclasses.replace(row, reward_at_log_ratio=_negated(row.reward_at_log_ratio))
    monkeypatch.setitem(DIVERGENCES, name, wrong)
    failed = _failing({1})
    assert any(name in statement for statement in failed)
    assert not any("js" in statement for statement in failed if name != "js")


def test_the_reward_found_in_other_peoples_code(monkeypatch: Patch) -> None:
    wrong = dataclasses.replace(DIVERGENCES["forward_kl"], reward_at_log_ratio=lambda h: -h * h.exp())
    monkeypatch.setitem(DIVERGENCES, "forward_kl", wrong)
    assert {"gradient, forward_kl, sequence", "descent, forward_kl, sequence: divergence reached"} <= set(
        _failing({1, 2})
    )


def test_a_constant_in_a_reward_is_noticed_without_absorbing_states_alone(monkeypatch: Patch) -> None:
    row = DIVERGENCES["js"]
    wrong = dataclasses.replace(row, reward_at_log_ratio=lambda h: row.reward_at_log_ratio(h) + 0.5)
    monkeypatch.setitem(DIVERGENCES, "js", wrong)
    failed = _failing({1})
    assert failed and all("js, token, not absorbing" in statement for statement in failed)


@pytest.mark.parametrize(
    ("module", "name", "numbers"),
    [
        (policy_gradient, "policy_gradient_loss", {1}),
        (adversarial, "airl_logits", {6}),
        (policy_gradient, "kl_penalty_to_reference", {11}),
        (adversarial, "leave_one_out", {1}),
        (adversarial, "leave_one_out_per_token", {1}),
        (bradley_terry, "preference_logit", {7}),
        (ppo, "ppo_clip_loss", {8}),
        (ppo, "generalised_advantage", {8}),
    ],
)
def test_a_sign(monkeypatch: Patch, module: object, name: str, numbers: set[int]) -> None:
    monkeypatch.setattr(module, name, _negated(getattr(module, name)))
    assert _failing(numbers)


@pytest.mark.parametrize("name", list(likelihood.LIKELIHOODS))
def test_sign_of_a_likelihood(monkeypatch: Patch, name: str) -> None:
    monkeypatch.setitem(likelihood.LIKELIHOODS, name, _negated(likelihood.LIKELIHOODS[name]))
    assert _failing({4})


@pytest.mark.parametrize("name", list(discriminator.DISCRIMINATOR_LOSSES))
def test_sign_of_a_discriminator_loss(monkeypatch: Patch, name: str) -> None:
    row = discriminator.DISCRIMINATOR_LOSSES[name]
    wrong = dataclasses.replace(row, function=_negated(row.function))
    monkeypatch.setitem(discriminator.DISCRIMINATOR_LOSSES, name, wrong)
    failed = _failing({5})
    assert failed and all(name in statement or "bound" in statement or "smoothing" in statement for statement in failed)


@pytest.mark.parametrize("name", list(selfplay.PREFERENCE_LOSSES))
def test_sign_of_a_preference_loss(monkeypatch: Patch, name: str) -> None:
    monkeypatch.setitem(selfplay.PREFERENCE_LOSSES, name, _negated(selfplay.PREFERENCE_LOSSES[name]))
    failed = _failing({8})
    assert failed and all(name in statement for statement in failed)


def test_elo_backwards(monkeypatch: Patch) -> None:
    right = bradley_terry.elo_update
    monkeypatch.setattr(bradley_terry, "elo_update", lambda a, b, won, **kw: right(a, b, 1 - won, **kw))
    assert set(_failing({7})) == {
        "20,000 games: largest error of a strength",
        "one game: step times (result - expected), the sum conserved",
    }


def test_worst_of_n(monkeypatch: Patch) -> None:
    right = best_of_n.best_of_n_distribution
    monkeypatch.setattr(best_of_n, "best_of_n_distribution", lambda p, score, n: right(p, -score, n))
    assert len(_failing({11})) >= 3


def test_likelihood_without_eos_as_printed(monkeypatch: Patch) -> None:
    right = likelihood.occupancy_weights

    def printed(mask_BT: torch.Tensor, **settings: object) -> torch.Tensor:
        return right(mask_BT, **settings) - mask_BT.double()  # K - k

    monkeypatch.setattr(likelihood, "occupancy_weights", printed)
    assert len(_failing({4})) == 13


def test_reward_to_go_without_the_absorbed_steps(monkeypatch: Patch) -> None:
    monkeypatch.setattr(policy_gradient, "absorbing_tail", lambda mask_BT, **_: torch.ones(len(mask_BT)).double())
    failed = _failing({1, 10})
    assert any(", absorbing," in statement for statement in failed)
    assert any("length bias" in statement for statement in failed)
    assert not any("not absorbing" in statement and "gradient" in statement for statement in failed)


def test_dropping_eos_from_the_mask(monkeypatch: Patch) -> None:
    right = masking.level_mask

    def without_eos(mask_BT: torch.Tensor, level: str) -> torch.Tensor:
        mask = right(mask_BT, level)
        return mask & ~masking.final_token_mask(mask_BT) if level == "token" else mask

    monkeypatch.setattr(adversarial, "level_mask", without_eos)
    failed = _failing({1, 5})
    assert any("token" in statement for statement in failed)


def test_a_proof_that_raises_is_a_failed_row(monkeypatch: Patch) -> None:
    monkeypatch.setattr(proofs, "PROOFS", ((9, "broken", lambda *_: 1 / 0),))
    (row,) = proofs.verify(4, 4, 0)
    assert not row.passed and "ZeroDivisionError" in row.statement and row.to_json()["error"] is None
