"""The methods of the note as settings of the one loop (source note, 2.4, 3.4.3-3.4.5). Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from understudy.config import AlignConfig

FORWARD, BACKWARD = 1, 3  # token passes: a forward pass or a sampled token; a forward and a backward pass


@dataclass(frozen=True)
class Composition:
    """A method as settings of the one loop; None leaves what the params say."""

    policy_update: str | None
    align: Mapping[str, Any]
    discriminator: Mapping[str, Any]


COMPOSITIONS = {
    "adversarial": Composition(None, {}, {}),
    # The discriminator takes no part in the updates; its held-out AUC says how far self-play has come.
    "selfplay": Composition("selfplay", {}, {}),
    "iterative_sft": Composition("best_of_n", {}, {}),
    # RLHF's three steps (source note 2.4): SFT, a reward model on expert > sample, then frozen, and PPO on its score.
    # In the AIRL form log pi is part of the score, which then moves with the policy, however frozen the network.
    "rlhf": Composition(
        "ppo",
        {"divergence": "reverse_kl", "level": "sequence"},
        {"loss": "bradley_terry", "form": "plain", "updates_per_round": 0},
    ),
}


def composed(config: AlignConfig) -> tuple[AlignConfig, str]:
    """Return the settings that a method implies and the name of its policy update."""
    composition = COMPOSITIONS[config.method]
    discriminator = config.discriminator.model_copy(update=dict(composition.discriminator))
    settings = {**composition.align, "discriminator": discriminator}
    return config.model_copy(update=settings), composition.policy_update or config.policy_update
