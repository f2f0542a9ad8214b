"""What all policy updates share: the policy's optimiser, scoring of samples, accumulation over micro-batches.

Shapes: B sequences (k responses a prompt, next to each other), T response columns; b, t within a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from understudy.models.language_model import TokenBatch
from understudy.objectives.discriminator import DiscriminatorScores
from understudy.objectives.likelihood import token_nll
from understudy.objectives.policy_gradient import kl_penalty_to_reference
from understudy.training.discriminating import DiscriminatorTrainer
from understudy.training.loop import finite_update, learning_rate, set_learning_rate
from understudy.training.methods import BACKWARD, FORWARD
from understudy.training.replay import Sample
from understudy.training.state import AlignState, same_width

# Loss of (log-probabilities (b, t), their batch, rows among all samples): a mean over those rows.
LossOf = Callable[[Tensor, TokenBatch, slice], Tensor]


class PolicyUpdate(Protocol):
    """Improves the policy with the samples of a round."""

    def update(self, samples: list[Sample]) -> dict[str, float]:
        """Run this round's updates; returns the numbers to report."""


@dataclass(frozen=True)
class Scored:
    """What the networks say of a round's samples before the policy moves."""

    logp_BT: Tensor
    reference_BT: Tensor
    mask_BT: Tensor
    finished_B: Tensor
    scores: DiscriminatorScores

    def report(self) -> dict[str, float]:
        """Numbers that every update reports."""
        num = self.mask_BT.shape[0]
        return {
            "kl": float(kl_penalty_to_reference(self.logp_BT, self.reference_BT)[self.mask_BT].sum()) / num,
            "entropy": -float(self.logp_BT[self.mask_BT].mean()),
            "response_tokens": float(self.mask_BT.sum()) / num,
            "finished": float(self.finished_B.float().mean()),
        }


class Update:
    """What all updates share: the policy's optimiser, scoring of samples, accumulation over micro-batches."""

    def __init__(self, state: AlignState, discriminator: DiscriminatorTrainer) -> None:
        self.state, self.discriminator = state, discriminator
        config = state.config
        self.module, self.optimizer = state.register(
            "policy", state.policy.model, config.learning_rate, config.weight_decay
        )

    @property
    def kl_coefficient(self) -> float:
        """Beta of this round, annealed linearly."""
        config = self.state.config
        return self._annealed(config.kl_coefficient_start, config.kl_coefficient_end)

    @property
    def sft_coefficient(self) -> float:
        """Weight of the SFT loss in this round, annealed linearly."""
        config = self.state.config
        return self._annealed(config.sft_coefficient_start, config.sft_coefficient_end)

    def _annealed(self, start: float, end: float) -> float:
        return start + self.state.policy_round / max(1, self.state.config.num_rounds - 1) * (end - start)

    @torch.no_grad()
    def score(self, samples: list[Sample]) -> Scored:
        """Log-probabilities under policy and reference, and discriminator scores."""
        state, models = self.state, self.state.models
        models.policy.model.eval()
        models.discriminator.eval()
        pieces, over_rows = [], state.processes.over_rows
        for micro in state.micro_batches(samples):
            some = samples[micro.first : micro.first + micro.batch.num_rows]
            with state.accelerator.autocast():
                batch = state.with_seen(micro.batch, state.train, some)
                logp_bt = _sampled_logps(some, batch)
                if logp_bt is None:
                    logp_bt = over_rows(models.policy.response_logps, batch)
                    state.count(FORWARD, batch.num_tokens)
                reference_bt = self._reference_logps(batch)
                pieces.append((logp_bt, reference_bt, batch.mask_BT, over_rows(models.discriminator, batch)))
            state.count_discriminator(FORWARD, batch)
        logp_BT, reference_BT, mask_BT, output_BTn = (
            torch.cat(same_width(column)) for column in zip(*pieces, strict=True)
        )
        finished_B = torch.tensor([sample.finished for sample in samples], device=mask_BT.device)
        scores = self.discriminator.scores(output_BTn, logp_BT, mask_BT, [sample.row for sample in samples])
        return Scored(logp_BT, reference_BT, mask_BT, finished_B, scores)

    def _reference_logps(self, batch: TokenBatch) -> Tensor:
        if batch.seen is not None:
            return batch.seen.logp_BT
        reference = self.state.models.reference
        self.state.count(FORWARD, batch.num_tokens)
        with reference.without_adapters():
            return self.state.processes.over_rows(reference.response_logps, batch)

    @torch.no_grad()
    def read(self, network: Callable[[TokenBatch], Tensor], samples: list[Sample]) -> Tensor:
        """What a network of the policy's size says of samples, in the precision of training, shape (B, T, …)."""
        pieces = []
        for batch in (micro.batch for micro in self.state.micro_batches(samples)):
            with self.state.accelerator.autocast():
                pieces.append(self.state.processes.over_rows(network, batch))
            self.state.count(FORWARD, batch.num_tokens)
        return torch.cat(same_width(pieces))

    def imitate(self, samples: list[Sample]) -> tuple[float, dict[str, float]]:
        """Backward `sft_coefficient` x token-mean NLL of the expert's responses to the prompts of a round.

        Call it before each update's own loss, whose last part carries the gradient of both between processes.

        Args:
            samples: all of the round, k for each prompt, next to each other.

        Returns:
            The loss, coefficient included, and what to report: NLL in nats a token. 0 and nothing where it is off.
        """
        coefficient = self.sft_coefficient
        if coefficient == 0:
            return 0.0, {}
        experts = self.state.as_expert(samples[:: self.state.config.rollout.responses_per_prompt])
        loss = self.accumulate(experts, token_mean_nll(experts, coefficient), more_follows=True)
        return loss, {"sft_coefficient": coefficient, "expert_nll": loss / coefficient}

    def accumulate(self, samples: list[Sample], loss_of: LossOf, more_follows: bool = False) -> float:
        """Backward the mean over samples of `loss_of(logp_bt, batch, rows)`; returns its value.

        With `more_follows` the gradient stays in its process until that of what follows travels.
        """
        state, total = self.state, 0.0
        for micro in state.micro_batches(samples):
            with state.processes.accumulating(self.module, micro.last and not more_follows):
                logp_bt = self.logps_with_gradient(micro.batch)
                loss = micro.mean(logp_bt, loss_of)
                state.processes.backward(loss)
            total += float(loss.detach())
            state.count(BACKWARD, micro.batch.num_tokens)
        return total

    def logps_with_gradient(self, batch: TokenBatch) -> Tensor:
        """Log-probabilities of the whole batch, shape (b, t); the gradient is that of this process's rows."""
        state = self.state
        with state.accelerator.autocast():
            return state.processes.over_rows(lambda own: state.policy.response_logps(own, self.module), batch)

    def step(self, loss: float) -> dict[str, float]:
        """Apply the accumulated gradient."""
        state, config = self.state, self.state.config
        rate = learning_rate(
            state.policy_round, config.num_rounds, config.learning_rate, config.schedule, config.warmup_fraction
        )
        set_learning_rate(self.optimizer, rate)
        where = f"align round {state.round}, policy update"
        norm = finite_update(state.policy.model, self.optimizer, config.max_grad_norm, loss, where)
        return {"policy_loss": loss, "policy_gradient_norm": norm, "learning_rate": rate}


def token_mean_nll(samples: Sequence[Sample], weight: float = 1.0) -> LossOf:
    """A loss for `accumulate`: weight x NLL in nats, averaged over the response tokens of all samples."""
    num_tokens = sum(len(sample.response) for sample in samples)

    def loss_of(logp_bt: Tensor, batch: TokenBatch, rows: slice) -> Tensor:
        # `accumulate` averages over samples; tokens are what NLL averages over.
        mean = token_nll(logp_bt, batch.mask_BT)[0] / num_tokens * (len(samples) / batch.mask_BT.shape[0])
        return weight * mean

    return loss_of


def _sampled_logps(samples: Sequence[Sample], batch: TokenBatch) -> Tensor | None:
    """The sampler's own log-probabilities in the layout of the batch, if it noted them."""
    noted = [sample.logps for sample in samples if sample.logps is not None]
    if len(noted) < len(samples):
        return None
    width = batch.response_BT.shape[1]
    return torch.tensor([logps + [0.0] * (width - len(logps)) for logps in noted], device=batch.ids_BS.device)
