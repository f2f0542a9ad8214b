"""Promote and roll back: under the lease, after recovery, against what the registry and Git say at that moment."""

from __future__ import annotations

import getpass
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from understudy.errors import ConfigError, GateRefused
from understudy.platform.promotion.decisions import State, Transition, one_line, read_decisions
from understudy.platform.promotion.lease import WAIT_SECONDS, hold
from understudy.platform.promotion.manifests import ZERO_SHA256, serving_of
from understudy.platform.promotion.transition import Applied, Ledger, apply, current_state, recover

NONE = "none"
Examine = Callable[[State], dict[str, Any]]


@dataclass(frozen=True)
class Candidate:
    """A version and the immutable URI of its weights."""

    model: str
    version: str
    uri: str


@dataclass(frozen=True)
class Outcome:
    """What was done.

    `applied` is None where nothing was left to do; `recovered` says what became of a change that an earlier
    process had left half done.
    """

    transition: Transition | None
    applied: Applied | None
    recovered: str | None
    state: State


def promote(
    ledger: Ledger,
    candidate: Candidate,
    examine: Examine,
    decided_by: str,
    reason: str | None,
    wait_seconds: float = WAIT_SECONDS,
) -> Outcome:
    """Make a version the champion, and the champion the previous one.

    Args:
        ledger: what is written to.
        candidate: the version.
        examine: called with the state as it is under the lease; returns the evidence or raises GateRefused.
        decided_by: the person or the pipeline run.
        reason: a person's, in a sentence; None for the headline of the gate's decision.
        wait_seconds: how long to wait for another promotion.

    Raises:
        GateRefused: by `examine`; nothing was changed.
        ConfigError: an environment serves another model.
        WorkdirBusy: another promotion is at work for longer than `wait_seconds`.
    """

    def decide(before: State) -> Transition | None:
        _refuse_other_model(candidate.model, before)
        served = serving_of(candidate.model, candidate.version, candidate.uri)
        serving = dict.fromkeys(before.serving, served)
        is_champion = before.champion == candidate.version
        if is_champion and before.serving == serving:
            return None
        evidence = examine(before)
        previous = before.previous if is_champion else before.champion
        after = State(candidate.version, previous, serving, before.pipeline_versions)
        kind = "deploy" if is_champion else "promote"
        why = reason or str(evidence["decision"]["headline"])
        return _transition(kind, candidate.model, before, after, decided_by, why, evidence)

    return _change(ledger, candidate.model, decided_by, decide, wait_seconds)


def rollback(
    ledger: Ledger,
    model: str,
    to: str | None,
    candidate_of: Callable[[str], Candidate],
    decided_by: str,
    reason: str,
    wait_seconds: float = WAIT_SECONDS,
) -> Outcome:
    """Go back to the state that an earlier promotion left: aliases, deployed URI and pinned pipeline versions.

    Args:
        ledger: what is written to.
        model: the registered model.
        to: the version, "none" for no champion, None for the champion before this one.
        candidate_of: finds a version that no decision names.
        decided_by: the person or the pipeline run.
        reason: why, in a sentence.
        wait_seconds: how long to wait for another promotion.

    Raises:
        GateRefused: the target never was champion.
        ConfigError: there is no champion, nothing to go back to, or an environment is left out that serves it.
    """

    def decide(before: State) -> Transition | None:
        if before.champion is None:
            raise ConfigError(f"{model} has no champion, so there is nothing to roll back.")
        target = _target(ledger, model, before, to)
        if target == before.champion:
            return None
        _refuse_newcomer(ledger, model, before, target)
        _refuse_half(ledger, model, before)
        after = _state_with(ledger, model, before, target, candidate_of)
        evidence = {"champion_was": before.champion}
        return _transition("rollback", model, before, after, decided_by, reason, evidence)

    return _change(ledger, model, decided_by, decide, wait_seconds)


def actor() -> str:
    """Return who decides: UNDERSTUDY_ACTOR, else the pipeline run, else the user and host."""
    run = os.environ.get("UNDERSTUDY_RUN_ID")
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return os.environ.get("UNDERSTUDY_ACTOR") or (f"pipeline run {run}" if run else f"{user}@{socket.gethostname()}")


def _change(
    ledger: Ledger, model: str, owner: str, decide: Callable[[State], Transition | None], wait_seconds: float
) -> Outcome:
    with hold(ledger.place, owner, wait_seconds) as confirm:
        recovered = recover(ledger, confirm)
        told = f"{recovered[1].kind} {recovered[1].id} was {recovered[0]}" if recovered else None
        before = current_state(ledger, model)
        transition = decide(before)
        if transition is None:
            return Outcome(None, None, told, before)
        return Outcome(transition, apply(ledger, transition, confirm), told, transition.state_after)


def _transition(
    kind: str, model: str, before: State, after: State, decided_by: str, reason: str, evidence: dict[str, Any]
) -> Transition:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    identity = f"{now.translate(str.maketrans('', '', '-:'))}-{secrets.token_hex(4)}"
    who, why = one_line(decided_by, "Who decides"), one_line(reason, "The reason")
    return Transition(identity, kind, model, before.to_json(), after.to_json(), who, now, why, evidence)


def _target(ledger: Ledger, model: str, before: State, to: str | None) -> str | None:
    if to is not None:
        return None if to == NONE else to
    for decision in reversed(read_decisions(ledger.place)):
        transition = decision.transition
        if transition.kind == "promote" and transition.state_after.champion == before.champion:
            target = transition.state_before.champion
            if target is None:
                raise ConfigError(
                    f"Version {before.champion} is the first champion of {model}. To have none again, say --to {NONE}."
                )
            return target
    if before.previous is None:
        raise ConfigError(f"No promotion of version {before.champion} of {model} is on record. Name one with --to.")
    return before.previous


def _refuse_newcomer(ledger: Ledger, model: str, before: State, target: str | None) -> None:
    """Raise GateRefused for a version that never was champion: only the gate, or a person, makes one."""
    transitions = [decision.transition for decision in read_decisions(ledger.place)]
    champions = {before.previous, None}
    champions |= {state.champion for item in transitions for state in (item.state_before, item.state_after)}
    if target not in champions:
        raise GateRefused(
            f"Version {target} of {model} was never champion, so there is no going back to it. To make it champion: "
            f"understudy model promote {model}/{target}."
        )


def _refuse_half(ledger: Ledger, model: str, before: State) -> None:
    """Raise ConfigError when the champion is deployed to an environment that this rollback would leave as it is."""
    serving: dict[str, dict[str, str]] = {}
    for decision in read_decisions(ledger.place):
        serving |= decision.transition.state_after.serving
    left = sorted(name for name, served in serving.items() if served["version"] == before.champion)
    if missing := [name for name in left if name not in before.serving]:
        options = " ".join(f"--environment {name}" for name in left)
        raise ConfigError(
            f"Version {before.champion} of {model} is deployed to {', '.join(missing)} too. Roll all of it back in one "
            f"change: --gitops REPOSITORY {options}."
        )


def _refuse_other_model(model: str, before: State) -> None:
    """Raise ConfigError when an environment serves another model: one InferenceService has one."""
    for environment, served in sorted(before.serving.items()):
        if served["model"] != model and served["version"] != "0":
            raise ConfigError(
                f"{environment} serves version {served['version']} of {served['model']}, not of {model}. Roll that "
                "back to none first, or name another --environment."
            )


def _state_with(
    ledger: Ledger, model: str, before: State, target: str | None, candidate_of: Callable[[str], Candidate]
) -> State:
    """Return the state when `target` last was champion; where no decision tells, what its tags say."""
    history = [decision.transition for decision in read_decisions(ledger.place)]
    last = max((at for at, item in enumerate(history) if item.state_after.champion == target), default=None)
    if last is not None:
        then = history[last].state_after
    else:
        last = next((at for at, item in enumerate(history) if item.state_before.champion == target), len(history)) - 1
        then = history[last + 1].state_before if last + 1 < len(history) else State(target, None, {}, {})
    serving = {environment: _served(history, last, environment) for environment in before.serving}
    for environment in [name for name, served in serving.items() if served is None]:
        serving[environment] = _served_by_tags(model, target, candidate_of)
    return State(
        champion=target,
        previous=then.previous,
        serving={environment: served for environment, served in serving.items() if served is not None},
        pipeline_versions={
            file: then.pipeline_versions.get(file, pin) for file, pin in before.pipeline_versions.items()
        },
    )


def _served(history: list[Transition], last: int, environment: str) -> dict[str, str] | None:
    """Return what an environment served after decision `last`: what it was set to, or what the next change found."""
    for transition in reversed(history[: last + 1]):
        if environment in transition.state_after.serving:
            return transition.state_after.serving[environment]
    for transition in history[last + 1 :]:
        if environment in transition.state_before.serving:
            return transition.state_before.serving[environment]
    return None


def _served_by_tags(model: str, target: str | None, candidate_of: Callable[[str], Candidate]) -> dict[str, str]:
    if target is None:
        uri = f"s3://understudy/store/policy/{ZERO_SHA256}"
        return {"uri": uri, "model": model, "version": "0", "stop": "true"}
    return serving_of(model, target, candidate_of(target).uri)
