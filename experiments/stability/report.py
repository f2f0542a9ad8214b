"""The tables of the stability runs in Markdown, from their raw numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]


def tables(results: Sequence[Result]) -> str:
    """Return one table of the runs' courses and one of what both policies write on test prompts at T = 1."""
    return "\n\n".join((_courses(results), _test_prompts(results)))


def verdict(result: Result) -> str:
    """Return "healthy", or what was not: stopped by a gate, or below SFT by the judge at some decoding."""
    if result["stopped_by"] is not None:
        return "stopped by " + result["stopped_by"].split(":")[0]
    below = [name for name, found in result["evaluation"].items() if found["judge_difference"]["high"] < 0]
    return f"below SFT ({', '.join(below)})" if below else "healthy"


def _courses(results: Sequence[Result]) -> str:
    lines = [
        "| run | seed | policy rounds | length, SFT → last (longest) | distinct-2 (least) | entropy (least) "
        "| KL, nats/response (most) | held-out AUC (most) | ends |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        rounds = [row for row in result["history"] if "kl" in row]
        lengths, pairs, entropies, kls = (
            [row[name] for row in rounds] for name in ("response_tokens", "distinct_2", "entropy", "kl")
        )
        aucs = [row["held_out_auc"] for row in rounds if "held_out_auc" in row]
        cells = [
            result["case"],
            str(result["seed"]),
            f"{len(rounds)} of {result['rounds']}",
            f"{lengths[0]:.4g} → {lengths[-1]:.4g} ({max(lengths):.4g})",
            f"{pairs[0]:.3f} → {pairs[-1]:.3f} ({min(pairs):.3f})",
            f"{entropies[0]:.3f} → {entropies[-1]:.3f} ({min(entropies):.3f})",
            f"{kls[-1]:.2f} ({max(kls):.2f})",
            f"{aucs[-1]:.2f} ({max(aucs):.2f})",
            verdict(result),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _test_prompts(results: Sequence[Result]) -> str:
    lines = [
        "| run | seed | length, SFT → aligned | distinct-2 | judge | judge: aligned − SFT, T = 1 | tuned |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        both = result["evaluation"]["T=1"]

        def change(name: str, digits: int, both: dict[str, Any] = both) -> str:
            found = [both[policy].get(name) for policy in ("sft", "aligned")]
            return " → ".join(f"{each['value']:.{digits}f}" if each else "–" for each in found)

        cells = [result["case"], str(result["seed"]), change("length_tokens", 1), change("distinct_2", 3)]
        cells += [change("judge_rule", 3)]
        cells += [_difference(result["evaluation"][name]["judge_difference"]) for name in ("T=1", "tuned")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference(found: dict[str, float]) -> str:
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
