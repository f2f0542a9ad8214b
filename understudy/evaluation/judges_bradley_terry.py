"""A reward model trained inside evaluation: the expert's responses against samples of SFT (source note, Eq 26, 27).

It reads the train split, and tells its accuracy on the validation split; test rows are never shown to it. What it
learns is what tells expert from SFT, not what a person would prefer.

Shapes: B pairs, P responses, T response tokens, n outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from understudy.config import BradleyTerryJudgeConfig
from understudy.data.demonstrations import Demonstration
from understudy.errors import TrainingDiverged, UnderstudyError
from understudy.evaluation.intervals import Floats, Interval, cluster_ids, win_rate
from understudy.evaluation.result import T1, Decoding, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from understudy.models.language_model import LanguageModel
    from understudy.models.scalar_head import ScalarHead

SCORED_ROWS = 32
Pair = tuple[str, str, str]  # prompt, expert's response, sample


class Policies(Protocol):
    """What training asks of the policies."""

    def policy(self, name: str) -> LanguageModel:
        """Return a loaded policy."""

    def sample(
        self, policy: str, demonstrations: Sequence[Demonstration], decoding: Decoding, seed: int
    ) -> list[Sample]:
        """Return one response per demonstration's prompt."""


class BradleyTerryJudge:
    """The score R of a response, read at its last token by a scalar head on an own copy of SFT's backbone.

    Args:
        name: the name that reports use.
        config: pairs, epochs, learning rate, and whether the spread V of Eq 26 is learned.
    """

    def __init__(self, name: str, config: BradleyTerryJudgeConfig) -> None:
        self.name = name
        self.config = config
        self.num_pairs = 0
        self.accuracy: Interval | None = None
        self._loss = float("nan")
        self._trained: tuple[LanguageModel, ScalarHead] | None = None

    def fit(
        self,
        policies: Policies,
        train: Sequence[Demonstration],
        validation: Sequence[Demonstration],
        seed: int,
        confidence: float,
    ) -> None:
        """Train on demonstrations of the train split against samples of SFT, and measure on the validation split.

        Raises:
            TrainingDiverged: the loss is not finite.
        """
        from understudy.models.scalar_head import ScalarHead

        policy = policies.policy("sft")
        chosen = np.random.default_rng(seed).permutation(len(train))[: self.config.num_pairs]
        pairs = _pairs(policies, [train[index] for index in sorted(chosen.tolist())], seed)
        head = ScalarHead.copied_from(policy, 1 + self.config.learned_spread, dropout=0.0).to(policy.device)
        self._trained = policy, head
        self.num_pairs = len(pairs)
        self._train(policy, head, pairs, seed)
        head.eval()
        held_out = list(validation)[: self.config.num_pairs]
        texts = _pairs(policies, held_out, seed + 1)
        expert_P, sampled_P = (self.scores([row[0] for row in texts], [row[k] for row in texts], []) for k in (1, 2))
        clusters = cluster_ids([row.group for row in held_out], [row.prompt for row in held_out])
        self.accuracy = win_rate(expert_P, sampled_P, clusters, confidence)

    def scores(self, prompts: Sequence[str], responses: Sequence[str], references: Sequence[str]) -> Floats:
        """Return R for each response (P).

        Raises:
            UnderstudyError: the judge has not been trained.
        """
        import torch

        if self._trained is None:
            raise UnderstudyError(
                f"Judge {self.name!r} is trained inside the evaluate step and was not. Name it in evaluation.judges."
            )
        policy, head = self._trained
        scores: list[float] = []
        for start in range(0, len(prompts), SCORED_ROWS):
            rows = slice(start, start + SCORED_ROWS)
            with torch.inference_mode():
                scores += _outputs(policy, head, prompts[rows], responses[rows])[:, 0].double().tolist()
        return np.asarray(scores)

    def report(self) -> dict[str, Any]:
        """Return what it was trained on and how well it learned."""
        accuracy = self.accuracy.to_json() if self.accuracy else None
        return {
            "kind": "bradley_terry",
            "train_pairs": self.num_pairs,
            "last_loss": self._loss,
            "validation_accuracy": accuracy,
        }

    def note(self) -> str:
        """Return the same as a sentence."""
        told = "no validation prompt to test it on"
        if found := self.accuracy:
            limits = f" ({found.low:.0%} to {found.high:.0%})" if found.measured else ""
            told = f"right on {found.value:.0%}{limits} of {found.n} validation pairs"
        return (
            f"Judge {self.name} is a Bradley-Terry reward model trained here on {self.num_pairs} expert responses of "
            f"the train split against samples of SFT; {told}. It says what looks like the expert, not what is right."
        )

    def _train(self, policy: LanguageModel, head: ScalarHead, pairs: list[Pair], seed: int) -> None:
        import torch

        from understudy.objectives.bradley_terry import fixed_scale_spread, preference_logit, reward_model_loss

        optimizer = torch.optim.AdamW(head.parameters(), lr=self.config.learning_rate, weight_decay=0.0)
        generator = np.random.default_rng(seed)
        for _ in range(self.config.epochs):
            order = generator.permutation(len(pairs))
            for start in range(0, len(pairs), self.config.batch_pairs):
                rows = [pairs[index] for index in order[start : start + self.config.batch_pairs]]
                prompts = [row[0] for row in rows] * 2
                output_Bn = _outputs(policy, head, prompts, [row[1] for row in rows] + [row[2] for row in rows])
                score_expert_B, score_sample_B = output_Bn[:, 0].chunk(2)
                spreads = fixed_scale_spread(output_Bn[:, 1]).chunk(2) if self.config.learned_spread else (1.0, 1.0)
                loss = reward_model_loss(preference_logit(score_expert_B, score_sample_B, *spreads))
                if not torch.isfinite(loss):
                    raise TrainingDiverged(
                        f"Judge {self.name!r}: the loss is {float(loss)}. Lower bradley_terry.learning_rate."
                    )
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
                self._loss = float(loss.detach())


def fit_judges(
    judges: Sequence[object],
    policies: Policies,
    train: Sequence[Demonstration],
    validation: Sequence[Demonstration],
    seed: int,
    confidence: float,
) -> None:
    """Train those judges that are to be."""
    for judge in judges:
        if isinstance(judge, BradleyTerryJudge):
            judge.fit(policies, train, validation, seed, confidence)


def _pairs(policies: Policies, rows: Sequence[Demonstration], seed: int) -> list[Pair]:
    samples = policies.sample("sft", rows, T1, seed) if rows else []
    return [(row.prompt, row.response, sample.text) for row, sample in zip(rows, samples, strict=True)]


def _outputs(policy: LanguageModel, head: ScalarHead, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
    """Return the outputs at each response's last token, (P, n); what exceeds the context is left out at the end."""
    prompt_ids = [policy.encode_prompt([{"role": "user", "content": text}]) for text in prompts]
    room = [max(1, policy.context_tokens - len(ids)) for ids in prompt_ids]
    response_ids = [policy.encode_response(text)[:limit] for text, limit in zip(responses, room, strict=True)]
    batch = policy.batch(prompt_ids, response_ids)
    output_BTn = head(batch)
    last_B = batch.mask_BT.sum(1).long() - 1
    outputs: Tensor = output_BTn[range(len(output_BTn)), last_B]
    return outputs
