"""What an evaluation found: samples, scores, intervals, comparisons and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy.config import EvaluationConfig
from understudy.data.demonstrations import Demonstration
from understudy.evaluation.intervals import Floats, Interval
from understudy.evaluation.metrics import distinct_left_out
from understudy.evaluation.verdict import Comparison, Verdict


@dataclass(frozen=True)
class Decoding:
    """How responses are sampled; greedy ignores the temperature."""

    name: str
    temperature: float
    greedy: bool = False


GREEDY, T1 = Decoding("greedy", 1.0, greedy=True), Decoding("T=1", 1.0)


@dataclass(frozen=True)
class Sample:
    """One sampled response; `finished` tells whether it ended by EOS, `num_tokens` counts that EOS."""

    text: str
    num_tokens: int
    finished: bool
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Generated:
    """One policy's responses to the test prompts, with the seed they were sampled with and each judge's scores (P)."""

    decoding: Decoding
    seed: int
    samples: list[Sample]
    scores: dict[str, Floats]

    @property
    def texts(self) -> list[str]:
        """The responses as text."""
        return [sample.text for sample in self.samples]


@dataclass
class EvaluationResult:
    """Everything that was measured; the report page and the record are views of it.

    `metrics[policy][decoding][metric]` holds intervals; policy "expert" is the demonstrations themselves.
    `likelihood[policy]` holds log-probability sums (nats) and token counts of the expert's responses (P each).
    """

    config: EvaluationConfig
    policies: list[str]
    test: list[Demonstration]
    judges: list[str]
    deciding_judge: str | None
    verdict: Verdict
    metrics: dict[str, dict[str, dict[str, Interval]]]
    comparisons: list[Comparison]
    temperatures: dict[str, float]
    tuning: dict[str, dict[float, Interval | None]]
    generated: dict[str, dict[str, Generated]]
    expert_scores: dict[str, Floats]
    expert_tokens: Floats
    likelihood: dict[str, tuple[Floats, Floats]]
    clusters: NDArray[np.int64]
    shown: list[int]
    notes: list[str] = field(default_factory=list)
    judge_agreement: list[dict[str, Any]] = field(default_factory=list)
    judge_details: dict[str, dict[str, Any]] = field(default_factory=dict)

    def metrics_json(self) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
        """Return the metrics in the form of EvaluationReport."""
        return {
            policy: {
                decoding: {name: interval.to_json() for name, interval in values.items()}
                for decoding, values in decodings.items()
            }
            for policy, decodings in self.metrics.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Return all numbers, prompt by prompt, as plain JSON values (undecided is null)."""
        return {
            "verdict": {"outcome": self.verdict.outcome, "text": str(self.verdict)},
            "metrics": self.metrics_json(),
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "temperatures": self.temperatures,
            "tuning": {
                policy: {f"{temperature:g}": found.to_json() if found else None for temperature, found in tried.items()}
                for policy, tried in self.tuning.items()
            },
            "notes": self.notes,
            "deciding_judge": self.deciding_judge,
            "judge_agreement": self.judge_agreement,
            "judge_details": self.judge_details,
            "prompts": [
                {"id": row.id, "group": row.group, "cluster": str(cluster)}
                for row, cluster in zip(self.test, self.clusters.tolist(), strict=True)
            ],
            "expert": {name: _nullable(scores) for name, scores in self.expert_scores.items()},
            "responses": {
                policy: {name: _responses_json(generated, self.clusters) for name, generated in by_decoding.items()}
                for policy, by_decoding in self.generated.items()
            },
            "likelihood": {
                "characters": [len(row.response) + 1 for row in self.test],  # the end counts as one
                "policies": {
                    policy: {"logp": _nullable(sums), "tokens": counts.astype(int).tolist()}
                    for policy, (sums, counts) in self.likelihood.items()
                },
            },
        }


def _nullable(scores: Floats) -> list[float | None]:
    return [float(score) if np.isfinite(score) else None for score in scores]


def _responses_json(generated: Generated, clusters: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "temperature": 0.0 if generated.decoding.greedy else generated.decoding.temperature,
        "seed": generated.seed,
        "num_tokens": [sample.num_tokens for sample in generated.samples],
        "num_characters": [len(text) for text in generated.texts],
        "finished": [sample.finished for sample in generated.samples],
        "scores": {name: _nullable(scores) for name, scores in generated.scores.items()},
        "sets": _sets_json(generated.texts, clusters) if len(generated.samples) == len(clusters) else {},
    }


def _sets_json(texts: list[str], clusters: NDArray[np.int64]) -> dict[str, Any]:
    """Return statistics of all responses together, with their value without each cluster, for paired inference."""
    found = {f"distinct_{n}": distinct_left_out(texts, n, clusters) for n in (1, 2, 3)}
    return {
        name: {"value": pair[0], "left_out": {str(label): value for label, value in pair[1].items()}}
        for name, pair in found.items()
        if pair is not None
    }
