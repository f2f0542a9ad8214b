"""All proofs in one list: what `understudy objectives verify` runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from understudy.exact import adversarial_proofs as adversarial
from understudy.exact import (
    best_of_n_proofs,
    bradley_terry_proofs,
    frontier,
    learned_proofs,
    likelihood_proofs,
    preference_proofs,
)
from understudy.exact import discriminator_proofs as discriminators
from understudy.exact import pair_proofs as pairs
from understudy.exact import sample_proofs as samples
from understudy.exact.mdp import TokenMDP
from understudy.exact.report import Row

Proof = Callable[[int, int, torch.Generator], Iterator[Row]]
MAX_VOCAB = 12
MAX_RESPONSES = 20_000

PROOFS: tuple[tuple[int, str, Proof], ...] = (
    (1, "gradient identity", adversarial.gradient_identity),
    (1, "advantages", samples.advantages),
    (2, "convergence with the optimal discriminator", adversarial.convergence),
    (3, "convergence with everything learned", learned_proofs.everything_learned),
    (4, "likelihoods", likelihood_proofs.likelihoods),
    (4, "what likelihoods are means of", samples.likelihood_means),
    (5, "what discriminators learn", discriminators.discriminator_optima),
    (5, "variational bounds", discriminators.variational_bound),
    (5, "what discriminator losses are means of", samples.discriminator_means),
    (6, "AIRL form", discriminators.airl_form),
    (7, "Bradley-Terry family", lambda vocab, horizon, generator: bradley_terry_proofs.bradley_terry_family(generator)),
    (8, "self-play", preference_proofs.self_play),
    (8, "RLHF", preference_proofs.rlhf),
    (8, "PPO", samples.ppo_definitions),
    (8, "preference losses", pairs.preference_definitions),
    (7, "one game", pairs.game_definitions),
    (9, "mass-covering and mode-seeking", lambda vocab, horizon, generator: frontier.frontier()),
    (10, "length bias", adversarial.length_bias),
    (11, "best-of-n", best_of_n_proofs.best_of),
    (11, "KL-regularised optimum", adversarial.regularised_optimum),
    (11, "estimators of KL", adversarial.kl_estimators),
)


def check_size(vocab: int, horizon: int, seed: int = 0) -> None:
    """Refuse an MDP that is too small to prove anything on or too large to enumerate, and a negative seed.

    Raises:
        ValueError: with the limits.
    """
    if seed < 0:
        raise ValueError(f"--seed {seed} is negative; give a seed of 0 or more.")
    if not (2 <= vocab <= MAX_VOCAB and horizon >= 2):
        raise ValueError(
            f"--vocab {vocab} --horizon {horizon}: take 2 to {MAX_VOCAB} tokens, EOS among them, and a horizon >= 2."
        )
    num = vocab * float(vocab - 1) ** min(horizon - 1, 200)
    if num > MAX_RESPONSES or horizon > 50:
        raise ValueError(
            f"--vocab {vocab} --horizon {horizon} is too large to enumerate in a minute (limits: {MAX_RESPONSES:,} "
            "responses of full length, horizon 50); the default is --vocab 4 --horizon 5."
        )


def verify(vocab: int, horizon: int, seed: int) -> Iterator[Row]:
    """Yield every row of every proof; a proof that raises is a row that failed.

    Raises:
        ValueError: a size that cannot be enumerated.
    """
    check_size(vocab, horizon, seed)
    for index, (number, name, proof) in enumerate(PROOFS):
        generator = torch.Generator().manual_seed((seed * 1009 + index) % 2**63)
        try:
            yield from proof(vocab, horizon, generator)
        except Exception as error:
            yield Row(number, name, f"stopped by {type(error).__name__}: {error}", math.nan, 0.0)


def describe(vocab: int, horizon: int) -> str:
    """Say in one line what the proofs run on."""
    num = TokenMDP.enumerate(vocab, horizon).num_responses
    return (
        f"Token MDP: {vocab} tokens (EOS among them), horizon {horizon}, {num} responses, float64. "
        "Proofs over pairs or by descent shorten the horizon where there would be too many."
    )
