"""Params of the policy's origin."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from understudy.config.sections import LocalPath, Section


class ScratchConfig(Section):
    """Shape of a from-scratch Llama-style policy and of its tokenizer."""

    vocab_size: int = Field(ge=259)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    context_tokens: int = Field(gt=8)


class LoraConfig(Section):
    """Low-rank adapters (peft) instead of full fine-tuning."""

    rank: int = Field(gt=0)
    alpha: int = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)  # in SFT alone; alignment trains the log-probabilities that it samples with
    target_modules: tuple[str, ...] | Literal["all-linear"]


class ModelConfig(Section):
    """The policy's origin: a new small model, or a Hugging Face causal LM's folder or name."""

    init: Literal["scratch", "pretrained"]
    scratch: ScratchConfig | None
    path: LocalPath | None
    gguf_file: str | None
    revision: str | None
    lora: LoraConfig | None
    precision: Literal["fp32", "bf16"]  # no fp16, which needs a loss scale: docs/decisions/0013

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.init == "scratch" and self.scratch is None:
            raise ValueError("init is scratch but model.scratch is null; give its shape")
        if self.init == "pretrained" and not self.path:
            raise ValueError("init is pretrained but model.path is null; name a folder or a model")
        return self
