"""Training forwards without padding; what several rows share, a prompt or all of it, is read once.

The linear layers see one row of real tokens, first the distinct prompts, then the responses; only attention lays
them out as rectangles. What a token sees is what it sees in the plain layout, so outputs and gradients are equal up
to rounding.

Shapes: N packed tokens, G distinct prompts of P columns, R distinct rows of T response columns, S = P + T,
M response tokens of all B rows, H heads of width D.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

IMPLEMENTATION = "understudy_packed"


@dataclass(frozen=True)
class Ragged:
    """Where sequences begin in rows of tokens that hold them end to end, and the end of all; int32.

    Attributes:
        prompt_G: of the prompts, among the packed tokens (G + 1).
        response_R: of the responses, among those after the prompts (R + 1).
        seen_R: of what a response may see, among `seen_K` (R + 1).
        seen_K: where those tokens stand among the packed ones: prompt and response, row by row.
        longest: tokens of the longest prompt, response, and of both together.
        num_prompt: tokens of all prompts.
    """

    prompt_G: Tensor
    response_R: Tensor
    seen_R: Tensor
    seen_K: Tensor
    longest: tuple[int, int, int]
    num_prompt: int


@dataclass(frozen=True)
class WholeRows:
    """A layout as one rectangle, where no prompt is shared: a row is a prompt and its response, end to end.

    Attributes:
        token_RS: where each token stands among the N; padding, on the right, repeats token 0.
        cell_N: the place of each packed token in the flattened (R, S).
    """

    token_RS: Tensor
    cell_N: Tensor


@dataclass(frozen=True)
class SharedPrompts:
    """A layout as two rectangles: distinct prompts, and responses, which see a prompt and themselves.

    Attributes:
        prompt_GP: where each prompt token stands among the N; padding, on the right, repeats token 0.
        from_prompt_N: for packed prompt tokens, where they stand in the flattened (G, P).
        key_RS: where the tokens stand that a response may see, prompt (padded on the right) and response.
        from_response_N: for packed response tokens, where they stand in the flattened (R, T).
        response_mask_RTS: True where a response token may see a token.
    """

    prompt_GP: Tensor
    from_prompt_N: Tensor
    key_RS: Tensor
    from_response_N: Tensor
    response_mask_RTS: Tensor


@dataclass(frozen=True)
class Packed:
    """A batch as one row of tokens.

    Attributes:
        ragged: its sequences end to end, for kernels that need no rectangles.
        rectangles: its layout for those that do.
        ids_N: token ids.
        position_N: positions within the sequence.
        before_M: for each response token in row order, where the token before it stands.
        token_M: where it stands itself.
        cell_M: its place in the flattened (B, T) of the plain layout.
    """

    ragged: Ragged
    rectangles: WholeRows | SharedPrompts
    ids_N: Tensor
    position_N: Tensor
    before_M: Tensor
    token_M: Tensor
    cell_M: Tensor

    def unpack(self, value_M: Tensor, like_BT: Tensor) -> Tensor:
        """Values of the response tokens in the plain layout, zero elsewhere, shape (B, T, …)."""
        flat = value_M.new_zeros(like_BT.numel(), *value_M.shape[1:])
        return flat.index_copy(0, self.cell_M, value_M).reshape(*like_BT.shape, *value_M.shape[1:])


def pack(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device) -> Packed:
    """Lay out a batch without padding; equal prompts and equal rows are read once. No prompt or response is empty."""
    prompt_of: dict[tuple[int, ...], int] = {}
    row_of: dict[tuple[int, tuple[int, ...]], int] = {}
    group_B = [prompt_of.setdefault(tuple(prompt), len(prompt_of)) for prompt in prompts]
    pairs = zip(group_B, map(tuple, responses), strict=True)
    row_B = torch.tensor([row_of.setdefault(pair, len(row_of)) for pair in pairs])
    group_R = torch.tensor([group for group, _ in row_of])
    num_prompt = torch.tensor([len(prompt) for prompt in prompt_of])
    num_response = torch.tensor([len(response) for _, response in row_of])
    column_P, column_T = torch.arange(int(num_prompt.max())), torch.arange(int(num_response.max()))
    real_GP, real_RT = column_P < num_prompt[:, None], column_T < num_response[:, None]
    start_G = num_prompt.cumsum(0) - num_prompt
    start_R = num_prompt.sum() + num_response.cumsum(0) - num_response
    prompt_GP, response_RT = (start_G[:, None] + column_P) * real_GP, (start_R[:, None] + column_T) * real_RT
    before_RT = torch.cat([(start_G + num_prompt - 1)[group_R, None], response_RT[:, :-1]], dim=1)
    position_GP, position_RT = column_P.expand_as(real_GP), num_prompt[group_R, None] + column_T
    position_N = torch.cat([position_GP[real_GP], position_RT[real_RT]])
    seen_RS = torch.cat([prompt_GP[group_R], response_RT], dim=1)
    real_BT = real_RT[row_B]
    packed = Packed(
        ragged=Ragged(
            prompt_G=_starts(num_prompt),
            response_R=_starts(num_response),
            seen_R=_starts(num_prompt[group_R] + num_response),
            seen_K=seen_RS[torch.cat([real_GP[group_R], real_RT], dim=1)],
            longest=(len(column_P), len(column_T), int((num_prompt[group_R] + num_response).max())),
            num_prompt=int(num_prompt.sum()),
        ),
        rectangles=_whole_rows(num_prompt, num_response, position_N)
        if len(prompt_of) == len(row_of)
        else SharedPrompts(
            prompt_GP=prompt_GP,
            from_prompt_N=real_GP.flatten().nonzero().squeeze(1),
            key_RS=seen_RS,
            from_response_N=real_RT.flatten().nonzero().squeeze(1),
            response_mask_RTS=_response_mask(real_GP, group_R, column_T),
        ),
        ids_N=torch.tensor([token for row in (*prompt_of, *(response for _, response in row_of)) for token in row]),
        position_N=position_N,
        before_M=before_RT[row_B][real_BT],
        token_M=response_RT[row_B][real_BT],
        cell_M=real_BT.flatten().nonzero().squeeze(1),
    )
    on_device: Packed = _to_device(packed, device)
    return on_device


def _whole_rows(num_prompt_R: Tensor, num_response_R: Tensor, position_N: Tensor) -> WholeRows:
    """The rectangle of rows whose prompts are their own: the first prompt is that of the first row, and so on."""
    row_R, longest = torch.arange(len(num_prompt_R)), int((num_prompt_R + num_response_R).max())
    row_N = torch.cat([row_R.repeat_interleave(num_prompt_R), row_R.repeat_interleave(num_response_R)])
    token_RS = torch.zeros(len(row_R), longest, dtype=torch.long)
    token_RS[row_N, position_N] = torch.arange(len(row_N))
    return WholeRows(token_RS, row_N * longest + position_N)


def _response_mask(real_GP: Tensor, group_R: Tensor, column_T: Tensor) -> Tensor:
    """Where a response token may see a token, (R, T, S); (1, T, S) where that is the same for all rows."""
    causal_RTT = (column_T[:, None] >= column_T).expand(len(group_R), -1, -1)
    mask_RTS = torch.cat([real_GP[group_R, None].expand(-1, len(column_T), -1), causal_RTT], dim=2)
    return mask_RTS[:1] if bool(real_GP.all()) else mask_RTS


def _to_device(value: Any, device: torch.device) -> Any:
    """Move the tensors of a dataclass, and of those within it."""
    if isinstance(value, Tensor):
        return value.to(device)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: _to_device(getattr(value, field.name), device) for field in fields(value)})


def _starts(lengths: Tensor) -> Tensor:
    """First place of each sequence and the end of the last, int32."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


_ACTIVE: ContextVar[Packed | None] = ContextVar("packed", default=None)


@contextlib.contextmanager
def reading(packed: Packed, model: Any) -> Iterator[dict[str, Tensor]]:
    """Within this context the model's attention reads `packed`; gives the arguments to call the model with."""
    _register()
    config = model.config
    before, token = config._attn_implementation, _ACTIVE.set(packed)
    config._attn_implementation = IMPLEMENTATION
    try:
        yield {"input_ids": packed.ids_N[None], "position_ids": packed.position_N[None]}
    finally:
        config._attn_implementation = before
        _ACTIVE.reset(token)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **named: Any,
) -> tuple[Tensor, None]:
    """Attention of a packed row, (1, H, N, D) to (1, N, H, D), as Hugging Face's attention interface asks for."""
    packed = cast(Packed, _ACTIVE.get())
    query_NHD, key_NHD, value_NHD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if _fits_ragged_kernel(value):
        return _attend_ragged(query_NHD, key_NHD, value_NHD, packed.ragged, scaling)[None], None
    return attend_in_rectangles(query_NHD, key_NHD, value_NHD, packed, scaling)[None], None


def _fits_ragged_kernel(value: Tensor) -> bool:
    """Whether the kernel for sequences of any lengths takes heads like these: it needs an Ampere GPU or a newer one."""
    width = value.shape[-1]
    fits = value.is_cuda and value.dtype == torch.bfloat16 and width % 8 == 0 and width <= 256
    return fits and _capability(value.device) >= (8, 0)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _attend_ragged(
    query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, ragged: Ragged, scaling: float | None
) -> Tensor:
    """By a kernel for sequences of any lengths; under autocast rotated queries and keys are float32 until here."""
    from torch.nn.attention.varlen import varlen_attn

    num_prompt, groups = ragged.num_prompt, query_NHD.shape[1] // key_NHD.shape[1]
    query, key = query_NHD.to(value_NHD.dtype), key_NHD.to(value_NHD.dtype)
    longest_prompt, longest_response, longest_seen = ragged.longest

    def causal(query: Tensor, key: Tensor, value: Tensor, *, starts: Any, most: tuple[int, int]) -> Any:
        if groups > 1:  # not every PyTorch in use lets heads share keys here
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        # A sequence's last query stands at its last key.
        return varlen_attn(
            query, key, value, starts[0], starts[1], most[0], most[1], scale=scaling, window_size=(-1, 0)
        )

    prompt = causal(
        *(tensor[:num_prompt] for tensor in (query, key, value_NHD)),
        starts=(ragged.prompt_G, ragged.prompt_G),
        most=(longest_prompt, longest_prompt),
    )
    response = causal(
        query[num_prompt:],
        *(tensor.index_select(0, ragged.seen_K) for tensor in (key, value_NHD)),
        starts=(ragged.response_R, ragged.seen_R),
        most=(longest_response, longest_seen),
    )
    return torch.cat([prompt, response])


def attend_in_rectangles(
    query_NHD: Tensor, key_NHD: Tensor, value_NHD: Tensor, packed: Packed, scaling: float | None
) -> Tensor:
    """Attention of packed tokens, (N, H, D), by the kernel for rectangles, which every device and precision has."""
    groups, layout = query_NHD.shape[1] // key_NHD.shape[1], packed.rectangles
    if groups > 1 and _shares_keys_slowly(value_NHD):
        key_NHD, value_NHD = key_NHD.repeat_interleave(groups, 1), value_NHD.repeat_interleave(groups, 1)
        groups = 1
    kernel: Any = partial(scaled_dot_product_attention, scale=scaling, enable_gqa=groups > 1)
    tensors = (query_NHD, key_NHD, value_NHD)
    if isinstance(layout, WholeRows):
        # Padding comes after all that a token may see, so only the future has to be masked.
        rows = kernel(*(_rows(tensor, layout.token_RS) for tensor in tensors), is_causal=True)
        return _flat(rows, layout.cell_N)
    prompt = kernel(*(_rows(tensor, layout.prompt_GP) for tensor in tensors), is_causal=True)
    # Queries and keys are gathered apart: a response asks, its prompt and itself answer.
    response = kernel(
        _rows(query_NHD, layout.key_RS[:, -layout.response_mask_RTS.shape[1] :]),
        _rows(key_NHD, layout.key_RS),
        _rows(value_NHD, layout.key_RS),
        attn_mask=layout.response_mask_RTS[:, None],
    )
    return torch.cat([_flat(prompt, layout.from_prompt_N), _flat(response, layout.from_response_N)])


def _shares_keys_slowly(value: Tensor) -> bool:
    """Whether heads that share keys would be computed with all scores in memory.

    On a GPU only the flash kernel lets heads share keys, and it takes neither float32 nor a mask; the memory-efficient
    one, which takes both, wants keys and values of every head.
    """
    return value.is_cuda


def _rows(value_NHD: Tensor, index_RS: Tensor) -> Tensor:
    """Packed tokens as rows, (R, H, S, D)."""
    flat = value_NHD.index_select(0, index_RS.flatten())
    return flat.view(*index_RS.shape, *value_NHD.shape[1:]).transpose(1, 2)


def _flat(value_RHSD: Tensor, cell_N: Tensor) -> Tensor:
    """Of rows the real tokens, (N, H, D)."""
    return value_RHSD.transpose(1, 2).flatten(0, 1).index_select(0, cell_N)


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, attend)
