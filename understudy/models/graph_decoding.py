"""Decoding a token for every row by replaying CUDA graphs over a cache of fixed size.

On a GPU a small model's step is hundreds of short kernels whose launches take longer than they do; a graph launches
them at once. What changes from step to step lies in tensors that the graph reads: the tokens, their positions, the
column to write, the columns that may be seen. How many columns are read is a part of the graph, so there is one for
every so many of them. Without CUDA the same computation runs eagerly, which is how it is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from understudy.models import decoding
from understudy.models.decoding import FusedStepper, Stepper, can_fuse, start_fused
from understudy.models.language_model import LanguageModel

# A graph reads whole blocks of columns: smaller ones read less for nothing, and more graphs take longer to capture.
_BLOCK = 64


def start(policy: LanguageModel, prompts: Sequence[Sequence[int]], repeats: int, max_tokens: int) -> Stepper:
    """`understudy.models.decoding.start`, by graphs on a GPU where the policy allows that."""
    if policy.device.type == "cuda" and can_fuse(policy):
        return start_fused(GraphStepper, policy, prompts, repeats, max_tokens)
    return decoding.start(policy, prompts, repeats, max_tokens)


class GraphStepper(FusedStepper):
    """`FusedStepper` with shapes that change only from block to block; rows that ended are decoded on until all have.

    The query heads that share a key head are asked as if they were positions of one sequence, so that a fused kernel
    reads keys and values once for all of them.
    """

    loses_rows = False
    _token_B: Tensor
    _column: Tensor
    _visible_BS: Tensor

    def step(self, token_B: Tensor) -> None:
        """Append a token to each row."""
        if not hasattr(self, "_token_B"):
            self._prepare(token_B)
        self._token_B.copy_(token_B)
        self._column.fill_(self._columns)
        self._visible_BS[:, self._columns] = 0.0
        if self._token_B.is_cuda:
            self._replay()
        else:
            self._compute()
        self._columns += 1
        self._position_B += 1

    def select(self, row_B: Tensor) -> None:
        """Refused: a graph's shapes are fixed.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("a CUDA graph cannot lose rows; decode on until all have ended")

    def _prepare(self, token_B: Tensor) -> None:
        size = self._keys[0].shape[2]
        self._token_B = token_B.clone()
        self._column = torch.zeros(1, dtype=torch.long, device=token_B.device)
        visible_BS = torch.full((len(token_B), size), -torch.inf, device=token_B.device, dtype=self._dtype)
        visible_BS[:, : self._columns] = 0.0 if self._padding_BS is None else self._padding_BS[:, : self._columns]
        self._visible_BS = visible_BS
        self.logits_BV = self.logits_BV.clone()
        self._graphs: dict[int, Any] = {}
        for keys, values in zip(self._keys, self._values, strict=True):
            # Columns not yet written are masked, but an unset NaN would pass through the product with zero.
            keys[:, :, self._columns :] = 0.0
            values[:, :, self._columns :] = 0.0

    def _room(self, columns: int) -> int:
        return _up_to_block(columns)

    @property
    def _num_read(self) -> int:
        """Columns that the next token's graph reads: whole blocks, its own column within."""
        return _up_to_block(self._columns + 1)

    def _replay(self) -> None:
        if self._num_read not in self._graphs:
            self._graphs[self._num_read] = self._captured()
        self._graphs[self._num_read].replay()

    def _captured(self) -> Any:
        if not self._graphs:
            # Libraries make their workspaces at the first call, which a capture does not allow.
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                # Writing a column twice with the same token changes nothing.
                self._compute()
            torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        with torch.cuda.graph(graph, pool=pool):
            self._compute()
        return graph

    def _compute(self) -> None:
        self.logits_BV.copy_(self._read(self._token_B))

    def _write(self, cache: Tensor, new_BKD: Tensor) -> None:
        cache.index_copy_(2, self._column, new_BKD.unsqueeze(2))

    def _mask(self) -> Tensor:
        return self._visible_BS[:, None, None, : self._num_read]

    def _seen(self, cache: Tensor) -> Tensor:
        return cache[:, :, : self._num_read]

    def _attend(self, query_BHD: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        rows = query_BHD.shape[0]
        query_BKGD = query_BHD.reshape(rows, self._key_heads, -1, self._width)
        keys, values = self._seen(keys), self._seen(values)
        return scaled_dot_product_attention(query_BKGD, keys, values, attn_mask=mask, scale=1.0).reshape(rows, -1)


def _up_to_block(columns: int) -> int:
    return -(-columns // _BLOCK) * _BLOCK
