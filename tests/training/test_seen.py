from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models.families import random_policy
from training.helpers import align_config, examples, loop

from understudy.models.discriminator import create_discriminator
from understudy.models.language_model import LanguageModel, TokenBatch
from understudy.training.adversarial import align
from understudy.training.seen import SeenByReference
from understudy.training.state import Models

PROMPTS, RESPONSES = [[5, 6], [7], [5, 6], [7]], [[8, 9, 10], [10], [11, 12], [10]]


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
    torch.testing.assert_close(batch.seen_BTF, plain, atol=1e-5, rtol=1e-5)
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
        policy, reference = random_policy("llama"), random_policy("llama")
        reference.model.requires_grad_(False)
        torch.manual_seed(7)
        reader = create_discriminator(config.discriminator, 1, reference, lambda: pytest.fail("no copy is asked for"))
        if name == "alone":
            forward = reader.forward
            reader.forward = lambda batch, inner=forward: inner(  # type: ignore[method-assign]
                TokenBatch(
                    batch.ids_BS, batch.attention_BS, batch.response_BT, batch.mask_BT, batch.first_row, batch.num_whole
                )
            )
        rows, surroundings = examples(policy), loop(tmp_path / name)
        align(Models(policy, reference, reader), rows[:18], rows[18:], config, 1, surroundings)
        histories.append(surroundings.history)
    for shared, alone in zip(*histories, strict=True):
        assert shared == pytest.approx(alone, rel=1e-3, abs=1e-5)
