from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from models.families import FAMILIES
from training.helpers import examples, loop, random_policy, sft_config

from understudy.errors import Preempted, TrainingDiverged
from understudy.models.language_model import LanguageModel
from understudy.training.sft import SftResult, train_sft, validation_nll


def _weights(policy: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in policy.model.named_parameters()}


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def _run(folder: Path, *overrides: str, stop_after: int | None = None) -> tuple[LanguageModel, SftResult]:
    policy = random_policy("llama")
    rows = examples(policy)
    asked = iter(range(10**6))
    surroundings = loop(folder, lambda: stop_after is not None and next(asked) + 1 >= stop_after)
    return policy, train_sft(policy, rows[:18], rows[18:], sft_config("sft.epochs=4", *overrides), 1, surroundings)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_by_the_same_code(family: str, tmp_path: Path) -> None:
    policy = random_policy(family)
    rows = examples(policy)
    before = validation_nll(policy, rows[18:], 128, torch.no_grad)
    result = train_sft(policy, rows[:18], rows[18:], sft_config("sft.epochs=6"), 1, loop(tmp_path))
    after = validation_nll(policy, rows[18:], 128, torch.no_grad)
    assert after == pytest.approx(result.best_validation_nll, rel=1e-5)
    assert after < 0.6 * before


def test_the_last_weights_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    rows = examples(random_policy("llama"))
    train, others = rows[:18], rows[18:]
    # Held-out responses by chance: what is learned of the rule makes them ever less likely.
    generator = torch.Generator().manual_seed(0)
    held_out = [
        dataclasses.replace(row, response=torch.randint(5, 30, (len(row.response),), generator=generator).tolist())
        for row in others
    ]

    def run(folder: str, keep: str, stop_after: int = 10**6) -> tuple[LanguageModel, SftResult]:
        policy, asked = random_policy("llama"), iter(range(10**6))
        config = sft_config("sft.epochs=8", f"sft.keep={keep}")
        surroundings = loop(tmp_path / folder, lambda: next(asked) + 1 >= stop_after)
        return policy, train_sft(policy, train, held_out, config, 1, surroundings)

    (best, chosen), (last, result) = run("best", "best_nll"), run("last", "last")
    with pytest.raises(Preempted):
        run("parts", "last", stop_after=result.best_step + 2)
    assert _same(_weights(last), _weights(run("parts", "last")[0]))
    assert result.best_validation_nll == chosen.best_validation_nll and result.best_step + 2 < result.num_steps
    nll_best, nll_last = (validation_nll(policy, held_out, 128, torch.no_grad) for policy in (best, last))
    assert nll_best == pytest.approx(chosen.kept_validation_nll, rel=1e-5) and nll_last > 1.05 * nll_best
    assert nll_last == pytest.approx(result.kept_validation_nll, rel=1e-5)
    # Which weights are kept is decided at the end, whatever was asked for before.
    assert _same(_weights(best), _weights(run("last", "best_nll")[0]))


def test_two_runs_are_bit_identical(tmp_path: Path) -> None:
    (first, one), (second, two) = _run(tmp_path / "a"), _run(tmp_path / "b")
    assert _same(_weights(first), _weights(second))
    assert dataclasses.replace(one, train_seconds=0) == dataclasses.replace(two, train_seconds=0)


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_stopped_and_resumed_ends_with_the_same_weights(tmp_path: Path, stop_after: int) -> None:
    whole, result = _run(tmp_path / "whole")
    with pytest.raises(Preempted, match=f"Stopped at step {stop_after}; the state is saved"):
        _run(tmp_path / "parts", stop_after=stop_after)
    resumed, again = _run(tmp_path / "parts")
    assert _same(_weights(whole), _weights(resumed))
    assert (again.best_step, again.compute_token_passes) == (result.best_step, result.compute_token_passes)


def test_one_step_is_the_same_however_it_is_accumulated(tmp_path: Path) -> None:
    """All rows in one step: one micro-batch and several give the same token-normalised loss."""
    losses = {}
    for name, overrides in {
        "one": ["sft.batch_tokens=100000"],
        "many": ["sft.batch_tokens=60", "sft.micro_batches_per_step=1000"],
    }.items():
        policy = random_policy("llama")
        rows = examples(policy, 18)
        surroundings = loop(tmp_path / name)
        config = sft_config(*overrides, "sft.epochs=0.001")
        if name == "many":
            from understudy.data.batching import length_bucketed_batches

            count = len(length_bucketed_batches([row.num_tokens for row in rows], 60, 1, 0))
            assert count > 3
            config = config.model_copy(update={"micro_batches_per_step": count})
        train_sft(policy, rows, [], config, 1, surroundings)
        losses[name] = (surroundings.history[0]["loss"], surroundings.history[0]["gradient_norm"])
    assert losses["one"] == pytest.approx(losses["many"], rel=1e-5)


def test_loss_is_on_response_tokens_and_the_end_token_only(tmp_path: Path) -> None:
    policy = random_policy("llama")
    row = examples(policy, 1)[0]
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([row.prompt + row.response])).logits[0].log_softmax(-1)
        picked = [float(logits[len(row.prompt) - 1 + i, token]) for i, token in enumerate(row.response)]
    assert row.response[-1] == policy.end_token_id
    surroundings = loop(tmp_path)
    train_sft(policy, [row], [], sft_config("sft.epochs=1"), 1, surroundings)
    assert surroundings.history[0]["loss"] == pytest.approx(-sum(picked) / len(picked), rel=1e-4)


def test_not_finite_loss_stops_before_the_update_and_names_step_and_rows(tmp_path: Path) -> None:
    policy = random_policy("llama")
    with torch.no_grad():
        policy.model.lm_head.weight.fill_(float("nan"))
    before = _weights(policy)["model.norm.weight"]
    with pytest.raises(TrainingDiverged, match=r"sft step 0, rows \['row-.*loss is nan.*nothing was updated"):
        train_sft(policy, examples(policy)[:4], [], sft_config(), 1, loop(tmp_path))
    assert torch.equal(before, _weights(policy)["model.norm.weight"])


def test_longer_sft_stops_at_the_given_compute(tmp_path: Path) -> None:
    policy = random_policy("llama")
    rows = examples(policy)
    budget = 3 * 4 * sum(row.num_tokens for row in rows)
    result = train_sft(policy, rows, [], sft_config(), 1, loop(tmp_path), token_passes=budget)
    assert result.compute_token_passes == pytest.approx(budget, rel=0.1)


def test_label_smoothing_and_each_objective_change_the_gradient(tmp_path: Path) -> None:
    norms = set()
    for index, override in enumerate(
        ["sft.objective=token_nll", "sft.objective=occupancy", "sft.objective=trajectory", "sft.label_smoothing=0.2"]
    ):
        policy = random_policy("llama")
        surroundings = loop(tmp_path / str(index))
        train_sft(policy, examples(policy, 6), [], sft_config(override, "sft.epochs=1"), 1, surroundings)
        norms.add(round(surroundings.history[0]["gradient_norm"], 6))
    assert len(norms) == 4
