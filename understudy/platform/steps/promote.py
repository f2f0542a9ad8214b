"""Step promote: from challenger to champion, where the params let the pipeline decide; never cached.

A challenger that does not pass the gate is what most scheduled retrainings bring, so it is a result. What may never be
promoted (damage, test rows in training data, another champion than the one it was compared with) fails the step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from understudy.config import PromotionConfig, validate
from understudy.platform import where
from understudy.platform.context import step_context
from understudy.platform.promotion.aliases import MlflowAliases
from understudy.platform.promotion.change import actor, promote
from understudy.platform.promotion.decisions import Decision, State, read_decisions
from understudy.platform.promotion.examine import SAME_WEIGHTS, Examination, VerdictRefused
from understudy.platform.promotion.gitops import open_or_clone
from understudy.platform.promotion.places import Place, place_of
from understudy.platform.promotion.transition import Ledger, current_state
from understudy.platform.registry import Registry
from understudy.records import Promotion, RegistryEntry

NAME = "promote"


def run(config: Mapping[str, Any], entry: RegistryEntry) -> Promotion:
    """Promote a registered version if the gate passes; say why not otherwise.

    Args:
        config: section `promotion`, and `gate_yaml`, the text of the reviewed gate.
        entry: what register returned.

    Raises:
        GateRefused: it may not be promoted whatever its numbers say.
        ConfigError: the gate, the repository or its files are not as they should be.
        WorkdirBusy: another promotion is at work for longer than `wait_seconds`.
        ServiceUnreachable: MLflow, the store or the remote does not answer.
    """
    with step_context(NAME, config) as context:
        settings = validate(PromotionConfig, config["promotion"], where="promotion")
        uri = where.tracking_uri(context.workdir)
        registry = Registry(uri, context.workdir)
        place = place_of(context.workdir, entry.name, where.storage_uri())
        with tempfile.TemporaryDirectory(prefix="understudy-promote-") as scratch:
            gate = Path(scratch) / "gate.yaml"
            gate.write_text(str(config["gate_yaml"]), encoding="utf-8")
            gitops = open_or_clone(settings, Path(scratch) / "gitops") if settings.gitops is not None else None
            ledger = Ledger(MlflowAliases(registry), place, gitops)
            promotion = _decide(registry, entry, gate, ledger, settings.wait_seconds)
        context.finish(promotion)
    return promotion


def _decide(registry: Registry, entry: RegistryEntry, gate: Path, ledger: Ledger, wait_seconds: float) -> Promotion:
    version = registry.find(f"{entry.name}/{entry.version}")
    examination = Examination(registry, gate, None, where.storage_uri())
    candidate = examination.candidate(version, deployed=ledger.gitops is not None)
    try:
        outcome = promote(
            ledger, candidate, lambda before: examination.examine(version, before), actor(), None, wait_seconds
        )
    except VerdictRefused as refused:
        nothing = _unchanged(entry, current_state(ledger, entry.name), ledger.place)
        kind = "unchanged" if refused.verdict == SAME_WEIGHTS else "refused"
        return replace(
            nothing, outcome=kind, verdict=refused.verdict, reason=str(refused), more_prompts=refused.more_prompts
        )
    nothing = _unchanged(entry, outcome.state, ledger.place)
    decision = outcome.applied.decision if outcome.applied else _of_this_run(ledger.place, entry)
    if decision is None:
        return nothing
    evidence = decision.transition.evidence
    return replace(
        nothing,
        outcome="promoted",
        verdict=str(evidence["verdict"]),
        reason=decision.transition.reason,
        decision_sha256=decision.sha256,
        commit=ledger.gitops.commit_of(decision.transition.id) if ledger.gitops else None,
    )


def _of_this_run(place: Place, entry: RegistryEntry) -> Decision | None:
    """Return the last decision if this run made it, in an attempt that was cut off before it could say so."""
    last = next(reversed(read_decisions(place)), None)
    if last is None or last.transition.kind != "promote" or last.transition.decided_by != actor():
        return None
    return last if last.transition.state_after.champion == entry.version else None


def _unchanged(entry: RegistryEntry, state: State, place: Place) -> Promotion:
    return Promotion(
        name=entry.name,
        version=entry.version,
        outcome="unchanged",
        verdict="champion",
        reason="It is the champion already.",
        more_prompts=None,
        champion=state.champion,
        previous=state.previous,
        decision_sha256=None,
        commit=None,
        uri=place.uri,
    )
