"""Decoding a token for every row by replaying one CUDA graph over a cache of fixed size.

On a GPU a small model's step is hundreds of short kernels whose launches take longer than they do; a graph launches
them at once. What changes from step to step lies in tensors that the graph reads: the tokens, the column to write,
the columns that may be seen. Without CUDA the same computation runs eagerly, which is how it is tested; the replay
itself has not been run on a GPU yet, so no sampler uses it unless asked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from understudy.models.decoding import FusedStepper, complex_pairs, plus


class GraphStepper(FusedStepper):
    """`FusedStepper` with shapes that never change; rows that ended are decoded on until the batch is done."""

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
        width, eps, rows = self._width, self._eps, len(self._token_B)
        hidden = self._embedding[self._token_B]
        shape, num_rotated = (hidden.shape[-1],), self._heads + self._key_heads
        rotation_BD = self._rotation_SD[self._position_B].unsqueeze(1)
        visible = self._visible_BS.repeat_interleave(self._key_heads, 0).unsqueeze(1)
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            mixed = linear(rms_norm(hidden, shape, eps=eps), layer.qkv, layer.qkv_bias).view(rows, -1, width)
            rotated = mixed[:, :num_rotated]
            if layer.query_norm is not None and layer.key_norm is not None:
                rotated = self._normed(rotated, layer.query_norm, layer.key_norm)
            rotated = torch.view_as_real(complex_pairs(rotated) * rotation_BD).flatten(2)
            keys.index_copy_(2, self._column, rotated[:, self._heads :].unsqueeze(2))
            values.index_copy_(2, self._column, mixed[:, num_rotated:].unsqueeze(2))
            query = rotated[:, : self._heads].reshape(rows * self._key_heads, -1, width)
            scores = torch.bmm(query, keys.flatten(0, 1).transpose(1, 2)) + visible
            context = torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(rows, -1)
            hidden = plus(hidden, context, layer.out, layer.out_bias)
            gated, up = linear(rms_norm(hidden, shape, eps=eps), layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            hidden = plus(hidden, silu(gated) * up, layer.down, layer.down_bias)
        self.logits_BV.copy_(linear(rms_norm(hidden, shape, eps=eps), self._head))
