"""What the frozen reference saw in the sequences of a round, each read once, for all who ask.

The discriminator's updates, its word on the samples and the penalty's log-probabilities come from one forward pass.

Shapes: B sequences, T response columns, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from understudy.models.language_model import LanguageModel, TokenBatch

Sequence_ = tuple[tuple[int, ...], tuple[int, ...]]  # prompt and response


class SeenByReference:
    """Features by sequence; good for as long as the reference stands still, held for a round.

    Args:
        reference: frozen.
        over_rows: runs a function over a batch, each process its own rows (`Processes.over_rows`).
        batch_tokens: read at once, at most.
        count: told how many tokens were read.
    """

    def __init__(
        self,
        reference: LanguageModel,
        over_rows: Callable[[Callable[[TokenBatch], Tensor], TokenBatch], Tensor],
        batch_tokens: int,
        count: Callable[[int], None],
    ) -> None:
        self.reference, self.over_rows, self.batch_tokens, self.count = reference, over_rows, batch_tokens, count
        self._held: dict[Sequence_, Tensor] = {}

    def forget(self) -> None:
        """Drop what was seen: another round begins."""
        self._held = {}

    @torch.no_grad()
    def read(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> None:
        """Read those of the sequences that have not been seen."""
        asked = dict.fromkeys(_keys(prompts, responses))
        # Sequences of one prompt next to each other: a prompt is read once a batch.
        new = sorted(key for key in asked if key not in self._held)
        while new:
            longest, num = 0, 0
            for prompt, response in new:
                longest = max(longest, len(prompt) + len(response))
                if num and (num + 1) * longest > self.batch_tokens:
                    break
                num += 1
            some, new = new[:num], new[num:]
            batch = self.reference.batch([prompt for prompt, _ in some], [response for _, response in some])
            seen_BTF = self.over_rows(self.reference.read, batch)
            self.count(batch.num_tokens)
            self._held |= {key: seen_BTF[row, : len(key[1])] for row, key in enumerate(some)}

    def attach(
        self, batch: TokenBatch, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> TokenBatch:
        """The batch of these sequences with what was seen in them, read now where it was not yet."""
        self.read(prompts, responses)
        seen = [self._held[key] for key in _keys(prompts, responses)]
        seen_BTF = seen[0].new_zeros(*batch.response_BT.shape, seen[0].shape[-1])
        for row, seen_tF in enumerate(seen):
            seen_BTF[row, : len(seen_tF)] = seen_tF
        return replace(batch, seen_BTF=seen_BTF)


def _keys(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Sequence_]:
    return [(tuple(prompt), tuple(response)) for prompt, response in zip(prompts, responses, strict=True)]
