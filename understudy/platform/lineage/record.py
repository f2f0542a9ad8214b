"""The lineage record: everything that a registered version follows from, in one stored file named by its digest.

Tags in a registry can be changed by anyone who may write there; this record cannot without changing the digest that
the version, its signature and the decision to promote it all name.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.errors import IntegrityError, UnderstudyError
from understudy.platform.manifest import describe_folder, manifest_sha256
from understudy.platform.steps import from_kfp
from understudy.platform.storage import Store, Stored
from understudy.records import DatasetRef, EvaluationReport, PolicyRef, Record

KIND = "lineage"
FILE = "lineage.json"
_DIGEST_AT_END = re.compile(r"/([0-9a-f]{64})/?$")


@dataclass(frozen=True)
class Lineage(Record):
    """What a version follows from.

    `policies` are PolicyRefs: the model's own, then each parent's up to the first. `base` is what the first was made
    from; its digest is None where it was not at hand when the version was registered. `configs` maps step to the whole
    config that it read; `params_json` is the text whose SHA-256 is the tag `config_sha256`: a list of one object.
    """

    model: str
    tags: dict[str, str]
    policies: list[dict[str, Any]]
    base: dict[str, str | None]
    datasets: list[dict[str, Any]]
    report: dict[str, Any]
    configs: dict[str, Any]
    params_json: str

    @property
    def chain(self) -> list[PolicyRef]:
        """The model's own policy, then its parents."""
        return [PolicyRef.from_json(policy) for policy in self.policies]

    @property
    def dataset(self) -> DatasetRef:
        """The dataset version that the evaluation used."""
        md5 = self.report["dataset_md5"]
        return DatasetRef.from_json(next(item for item in self.datasets if item["md5"] == md5))


def build_lineage(
    config: Mapping[str, Any],
    tags: Mapping[str, str],
    policy: PolicyRef,
    report: EvaluationReport,
    dataset: DatasetRef,
    report_folder: Path,
) -> Lineage:
    """Put together what a version follows from; the parents' records are those that the report names."""
    numbers = json.loads((report_folder / "report.json").read_text(encoding="utf-8"))
    named = numbers.get("provenance", {}).get("Records and digests", {})
    slim = {key: value for key, value in report.to_json().items() if key != "metrics"}
    return Lineage(
        model=str(config["registry"]["name"]),
        tags=dict(tags),
        policies=[item.to_json() for item in _chain(policy, named)],
        base={"uri": policy.base, "sha256": base_sha256(policy.base)},
        datasets=[dataset.to_json()],
        report=slim,
        configs=from_kfp(json.loads(config.get("configs_json") or "{}")),
        params_json=str(config.get("params_json") or ""),
    )


def store_lineage(lineage: Lineage, store: Store) -> Stored:
    """Store the record under its digest."""
    return store_file(store, KIND, FILE, _bytes(lineage))


def store_file(store: Store, kind: str, name: str, data: bytes) -> Stored:
    """Store one file as a folder of its kind."""
    with tempfile.TemporaryDirectory(prefix="understudy-lineage-") as folder:
        (Path(folder) / name).write_bytes(data)
        return store.put_folder(Path(folder), kind)


def read_lineage(folder: Path) -> Lineage:
    """Read the record from a folder whose digest was checked.

    Raises:
        IntegrityError: it is not a lineage record.
    """
    try:
        return Lineage.from_json(json.loads((folder / FILE).read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise IntegrityError(
            f"{folder / FILE} is not a lineage record: {error}. Register the version again."
        ) from error


def base_sha256(uri: str) -> str | None:
    """Return the digest of the folder that training began with: by its URI, else by its files, else None."""
    if found := _DIGEST_AT_END.search(uri):
        return found[1]
    folder = Path(uri).expanduser()
    try:
        return manifest_sha256(describe_folder(folder)) if folder.is_dir() else None
    except (OSError, UnderstudyError):
        return None


def _chain(policy: PolicyRef, named: Mapping[str, Mapping[str, Any]]) -> list[PolicyRef]:
    """Return the policy and its parents; the report leaves out what depends on place and clock."""
    chain = [policy]
    known = {str(item["sha256"]): item for item in named.values() if "stage" in item}
    while (parent := chain[-1].parent_sha256) and parent in known and len(chain) <= len(known):
        root = chain[-1].uri.rstrip("/").rpartition("/")[0]
        fields = {"uri": f"{root}/{parent}", "base": policy.base, "train_seconds": 0.0}
        chain.append(PolicyRef.from_json({**known[parent], **fields}))
    return chain


def _bytes(lineage: Lineage) -> bytes:
    return (json.dumps(dataclasses.asdict(lineage), sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
