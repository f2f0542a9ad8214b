"""How far judges agree: Cohen's kappa on who wins a prompt, Kendall's tau on how responses rank, with intervals.

Shapes: P prompts, R responses per prompt, C clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from understudy.evaluation.intervals import Floats, of_set
from understudy.evaluation.result import Generated

MIN_PROMPTS = 3
JACKKNIFED = 200  # clusters at most that are left out one by one; more are left out in as many blocks


def agreement_of_judges(
    judges: Sequence[str],
    generated: Mapping[str, Mapping[str, Generated]],
    policies: Sequence[str],
    clusters: ArrayLike,
    confidence: float,
) -> list[dict[str, Any]]:
    """Return `agreement` on what policies answer at their tuned temperatures, kappa on aligned against SFT."""
    if len(policies) < 2:
        return []
    scores = {judge: [generated[policy]["tuned"].scores[judge] for policy in policies] for judge in judges}
    pair = (policies.index("aligned"), policies.index("sft")) if {"aligned", "sft"} <= set(policies) else None
    return agreement(scores, clusters, confidence, pair)


def agreement(
    scores: Mapping[str, Sequence[Floats]], clusters: ArrayLike, confidence: float, pair: tuple[int, int] | None
) -> list[dict[str, Any]]:
    """Return one line for each two judges: names, kappa, tau, each with low and high, and the prompts behind them.

    Tau-b is over pairs of responses to one prompt, pooled, so that easy prompts do not pass for agreement.
    Kappa is on win, tie or loss of response pair[0] over pair[1]. Intervals are a jackknife over clusters.

    Args:
        scores: judge → scores (P) of each of R responses to the same prompts, NaN undecided.
        clusters: label of each prompt (P).
        confidence: of each interval; with too few clusters for it low and high are None.
        pair: the two responses whose comparison matters; None leaves kappa out.
    """
    lines = []
    label_P = np.asarray(clusters)
    for a, b in combinations(scores, 2):
        a_PR, b_PR = np.stack(scores[a], axis=1), np.stack(scores[b], axis=1)
        decided_P = np.isfinite(a_PR).all(1) & np.isfinite(b_PR).all(1)
        if decided_P.sum() < MIN_PROMPTS:
            continue
        a_PR, b_PR, kept_P = a_PR[decided_P], b_PR[decided_P], label_P[decided_P]
        line: dict[str, Any] = {"judges": f"{a} and {b}", "prompts": int(decided_P.sum())}
        won_a_P, won_b_P = (_won(x_PR, pair) for x_PR in (a_PR, b_PR))
        if won_a_P is not None and won_b_P is not None:
            line |= _with_interval("kappa", cohen_kappa, won_a_P, won_b_P, kept_P, confidence)
        line |= _with_interval("tau", kendall_tau, a_PR, b_PR, kept_P, confidence)
        lines.append(line)
    return lines


def cohen_kappa(a_P: Floats, b_P: Floats) -> float | None:
    """Return (observed - expected)/(1 - expected) agreement; None where both say one and the same of all.

    Source: Cohen (1960), "A coefficient of agreement for nominal scales".
    """
    observed = float((a_P == b_P).mean())
    expected = sum(float((a_P == value).mean() * (b_P == value).mean()) for value in (-1.0, 0.0, 1.0))
    return None if expected >= 1 else (observed - expected) / (1 - expected)


def kendall_tau(a_PR: Floats, b_PR: Floats) -> float | None:
    """Return tau-b over pairs of responses to one prompt, pooled; None where a judge ties all of them.

    Source: Kendall (1945), "The treatment of ties in ranking problems".
    """
    first, second = np.triu_indices(a_PR.shape[1], 1)
    a_sign, b_sign = (np.sign(x_PR[:, first] - x_PR[:, second]) for x_PR in (a_PR, b_PR))
    norm = float(np.sqrt((a_sign**2).sum() * (b_sign**2).sum()))
    return None if norm == 0 else float((a_sign * b_sign).sum()) / norm


def _won(x_PR: Floats, pair: tuple[int, int] | None) -> Floats | None:
    return None if pair is None else np.sign(x_PR[:, pair[0]] - x_PR[:, pair[1]])


def _with_interval(
    name: str, statistic: Any, a: Floats, b: Floats, label_P: ArrayLike, confidence: float
) -> dict[str, Any]:
    value = statistic(a, b)
    if value is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    codes_P = np.unique(np.asarray(label_P), return_inverse=True)[1]
    codes_P = codes_P % JACKKNIFED
    # Without the only cluster nothing is left.
    left = range(int(codes_P.max()) + 1) if codes_P.max() > 0 else ()
    left_out = [statistic(a[codes_P != code], b[codes_P != code]) for code in left]
    known = [value if found is None else found for found in left_out]
    limits = of_set(value, known, len(a), confidence, (-1.0, 1.0)).to_json()
    return {name: value, f"{name}_low": limits["low"], f"{name}_high": limits["high"]}
