"""Combinations of settings that run, but descend something else than their names say; docs/objectives.md has the why.

Each warning names the settings, what happens instead and the remedy. Pure: it reads the params and imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator

from understudy.config import AlignConfig

# As params.yaml states them: who leaves one as it is asks for nothing.
STATED = {"policy_update": "rloo", "kl_coefficient_start": 0.05, "kl_coefficient_end": 0.01, "reward_clip": 10.0}
STATED_LABEL_SMOOTHING = 0.1


def objective_warnings(align: AlignConfig) -> list[str]:
    """Return what a person should know about this combination of objectives; empty where all is exact."""
    found = list(_unread(align))
    if align.method == "adversarial":
        found += [*_pairwise(align), *_length(align)]
    if align.method in ("adversarial", "rlhf"):
        found += _sampling(align)
    return [*found, *_gate(align)]


def _gate(align: AlignConfig) -> Iterator[str]:
    frozen = align.method == "rlhf" or align.discriminator.updates_per_round == 0
    if align.min_held_out_auc is not None and frozen:
        yield (
            f"align.min_held_out_auc {align.min_held_out_auc:g} with a discriminator that is frozen after its warm-up: "
            "a policy that is held stays held, since neither of the two changes; raise "
            "align.discriminator.warmup_rounds, or take align.min_held_out_auc=null"
        )


def _pairwise(align: AlignConfig) -> Iterator[str]:
    loss = align.discriminator.loss
    if not loss.startswith("bradley_terry"):
        return
    if align.divergence not in ("reverse_kl", "alpha:0"):
        yield (
            f"align.discriminator.loss {loss} with align.divergence {align.divergence} is inexact: pairs leave a "
            "constant of the prompt in the log-ratio, which the baseline removes for reverse_kl alone; take "
            "align.divergence=reverse_kl, or align.discriminator.loss=logistic"
        )
    if align.level == "token" and not align.absorbing:
        yield (
            f"align.discriminator.loss {loss} at align.level token with align.absorbing false is inexact: the constant "
            "that pairs leave at each position becomes a length bias; take align.absorbing=true"
        )
    if loss == "bradley_terry_variance":
        yield (
            "align.discriminator.loss bradley_terry_variance is inexact where the learned variance differs between "
            "responses: the strength R is a log-ratio only where it is constant; take "
            "align.discriminator.loss=bradley_terry for an exact objective"
        )


def _length(align: AlignConfig) -> Iterator[str]:
    if align.divergence == "log_d" and align.level == "token" and not align.absorbing:
        yield (
            "align.divergence log_d at align.level token with align.absorbing false is biased towards short responses: "
            "its reward is -log 2 a token where expert and policy agree; take align.absorbing=true"
        )


def _sampling(align: AlignConfig) -> Iterator[str]:
    rollout = align.rollout
    if rollout.temperature != 1 or rollout.top_p != 1:
        yield (
            f"align.rollout.temperature {rollout.temperature:g} with top_p {rollout.top_p:g} is inexact: the policy "
            "gradient takes responses for the policy's own, which they are at temperature 1 and top_p 1 alone"
        )


def _unread(align: AlignConfig) -> Iterator[str]:
    if align.method != "adversarial" and align.divergence != "reverse_kl":
        does = "minimises reverse_kl" if align.method == "rlhf" else "has a loss of its own"
        yield (
            f"align.divergence {align.divergence} is not read with align.method {align.method}, which {does}; "
            "take align.method=adversarial to minimise it"
        )
    if align.method == "rlhf" and align.level == "token":
        yield "align.level token is not read with align.method rlhf, whose reward model scores whole responses"
    if align.method == "rlhf" and align.discriminator.form == "airl":
        yield (
            "align.discriminator.form airl is not read with align.method rlhf, whose reward is the frozen model's own "
            "score: log pi in it would move with the policy; take align.discriminator.form=plain"
        )
    if align.method == "adversarial" and align.level == "sequence" and align.discount != 1:
        yield f"align.discount {align.discount:g} is not read at align.level sequence; take align.level=token"
    if align.method in ("selfplay", "iterative_sft"):
        yield from _unread_by_updates_without_reward(align)
    smoothing = align.discriminator.label_smoothing
    if align.discriminator.loss == "variational" and smoothing not in (0, STATED_LABEL_SMOOTHING):
        yield (
            f"align.discriminator.label_smoothing {smoothing:g} is not read with align.discriminator.loss variational, "
            "a bound without labels; take align.discriminator.loss=logistic, or 0"
        )


def _unread_by_updates_without_reward(align: AlignConfig) -> Iterator[str]:
    """A coefficient of 0 is what such an update does anyway."""
    asked = {name: value for name in STATED if (value := getattr(align, name)) not in (0, STATED[name])}
    if asked:
        named = ", ".join(f"align.{name} {value}" for name, value in asked.items())
        yield (
            f"{named} {'is' if len(asked) == 1 else 'are'} not read with align.method {align.method}, whose update has "
            "a loss of its own, without reward and penalty; take align.method=adversarial"
        )
