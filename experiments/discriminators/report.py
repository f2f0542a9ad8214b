"""The table in Markdown, from the cells."""

from __future__ import annotations

from typing import Any

from experiments.blocks import Pages
from experiments.discriminators.study import KINDS, LEARNED_FROM
from experiments.real.study import of_seeds
from understudy.evaluation.intervals import Interval

LABELS = {
    "sft": "a trained copy of the policy",
    "shared_trunk": "a reader of the frozen policy",
    "told": "the same, told log-probabilities",
}


def pages(cells: list[dict[str, Any]]) -> Pages:
    """The block of docs/results.md."""
    return {"results.md": {"discriminators": table(cells)}}


def table(cells: list[dict[str, Any]]) -> str:
    """Held-out AUC after the last round, mean over seeds with Student's interval; seconds are of the seeds' mean."""
    lines = [
        "| task | seeds | discriminator | learned from | AUC, 40 updates | 200 updates | AUC of validity | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(cell["task"] for cell in cells):
        some = [cell for cell in cells if cell["task"] == task]
        head = f"{task}, {some[0]['half']} + {some[0]['half']}"
        for kind in KINDS:
            for name in LEARNED_FROM:
                key = f"{kind}, {name}"
                first, last = (of_seeds(cell["auc"][key][at] for cell in some) for at in (0, -1))
                seconds = sum(cell["seconds"][key] for cell in some) / len(some)
                shown = (head, str(len(some)), LABELS[kind], f"{name} by SFT" if name == "seen" else name)
                valid = of_seeds(cell["auc_valid"][key] for cell in some)
                lines.append(
                    f"| {' | '.join(shown)} | {_shown(first)} | {_shown(last)} | {_shown(valid)} | {seconds:.0f} |"
                )
    return "\n".join(lines)


def _shown(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
