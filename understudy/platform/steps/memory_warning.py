"""Will alignment fit into this machine's memory? Asked before SFT takes its minutes; docs/speed.md has the formula."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from understudy.config import AlignConfig, DataConfig, ModelConfig
from understudy.training.memory import ModelShape, NoFormula, StepShape, align_bytes
from understudy.training.methods import composed

_CHARS_PER_TOKEN = 4
# A copy of the policy; all others are small beside it.
_THIRD_NETWORK = "sft"


def memory_warning(data: DataConfig, model: ModelConfig, align: AlignConfig, available_bytes: int) -> str | None:
    """Return what to say where an align step needs more than is available, or where the model's family has no formula.

    None where it fits, or the work or a config that cannot be read has no formula.

    The formula is for full weights in one process; prompts count at the longest that the params let in.

    Args:
        data: how long prompts may be.
        model: the policy's shape, or the folder whose config.json has it.
        align: the work of a round.
        available_bytes: memory that is free for it.
    """
    # Adapters train little, PPO a value network besides: no formula holds.
    unknown = model.lora is not None or composed(align)[1] == "ppo"
    config = None if unknown else _model_config(model)
    if config is None:
        return None
    try:
        shape, context_tokens = ModelShape.of_config(config), int(config["max_position_embeddings"])
    except NoFormula as error:
        return f"how much memory align needs is not estimated: {error.args[0]}"
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):  # no config: loading it will tell
        return None
    rollout, discriminator = align.rollout, align.discriminator
    prompt_tokens = min(context_tokens - rollout.max_response_tokens, data.max_prompt_chars // _CHARS_PER_TOKEN)
    if prompt_tokens <= 0:  # refused by another check
        return None
    step = StepShape(
        *(rollout.prompts_per_round, rollout.responses_per_prompt, prompt_tokens, rollout.max_response_tokens),
        micro_batch_tokens=align.micro_batch_tokens,
        discriminator_pairs=discriminator.updates_per_round * discriminator.batch_pairs,
    )
    third_network = discriminator.init == _THIRD_NETWORK  # with every method, if only to say how far it has come
    needed_bytes = align_bytes(shape, step, shared_trunk=not third_network)["peak"]
    if needed_bytes <= available_bytes:
        return None
    remedy = "lower align.micro_batch_tokens or align.rollout.prompts_per_round, or train adapters (model.lora)"
    if third_network:
        remedy += "; align.discriminator.init=shared_trunk spares a third network"
    return (
        f"align needs about {needed_bytes / 2**30:.1f} GiB of memory for a policy of "
        f"{shape.parameters / 1e6:,.0f}M parameters, {available_bytes / 2**30:.1f} GiB are available; {remedy}"
    )


def available_here(device: str) -> int | None:
    """Return the bytes that training on this machine's CPU may take; None where it trains elsewhere or on a GPU."""
    elsewhere = "UNDERSTUDY_RUNNER_PID" not in os.environ
    if elsewhere or device not in ("auto", "cpu") or (device == "auto" and any(Path("/dev").glob("nvidia[0-9]*"))):
        return None
    import psutil

    return int(psutil.virtual_memory().available)


def _model_config(model: ModelConfig) -> Mapping[str, Any] | None:
    """Return what a config.json says, or would say of a new model."""
    if model.init == "scratch":
        assert model.scratch is not None
        shape = model.scratch
        return {
            "model_type": "llama",
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "vocab_size": shape.vocab_size,
            "max_position_embeddings": shape.context_tokens,
            "tie_word_embeddings": True,
        }
    try:
        found = json.loads((Path(model.path or "") / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
