"""`understudy objectives verify` ends with 1 under each mistake that published code makes; new rows are proven."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from typer.testing import CliRunner

from understudy.cli.objectives import app
from understudy.config import DiscriminatorConfig, SelfPlayConfig, SftConfig
from understudy.exact import best_of_n_proofs, preference_proofs
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
from understudy.objectives.divergences import DIVERGENCES, Divergence

Patch = pytest.MonkeyPatch


def _verify(patch: Patch, *numbers: int) -> tuple[int, str]:
    """Exit code and output of the command, restricted to the proofs that the mistake concerns."""
    patch.setattr(proofs, "PROOFS", tuple(proof for proof in proofs.PROOFS if proof[0] in numbers))
    done = CliRunner().invoke(app, ["verify", "--vocab", "3", "--horizon", "3", "--seed", "4"])
    return done.exit_code, done.output


def _negated(function: Callable) -> Callable:
    def negated(*args: object, **kwargs: object) -> object:
        value = function(*args, **kwargs)
        return (-value[0], *value[1:]) if isinstance(value, tuple) else -value  # type: ignore[operator]

    return negated


def test_untouched_it_ends_with_0(monkeypatch: Patch) -> None:
    code, output = _verify(monkeypatch, 1, 4, 5, 7, 10)
    assert code == 0 and "Proven." in output and "FAIL" not in output


@pytest.mark.parametrize("name", list(DIVERGENCES))
@pytest.mark.parametrize(
    ("field", "number"),
    [("reward_at_log_ratio", 1), ("generator", 1), ("slope_at_log_ratio", 5), ("conjugate_generator", 5)],
)
def test_the_sign_of_each_function_of_each_divergence(monkeypatch: Patch, name: str, field: str, number: int) -> None:
    row = DIVERGENCES[name]
    monkeypatch.setitem(DIVERGENCES, name, dataclasses.replace(row, **{field: _negated(getattr(row, field))}))
    code, output = _verify(monkeypatch, number)
    assert code == 1 and "FAILED" in output


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "log_d"])
def test_the_sign_of_a_reward_offset(monkeypatch: Patch, name: str) -> None:
    row = DIVERGENCES[name]
    monkeypatch.setitem(DIVERGENCES, name, dataclasses.replace(row, reward_offset=-row.reward_offset))
    assert _verify(monkeypatch, 1)[0] == 1


@pytest.mark.parametrize(
    ("module", "name", "number"),
    [
        (policy_gradient, "policy_gradient_loss", 1),
        (policy_gradient, "reward_to_go", 10),
        (adversarial, "log_ratio", 1),
        (ppo, "generalised_advantage", 1),
        (ppo, "ppo_clip_loss", 1),
        (ppo, "fold_absorbing", 1),
        (bradley_terry, "log_win_probability", 7),
        (bradley_terry, "reward_model_loss", 7),
        (bradley_terry, "preference_logit", 7),
        (discriminator, "reward_model_loss", 5),
        (likelihood, "occupancy_weights", 4),
    ],
)
def test_the_sign_of_a_function(monkeypatch: Patch, module: object, name: str, number: int) -> None:
    monkeypatch.setattr(module, name, _negated(getattr(module, name)))
    assert _verify(monkeypatch, number)[0] == 1


def test_the_sign_of_the_value_loss(monkeypatch: Patch) -> None:
    monkeypatch.setattr(ppo, "value_loss", _negated(ppo.value_loss))
    rows = list(preference_proofs.rlhf(3, 3, torch.Generator().manual_seed(0)))
    assert [row.statement for row in rows if not row.passed] == [
        "PPO with beta = 1: KL(expert || policy) reached / at start"
    ]


def test_keeping_the_worst(monkeypatch: Patch) -> None:
    right = best_of_n.select_best
    monkeypatch.setattr(best_of_n, "select_best", lambda score, *rest: right(-score, *rest))
    rows = list(best_of_n_proofs.best_of(3, 3, torch.Generator().manual_seed(0)))
    assert [row.statement for row in rows if not row.passed] == ["100,000 selections match it: total variation"]


def test_the_reward_of_other_peoples_fairl(monkeypatch: Patch) -> None:
    row = DIVERGENCES["forward_kl"]
    wrong = dataclasses.replace(row, reward_at_log_ratio=lambda h: -h * h.exp())
    monkeypatch.setitem(DIVERGENCES, "forward_kl", wrong)
    assert _verify(monkeypatch, 1)[0] == 1


def test_dropping_eos(monkeypatch: Patch) -> None:
    right = masking.level_mask

    def without_eos(mask_BT: torch.Tensor, level: str) -> torch.Tensor:
        return right(mask_BT, level) & ~masking.final_token_mask(mask_BT)

    with monkeypatch.context() as patch:
        patch.setattr(adversarial, "level_mask", without_eos)
        assert _verify(patch, 1)[0] == 1
    for name, loss in likelihood.LIKELIHOODS.items():
        with monkeypatch.context() as patch:

            def cut(logp: torch.Tensor, mask: torch.Tensor, loss: Callable = loss, **settings: object) -> object:
                return loss(logp, mask & ~masking.final_token_mask(mask), **settings)

            patch.setitem(likelihood.LIKELIHOODS, name, cut)
            assert _verify(patch, 4)[0] == 1, name


def test_a_negative_seed_is_refused() -> None:
    done = CliRunner().invoke(app, ["verify", "--seed", "-1"])
    assert done.exit_code != 0 and "--seed -1 is negative; give a seed of 0 or more" in str(done.exception)


def test_an_added_preference_loss_is_one_function_and_is_proven(monkeypatch: Patch) -> None:
    def exponential(pairs: selfplay.PreferencePairs, *, beta: float) -> torch.Tensor:
        return pairs.mean((-beta * (pairs.expert_ratio_B - pairs.sample_ratio_B)).exp())

    monkeypatch.setitem(selfplay.PREFERENCE_LOSSES, "exponential", exponential)
    rows = [
        row for row in preference_proofs.self_play(3, 3, torch.Generator().manual_seed(0)) if "expon" in row.statement
    ]
    assert len(rows) == 3 and all(row.passed for row in rows)
    assert selfplay.preference_loss("exponential") is exponential


def test_an_added_divergence_is_one_row_and_is_proven(monkeypatch: Patch) -> None:
    hellinger = Divergence.from_generator("hellinger", lambda u: 2 * (u.sqrt() - 1) ** 2)
    monkeypatch.setitem(DIVERGENCES, "hellinger", hellinger)
    code, output = _verify(monkeypatch, 1, 5)
    assert code == 0 and output.count("gradient, hellinger") == 10


def test_the_params_name_what_the_tables_hold() -> None:
    tables = (
        (SelfPlayConfig, "loss", selfplay.PREFERENCE_LOSSES),
        (DiscriminatorConfig, "loss", discriminator.DISCRIMINATOR_LOSSES),
        (SftConfig, "objective", likelihood.LIKELIHOODS),
    )
    for section, field, table in tables:
        assert set(get_args(section.model_fields[field].annotation)) == set(table)
