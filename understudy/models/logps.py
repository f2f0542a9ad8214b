"""Log-probabilities of chosen tokens, without logits of a whole batch where those would be large.

Shapes: M tokens, V vocabulary, H hidden width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

# Logits above this are made in portions: twice through the head costs less than memory that is not there.
WHOLE_LOGITS = 1 << 26


def chosen_logps(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of `ids` under `logits` (one more dimension, V), float32, of the shape of `ids`."""
    flat = cross_entropy(logits.float().flatten(0, -2), ids.flatten(), reduction="none")
    return -flat.view(ids.shape)


def head_logps(hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, id_M: Tensor) -> Tensor:
    """Log-probability of tokens from the hidden states before them, shape (M,).

    At most `WHOLE_LOGITS` logits exist at a time, forwards and backwards; the backward pass makes them again.
    """
    rows = max(1, WHOLE_LOGITS // weight_VH.shape[0])
    if rows >= len(id_M):
        return chosen_logps(linear(hidden_MH, weight_VH, bias_V), id_M)
    return cast(Tensor, _Portions.apply(hidden_MH, weight_VH, bias_V, id_M, rows))  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def answering_logps(head: Any, id_M: Tensor) -> Iterator[None]:
    """Within this context an output layer, asked for logits (1, M, V), answers log-probabilities of tokens, (1, M, 1).

    For models that must be called as a whole, since their weights are in one piece only while they are called.
    """

    def forward(hidden_1MH: Tensor) -> Tensor:
        return head_logps(hidden_1MH[0], head.weight, head.bias, id_M)[None, :, None]

    before = vars(head).get("forward")
    head.forward = forward
    try:
        yield
    finally:
        del head.forward
        if before is not None:
            head.forward = before


class _Portions(torch.autograd.Function):
    """log softmax(W h + b)[id] a portion of rows at a time."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, id_M: Tensor, rows: int
    ) -> Tensor:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden_MH.dtype
        hidden_MH = hidden_MH.to(dtype)
        ctx.save_for_backward(hidden_MH, weight_VH, bias_V, id_M)
        ctx.rows, weight = rows, weight_VH.to(dtype)
        parts = [slice(start, start + rows) for start in range(0, len(id_M), rows)]
        return torch.cat([chosen_logps(linear(hidden_MH[part], weight, bias_V), id_M[part]) for part in parts])

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient_M: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MH, weight_VH, bias_V, id_M = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        weight = weight_VH.to(hidden_MH.dtype)
        from_hidden = torch.empty_like(hidden_MH) if wants_hidden else None
        from_weight = torch.zeros_like(weight_VH) if wants_weight else None
        from_bias = torch.zeros_like(bias_V) if wants_bias else None
        for start in range(0, len(id_M), ctx.rows):
            part = slice(start, start + ctx.rows)
            hidden, gradient = hidden_MH[part], gradient_M[part, None]
            # d logp[id] / d logits = onehot(id) - softmax.
            logits = linear(hidden, weight, bias_V).float().softmax(-1).mul_(-gradient)
            logits.scatter_add_(1, id_M[part, None], gradient.float())
            logits = logits.to(hidden.dtype)
            if from_hidden is not None:
                from_hidden[part] = logits @ weight
            if from_weight is not None:
                from_weight += logits.T @ hidden  # summed over portions in the weight's own precision
            if from_bias is not None:
                from_bias += logits.sum(0)
            del logits  # or it would live while the next portion's are made
        return from_hidden, from_weight, from_bias, None, None
