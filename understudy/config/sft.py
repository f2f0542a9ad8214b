"""Params of the supervised warm start."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from understudy.config.sections import Section


class SftConfig(Section):
    """Supervised warm start; the objective is one of Eq 7, 12, 14."""

    objective: Literal["token_nll", "occupancy", "trajectory"]
    discount: float = Field(gt=0, le=1)
    absorbing: bool
    epochs: float = Field(gt=0)
    batch_tokens: int = Field(gt=0)
    micro_batches_per_step: int = Field(gt=0)  # over all processes, each of about batch_tokens
    learning_rate: float = Field(gt=0, le=10)
    weight_decay: float = Field(ge=0)
    label_smoothing: float = Field(ge=0, lt=1)
    schedule: Literal["cosine", "constant"]
    warmup_fraction: float = Field(ge=0, lt=1)
    max_grad_norm: float = Field(gt=0)
    evaluations_per_epoch: float = Field(gt=0)
    keep: Literal["best_nll", "last"]  # which weights: of the best validation NLL, or the last
    checkpoint_every_steps: int = Field(gt=0)
    withheld_fraction: float = Field(ge=0, lt=1)  # of training groups; the warm start alone leaves them out
