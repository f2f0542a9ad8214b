"""What was decided, by whom and on which evidence: a chain of records that is only ever added to.

Each record names the digest of the one before it, so a changed, removed or inserted record is found by whoever reads.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from understudy.errors import ConfigError, IntegrityError
from understudy.platform.promotion.places import Place
from understudy.records import Record

FOLDER = "decisions"
_UNSEEN = ("Cf", "Cn", "Co", "Cs")
_NAME = re.compile(r"decisions/(\d{6})\.json")


@dataclass(frozen=True)
class State(Record):
    """Everything that a promotion changes.

    `serving` maps environment to `{"uri", "model", "version", "stop"}` of its champion.yaml; `pipeline_versions` maps
    schedule file to the version that it pins.
    """

    champion: str | None
    previous: str | None
    serving: dict[str, dict[str, str]]
    pipeline_versions: dict[str, str]


@dataclass(frozen=True)
class Transition(Record):
    """One change of champion, from a state to another, with its evidence."""

    id: str
    kind: str  # "promote" | "deploy" (the champion, to another environment) | "rollback"
    model: str
    before: dict[str, Any]
    after: dict[str, Any]
    decided_by: str
    decided_at: str
    reason: str
    evidence: dict[str, Any]

    @property
    def state_before(self) -> State:
        """The state that this leaves."""
        return State.from_json(self.before)

    @property
    def state_after(self) -> State:
        """The state that this brings."""
        return State.from_json(self.after)


@dataclass(frozen=True)
class Decision:
    """A recorded transition: its place in the chain and its digest."""

    number: int
    sha256: str
    transition: Transition


def one_line(text: str, what: str) -> str:
    """Return a person's words for a record and a commit: no line breaks, no control or direction characters.

    Raises:
        ConfigError: they are in no encoding, or none that can be seen.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{what} cannot be written as UTF-8: {text!r}. Give it in the terminal's encoding."
        ) from error
    words = "".join(" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)
    line = " ".join("".join(letter for letter in words if unicodedata.category(letter) not in _UNSEEN).split())
    if not line:
        raise ConfigError(f"{what} says nothing: {text!r}. Give it in words.")
    return line


def canonical(value: Any) -> bytes:
    """Return the one form of a JSON value of which digests are taken."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_decisions(place: Place) -> list[Decision]:
    """Return all decisions, oldest first.

    Raises:
        IntegrityError: a record was changed, removed or inserted; names it.
    """
    found: list[Decision] = []
    for number, name in enumerate((name for name in place.names(f"{FOLDER}/") if _NAME.fullmatch(name)), start=1):
        file = place.read(name)
        data = b"" if file is None else file.data
        problem = _problem(name, number, data, found)
        if problem:
            raise IntegrityError(
                f"The decision record {place.uri}/{name} {problem}. Records are only ever added: find out who changed "
                "them and restore them from Git or a backup before the next promotion."
            )
        transition = Transition.from_json(json.loads(data)["transition"])
        found.append(Decision(number, hashlib.sha256(data).hexdigest(), transition))
    return found


def add_decision(place: Place, transition: Transition) -> Decision:
    """Add a decision at the end of the chain; one that is there already stays as it is.

    Raises:
        IntegrityError: the chain is damaged, or another process adds to it at the same time.
    """
    decisions = read_decisions(place)
    for decision in decisions:
        if decision.transition.id == transition.id:
            return decision
    parent = decisions[-1].sha256 if decisions else None
    data = canonical({"parent_sha256": parent, "transition": transition.to_json()})
    name = f"{FOLDER}/{len(decisions) + 1:06d}.json"
    if not place.create(name, data):
        raise IntegrityError(f"{place.uri}/{name} was written by another promotion at the same time. Run it again.")
    return Decision(len(decisions) + 1, hashlib.sha256(data).hexdigest(), transition)


def _problem(name: str, number: int, data: bytes, before: list[Decision]) -> str:
    if name != f"{FOLDER}/{number:06d}.json":
        return f"follows record {number - 1}, so one is missing"
    try:
        record = json.loads(data)
        parent, transition = record["parent_sha256"], Transition.from_json(record["transition"])
        State.from_json(transition.before), State.from_json(transition.after)
    except (ValueError, KeyError, TypeError, IntegrityError) as error:
        return f"is not a decision ({error})"
    if canonical(record) != data:
        return "was rewritten by something else"
    expected = before[-1].sha256 if before else None
    return "" if parent == expected else f"names {parent} as the record before it, which has sha256 {expected}"
