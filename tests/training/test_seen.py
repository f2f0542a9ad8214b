from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from models.families import random_policy
from training.helpers import align_config, examples, loop

from understudy.config import AlignConfig, LoraConfig
from understudy.errors import Preempted
from understudy.models.discriminator import create_discriminator
from understudy.models.language_model import LanguageModel, Seen, TokenBatch
from understudy.models.loading import with_lora
from understudy.tracker import ListTracker
from understudy.training.adversarial import align
from understudy.training.checkpoint import Checkpoints
from understudy.training.examples import Example
from understudy.training.loop import Loop, create_accelerator
from understudy.training.replay import Sample
from understudy.training.seen import SeenByReference
from understudy.training.state import AlignState, Models

PROMPTS, RESPONSES = [[5, 6], [7], [5, 6], [7]], [[8, 9, 10], [10], [11, 12], [10]]


def _models(config: AlignConfig) -> Models:
    policy, reference = random_policy("llama"), random_policy("llama")
    reference.model.requires_grad_(False)
    torch.manual_seed(7)
    return Models(policy, reference, create_discriminator(config.discriminator, 1, reference, lambda: reference))


def _rows(policy: LanguageModel | None = None) -> tuple[list[Example], list[Example]]:
    rows = examples(policy or random_policy("llama"))
    return rows[:18], rows[18:]


class _Counting:
    """A policy that notes which rows it reads."""

    def __init__(self, policy: LanguageModel, batch_tokens: int = 10_000) -> None:
        self.policy, self.rows, self.tokens = policy, [], []  # type: ignore[var-annotated]
        self.seen = SeenByReference(policy, self._over_rows, batch_tokens, self.tokens.append)

    def _over_rows(self, forward, batch: TokenBatch) -> torch.Tensor:  # type: ignore[no-untyped-def]
        self.rows.append(batch.num_rows)
        return forward(batch)


def test_each_sequence_is_read_once_and_is_what_a_plain_reading_gives() -> None:
    counting = _Counting(random_policy("llama"))
    policy, seen = counting.policy, counting.seen
    seen.read(PROMPTS[:2], RESPONSES[:2])
    batch = seen.attach(policy.batch(PROMPTS, RESPONSES), PROMPTS, RESPONSES)
    assert counting.rows == [2, 1] and counting.tokens == [7, 4]  # the fourth is the second again
    plain = policy.read(policy.batch(PROMPTS, RESPONSES))
    assert batch.seen is not None
    torch.testing.assert_close(batch.seen.hidden_BUH, plain.hidden_BUH, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batch.seen.logp_BT, plain.logp_BT, atol=1e-5, rtol=1e-5)
    # No more is held than the tokens need: 3 + 1, 1 + 1 and 2 + 1 positions of three distinct sequences.
    held = {hidden_uH.untyped_storage().data_ptr(): hidden_uH for hidden_uH, _ in seen._held.values()}
    num_bytes = sum(hidden_uH.untyped_storage().nbytes() for hidden_uH in held.values())
    assert num_bytes == (4 + 2 + 3) * (policy.hidden_size + 1) * 4
    seen.forget()
    seen.read(PROMPTS[:1], RESPONSES[:1])
    assert counting.rows == [2, 1, 1]


def test_a_reading_stays_within_its_tokens_but_never_stops() -> None:
    counting = _Counting(random_policy("llama"), batch_tokens=8)
    counting.seen.read([[1, 2]] * 4 + [[3] * 20], [[4], [5], [6], [7], [8]])
    assert counting.rows == [2, 2, 1]


@pytest.mark.parametrize("overrides", [[], ["align.level=token"]])
def test_a_run_is_that_of_a_reader_that_always_reads_for_itself(tmp_path: Path, overrides: list[str]) -> None:
    histories = []
    for name in ("shared", "alone"):
        config = align_config("align.discriminator.init=shared_trunk", *overrides)
        models = _models(config)
        reader = models.discriminator
        if name == "alone":
            forward = reader.forward
            reader.forward = lambda batch, inner=forward: inner(  # type: ignore[method-assign]
                TokenBatch(
                    batch.ids_BS, batch.attention_BS, batch.response_BT, batch.mask_BT, batch.first_row, batch.num_whole
                )
            )
        surroundings = loop(tmp_path / name)
        align(models, *_rows(), config, 1, surroundings)
        histories.append(surroundings.history)
    for shared, alone in zip(*histories, strict=True):
        assert shared == pytest.approx(alone, rel=1e-3, abs=1e-5)


def test_nothing_is_held_while_the_next_round_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    sample_round = AlignState.sample_round

    def noted(self: AlignState) -> list[Sample]:
        assert self.seen is not None
        held.append(len(self.seen._held))
        return sample_round(self)

    monkeypatch.setattr(AlignState, "sample_round", noted)
    config = align_config("align.discriminator.init=shared_trunk", "align.held_out_every_rounds=1")
    align(_models(config), *_rows(), config, 1, loop(tmp_path))
    assert held == [0] * 4


def test_the_reference_reads_as_it_trained_in_lower_precision_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precisions: list[bool] = []
    read = LanguageModel.read

    def noted(self: LanguageModel, batch: TokenBatch) -> Seen:
        precisions.append(torch.is_autocast_enabled("cpu"))
        return read(self, batch)

    monkeypatch.setattr(LanguageModel, "read", noted)
    config = align_config("align.discriminator.init=shared_trunk", "align.held_out_every_rounds=1")
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        surroundings = Loop(create_accelerator("bf16", "cpu"), ListTracker(), Checkpoints(tmp_path))
        align(_models(config), *_rows(), config, 1, surroundings)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert len(precisions) >= 8 and all(precisions)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_policy_with_adapters_is_its_own_reference_and_resumes_to_the_bit(tmp_path: Path, family: str) -> None:
    config = align_config("align.discriminator.init=shared_trunk")
    lora = LoraConfig(rank=2, alpha=4, dropout=0.3, target_modules="all-linear")
    ends = []
    for name, stops in (("whole", [None]), ("parts", [2, None])):
        for stop in stops:
            policy = with_lora(random_policy(family), lora, 1)
            torch.manual_seed(3)
            reader = create_discriminator(config.discriminator, 1, policy, lambda: pytest.fail("no copy is asked for"))
            asked = iter(range(1, 100))
            surroundings = loop(
                tmp_path / name, lambda stop=stop, asked=asked: stop is not None and next(asked) >= stop
            )  # type: ignore[misc]
            with contextlib.suppress(Preempted):
                align(Models(policy, policy, reader), *_rows(policy), config, 1, surroundings)
        ends.append([*policy.model.state_dict().values(), *reader.state_dict().values()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    plain = random_policy(family).model.state_dict()
    trained = policy.model.get_base_model().state_dict()
    assert all(torch.equal(trained[_in_adapters(name, trained)], value) for name, value in plain.items())


def _in_adapters(name: str, names: Mapping[str, Any]) -> str:
    layer, _, kind = name.rpartition(".")
    return name if name in names else f"{layer}.base_layer.{kind}"


def test_compute_is_by_the_size_of_what_computes(tmp_path: Path) -> None:
    passes = {}
    shapes = {
        "small": "{hidden_size: 8, intermediate_size: 8, num_layers: 1, num_heads: 1}",
        "large": "{hidden_size: 64, intermediate_size: 256, num_layers: 6, num_heads: 4}",
    }
    for name, shape in shapes.items():
        config = align_config("align.discriminator.init=own", f"align.discriminator.own={shape}")
        passes[name] = align(_models(config), *_rows(), config, 1, loop(tmp_path / name)).compute_token_passes
    copied, shared = (
        align(_models(config), *_rows(), config, 1, loop(tmp_path / kind)).compute_token_passes
        for kind in ("sft", "shared_trunk")
        if (config := align_config(f"align.discriminator.init={kind}", "align.discriminator.reader_width=32"))
    )
    assert passes["small"] < shared < copied < passes["large"]


def test_a_network_of_its_own_knows_all_ids_that_the_policy_can_write() -> None:
    config = align_config(
        "align.discriminator.init=own",
        "align.discriminator.own={hidden_size: 8, intermediate_size: 8, num_layers: 1, num_heads: 1}",
    )
    policy = random_policy("llama")
    policy.model.resize_token_embeddings(len(policy.tokenizer) + 64)  # padded, as published models are
    network = create_discriminator(config.discriminator, 1, policy, lambda: policy)
    beyond = len(policy.tokenizer) + 63
    assert network(policy.batch([[5]], [[beyond]])).shape == (1, 1, 1)
