"""Content in a bucket of any S3 service: files first, the manifest last and only if it is not there yet."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from understudy.errors import ConfigError, ContentMissing, IntegrityError, ServiceUnreachable, UnderstudyError
from understudy.platform.manifest import MANIFEST, Entry, manifest_bytes, parse_manifest, verify_file
from understudy.platform.storage import DAY_SECONDS, Expired, LocalStore, Store, expires, without_secrets

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_CONNECT_TIMEOUT_SECONDS = 5
_READ_TIMEOUT_SECONDS = 60
_ATTEMPTS = 3
_PART_BYTES = 16 << 20
_ALREADY_THERE = {"PreconditionFailed", "412"}
_NOT_FOUND = {"NoSuchKey", "404", "NotFound"}
_MANIFEST_ATTEMPTS = 5
_KEYS_A_REQUEST = 1000  # the most that DeleteObjects takes


@dataclass(frozen=True)
class Location:
    """A bucket and a key prefix in it."""

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, uri: str) -> Location:
        """Split `s3://bucket/prefix`; raise ConfigError when it is not one."""
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not uri.startswith("s3://") or not _BUCKET.fullmatch(bucket):
            raise ConfigError(f"{without_secrets(uri)!r} is not of the form s3://bucket/prefix. Keys go in AWS_… only.")
        return cls(bucket, prefix.strip("/"))

    @property
    def uri(self) -> str:
        """The URI again."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, path: str) -> str:
        """Return the full key of a path below the prefix."""
        return f"{self.prefix}/{path}" if self.prefix else path


class S3Store(Store):
    """A prefix in a bucket; the endpoint comes from AWS_ENDPOINT_URL."""

    def __init__(self, root: str, cache: Path) -> None:
        super().__init__(Location.parse(root).uri, cache)

    def check(self) -> None:
        """Raise ServiceUnreachable when the bucket does not answer or may not be used."""
        location = Location.parse(self.root)
        with reachable(location) as client:
            client.head_bucket(Bucket=location.bucket)

    def _put(self, folder: Path, entries: list[Entry], uri: str) -> None:
        location = Location.parse(uri)
        with reachable(location) as client:
            there = _sizes(client, location)
            for entry in entries:
                path, size = folder / entry.path, there.get(location.key(entry.path))
                if size != entry.size or not _has_digest(client, location, path, entry):
                    _upload(client, location, path, entry)
            manifest = manifest_bytes(entries)
            if location.key(MANIFEST) not in there:
                _put_manifest(client, location, manifest)
            elif expires(uri) or read_object(client, location, MANIFEST) != manifest:  # as young as new; or damaged
                client.put_object(Bucket=location.bucket, Key=location.key(MANIFEST), Body=manifest)

    def _expire(self, kind: str, seconds: float, dry_run: bool) -> list[Expired]:
        location = Location.parse(f"{self.root}/{kind}")
        found = []
        with reachable(location) as client:
            for name, (age_seconds, num_bytes) in sorted(_ages_and_sizes(client, location).items()):
                folder = Location(location.bucket, location.key(name))
                if age_seconds > seconds and (dry_run or _delete_if_older(client, folder, seconds)):
                    found.append(Expired(folder.uri, num_bytes, age_seconds / DAY_SECONDS))
        # And what merges on this machine fetched.
        return found + LocalStore(str(self.cache), self.cache).expire(kind, seconds / DAY_SECONDS, dry_run)


def _ages_and_sizes(client: Any, location: Location) -> dict[str, tuple[float, int]]:
    """Return for each folder below `location` the age of its newest object in seconds, and its bytes."""
    found: dict[str, tuple[float, int]] = {}
    for key, num_bytes, age_seconds in _aged_objects(client, location):
        name, separator, _ = key.removeprefix(location.key("")).partition("/")
        if separator:
            newest, total = found.get(name, (age_seconds, 0))
            found[name] = min(newest, age_seconds), total + num_bytes
    return found


def _aged_objects(client: Any, location: Location) -> Iterator[tuple[str, int, float]]:
    """Yield key, bytes and age in seconds, by the bucket's clock, of each object below `location`."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=location.bucket, Prefix=location.key("")):
        now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
        for item in page.get("Contents", ()):
            yield item["Key"], int(item["Size"]), (now - item["LastModified"]).total_seconds()


def _delete_if_older(client: Any, folder: Location, seconds: float) -> bool:
    """Delete a folder, its manifest first, unless some writer came since it was listed; say whether it is gone."""
    there = list(_aged_objects(client, folder))
    if not there or min(age_seconds for _, _, age_seconds in there) <= seconds:
        return False
    # Without its manifest it was never completed, so nobody takes what is left for content.
    client.delete_object(Bucket=folder.bucket, Key=folder.key(MANIFEST))
    keys = [key for key, _, _ in there if key != folder.key(MANIFEST)]
    for start in range(0, len(keys), _KEYS_A_REQUEST):
        named = [{"Key": key} for key in keys[start : start + _KEYS_A_REQUEST]]
        answer = client.delete_objects(Bucket=folder.bucket, Delete={"Objects": named, "Quiet": True})
        if failed := answer.get("Errors"):
            raise ServiceUnreachable(
                f"Object storage did not delete {len(failed)} objects of {folder.uri}, first {failed[0]['Key']} "
                f"({failed[0].get('Code')}). Check that the AWS_… credentials may delete, then run the command again."
            )
    return True


def download(location: Location, sha256: str, folder: Path) -> None:
    """Bring the content at `location` into the empty `folder`, the manifest last.

    Raises:
        ContentMissing: no manifest, or not all files that it names.
        IntegrityError: a digest that differs.
        ServiceUnreachable: the bucket does not answer.
    """
    with reachable(location) as client:
        data = read_object(client, location, MANIFEST)
        for entry in parse_manifest(data, sha256, where=location.uri):
            target = folder / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            download_object(client, location, entry.path, target)
            try:
                verify_file(target, entry)
            except IntegrityError as error:
                there = f"{location.uri}/{entry.path}"
                raise IntegrityError(str(error).replace(str(target), there)) from error
        (folder / MANIFEST).write_bytes(data)


@contextmanager
def reachable(location: Location, client: Any = None) -> Iterator[Any]:
    """Give a client whose every wait is bounded; turn its errors into ones that name the place, not the keys.

    `client` is one that this gave before: making another takes as long as some requests.
    """
    import boto3
    from boto3.exceptions import RetriesExceededError, S3UploadFailedError
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    where = location.uri + (f" at {without_secrets(endpoint)}" if endpoint else "")
    config = Config(
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        read_timeout=_READ_TIMEOUT_SECONDS,
        retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        # Most services other than AWS serve buckets by path, not as a host name.
        s3={"addressing_style": "path" if endpoint else "auto"},
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    try:
        if client is None:
            client = boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except BotoCoreError as error:  # a region or profile that cannot be, half of a key, a file that cannot be read
        told = str(error).rstrip(".")
        raise ConfigError(f"{where}: {told}. Correct the AWS_… variables or the AWS configuration files.") from error
    except ValueError as error:  # not a URL
        raise ConfigError(
            f"AWS_ENDPOINT_URL {without_secrets(endpoint or '')!r} is not a URL. Use http(s)://host:port."
        ) from error
    try:
        yield client
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise ConfigError(
            f"{where}: no credentials, or half of them. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        ) from error
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown")
        raise ServiceUnreachable(
            f"Object storage {where} refused {error.operation_name} ({code}). "
            "Check that the bucket exists and that the AWS_… credentials may read and write it."
        ) from error
    except (BotoCoreError, S3UploadFailedError, RetriesExceededError) as error:
        raise ServiceUnreachable(
            f"Object storage {where} does not answer ({type(error).__name__}). "
            "Check storage.uri, AWS_ENDPOINT_URL and the network, then run the same command again."
        ) from error


def _sizes(client: Any, location: Location) -> dict[str, int]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=location.bucket, Prefix=location.prefix + "/")
    return {item["Key"]: int(item["Size"]) for page in pages for item in page.get("Contents", ())}


def _has_digest(client: Any, location: Location, path: Path, entry: Entry) -> bool:
    """Say whether an object has the file's bytes, by the SHA-256 that the service took when it was put.

    A size says nothing of a damaged object. Reading it would: that is dear, and whoever fetches it does; this is a
    request without bytes. An object without a SHA-256 was not put by us, so it counts as another.
    """
    head = client.head_object(Bucket=location.bucket, Key=location.key(entry.path), ChecksumMode="ENABLED")
    told = str(head.get("ChecksumSHA256", ""))
    if "-" not in told:
        return told == base64.b64encode(bytes.fromhex(entry.sha256)).decode()
    # Of an upload in parts it is the digest of their digests, with their number.
    with path.open("rb") as file:
        parts = [hashlib.sha256(part).digest() for part in iter(lambda: file.read(_PART_BYTES), b"")]
    return told == f"{base64.b64encode(hashlib.sha256(b''.join(parts)).digest()).decode()}-{len(parts)}"


def _upload(client: Any, location: Location, path: Path, entry: Entry) -> None:
    client.upload_file(
        str(path),
        location.bucket,
        location.key(entry.path),
        ExtraArgs={"ChecksumAlgorithm": "SHA256"},
        Config=_transfer(),
    )
    try:
        verify_file(path.resolve(), entry)
    except IntegrityError as error:
        client.delete_object(Bucket=location.bucket, Key=location.key(entry.path))
        raise UnderstudyError(f"{path} changed while it was being stored. Let no other process write there.") from error


def _put_manifest(client: Any, location: Location, data: bytes) -> None:
    from botocore.exceptions import ClientError

    for attempt in range(1, _MANIFEST_ATTEMPTS + 1):
        try:
            client.put_object(Bucket=location.bucket, Key=location.key(MANIFEST), Body=data, IfNoneMatch="*")
            return
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code"))
            if code in _ALREADY_THERE:
                return  # another writer of the same content was first
            if code != "ConditionalRequestConflict" or attempt == _MANIFEST_ATTEMPTS:
                raise


def read_object(client: Any, location: Location, path: str) -> bytes:
    """Return a small object; raise ContentMissing, which names it, where there is none."""
    with _named(location, path):
        return bytes(client.get_object(Bucket=location.bucket, Key=location.key(path))["Body"].read())


def download_object(client: Any, location: Location, path: str, target: Path) -> None:
    """Write an object of any size into a file; raise ContentMissing, which names it, where there is none."""
    with _named(location, path):
        client.download_file(location.bucket, location.key(path), str(target), Config=_transfer())


@contextmanager
def _named(location: Location, path: str) -> Iterator[None]:
    """Turn "no such key" into an IntegrityError that names the missing file."""
    from botocore.exceptions import ClientError

    try:
        yield
    except ClientError as error:
        if str(error.response.get("Error", {}).get("Code")) not in _NOT_FOUND:
            raise
        raise ContentMissing(
            f"{location.uri}/{path} does not exist, so the content was never completed or was deleted. "
            "Run the step that writes it again."
        ) from error


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=4)
