"""How many token passes an alignment takes, by method, before it runs: what the loop counts, at most.

Imports no torch; no step reads it, so that a better estimate retrains nothing.
"""

from __future__ import annotations

from understudy.config import AlignConfig
from understudy.training.methods import BACKWARD, FORWARD, composed


def align_passes(config: AlignConfig, prompt_tokens: int) -> int:
    """Token passes of an alignment, at most.

    Every response is taken as long as it may be, a discriminator's network as large as the policy, but for a table of
    n-grams, which has no products at all; the policy as never held, the held-out rows as enough.

    Args:
        config: the `align` section.
        prompt_tokens: of a prompt, at most.
    """
    config, update = composed(config)
    discriminator, rollout = config.discriminator, config.rollout
    whole = prompt_tokens + rollout.max_response_tokens
    warmup, rounds = discriminator.warmup_rounds, config.num_rounds
    sampling = rollout.prompts_per_round * (prompt_tokens + rollout.responses_per_prompt * rollout.max_response_tokens)
    updates = warmup * discriminator.warmup_updates_per_round + rounds * discriminator.updates_per_round
    deep = discriminator.init not in ("ngrams", "shared_trunk")
    again = FORWARD if deep and _in_parts(config, discriminator.batch_pairs, whole) else 0
    pairs = updates * discriminator.batch_pairs * _pair(config, whole, BACKWARD + again)
    measured = 4 * discriminator.batch_pairs * (whole + _pair(config, whole, FORWARD))
    measurements = -(-(warmup + rounds) // config.held_out_every_rounds)
    if config.min_held_out_auc is not None:  # a policy that waits is told each round
        measurements = warmup + rounds + 1
    return (warmup + rounds) * sampling + pairs + rounds * _improving(config, update, whole) + measurements * measured


def _in_parts(config: AlignConfig, sequences: int, whole: int) -> bool:
    """Whether so many are more than is read at a time, so that a loss of all together reads each once more."""
    return sequences * whole > config.micro_batch_tokens


def _pair(config: AlignConfig, whole: int, passes: int) -> int:
    """Passes of the discriminator on an expert's and a sampled response, each `whole` tokens with its prompt."""
    # The AIRL form asks the policy, a reader of its hidden states the reference.
    asked = (config.discriminator.form == "airl") + (config.discriminator.init == "shared_trunk")
    return 2 * (asked * FORWARD * whole + passes * _judged(config, whole))


def _judged(config: AlignConfig, whole: int) -> int:
    """Tokens of a sequence on which the discriminator's own network runs."""
    return {"ngrams": 0, "shared_trunk": config.rollout.max_response_tokens}.get(config.discriminator.init, whole)


def _improving(config: AlignConfig, update: str, whole: int) -> int:
    """Passes by which a round improves the policy: policy, reference and discriminator read, the policy learns."""
    prompts = config.rollout.prompts_per_round
    samples = prompts * config.rollout.responses_per_prompt
    # Sequences that are read besides, those learned from in a step, by policy and value, and the number of steps.
    ppo, selfplay = config.ppo, config.selfplay
    preferred = min(selfplay.batch_pairs, samples)
    again = 2 * preferred * selfplay.updates_per_round if _in_parts(config, preferred, whole) else 0
    read, learned, steps = {
        "rloo": (0, samples, 1),
        "ppo": (samples, 2 * samples, ppo.epochs),
        "best_of_n": (0, prompts, 1),
        "selfplay": (samples + again, 2 * preferred, selfplay.updates_per_round),
    }[update]
    if config.sft_coefficient_start or config.sft_coefficient_end:
        learned += prompts  # the expert's response to each
    scoring = samples * FORWARD * (2 * whole + _judged(config, whole))
    return scoring + (read * FORWARD + steps * learned * BACKWARD) * whole
