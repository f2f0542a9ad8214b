"""In bf16 all that is compared is read in bf16: a side in float32 would be a bias of that side."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from training.helpers import align_config, examples, loop, random_policy

from understudy.models.scalar_head import ScalarHead
from understudy.training.adversarial import align
from understudy.training.state import Models

METHODS = ["method=adversarial", "method=selfplay", "method=iterative_sft", "method=rlhf", "policy_update=ppo"]
IN_PARTS = ["micro_batch_tokens=40", "discriminator.form=airl"]


def _history(folder: Path, seen: set[bool], *overrides: str) -> list[dict[str, float]]:
    config = align_config(*(f"align.{override}" for override in overrides))
    policy, reference = random_policy("llama"), random_policy("llama")
    models = Models(policy, reference, ScalarHead.copied_from(reference, 1, 0.0))

    def note(*_: object) -> None:
        seen.add(torch.is_autocast_enabled("cpu"))

    AcceleratorState._reset_state(reset_partial_state=True)  # the precision is the process's
    hook = torch.nn.modules.module.register_module_forward_pre_hook(note)
    rows = examples(policy)
    try:
        surroundings = loop(folder, precision="bf16")
        align(models, rows[:18], rows[18:], config, 1, surroundings)
    finally:
        hook.remove()
        AcceleratorState._reset_state(reset_partial_state=True)
    return surroundings.history


@pytest.mark.parametrize("overrides", [*([method] for method in METHODS), IN_PARTS], ids=",".join)
def test_every_network_is_read_in_the_precision_of_training(tmp_path: Path, overrides: list[str]) -> None:
    seen: set[bool] = set()
    history = _history(tmp_path, seen, *overrides, "num_rounds=1", "sft_coefficient_start=0.5")
    assert seen == {True} and "policy_loss" in history[-1]


def test_self_play_begins_where_its_opponent_is(tmp_path: Path) -> None:
    history = _history(
        tmp_path, set(), "method=selfplay", "num_rounds=1", "selfplay.updates_per_round=1", "selfplay.batch_pairs=12"
    )
    assert history[-1]["reward"] == pytest.approx(0, abs=1e-6)
