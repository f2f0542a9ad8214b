"""What a launched training reads and writes: its request, its result, its failure, as JSON in one shared place.

The launcher writes the request and reads the rest; the training processes do the opposite. The place is a folder, or
a prefix of a bucket where several machines take part. Weights never travel here: records name them by digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy import errors, records
from understudy.data.files import write_atomically
from understudy.errors import IntegrityError, UnderstudyError
from understudy.records import Record

REQUEST, RESULT, FAILURE = "request.json", "result.json", "failure.json"
_REMEDY = "Remove it, and run the step again; it resumes."
_STEP = re.compile(r"[a-z][a-z_]*")


@dataclass(frozen=True)
class Request:
    """One call of a step's `run`: its config, the records it takes by name, the kinds of records it returns."""

    step: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Record | None]
    outputs: Sequence[type[Record]]

    def to_json(self) -> dict[str, Any]:
        """Return the request as plain JSON values."""
        return {
            "step": self.step,
            "config": dict(self.config),
            "inputs": {name: record and _tagged(record) for name, record in self.inputs.items()},
            "outputs": [kind.__name__ for kind in self.outputs],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Request:
        """Rebuild a request; raise IntegrityError when another version wrote it."""
        fields = sorted(field.name for field in dataclasses.fields(cls))
        if sorted(data) != fields or not _STEP.fullmatch(str(data["step"])):
            raise IntegrityError(
                f"The launch request has the fields {sorted(data)}, not {fields}, or names no step. Launcher and "
                "training image differ in version; build both from one commit."
            )
        inputs = {name: record and _record(record) for name, record in data["inputs"].items()}
        return cls(data["step"], data["config"], inputs, [_kind(name) for name in data["outputs"]])

    @property
    def sha256(self) -> str:
        """Digest of everything that the result depends on."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def run(self) -> tuple[Record, ...]:
        """Call the step in this process and return its records."""
        module = importlib.import_module(f"understudy.platform.steps.{self.step}")
        returned = module.run(self.config, **self.inputs)
        return returned if isinstance(returned, tuple) else (returned,)


class Exchange:
    """The shared place of one launch: small JSON files, each there as a whole or not at all."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a file's content, None when there is no such file.

        Raises:
            IntegrityError: it is not a JSON object.
            ServiceUnreachable: the bucket does not answer.
        """
        data = self._read_remote(name) if self.uri.startswith("s3://") else self._read_local(name)
        if data is None:
            return None
        try:
            content = json.loads(data)
        except ValueError as error:
            raise IntegrityError(f"{self.uri}/{name} is not JSON ({error}). {_REMEDY}") from error
        if not isinstance(content, dict):
            raise IntegrityError(f"{self.uri}/{name} holds {type(content).__name__}, not an object. {_REMEDY}")
        return content

    def write(self, name: str, content: Any) -> None:
        """Write a file in one step, over an older one."""
        data = json.dumps(content, indent=1, sort_keys=True).encode()
        if self.uri.startswith("s3://"):
            from understudy.platform.object_storage import Location, reachable

            location = Location.parse(self.uri)
            with reachable(location) as client:
                client.put_object(Bucket=location.bucket, Key=location.key(name), Body=data)
            return
        write_atomically(Path(self.uri) / name, data)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        if self.uri.startswith("s3://"):
            from understudy.platform.object_storage import Location, reachable

            location = Location.parse(self.uri)
            with reachable(location) as client:
                client.delete_object(Bucket=location.bucket, Key=location.key(name))
            return
        (Path(self.uri) / name).unlink(missing_ok=True)

    def _read_local(self, name: str) -> bytes | None:
        path = Path(self.uri) / name
        return path.read_bytes() if path.exists() else None

    def _read_remote(self, name: str) -> bytes | None:
        from understudy.platform.object_storage import Location, reachable

        location = Location.parse(self.uri)
        with reachable(location) as client:
            try:
                body = client.get_object(Bucket=location.bucket, Key=location.key(name))["Body"]
            except client.exceptions.NoSuchKey:
                return None
            data: bytes = body.read()
            return data


def write_result(exchange: Exchange, request: Request, returned: Sequence[Record]) -> None:
    """Hand over the records that the step returned."""
    exchange.write(RESULT, {"request_sha256": request.sha256, "records": [_tagged(record) for record in returned]})


def read_result(exchange: Exchange, request: Request) -> tuple[Record, ...] | None:
    """Return the records of this request's training; None when it has not ended well.

    Raises:
        IntegrityError: the records are not of the kinds that the request asks for.
    """
    content = exchange.read(RESULT)
    if content is None or content.get("request_sha256") != request.sha256:
        return None
    try:
        returned = tuple(_record(record) for record in content["records"])
    except (KeyError, TypeError) as error:
        raise IntegrityError(f"{exchange.uri}/{RESULT} is no result ({error!r}). {_REMEDY}") from error
    kinds, asked = [type(record).__name__ for record in returned], [kind.__name__ for kind in request.outputs]
    if kinds != asked:
        raise IntegrityError(f"{exchange.uri}/{RESULT} holds {kinds}, step {request.step} returns {asked}.")
    return returned


def write_failure(exchange: Exchange, error: UnderstudyError) -> None:
    """Hand over an error meant for people, so that the launcher raises the same one."""
    exchange.write(FAILURE, {"error": type(error).__name__, "message": str(error)})


def read_failure(exchange: Exchange) -> UnderstudyError | None:
    """Return the error that the training handed over, if any."""
    content = exchange.read(FAILURE)
    if content is None:
        return None
    kind = getattr(errors, str(content.get("error")), None)
    known = isinstance(kind, type) and issubclass(kind, UnderstudyError)
    found: UnderstudyError = (kind if known else UnderstudyError)(str(content.get("message", content)))  # type: ignore[misc]
    return found


def _tagged(record: Record) -> dict[str, Any]:
    return {"kind": type(record).__name__, "record": record.to_json()}


def _record(data: Mapping[str, Any]) -> Record:
    return _kind(data["kind"]).from_json(data["record"])


def _kind(name: str) -> type[Record]:
    kind = getattr(records, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Record)):
        raise IntegrityError(f"{name!r} is no kind of record. Launcher and training image differ in version.")
    return kind
