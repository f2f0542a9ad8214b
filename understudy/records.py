"""What steps hand over: small immutable records that name content by digest, never by place alone.

A record is JSON beside its artifact, metadata of the KFP artifact and tags in MLflow, so that any model
walks back to its demonstrations, code and configuration.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from understudy.errors import IntegrityError


@dataclass(frozen=True)
class Record:
    """Common JSON form of all records."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Rebuild a record; raise IntegrityError when fields without a default are missing, or any are unknown.

        KFP hands whole numbers back as floats inside structs, so integer fields are restored here.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        needed = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        unknown, missing = sorted(set(data) - set(fields)), sorted(needed - set(data))
        if unknown or missing:
            raise IntegrityError(
                f"{cls.__name__}: unknown fields {unknown}, missing fields {missing}. "
                "The record was written by another version; run the step that writes it again."
            )
        return cls(**{name: _whole_numbers(value) for name, value in data.items()})


def _whole_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return value


@dataclass(frozen=True)
class DatasetRef(Record):
    """One dataset version: canonical Parquet files named `train|validation|test.parquet` under `uri`."""

    uri: str
    md5: str  # DVC directory hash, ends in ".dir"
    rows: int
    splits: dict[str, int]
    num_bytes: int
    num_files: int
    source: str
    source_sha256: str
    parent: str | None


@dataclass(frozen=True)
class ShardRef(Record):
    """One validated part of a source, `index` of `count`, until the merge has made a dataset version of all."""

    uri: str
    sha256: str
    index: int
    count: int
    rows: int
    bad: int


@dataclass(frozen=True)
class PolicyRef(Record):
    """One policy: a Hugging Face folder (safetensors, tokenizer, config) under `uri`."""

    uri: str
    sha256: str  # digest of the manifest: all files and their digests
    stage: str  # "sft" | "aligned" | "sft_longer"
    dataset_md5: str
    parent_sha256: str | None
    config_sha256: str
    code_sha256: str
    base: str
    train_seconds: float
    compute_token_passes: int  # forward 1, forward and backward 3, one sampled token 1
    # "gate: reason" of the health gate that stopped the alignment, whose last healthy weights these are; records that
    # were written before there were gates do not have it.
    stopped_by: str | None = None


@dataclass(frozen=True)
class DiscriminatorRef(Record):
    """One discriminator: the folder that `load_discriminator` reads; `logits_expert_high`."""

    uri: str
    sha256: str
    dataset_md5: str
    policy_sha256: str
    held_out_auc: float | None


@dataclass(frozen=True)
class EvaluationReport(Record):
    """Numbers with intervals, and the page that shows them.

    `metrics` maps policy name (e.g. "sft") to decoding (e.g. "T=1") to metric name to
    `{"value": float, "low": float | None, "high": float | None, "n": int, "groups": int}`; without limits where the
    groups of prompts were too few to tell them.
    """

    uri: str
    sha256: str
    dataset_md5: str
    policies: dict[str, str]  # name -> PolicyRef.sha256
    metrics: dict[str, dict[str, dict[str, dict[str, float | None]]]]
    comparisons: list[dict[str, Any]]
    verdict: str


@dataclass(frozen=True)
class RegistryEntry(Record):
    """One version in the model registry."""

    name: str
    version: str
    alias: str
    uri: str
    tags: dict[str, str]


@dataclass(frozen=True)
class Promotion(Record):
    """What became of a registered version at the pipeline's last step.

    A refusal by the gate's numbers is an outcome; what may never be promoted fails the step instead.
    """

    name: str
    version: str
    outcome: str  # "promoted" | "refused" (by the gate's verdict) | "unchanged" (it is champion already)
    verdict: str  # of the gate: "pass" | "fail" | "not_enough_evidence" | "no_rule" | "not_decided"; or "champion"
    reason: str
    more_prompts: int | None  # that would settle it, where there was not enough evidence
    champion: str | None  # version that is champion now
    previous: str | None
    decision_sha256: str | None  # of the decision record
    commit: str | None  # in the GitOps repository
    uri: str  # where decision records lie
