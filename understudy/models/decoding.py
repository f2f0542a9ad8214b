"""One more token for every row, with a cache of keys and values: what samplers repeat.

Two steppers with one interface. `CachedStepper` asks the Hugging Face model, of every architecture that takes and gives
transformers' `DynamicCache`; some layers may keep a state in it instead of keys and values. `FusedStepper` computes the
Llama family itself, from the same weights, adapters added to them: projections that share an input are one product,
norms and the rotation are folded into it, and the cache is allocated once at the size it will need, where Hugging
Face's grows by copying everything at every token.

Shapes: B rows, S columns of the cache, H query heads, K key heads, D their width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, silu

from understudy.errors import ConfigError
from understudy.models.architecture import has_whole_float32_weights, is_plain_decoder
from understudy.models.language_model import LanguageModel

ANOTHER_MODEL = "Name a model of another type, such as llama, qwen3, gemma3 or gpt2."


class Stepper(Protocol):
    """Rows that are being decoded.

    Attributes:
        logits_BV: of each row's next token.
        loses_rows: whether it can go on with some rows only.
    """

    logits_BV: Tensor
    loses_rows: bool

    def step(self, token_B: Tensor) -> None:
        """Append a token to each row."""

    def select(self, row_B: Tensor) -> None:
        """Go on with some rows only."""


# Policy, prompts, rows for each prompt, and tokens that there must be room for.
Start = Callable[[LanguageModel, Sequence[Sequence[int]], int, int], Stepper]


def start(policy: LanguageModel, prompts: Sequence[Sequence[int]], repeats: int, max_tokens: int) -> Stepper:
    """Read prompts once, each for `repeats` rows, with room for `max_tokens` tokens after them."""
    if can_fuse(policy):
        return start_fused(FusedStepper, policy, prompts, repeats, max_tokens)
    return CachedStepper.of(policy, prompts, repeats)


def start_fused(
    kind: type[FusedStepper], policy: LanguageModel, prompts: Sequence[Sequence[int]], repeats: int, max_tokens: int
) -> FusedStepper:
    """`start` with one of the fused steppers, for a policy that `can_fuse`."""
    return kind(policy, _read_prompts(policy, prompts, 1), repeats, max_tokens)


def can_fuse(policy: LanguageModel) -> bool:
    """Whether `FusedStepper` computes this policy: a Llama in one piece, with float32 weights and at most LoRA."""
    model = policy.unwrapped
    if not (is_plain_decoder(model, policy.context_tokens) and hasattr(model, "lm_head")):
        return False
    if any(hasattr(module, "base_layer") and not _is_plain_lora(module) for module in model.modules()):
        return False
    if any(hasattr(module, "base_layer") for module in (model.model.embed_tokens, model.lm_head)):
        return False
    return has_whole_float32_weights(model)


def _is_plain_lora(module: Any) -> bool:
    """Whether an adapter is a low-rank product added to the weight of a linear layer, and nothing else."""
    from peft.tuners.lora import Linear

    return isinstance(module, Linear) and not module.lora_variant and not any(module.lora_bias.values())


def _weight_of(module: Any) -> Tensor:
    """The weight of a linear layer, with what its adapters add while they are on."""
    if not hasattr(module, "base_layer"):
        return cast(Tensor, module.weight)
    weight = module.base_layer.weight
    if not (module.disable_adapters or module.merged):
        for name in module.active_adapters:
            if name in module.lora_A:  # an adapter may leave layers out
                weight = weight + module.get_delta_weight(name)
    return cast(Tensor, weight)


@dataclass(frozen=True)
class _Read:
    """Prompts that the model has read, padded on the left."""

    attention_BS: Tensor
    logits_BV: Tensor
    cache: Any


def _read_prompts(policy: LanguageModel, prompts: Sequence[Sequence[int]], repeats: int) -> _Read:
    """Read prompts into a cache, whose rows are then repeated.

    Raises:
        ConfigError: the model gives none.
    """
    from transformers import DynamicCache

    batch = policy.batch(prompts, [[] for _ in prompts])
    cache: Any = DynamicCache(config=policy.model.config.get_text_config(decoder=True))
    output = policy.model(
        input_ids=batch.ids_BS,
        past_key_values=cache,
        use_cache=True,
        **policy.forward_arguments(batch.attention_BS),
        **policy.keep_arguments(1),
    )
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        raise ConfigError(
            f"a model of type {policy.unwrapped.config.model_type!r} gives no cache (past_key_values) to decode with, "
            f"as evaluation must whatever align.rollout.engine is. {ANOTHER_MODEL}"
        )
    attention_BS, logits_BV = batch.attention_BS, output.logits[:, -1]
    if repeats > 1:
        # Reordering is what caches of every kind can; repeating is not.
        cache.reorder_cache(torch.arange(len(prompts), device=policy.device).repeat_interleave(repeats))
    return _Read(attention_BS.repeat_interleave(repeats, 0), logits_BV.repeat_interleave(repeats, 0), cache)


class CachedStepper:
    """The Hugging Face model with its own cache."""

    loses_rows = True

    def __init__(self, policy: LanguageModel, read: _Read) -> None:
        self._policy, self._attention, self._cache = policy, read.attention_BS, read.cache
        self.logits_BV = read.logits_BV

    @classmethod
    def of(cls, policy: LanguageModel, prompts: Sequence[Sequence[int]], repeats: int) -> CachedStepper:
        """Read prompts once, each for `repeats` rows."""
        return cls(policy, _read_prompts(policy, prompts, repeats))

    def step(self, token_B: Tensor) -> None:
        """Append a token to each row."""
        self._attention = torch.cat([self._attention, self._attention.new_ones(len(self._attention), 1)], dim=1)
        arguments = self._policy.forward_arguments(self._attention)
        if "position_ids" in arguments:
            # A row that has used up the context may be stepped on beside others: no model has a position after it.
            last = self._policy.context_tokens - 1
            arguments["position_ids"] = arguments["position_ids"][:, -1:].clamp(max=last)
        output = self._policy.model(
            input_ids=token_B.unsqueeze(1), past_key_values=self._cache, use_cache=True, **arguments
        )
        self.logits_BV, self._cache = output.logits[:, -1], output.past_key_values

    def select(self, row_B: Tensor) -> None:
        """Go on with some rows only."""
        self._cache.reorder_cache(row_B)
        self._attention, self.logits_BV = self._attention[row_B], self.logits_BV[row_B]


@dataclass(frozen=True)
class _Layer:
    """Weights of one layer; the scale of the norm before them is folded into `qkv` and `gate_up`."""

    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None


class FusedStepper:
    """A decoder of the Llama family over a cache of fixed size, in autocast's precision where that is on.

    Within a head the two halves that rotate together are interleaved, so that the rotation is one complex product;
    queries and keys are permuted alike, which leaves their products as they are.
    """

    loses_rows = True

    def __init__(self, policy: LanguageModel, read: _Read, repeats: int, max_tokens: int) -> None:
        model = policy.unwrapped
        config, trunk = model.config, model.model
        kind = policy.device.type
        self._dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        self._heads, self._key_heads = config.num_attention_heads, config.num_key_value_heads
        self._width = getattr(config, "head_dim", None) or config.hidden_size // self._heads
        self._eps = config.rms_norm_eps
        order = torch.arange(self._width, device=policy.device).view(2, -1).T.flatten()
        self._layers = [self._folded(layer, order) for layer in trunk.layers]
        self._embedding = trunk.embed_tokens.weight.to(self._dtype)
        self._head = (model.lm_head.weight * trunk.norm.weight).to(self._dtype)
        self.logits_BV = read.logits_BV.float().repeat_interleave(repeats, 0)
        self._start_cache(read, repeats, max_tokens, order)
        self._rotation_SD = self._rotations(trunk, self._columns + max_tokens)

    def _start_cache(self, read: _Read, repeats: int, max_tokens: int, order: Tensor) -> None:
        attention_BS = read.attention_BS
        num_rows, self._columns = attention_BS.shape[0] * repeats, attention_BS.shape[1]
        size = (num_rows, self._key_heads, self._room(self._columns + max_tokens), self._width)
        self._keys = [attention_BS.new_empty(size, dtype=self._dtype) for _ in self._layers]
        self._values = [torch.empty_like(keys) for keys in self._keys]
        for keys, values, layer in zip(self._keys, self._values, read.cache.layers, strict=True):
            keys[:, :, : self._columns] = layer.keys[..., order].repeat_interleave(repeats, 0)
            values[:, :, : self._columns] = layer.values.repeat_interleave(repeats, 0)
        self._position_B = attention_BS.sum(1).repeat_interleave(repeats)
        self._padding_BS: Tensor | None = None
        if not bool(attention_BS.all()):
            padding = torch.zeros(num_rows, size[2], device=attention_BS.device, dtype=self._dtype)
            padding[:, : self._columns].masked_fill_(attention_BS.repeat_interleave(repeats, 0) == 0, -torch.inf)
            self._padding_BS = padding

    def _room(self, columns: int) -> int:
        """Columns to allocate for so many."""
        return columns

    def step(self, token_B: Tensor) -> None:
        """Append a token to each row."""
        self.logits_BV = self._read(token_B)
        self._columns += 1
        self._position_B = self._position_B + 1

    def _read(self, token_B: Tensor) -> Tensor:
        """Write a token of each row to the cache; return the logits of the next, float32, (B, V)."""
        # Autocast would cast weights that have its precision already, and norms to another.
        with torch.autocast(token_B.device.type, enabled=False):
            return self._logits(token_B)

    def _logits(self, token_B: Tensor) -> Tensor:
        width, eps = self._width, self._eps
        hidden = self._embedding[token_B]
        rows, shape = hidden.shape[0], (hidden.shape[-1],)
        rotation_BD = self._rotation_SD[self._position_B].unsqueeze(1)
        num_rotated, mask = self._heads + self._key_heads, self._mask()
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            mixed = linear(rms_norm(hidden, shape, eps=eps), layer.qkv, layer.qkv_bias).view(rows, -1, width)
            rotated = mixed[:, :num_rotated]
            if layer.query_norm is not None and layer.key_norm is not None:
                rotated = self._normed(rotated, layer.query_norm, layer.key_norm)
            turned = torch.view_as_real(_complex_pairs(rotated.float()) * rotation_BD).flatten(2).to(self._dtype)
            self._write(keys, turned[:, self._heads :])
            self._write(values, mixed[:, num_rotated:])
            context = self._attend(turned[:, : self._heads], keys, values, mask)
            hidden = _plus(hidden, context, layer.out, layer.out_bias)
            gated, up = linear(rms_norm(hidden, shape, eps=eps), layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            hidden = _plus(hidden, silu(gated).mul_(up), layer.down, layer.down_bias)
        return linear(rms_norm(hidden, shape, eps=eps), self._head).float()

    def _attend(self, query_BHD: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """What each row's heads see of the columns so far, (B, H * D)."""
        rows = query_BHD.shape[0]
        query = query_BHD.reshape(rows * self._key_heads, -1, self._width)
        keys, values = self._seen(keys).flatten(0, 1), self._seen(values).flatten(0, 1)
        scores = torch.bmm(query, keys.transpose(1, 2))
        if mask is not None:
            scores += mask
        return torch.bmm(scores.softmax(-1), values).view(rows, -1)

    def _write(self, cache: Tensor, new_BKD: Tensor) -> None:
        """Put keys or values of the token that is being read into their column."""
        cache[:, :, self._columns] = new_BKD

    def _seen(self, cache: Tensor) -> Tensor:
        """Columns of keys or values that are read: those that the token may see, and its own."""
        return cache[:, :, : self._columns + 1]

    def _mask(self) -> Tensor | None:
        """What is added to the scores of these columns."""
        return None if self._padding_BS is None else self._by_head(self._padding_BS[:, : self._columns + 1])

    def _by_head(self, mask_BS: Tensor) -> Tensor:
        return mask_BS.repeat_interleave(self._key_heads, 0).unsqueeze(1)

    def select(self, row_B: Tensor) -> None:
        """Go on with some rows only."""
        self._keys = [_kept(keys, row_B, self._columns) for keys in self._keys]
        self._values = [_kept(values, row_B, self._columns) for values in self._values]
        self._position_B, self.logits_BV = self._position_B[row_B], self.logits_BV[row_B]
        if self._padding_BS is not None:
            self._padding_BS = self._padding_BS[row_B]

    def _folded(self, layer: Any, order: Tensor) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        normed = hasattr(attention, "q_norm")
        scale = self._width**-0.5

        def in_order(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return value.view(-1, self._width, *value.shape[1:])[:, order].reshape(value.shape)

        def scaled(value: Tensor | None) -> Tensor | None:
            return None if value is None else value if normed else value * scale

        query, key, value = (_weight_of(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj))
        parts = [scaled(in_order(query)), in_order(key), value]
        biases = [scaled(in_order(attention.q_proj.bias)), in_order(attention.k_proj.bias), attention.v_proj.bias]
        gate_up = torch.cat([_weight_of(mlp.gate_proj), _weight_of(mlp.up_proj)])

        def kept(value: Tensor | None) -> Any:
            return None if value is None else value.to(self._dtype)

        return _Layer(
            qkv=kept(torch.cat([part for part in parts if part is not None]) * layer.input_layernorm.weight),
            qkv_bias=kept(_joined(biases)),
            out=kept(_weight_of(attention.o_proj)),
            out_bias=kept(attention.o_proj.bias),
            gate_up=kept(gate_up * layer.post_attention_layernorm.weight),
            gate_up_bias=kept(_joined([mlp.gate_proj.bias, mlp.up_proj.bias])),
            down=kept(_weight_of(mlp.down_proj)),
            down_bias=kept(mlp.down_proj.bias),
            query_norm=kept(attention.q_norm.weight[order] * scale) if normed else None,
            key_norm=kept(attention.k_norm.weight[order]) if normed else None,
        )

    def _normed(self, rotated: Tensor, query_norm: Tensor, key_norm: Tensor) -> Tensor:
        scales = [query_norm.expand(self._heads, -1), key_norm.expand(self._key_heads, -1)]
        return rms_norm(rotated, (self._width,), eps=self._eps) * torch.cat(scales)

    def _rotations(self, trunk: Any, columns: int) -> Tensor:
        position_ids = torch.arange(columns, device=self._embedding.device).unsqueeze(0)
        cosine, sine = trunk.rotary_emb(self._embedding[:1, None], position_ids=position_ids)
        half = self._width // 2
        return torch.complex(cosine[0, :, :half].float(), sine[0, :, :half].float())


def _complex_pairs(pairs: Tensor) -> Tensor:
    """Neighbours as one complex number."""
    return torch.view_as_complex(pairs.reshape(*pairs.shape[:-1], -1, 2))


def _plus(hidden: Tensor, inner: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The residual plus a projection."""
    out = torch.addmm(hidden, inner, weight.T)
    return out if bias is None else out + bias


def _joined(biases: Sequence[Tensor | None]) -> Tensor | None:
    present = [bias for bias in biases if bias is not None]
    return torch.cat(present) if len(present) == len(biases) else None


def _kept(cache: Tensor, row_B: Tensor, columns: int) -> Tensor:
    """Rows of a cache in a new one of the same width, copying only what is filled."""
    kept = cache.new_empty(len(row_B), *cache.shape[1:])
    kept[:, :, :columns] = cache[:, :, :columns].index_select(0, row_B)
    return kept
