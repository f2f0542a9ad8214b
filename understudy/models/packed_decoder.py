"""Hidden states of a packed row of tokens: a Llama's layers with norms and rotation as one operation each.

What Hugging Face's layers compute, from the same modules' weights, so that adapters are read, too. There a norm or a
rotation is half a dozen operations on memory, and as many for its gradient; at a million parameters these take a
tenth of an align step (docs/speed.md). Where the layers must be called themselves, they are.

Shapes: N packed tokens, E hidden width, H heads of width D, d = D / 2.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from understudy.models import packing
from understudy.models.architecture import has_whole_float32_weights
from understudy.models.forwarding import forward_replaced
from understudy.models.packing import Packed, attend_in_rectangles


@contextlib.contextmanager
def reading(packed: Packed, model: Any) -> Iterator[dict[str, Tensor]]:
    """Within this context a model reads `packed`; gives the arguments to call it with.

    Args:
        packed: the tokens.
        model: a causal LM that `is_plain_decoder` understands, or the backbone of one.
    """
    backbone = model.base_model
    with packing.reading(packed, model) as arguments, contextlib.ExitStack() as entered:
        if _is_computed_here(backbone):
            entered.enter_context(forward_replaced(backbone, lambda **_: _output(backbone, packed)))
        yield arguments


def _is_computed_here(backbone: Any) -> bool:
    """Whether weights are whole, float32 and on a CPU, and nothing waits for a module that would not be called."""
    if torch.is_autocast_enabled("cpu") or _has_hooks(backbone) or not _is_plain(backbone.norm):
        return False
    if not all(_is_plain(module) for layer in backbone.layers for module in _not_called(layer)):
        return False
    on_cpu = all(value.device.type == "cpu" for value in backbone.parameters())
    return on_cpu and has_whole_float32_weights(backbone)


def _not_called(layer: Any) -> list[Any]:
    """The modules of a layer but for its projections; the layer alone where it is wrapped."""
    if not _is_plain(layer):
        return [layer]
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    own = (getattr(layer.self_attn, name, None) for name in ("q_norm", "k_norm"))
    return [layer, layer.self_attn, layer.mlp, layer.mlp.act_fn, *norms, *(norm for norm in own if norm is not None)]


def _is_plain(module: Any) -> bool:
    """Whether it is Hugging Face's own, with nothing added to it."""
    return (
        type(module).__module__.startswith("transformers.") and "forward" not in vars(module) and not _has_hooks(module)
    )


def _has_hooks(module: Any) -> bool:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)


def _output(backbone: Any, packed: Packed) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return BaseModelOutputWithPast(last_hidden_state=_hidden_states(backbone, packed)[None])


def _hidden_states(backbone: Any, packed: Packed) -> Tensor:
    hidden_NE = backbone.embed_tokens(packed.ids_N)
    cos_1ND, sin_1ND = backbone.rotary_emb(hidden_NE, packed.position_N[None])
    # Both halves of a head turn by the same angles.
    cos_N1d, sin_N1d = (value[0, :, None, : value.shape[-1] // 2].contiguous() for value in (cos_1ND, sin_1ND))
    for layer in backbone.layers[: backbone.config.num_hidden_layers]:
        normed_NE = _normed(layer.input_layernorm, hidden_NE)
        hidden_NE = hidden_NE + _attention(layer.self_attn, normed_NE, cos_N1d, sin_N1d, packed)
        normed_NE = _normed(layer.post_attention_layernorm, hidden_NE)
        hidden_NE = hidden_NE + layer.mlp.down_proj(silu(layer.mlp.gate_proj(normed_NE)) * layer.mlp.up_proj(normed_NE))
    return _normed(backbone.norm, hidden_NE)


def _attention(module: Any, normed_NE: Tensor, cos_N1d: Tensor, sin_N1d: Tensor, packed: Packed) -> Tensor:
    def heads(projection: Any) -> Tensor:
        projected: Tensor = projection(normed_NE)
        return projected.view(len(normed_NE), -1, module.head_dim)

    query_NHD, key_NHD, value_NHD = heads(module.q_proj), heads(module.k_proj), heads(module.v_proj)
    if hasattr(module, "q_norm"):
        query_NHD, key_NHD = _normed(module.q_norm, query_NHD), _normed(module.k_norm, key_NHD)
    query_NHD, key_NHD = (_Rotation.apply(value, cos_N1d, sin_N1d) for value in (query_NHD, key_NHD))  # type: ignore[no-untyped-call]
    seen_NHD = attend_in_rectangles(query_NHD, key_NHD, value_NHD, packed, module.scaling)
    return cast(Tensor, module.o_proj(seen_NHD.flatten(1)))


def _normed(norm: Any, value: Tensor) -> Tensor:
    return cast(Tensor, _RMSNorm.apply(value, norm.weight, norm.variance_epsilon))  # type: ignore[no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """x · w / √(mean x² + ε) over the last dimension; the unit vector times √E and its scale are kept for backward."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weight_E: Tensor, epsilon: float) -> Tensor:
        width = value.shape[-1]
        norm = torch.linalg.vector_norm(value, dim=-1, keepdim=True)
        scale = norm.square_().div_(width).add_(epsilon).rsqrt_()
        unit = value * scale
        ctx.save_for_backward(unit, scale, weight_E)
        return cast(Tensor, unit * weight_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        unit, scale, weight_E = ctx.saved_tensors
        along = gradient * unit
        from_weight = along.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, from_weight, None
        # What moves along the unit vector leaves the result as it is.
        mean = (along @ weight_E).div_(len(weight_E))[..., None]
        from_value = (gradient * weight_E).addcmul_(unit, mean, value=-1).mul_(scale)
        return from_value, from_weight, None


class _Rotation(torch.autograd.Function):
    """Each pair (x_i, x_{i+d}) of a head turned by its token's angle; the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, value_NHD: Tensor, cos_N1d: Tensor, sin_N1d: Tensor) -> Tensor:
        ctx.save_for_backward(cos_N1d, sin_N1d)
        return _turned(value_NHD, cos_N1d, sin_N1d, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NHD: Tensor) -> tuple[Tensor, None, None]:
        cos_N1d, sin_N1d = ctx.saved_tensors
        return _turned(gradient_NHD, cos_N1d, sin_N1d, -1), None, None


def _turned(value_NHD: Tensor, cos_N1d: Tensor, sin_N1d: Tensor, way: int) -> Tensor:
    first, second = value_NHD.chunk(2, dim=-1)
    turned_NHD = torch.empty_like(value_NHD)
    turned_first, turned_second = turned_NHD.chunk(2, dim=-1)
    torch.mul(first, cos_N1d, out=turned_first).addcmul_(second, sin_N1d, value=-way)
    torch.mul(second, cos_N1d, out=turned_second).addcmul_(first, sin_N1d, value=way)
    return turned_NHD
