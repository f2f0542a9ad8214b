"""Bar 1's tables in Markdown, from its raw numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.bar1.seeds import difference, mean
from understudy.evaluation.intervals import Interval

NAMES = {
    "sft": "SFT",
    "sft_tuned": "SFT, its best decoding (oracle)",
    "sft_longer": "SFT, continued for as many steps",
    "sft_smoothed": "SFT, label smoothing 0.1",
    "sft_smoothed_tuned": "the same, its best decoding (oracle)",
    "best_of_8": "SFT, best of 8 by the discriminator",
    "best_of_64": "SFT, best of 64 by the discriminator",
    "closed_form": "closed-form log-ratio reward",
    "spin": "SPIN",
    "iterative_sft": "iterative SFT, best 1 of 8",
    "frozen_reward": "RLHF-like: reward learned once, frozen",
    "forward_kl": "**forward KL**, adversarial",
    "forward_kl_unclipped": "forward KL, reward not clipped",
    "js": "**JS**",
    "alpha:0.5": "α = ½ (Hellinger)",
    "reverse_kl": "**reverse KL**",
    "forward_kl_tuned": "forward KL, its best decoding (oracle)",
    "js_tuned": "JS, its best decoding (oracle)",
    "reverse_kl_tuned": "reverse KL, its best decoding (oracle)",
    "exact_forward_kl": "*forward KL, descended exactly*",
    "exact_js": "*JS, descended exactly*",
    "exact_alpha:0.5": "*α = ½, descended exactly*",
}
CURVE = ("sft", "sft_tuned", "forward_kl", "js", "reverse_kl")


def tables(results: dict[str, Any]) -> str:
    """All tables: every method, the differences that the bar is about, the two curves and their differences."""
    parts = [main_table(results["main"]), difference_table(results["differences"])]
    for head, curve in (("tokens remembered", results["capacity"]), ("demonstrations", results["demonstrations"])):
        parts += [curve_table(head, curve), curve_difference_table(head, curve)]
    return "\n\n".join(parts) + "\n"


def main_table(main: dict[str, Any]) -> str:
    """One row a method."""
    lines = ["| policy | valid samples [95%] | modes hit, of 12 | JS | KL(expert ‖ policy) |", "|---|---|---|---|---|"]
    for key, name in NAMES.items():
        if key not in main:
            continue
        row = main[key]
        modes, js, forward = (_average(row.get(field)) for field in ("modes", "js", "forward_kl"))
        lines.append(
            f"| {name} | {_shown(mean(row['validity'], (0, 1)))} | {modes:.1f} | {_cell(js)} | {_cell(forward)} |"
        )
    return "\n".join(lines)


def difference_table(differences: dict[str, Any]) -> str:
    """One row a comparison of the bar."""
    lines = ["| difference in valid samples | mean [95%] | seeds won |", "|---|---|---|"]
    for key, each in differences.items():
        ours, baseline = (NAMES[part].replace("*", "") for part in key.split(" - "))
        shown = f"{each['value']:+.3f} [{each['low']:+.3f}, {each['high']:+.3f}]"
        lines.append(f"| {ours} − {baseline} | {shown} | {each['won']} of {each['n']:.0f} |")
    return "\n".join(lines)


def curve_table(head: str, curve: dict[str, Any]) -> str:
    """One row a point; mean validity and, in brackets, modes hit."""
    names = " | ".join(NAMES[key].replace("*", "").split(",")[0] for key in CURVE if key != "sft_tuned")
    names = names.replace("SFT |", "SFT | SFT, best decoding |", 1)
    lines = [f"| {head} | {names} |", "|---" * (len(CURVE) + 1) + "|"]
    for point, table in curve.items():
        cells = [f"{_average(table[key]['validity']):.3f} ({_average(table[key]['modes']):.1f})" for key in CURVE]
        lines.append(f"| {int(point):,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def curve_difference_table(head: str, curve: dict[str, Any]) -> str:
    """One row a point: each divergence over SFT at its best decoding, paired by seed, and seeds won."""
    ours = [key for key in CURVE if not key.startswith("sft")]
    names = " | ".join(f"{NAMES[key].replace('*', '').split(',')[0]} − SFT, best decoding" for key in ours)
    lines = [f"| {head} | {names} |", "|---" * (len(ours) + 1) + "|"]
    for point, table in curve.items():
        cells = [_over(table[key]["validity"], table["sft_tuned"]["validity"]) for key in ours]
        lines.append(f"| {int(point):,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _over(ours: Sequence[float], theirs: Sequence[float]) -> str:
    found, won = difference(ours, theirs)
    return f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}], {won} of {found.n}"


def _average(values: Sequence[float] | None) -> float:
    return sum(values) / len(values) if values else float("nan")


def _cell(value: float) -> str:
    return "" if value != value else ("> 20" if value > 20 else f"{value:.2f}")


def _shown(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
