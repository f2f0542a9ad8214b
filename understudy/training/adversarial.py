"""The alternating loop: sample, tell expert from policy, reward, improve (source note, 3.4.3-3.4.4, App. B).

    for each round:
        responses  ~ policy, k for each prompt of some demonstrations
        discriminator: minimise its loss on (expert, sample) pairs of the same prompts, old samples among them
        h          = log u as the discriminator sees it;  reward = f*(f'(u)) of the divergence
        policy:      policy gradient on reward - beta * log(policy / reference), leave-one-out baseline

Which divergence, level, loss or form runs is `AdversarialObjective`'s business; nothing here asks.
Shapes: B = prompts * k sequences, T response columns. `logits_expert_high`, rewards are to be maximised.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from understudy.config import AlignConfig
from understudy.errors import ConfigError
from understudy.models.generation import SamplingSettings, generate
from understudy.models.language_model import LanguageModel, TokenBatch
from understudy.models.scalar_head import ScalarHead
from understudy.objectives.adversarial import AdversarialObjective
from understudy.objectives.discriminator import DiscriminatorScores
from understudy.objectives.policy_gradient import kl_penalty_to_reference, policy_gradient_loss
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
from understudy.training.replay import Replay, Sample

_MICRO_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class AlignResult:
    """The policy and discriminator were trained in place; these are the numbers of the run."""

    num_rounds: int
    held_out_auc: float | None
    compute_token_passes: int
    train_seconds: float


@dataclass(frozen=True)
class Models:
    """The networks of one alignment. The reference may be the policy itself, read without its adapters."""

    policy: LanguageModel
    reference: LanguageModel
    discriminator: ScalarHead


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


def align(
    models: Models,
    train: Sequence[Example],
    held_out: Sequence[Example],
    config: AlignConfig,
    seed: int,
    loop: Loop,
) -> AlignResult:
    """Align the policy in place by the configured divergence.

    Args:
        models: policy and discriminator are trained in place.
        train: encoded demonstrations; those longer than the horizon cannot be imitated and are left out.
        held_out: encoded demonstrations for the discriminator's held-out AUC; never trained on.
        config: the `align` section.
        seed: of prompts, samples, dropout.
        loop: surroundings.

    Raises:
        ConfigError: no demonstration fits the horizon.
        TrainingDiverged: before an update that is not finite.
        Preempted: when asked to stop, after saving.
    """
    run = _AlignRun(models, train, held_out, config, seed, loop)
    run.resume()
    while run.round < run.total_rounds:
        samples = run.sample()
        stats = run.update_discriminator(samples)
        if run.round >= config.discriminator.warmup_rounds:
            stats |= run.update_policy(samples)
        run.replay.add(samples)
        run.finish_round(stats)
        loop.stop_if_asked(run.save, run.round, "round")
    run.save()
    return AlignResult(run.round, run.held_out_auc, run.passes, run.seconds)


class _AlignRun:
    """State of one alignment: everything that a checkpoint holds."""

    def __init__(
        self,
        models: Models,
        train: Sequence[Example],
        held_out: Sequence[Example],
        config: AlignConfig,
        seed: int,
        loop: Loop,
    ) -> None:
        self.config, self.seed, self.loop, self.models = config, seed, loop, models
        self.objective = objective_from(config)
        self.train, self.held_out = _within_horizon(train, config), _within_horizon(held_out, config)
        if not self.train:
            raise ConfigError(
                f"None of {len(train)} demonstrations has a response of at most {config.rollout.max_response_tokens} "
                "tokens. Raise align.rollout.max_response_tokens."
            )
        accelerator = self.accelerator = loop.accelerator
        settings = config.discriminator
        self.policy, self.discriminator = models.policy, models.discriminator
        policy_optimizer = create_optimizer(self.policy.model, config.learning_rate, config.weight_decay)
        discriminator_optimizer = create_optimizer(self.discriminator, settings.learning_rate, settings.weight_decay)
        self.policy_module, self.policy_optimizer = accelerator.prepare(self.policy.model, policy_optimizer)
        self.discriminator_module, self.discriminator_optimizer = accelerator.prepare(
            self.discriminator, discriminator_optimizer
        )
        self.models.reference.model.to(accelerator.device)
        self.sampling = SamplingSettings(
            config.rollout.max_response_tokens, config.rollout.temperature, config.rollout.top_p
        )
        self.total_rounds = settings.warmup_rounds + config.num_rounds
        self.replay = Replay(settings.replay_rounds)
        self.round, self.passes, self.seconds_before = 0, 0, 0.0
        self.held_out_auc: float | None = None
        self.watch = Stopwatch()

    @property
    def seconds(self) -> float:
        """Seconds in the loop, earlier attempts included."""
        return self.seconds_before + self.watch.seconds

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        checkpoint = self.loop.checkpoints.latest(self.accelerator.device)
        if checkpoint is None:
            return
        restore_parameters("policy", self.policy.model, checkpoint.tensors)
        restore_parameters("discriminator", self.discriminator, checkpoint.tensors)
        restore_optimizer("policy_optimizer", self.policy_optimizer, checkpoint.tensors)
        restore_optimizer("discriminator_optimizer", self.discriminator_optimizer, checkpoint.tensors)
        self.replay.restore(checkpoint.tensors)
        self.round, state = checkpoint.step, checkpoint.state
        self.passes, self.seconds_before = state["passes"], state["seconds"]
        self.held_out_auc = state["held_out_auc"]
        self.loop.history[:] = state["history"]

    def save(self) -> None:
        """Write a checkpoint."""
        if not self.accelerator.is_main_process:
            return
        tensors = trainable_tensors("policy", self.policy.model)
        tensors |= trainable_tensors("discriminator", self.discriminator)
        tensors |= optimizer_tensors("policy_optimizer", self.policy_optimizer)
        tensors |= optimizer_tensors("discriminator_optimizer", self.discriminator_optimizer)
        state = {
            "passes": self.passes,
            "seconds": self.seconds,
            "held_out_auc": self.held_out_auc,
            "history": self.loop.history,
        }
        self.loop.checkpoints.save(self.round, tensors | self.replay.tensors(), state)

    def sample(self) -> list[Sample]:
        """Sample k responses for each prompt of this round."""
        rows = _rows_of_round(len(self.train), self.config.rollout.prompts_per_round, self.seed, self.round)
        return self._sample(self.train, rows, "rollout", self.config.rollout.responses_per_prompt)

    def update_discriminator(self, samples: list[Sample]) -> dict[str, float]:
        """Some updates on expert and sampled responses to the same prompts."""
        settings = self.config.discriminator
        warming_up = self.round < settings.warmup_rounds
        num_updates = settings.warmup_updates_per_round if warming_up else settings.updates_per_round
        totals: dict[str, float] = {}
        for update in range(num_updates):
            torch.manual_seed(step_seed(self.seed, "discriminator", self.round, update))
            chosen = self._discriminator_samples(samples, update)
            for name, value in self._discriminator_step(chosen).items():
                totals[name] = totals.get(name, 0.0) + value / num_updates
        return totals

    def update_policy(self, samples: list[Sample]) -> dict[str, float]:
        """One policy-gradient step on all samples of the round."""
        config = self.config
        policy_round = self.round - config.discriminator.warmup_rounds
        fraction = policy_round / max(1, config.num_rounds - 1)
        beta = config.kl_coefficient_start + fraction * (config.kl_coefficient_end - config.kl_coefficient_start)
        torch.manual_seed(step_seed(self.seed, "policy", self.round))
        self.policy.model.eval()
        logp_BT, reference_BT, mask_BT, scores = self._score(samples)
        penalty_BT = beta * kl_penalty_to_reference(logp_BT, reference_BT)
        finished_B = torch.tensor([sample.finished for sample in samples], device=mask_BT.device)
        advantage_BT, stats = self.objective.advantages(
            scores, penalty_BT, mask_BT, finished_B, config.rollout.responses_per_prompt
        )
        loss = self._policy_gradient(samples, advantage_BT)
        rate = learning_rate(
            policy_round, config.num_rounds, config.learning_rate, config.schedule, config.warmup_fraction
        )
        set_learning_rate(self.policy_optimizer, rate)
        where = f"align round {self.round}, policy update"
        norm = finite_update(
            self.accelerator, self.policy.model, self.policy_optimizer, config.max_grad_norm, loss, where
        )
        kl = float(kl_penalty_to_reference(logp_BT, reference_BT)[mask_BT].sum()) / len(samples)
        stats |= {"policy_loss": loss, "policy_gradient_norm": norm, "learning_rate": rate}
        stats |= {"kl": kl, "kl_coefficient": beta, "entropy": -float(logp_BT[mask_BT].mean())}
        stats |= {"response_tokens": float(mask_BT.sum()) / len(samples), "finished": float(finished_B.float().mean())}
        return stats

    def finish_round(self, stats: dict[str, float]) -> None:
        """Count, measure what is due, report and save."""
        self.round += 1
        config = self.config
        if self.held_out and (self.round % config.held_out_every_rounds == 0 or self.round == self.total_rounds):
            self.held_out_auc = stats["held_out_auc"] = self._held_out_auc()
        rates = {"tokens_per_second": self.watch.tokens_per_second}
        self.loop.log(self.round, stats, rates)
        names = {"loss": "policy_loss", "accuracy": "discriminator_accuracy", "reward": "reward", "kl": "kl"}
        shown = {short: stats[name] for short, name in names.items() if name in stats} | rates
        self.loop.progress(self.round, self.total_rounds, "rounds", shown)
        if self.round % config.checkpoint_every_rounds == 0:
            self.save()

    def _sample(self, examples: Sequence[Example], rows: Sequence[int], purpose: str, repeats: int) -> list[Sample]:
        device = self.accelerator.device
        generator = torch.Generator(device).manual_seed(step_seed(self.seed, purpose, self.round))
        prompts = [examples[row].prompt for row in rows]
        with self.accelerator.autocast():
            rollouts = generate(self.policy, prompts, self.sampling, generator, repeats)
        self._count(1, sum(map(len, prompts)) + rollouts.num_tokens)
        repeated = [row for row in rows for _ in range(repeats)]
        return [Sample(*item) for item in zip(repeated, rollouts.responses, rollouts.finished, strict=True)]

    def _discriminator_samples(self, samples: list[Sample], update: int) -> list[Sample]:
        settings = self.config.discriminator
        chance = random.Random(step_seed(self.seed, "replay", self.round, update))
        old = self.replay.samples
        num_old = min(len(old), round(settings.replay_fraction * settings.batch_pairs))
        num_new = min(len(samples), settings.batch_pairs - num_old)
        return chance.sample(samples, num_new) + chance.sample(old, num_old)

    def _discriminator_step(self, chosen: list[Sample]) -> dict[str, float]:
        self.discriminator.train()
        with self.accelerator.autocast():
            expert, policy = self._scores_of_pairs(self.train, chosen, self.discriminator_module)
            loss = self.objective.discriminator_loss(expert, policy)
        self.accelerator.backward(loss)
        where = f"align round {self.round}, discriminator update on rows {[self.train[s.row].id for s in chosen][:8]}"
        limit = self.config.discriminator.max_grad_norm
        norm = finite_update(
            self.accelerator, self.discriminator, self.discriminator_optimizer, limit, float(loss.detach()), where
        )
        h_expert, h_policy = _scored(expert), _scored(policy)
        accuracy = (float((h_expert > 0).float().mean()) + float((h_policy < 0).float().mean())) / 2
        return {
            "discriminator_loss": float(loss.detach()),
            "discriminator_accuracy": accuracy,
            "discriminator_gradient_norm": norm,
            "logit_expert": float(h_expert.mean()),
            "logit_policy": float(h_policy.mean()),
        }

    def _scores_of_pairs(
        self, examples: Sequence[Example], chosen: Sequence[Sample], module: Any
    ) -> tuple[DiscriminatorScores, DiscriminatorScores]:
        """Scores of the expert's and the sampled responses to the same prompts."""
        prompts = [examples[sample.row].prompt for sample in chosen]
        prompt_B = torch.tensor([sample.row for sample in chosen], device=self.accelerator.device)
        both = []
        for responses in ([examples[s.row].response for s in chosen], [s.response for s in chosen]):
            batch = self.policy.batch(prompts, responses)
            logp_BT = self._logp_for_form(batch)
            both.append(self.objective.scores(module(batch), logp_BT, batch.mask_BT, prompt_B))
            self._count(3, batch.num_tokens)
        return both[0], both[1]

    @torch.no_grad()
    def _logp_for_form(self, batch: TokenBatch) -> Tensor:
        if self.objective.form == "plain":
            return torch.zeros_like(batch.mask_BT, dtype=torch.float32)
        self._count(1, batch.num_tokens)
        return self.policy.response_logps(batch)

    @torch.no_grad()
    def _score(self, samples: list[Sample]) -> tuple[Tensor, Tensor, Tensor, DiscriminatorScores]:
        """Log-probabilities under policy and reference, and discriminator scores, of this round's samples."""
        self.discriminator.eval()
        pieces = []
        for batch in self._micro_batches(samples):
            with self.accelerator.autocast():
                logp_bT = self.policy.response_logps(batch)
                with self.models.reference.without_adapters():
                    reference_bT = self.models.reference.response_logps(batch)
                output_bTn = self.discriminator(batch)
            pieces.append((logp_bT, reference_bT, batch.mask_BT, output_bTn))
            self._count(3, batch.num_tokens)
        logp_BT, reference_BT, mask_BT, output_BTn = (
            torch.cat(_same_width(column)) for column in zip(*pieces, strict=True)
        )
        prompt_B = torch.tensor([sample.row for sample in samples], device=mask_BT.device)
        return logp_BT, reference_BT, mask_BT, self.objective.scores(output_BTn, logp_BT, mask_BT, prompt_B)

    def _policy_gradient(self, samples: list[Sample], advantage_BT: Tensor) -> float:
        total, start = 0.0, 0
        for batch in self._micro_batches(samples):
            count, width = batch.mask_BT.shape
            with self.accelerator.autocast():
                logp_bT = self.policy.response_logps(batch, self.policy_module)
            part = policy_gradient_loss(logp_bT, advantage_BT[start : start + count, :width], batch.mask_BT)
            loss = part * (count / len(samples))
            self.accelerator.backward(loss)
            total, start = total + float(loss.detach()), start + count
            self._count(3, batch.num_tokens)
        return total

    def _micro_batches(self, samples: Sequence[Sample]) -> Iterator[TokenBatch]:
        """Consecutive samples under a token budget, in order."""
        longest = max(len(self.train[s.row].prompt) + len(s.response) for s in samples)
        size = max(1, _MICRO_BATCH_TOKENS // longest)
        for start in range(0, len(samples), size):
            part = samples[start : start + size]
            yield self.policy.batch([self.train[s.row].prompt for s in part], [s.response for s in part])

    @torch.no_grad()
    def _held_out_auc(self) -> float:
        """AUC of the discriminator on held-out prompts: the chance that an expert response scores higher."""
        rows = list(range(min(len(self.held_out), 4 * self.config.discriminator.batch_pairs)))
        self.discriminator.eval()
        samples = self._sample(self.held_out, rows, "held_out", 1)
        expert, policy = self._scores_of_pairs(self.held_out, samples, self.discriminator)
        return auc(_last(expert), _last(policy))

    def _count(self, passes: int, num_tokens: int) -> None:
        self.passes += passes * num_tokens
        self.watch.add(num_tokens)


def auc(expert_N: Tensor, policy_M: Tensor) -> float:
    """P(score of an expert response > score of a sample), ties count half; 0.5 is indistinguishable."""
    gap_NM = expert_N[:, None] - policy_M[None, :]
    return float(((gap_NM > 0).double() + 0.5 * (gap_NM == 0).double()).mean())


def _rows_of_round(num_rows: int, num_prompts: int, seed: int, round_index: int) -> list[int]:
    """Rows without replacement within an epoch; a function of the round, so that a resume needs no cursor."""
    start = round_index * num_prompts
    rows: list[int] = []
    while len(rows) < num_prompts:
        epoch, offset = divmod(start + len(rows), num_rows)
        order = list(range(num_rows))
        random.Random(step_seed(seed, "prompts", epoch)).shuffle(order)
        rows += order[offset : offset + num_prompts - len(rows)]
    return rows


def _within_horizon(examples: Sequence[Example], config: AlignConfig) -> list[Example]:
    return [example for example in examples if len(example.response) <= config.rollout.max_response_tokens]


def _scored(scores: DiscriminatorScores) -> Tensor:
    return scores.logits_expert_high_BT.detach()[scores.mask_BT]


def _last(scores: DiscriminatorScores) -> Tensor:
    column_T = torch.arange(scores.mask_BT.shape[1], device=scores.mask_BT.device)
    last_B = (scores.mask_BT.long() * column_T).argmax(dim=1)
    return scores.logits_expert_high_BT.gather(1, last_B[:, None]).squeeze(1)


def _same_width(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Pad (b, T) or (b, T, n) tensors with zeros to the widest T."""
    width = max(tensor.shape[1] for tensor in tensors)
    return [
        torch.cat([tensor, tensor.new_zeros(tensor.shape[0], width - tensor.shape[1], *tensor.shape[2:])], dim=1)
        for tensor in tensors
    ]
