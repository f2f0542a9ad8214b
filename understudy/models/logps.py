"""Log-probabilities of chosen tokens, without logits of a whole batch where those would be large.

Shapes: M tokens, V vocabulary, H hidden width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

from understudy.models.forwarding import forward_replaced
from understudy.models.portions import WHOLE_LOGITS, cpu_rows


def chosen_logps(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probability of `ids` under `logits` (one more dimension, V), float32, of the shape of `ids`."""
    flat = cross_entropy(logits.float().flatten(0, -2), ids.flatten(), reduction="none")
    return -flat.view(ids.shape)


def head_logps(hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, id_M: Tensor) -> Tensor:
    """Log-probability of tokens from the hidden states before them, shape (M,).

    At most `WHOLE_LOGITS` logits exist at a time, forwards and backwards; where these are not all, the backward pass
    makes them again.
    """
    logp_M: Tensor = _HeadLogps.apply(hidden_MH, weight_VH, bias_V, id_M, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return logp_M


@contextlib.contextmanager
def answering_logps(head: Any, id_M: Tensor) -> Iterator[None]:
    """Within this context an output layer, asked for logits (1, M, V), answers log-probabilities of tokens, (1, M, 1).

    For models that must be called as a whole, since their weights are in one piece only while they are called.
    """

    def forward(hidden_1MH: Tensor) -> Tensor:
        return head_logps(hidden_1MH[0], head.weight, head.bias, id_M)[None, :, None]

    with forward_replaced(head, forward):
        yield


class _HeadLogps(torch.autograd.Function):
    """log softmax(W h + b)[id], a portion of rows at a time, without a gradient by the logits in memory.

    That would be -g (softmax - onehot(id)), where g is the token's own. What is in brackets is kept, or made again, and
    g is multiplied into the narrow hidden states.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any, hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, id_M: Tensor, has_backward: bool
    ) -> Tensor:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else hidden_MH.dtype
        hidden_MH, weight = hidden_MH.to(dtype), weight_VH.to(dtype)
        logp_M, shape = torch.empty(len(id_M), device=id_M.device), (len(id_M), len(weight))
        keeps = has_backward and any(ctx.needs_input_grad[:3]) and shape[0] * shape[1] <= WHOLE_LOGITS
        excess_MV = hidden_MH.new_empty(shape) if keeps else None
        ctx.portions = _portions(*shape, hidden_MH.device)
        for part in ctx.portions:
            log_softmax_MV = _log_softmax(hidden_MH[part], weight, bias_V)
            logp_M[part] = log_softmax_MV.gather(1, id_M[part, None])[:, 0]
            if excess_MV is not None:
                excess_MV[part] = _excess(log_softmax_MV, id_M[part])
            del log_softmax_MV  # or it would live while the next portion's is made
        ctx.save_for_backward(hidden_MH, weight_VH, bias_V, id_M, excess_MV)
        return logp_M

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, gradient_M: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MH, weight_VH, bias_V, id_M, kept_MV = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        weight = weight_VH.to(hidden_MH.dtype)
        from_hidden = torch.empty_like(hidden_MH) if wants_hidden else None
        from_weight: Tensor | None = None
        from_bias = torch.zeros_like(bias_V) if wants_bias else None
        for part in ctx.portions if kept_MV is None else [slice(0, len(id_M))]:
            hidden, falls_M1 = hidden_MH[part], gradient_M[part, None].neg().to(hidden_MH.dtype)
            excess_MV = kept_MV
            if excess_MV is None:
                excess_MV = _excess(_log_softmax(hidden, weight, bias_V), id_M[part]).to(hidden.dtype)
            if from_hidden is not None:
                from_hidden[part] = (excess_MV @ weight).mul_(falls_M1)
            if wants_weight:
                from_weight = _plus_product(from_weight, excess_MV.T, hidden * falls_M1, weight_VH.dtype)
            if from_bias is not None:
                from_bias += (excess_MV.T @ falls_M1)[:, 0]
            del excess_MV
        return from_hidden, from_weight, from_bias, None, None


def _portions(num_rows: int, vocabulary: int, device: torch.device) -> list[slice]:
    """Rows whose logits are made at a time."""
    rows = WHOLE_LOGITS // vocabulary
    if device.type == "cpu":
        rows = min(rows, cpu_rows(vocabulary))
    return [slice(start, start + max(1, rows)) for start in range(0, num_rows, max(1, rows))]


def _log_softmax(hidden_MH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
    return linear(hidden_MH, weight_VH, bias_V).float().log_softmax(-1)


def _excess(log_softmax_MV: Tensor, id_M: Tensor) -> Tensor:
    """The softmax less onehot(id), in the place of the log-softmax and in its precision, which is enough."""
    return log_softmax_MV.exp_().scatter_add_(1, id_M[:, None], log_softmax_MV.new_full((len(id_M), 1), -1.0))


def _plus_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """Total + left right in a precision, in the place of the total."""
    if total is None:
        return (left @ right).to(dtype)
    return total.addmm_(left, right) if left.dtype == dtype else total.add_(left @ right)
