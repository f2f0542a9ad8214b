"""Health gates: they stop an alignment that degrades, say which gate and why, and give back its last healthy weights.

Adversarial training of text can write ever longer, repeat itself, leave the language of its reference, meet a
discriminator that is always right, or learn from rewards that are all the same because their clip cut them.
`examine` decides from the run's history alone, so a resumed run decides alike.

What a round reports of its samples is true of the weights that sampled them, before the round's update. The weights
of the newest round in which no limit was violated are the healthy ones; the SFT policy itself is the first of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, takewhile
from typing import Any

from torch import Tensor, nn

from understudy.config.health import HealthConfig
from understudy.training.checkpoint import placed_like, restore_parameters, trainable_tensors
from understudy.training.processes import Processes
from understudy.training.replay import Sample

History = Sequence[Mapping[str, float]]
# An SFT policy with fewer distinct pairs, or with less entropy (nats a token), than this has nothing left to lose: it
# already gives one answer, as on a task with one right answer it should (docs/results.md, sort).
_FEW_PAIRS, _SURE = 1e-3, 0.05
_SLOWER = "raise align.kl_coefficient_start and align.kl_coefficient_end, lower align.learning_rate"


@dataclass(frozen=True)
class Reading:
    """One measurement of a gate: the number that its limits are about, and the same for people."""

    step: int
    value: float
    told: str


@dataclass(frozen=True)
class Gate:
    """A gate with its limits; `read` gives its measurements of a history, newest first and only as far as asked.

    A measurement is healthy where low <= value <= high; one that is no number is not.
    """

    name: str
    low: float
    high: float
    patience: int
    remedy: str
    read: Callable[[History, History], Iterator[Reading]]

    def is_healthy(self, reading: Reading) -> bool:
        """Whether a measurement is within the limits."""
        return self.low <= reading.value <= self.high

    def newest_violations(self, readings: Iterable[Reading]) -> list[Reading]:
        """The unhealthy measurements since the last healthy one, newest first as the readings are."""
        return list(takewhile(lambda reading: not self.is_healthy(reading), readings))

    def reason(self, violations: Sequence[Reading]) -> str:
        """Why the run is stopped: what was measured, the limits, since when, and what to do."""
        first, last = violations[-1], violations[0]
        limits = f"at least {self.low:g}" if self.high == math.inf else f"below {self.high:g}"
        if self.low > 0 and self.high < math.inf:
            limits = f"{self.low:g} to {self.high:g}"
        return (
            f"{self.name}: {last.told}; healthy is {limits}, violated {len(violations)} times in a row "
            f"(rounds {first.step} to {last.step}). To go on differently, {self.remedy}."
        )


@dataclass(frozen=True)
class Verdict:
    """What the gates say of the newest round.

    Attributes:
        healthy: no limit is violated.
        stopped_by: the gate whose patience is over with its reason, "gate: reason"; None where the run may go on.
        values: the newest measurement of each gate that has one.
    """

    healthy: bool
    stopped_by: str | None
    values: dict[str, float]


def examine(history: History, config: HealthConfig, warmup_rounds: int) -> Verdict:
    """Judge the newest round of a run.

    Args:
        history: the numbers of each round, "step" (1 for the first round) among them.
        config: the limits.
        warmup_rounds: rounds before the policy's first update; those and the next sampled from the SFT policy.
    """
    start = [entry for entry in history if entry["step"] <= warmup_rounds + 1]
    # A round in which the policy was held reports no KL; it moved nothing that a gate looks at.
    rounds = [entry for entry in history if entry["step"] > warmup_rounds and "kl" in entry]
    healthy, stopped_by, values = True, None, {}
    for gate in gates(config) if rounds else ():
        readings = gate.read(start, rounds)
        if (newest := next(readings, None)) is None:
            continue
        values[gate.name] = newest.value
        violations = gate.newest_violations(chain([newest], readings))
        healthy = healthy and not violations
        if len(violations) >= gate.patience and stopped_by is None:
            stopped_by = gate.reason(violations)
    return Verdict(healthy, stopped_by, values)


def gates(config: HealthConfig) -> Iterator[Gate]:
    """The gates that are on."""
    patience = config.patience_rounds
    if config.length_ratio is not None:
        low, high = config.length_ratio
        remedy = f"{_SLOWER}, or widen align.health.length_ratio"
        yield Gate("length", low, high, patience, remedy, _lengths)
    if (least := config.min_entropy_fraction) is not None:
        remedy = f"{_SLOWER}, take a divergence that covers more (js, forward_kl), or lower min_entropy_fraction"
        yield Gate("entropy", least, math.inf, patience, remedy, _entropies)
    if (least := config.min_distinct_2_fraction) is not None:
        remedy = f"{_SLOWER}, take a divergence that covers more (js, forward_kl), or lower min_distinct_2_fraction"
        yield Gate("distinct_2", least, math.inf, patience, remedy, _distinct_pairs)
    if (most := config.max_held_out_auc) is not None:
        # A hair below: the AUC itself is healthy only where it is less than the limit.
        high = math.nextafter(most, 0)
        remedy = (
            "lower align.discriminator.updates_per_round or its learning_rate, raise its label_smoothing or dropout, "
            "train SFT longer, or set align.health.max_held_out_auc to null"
        )
        yield Gate("auc", 0.0, high, config.auc_measurements, remedy, _aucs)
    if (most := config.max_kl_per_token) is not None:
        yield Gate("kl", -math.inf, most, patience, f"{_SLOWER}, or raise align.health.max_kl_per_token", _kls)
    if (most := config.max_reward_clipped_fraction) is not None:
        remedy = (
            "raise align.reward_clip, lower align.discriminator.learning_rate or its updates_per_round, or set "
            "align.health.max_reward_clipped_fraction to null"
        )
        yield Gate("reward_clip", 0.0, most, patience, remedy, _clips)


def _lengths(start: History, rounds: History) -> Iterator[Reading]:
    before = _mean(start, "response_tokens")
    for entry in reversed(rounds):
        tokens = entry["response_tokens"]
        told = f"mean response length is {tokens:.4g} tokens, {tokens / before:.3g} times the SFT policy's {before:.4g}"
        yield Reading(int(entry["step"]), tokens / before, told)


def _entropies(start: History, rounds: History) -> Iterator[Reading]:
    before = rounds[0]["entropy"]
    for entry in reversed(rounds):
        value = _fraction(entry["entropy"], before, _SURE)
        told = f"entropy is {entry['entropy']:.3g} nats a token, {value:.3g} times the SFT policy's {before:.3g}"
        yield Reading(int(entry["step"]), value, told)


def _distinct_pairs(start: History, rounds: History) -> Iterator[Reading]:
    before = _mean(start, "distinct_2")
    for entry in reversed(rounds):
        value = _fraction(entry["distinct_2"], before, _FEW_PAIRS)
        share = entry["distinct_2"]
        told = f"distinct token pairs are {share:.3g} of all, {value:.3g} times the SFT policy's {before:.3g}"
        yield Reading(int(entry["step"]), value, told)


def _aucs(start: History, rounds: History) -> Iterator[Reading]:
    for entry in reversed(rounds):
        if "held_out_auc" in entry:
            told = f"the discriminator's held-out AUC is {entry['held_out_auc']:.4g}"
            yield Reading(int(entry["step"]), entry["held_out_auc"], told)


def _kls(start: History, rounds: History) -> Iterator[Reading]:
    for entry in reversed(rounds):
        value = entry["kl"] / entry["response_tokens"]
        told = f"KL to the SFT policy is {value:.3g} nats a token ({entry['kl']:.3g} a response)"
        yield Reading(int(entry["step"]), value, told)


def _clips(start: History, rounds: History) -> Iterator[Reading]:
    for entry in reversed(rounds):
        if (share := entry.get("reward_clipped_fraction")) is not None:
            told = f"{share:.3g} of the rewards were cut to align.reward_clip, where all samples look alike"
            yield Reading(int(entry["step"]), share, told)


def _mean(entries: History, name: str) -> float:
    return sum(entry[name] for entry in entries) / len(entries)


def _fraction(value: float, before: float, nothing: float) -> float:
    return value / before if before > nothing else 1.0


def distinct_pairs(responses: Sequence[Sequence[int]]) -> float:
    """Distinct pairs of neighbouring tokens over all pairs; 0 where no response has two tokens."""
    pairs = [pair for response in responses for pair in pairwise(response)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


class Health:
    """The gates of one alignment and the newest healthy weights; a part of what a checkpoint holds.

    Attributes:
        stopped_by: the gate that stopped the run with its reason, else None.
        healthy_round: rounds after which the weights were those that are kept.
    """

    def __init__(self, config: HealthConfig, warmup_rounds: int, policy: nn.Module, processes: Processes) -> None:
        self.config, self.warmup_rounds, self.policy, self.processes = config, warmup_rounds, policy, processes
        self.stopped_by: str | None = None
        self.healthy_round = 0
        self._healthy: dict[str, Tensor] = {}
        self._sampling: dict[str, Tensor] = {}

    def measure(self, samples: Sequence[Sample]) -> dict[str, float]:
        """What the gates need of a round's samples beyond what an update reports."""
        responses = [sample.response for sample in samples]
        tokens = sum(map(len, responses)) / len(responses)
        return {"response_tokens": tokens, "distinct_2": distinct_pairs(responses)}

    def before_update(self) -> None:
        """Keep the weights that have sampled this round, until `after_round` has judged them."""
        if any(gates(self.config)):
            self._sampling = {name: _copied(value) for name, value in trainable_tensors("", self.policy).items()}

    def after_round(self, history: History) -> dict[str, float]:
        """Judge the newest round in all processes alike; returns the gates' measurements to report."""
        if not self._sampling:
            return {}
        healthy, self.stopped_by, values = self.processes.on_main(lambda: self._judged(history))
        if healthy or not self._healthy:
            self._healthy, self.healthy_round = self._sampling, int(history[-1]["step"]) - 1
        self._sampling = {}
        if self.stopped_by is not None:
            self.stopped_by += f" Returned are the weights of after round {self.healthy_round}, the last healthy ones."
        return {f"health/{name}": value for name, value in values.items()}

    def finish(self) -> None:
        """Put the healthy weights in place, if a gate stopped the run."""
        if self.stopped_by is not None:
            restore_parameters("", self.policy, self._healthy)

    def tensors(self) -> dict[str, Tensor]:
        """The healthy weights, for a checkpoint."""
        return {f"healthy{name}": value for name, value in self._healthy.items()}

    def state(self) -> dict[str, Any]:
        """All else for a checkpoint, as JSON."""
        return {"stopped_by": self.stopped_by, "healthy_round": self.healthy_round}

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Put back what `tensors` and `state` returned."""
        self.stopped_by, self.healthy_round = state["stopped_by"], state["healthy_round"]
        self._healthy = {
            f".{name}": _copied(placed_like(value, tensors[f"healthy.{name}"]))
            for name, value in self.policy.named_parameters()
            if f"healthy.{name}" in tensors
        }

    def _judged(self, history: History) -> tuple[bool, str | None, dict[str, float]]:
        verdict = examine(history, self.config, self.warmup_rounds)
        return verdict.healthy, verdict.stopped_by, verdict.values


def _copied(value: Tensor) -> Tensor:
    """A copy out of the accelerator's memory; of sharded weights the own shard, where it is."""
    if hasattr(value, "full_tensor"):
        return value.detach().clone()
    return value.detach().to("cpu", copy=True)
