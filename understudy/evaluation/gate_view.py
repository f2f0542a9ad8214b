"""The gate's decision as the report page shows it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.errors import UnderstudyError
from understudy.evaluation.gate import Decision, RuleVerdict, decide, load_gate
from understudy.evaluation.gate.words import OUTCOMES, demand, number, rule_name
from understudy.evaluation.names import CHALLENGER, CHAMPION


@dataclass(frozen=True)
class GateAnswer:
    """What a gate file says of a report: a decision, or why there is none.

    Attributes:
        file: name of the rules' file.
        sha256: its digest, because the file may say something else tomorrow.
        decision: None when the gate refused to decide.
        refusal: why, else "".
        has_champion: whether there is one to replace; else the page is about the challenger and SFT first.
    """

    file: str
    sha256: str
    decision: Decision | None
    refusal: str
    has_champion: bool

    @property
    def headline(self) -> str:
        """One sentence for the top of the page."""
        if self.decision is None:
            return "The gate cannot decide on this report."
        return self.decision.headline

    @property
    def outcome(self) -> str:
        """Return pass, fail, not_enough_evidence, no_rule or refused."""
        return self.decision.verdict if self.decision else "refused"

    def rows(self) -> list[dict[str, str]]:
        """Return one row per rule, all text."""
        return [_row(rule) for rule in self.decision.rules] if self.decision else []


def ask_gate(path: Path, report: Mapping[str, Any]) -> GateAnswer | None:
    """Ask a gate file about a parsed report; None without a file.

    A gate that cannot be read or refuses is an answer, too: it must not cost the evaluation.
    """
    if not path.is_file():
        return None
    has_champion = CHAMPION in report.get("protocol", {}).get("policies", {})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        decision = decide(load_gate(path), report, CHALLENGER, CHAMPION if has_champion else None)
    except UnderstudyError as error:
        return GateAnswer(path.name, sha256, None, str(error), has_champion)
    return GateAnswer(path.name, sha256, decision, "", has_champion)


def _row(rule: RuleVerdict) -> dict[str, str]:
    return {
        "outcome": rule.verdict,
        "verdict": OUTCOMES[rule.verdict],
        "rule": f"{rule.kind}: {rule_name(rule)}",
        "measured": number(rule, rule.value),
        "limits": "" if rule.low is None else f"{number(rule, rule.low)} to {number(rule, rule.high)}",
        "wanted": "" if rule.bound is None else demand(rule),
        "prompts": f"{rule.prompts} in {rule.groups}",
        "more": f"{rule.more_prompts:,}" if rule.more_prompts else "",
        "text": rule.text,
    }
