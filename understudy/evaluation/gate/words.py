"""Verdicts as sentences with numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from understudy.evaluation.names import EXPERT_TEXT

if TYPE_CHECKING:
    from understudy.evaluation.gate.rules import RuleVerdict

OUTCOMES = {"pass": "Pass", "fail": "Fail", "not_enough_evidence": "Not enough evidence", "skipped": "Skipped"}
RELATIVE = ("relative_margin", "max_drift")
SHOWN_IDS = 5


def rule_name(verdict: RuleVerdict) -> str:
    """Return metric, decoding and opponent, for example "judge:validity (tuned) against champion"."""
    where = "" if verdict.decoding == EXPERT_TEXT else f" ({verdict.decoding})"
    return f"{verdict.metric}{where}" + (f" against {verdict.against}" if verdict.against else "")


def number(verdict: RuleVerdict, value: float | None) -> str:
    """Return a number of a rule as people read it: relative limits in per cent, differences with their sign."""
    if value is None:
        return "not measured"
    if verdict.limit in RELATIVE:
        return f"{value:+.1%}"
    return f"{value:.4g}" if verdict.limit in ("floor", "ceiling") else f"{value:+.4g}"


def demand(verdict: RuleVerdict) -> str:
    """Return what the rule asks for."""
    if verdict.bound is None:
        return "what the gate asks"
    bound = number(verdict, verdict.bound)
    if verdict.limit == "max_drift":
        return f"within ±{abs(verdict.bound):.1%}"
    return f"below {bound}" if verdict.limit == "ceiling" else f"above {bound}"


def sentence(verdict: RuleVerdict, reasons: Sequence[str]) -> str:
    """Return the verdict of one rule with its numbers, what is missing, and which prompts were undecided."""
    parts = [f"{OUTCOMES[verdict.verdict]}: {rule_name(verdict)}"]
    if verdict.value is not None:
        parts.append(
            f" is {number(verdict, verdict.value)} ({1 - verdict.alpha:.4g} one-sided limits "
            f"{number(verdict, verdict.low)} and {number(verdict, verdict.high)}), wanted {demand(verdict)}"
        )
    else:
        parts.append(" could not be measured")
    parts.append(f"; {verdict.prompts} prompts in {verdict.groups} groups.")
    if reasons:
        parts.append(" " + "; ".join(reasons) + ".")
    if verdict.more_prompts:
        parts.append(f" About {verdict.more_prompts:,} more prompts would settle it if the truth is as measured.")
    for policy, prompts in verdict.undecided.items():
        shown = ", ".join(prompts[:SHOWN_IDS]) + (", …" if len(prompts) > SHOWN_IDS else "")
        parts.append(f" Undecided for {policy}: {len(prompts)} ({shown}).")
    return "".join(parts)
