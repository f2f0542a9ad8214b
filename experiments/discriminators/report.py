"""The table in Markdown, from the cells."""

from __future__ import annotations

from typing import Any

from experiments.blocks import Pages
from experiments.discriminators.study import KINDS, LEARNED_FROM, REPEATS
from experiments.real.resampling import of_seeds
from understudy.evaluation.intervals import Interval

LABELS = {
    "sft": "a trained copy of the policy",
    "shared_trunk": "a reader of the frozen policy",
    "told": "the same, told log-probabilities",
    "ngrams": "a table of n-grams",
}


def pages(cells: list[dict[str, Any]]) -> Pages:
    """The block of docs/results.md."""
    return {"results.md": {"discriminators": table(cells)}}


def table(cells: list[dict[str, Any]]) -> str:
    """Held-out AUC after the last round, mean over seeds with Student's interval; seconds are of the seeds' mean."""
    lines = [
        "| task | seeds | discriminator | learned from | AUC, 40 updates | 200 updates | AUC of validity "
        f"| within a prompt | valid, best of {REPEATS} | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(cell["task"] for cell in cells):
        some = [cell for cell in cells if cell["task"] == task]
        head = f"{task}, {some[0]['half']} + {some[0]['half']} | {len(some)}"
        temperature = f"T={some[0]['settings']['temperature']:g}"
        lines.append(
            f"| {head} | none: one sample, {temperature} | | | | | | {_shown(of_seeds(c['valid'] for c in some))} | |"
        )
        lines += [_line(head, some, kind, name) for kind in KINDS for name in LEARNED_FROM]
    return "\n".join(lines)


def _line(head: str, cells: list[dict[str, Any]], kind: str, name: str) -> str:
    key = f"{kind}, {name}"
    first, last = (of_seeds(cell["auc"][key][at] for cell in cells) for at in (0, -1))
    found = [first, last, *(of_seeds(cell["ranks"][key][what] for cell in cells) for what in ("auc", "within", "best"))]
    seconds = sum(cell["seconds"][key] for cell in cells) / len(cells)
    shown = (head, LABELS[kind], f"{name} by SFT" if name == "seen" else name, *map(_shown, found))
    return f"| {' | '.join(shown)} | {seconds:.0f} |"


def _shown(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
