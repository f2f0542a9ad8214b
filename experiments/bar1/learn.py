"""Learning from samples alone: SFT, and the adversarial game, by the production functions of `understudy.objectives`.

All rows are trained in one batch: to the objective a row is a prompt and its samples are the prompt's group, so the
leave-one-out baseline stays inside a row. Losses are means over the batch, hence a row's gradient is 1/R of what it
would be alone; they are multiplied by R, so that a row's training does not depend on how many run beside it.

Shapes as in world.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.bar1.world import NUM_POSITIONS, NUM_TOKENS, Markov
from understudy.objectives.adversarial import AdversarialObjective
from understudy.objectives.discriminator import DiscriminatorScores
from understudy.objectives.likelihood import token_nll
from understudy.objectives.policy_gradient import kl_penalty_to_reference, policy_gradient_loss


@dataclass(frozen=True)
class Settings:
    """Every number of the game that changes a result.

    Attributes:
        rounds: turns of sampling, discriminator and policy.
        warmup_rounds: first of them, in which only the discriminator learns.
        samples: words that each row's policy writes a round; as many demonstrations are drawn.
        policy_rate: Adam's, falling to 0 as a half cosine.
        discriminator_rate: Adam's, constant.
        discriminator_steps: a round, each on fresh halves of the round's words.
        hidden: width of the discriminator's two hidden layers.
        label_smoothing: of the discriminator's targets.
        reward_clip: bound on the reward.
        kl_coefficient: weight of KL(policy || SFT), constant.
        level: "sequence" or "token".
        loss: of the discriminator.
        frozen_after_warmup: as RLHF's reward model is, instead of playing on.
    """

    rounds: int = 800
    warmup_rounds: int = 100
    samples: int = 64
    policy_rate: float = 0.03
    discriminator_rate: float = 2e-3
    discriminator_steps: int = 2
    hidden: int = 64
    label_smoothing: float = 0.0
    reward_clip: float = 20.0
    kl_coefficient: float = 0.0
    level: str = "sequence"
    loss: str = "logistic"
    frozen_after_warmup: bool = False


class Discriminators(torch.nn.Module):
    """One small network a row: one-hot tokens up to a position in, logits_expert_high out."""

    def __init__(self, num_rows: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        widths = (NUM_POSITIONS * NUM_TOKENS, hidden, hidden, 1)
        self.weights = torch.nn.ParameterList()
        self.biases = torch.nn.ParameterList()
        for wide, out in zip(widths, widths[1:], strict=False):
            weight = torch.randn(num_rows, wide, out, generator=generator) * math.sqrt(2 / wide)
            self.weights.append(torch.nn.Parameter(weight))
            self.biases.append(torch.nn.Parameter(torch.zeros(num_rows, 1, out)))

    def forward(self, word_RNT: Tensor, level: str) -> Tensor:
        """Raw outputs (R, N, T, 1): at sequence level only the last position is filled, the others are 0."""
        onehot = torch.nn.functional.one_hot(word_RNT, NUM_TOKENS).to(torch.float32)
        if level == "token":
            seen = torch.ones(NUM_POSITIONS, NUM_POSITIONS).tril()
            hidden = onehot[:, :, None] * seen[None, None, :, :, None]
        else:
            hidden = onehot[:, :, None]
        num_rows, num, prefixes = hidden.shape[:3]
        hidden = hidden.reshape(num_rows, num * prefixes, -1)
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden if index == 0 else torch.relu(hidden), weight)
        output = hidden.reshape(num_rows, num, prefixes, 1)
        return torch.nn.functional.pad(output, (0, 0, NUM_POSITIONS - prefixes, 0))

    def of_row(self, row: int, word_NT: Tensor, level: str) -> Tensor:
        """Raw outputs (N) of one row's network for whole words."""
        alone = Discriminators.__new__(Discriminators)
        torch.nn.Module.__init__(alone)
        alone.weights = torch.nn.ParameterList([weight[row : row + 1] for weight in self.weights])
        alone.biases = torch.nn.ParameterList([bias[row : row + 1] for bias in self.biases])
        output: Tensor = alone(word_NT[None], level)
        return output[0, :, -1, 0]


def sft(start: Markov, train_RNT: Tensor, steps: int, *, label_smoothing: float = 0.0, rate: float = 0.1) -> Markov:
    """Minimise the token-mean NLL on all demonstrations by Adam; smoothing moves a share of each target to uniform."""
    logits = start.logits_RTCV.detach().clone().requires_grad_(True)
    policy = start.with_logits(logits)
    optimizer = torch.optim.Adam([logits], lr=rate)
    word_RUT, which_RN = distinct(train_RNT)
    row_R1 = torch.arange(len(train_RNT))[:, None]
    every_BT = torch.ones(train_RNT.shape[0] * train_RNT.shape[1], NUM_POSITIONS, dtype=torch.bool)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * half_cosine(step / steps)
        next_RUTV = policy.next_logps(word_RUT)
        logp_RUT = next_RUTV.gather(-1, word_RUT[..., None])[..., 0]
        target_RUT = (1 - label_smoothing) * logp_RUT + label_smoothing * next_RUTV.mean(-1)
        total, weight = token_nll(target_RUT[row_R1, which_RN].flatten(0, 1), every_BT)
        optimizer.zero_grad()
        torch.autograd.backward(len(train_RNT) * total / weight)
        optimizer.step()
    return policy.with_logits(logits.detach())


class Game:
    """The alternating game of every row: policies against discriminators, on demonstrations and own samples."""

    def __init__(self, divergence: str, settings: Settings, start: Markov, train_RNT: Tensor, seed: int) -> None:
        self.settings, self.train_RNT, self.reference = settings, train_RNT, start
        self.generator = torch.Generator().manual_seed(seed)
        self.objective = AdversarialObjective.from_names(
            divergence,
            settings.level,
            settings.loss,
            form="plain",
            absorbing=False,
            discount=1.0,
            horizon=NUM_POSITIONS,
            reward_clip=settings.reward_clip,
            label_smoothing=settings.label_smoothing,
        )
        self.policy = start.with_logits(start.logits_RTCV.detach().clone().requires_grad_(True))
        self.discriminator = Discriminators(len(train_RNT), settings.hidden, self.generator)
        self.policy_optimizer = torch.optim.Adam([self.policy.logits_RTCV])
        self.discriminator_optimizer = torch.optim.Adam(self.discriminator.parameters(), lr=settings.discriminator_rate)

    def play(self, observe: Callable[[int, Markov], None] | None = None) -> Markov:
        """Play all rounds and return the policies; `observe` sees each round's."""
        for round_index in range(self.settings.rounds):
            sample_RNT = self.policy.sample(self.settings.samples, self.generator)
            if not self.settings.frozen_after_warmup or round_index < self.settings.warmup_rounds:
                self.update_discriminator(sample_RNT)
            if round_index >= self.settings.warmup_rounds:
                self.update_policy(sample_RNT, round_index)
            if observe is not None:
                observe(round_index, self.policy)
        return self.policy.with_logits(self.policy.logits_RTCV.detach())

    def update_discriminator(self, sample_RNT: Tensor) -> None:
        """Some steps, each against fresh demonstrations."""
        for _ in range(self.settings.discriminator_steps):
            expert_RNT = draw(self.train_RNT, self.settings.samples, self.generator)
            loss = self.objective.discriminator_loss(self.scores(expert_RNT), self.scores(sample_RNT))
            self.discriminator_optimizer.zero_grad()
            torch.autograd.backward(len(expert_RNT) * loss)
            self.discriminator_optimizer.step()

    def update_policy(self, sample_RNT: Tensor, round_index: int) -> None:
        """One step of Adam on the policy's loss."""
        settings = self.settings
        played = (round_index - settings.warmup_rounds) / (settings.rounds - settings.warmup_rounds)
        self.policy_optimizer.param_groups[0]["lr"] = settings.policy_rate * half_cosine(played)
        self.policy_optimizer.zero_grad()
        torch.autograd.backward(len(sample_RNT) * self.policy_loss(sample_RNT))
        self.policy_optimizer.step()

    def policy_loss(self, sample_RNT: Tensor) -> Tensor:
        """Surrogate whose gradient is the policy gradient of the discriminator's reward."""
        settings = self.settings
        logp_BT = self.policy.logp(sample_RNT).flatten(0, 1)
        with torch.no_grad():
            scores = self.scores(sample_RNT)
            reference_BT = self.reference.logp(sample_RNT).flatten(0, 1)
            penalty_BT = settings.kl_coefficient * kl_penalty_to_reference(logp_BT, reference_BT)
        mask_BT = torch.ones_like(logp_BT, dtype=torch.bool)
        finished_B = torch.ones(len(logp_BT), dtype=torch.bool)
        advantage_BT, _ = self.objective.advantages(scores, penalty_BT, mask_BT, finished_B, settings.samples)
        return policy_gradient_loss(logp_BT, advantage_BT, mask_BT)

    def scores(self, word_RNT: Tensor) -> DiscriminatorScores:
        """What the discriminators say of some words of each row."""
        output_BT1 = self.raw_outputs(word_RNT).flatten(0, 1)
        every_BT = torch.ones(output_BT1.shape[:2], dtype=torch.bool)
        return self.objective.scores(output_BT1, torch.zeros(output_BT1.shape[:2]), every_BT)

    def raw_outputs(self, word_RNT: Tensor) -> Tensor:
        """The networks' outputs, shape (R, N, T, 1)."""
        output: Tensor = self.discriminator(word_RNT, self.settings.level)
        return output


def distinct(train_RNT: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct demonstrations (R, U, T), filled up with the first, and which of them each demonstration is (R, N)."""
    pairs = [torch.unique(word_NT, dim=0, return_inverse=True) for word_NT in train_RNT]
    widest = max(len(word) for word, _ in pairs)
    words = [torch.cat([word, word[:1].expand(widest - len(word), -1)]) for word, _ in pairs]
    return torch.stack(words), torch.stack([which for _, which in pairs])


def draw(word_RNT: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Draw `num` words of each row with replacement."""
    row_RN = torch.randint(word_RNT.shape[1], (len(word_RNT), num), generator=generator)
    return word_RNT[torch.arange(len(word_RNT))[:, None], row_RN]


def half_cosine(done: float) -> float:
    """Learning-rate factor, from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * done))
