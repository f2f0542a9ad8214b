"""The lineage record as an in-toto Statement with SLSA provenance: https://slsa.dev/spec/v1.0/provenance.

It follows from the record alone, so that a verifier makes it again and compares the bytes.
"""

from __future__ import annotations

import json
from typing import Any

from understudy.platform.lineage.record import Lineage

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://understudy.dev/build/retrain/v1"
KIND = "provenance"
FILE = "provenance.dsse.json"


def statement(lineage: Lineage, lineage_sha256: str, registered_sha256: str) -> dict[str, Any]:
    """Return the statement about a version: its files, what they were made from, and by what."""
    policy = lineage.chain[0]
    tags = lineage.tags
    subject = [
        {"name": lineage.model, "digest": {"sha256": policy.sha256}},
        {"name": f"{lineage.model}/registered", "digest": {"sha256": registered_sha256}},
        {"name": f"{lineage.model}/lineage", "digest": {"sha256": lineage_sha256}},
    ]
    return {
        "_type": STATEMENT_TYPE,
        "subject": subject,
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": json.loads(lineage.params_json or "[{}]")[0],
                "internalParameters": lineage.configs,
                "resolvedDependencies": _dependencies(lineage),
            },
            "runDetails": {
                "builder": {"id": _builder(tags)},
                "metadata": {"invocationId": tags.get("pipeline_run", "")},
                "byproducts": [
                    {"name": "report", "uri": lineage.report["uri"], "digest": {"sha256": lineage.report["sha256"]}}
                ],
            },
        },
    }


def payload(lineage: Lineage, lineage_sha256: str, registered_sha256: str) -> bytes:
    """Return the bytes that are signed."""
    content = statement(lineage, lineage_sha256, registered_sha256)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _dependencies(lineage: Lineage) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for parent in lineage.chain[1:]:
        found.append({"name": f"policy:{parent.stage}", "uri": parent.uri, "digest": {"sha256": parent.sha256}})
    base = lineage.base
    if base["sha256"]:
        found.append({"name": "base", "uri": base["uri"], "digest": {"sha256": base["sha256"]}})
    else:
        found.append({"name": "base", "uri": base["uri"]})
    for item in lineage.datasets:
        digest = {"md5": item["md5"].removesuffix(".dir")}
        found.append({"name": "dataset", "uri": item["uri"], "digest": digest})
        found.append({"name": "source", "uri": item["source"], "digest": {"sha256": item["source_sha256"]}})
    commit = lineage.tags.get("git_commit", "unknown")
    if commit != "unknown":
        found.append({"name": "code", "digest": {"gitCommit": commit}})
    return found


def _builder(tags: dict[str, str]) -> str:
    image = tags.get("image_digest")
    return f"https://understudy.dev/builder/image@{image}" if image else "https://understudy.dev/builder/local"
