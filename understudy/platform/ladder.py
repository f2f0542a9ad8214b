"""The Elo ladder over all registered versions: an append-only list of matches, and the ratings that follow from it.

A match is a new file that is never written again, so ratings can always be computed anew; each file's number is the
next free one, so two writers never lose a match. The ratings are online: one update per game, in the order played.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from understudy.errors import IntegrityError
from understudy.platform.promotion.places import Place, open_place
from understudy.platform.where import shared_root

START = 1500.0
STEP_PERSON, STEP_JUDGE = 32.0, 4.0  # a person gives few verdicts and a judge one for each prompt
_POINTS = {"W": 1.0, "T": 0.5, "L": 0.0}
_PREFIX = "match-"


@dataclass(frozen=True)
class Match:
    """Games of `a` against `b`, as NAME/VERSION; `results` has W, T or L of `a` for each game in order.

    `identity` names where the games come from (a report's digest and judge): the same match is entered once; "" may
    repeat. The weights are digests.
    """

    a: str
    b: str
    results: str
    judge: str
    step: float
    identity: str
    weights_a: str = ""
    weights_b: str = ""
    when: str = ""


@dataclass(frozen=True)
class Rating:
    """One version's place."""

    version: str
    rating: float
    wins: int
    ties: int
    losses: int

    @property
    def matches(self) -> int:
        """Games played."""
        return self.wins + self.ties + self.losses


class Ladder:
    """The matches at a place."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def matches(self) -> list[Match]:
        """Return all matches in order.

        Raises:
            IntegrityError: a file of the ladder is damaged.
        """
        return [self._read(name) for name in self.place.names(_PREFIX)]

    def add(self, match: Match) -> bool:
        """Append a match; False where one of the same identity is in already."""
        if match.a == match.b or set(match.results) - set(_POINTS):
            raise ValueError(f"{match.a} against {match.b} with results {match.results!r} is no match.")
        when = match.when or datetime.now(UTC).isoformat(timespec="seconds")
        data = json.dumps({**asdict(match), "when": when}, sort_keys=True).encode() + b"\n"
        while True:
            names = self.place.names(_PREFIX)
            if match.identity and any(self._read(name).identity == match.identity for name in names):
                return False
            number = int(names[-1].removeprefix(_PREFIX).removesuffix(".json")) + 1 if names else 1
            if self.place.create(f"{_PREFIX}{number:08d}.json", data):
                return True

    def _read(self, name: str) -> Match:
        found = self.place.read(name)
        try:
            match = Match(**json.loads(found.data)) if found else None
            if match is None or set(match.results) - set(_POINTS):
                raise ValueError("no match")
            return match
        except (ValueError, TypeError) as error:
            raise IntegrityError(
                f"{self.place.uri}/{name} is not a match of the ladder: {error}. Restore it from a backup, or move it "
                "away to leave its games out."
            ) from error


def open_ladder(workdir: Path, storage_uri: str | None) -> Ladder:
    """Return the ladder of a working directory, or of the bucket that holds the content."""
    return Ladder(open_place(f"{shared_root(workdir, storage_uri)}/ladder"))


def ratings(matches: Iterable[Match], versions: Iterable[str] = ()) -> list[Rating]:
    """Return all ratings, the best first; versions without a game stand at the start.

    Args:
        matches: in the order played.
        versions: registered versions, as NAME/VERSION, that are listed even without a game.
    """
    from understudy.objectives.bradley_terry import elo_update

    value: dict[str, float] = dict.fromkeys(versions, START)
    counts: dict[str, dict[str, int]] = {version: {"W": 0, "T": 0, "L": 0} for version in value}
    for match in matches:
        for side in (match.a, match.b):
            value.setdefault(side, START)
            counts.setdefault(side, {"W": 0, "T": 0, "L": 0})
        for result in match.results:
            value[match.a], value[match.b] = elo_update(
                value[match.a], value[match.b], _POINTS[result], step=match.step
            )
            counts[match.a][result] += 1
            counts[match.b][{"W": "L", "L": "W", "T": "T"}[result]] += 1
    found = [Rating(name, value[name], *(counts[name][key] for key in "WTL")) for name in value]
    return sorted(found, key=lambda rating: (-rating.rating, rating.version))


def rows(found: Sequence[Rating]) -> list[dict[str, Any]]:
    """Return ratings as the report page and `--json` show them."""
    return [{**asdict(rating), "matches": rating.matches} for rating in found]


def games_of(numbers: dict[str, Any], judge: str | None, a: str, b: str) -> str:
    """Return W, T or L of policy `a` against `b` for each decided prompt of a report, both at their tuned temperature.

    Args:
        numbers: content of report.json.
        judge: whose scores; None gives no game.
        a: policy name, for example "aligned".
        b: the other, for example "champion".
    """
    responses = numbers.get("responses", {})
    scores = [responses.get(policy, {}).get("tuned", {}).get("scores", {}).get(judge) for policy in (a, b)]
    if judge is None or None in scores:
        return ""
    pairs = [(x, y) for x, y in zip(*scores, strict=True) if x is not None and y is not None]
    return "".join("W" if x > y else "L" if x < y else "T" for x, y in pairs)


def enter_report(ladder: Ladder, numbers: dict[str, Any], versions: Sequence[Any], report_sha256: str) -> bool:
    """Append the games of a registered challenger against the champion that its report compares it with.

    Args:
        ladder: to append to.
        numbers: content of report.json.
        versions: registered versions of the model (name, version, tags), newest first.
        report_sha256: digest of the report.
    """
    judge, weights = numbers.get("deciding_judge"), numbers.get("protocol", {}).get("policies", {})
    results = games_of(numbers, judge, "aligned", "champion")
    by_weights = {each.tags.get("weights_sha256"): f"{each.name}/{each.version}" for each in reversed(versions)}
    sides = [(by_weights.get(weights.get(policy)), weights.get(policy)) for policy in ("aligned", "champion")]
    if not results or sides[0][0] is None or sides[1][0] is None or sides[0] == sides[1]:
        return False
    (a, weights_a), (b, weights_b) = sides
    identity = f"{report_sha256}:{judge}"
    return ladder.add(Match(str(a), str(b), results, str(judge), STEP_JUDGE, identity, weights_a, weights_b))


def ladder_for_report(ladder: Ladder, numbers: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the ladder as it was before this challenger, and the challenger by its games against the champion.

    Matches of the challenger's own weights are left out, so that evaluating it again gives the same page.
    """
    own = numbers.get("protocol", {}).get("policies", {})
    challenger, champion = own.get("aligned"), own.get("champion")
    before = [match for match in ladder.matches() if challenger not in (match.weights_a, match.weights_b)]
    named = {match.weights_a: match.a for match in before} | {match.weights_b: match.b for match in before}
    results = games_of(numbers, numbers.get("deciding_judge"), "aligned", "champion")
    opponent = named.get(champion, "champion")
    mine = [Match("this challenger", opponent, results, "", STEP_JUDGE, "")] if results else []
    return rows(ratings(before + mine)) if before or mine else []
