"""What an alignment is said to cost before it runs, beside what its loop counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from training.helpers import align_config, examples, loop, random_policy

from understudy.models.discriminator import create_discriminator
from understudy.training.adversarial import align, num_discriminator_outputs
from understudy.training.passes import align_passes
from understudy.training.state import Models

# All responses are as long as they may be here, so what is left are the policy's log-probabilities, which the native
# sampler notes by itself,
AT_MOST = 1.12
# a discriminator smaller than the policy, and measurements while the policy is held, which it never is here.
AT_MOST_ASSUMED = 1.5
NO_LARGER = "discriminator.reader_width=32"  # than the policy


@pytest.mark.parametrize(
    ("overrides", "at_most"),
    [
        ([], AT_MOST),
        (["discriminator.form=airl"], AT_MOST),
        (["sft_coefficient_start=0.5"], AT_MOST),
        (["policy_update=ppo", "ppo.epochs=3"], AT_MOST),
        (["policy_update=ppo", "sft_coefficient_end=0.5"], AT_MOST),
        (["method=rlhf"], AT_MOST),
        (["method=selfplay"], AT_MOST),
        (["method=selfplay", "selfplay.batch_pairs=4", "sft_coefficient_start=0.5"], AT_MOST),
        (["method=selfplay", "selfplay.updates_per_round=5"], AT_MOST),
        (["method=iterative_sft"], AT_MOST),
        (["micro_batch_tokens=40"], AT_MOST),
        (["method=selfplay", "micro_batch_tokens=40"], AT_MOST),
        (["min_held_out_auc=0.5"], AT_MOST_ASSUMED),
        (["discriminator.init=shared_lora"], AT_MOST),
        (["discriminator.init=shared_trunk", NO_LARGER], AT_MOST_ASSUMED),
        (["discriminator.init=shared_trunk", NO_LARGER, "discriminator.form=airl"], AT_MOST_ASSUMED),
        (["discriminator.init=ngrams"], AT_MOST_ASSUMED),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_the_loop_counts_what_was_said_before_or_a_little_less(
    tmp_path: Path, overrides: list[str], at_most: float
) -> None:
    config = align_config(*(f"align.{override}" for override in overrides))
    policy, reference = random_policy("llama"), random_policy("llama")
    num_outputs = num_discriminator_outputs(config)
    discriminator = create_discriminator(config.discriminator, num_outputs, reference, lambda: random_policy("llama"))
    made = examples(policy, 48)
    shortest = min(len(row.prompt) for row in made)
    rows = [replace(row, prompt=row.prompt[:shortest], response=(row.response * 12)[:12]) for row in made]
    result = align(Models(policy, reference, discriminator), rows[:20], rows[20:], config, 1, loop(tmp_path))
    said = align_passes(config, shortest)
    assert 1 <= said / result.compute_token_passes < at_most
