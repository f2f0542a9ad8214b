"""What the frozen reference saw in the sequences of a round, each read once, for all who ask.

The discriminator's updates, its word on the samples and the penalty's log-probabilities come from one forward pass.

Shapes: B sequences, T response columns, U = T + 1, H hidden width; u and t of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from understudy.models.language_model import LanguageModel, Seen, TokenBatch

Sequence_ = tuple[tuple[int, ...], tuple[int, ...]]  # prompt and response


class SeenByReference:
    """By sequence; good for as long as the reference stands still, held for a round.

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
        self._held: dict[Sequence_, tuple[Tensor, Tensor]] = {}  # hidden_uH and logp_t

    def forget(self) -> None:
        """Drop what was seen: the round is over."""
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
            seen_BUX = self.over_rows(self._whole, batch)
            self.count(batch.num_tokens)
            for row, (prompt, response) in enumerate(some):
                # Copies: a view would keep the padding of its whole batch.
                seen_uX = seen_BUX[row, : len(response) + 1].clone()
                self._held[prompt, response] = seen_uX[:, :-1], seen_uX[1:, -1]

    def _whole(self, batch: TokenBatch) -> Tensor:
        """Hidden states and log-probabilities in one tensor, as processes exchange them, shape (B, U, H + 1)."""
        seen = self.reference.read(batch)
        return torch.cat([seen.hidden_BUH, pad(seen.logp_BT, (1, 0))[..., None]], dim=-1)

    def attach(
        self, batch: TokenBatch, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> TokenBatch:
        """The batch of these sequences with what was seen in them, read now where it was not yet."""
        self.read(prompts, responses)
        held = [self._held[key] for key in _keys(prompts, responses)]
        hidden_uH, logp_t = held[0]
        num_rows, num_columns = batch.response_BT.shape
        hidden_BUH = hidden_uH.new_zeros(num_rows, num_columns + 1, hidden_uH.shape[1])
        logp_BT = logp_t.new_zeros(num_rows, num_columns)
        for row, (hidden_uH, logp_t) in enumerate(held):
            hidden_BUH[row, : len(hidden_uH)], logp_BT[row, : len(logp_t)] = hidden_uH, logp_t
        return replace(batch, seen=Seen(hidden_BUH, logp_BT))


def _keys(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[Sequence_]:
    return [(tuple(prompt), tuple(response)) for prompt, response in zip(prompts, responses, strict=True)]
