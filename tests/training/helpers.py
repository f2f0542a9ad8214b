"""Small examples and loops for the training tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.families import random_policy

from understudy.config import AlignConfig, Params, SftConfig, load_params
from understudy.models.language_model import LanguageModel
from understudy.tracker import ListTracker
from understudy.training.checkpoint import Checkpoints
from understudy.training.examples import Example
from understudy.training.loop import Loop, create_accelerator

ROOT = Path(__file__).parents[2]
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon"]


def params(*overrides: str) -> Params:
    return load_params(ROOT / "params.yaml", overrides)


def sft_config(*overrides: str) -> SftConfig:
    small = ["sft.epochs=2", "sft.batch_tokens=128", "sft.checkpoint_every_steps=3", "sft.learning_rate=1e-2"]
    return params(*small, *overrides).sft


def align_config(*overrides: str) -> AlignConfig:
    small = [
        "align.num_rounds=3",
        "align.rollout.prompts_per_round=4",
        "align.rollout.responses_per_prompt=3",
        "align.rollout.max_response_tokens=12",
        "align.discriminator.warmup_rounds=1",
        "align.discriminator.warmup_updates_per_round=2",
        "align.discriminator.batch_pairs=6",
        "align.discriminator.replay_rounds=2",
        "align.checkpoint_every_rounds=1",
        "align.held_out_every_rounds=2",
    ]
    return params(*small, *overrides).align


def examples(policy: LanguageModel, count: int = 24) -> list[Example]:
    """The expert answers a word with that word twice."""
    made = []
    for index in range(count):
        word = WORDS[index % len(WORDS)]
        prompt = policy.encode_prompt([{"role": "user", "content": f"{word} {index % 7}"}])
        made.append(Example(f"row-{index}", prompt, policy.encode_response(f"{word} {word}")))
    return made


def loop(folder: Path, should_stop: Callable[[], bool] = lambda: False, precision: str = "fp32") -> Loop:
    return Loop(create_accelerator(precision, "cpu"), ListTracker(), Checkpoints(folder), should_stop)


__all__ = ["align_config", "examples", "loop", "params", "random_policy", "sft_config"]
