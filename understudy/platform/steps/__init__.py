"""The steps of the DAG: each module has `run(config, …)`, which takes records and returns records.

`pack` and `unpack` carry a record from step to step, as JSON in a KFP parameter; no content travels through KFP.
`for_kfp` and `from_kfp` carry a config through a KFP parameter, which knows neither null nor whole numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from understudy.errors import IntegrityError
from understudy.records import Record

R = TypeVar("R", bound=Record)
_NULL = "null"
# As KFP's launcher knows them: it would download an input artifact that has such an address, weights and all.
_REMOTE = ("s3://", "gs://", "minio://")


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


def pack(artifact: Any, record_path: str, record: Record, uri: str | None = None, page: str | None = None) -> None:
    """Hand a record with a `uri` over: as the output parameter that the next steps read, and as an artifact to look at.

    Locally the artifact's URI is the content itself, so that a cache entry whose content is gone counts as a miss;
    `uri` is for a record whose own URI is neither a path nor an address. A cluster keeps the address that KFP chose,
    below which it uploads what is written: the record, or `page`, a file of the record's folder that KFP's UI shows.
    """
    text = json.dumps(record.to_json(), sort_keys=True)
    artifact.metadata["record"] = text
    if artifact.uri.startswith(_REMOTE):
        shown = Path(artifact.path)
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.write_bytes(_page(record, page) if page else text.encode())
    else:
        artifact.uri = uri or json.loads(text)["uri"]
    Path(record_path).parent.mkdir(parents=True, exist_ok=True)
    Path(record_path).write_text(text, encoding="utf-8")


def unpack(text: str, record_type: type[R]) -> R:
    """Read a record that an earlier step handed over.

    Raises:
        IntegrityError: the text is no record of this type, so it was not written by a step of this pipeline.
    """
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise IntegrityError(
            f"{text[:80]!r} is no {record_type.__name__}; it was not written by a step of this pipeline. "
            "Run the step that writes it again."
        )
    return record_type.from_json(data)


def _page(record: Any, name: str) -> bytes:
    from understudy.platform import where
    from understudy.platform.storage import open_store

    store = open_store(where.storage_uri(), where.workdir())
    return (store.fetch(record.uri, record.sha256) / name).read_bytes()
