"""The tables in Markdown, from the cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments.real.arms import ARMS
from experiments.real.study import DECODINGS, Cells, best_sft, judged, mean, of_seeds, win_rate
from experiments.real.tasks import TASKS
from understudy.evaluation.intervals import Interval

Arms = dict[str, dict[int, dict[str, Any]]]


def tables(cells: Cells) -> str:
    """For each task and size: scores and wins, then what the samples are like."""
    parts = [part for key, arms in cells.items() if "sft" in arms for part in _of_one(key, arms)]
    return "\n\n".join(parts) + "\n"


def _of_one(key: tuple[str, str], arms: Arms) -> list[str]:
    task, size = TASKS[key[0]], key[1]
    best = best_sft(arms)
    seeds = sorted({seed for cells in arms.values() for seed in cells})
    num = f"{size} demonstrations" if size != "all" else "all demonstrations"
    head = f"**{task.name}, {num}** ({len(seeds)} seeds"
    some = sorted(len(cells) for cells in arms.values())
    head += "" if some[0] == some[-1] else f", from {some[0]} to {some[-1]} for an arm"
    head += f"). Best SFT by validation: {_label(best.arm)} at {_decoding(best.decoding)}."
    return [head, wins_table(task.judge, arms), samples_table(arms)]


def wins_table(judge: str, arms: Arms) -> str:
    """Score at both decodings, and how often each arm beats the best SFT on the same prompt."""
    best = best_sft(arms)
    wins_of = "tuned: wins over best SFT | at equal length | T=1: wins over best SFT"
    lines = [f"| arm | {judge}, T=1 | {judge}, tuned | {wins_of} |", "|---|---|---|---|---|---|"]
    for name, cells in arms.items():
        scores = [_shown(mean(judged(cells, decoding))) for decoding in DECODINGS]
        tuned, controlled = win_rate(cells, "tuned", arms[best.arm], best.decoding)
        plain, _ = win_rate(cells, "T=1", arms[best.arm], best.decoding)
        wins = [_percent(each) for each in (tuned, controlled, plain)]
        if name == best.arm:
            wins[0 if best.decoding == "tuned" else 2] = "(itself)"
            wins[1] = "" if best.decoding == "tuned" else wins[1]
        lines.append(f"| {ARMS[name].label} | " + " | ".join([*scores, *wins]) + " |")
    return "\n".join(lines)


def samples_table(arms: Arms) -> str:
    """What the samples at T=1 are like, mean over seeds; distinct-2 also at the tuned decoding."""
    lines = [
        "| arm | fresh AUC | NLL | distinct-2 | distinct-2, tuned | self-BLEU | length | chrF | disc. AUC |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, cells in arms.items():
        plain = [cell["decodings"]["T=1"] for cell in cells.values()]
        columns = [
            _shown(_clipped(of_seeds(each["auc"] for each in plain))),
            _number(of_seeds(_nll(cell) for cell in cells.values()), 3),
            _number(of_seeds(each["distinct_2"] for each in plain), 3),
            _number(of_seeds(cell["decodings"]["tuned"]["distinct_2"] for cell in cells.values()), 3),
            _number(of_seeds(each["self_bleu"] for each in plain), 1),
            _number(of_seeds(sum(each["lengths"]) / len(each["lengths"]) for each in plain), 1),
            _number(of_seeds(each["chrf"] for each in plain), 1),
            _number(of_seeds(cell.get("held_out_auc") for cell in cells.values()), 2),
        ]
        lines.append(f"| {ARMS[name].label} | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def _nll(cell: dict[str, Any]) -> float | None:
    return sum(cell["nll"]) / sum(cell["expert_tokens"]) if "nll" in cell else None


def _clipped(interval: Interval | None) -> Interval | None:
    return interval and replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))


def _label(arm: str) -> str:
    return ARMS[arm].label.replace("*", "")


def _decoding(name: str) -> str:
    return "its tuned decoding" if name == "tuned" else name


def _shown(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _percent(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{100 * interval.value:.1f}% [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _number(interval: Interval | None, digits: int) -> str:
    return "" if interval is None else f"{interval.value:.{digits}f}"
