"""Figures of the report about quality, length and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from understudy.evaluation.canvas import ROLES, Plot, canvas, legend, policy_label, svg
from understudy.evaluation.intervals import Interval
from understudy.evaluation.names import EXPERT_TEXT
from understudy.evaluation.result import EvaluationResult

History = Sequence[Mapping[str, Any]]
Series = tuple[str, str, list[float], list[float]]  # label, role, x, y

MARKERS = {"greedy": "s", "T=1": "o", "tuned": "^", EXPERT_TEXT: "*"}


def draw_plots(result: EvaluationResult, histories: Mapping[str, History]) -> list[Plot]:
    """Return the figures for which there is data, in the order of the page."""
    align = histories.get("aligned", ())
    found = [
        _quality_diversity(result),
        _lengths(result),
        _training_curves(histories),
        _discriminator(align),
        _reward_kl(align),
    ]
    return [plot for plot in found if plot is not None]


def _quality_diversity(result: EvaluationResult) -> Plot | None:
    quality = f"judge_{result.deciding_judge}" if result.deciding_judge else "chrf_to_expert"
    points = [
        (policy, decoding, values["distinct_2"], values[quality])
        for policy, decodings in result.metrics.items()
        for decoding, values in decodings.items()
        if "distinct_2" in values and quality in values
    ]
    if not points:
        return None
    figure, axes = canvas("distinct-2 (diversity) →", f"{result.deciding_judge or 'chrF to expert'} (quality) →")
    for policy, decoding, diversity, score in points:
        axes.errorbar(
            diversity.value,
            score.value,
            xerr=_bar(diversity),
            yerr=_bar(score),
            color=ROLES.get(policy, ROLES["muted"]),
            marker=MARKERS.get(decoding, "o"),
            markersize=9 if policy == "expert" else 6,
            linewidth=0.9,
        )
    legend(figure, [(policy_label(policy), policy, "o") for policy in dict.fromkeys(row[0] for row in points)])
    return Plot(
        "quality-diversity",
        "Quality and diversity",
        "Up is better, right is more varied; bars are intervals. Square: greedy, circle: T=1, triangle: tuned, "
        "star: the expert's own text.",
        svg(figure, "quality-diversity"),
        ("policy", "decoding", "distinct-2", quality.removeprefix("judge_")),
        [(policy_label(row[0]), row[1], f"{row[2].value:.3f}", f"{row[3].value:.3f}") for row in points],
    )


def _bar(found: Interval) -> list[list[float]] | None:
    return [[found.value - found.low], [found.high - found.value]] if found.measured else None


def _lengths(result: EvaluationResult) -> Plot | None:
    lengths: list[tuple[str, list[float]]] = [("expert", [float(count) for count in result.expert_tokens])]
    for policy, by_decoding in result.generated.items():
        samples = by_decoding["T=1"].samples
        if len(samples) == len(result.test):
            lengths.append((policy, [float(sample.num_tokens) for sample in samples]))
    if not result.test or len(lengths) < 2:
        return None
    figure, axes = canvas("tokens of a response", "share at most as long")
    for policy, values in lengths:
        axes.ecdf(values, color=ROLES.get(policy, ROLES["muted"]), linewidth=2.2 if policy == "expert" else 1.4)
    axes.set_ylim(0, 1.02)
    legend(figure, [(policy_label(policy), policy, "") for policy, _ in lengths])
    quantiles = (0.1, 0.25, 0.5, 0.75, 0.9)
    return Plot(
        "lengths",
        "Length of responses",
        f"Sampled at T=1, cut at {result.config.max_response_tokens} tokens. Right of the expert's line: too long.",
        svg(figure, "lengths"),
        ("text", *(f"{quantile:.0%} quantile" for quantile in quantiles)),
        [
            (policy_label(policy), *(f"{value:.0f}" for value in np.quantile(values, quantiles)))
            for policy, values in lengths
        ],
    )


def _training_curves(histories: Mapping[str, History]) -> Plot | None:
    series: list[Series] = []
    for policy in ("sft", "sft_longer"):
        for key, name in (("loss", "training"), ("validation_nll", "validation")):
            x, y = _columns(histories.get(policy, ()), "step", key)
            if y:
                series.append((f"{policy_label(policy)}, {name}", policy, x, y))
    return _line_plot(
        "training-curves",
        "Supervised training",
        "Loss per response token in nats; dots are the validation split.",
        ("step", "nats per token"),
        series,
    )


def _discriminator(history: History) -> Plot | None:
    series: list[Series] = []
    names = (("held_out_auc", "AUC on held-out text", "aligned"), ("discriminator_accuracy", "batch accuracy", "muted"))
    for key, label, role in names:
        x, y = _columns(history, "step", key)
        if y:
            series.append((label, role, x, y))
    return _line_plot(
        "discriminator",
        "Discriminator",
        "How well the training discriminator tells expert from policy: 0.5 is chance, 1 is always.",
        ("round", "AUC, accuracy"),
        series,
        reference=0.5,
    )


def _reward_kl(history: History) -> Plot | None:
    kl, reward = _columns(history, "kl", "reward")
    if not reward:
        return None
    series: list[Series] = [("reward, round by round", "aligned", kl, reward)]
    plot = _line_plot(
        "reward-kl",
        "Reward against drift",
        "Mean reward of the policy's samples against its KL to SFT in nats; the square is the last round.",
        ("KL to SFT", "reward"),
        series,
        trajectory=True,
    )
    return plot


def _line_plot(
    key: str,
    title: str,
    caption: str,
    names: tuple[str, str],
    series: list[Series],
    reference: float | None = None,
    trajectory: bool = False,
) -> Plot | None:
    if not series:
        return None
    figure, axes = canvas(*names)
    for label, role, x, y in series:
        dots = "o" if trajectory or len(y) <= 25 or "validation" in label else ""
        style = ":" if trajectory or "validation" in label else "-"
        axes.plot(x, y, color=ROLES[role], marker=dots, markersize=3.2, linewidth=1.4, linestyle=style)
    if trajectory:
        axes.plot(series[0][2][-1:], series[0][3][-1:], color=ROLES["aligned"], marker="s", markersize=7)
    if reference is not None:
        axes.axhline(reference, color=ROLES["muted"], linewidth=0.9, linestyle="--")
        axes.set_ylim(min(0.4, *(min(y) for _, _, _, y in series)), 1.02)
    legend(figure, [(label, role, "o" if "validation" in label else "") for label, role, _, _ in series])
    rows = [
        (label, f"{x[index]:.4g}", f"{y[index]:.4g}")
        for label, _, x, y in series
        for index in _thinned(len(y), limit=12)
    ]
    return Plot(key, title, caption, svg(figure, key), ("series", *names), rows)


def _columns(history: History, x_key: str, y_key: str) -> tuple[list[float], list[float]]:
    """Return x and y of the rows that have both, as finite numbers."""
    pairs = [(row.get(x_key), row.get(y_key)) for row in history]
    numbers = [
        (float(x), float(y))
        for x, y in pairs
        if isinstance(x, int | float) and isinstance(y, int | float) and np.isfinite(x) and np.isfinite(y)
    ]
    numbers = [numbers[index] for index in _thinned(len(numbers), limit=400)]
    return [x for x, _ in numbers], [y for _, y in numbers]


def _thinned(count: int, limit: int) -> list[int]:
    """Return at most `limit` indices spread evenly, first and last among them."""
    return sorted({round(position) for position in np.linspace(0, count - 1, min(count, limit))}) if count else []
