"""Small files that several processes change: a folder on this machine, or a prefix in a bucket.

Every change is conditional: create only what is absent, replace only what was read. So two writers never both win.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from understudy.data.files import sync
from understudy.errors import ConfigError
from understudy.platform.object_storage import Location, reachable
from understudy.platform.where import shared_root

_CONFLICT = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_LONGEST = 200  # file systems take names of 255 bytes
_ABSENT = {"NoSuchKey", "404", "NotFound"}


@dataclass(frozen=True)
class Found:
    """A file's content, the tag that a conditional change names, and its age by the clock of the place."""

    data: bytes
    tag: str
    age_seconds: float


class Place(Protocol):
    """Where leases, journals and decision records lie."""

    @property
    def uri(self) -> str:
        """The place, for messages."""

    def read(self, name: str) -> Found | None:
        """Return a file, None where there is none."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file whole; False where there is one already."""

    def replace(self, name: str, data: bytes, tag: str) -> bool:
        """Replace the file that was read with `tag`; False where it is another by now."""

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with `prefix`, sorted."""


def open_place(uri: str) -> Place:
    """Return the place at a folder or `s3://bucket/prefix`."""
    return S3Place(uri) if uri.startswith("s3://") else LocalPlace(Path(uri))


def place_of(workdir: Path, model: str, storage_uri: str | None) -> Place:
    """Return where a model's lease, journal and decisions lie: beside the store, so that all who use it meet."""
    return open_place(place_uri(shared_root(workdir, storage_uri), model))


def place_uri(root: str, model: str) -> str:
    """Return the place of a model below a store or folder."""
    name = quote(model, safe="").replace(".", "%2E") if model.strip(".") == "" else quote(model, safe="")
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 65]}-{hashlib.sha256(model.encode()).hexdigest()}"
    return f"{root.rstrip('/')}/promotion/{name}"


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Say in words that a folder cannot be written, for whatever reason the system gives."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{str(folder)!r} cannot be written: {error.strerror}. Name another working directory with --workdir, or a "
            "bucket with UNDERSTUDY_STORAGE_URI."
        ) from error


class LocalPlace:
    """A folder; the kernel's lock makes compare and replace one step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    @property
    def uri(self) -> str:
        """The folder."""
        return str(self.folder)

    def read(self, name: str) -> Found | None:
        """Return a file, None where there is none."""
        try:
            with (self.folder / name).open("rb") as file:
                data, written = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        return Found(data, hashlib.sha256(data).hexdigest(), max(0.0, time.time() - written))

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file whole; False where there is one already."""
        with self._written(name, data) as aside:
            try:
                os.link(aside, self.folder / name)
            except FileExistsError:
                return False
        self._sync(name)
        return True

    def replace(self, name: str, data: bytes, tag: str) -> bool:
        """Replace the file that was read with `tag`; False where it is another by now."""
        with self._written(name, data) as aside, (self.folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = self.read(name)
            if found is None or found.tag != tag:
                return False
            aside.replace(self.folder / name)
        self._sync(name)
        return True

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with `prefix`, sorted."""
        parent = (self.folder / prefix).parent if not prefix.endswith("/") else self.folder / prefix
        files = [path for path in parent.glob("*") if path.is_file() and not path.name.startswith(".")]
        found = [path.relative_to(self.folder).as_posix() for path in files]
        return sorted(name for name in found if name.startswith(prefix))

    @contextmanager
    def _written(self, name: str, data: bytes) -> Iterator[Path]:
        aside = self.folder / f".aside-{uuid.uuid4().hex}"
        try:
            with writable(self.folder):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                with aside.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            yield aside
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    def _sync(self, name: str) -> None:
        for folder in {(self.folder / name).parent, self.folder}:  # which may just have got its subfolder
            sync(folder)


class S3Place:
    """A prefix in a bucket; If-None-Match and If-Match make the changes conditional."""

    def __init__(self, uri: str) -> None:
        self.location = Location.parse(uri)
        self._client: Any = None

    @property
    def uri(self) -> str:
        """The prefix."""
        return self.location.uri

    def read(self, name: str) -> Found | None:
        """Return a file, None where there is none; its age is by the server's clock alone."""
        from email.utils import parsedate_to_datetime

        from botocore.exceptions import ClientError

        with self._reached() as client:
            try:
                answer = client.get_object(Bucket=self.location.bucket, Key=self.location.key(name))
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise
            data = bytes(answer["Body"].read())
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return Found(data, str(answer["ETag"]), max(0.0, (now - answer["LastModified"]).total_seconds()))

    def create(self, name: str, data: bytes) -> bool:
        """Write a new file whole; False where there is one already."""
        return self._put(name, data, IfNoneMatch="*")

    def replace(self, name: str, data: bytes, tag: str) -> bool:
        """Replace the file that was read with `tag`; False where it is another by now."""
        return self._put(name, data, IfMatch=tag)

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with `prefix`, sorted."""
        start = self.location.key("")
        with self._reached() as client:
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self.location.bucket, Prefix=self.location.key(prefix)
            )
            return sorted(str(item["Key"]).removeprefix(start) for page in pages for item in page.get("Contents", ()))

    @contextmanager
    def _reached(self) -> Iterator[Any]:
        with reachable(self.location, self._client) as client:
            self._client = client
            yield client

    def _put(self, name: str, data: bytes, **condition: Any) -> bool:
        from botocore.exceptions import ClientError

        with self._reached() as client:
            key = self.location.key(name)
            try:
                client.put_object(Bucket=self.location.bucket, Key=key, Body=data, **condition)
            except ClientError as error:
                if _code(error) in _CONFLICT | _ABSENT:
                    # A put that was retried after its answer was lost meets itself; the content is unique.
                    found = self.read(name)
                    return found is not None and found.data == data
                raise
        return True


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code"))
