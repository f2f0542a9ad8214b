"""Carry a change of champion out, or finish or undo one that a crash left half done.

    journal → alias champion → alias previous → decision record → commit → journal closed
              ↑ the one atomic step that decides: before it the old state holds, from it on the new one

Each step may be repeated without harm, so whoever comes next needs no memory but the journal and the alias itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from understudy.errors import ConfigError, IntegrityError
from understudy.platform.promotion import journal
from understudy.platform.promotion.aliases import CHAMPION, PREVIOUS, Aliases
from understudy.platform.promotion.decisions import Decision, State, Transition, add_decision
from understudy.platform.promotion.gitops import GitOps
from understudy.platform.promotion.lease import Confirm
from understudy.platform.promotion.places import Place

STEPS = ("journal", "champion", "previous", "decision", "commit", "closed")
OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Ledger:
    """Everything that a transition writes to.

    Attributes:
        aliases: the registry.
        place: journal, lease and decision records of this model.
        gitops: the deployment, None where models are not deployed from Git.
        on_step: told after each of `STEPS`, for tests that crash there.
    """

    aliases: Aliases
    place: Place
    gitops: GitOps | None = None
    on_step: OnStep = lambda step: None


@dataclass(frozen=True)
class Applied:
    """A finished transition: its decision record and the commit, if there is a repository."""

    decision: Decision
    commit: str | None


def current_state(ledger: Ledger, model: str) -> State:
    """Read the state that a transition would leave."""
    serving, pins = ledger.gitops.read() if ledger.gitops else ({}, {})
    champion, previous = (ledger.aliases.get(model, alias) for alias in (CHAMPION, PREVIOUS))
    return State(champion, previous, serving, pins)


def apply(ledger: Ledger, transition: Transition, confirm: Confirm = lambda: None) -> Applied:
    """Carry a transition out; `confirm` raises when the lease is no longer ours."""
    confirm()
    journal.begin(ledger.place, transition)
    ledger.on_step("journal")
    confirm()
    ledger.aliases.set(transition.model, CHAMPION, transition.state_after.champion)
    ledger.on_step("champion")
    return _complete(ledger, transition, confirm)


def recover(ledger: Ledger, confirm: Confirm = lambda: None) -> tuple[str, Transition] | None:
    """Finish or undo what a crash left; return what was done ("completed" or "undone"), None when nothing was left.

    Raises:
        ConfigError: it deploys, and there is no repository to deploy from.
        IntegrityError: the champion is neither the old nor the new one, so somebody moved it by hand.
    """
    transition = journal.pending(ledger.place)
    if transition is None:
        return None
    environments = sorted(transition.state_after.serving)
    if environments and ledger.gitops is None:
        raise ConfigError(
            f"A {transition.kind} of {transition.model} that deploys to {', '.join(environments)} was cut off. Name "
            "the repository with --gitops, so that it can be finished or undone first."
        )
    confirm()
    champion = ledger.aliases.get(transition.model, CHAMPION)
    if champion == transition.state_after.champion:
        _complete(ledger, transition, confirm)
        return "completed", transition
    if champion == transition.state_before.champion:
        journal.end(ledger.place)
        return "undone", transition
    raise IntegrityError(
        f"A {transition.kind} of {transition.model} from version {transition.state_before.champion} to "
        f"{transition.state_after.champion} was cut off, and @{CHAMPION} is {champion} by now: it was moved by hand. "
        f"Set it to one of the two, then run the same command again; or remove {ledger.place.uri}/{journal.NAME}."
    )


def _complete(ledger: Ledger, transition: Transition, confirm: Confirm) -> Applied:
    after = transition.state_after
    confirm()
    ledger.aliases.set(transition.model, PREVIOUS, after.previous)
    ledger.on_step("previous")
    decision = add_decision(ledger.place, transition)
    ledger.on_step("decision")
    commit = None
    if ledger.gitops is not None and (after.serving or after.pipeline_versions):
        subject, body = _message(transition, decision)
        commit = ledger.gitops.commit(after.serving, after.pipeline_versions, subject, body, transition.id)
    ledger.on_step("commit")
    journal.end(ledger.place)
    ledger.on_step("closed")
    return Applied(decision, commit)


def _message(transition: Transition, decision: Decision) -> tuple[str, str]:
    before, after = transition.state_before, transition.state_after
    verb = {"promote": "Promote", "deploy": "Deploy"}.get(transition.kind, "Roll back")
    subject = f"{verb} {transition.model} {before.champion or 'none'} -> {after.champion or 'none'}"
    lines = [
        transition.reason,
        "",
        f"Decided-by: {transition.decided_by}",
        f"Decided-at: {transition.decided_at}",
        f"Decision-Record: {decision.number} sha256:{decision.sha256}",
    ]
    named = ("verdict", "weights_sha256", "report_sha256", "dataset_md5", "lineage_sha256")
    lines += [
        f"{name.replace('_', '-').capitalize()}: {transition.evidence[name]}"
        for name in named
        if transition.evidence.get(name)
    ]
    return subject, "\n".join(lines)
