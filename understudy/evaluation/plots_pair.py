"""Figures of the report about a challenger beside what it would replace, and about all versions together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from understudy.evaluation.canvas import ROLES, Plot, canvas, legend, plain, policy_label, svg
from understudy.evaluation.sides import Pair

MAX_BARS = 12  # different gains that are drawn each by itself; more are binned
MAX_RATED = 40


def draw_gains(pair: Pair | None) -> list[Plot]:
    """Return how the paired score differences are distributed, nothing where none was decided."""
    if pair is None:
        return []
    gain = pair.gain_P[np.isfinite(pair.gain_P)]
    if not len(gain):
        return []
    better, worse = policy_label(pair.challenger), policy_label(pair.reference)
    figure, axes = canvas(f"{pair.measure}: {better} minus {worse}", "prompts")
    middles, counts, width = _bars(gain)
    roles = [pair.reference if x < 0 else pair.challenger if x > 0 else "muted" for x in middles]
    axes.bar(middles, counts, width=0.9 * width, color=[ROLES[role] for role in roles])
    for x, count in zip(middles, counts, strict=True):
        if count and len(middles) <= MAX_BARS:
            axes.annotate(f"{count}", (x, count), (0, 2), textcoords="offset points", ha="center", color=ROLES["muted"])
    axes.axvline(0, color=ROLES["muted"], linewidth=0.9, linestyle="--")
    legend(figure, [(f"{better} better", pair.challenger, ""), (f"{worse} better", pair.reference, "")])
    rows = [(f"{x:.3g}", f"{count}") for x, count in zip(middles, counts, strict=True) if count]
    return [
        Plot(
            "gains",
            "Score differences, prompt by prompt",
            f"Right of zero {better} scored higher on the same prompt; {len(gain)} prompts decided for both.",
            svg(figure, "gains"),
            ("difference", "prompts"),
            rows,
        )
    ]


def draw_ladder(ladder: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Return the Elo ratings of registered versions with their intervals.

    Args:
        ladder: one mapping a version: version, rating, low, high, matches.
    """
    rated = sorted(ladder, key=lambda row: float(row["rating"]))[-MAX_RATED:]
    if not rated:
        return []
    figure, axes = canvas("Elo rating", "")
    figure.set_size_inches(4.7, max(1.6, 0.7 + 0.32 * len(rated)))
    for place, row in enumerate(rated):
        value = float(row["rating"])
        low, high = (value if row.get(side) is None else float(row[side]) for side in ("low", "high"))
        axes.errorbar(
            value, place, xerr=[[max(0.0, value - low)], [max(0.0, high - value)]], color=ROLES["aligned"], marker="o"
        )
    names = [plain(str(row["version"])[:40]) for row in rated]
    axes.set_yticks(range(len(rated)), names)
    axes.set_ylim(-0.6, len(rated) - 0.4)
    cells = [_ladder_row(row) for row in reversed(rated)]
    return [
        Plot(
            "ladder",
            "Elo ladder of the registered versions",
            "From head-to-head judgements; bars are intervals. Only differences mean something, not the numbers alone.",
            svg(figure, "ladder"),
            ("version", "rating", "interval", "matches"),
            cells,
        )
    ]


def _ladder_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = row.get("low"), row.get("high")
    interval = "–" if low is None or high is None else f"{float(low):.0f} to {float(high):.0f}"
    return str(row["version"]), f"{float(row['rating']):.0f}", interval, str(row.get("matches", "–"))


def _bars(gain: Any) -> tuple[list[float], list[int], float]:
    """Return middles, counts and width of the bars: one for each difference where they are few, else equal bins."""
    values, counts = np.unique(gain.round(9), return_counts=True)
    if len(values) <= MAX_BARS:
        width = float(np.diff(values).min()) if len(values) > 1 else 1.0
        return values.tolist(), counts.tolist(), width
    extent = float(np.abs(gain).max())
    counts, edges = np.histogram(gain, bins=21, range=(-extent, extent))
    return ((edges[:-1] + edges[1:]) / 2).tolist(), counts.tolist(), float(edges[1] - edges[0])
