"""Decoding a token for every row by replaying one CUDA graph over a cache of fixed size.

On a GPU a small model's step is hundreds of short kernels whose launches take longer than they do; a graph launches
them at once. What changes from step to step lies in tensors that the graph reads: the tokens, their positions, the
column to write, the columns that may be seen. Without CUDA the same computation runs eagerly, which is how it is
tested. The capture and its replay have not been run on a GPU yet, so nothing uses them unless
`align.rollout.engine: graph` asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from understudy.errors import ConfigError
from understudy.models.decoding import FusedStepper, can_fuse, start_fused
from understudy.models.language_model import LanguageModel


def start_graph(policy: LanguageModel, prompts: Sequence[Sequence[int]], repeats: int, max_tokens: int) -> FusedStepper:
    """`understudy.models.decoding.start` with a graph.

    Raises:
        ConfigError: the policy is none that the fused computation knows.
    """
    if not can_fuse(policy):
        raise ConfigError(
            "align.rollout.engine is 'graph', which decodes a model of the Llama family in float32 and without "
            f"adapters; this one is a {policy.unwrapped.config.model_type}, has adapters, or computes in a lower "
            "precision. Use align.rollout.engine=native."
        )
    return start_fused(GraphStepper, policy, prompts, repeats, max_tokens)


class GraphStepper(FusedStepper):
    """`FusedStepper` with shapes that never change; rows that ended are decoded on until the batch is done."""

    loses_rows = False
    _graph: Any = None
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
        visible_BS = torch.full((len(token_B), size), -torch.inf, device=token_B.device)
        visible_BS[:, : self._columns] = 0.0 if self._padding_BS is None else self._padding_BS[:, : self._columns]
        self._visible_BS = visible_BS
        self.logits_BV = self.logits_BV.clone()
        for keys, values in zip(self._keys, self._values, strict=True):
            # Columns not yet written are masked, but an unset NaN would pass through the product with zero.
            keys[:, :, self._columns :] = 0.0
            values[:, :, self._columns :] = 0.0

    def _replay(self) -> None:
        if self._graph is None:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                # Writing a column twice with the same token changes nothing, so a warm-up is harmless.
                self._compute()
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._compute()
        self._graph.replay()

    def _compute(self) -> None:
        self.logits_BV.copy_(self._read(self._token_B))

    def _write(self, cache: Tensor, new_BKD: Tensor) -> None:
        cache.index_copy_(2, self._column, new_BKD.unsqueeze(2))

    def _seen(self, cache: Tensor) -> Tensor:
        return cache.flatten(0, 1)

    def _mask(self) -> Tensor:
        return self._by_head(self._visible_BS)
