"""What a model follows from, as a tree: each node names its content by digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

RECORDS, CONFIGURATION = "Records and digests", "Configuration"
MAX_DEPTH = 16


@dataclass
class Node:
    """One thing: its kind, what is known of it as (name, value) pairs, and what it was made from."""

    kind: str
    facts: list[tuple[str, str]]
    children: list[Node] = field(default_factory=list)


def provenance_tree(provenance: Mapping[str, Any]) -> list[Node]:
    """Return one tree for the challenger and one for the champion, as far as their records are in the page.

    A tree goes from the model down to its parents, dataset and raw source; code, configuration and image hang on the
    model that they made.
    """
    records = provenance.get(RECORDS)
    if not isinstance(records, Mapping):
        return []
    by_digest = {str(item["sha256"]): item for item in records.values() if _is_policy(item)}
    dataset = records.get("dataset")
    image = str(_mapping(provenance.get("Versions")).get("image") or "")
    trees = []
    for name in ("aligned", "champion"):
        item = records.get(name)
        if _is_policy(item):
            label = "challenger" if name == "aligned" else name
            trees.append(_policy(label, _mapping(item), by_digest, _mapping(dataset), image, 0))
    if trees and isinstance(records.get("discriminator"), Mapping):
        trees[0].children.append(Node("discriminator", _facts(records["discriminator"], ("sha256", "held_out_auc"))))
    return trees


def _policy(
    label: str,
    record: Mapping[str, Any],
    by_digest: Mapping[str, Mapping[str, Any]],
    dataset: Mapping[str, Any],
    image: str,
    depth: int,
) -> Node:
    node = Node(f"{label} policy", [("stage", str(record.get("stage", ""))), *_facts(record, ("sha256",))])
    node.children.append(Node("code", _facts(record, ("code_sha256",))))
    node.children.append(Node("configuration", _facts(record, ("config_sha256",))))
    if image and label == "challenger":
        node.children.append(Node("image", [("digest", image)]))
    parent = str(record.get("parent_sha256") or "")
    if parent in by_digest and depth < MAX_DEPTH:
        found = by_digest[parent]
        node.children.append(_policy("parent", found, by_digest, dataset, "", depth + 1))
        return node
    if parent:
        node.children.append(Node("parent policy", [("sha256", parent), ("", "its record is not in this report")]))
    md5 = str(record.get("dataset_md5") or "")
    if md5 and md5 == str(dataset.get("md5")):
        node.children.append(_dataset(dataset))
    elif md5:
        node.children.append(Node("dataset version", [("md5", md5), ("", "another one than this report's")]))
    return node


def _dataset(dataset: Mapping[str, Any]) -> Node:
    splits = ", ".join(f"{name} {count}" for name, count in _mapping(dataset.get("splits")).items())
    node = Node("dataset version", [*_facts(dataset, ("md5", "rows")), *([("splits", splits)] if splits else [])])
    if dataset.get("parent"):
        node.children.append(Node("parent dataset version", [("md5", str(dataset["parent"]))]))
    node.children.append(Node("raw source", _facts(dataset, ("source_sha256",))))
    return node


def _facts(record: Mapping[str, Any], names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(name, str(record[name])) for name in names if record.get(name) is not None]


def _is_policy(item: Any) -> bool:
    return isinstance(item, Mapping) and "stage" in item and "sha256" in item


def _mapping(item: Any) -> Mapping[str, Any]:
    return item if isinstance(item, Mapping) else {}
