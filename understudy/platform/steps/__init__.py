"""The steps of the DAG: each module has `run(config, …)`, which takes records and returns records.

`pack` and `unpack` carry a record in a KFP artifact: its content-addressed URI and the record as JSON.
`for_kfp` and `from_kfp` carry a config through a KFP parameter, which knows neither null nor whole numbers.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from understudy.errors import IntegrityError
from understudy.records import Record

R = TypeVar("R", bound=Record)
_NULL = "null"


def for_kfp(value: Any) -> Any:
    """Return a config whose nulls a KFP parameter can hold."""
    if isinstance(value, dict):
        return {name: for_kfp(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [for_kfp(item) for item in value]
    return _NULL if value is None else value


def from_kfp(value: Any) -> Any:
    """Undo `for_kfp`, and make whole numbers whole again, which KFP hands over as floats."""
    if isinstance(value, dict):
        return {name: from_kfp(item) for name, item in value.items()}
    if isinstance(value, list):
        return [from_kfp(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None if value == _NULL else value


def pack(artifact: Any, record: Record, uri: str | None = None) -> None:
    """Put a record with a `uri` into a KFP output artifact.

    The URI is content-addressed, and caches compare artifacts by URI and metadata: equal content, equal key.
    `uri` is for a record whose own URI is neither a path nor an address, which kfp.local takes for a missing file.
    """
    data = record.to_json()
    artifact.uri = uri or data["uri"]
    artifact.metadata["record"] = json.dumps(data, sort_keys=True)


def unpack(artifact: Any, record_type: type[R]) -> R:
    """Read the record back from a KFP input artifact.

    Raises:
        IntegrityError: the artifact carries no record, so it was not written by a step of this pipeline.
    """
    text = artifact.metadata.get("record")
    if not text:
        raise IntegrityError(
            f"Artifact {artifact.uri!r} carries no {record_type.__name__}; it was not written by a step of this "
            "pipeline. Run the step that writes it again."
        )
    return record_type.from_json(json.loads(text))
