"""Demonstrations in a bucket of any S3 service, read in ranges so that neither memory nor disk fills."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from understudy.data.sources import DESCRIPTIONS, SUFFIXES, Listing, SourceFile
from understudy.errors import ConfigError, DataRefused, IntegrityError
from understudy.platform.object_storage import Location, reachable

_RANGE_BYTES = 4 * 1024 * 1024


def list_s3_sources(uri: str) -> Listing:
    """List the object or the prefix that `s3://bucket/key` names, in the order of keys.

    Raises:
        ConfigError: the bucket or the key does not exist, or the URI is malformed.
        DataRefused: objects, but none of a known kind.
        ServiceUnreachable: the service does not answer; names its URI.
    """
    location = Location.parse(uri)
    objects = list(_objects(location))
    if not objects:
        raise ConfigError(f"Nothing is stored at {uri}. Check the bucket and the key, and AWS_ENDPOINT_URL.")
    exact = [item for item in objects if item["Key"] == location.prefix]
    if exact:
        return Listing((_source_file(location, exact[0]),))
    left_out = {item["Key"]: _left_out(item["Key"], location) for item in objects}
    wanted = [item for item in objects if left_out[item["Key"]] is None]
    ignored = tuple(dict.fromkeys(name for name in left_out.values() if name))
    if not wanted:
        only = f", only {', '.join(ignored[:5])}" if ignored else ""
        raise DataRefused(f"{uri} holds no demonstrations{only}. Keys must end in {', '.join(SUFFIXES)}.")
    return Listing(tuple(_source_file(location, item) for item in wanted), ignored)


def s3_source_sha256(uri: str) -> str:
    """Digest of keys, sizes and ETags, which change whenever the content does."""
    location = Location.parse(uri)
    lines = [f"{item['Key']} {item['Size']} {item['ETag']}\n" for item in _objects(location)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _left_out(key: str, location: Location) -> str | None:
    """Return by what name a key is left out: its own, or its hidden folder's; None for one to read, "" to say nothing.

    The rules are those of a local folder, so that a copy of one gives the same version.
    """
    folders, _, name = key.removeprefix(location.key("")).rpartition("/")
    above = folders.split("/")
    for depth, folder in enumerate(above, start=1):
        if folder.startswith("."):
            return location.key("/".join(above[:depth])) + "/"
    if not name or name in DESCRIPTIONS:
        return ""
    # `cache-….arrow` files beside a saved dataset are leftovers of its transformations.
    is_leftover = name.startswith("cache-") and name.endswith(".arrow")
    return None if name.endswith(SUFFIXES) and not name.startswith(".") and not is_leftover else key


def _objects(location: Location) -> Iterator[dict[str, Any]]:
    with _existing(location) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=location.bucket, Prefix=location.prefix)
        for page in pages:
            for item in page.get("Contents", ()):
                # A prefix names a folder: `data` is not the beginning of `database.jsonl`.
                if item["Key"] == location.prefix or item["Key"].startswith(location.key("")):
                    yield item


@contextmanager
def _existing(location: Location) -> Iterator[Any]:
    from botocore.exceptions import ClientError

    with reachable(location) as client:
        try:
            yield client
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code"))
            if code in ("NoSuchBucket", "NoSuchKey", "404"):
                raise ConfigError(f"{location.uri} does not exist ({code}). Check the bucket and the key.") from error
            if code in ("PreconditionFailed", "412"):
                raise IntegrityError(f"{location.uri} changed while it was read. Run the command again.") from error
            raise


def _source_file(location: Location, item: dict[str, Any]) -> SourceFile:
    place = Location(location.bucket, item["Key"])
    size, etag = int(item["Size"]), str(item["ETag"])

    def opened() -> BinaryIO:
        return io.BufferedReader(_Ranges(place, size, etag), _RANGE_BYTES)

    return SourceFile(place.uri, size, opened, etag)


class _Ranges(io.RawIOBase):
    """One object as a seekable file; each read is its own bounded request for the version that was listed."""

    def __init__(self, place: Location, num_bytes: int, etag: str) -> None:
        self._place, self._num_bytes, self._etag, self._position = place, num_bytes, etag, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._num_bytes)
        if end <= self._position:
            return 0
        with _existing(self._place) as client:
            answer = client.get_object(
                Bucket=self._place.bucket,
                Key=self._place.prefix,
                Range=f"bytes={self._position}-{end - 1}",
                IfMatch=self._etag,
            )
            data = answer["Body"].read()
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
