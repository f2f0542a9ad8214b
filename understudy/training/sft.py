"""Supervised fine-tuning on demonstrations: Eq 7, 12 or 14 by `sft.objective`.

Loss on response tokens and the end token only, normalised by the tokens of the whole global batch: the same
curve for any split of a step into micro-batches and processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from understudy.config import SftConfig
from understudy.data.batching import endless_batches, length_bucketed_batches
from understudy.models.language_model import LanguageModel, TokenBatch, token_logps
from understudy.objectives.likelihood import nll_sum_and_weight
from understudy.training.checkpoint import (
    optimizer_tensors,
    restore_optimizer,
    restore_parameters,
    trainable_tensors,
)
from understudy.training.examples import Example
from understudy.training.loop import (
    Loop,
    Stopwatch,
    create_optimizer,
    finite_update,
    learning_rate,
    set_learning_rate,
    step_seed,
)
from understudy.training.processes import Processes

_BACKWARD_PASSES = 3  # forward 1 + backward 2, the usual count


@dataclass(frozen=True)
class SftResult:
    """The policy was trained in place; these are the numbers of the run."""

    best_validation_nll: float
    best_step: int
    kept_validation_nll: float
    num_steps: int
    compute_token_passes: int
    train_seconds: float


def train_sft(
    policy: LanguageModel,
    train: Sequence[Example],
    validation: Sequence[Example],
    config: SftConfig,
    seed: int,
    loop: Loop,
    token_passes: int | None = None,
) -> SftResult:
    """Train the policy in place and leave it at its best validation NLL, or as it is at the end, by `config.keep`.

    Args:
        policy: trained in place; with adapters, only they change.
        train: encoded demonstrations.
        validation: encoded held-out demonstrations; may be empty, then the last weights are kept.
        config: the `sft` section.
        seed: of the order of batches and of dropout.
        loop: surroundings.
        token_passes: stop after this compute instead of after `config.epochs` (longer SFT at equal compute).

    Raises:
        TrainingDiverged: before an update with a loss or gradient that is not finite.
        Preempted: when asked to stop, after saving.
    """
    run = _SftRun(policy, train, validation, config, seed, loop, token_passes)
    run.resume()
    while run.step < run.total_steps:
        if run.step % run.evaluate_every == 0:
            run.evaluate()
        run.update()
        if run.step % config.checkpoint_every_steps == 0:
            run.save()
        loop.stop_if_asked(run.save, run.step, "step")
    run.evaluate()
    run.save()
    return run.finish()


class _SftRun:
    """State of one SFT run: everything that a checkpoint holds."""

    def __init__(
        self,
        policy: LanguageModel,
        train: Sequence[Example],
        validation: Sequence[Example],
        config: SftConfig,
        seed: int,
        loop: Loop,
        token_passes: int | None,
    ) -> None:
        self.policy, self.train, self.validation = policy, train, validation
        self.config, self.seed, self.loop = config, seed, loop
        self.accelerator, self.processes = loop.accelerator, loop.processes
        optimizer = create_optimizer(policy.model, config.learning_rate, config.weight_decay)
        self.module, self.optimizer = self.processes.prepare(policy.model, optimizer)
        self.lengths = [example.num_tokens for example in train]
        self.horizon = max(len(example.response) for example in train)
        self.step, self.passes, self.best_step = 0, 0, 0
        self.best_nll, self.last_nll = math.inf, math.inf
        self.best: dict[str, Tensor] = {}
        self.seconds_before = 0.0
        self.watch = Stopwatch()
        self.total_steps, self.evaluate_every = self._plan(token_passes)
        self.batches: Iterator[list[int]] = iter(())

    def _plan(self, token_passes: int | None) -> tuple[int, int]:
        first_epoch = length_bucketed_batches(self.lengths, self.config.batch_tokens, self.seed, epoch=0)
        per_epoch = len(first_epoch) / self.config.micro_batches_per_step
        epochs = self.config.epochs
        if token_passes is not None:
            epochs = token_passes / (_BACKWARD_PASSES * sum(self.lengths))
        return max(1, math.ceil(epochs * per_epoch)), max(1, round(per_epoch / self.config.evaluations_per_epoch))

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        checkpoint = self.loop.latest()
        if checkpoint is not None:
            restore_parameters("policy", self.policy.model, checkpoint.tensors)
            restore_optimizer("optimizer", self.optimizer, checkpoint.tensors)
            self.best = {k.removeprefix("best."): v for k, v in checkpoint.tensors.items() if k.startswith("best.")}
            state = checkpoint.state
            self.step, self.passes = checkpoint.step, state["passes"]
            self.best_nll = math.inf if state["best_nll"] is None else state["best_nll"]
            self.best_step, self.seconds_before = state["best_step"], state["seconds"]
            self.loop.history[:] = state["history"]
        start = self.step * self.config.micro_batches_per_step
        self.batches = endless_batches(self.lengths, self.config.batch_tokens, self.seed, start)

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = trainable_tensors("policy", self.policy.model) | optimizer_tensors("optimizer", self.optimizer)
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        state = {
            "passes": self.passes,
            "best_nll": self.best_nll if math.isfinite(self.best_nll) else None,
            "best_step": self.best_step,
            "seconds": self.seconds_before + self.watch.seconds,
            "history": self.loop.history,
        }
        self.loop.save(self.step, tensors, state)

    def update(self) -> None:
        """One optimiser step over `micro_batches_per_step` micro-batches."""
        config, accelerator, processes = self.config, self.accelerator, self.processes
        indices = list(islice(self.batches, config.micro_batches_per_step))
        chosen = [[self.train[index] for index in batch] for batch in indices]
        mine = processes.deal(chosen)
        weight = sum(self._weight(examples) for examples in chosen)
        torch.manual_seed(step_seed(self.seed, "sft", self.step, processes.rank))
        self.policy.model.train()
        loss_sum = torch.zeros((), device=accelerator.device)
        for index, (examples, own) in enumerate(mine):
            with processes.accumulating(self.module, last=index + 1 == len(mine)), accelerator.autocast():
                nll_sum = self._nll(self._batch(examples))[0] * own
                processes.backward(nll_sum / weight)
            loss_sum += nll_sum.detach()
        loss = processes.total(float(loss_sum)) / weight
        rate = learning_rate(self.step, self.total_steps, config.learning_rate, config.schedule, config.warmup_fraction)
        set_learning_rate(self.optimizer, rate)
        where = f"sft step {self.step}, rows {[example.id for batch in chosen for example in batch][:8]}"
        norm = finite_update(self.policy.model, self.optimizer, config.max_grad_norm, loss, where)
        self.step += 1
        num_tokens = sum(example.num_tokens for batch in chosen for example in batch)
        self.passes += _BACKWARD_PASSES * num_tokens
        self.watch.add(num_tokens)
        rates = {"tokens_per_second": self.watch.tokens_per_second}
        self.loop.log(self.step, {"loss": loss, "gradient_norm": norm, "learning_rate": rate}, rates)
        self.loop.progress(self.step, self.total_steps, "steps", {"loss": loss, **rates})

    @torch.no_grad()
    def evaluate(self) -> None:
        """Measure validation NLL in nats per token and remember the best weights."""
        if not self.validation:
            return
        self.policy.model.eval()
        nll = validation_nll(
            self.policy, self.validation, self.config.batch_tokens, self.accelerator.autocast, self.processes
        )
        self.last_nll = nll
        if nll < self.best_nll:
            self.best_nll, self.best_step = nll, self.step
            weights = trainable_tensors("", self.policy.model)
            self.best = {name: value.clone() for name, value in weights.items()}
        self.loop.log(self.step, {"validation_nll": nll}, {})

    def finish(self) -> SftResult:
        """Put the weights that are kept in place."""
        keeps_best = self.config.keep == "best_nll"
        if keeps_best and self.best:
            restore_parameters("", self.policy.model, self.best)
        self.policy.model.eval()
        seconds = self.seconds_before + self.watch.seconds
        kept_nll = self.best_nll if keeps_best else self.last_nll
        return SftResult(self.best_nll, self.best_step, kept_nll, self.step, self.passes, seconds)

    def _batch(self, examples: Sequence[Example]) -> TokenBatch:
        return self.policy.batch([e.prompt for e in examples], [e.response for e in examples])

    def _weight(self, examples: Sequence[Example]) -> float:
        """Normaliser of the objective for some rows, without a forward pass, on every process alike."""
        longest = max(len(example.response) for example in examples)
        mask_BT = torch.zeros(len(examples), longest, dtype=torch.bool)
        for row, example in enumerate(examples):
            mask_BT[row, : len(example.response)] = True
        return float(self._objective(torch.zeros_like(mask_BT, dtype=torch.float32), mask_BT)[1])

    def _nll(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        smoothing = self.config.label_smoothing
        if smoothing == 0:
            logp_BT = self.policy.response_logps(batch, self.module)
        else:
            logits_BTV = self.policy.response_logits(batch, self.module)
            logp_BT = token_logps(logits_BTV, batch)
            uniform_BT = (logits_BTV.mean(-1) - logits_BTV.logsumexp(-1)).masked_fill(~batch.mask_BT, 0.0)
            logp_BT = (1 - smoothing) * logp_BT + smoothing * uniform_BT
        return self._objective(logp_BT, batch.mask_BT)

    def _objective(self, logp_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        return nll_sum_and_weight(
            config.objective,
            logp_BT,
            mask_BT,
            horizon=self.horizon,
            discount=config.discount,
            absorbing=config.absorbing,
        )


@torch.no_grad()
def validation_nll(
    policy: LanguageModel,
    examples: Sequence[Example],
    batch_tokens: int,
    autocast: Callable[[], Any],
    processes: Processes | None = None,
) -> float:
    """Token-mean NLL of expert responses in nats; several processes share the work and get the same number."""
    lengths = [example.num_tokens for example in examples]
    batches = length_bucketed_batches(lengths, batch_tokens, seed=0, epoch=0)
    total = 0.0
    for indices, own in processes.deal(batches) if processes else ((batch, True) for batch in batches):
        chosen = [examples[index] for index in indices]
        with autocast():
            batch = policy.batch([e.prompt for e in chosen], [e.response for e in chosen])
            total -= own * float(policy.response_logps(batch).double().sum())
    total = processes.total(total) if processes else total
    return total / sum(len(example.response) for example in examples)
