"""The state of one alignment: networks, optimisers, old samples and counters; all that a checkpoint holds.

Shapes: B sequences (k responses a prompt, next to each other), T response columns.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from understudy.config import AlignConfig
from understudy.errors import ConfigError
from understudy.models.discriminator import Discriminator
from understudy.models.engines import create_engine
from understudy.models.generation import SamplingSettings
from understudy.models.language_model import LanguageModel, TokenBatch
from understudy.models.trunk_reader import TrunkReader
from understudy.objectives.adversarial import AdversarialObjective
from understudy.training.checkpoint import (
    optimizer_tensors,
    restore_optimizer,
    restore_parameters,
    trainable_tensors,
)
from understudy.training.examples import MAX_SKIPPED_FRACTION, Example, too_many, within_horizon
from understudy.training.health import Health
from understudy.training.loop import Loop, Stopwatch, create_optimizer, step_seed
from understudy.training.methods import FORWARD
from understudy.training.processes import Processes
from understudy.training.replay import Replay, Sample
from understudy.training.seen import SeenByReference


@dataclass(frozen=True)
class MicroBatch:
    """Consecutive samples that go through the networks at once.

    Attributes:
        batch: their tokens.
        parts: these rows, counted within the batch, in the portions that one process takes at once: means over a
            micro-batch are taken over these, so that they do not depend on the number of processes.
        first: the first of these rows among all samples.
        num_samples: samples in all.
        last: whether none follows.
    """

    batch: TokenBatch
    parts: list[slice]
    first: int
    num_samples: int
    last: bool

    def mean(self, output_BT: Tensor, loss_of: Callable[[Tensor, TokenBatch, slice], Tensor]) -> Tensor:
        """The share of these rows in the mean over all samples of loss_of(output, batch, rows among all samples)."""
        total = output_BT.new_zeros(())
        for rows in self.parts:
            count = rows.stop - rows.start
            among_all = slice(self.first + rows.start, self.first + rows.stop)
            total = total + loss_of(output_BT[rows], self.batch.part(rows), among_all) * (count / self.num_samples)
        return total


def same_width(tensors: Sequence[Any]) -> list[Tensor]:
    """Pad (b, T) or (b, T, n) tensors with zeros to the widest T."""
    width = max(tensor.shape[1] for tensor in tensors)
    return [
        torch.cat([tensor, tensor.new_zeros(tensor.shape[0], width - tensor.shape[1], *tensor.shape[2:])], dim=1)
        for tensor in tensors
    ]


@dataclass(frozen=True)
class Models:
    """The networks of one alignment. The reference may be the policy itself, read without its adapters."""

    policy: LanguageModel
    reference: LanguageModel
    discriminator: Discriminator


class AlignState:
    """Networks, data and counters that discriminator and policy updates share."""

    def __init__(
        self,
        models: Models,
        train: Sequence[Example],
        held_out: Sequence[Example],
        config: AlignConfig,
        objective: AdversarialObjective,
        seed: int,
        loop: Loop,
    ) -> None:
        self.models, self.config, self.objective, self.seed, self.loop = models, config, objective, seed, loop
        within, held_out_within = (
            within_horizon(rows, config.rollout.max_response_tokens) for rows in (train, held_out)
        )
        self.train, self.held_out = within.examples, held_out_within.examples
        self.skipped, self.held_out_skipped = within.skipped, held_out_within.skipped
        if not train:
            raise ConfigError("There is no demonstration to align on. Give a dataset whose training split has rows.")
        if too_many(self.skipped, len(train)):
            raise ConfigError(
                f"{len(self.skipped)} of {len(train)} demonstrations have a response that the policy may not sample "
                f"whole (allowed: {MAX_SKIPPED_FRACTION:.0%}); the first: {self.skipped[0]['id']}: "
                f"{self.skipped[0]['reason']}. Raise that, or lower data.max_response_chars."
            )
        if config.min_held_out_auc is not None and not self.held_out:
            raise ConfigError(
                f"align.min_held_out_auc is {config.min_held_out_auc:g}, but none of {len(held_out)} validation "
                f"demonstrations has a response of at most {config.rollout.max_response_tokens} tokens, so that no "
                "AUC can be measured. Raise data.splits.validation, or set align.min_held_out_auc to null."
            )
        self.policy = models.policy
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, Any] = {}
        self.sampling = SamplingSettings(
            config.rollout.max_response_tokens, config.rollout.temperature, config.rollout.top_p
        )
        self.engine = create_engine(config.rollout.engine, config.rollout.server_url)
        self.replay = Replay(config.discriminator.replay_rounds)
        self.round, self.passes, self.seconds_before = 0, 0, 0.0
        self.held_out_auc: float | None = None
        self.policy_held_rounds = 0
        self.watch = Stopwatch()
        self.health = Health(config.health, config.discriminator.warmup_rounds, models.policy.model, loop.processes)
        models.reference.model.to(loop.accelerator.device)
        # New adapters start in training mode, in which a resumed run's first reads would meet their dropout.
        models.policy.model.eval()
        models.reference.model.eval()
        self.seen: SeenByReference | None = None
        if isinstance(models.discriminator, TrunkReader):
            tokens, count = config.micro_batch_tokens * self.processes.count, partial(self.count, FORWARD)
            self.seen = SeenByReference(models.reference, self.processes.over_rows, tokens, count)
        self._discriminator_pass = _relative_pass(models, config.discriminator.init)

    @property
    def accelerator(self) -> Any:
        """Device, precision and processes."""
        return self.loop.accelerator

    @property
    def processes(self) -> Processes:
        """Who runs which rows."""
        return self.loop.processes

    @property
    def total_rounds(self) -> int:
        """Warm-up rounds of the discriminator and rounds of the policy."""
        return self.config.discriminator.warmup_rounds + self.config.num_rounds

    @property
    def policy_round(self) -> int:
        """Rounds since the policy's first update; negative in the warm-up."""
        return self.round - self.config.discriminator.warmup_rounds

    @property
    def starts_improving(self) -> bool:
        """Whether the warm-up has just ended."""
        return self.policy_round == 0

    @property
    def holds_policy(self) -> bool:
        """Whether the discriminator's last measurement is too low for its word to move the policy."""
        least, auc = self.config.min_held_out_auc, self.held_out_auc
        # Asked in all processes, which must take the same way whatever their devices' last digits.
        return least is not None and self.processes.any(auc is None or auc < least)

    @property
    def seconds(self) -> float:
        """Seconds in the loop, earlier attempts included."""
        return self.seconds_before + self.watch.seconds

    def register(self, name: str, module: nn.Module, peak_rate: float, weight_decay: float) -> tuple[Any, Any]:
        """Give a trained network its optimiser; return both as accelerate wraps them. Both are checkpointed."""
        optimizer = create_optimizer(module, peak_rate, weight_decay)
        wrapped, self.optimizers[name] = self.processes.prepare(module, optimizer)
        self.modules[name] = module
        return wrapped, self.optimizers[name]

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        checkpoint = self.loop.latest()
        if checkpoint is None:
            return
        for name, module in self.modules.items():
            restore_parameters(name, module, checkpoint.tensors)
            restore_optimizer(f"{name}_optimizer", self.optimizers[name], checkpoint.tensors)
        self.replay.restore(checkpoint.tensors)
        self.health.restore(checkpoint.tensors, checkpoint.state["health"])
        self.round, state = checkpoint.step, checkpoint.state
        self.passes, self.seconds_before = state["passes"], state["seconds"]
        self.held_out_auc, self.policy_held_rounds = state["held_out_auc"], state["policy_held_rounds"]
        self.loop.history[:] = state["history"]

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = self.replay.tensors()
        for name, module in self.modules.items():
            tensors |= trainable_tensors(name, module)
            tensors |= optimizer_tensors(f"{name}_optimizer", self.optimizers[name])
        tensors |= self.health.tensors()
        state = {
            "passes": self.passes,
            "seconds": self.seconds,
            "held_out_auc": self.held_out_auc,
            "policy_held_rounds": self.policy_held_rounds,
            "health": self.health.state(),
            "history": self.loop.history,
        }
        self.loop.save(self.round, tensors, state)

    def seed_step(self, *purpose: str | int) -> None:
        """Make what follows a function of the run's seed, the purpose and the round."""
        torch.manual_seed(step_seed(self.seed, *purpose, self.round))

    def sample_round(self) -> list[Sample]:
        """Sample k responses for each prompt of this round."""
        rollout = self.config.rollout
        rows = rows_of_round(len(self.train), rollout.prompts_per_round, self.seed, self.round)
        return self.sample(self.train, rows, "rollout", rollout.responses_per_prompt)

    def sample(self, examples: Sequence[Example], rows: Sequence[int], purpose: str, repeats: int) -> list[Sample]:
        """Sample responses to the prompts of some rows."""
        generator = torch.Generator(self.accelerator.device).manual_seed(step_seed(self.seed, purpose, self.round))
        prompts = [examples[row].prompt for row in rows]
        with self.accelerator.autocast():
            rollouts = self.engine.generate(self.policy, prompts, self.sampling, generator, repeats, self.processes)
        self.count(FORWARD, sum(map(len, prompts)) + rollouts.num_tokens)
        repeated = [row for row in rows for _ in range(repeats)]
        logps: Sequence[list[float] | None] = rollouts.logps or [None] * len(repeated)
        return [Sample(*item) for item in zip(repeated, rollouts.responses, rollouts.finished, logps, strict=True)]

    def micro_batches(self, samples: Sequence[Sample]) -> Iterator[MicroBatch]:
        """Consecutive samples under a token budget for each process, in order."""
        size = self._rows_at_once(samples)
        step = size * self.processes.count
        for start in range(0, len(samples), step):
            some = samples[start : start + step]
            parts = [slice(first, min(first + size, len(some))) for first in range(0, len(some), size)]
            yield MicroBatch(self.batch(some), parts, start, len(samples), start + step >= len(samples))

    def parts(self, samples: Sequence[Sample]) -> list[TokenBatch]:
        """Consecutive samples under a token budget for all processes together, in order.

        They are the same for any number of processes, as what is drawn for each of them at random must be.
        """
        size = self._rows_at_once(samples)
        return [self.batch(samples[start : start + size]) for start in range(0, len(samples), size)]

    def _rows_at_once(self, samples: Sequence[Sample]) -> int:
        longest = max(len(self.train[s.row].prompt) + len(s.response) for s in samples)
        return max(1, self.config.micro_batch_tokens // longest)

    def batch(self, samples: Sequence[Sample], examples: Sequence[Example] | None = None) -> TokenBatch:
        """Samples and their prompts, by default training demonstrations', as tokens."""
        found = self.train if examples is None else examples
        return self.policy.batch([found[s.row].prompt for s in samples], [s.response for s in samples])

    def count_discriminator(self, passes: int, batch: TokenBatch) -> None:
        """Account for the discriminator's compute on a batch; one that reads the reference runs on responses alone."""
        num_tokens = batch.num_tokens if self.seen is None else int(batch.mask_BT.sum())
        self.count(passes, round(self._discriminator_pass * num_tokens))

    def with_seen(self, batch: TokenBatch, examples: Sequence[Example], samples: Sequence[Sample]) -> TokenBatch:
        """The batch of these samples with what the reference saw in them, where the discriminator reads that."""
        if self.seen is None:
            return batch
        return self.seen.attach(batch, [examples[s.row].prompt for s in samples], [s.response for s in samples])

    def as_expert(self, samples: Sequence[Sample], examples: Sequence[Example] | None = None) -> list[Sample]:
        """The expert's responses to the prompts of some samples, by default training demonstrations."""
        found = self.train if examples is None else examples
        return [Sample(sample.row, found[sample.row].response, finished=True) for sample in samples]

    def count(self, passes: int, num_tokens: int) -> None:
        """Account for the compute of some tokens."""
        self.passes += passes * num_tokens
        self.watch.add(num_tokens)


def _relative_pass(models: Models, kind: str) -> float:
    """Compute of a token in the discriminator, in passes through the policy, by weights without embeddings.

    A trunk of the policy's own shape is a pass, a table of look-ups none.
    """
    if kind in ("sft", "shared_lora"):
        return 1.0
    return _num_product_weights(models.discriminator) / _num_product_weights(models.policy.model)


def _num_product_weights(module: nn.Module) -> int:
    inputs = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    tied = {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear)}
    return sum(weight.numel() for weight in module.parameters() if id(weight) not in inputs - tied)


def rows_of_round(num_rows: int, num_prompts: int, seed: int, round_index: int) -> list[int]:
    """Rows without replacement within an epoch; a function of the round, so that a resume needs no cursor."""
    start = round_index * num_prompts
    rows: list[int] = []
    while len(rows) < num_prompts:
        epoch, offset = divmod(start + len(rows), num_rows)
        order = list(range(num_rows))
        random.Random(step_seed(seed, "prompts", epoch)).shuffle(order)
        rows += order[offset : offset + num_prompts - len(rows)]
    return rows
