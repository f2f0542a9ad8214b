"""Gates and scores for the tests of the gate: two models on the same prompts, from arrays."""

from __future__ import annotations

import numpy as np

from understudy.evaluation.gate import Gate, Scores
from understudy.evaluation.gate.scores import Series, SetStatistic

VALID = {
    "confidence": 0.95,
    "power": 0.8,
    "minimum_groups": 20,
    "max_undecided": 0.05,
    "primaries_needed": "all",
    "no_champion": "accept",
    "primary": [{"metric": "judge:quality", "decoding": "tuned", "minimum_improvement": 0.0, "detect": 0.1}],
    "guards": [],
    "provenance": {"allow_dirty_code": False, "require_signature": False},
}


def make_gate(*guards, primary=None, **changes) -> Gate:
    return Gate.model_validate(VALID | {"guards": list(guards)} | ({"primary": primary} if primary else {}) | changes)


def make_scores(
    name, quality, groups=None, lengths=None, logp=None, tokens=None, sets=None, judges=None, **changes
) -> Scores:
    num = len(quality)
    ones = (1.0,) * num
    measured = {("judge:quality", "tuned"): Series(tuple(map(float, quality)), ones)}
    for judge, values in (judges or {}).items():
        measured[f"judge:{judge}", "tuned"] = Series(tuple(map(float, values)), ones)
    if lengths is not None:
        measured["length_tokens", "tuned"] = Series(tuple(map(float, lengths)), ones)
    if logp is not None:
        weights = tuple(map(float, tokens)) if tokens is not None else ones
        measured["nll", "expert_text"] = Series(tuple(-float(value) for value in logp), weights)
    if sets is not None:
        measured["distinct_2", "tuned"] = SetStatistic(*sets)
    values = {
        "policy": name,
        "sha256": f"sha-{name}",
        "dataset_md5": "d.dir",
        "prompts": tuple(f"p{index:05d}" for index in range(num)),
        "groups": tuple(str(group) for group in (range(num) if groups is None else groups)),
        "seeds": {"tuned": 5},
        "temperatures": {"tuned": 0.5},
        "judges": {"quality": "c0de"},
        "measured": measured,
    }
    return Scores(**values | changes)


def constant_plus_noise(generator: np.random.Generator, num: int, shift: float, noise: float = 0.3):
    """Return two lists of scores whose paired difference has mean about `shift`."""
    base = generator.normal(0.0, 1.0, num)
    return base + shift + generator.normal(0.0, noise, num), base
