"""All rules together: one decision, with the error rates that `gate.yaml` states.

Guards must all pass, so the union of their null hypotheses is tested by an intersection (Berger 1982): promoting a
model that breaks any guard needs that guard's own test to err, each at level alpha, and no correction is due. The
same holds for primaries of which all are needed. Where any one of several primaries is enough there are several
chances to err, and Holm's (1979) step-down correction keeps them at alpha together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from understudy.errors import GateRefused
from understudy.evaluation.gate.contrasts import limit_of
from understudy.evaluation.gate.rules import Question, RuleVerdict, answer, ask
from understudy.evaluation.gate.schema import Gate, PrimaryRule, Rule
from understudy.evaluation.gate.scores import (
    Scores,
    Series,
    canonical,
    missing_measurement,
    refuse_unpaired,
    scores_from,
)
from understudy.evaluation.names import CHAMPION

BEST_FIRST = ("pass", "not_enough_evidence", "fail")
Verdict = Literal["pass", "fail", "not_enough_evidence", "no_rule"]


@dataclass(frozen=True)
class Decision:
    """Whether the challenger may replace the champion.

    Attributes:
        verdict: "pass", "fail" or "not_enough_evidence"; "no_rule" where there is no champion and nothing was asked.
        headline: one sentence.
        challenger: its name in the report.
        champion: what it was compared with, None where there is no champion.
        digests: weights by name, so that a decision cannot be used for other weights.
        dataset_md5: the dataset version whose test split was used.
        confidence: one-sided, of the whole decision.
        correction: how several rules were combined.
        more_prompts: how many would settle every undecided rule, or where any primary is enough the first of those.
        rules: one verdict per rule, primaries first.
    """

    verdict: Verdict
    headline: str
    challenger: str
    champion: str | None
    digests: dict[str, str]
    dataset_md5: str
    confidence: float
    correction: str
    more_prompts: int | None
    rules: list[RuleVerdict]

    @property
    def accepts(self) -> bool:
        """Whether the challenger may become champion: every rule passed, or the gate asks nothing of a first one."""
        return self.verdict in ("pass", "no_rule")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**vars(self), "rules": [rule.to_json() for rule in self.rules]}


def decide(gate: Gate, report: Mapping[str, Any], challenger: str, champion: str | None) -> Decision:
    """Decide from a parsed `report.json`.

    Args:
        gate: the rules.
        report: of one evaluation that measured both, as the evaluate step writes it.
        challenger: its policy name in the report, for example "aligned".
        champion: the champion's policy name in the report; None when the registry has no champion.

    Raises:
        GateRefused: the two were not measured alike, or the report lacks what a rule reads; every problem is named.
            Also when rules were skipped for want of a champion, and the report itself could compare nothing.
    """
    others = {rule.against for rule in (*gate.primary, *gate.guards)} - {CHAMPION}
    if champion is None and gate.no_champion == "compare_to_sft":
        others.add("sft")
    scores = {name: scores_from(report, name) for name in sorted(others)}
    found = None if champion is None else scores_from(report, champion)
    decision = decide_scores(gate, found, scores_from(report, challenger), scores)
    _refuse_unmeasured_first(decision, report.get("verdict"))
    return decision


def decide_scores(
    gate: Gate, champion: Scores | None, challenger: Scores, others: Mapping[str, Scores] | None = None
) -> Decision:
    """Decide from prompt-by-prompt scores; `others` are what rules name in `against` besides the champion.

    Raises:
        GateRefused: as `decide`; also when the challenger has the champion's weights, or no champion exists and the
            gate wants a person to choose the first.
    """
    references = dict(others or {})
    if champion is not None:
        if champion.sha256 == challenger.sha256:
            raise GateRefused(f"Challenger and champion are the same weights, {challenger.sha256}; nothing to decide.")
        references[CHAMPION] = champion
    elif gate.no_champion == "refuse":
        raise GateRefused("There is no champion, and the gate's no_champion is `refuse`: a person chooses the first.")
    elif gate.no_champion == "compare_to_sft":
        if "sft" not in references:
            raise GateRefused(
                "There is no champion, the gate's no_champion is `compare_to_sft`, and SFT has no scores."
            )
        references[CHAMPION] = references["sft"]
    asked, skipped = _applicable(gate, references)
    _refuse_unusable(asked, skipped, references, challenger)
    sorted_challenger = canonical(challenger)
    sorted_references = {name: canonical(scores) for name, scores in references.items()}
    questions = [ask(rule, sorted_challenger, sorted_references.get(rule.against, sorted_challenger)) for rule in asked]
    levels = _levels(gate, questions)
    rules = [
        answer(gate, question, level, _named(question.rule, references))
        for question, level in zip(questions, levels, strict=True)
    ]
    return _decision(gate, champion, challenger, references, rules + [_skipped(rule, gate) for rule in skipped])


def strictest_level(gate: Gate, rule: Rule) -> float:
    """Return the smallest level at which a rule may have to pass; sample sizes are planned with it."""
    shared = isinstance(rule, PrimaryRule) and gate.primaries_needed == "any"
    return gate.alpha / len(gate.primary) if shared else gate.alpha


def _applicable(gate: Gate, references: Mapping[str, Scores]) -> tuple[list[Rule], list[Rule]]:
    """Split the rules into those that can be asked and those for which there is no champion yet."""
    asked: list[Rule] = []
    skipped: list[Rule] = []
    for rule in (*gate.primary, *gate.guards):
        alone = limit_of(rule) in ("floor", "ceiling")
        there = alone or rule.against in references or rule.against != CHAMPION
        (asked if there else skipped).append(rule)
    return asked, skipped


def _refuse_unmeasured_first(decision: Decision, said: Any) -> None:
    """Raise GateRefused for a first champion that no rule compared and whose report (`said`) could not compare it."""
    compared = "skipped" not in [rule.verdict for rule in decision.rules]
    if compared or not decision.accepts or not isinstance(said, Mapping) or said.get("outcome") != "not_measured":
        return
    raise GateRefused(
        f"There is no champion, and the report can say nothing of a first one: {said.get('text')} Evaluate with a "
        "judge and more groups of prompts, or decide as a person: understudy model promote NAME@alias --approve REASON."
    )


def _refuse_unusable(
    asked: Sequence[Rule], skipped: Sequence[Rule], references: Mapping[str, Scores], challenger: Scores
) -> None:
    """Raise one GateRefused with everything that keeps the rules from being asked, now or of the next challenger."""
    problems = [f"{rule.name}: {text}" for rule in skipped for text in [missing_measurement(challenger, rule)] if text]
    for rule in asked:
        sides = [challenger] if limit_of(rule) in ("floor", "ceiling") else [challenger, references.get(rule.against)]
        if None in sides:
            problems.append(f"{rule.name}: the report has no policy {rule.against!r}")
            continue
        lacking = [missing_measurement(scores, rule) for scores in sides if scores is not None]
        problems += [f"{rule.name}: {text}" for text in lacking if text]
        if not any(lacking) and len(sides) > 1 and sides[1] is not None:
            problems += _incomparable(rule, challenger, sides[1])
    if problems:
        raise GateRefused(
            "The gate asks for what was not measured:\n"
            + "\n".join(f"  - {text}" for text in problems)
            + "\nLet its rules name what the report has, such as your own judge: docs/gate.md has an example."
        )
    decodings = sorted({rule.where for rule in asked})
    for reference in {id(scores): scores for scores in references.values()}.values():
        refuse_unpaired(challenger, reference, decodings)


def _incomparable(rule: Rule, challenger: Scores, reference: Scores) -> list[str]:
    both = canonical(challenger), canonical(reference)
    ours, theirs = (scores.measured[rule.metric, rule.where] for scores in both)
    if not isinstance(ours, Series) or not isinstance(theirs, Series):
        return []
    if ours.weights != theirs.weights and both[0].prompts == both[1].prompts:
        return [
            f"{rule.name}: the tokenizers of {challenger.policy} and {reference.policy} count different tokens, so "
            "values per token cannot be compared; use nll_per_character"
        ]
    if limit_of(rule) in ("relative_margin", "max_drift") and sum(v for v in theirs.values if v == v) <= 0:
        return [f"{rule.name}: {reference.policy} has a mean of zero or below, of which no fraction can be taken"]
    return []


def _levels(gate: Gate, questions: Sequence[Question]) -> list[float]:
    """Return each question's level: alpha, or Holm's where any one primary is enough."""
    primaries = [index for index, question in enumerate(questions) if isinstance(question.rule, PrimaryRule)]
    levels = [gate.alpha] * len(questions)
    if gate.primaries_needed == "all":
        return levels
    rejecting = True
    level = gate.alpha
    for rank, index in enumerate(sorted(primaries, key=lambda index: questions[index].p_value)):
        if rejecting:
            level = gate.alpha / (len(primaries) - rank)
            rejecting = questions[index].p_value < level
        levels[index] = level
    return levels


def _named(rule: Rule, references: Mapping[str, Scores]) -> str:
    return references[rule.against].policy if rule.against in references else rule.against


def _skipped(rule: Rule, gate: Gate) -> RuleVerdict:
    kind = "primary" if isinstance(rule, PrimaryRule) else "guard"
    text = f"Skipped: {rule.name}; there is no champion yet to compare with."
    return RuleVerdict(
        kind, rule.metric, rule.where, rule.against, limit_of(rule), "skipped",
        None, None, None, None, gate.alpha, None, 0, 0, None, None, {}, text,
    )  # fmt: skip


def _decision(
    gate: Gate, champion: Scores | None, challenger: Scores, references: Mapping[str, Scores], rules: list[RuleVerdict]
) -> Decision:
    primaries = _deciding(gate, [rule for rule in rules if rule.kind == "primary"])
    guards = [rule for rule in rules if rule.kind == "guard"]
    outcomes = [rule.verdict for rule in primaries + guards]
    worst_first: tuple[Verdict, ...] = ("fail", "not_enough_evidence", "pass")
    verdict: Verdict = next((each for each in worst_first if each in outcomes), "no_rule")
    num_primary = len(gate.primary)
    corrected = gate.primaries_needed == "any" and num_primary > 1
    correction = (
        f"Holm over {num_primary} primary rules; guards must all pass, which needs none"
        if corrected
        else "none due: every rule must pass"
    )
    one, each = ([rule.more_prompts for rule in part if rule.more_prompts is not None] for part in (primaries, guards))
    more = ([min(one)] if one and gate.primaries_needed == "any" else one) + each
    against = references[CHAMPION].policy if CHAMPION in references else None
    named = None if champion is None else champion.policy
    return Decision(
        verdict=verdict,
        headline=_headline(verdict, challenger.policy, named, against, primaries + guards),
        challenger=challenger.policy,
        champion=named,
        digests={scores.policy: scores.sha256 for scores in (challenger, *references.values())},
        dataset_md5=challenger.dataset_md5,
        confidence=gate.confidence,
        correction=correction,
        more_prompts=max(more) if verdict == "not_enough_evidence" and more else None,
        rules=rules,
    )


def _deciding(gate: Gate, primaries: list[RuleVerdict]) -> list[RuleVerdict]:
    """Return the primary rules that decide: all, or where any is enough those of the best outcome that there is."""
    if gate.primaries_needed == "all":
        return primaries
    best = next((name for name in BEST_FIRST if name in [rule.verdict for rule in primaries]), None)
    return [rule for rule in primaries if rule.verdict == best]


def _headline(
    verdict: Verdict, challenger: str, champion: str | None, against: str | None, rules: Sequence[RuleVerdict]
) -> str:
    if verdict == "no_rule":
        return (
            "No rule applied: there is no champion, and gate.yaml asks nothing of a first one; "
            f"{challenger} may become it."
        )
    names = ", ".join(f"{rule.metric} ({rule.kind})" for rule in rules if rule.verdict == verdict)
    step = f"replace {champion}" if champion else "become the first champion"
    if against and not champion:
        step += f", compared with {against}"
    if verdict == "pass":
        return f"Pass: {challenger} may {step}."
    if verdict == "fail":
        return f"Fail: {challenger} may not {step}; {names}."
    return f"Not enough evidence that {challenger} may {step}; undecided: {names}."
