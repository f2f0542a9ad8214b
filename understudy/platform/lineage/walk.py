"""Walk from a registered version to its raw source and recompute every digest on the way.

A step that finds damage does not end the walk: whoever reads the tree sees all of it at once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from understudy.config import section_sha256
from understudy.errors import ConfigError, IntegrityError, ServiceUnreachable, UnderstudyError
from understudy.platform.lineage import provenance, signing
from understudy.platform.lineage.artifacts import Artifacts
from understudy.platform.lineage.record import Lineage, read_lineage
from understudy.records import DatasetRef, PolicyRef

OK, DAMAGED, ABSENT, NOTED = "ok", "damaged", "absent", "noted"
T = TypeVar("T")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass
class Node:
    """One link: what it is, the digest that names it, and what was found.

    `status` is ok (recomputed and equal), damaged, absent (not kept, so it could not be checked) or noted (a name
    that has no content here to check).
    """

    kind: str
    name: str
    digest: str
    status: str
    detail: str = ""
    children: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        """Give the node and everything below it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def to_json(self) -> dict[str, Any]:
        """Return the tree as plain JSON values."""
        return {
            "kind": self.kind,
            "name": self.name,
            "digest": self.digest,
            "status": self.status,
            "detail": self.detail,
            "children": [child.to_json() for child in self.children],
        }


@dataclass(frozen=True)
class Walked:
    """The tree, the record that it follows, and whose signature the provenance has."""

    root: Node
    lineage: Lineage | None
    signed_by: str | None
    report: dict[str, Any] | None
    dataset_folder: Path | None

    @property
    def damaged(self) -> list[Node]:
        """The links that do not hold."""
        return [node for node in self.root.walk() if node.status == DAMAGED]


def walk(artifacts: Artifacts) -> Walked:
    """Verify a version; damage is in the tree, not raised.

    Raises:
        ServiceUnreachable: a store does not answer.
    """
    identity = artifacts.identity
    tags = identity.tags
    root = Node("model", f"{identity.name}/{identity.version}", tags.get("registered_sha256", ""), OK)
    _check(root, lambda: artifacts.registered(_tag(tags, "registered_sha256")))
    record = Node("lineage", "record", tags.get("lineage_sha256", ""), OK)
    root.children.append(record)
    lineage = _lineage(artifacts, record)
    if lineage is None:
        return Walked(root, None, None, None, None)
    _check(record, lambda: _compare_tags(identity.name, tags, lineage))
    signature = Node("signature", "provenance", tags.get("provenance_sha256", ""), ABSENT, "not signed")
    signed_by = _signature(artifacts, signature, lineage)
    report, numbers = _report(artifacts, lineage)
    dataset, folder = _dataset(artifacts, lineage.dataset)
    policy = _policies(artifacts, lineage, dataset)
    root.children += [signature, policy, report, _params(lineage), *_code(lineage)]
    return Walked(root, lineage, signed_by, numbers, folder)


def _lineage(artifacts: Artifacts, node: Node) -> Lineage | None:
    tags = artifacts.identity.tags

    def read() -> Lineage:
        folder = artifacts.folder("lineage", _tag(tags, "lineage_uri"), _tag(tags, "lineage_sha256"))
        lineage = read_lineage(folder)
        if not lineage.chain or not lineage.dataset:
            raise IntegrityError("The lineage record names no policy or no dataset. Register the version again.")
        return lineage

    return _check(node, read)


def _compare_tags(name: str, tags: dict[str, str], lineage: Lineage) -> None:
    differ = [key for key, value in lineage.tags.items() if tags.get(key) != value]
    if name != lineage.model:
        raise IntegrityError(f"The version is of model {name}, its lineage record of {lineage.model}.")
    if differ:
        shown = "; ".join(f"{key} is {tags.get(key)!r}, was {lineage.tags[key]!r}" for key in differ[:3])
        raise IntegrityError(f"{len(differ)} tags of the version were changed after it was registered: {shown}.")


def _signature(artifacts: Artifacts, node: Node, lineage: Lineage) -> str | None:
    tags = artifacts.identity.tags
    if not tags.get("provenance_sha256"):
        return None
    node.status, node.detail = OK, ""

    def verified() -> str | None:
        folder = artifacts.folder("provenance", _tag(tags, "provenance_uri"), tags["provenance_sha256"])
        envelope = (folder / provenance.FILE).read_bytes()
        keys = signing.trusted_keys()
        if not keys:
            node.status, node.detail = NOTED, f"signed, but no key is trusted here; set {signing.TRUSTED_KEYS}"
            return None
        signed, key = signing.verify(envelope, keys)
        expected = provenance.payload(lineage, tags["lineage_sha256"], _tag(tags, "registered_sha256"))
        if signed != expected:
            raise IntegrityError("What was signed is about another version: its subjects or materials differ.")
        node.detail = f"ed25519 {key[:12]}"
        return key

    return _check(node, verified)


def _report(artifacts: Artifacts, lineage: Lineage) -> tuple[Node, dict[str, Any] | None]:
    record = lineage.report
    node = Node("report", str(record["verdict"])[:60], record["sha256"], OK)

    def read() -> dict[str, Any]:
        folder = artifacts.folder("report", record["uri"], record["sha256"])
        if lineage.chain[0].sha256 not in record["policies"].values():
            raise IntegrityError(f"The report is not about policy {lineage.chain[0].sha256}. Evaluate it first.")
        numbers: dict[str, Any] = json.loads((folder / "report.json").read_bytes())
        return numbers

    return node, _check(node, read)


def _dataset(artifacts: Artifacts, ref: DatasetRef) -> tuple[Node, Path | None]:
    node = Node("dataset", f"{ref.rows} demonstrations", ref.md5, OK)
    source = Node("source", ref.source, ref.source_sha256, OK)
    node.children.append(source)

    def read() -> Path:
        folder = artifacts.dataset(ref)
        manifest = json.loads((folder / "dataset.json").read_bytes())
        if manifest["splits"] != ref.splits:
            raise IntegrityError(f"The version holds {manifest['splits']} rows, its record says {ref.splits}.")
        for split, sha256 in manifest["parquet_sha256"].items():
            found = hashlib.sha256((folder / f"{split}.parquet").read_bytes()).hexdigest()
            if found != sha256:
                raise IntegrityError(f"{split}.parquet has sha256 {found}, dataset.json names {sha256}.")
        return folder

    def compare() -> None:
        found = artifacts.source_sha256(ref)
        if found is None:
            source.status, source.detail = ABSENT, "not kept here, so its digest was not recomputed"
        elif found != ref.source_sha256:
            raise IntegrityError(f"The source has the digest {found}, the record names {ref.source_sha256}.")

    folder = _check(node, read)
    _check(source, compare)
    return node, folder


def _policies(artifacts: Artifacts, lineage: Lineage, dataset: Node) -> Node:
    """Return the policy's node, its parents below it, and the base below the last."""
    nodes = [_policy(artifacts, lineage, policy) for policy in lineage.chain]
    nodes[0].children.append(dataset)
    for child, parent in zip(nodes, nodes[1:], strict=False):
        child.children.append(parent)
    last = lineage.chain[-1]
    if last.parent_sha256 is not None:
        detail = "its record is in no report, so what is behind it is unknown"
        nodes[-1].children.append(Node("policy", "parent", last.parent_sha256, DAMAGED, detail))
        return nodes[0]
    uri, sha256 = str(lineage.base["uri"]), lineage.base["sha256"]
    base = Node("base", uri, sha256 or "", OK)

    def compare() -> None:
        if sha256 is None:
            base.status, base.detail = NOTED, "had no digest when the version was registered"
        elif not artifacts.base(uri, sha256):
            base.status, base.detail = ABSENT, "not kept here, so its digest was not recomputed"

    _check(base, compare)
    nodes[-1].children.append(base)
    return nodes[0]


def _policy(artifacts: Artifacts, lineage: Lineage, policy: PolicyRef) -> Node:
    node = Node("policy", policy.stage, policy.sha256, OK)
    _check(node, lambda: artifacts.folder("policy", policy.uri, policy.sha256))
    config = lineage.configs.get({"aligned": "align"}.get(policy.stage, policy.stage))
    child = Node("config", f"of {policy.stage}", policy.config_sha256, OK)
    node.children.append(child)

    def compare() -> None:
        if config is None:
            child.status, child.detail = NOTED, "only its digest was kept"
            return
        found = section_sha256(config)
        if found != policy.config_sha256 or config.get("code_sha256") != policy.code_sha256:
            raise IntegrityError(f"The config has the digest {found}, the policy names {policy.config_sha256}.")

    _check(child, compare)
    return node


def _params(lineage: Lineage) -> Node:
    expected = lineage.tags.get("config_sha256", "")
    node = Node("params", "of the run", expected, OK)
    if not lineage.params_json:
        node.status, node.detail = NOTED, "only their digest was kept"
    elif hashlib.sha256(lineage.params_json.encode()).hexdigest() != expected:
        node.status, node.detail = DAMAGED, "the params have another digest"
    return node


def _code(lineage: Lineage) -> list[Node]:
    tags = lineage.tags
    commit = tags.get("git_commit", "unknown")
    dirty = {"false": "clean", "true": "changed since the commit"}.get(tags.get("git_dirty", ""), "unknown state")
    known = bool(_COMMIT.fullmatch(commit))
    nodes = [Node("code", dirty, commit, NOTED, "" if known else "no commit was recorded")]
    if image := tags.get("image_digest"):
        nodes.append(Node("image", "container image", image, NOTED))
    return nodes


def _check(node: Node, function: Callable[[], T]) -> T | None:
    """Call a check; what it finds wrong becomes the node's detail."""
    try:
        return function()
    except (ServiceUnreachable, ConfigError):
        raise
    except (UnderstudyError, OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        said = str(error) if isinstance(error, UnderstudyError) else f"{type(error).__name__}: {error}"
        node.status = DAMAGED
        node.detail = "; ".join(filter(None, [node.detail, said]))
        return None


def _tag(tags: dict[str, str], name: str) -> str:
    if not tags.get(name):
        raise IntegrityError(f"The version has no tag {name}; it was registered before lineage was kept, or changed.")
    return tags[name]
