"""Training the discriminator against the policy, and asking it.

Shapes: B sequences, T response columns, n outputs. `logits_expert_high`: higher means "the expert wrote this".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from understudy.models.language_model import TokenBatch
from understudy.objectives.discriminator import DiscriminatorScores
from understudy.training.examples import Example
from understudy.training.loop import finite_update, step_seed
from understudy.training.methods import BACKWARD, FORWARD
from understudy.training.parts import backward_by_parts
from understudy.training.replay import Sample
from understudy.training.state import AlignState, same_width

# The side, 0 the expert's and 1 the policy's, and the tokens of what is read at a time, in order.
Parts = list[tuple[int, TokenBatch]]


class DiscriminatorTrainer:
    """Updates on expert and sampled responses to the same prompts, old samples among them."""

    def __init__(self, state: AlignState) -> None:
        self.state, self.settings = state, state.config.discriminator
        self.network = state.models.discriminator
        self.module, self.optimizer = state.register(
            "discriminator", self.network, self.settings.learning_rate, self.settings.weight_decay
        )

    def update(self, samples: list[Sample]) -> dict[str, float]:
        """Run this round's updates; returns their mean numbers."""
        warming_up = self.state.policy_round < 0
        num_updates = self.settings.warmup_updates_per_round if warming_up else self.settings.updates_per_round
        choices = [self._choose(samples, update) for update in range(num_updates)]
        self._see([] if warming_up else samples, choices)
        totals: dict[str, float] = {}
        for update, chosen in enumerate(choices):
            self.state.seed_step("discriminator", update)
            for name, value in self._step(chosen, update).items():
                totals[name] = totals.get(name, 0.0) + value / num_updates
        return totals

    @torch.no_grad()
    def held_out_auc(self) -> float:
        """AUC on held-out prompts: the chance that an expert response scores above a sample.

        With a pairwise loss above the sample of its own prompt: such a loss leaves a constant of the prompt in the
        logit, by which responses to two prompts cannot be compared.
        """
        state = self.state
        rows = list(range(min(len(state.held_out), 4 * self.settings.batch_pairs)))
        self.network.eval()
        samples = state.sample(state.held_out, rows, "held_out", 1)
        with state.accelerator.autocast():
            parts = self._sides(state.held_out, samples)
            expert, policy = self._scores_of(samples, parts, [self._read(batch, self.network) for _, batch in parts])
        for _, batch in parts:
            state.count_discriminator(FORWARD, batch)
        expert_B, policy_B = last_logits(expert), last_logits(policy)
        return pairs_won(expert_B, policy_B) if state.objective.loss.pairwise else auc(expert_B, policy_B)

    def scores(self, output_BTn: Tensor, logp_BT: Tensor, mask_BT: Tensor, rows: Sequence[int]) -> DiscriminatorScores:
        """Scores at the objective's level."""
        prompt_B = torch.tensor(list(rows), device=mask_BT.device)
        return self.state.objective.scores(output_BTn, logp_BT, mask_BT, prompt_B)

    def _see(self, samples: list[Sample], choices: Sequence[list[Sample]]) -> None:
        """Have the reference read in one go what this round's updates and scores will ask for."""
        state = self.state
        if state.seen is None:
            return
        chosen = [sample for choice in choices for sample in choice]
        wanted = [*samples, *chosen, *state.as_expert(chosen)]
        with state.accelerator.autocast():
            state.seen.read([state.train[sample.row].prompt for sample in wanted], [s.response for s in wanted])

    def _choose(self, samples: list[Sample], update: int) -> list[Sample]:
        chance = random.Random(step_seed(self.state.seed, "replay", self.state.round, update))
        old, settings = self.state.replay.samples, self.settings
        num_old = min(len(old), round(settings.replay_fraction * settings.batch_pairs))
        num_new = min(len(samples), settings.batch_pairs - num_old)
        return chance.sample(samples, num_new) + chance.sample(old, num_old)

    def _step(self, chosen: list[Sample], update: int) -> dict[str, float]:
        state = self.state
        self.network.train()
        parts = self._parts(chosen)
        scored: list[DiscriminatorScores] = []

        def loss_of(outputs: list[Tensor]) -> Tensor:
            scored[:] = self._scores_of(chosen, parts, outputs)
            return state.objective.discriminator_loss(*scored)

        value = self._backward(parts, loss_of, update)
        expert, policy = scored
        names = [state.train[sample.row].id for sample in chosen][:8]
        where = f"align round {state.round}, discriminator update on rows {names}"
        norm = finite_update(self.network, self.optimizer, self.settings.max_grad_norm, value, where)
        return {
            "discriminator_loss": value,
            "discriminator_accuracy": self._accuracy(expert, policy),
            "discriminator_gradient_norm": norm,
            "logit_expert": float(_scored_logits(expert).mean()),
            "logit_policy": float(_scored_logits(policy).mean()),
        }

    def _backward(self, parts: Parts, loss_of: Callable[[list[Tensor]], Tensor], update: int) -> float:
        """Accumulate the gradient of a loss of all outputs together; returns the loss."""
        state, at_once = self.state, len(parts) <= 2
        if at_once:
            with state.accelerator.autocast():
                loss = loss_of([self._read(batch, self.module) for _, batch in parts])
            state.processes.backward(loss)
        else:
            reads = [partial(self._read_again, update, index, batch) for index, (_, batch) in enumerate(parts)]
            loss = backward_by_parts(reads, loss_of, state.processes, self.module)
        for _, batch in parts:
            state.count_discriminator(BACKWARD + (0 if at_once else FORWARD), batch)
        return float(loss.detach())

    def _accuracy(self, expert: DiscriminatorScores, policy: DiscriminatorScores) -> float:
        """Share of positions on their side of 0; with a pairwise loss, which knows no 0, share of pairs won."""
        if self.state.objective.loss.pairwise:
            return pairs_won(last_logits(expert), last_logits(policy))
        return (_fraction(_scored_logits(expert) > 0) + _fraction(_scored_logits(policy) < 0)) / 2

    def _sides(self, examples: Sequence[Example], chosen: list[Sample]) -> Parts:
        """The expert's and the sampled responses to the same prompts, each side at once."""
        state, sides = self.state, enumerate((self.state.as_expert(chosen, examples), chosen))
        return [(side, state.with_seen(state.batch(some, examples), examples, some)) for side, some in sides]

    def _parts(self, chosen: list[Sample]) -> Parts:
        """Both sides in parts of what a network may read at a time; at once for one with next to no activations."""
        state = self.state
        if self.settings.init in ("ngrams", "shared_trunk"):
            with state.accelerator.autocast():
                return self._sides(state.train, chosen)
        sides = enumerate((state.as_expert(chosen), chosen))
        return [(side, batch) for side, samples in sides for batch in state.parts(samples)]

    def _read(self, batch: TokenBatch, module: Any) -> Tensor:
        return self.state.processes.over_rows(module, batch)

    def _read_again(self, update: int, index: int, batch: TokenBatch) -> Tensor:
        """Read a part of an update with the same dropout each time."""
        self.state.seed_step("discriminator", update, index)
        with self.state.accelerator.autocast():
            return self._read(batch, self.module)

    def _scores_of(
        self, chosen: list[Sample], parts: Parts, outputs: list[Tensor]
    ) -> tuple[DiscriminatorScores, DiscriminatorScores]:
        """Scores of both sides by what the network said of their parts."""
        rows, both = [sample.row for sample in chosen], []
        for side in (0, 1):
            own = [(output, batch) for (of, batch), output in zip(parts, outputs, strict=True) if of == side]
            output_BTn, logp_BT, mask_BT = (
                torch.cat(same_width(column))
                for column in zip(*((output, self._logp_for_form(b), b.mask_BT) for output, b in own), strict=True)
            )
            both.append(self.scores(output_BTn, logp_BT, mask_BT, rows))
        return both[0], both[1]

    @torch.no_grad()
    def _logp_for_form(self, batch: TokenBatch) -> Tensor:
        if self.state.objective.form == "plain":
            return torch.zeros_like(batch.mask_BT, dtype=torch.float32)
        self.state.count(FORWARD, batch.num_tokens)
        with self.state.accelerator.autocast():  # as the sampler and the policy's update read it
            return self.state.processes.over_rows(self.state.policy.response_logps, batch)


def auc(expert_N: Tensor, policy_M: Tensor) -> float:
    """P(score of an expert response > score of a sample), ties count half; 0.5 is indistinguishable."""
    return pairs_won(expert_N[:, None], policy_M[None, :])


def pairs_won(expert_B: Tensor, policy_B: Tensor) -> float:
    """How often an expert response scores above the sample beside it, ties count half; shapes broadcast."""
    gap_B = expert_B - policy_B
    return float(((gap_B > 0).double() + 0.5 * (gap_B == 0).double()).mean())


def last_logits(scores: DiscriminatorScores) -> Tensor:
    """The logit at each response's last scored position, shape (B,): that of the whole response."""
    column_T = torch.arange(scores.mask_BT.shape[1], device=scores.mask_BT.device)
    last_B = (scores.mask_BT.long() * column_T).argmax(dim=1)
    return scores.logits_expert_high_BT.gather(1, last_B[:, None]).squeeze(1)


def _scored_logits(scores: DiscriminatorScores) -> Tensor:
    return scores.logits_expert_high_BT.detach()[scores.mask_BT]


def _fraction(condition: Tensor) -> float:
    return float(condition.float().mean())
