"""The alternating loop: sample, tell expert from policy, reward, improve (source note, 3.4.3-3.4.5, App. B).

    for each round:
        responses  ~ policy, k for each prompt of some demonstrations
        discriminator: minimise its loss on (expert, sample) pairs of the same prompts, old samples among them
        policy:        improve by the discriminator's word, after the discriminator's warm-up and, where
                       `min_held_out_auc` asks for that, while the word is worth something on held-out prompts

Which divergence, level, loss and form run is `AdversarialObjective`'s business, how the policy improves that of
`POLICY_UPDATES`; the loop asks neither. A method of the note is a composition of the two, see `methods.COMPOSITIONS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from understudy.config import AlignConfig
from understudy.objectives.adversarial import AdversarialObjective
from understudy.training.discriminating import DiscriminatorTrainer
from understudy.training.examples import Example
from understudy.training.loop import Loop
from understudy.training.methods import composed
from understudy.training.policy_updates import POLICY_UPDATES
from understudy.training.replay import Sample
from understudy.training.state import AlignState, Models
from understudy.training.updating import PolicyUpdate


@dataclass(frozen=True)
class AlignResult:
    """Policy and discriminator were trained in place; these are the numbers of the run.

    `stopped_by` is the health gate that stopped it, "gate: reason". The policy then has its weights of after
    `healthy_round` rounds, the last healthy ones; the discriminator has those of the last round. In
    `policy_held_rounds` of the rounds the policy was not moved, because of `min_held_out_auc`. `skipped` and
    `held_out_skipped` name the demonstrations that were left out, with the reason.
    """

    num_rounds: int
    held_out_auc: float | None
    stopped_by: str | None
    healthy_round: int
    policy_held_rounds: int
    compute_token_passes: int
    train_seconds: float
    skipped: list[dict[str, str]] = field(default_factory=list)
    held_out_skipped: list[dict[str, str]] = field(default_factory=list)


def align(
    models: Models,
    train: Sequence[Example],
    held_out: Sequence[Example],
    config: AlignConfig,
    seed: int,
    loop: Loop,
) -> AlignResult:
    """Align the policy in place by the configured method and divergence.

    Args:
        models: policy and discriminator are trained in place.
        train: encoded demonstrations; those longer than the horizon cannot be imitated and are left out, as are
            held-out ones.
        held_out: encoded demonstrations for the discriminator's held-out AUC; never trained on. May be empty, but
            with `min_held_out_auc`.
        config: the `align` section.
        seed: of prompts, samples, dropout.
        loop: surroundings.

    Raises:
        ConfigError: too many demonstrations are longer than the horizon, or all of those held out that
            `min_held_out_auc` needs.
        TrainingDiverged: before an update that is not finite.
        Preempted: when asked to stop, after saving.
    """
    config, update_name = composed(config)
    state = AlignState(models, train, held_out, config, objective_from(config), seed, loop)
    discriminator = DiscriminatorTrainer(state)
    policy_update = POLICY_UPDATES[update_name](state, discriminator)
    state.resume()
    if state.round == 0 and state.starts_improving and config.min_held_out_auc is not None:
        state.held_out_auc = discriminator.held_out_auc()  # no warm-up, at whose end it would be measured
    while state.round < state.total_rounds and state.health.stopped_by is None:
        samples = state.sample_round()
        numbers = state.health.measure(samples) | discriminator.update(samples)
        if state.policy_round >= 0:
            numbers |= _improve(state, policy_update, samples)
        state.replay.add(samples)
        _finish_round(state, discriminator, numbers)
        loop.stop_if_asked(state.save, state.round, "round")
    state.save()
    state.health.finish()
    return AlignResult(
        state.round,
        state.held_out_auc,
        state.health.stopped_by,
        state.health.healthy_round,
        state.policy_held_rounds,
        state.passes,
        state.seconds,
        state.skipped,
        state.held_out_skipped,
    )


def objective_from(config: AlignConfig) -> AdversarialObjective:
    """Compose the objective that the `align` section names."""
    return AdversarialObjective.from_names(
        config.divergence,
        config.level,
        config.discriminator.loss,
        form=config.discriminator.form,
        absorbing=config.absorbing,
        discount=config.discount,
        horizon=config.rollout.max_response_tokens,
        reward_clip=config.reward_clip,
        label_smoothing=config.discriminator.label_smoothing,
    )


def num_discriminator_outputs(config: AlignConfig) -> int:
    """Outputs per token that the method's discriminator needs."""
    return objective_from(composed(config)[0]).num_outputs


def _improve(state: AlignState, policy_update: PolicyUpdate, samples: list[Sample]) -> dict[str, float]:
    """Let the policy improve, or hold it for this round; returns the numbers to report."""
    if held := state.holds_policy:
        state.policy_held_rounds += 1
    told = {} if state.config.min_held_out_auc is None else {"policy_held_rounds": float(state.policy_held_rounds)}
    if held:
        return told
    state.health.before_update()
    state.seed_step("policy")
    return policy_update.update(samples) | told


def _auc_is_due(state: AlignState) -> bool:
    """Whether the held-out AUC is measured after this round: regularly, at the end, and while a policy waits."""
    config = state.config
    waited_for = config.min_held_out_auc is not None and (
        state.starts_improving or (state.policy_round > 0 and state.holds_policy)
    )
    return waited_for or state.round == state.total_rounds or state.round % config.held_out_every_rounds == 0


def _finish_round(state: AlignState, discriminator: DiscriminatorTrainer, numbers: dict[str, float]) -> None:
    """Count, measure what is due, look after the health, report and save."""
    state.round += 1
    config, loop = state.config, state.loop
    if state.held_out and _auc_is_due(state):
        state.held_out_auc = numbers["held_out_auc"] = discriminator.held_out_auc()
    if state.seen is not None:
        state.seen.forget()
    numbers |= state.health.after_round([*loop.history, {"step": state.round, **numbers}])
    rates = {"tokens_per_second": state.watch.tokens_per_second}
    loop.log(state.round, numbers, rates)
    names = {"loss": "policy_loss", "accuracy": "discriminator_accuracy", "reward": "reward", "kl": "kl"}
    shown = {short: numbers[name] for short, name in names.items() if name in numbers} | rates
    loop.progress(state.round, state.total_rounds, "rounds", shown)
    if state.round % config.checkpoint_every_rounds == 0:
        state.save()
