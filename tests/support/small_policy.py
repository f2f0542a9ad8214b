"""A policy folder small enough for tests."""

from __future__ import annotations

from pathlib import Path

from understudy.config import ModelConfig, ScratchConfig
from understudy.models.loading import create_policy

SHAPE = ScratchConfig(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, num_kv_heads=2, context_tokens=64
)


def write_small_policy(folder: Path) -> Path:
    config = ModelConfig(
        init="scratch", scratch=SHAPE, path=None, gguf_file=None, revision=None, lora=None,
        precision="fp32",
    )  # fmt: skip
    create_policy(config, ["install nginx", "start the service"], seed=0).save(folder)
    return folder
