"""Which models the fast paths understand: plain decoders of the Llama family, as Hugging Face writes them."""

from __future__ import annotations

from typing import Any

# Rotary positions, RMS norms before attention and a gated SiLU MLP, full causal attention in every layer.
FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
CONTEXT_FIELDS = "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"  # of a config, whatever its family
_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn"})


def is_plain_decoder(model: Any, context_tokens: int) -> bool:
    """Whether a causal LM, or its backbone, computes what the fast paths compute; adapters are no matter here.

    Args:
        model: a Hugging Face model; a wrapper with a forward of its own is none.
        context_tokens: a sliding window at least as long changes nothing.
    """
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel) and is_plain_config(model.config, context_tokens)


def is_plain_config(config: Any, context_tokens: int) -> bool:
    """`is_plain_decoder` of the model that a config describes; what the config leaves open is as in plain decoders."""
    if getattr(config, "model_type", None) not in FAMILIES:
        return False
    if getattr(config, "hidden_act", "silu") != "silu" or getattr(config, "attention_dropout", 0.0):
        return False
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True) and window < context_tokens:
        return False
    return _rope_type(config) in _STATIC_ROPE


def has_whole_float32_weights(model: Any) -> bool:
    """Whether every weight is float32 and in one piece, not sharded over processes."""
    import torch
    from torch.distributed.tensor import DTensor

    return all(value.dtype == torch.float32 and not isinstance(value, DTensor) for value in model.parameters())


def _rope_type(config: Any) -> str:
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return str(parameters.get("rope_type", parameters.get("type", "default")))
