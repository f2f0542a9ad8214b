"""One model's numbers, prompt by prompt, and whether two models' numbers are pairs.

Shape legend: P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from understudy.config.sections import did_you_mean
from understudy.errors import GateRefused
from understudy.evaluation.gate.schema import Rule
from understudy.evaluation.names import EXPERT_TEXT

Floats = NDArray[np.float64]
_MOST = 1e100


@dataclass(frozen=True)
class Series:
    """One number per prompt; the statistic is sum(values) / sum(weights), so a mean where all weights are 1.

    Attributes:
        values: P numbers, NaN where undecided.
        weights: P numbers, for example tokens.
    """

    values: tuple[float, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class SetStatistic:
    """A statistic of all responses together, with its value without each group of prompts in turn."""

    value: float
    left_out: Mapping[str, float]


Measured = Series | SetStatistic


@dataclass(frozen=True)
class Scores:
    """What the gate knows of one model, and all that makes two of them comparable.

    Attributes:
        policy: name in the report.
        sha256: digest of the weights.
        dataset_md5: the dataset version whose test split was used.
        prompts: ids of the prompts (P).
        groups: group of each prompt (P); prompts of one group are not independent.
        seeds: seed by decoding.
        temperatures: temperature by decoding; "tuned" is each policy's own.
        judges: digest of each judge's code by its name, "" where it has none.
        measured: by (metric, decoding).
    """

    policy: str
    sha256: str
    dataset_md5: str
    prompts: tuple[str, ...]
    groups: tuple[str, ...]
    seeds: Mapping[str, int]
    temperatures: Mapping[str, float]
    judges: Mapping[str, str]
    measured: Mapping[tuple[str, str], Measured]


def scores_from(report: Mapping[str, Any], policy: str) -> Scores:
    """Read one policy's scores out of a parsed `report.json`.

    Raises:
        GateRefused: the report does not have the policy, does not say how it was made, or is damaged.
    """
    try:
        return _scores_from(report, policy)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise GateRefused(
            f"The report is damaged where it tells of {policy!r} ({type(error).__name__}: {error}). Evaluate again."
        ) from error


def _scores_from(report: Mapping[str, Any], policy: str) -> Scores:
    missing = [key for key in ("protocol", "prompts", "responses", "likelihood") if key not in report]
    if missing:
        raise GateRefused(
            f"The report has no {', '.join(missing)}: it was written by an older version. Evaluate again, then decide."
        )
    protocol = report["protocol"]
    known = sorted(set(report["responses"]) & set(protocol["policies"]))
    if policy not in known:
        raise GateRefused(f"The report is about {', '.join(known)}, not about {policy!r}. Evaluate that model first.")
    responses = report["responses"][policy]
    prompts = report["prompts"]
    return Scores(
        policy=policy,
        sha256=str(protocol["policies"][policy]),
        dataset_md5=str(protocol["dataset_md5"]),
        prompts=tuple(str(row["id"]) for row in prompts),
        groups=tuple(str(row["cluster"]) for row in prompts),
        seeds={name: int(made["seed"]) for name, made in responses.items()},
        temperatures={name: float(made["temperature"]) for name, made in responses.items()},
        judges={name: str(digest or "") for name, digest in protocol["judges"].items()},
        measured=_likelihood(report, policy) | _sampled(responses, len(prompts)),
    )


def refuse_unpaired(challenger: Scores, reference: Scores, decodings: Sequence[str]) -> None:
    """Raise GateRefused, naming every difference, unless the two were measured on the same prompts alike."""
    sides = f"{challenger.policy} and {reference.policy}"
    problems = []
    if challenger.dataset_md5 != reference.dataset_md5:
        problems.append(f"test splits of dataset versions {challenger.dataset_md5} and {reference.dataset_md5}")
    ours, theirs = set(challenger.prompts), set(reference.prompts)
    if ours != theirs or len(challenger.prompts) != len(reference.prompts):
        only = sorted(ours ^ theirs)
        problems.append(
            f"{len(challenger.prompts)} and {len(reference.prompts)} prompts, {len(only)} of them not shared "
            f"({', '.join(only[:5])}{', …' if len(only) > 5 else ''})"
        )
    elif dict(zip(challenger.prompts, challenger.groups, strict=True)) != dict(
        zip(reference.prompts, reference.groups, strict=True)
    ):
        problems.append("the same prompts in different groups")
    for decoding in decodings:
        seeds = challenger.seeds.get(decoding), reference.seeds.get(decoding)
        if seeds[0] != seeds[1]:
            problems.append(f"seeds {seeds[0]} and {seeds[1]} ({decoding})")
        warmth = challenger.temperatures.get(decoding), reference.temperatures.get(decoding)
        if decoding != "tuned" and warmth[0] != warmth[1]:
            problems.append(f"temperatures {warmth[0]} and {warmth[1]} ({decoding})")
    for judge in sorted(set(challenger.judges) & set(reference.judges)):
        if challenger.judges[judge] != reference.judges[judge]:
            problems.append(f"judge {judge} of code {challenger.judges[judge][:12]} and {reference.judges[judge][:12]}")
    if problems:
        raise GateRefused(
            f"{sides} are not paired: " + "; ".join(problems) + ". Evaluate both in one run on the same test version."
        )


def missing_measurement(scores: Scores, rule: Rule) -> str | None:
    """Say what a rule reads and the scores do not have, with the closest that they do; None when it is there."""
    if (rule.metric, rule.where) in scores.measured:
        return None
    known = sorted({metric for metric, _ in scores.measured})
    if rule.metric in known:
        decodings = sorted(where for metric, where in scores.measured if metric == rule.metric)
        return f"{scores.policy} has {rule.metric} for {', '.join(decodings)}, not for {rule.where}"
    hint = did_you_mean(rule.metric, known, f"it has {', '.join(known) or 'nothing'}")
    return f"{scores.policy} has no {rule.metric}; {hint}"


def canonical(scores: Scores) -> Scores:
    """Return the same scores with prompts in the order of their ids, so that no result depends on their order."""
    order = sorted(range(len(scores.prompts)), key=lambda index: scores.prompts[index])
    pick: Callable[[Sequence[Any]], tuple[Any, ...]] = lambda row: tuple(row[index] for index in order)  # noqa: E731
    measured = {
        key: Series(pick(found.values), pick(found.weights)) if isinstance(found, Series) else found
        for key, found in scores.measured.items()
    }
    return Scores(
        **{**vars(scores), "prompts": pick(scores.prompts), "groups": pick(scores.groups), "measured": measured}
    )


def _likelihood(report: Mapping[str, Any], policy: str) -> dict[tuple[str, str], Measured]:
    found = report["likelihood"]["policies"].get(policy)
    if found is None:
        return {}
    nll = tuple(-_number(value) for value in found["logp"])
    tokens, characters = found["tokens"], report["likelihood"]["characters"]
    return {
        ("nll", EXPERT_TEXT): Series(nll, tuple(map(float, tokens))),
        # Comparable between tokenizers, which count tokens differently.
        ("nll_per_character", EXPERT_TEXT): Series(nll, tuple(map(float, characters))),
    }


def _sampled(responses: Mapping[str, Any], num_prompts: int) -> dict[tuple[str, str], Measured]:
    measured: dict[tuple[str, str], Measured] = {}
    ones = (1.0,) * num_prompts
    for decoding, made in responses.items():
        rows = {
            "length_tokens": made["num_tokens"],
            "length_characters": made["num_characters"],
            "eos_rate": made["finished"],
            **{f"judge:{name}": values for name, values in made["scores"].items()},
        }
        for metric, values in rows.items():
            if len(values) == num_prompts:
                measured[metric, decoding] = Series(tuple(map(_number, values)), ones)
        for metric, found in made["sets"].items():
            left_out = {str(group): float(value) for group, value in found["left_out"].items()}
            measured[metric, decoding] = SetStatistic(float(found["value"]), left_out)
    return measured


def _number(value: float | bool | None) -> float:
    """Return a score, NaN where a judge was silent; beyond 1e100 no variance can be taken of it."""
    number = float("nan") if value is None else float(value)
    if abs(number) > _MOST:
        raise ValueError(f"a score of {number} is no score")
    return number
