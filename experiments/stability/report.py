"""The tables of the stability runs in Markdown, from their raw numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def load(folder: Path) -> list[Result]:
    """Read the raw numbers of all runs, in the order of their names."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def pages(results: Sequence[Result]) -> dict[str, dict[str, str]]:
    """The block that the runs fill, by page of docs/."""
    return {"results.md": {"stability": tables(results)}}


def tables(results: Sequence[Result]) -> str:
    """Return one table of the runs' courses and one of what both policies write on test prompts."""
    return "\n\n".join((_courses(results), _test_prompts(results)))


def verdict(result: Result) -> str:
    """Return "healthy", or what was not: stopped by a gate, below SFT by a judge at some decoding, or both."""
    below = [
        f"{judge}, {decoding}"
        for decoding, found in result["evaluation"].items()
        for judge, difference in found["differences"].items()
        if difference["high"] is not None and difference["high"] < 0
    ]
    stopped = [f"stopped by {result['stopped_by'].split(':')[0]}"] if result["stopped_by"] is not None else []
    return "; ".join([*stopped, *([f"below SFT ({'; '.join(below)})"] if below else [])]) or "healthy"


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
        "| run | seed | length, SFT → aligned | distinct-2 | judge | T = 1 | difference | tuned | difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        plain, tuned = (result["evaluation"][decoding] for decoding in ("T=1", "tuned"))
        shown = [
            result["case"],
            str(result["seed"]),
            _change(plain, "length_tokens", 1),
            _change(plain, "distinct_2", 3),
        ]
        for judge in plain["differences"]:
            cells = [*shown, judge]
            for both in (plain, tuned):
                cells += [_change(both, f"judge_{judge}", 3), _difference(both["differences"][judge])]
            lines.append("| " + " | ".join(cells) + " |")
            shown = [""] * len(shown)
    return "\n".join(lines)


def _change(both: dict[str, Any], name: str, digits: int) -> str:
    found = [both[policy].get(name) for policy in ("sft", "aligned")]
    return " → ".join(f"{each['value']:.{digits}f}" if each else "–" for each in found)


def _difference(found: dict[str, Any]) -> str:
    if found["high"] is None:  # fewer groups of prompts than an interval needs
        return f"{found['value']:+.3f} (not measured: {found['groups']} groups)"
    return f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
