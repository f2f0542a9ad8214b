"""What forbids a promotion whatever the numbers say. All reasons are told at once; no approval overrides one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from understudy.errors import GateRefused, UnderstudyError
from understudy.evaluation.gate.schema import ProvenanceRules
from understudy.evaluation.names import CHAMPION
from understudy.platform.lineage.record import Lineage
from understudy.platform.lineage.walk import Walked
from understudy.platform.promotion.rows import seen_test_rows
from understudy.records import DatasetRef

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_IMAGE = re.compile(r"(.*@)?sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Refusal:
    """One reason: `kind` is integrity, test_rows, champion, code or signature."""

    kind: str
    reason: str


@dataclass(frozen=True)
class Champion:
    """The version that holds the alias now."""

    version: str
    weights_sha256: str


@dataclass(frozen=True)
class Surroundings:
    """What refusals need besides the walk.

    Attributes:
        open_dataset: brings a dataset version to a local folder, verified.
        lineage_of: lineage of the registered version with these weights, None where there is none: a base that is
            itself a registered model is followed through it.
    """

    open_dataset: Callable[[DatasetRef], Path]
    lineage_of: Callable[[str], Lineage | None]


def refusals(
    walked: Walked, champion: Champion | None, rules: ProvenanceRules, surroundings: Surroundings
) -> list[Refusal]:
    """Return every reason why a version may not become champion."""
    found = [Refusal("integrity", f"{node.kind} {node.name}: {node.detail}") for node in walked.damaged]
    if walked.lineage is not None:
        found += _champion(walked.lineage, champion)
        found += _code(walked.lineage, rules)
        found += _seen(walked, surroundings)
    if rules.require_signature and walked.signed_by is None:
        found.append(
            Refusal(
                "signature", "no trusted key signed its provenance, and the gate requires that (require_signature)."
            )
        )
    return found


def refuse(name: str, found: list[Refusal]) -> None:
    """Raise GateRefused with all reasons, if there are any."""
    if found:
        count = "one reason" if len(found) == 1 else f"{len(found)} reasons"
        reasons = "\n".join(f"  - {refusal.kind}: {refusal.reason}" for refusal in found)
        raise GateRefused(
            f"{name} is not promoted, for {count}:\n{reasons}\nNothing was changed. These do not give way to --approve."
        )


def _champion(lineage: Lineage, champion: Champion | None) -> Iterator[Refusal]:
    compared = lineage.report["policies"].get(CHAMPION)
    if champion is None and compared:
        yield Refusal(
            "champion", f"it was compared with champion {compared[:12]}, and there is none now. Evaluate again."
        )
    elif champion is not None and compared != champion.weights_sha256:
        with_whom = f"with champion {compared[:12]}" if compared else "with no champion"
        yield Refusal(
            "champion",
            f"it was compared {with_whom}, but the champion is now version {champion.version} "
            f"({champion.weights_sha256[:12]}): it changed since the evaluation. Evaluate against it.",
        )


def _code(lineage: Lineage, rules: ProvenanceRules) -> Iterator[Refusal]:
    if rules.allow_dirty_code:
        return
    commit, dirty = lineage.tags.get("git_commit", "unknown"), lineage.tags.get("git_dirty", "unknown")
    remedy = "Train from a clean commit, or set provenance.allow_dirty_code in the gate."
    if not _COMMIT.fullmatch(commit):
        yield Refusal(
            "code", f"its code is not pinned: git_commit is {commit!r}, expected a commit's full id. {remedy}"
        )
    if dirty != "false":
        yield Refusal("code", f"its code is dirty: git_dirty is {dirty!r}, expected 'false'. {remedy}")
    image = lineage.tags.get("image_digest")
    if image is not None and not _IMAGE.fullmatch(image):
        yield Refusal("code", f"its image is not pinned: {image!r} is not sha256:… with 64 digits. {remedy}")


def _seen(walked: Walked, surroundings: Surroundings) -> Iterator[Refusal]:
    if walked.lineage is None or walked.dataset_folder is None:
        return  # damage that is refused by itself
    trained_on, unknown = training_sets(walked.lineage, surroundings.lineage_of)
    for md5 in unknown:
        yield Refusal(
            "test_rows", f"it trained on dataset {md5[:12]}, of which no record was kept: rows cannot be compared."
        )
    for md5, ref in trained_on.items():
        try:
            same = md5 == walked.lineage.dataset.md5
            folder = walked.dataset_folder if same else surroundings.open_dataset(ref)
            seen, total = seen_test_rows(walked.dataset_folder, folder)
        except UnderstudyError as error:
            yield Refusal("test_rows", f"dataset {md5[:12]} that it trained on cannot be read: {error}")
            continue
        if seen:
            yield Refusal(
                "test_rows",
                f"{seen} of the {total} test rows are in its training data (dataset {md5[:12]}). "
                "Evaluate it on rows that nothing in its lineage was trained on.",
            )


def training_sets(
    lineage: Lineage, lineage_of: Callable[[str], Lineage | None]
) -> tuple[dict[str, DatasetRef], list[str]]:
    """Return the dataset versions that a model and everything before it trained on, and those without a record."""
    found: dict[str, DatasetRef] = {}
    unknown: list[str] = []
    visited: set[str] = set()
    current: Lineage | None = lineage
    while current is not None and current.chain[0].sha256 not in visited:
        visited.add(current.chain[0].sha256)
        refs = {item["md5"]: DatasetRef.from_json(item) for item in current.datasets}
        for policy in current.chain:
            if policy.dataset_md5 in refs:
                found[policy.dataset_md5] = refs[policy.dataset_md5]
            elif policy.dataset_md5 not in found:
                unknown.append(policy.dataset_md5)
        base = current.base["sha256"]
        current = lineage_of(base) if base else None
    return found, unknown
