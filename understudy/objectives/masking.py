"""Masks over responses, and the absorbing state after EOS (source note, 3.1).

Shapes: B sequences, T token columns, R response columns. `mask_BT` is 1 where a column holds a response token
(EOS included) and 0 elsewhere; the response is one contiguous run per row, wherever it starts.
Time: position k counts response tokens from 0; a response y_0..y_K has K + 1 tokens; the horizon C is the largest
number of response tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def response_mask(num_tokens_B: Tensor, num_columns: int) -> Tensor:
    """Boolean mask [B, T] of responses that start at column 0 and have `num_tokens_B` tokens, EOS included."""
    return torch.arange(num_columns, device=num_tokens_B.device)[None, :] < num_tokens_B[:, None]


def where_masked(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Keep the masked elements, 0 elsewhere: multiplying by the mask would let a NaN or -inf of padding through."""
    return torch.where(mask_BT.bool(), value_BT, torch.zeros_like(value_BT))


def masked_mean(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the masked elements; 0 when there is none."""
    return where_masked(value_BT, mask_BT).sum() / mask_BT.bool().sum().clamp(min=1)


def at_least_float32(value: Tensor) -> Tensor:
    """The value in float32 if it is narrower: a sum of 2,048 ones in bfloat16 is 256."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def positions(mask_BT: Tensor) -> Tensor:
    """Position k >= 0 of each response token, counted from the response's first token; 0 before it."""
    return (mask_BT.long().cumsum(dim=1) - 1).clamp(min=0)


def final_token_mask(mask_BT: Tensor) -> Tensor:
    """Boolean mask of the last response token of each row (EOS, or the token at the horizon)."""
    mask = mask_BT.bool()
    after = torch.nn.functional.pad(mask[:, 1:], (0, 1), value=False)
    return mask & ~after


def level_mask(mask_BT: Tensor, level: str) -> Tensor:
    """Positions that a discriminator scores: all response tokens at `token` level, the last one at `sequence` level.

    Raises:
        ValueError: level is neither.
    """
    if level == "token":
        return mask_BT.bool()
    if level == "sequence":
        return final_token_mask(mask_BT)
    raise ValueError(f"level is {level!r}; it is 'token' or 'sequence'.")


def hold_after_end(values_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Shift each row's masked values to column 0 and repeat the last one to the right, as an absorbing state does.

    Returns:
        values_BR, where R is the largest number of masked values in a row, and the boolean mask_BR of real values.
    """
    mask = mask_BT.bool()
    count_B = mask.sum(dim=1)
    width = int(count_B.max()) if count_B.numel() else 0
    first_B = mask.int().argmax(dim=1)
    column_R = torch.arange(width, device=mask.device)
    index_BR = first_B[:, None] + torch.minimum(column_R[None, :], (count_B[:, None] - 1).clamp(min=0))
    return values_BT.gather(1, index_BR), column_R[None, :] < count_B[:, None]


def geometric_sum(count: Tensor, discount: float) -> Tensor:
    """1 + discount + ... + discount^(count-1), elementwise, 0 for count <= 0; float64 inside."""
    number = count.clamp(min=0).to(torch.float64)
    if discount == 1.0:
        return number
    return -torch.expm1(number * torch.log(torch.tensor(discount, dtype=torch.float64))) / (1 - discount)


def require_within_horizon(num_tokens_B: Tensor, horizon: int) -> None:
    """Raise ValueError when a response has more tokens than the horizon."""
    longest = int(num_tokens_B.max()) if num_tokens_B.numel() else 0
    if longest > horizon:
        raise ValueError(f"a response has {longest} tokens, the horizon is {horizon}; raise max_response_tokens.")


def absorbing_tail(mask_BT: Tensor, *, horizon: int, discount: float, finished_B: Tensor) -> Tensor:
    """Weight of the last token's reward when EOS is absorbing: 1 + discount + ... over itself and the C-1-K held steps.

    Shape [B]; exactly 1 for a row that did not reach EOS (`finished_B` false) or ended at the horizon.

    Raises:
        ValueError: a response is longer than the horizon.
    """
    num_tokens_B = mask_BT.long().sum(dim=1)
    require_within_horizon(num_tokens_B, horizon)
    steps_B = torch.where(finished_B.bool(), horizon - num_tokens_B + 1, torch.ones_like(num_tokens_B))
    return geometric_sum(steps_B, discount)
