"""A replay of old policy samples, so that the discriminator does not forget what it has already beaten."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sample:
    """One sampled response and the row of the demonstrations whose prompt it answers.

    `logps` are the sampler's log-probabilities of its tokens, good for the round in which it was sampled.
    """

    row: int
    response: list[int]
    finished: bool
    logps: list[float] | None = None


class Replay:
    """The samples of the newest `capacity_rounds` rounds, oldest first."""

    def __init__(self, capacity_rounds: int) -> None:
        self.capacity_rounds = capacity_rounds
        self.rounds: list[list[Sample]] = []

    def add(self, samples: list[Sample]) -> None:
        """Add a round and forget the oldest beyond capacity."""
        self.rounds.append(samples)
        self.rounds = self.rounds[max(0, len(self.rounds) - self.capacity_rounds) :]

    @property
    def samples(self) -> list[Sample]:
        """All samples held."""
        return [sample for samples in self.rounds for sample in samples]

    def tensors(self) -> dict[str, Tensor]:
        """Flat tensors for a checkpoint."""
        held = self.samples
        return {
            "replay.round_sizes": torch.tensor([len(samples) for samples in self.rounds], dtype=torch.long),
            "replay.rows": torch.tensor([sample.row for sample in held], dtype=torch.long),
            "replay.finished": torch.tensor([sample.finished for sample in held], dtype=torch.bool),
            "replay.lengths": torch.tensor([len(sample.response) for sample in held], dtype=torch.long),
            "replay.tokens": torch.tensor([token for sample in held for token in sample.response], dtype=torch.long),
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` returned."""
        tokens = tensors["replay.tokens"].tolist()
        flat: list[Sample] = []
        position = 0
        columns = (tensors[f"replay.{name}"].tolist() for name in ("rows", "finished", "lengths"))
        for row, finished, length in zip(*columns, strict=True):
            flat.append(Sample(row, tokens[position : position + length], finished))
            position += length
        self.rounds = []
        for size in tensors["replay.round_sizes"].tolist():
            self.rounds.append(flat[:size])
            flat = flat[size:]
