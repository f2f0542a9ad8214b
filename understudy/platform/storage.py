"""Content-addressed storage: `<root>/<kind>/<sha256>/…`, on this machine or in a bucket.

The sha256 is that of the folder's manifest, so equal content has one place, writing it twice changes nothing,
and a reader can check all of it. The manifest is written last: a folder without one was never completed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from understudy.data.files import FULL_DISK, sync
from understudy.errors import ConfigError, IntegrityError, UnderstudyError
from understudy.platform.manifest import (
    MANIFEST,
    Entry,
    describe_folder,
    manifest_bytes,
    manifest_sha256,
    verify_file,
    verify_folder,
)

_KIND = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_ABANDONED_AFTER_SECONDS = 24 * 3600
_SHA256_PATTERN = "[0-9a-f]" * 64
DAY_SECONDS = 24 * 3600
INGEST_SHARDS, CHECKPOINTS = "ingest-shards", "checkpoints"
EXPIRING = (INGEST_SHARDS, CHECKPOINTS)  # kinds that can be made again; all else is named by records that are kept


@dataclass(frozen=True)
class Stored:
    """Where content lies (absolute path or s3:// URI) and the digest that names it."""

    uri: str
    sha256: str


@dataclass(frozen=True)
class Expired:
    """Content that was older than it had to be: where, of what size, and how long ago it was written."""

    uri: str
    num_bytes: int
    age_days: float


class Store(ABC):
    """A place for content; `cache` is the local folder in which remote content is kept for reading."""

    def __init__(self, root: str, cache: Path) -> None:
        self.root = root
        self.cache = cache

    def put_folder(self, folder: Path, kind: str) -> Stored:
        """Store every file below `folder`; the same content again writes nothing.

        Raises:
            UnderstudyError: a full disk, a missing or empty folder, or files that changed meanwhile.
            ServiceUnreachable: the bucket does not answer, within a bounded time.
        """
        if not _KIND.fullmatch(kind):
            raise ValueError(f"kind {kind!r} must be lower-case letters, digits, dot, dash or underscore")
        entries = describe_folder(folder)
        sha256 = manifest_sha256(entries)
        uri = f"{self.root}/{kind}/{sha256}"
        self._put(folder, entries, uri)
        return Stored(uri=uri, sha256=sha256)

    def fetch(self, uri: str, sha256: str) -> Path:
        """Return a local folder with the content of `uri`, every digest verified.

        Local content is used in place and must not be written to; remote content is kept in the cache.

        Raises:
            IntegrityError: naming the file and both digests, when content and digest differ.
            ServiceUnreachable: the bucket does not answer, within a bounded time.
        """
        if uri.startswith("s3://"):
            return self._fetch_remote(uri, sha256)
        folder = Path(uri.removeprefix("file://"))
        verify_folder(folder, sha256)
        return folder

    def expire(self, kind: str, days: float, dry_run: bool = False) -> list[Expired]:
        """Delete content of a kind that can be made again, written more than `days` days ago, and copies of it here.

        Age counts from the last time that the content was put, also if it was there already. With `dry_run`, only say
        what would go.

        Raises:
            ValueError: the kind is not one of those, or `days` is not positive.
            ServiceUnreachable: the bucket does not answer, or does not let these credentials delete.
        """
        if kind not in EXPIRING or days <= 0:
            raise ValueError(f"content of kind {kind!r} does not expire after {days} days, only {EXPIRING} after some")
        return self._expire(kind, days * DAY_SECONDS, dry_run)

    def _fetch_remote(self, uri: str, sha256: str) -> Path:
        from understudy.platform.object_storage import Location, download

        location = Location.parse(uri)
        kind = location.prefix.split("/")[-2] if "/" in location.prefix else "content"
        target = self.cache / kind / sha256
        if target.exists():
            try:
                verify_folder(target, sha256)
                return target
            except IntegrityError:
                _discard(target)
        with aside_of(target) as aside:
            download(location, sha256, aside)
            verify_folder(aside, sha256)
            place(aside, target)
        return target

    @abstractmethod
    def check(self) -> None:
        """Raise at once when nothing could be stored here: before a run, not at its end."""

    @abstractmethod
    def _put(self, folder: Path, entries: list[Entry], uri: str) -> None: ...

    @abstractmethod
    def _expire(self, kind: str, seconds: float, dry_run: bool) -> list[Expired]: ...


class LocalStore(Store):
    """A folder on this machine."""

    def check(self) -> None:
        """Raise ConfigError when the folder cannot be written."""
        try:
            Path(self.root).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"Storage folder {self.root} cannot be made: {error.strerror}. Set storage.uri to a folder you own."
            ) from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise ConfigError(f"Storage folder {self.root} cannot be written. Set storage.uri to a folder you own.")

    def _put(self, folder: Path, entries: list[Entry], uri: str) -> None:
        target = Path(uri)
        if target.exists():
            try:
                verify_folder(target, target.name)
                renew(target)
                return
            except IntegrityError:
                _discard(target)
        with aside_of(target) as aside:
            _copy_files(folder, entries, aside)
            place(aside, target)

    def _expire(self, kind: str, seconds: float, dry_run: bool) -> list[Expired]:
        found = []
        for folder in sorted((Path(self.root) / kind).glob(_SHA256_PATTERN)):
            files = [path.stat() for path in folder.rglob("*") if path.is_file()]
            age_seconds = time.time() - max([folder.stat().st_mtime, *(file.st_mtime for file in files)])
            if age_seconds > seconds:
                if not dry_run:
                    _discard(folder)
                found.append(Expired(str(folder), sum(file.st_size for file in files), age_seconds / DAY_SECONDS))
        return found


def expires(uri: str) -> bool:
    """Whether the content at this address is of a kind that `Store.expire` deletes."""
    return uri.split("/")[-2] in EXPIRING


def renew(folder: Path) -> None:
    """Make a folder of a kind that expires as young as a new one, which it is to who puts or reads it now."""
    if expires(str(folder)):
        with suppress(OSError):  # not ours to write, as a folder that others share; then it may expire sooner
            os.utime(folder)


def open_store(uri: str | None, workdir: Path) -> Store:
    """Return the store at `uri`: None for `<workdir>/store`, a folder, or `s3://bucket/prefix`.

    Raises:
        ConfigError: for any other scheme.
    """
    cache = workdir.absolute() / "store"
    if uri is None or not uri.strip():
        return LocalStore(str(cache), cache)
    if uri.startswith("s3://"):
        from understudy.platform.object_storage import S3Store

        return S3Store(uri.rstrip("/"), cache)
    scheme = uri.partition("://")[0] if "://" in uri else "file"
    if scheme != "file":
        raise ConfigError(f"storage.uri {without_secrets(uri)!r}: {scheme}:// is not known. Use a folder or s3://…")
    return LocalStore(str(Path(uri.removeprefix("file://")).expanduser().absolute()), cache)


def without_secrets(uri: str) -> str:
    """Return a URI, with or without a scheme, fit for messages: no user, no password, no query.

    A password may hold `/`, `?` and `#` that ought to be percent-encoded, so everything up to the last `@` goes, also
    where that stands in a path.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        scheme, rest = "", uri
    if not rest.startswith("/"):  # sqlite:///…, file:///… and paths have no user
        rest = rest.rpartition("@")[2]
    return f"{scheme}{separator}{rest.partition('?')[0]}"


def first_line(error: BaseException) -> str:
    """Return what an error says first, without secrets in URIs."""
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return " ".join(without_secrets(word) if "://" in word else word for word in first.split(" "))[:500]


@contextmanager
def aside_of(target: Path) -> Iterator[Path]:
    """Give a new folder beside `target` to write in; it is gone afterwards, whatever happens.

    Raises:
        UnderstudyError: when the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent)
        aside = target.parent / f".aside-{uuid.uuid4().hex}"
        aside.mkdir()
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise UnderstudyError(
            f"The disk of {target.parent} is full ({error.strerror}) while writing {target.name}; nothing was kept "
            "of it. Free some space or set storage.uri to another disk, then run the same command again."
        ) from error


def place(aside: Path, target: Path) -> None:
    """Make `aside` durable and move it to `target` in one step; another writer's equal content may win."""
    for parent, _, files in os.walk(aside):
        for name in files:
            sync(Path(parent) / name)
        sync(Path(parent))
    try:
        aside.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return
    sync(target.parent)


def _copy_files(folder: Path, entries: list[Entry], aside: Path) -> None:
    for entry in entries:
        copy = aside / entry.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / entry.path, copy)
        try:
            verify_file(copy, entry)
        except IntegrityError as error:
            raise UnderstudyError(
                f"{folder / entry.path} changed while it was being stored. Let no other process write there."
            ) from error
        copy.chmod(0o444)  # content is shared by everything that names it
    (aside / MANIFEST).write_bytes(manifest_bytes(entries))
    (aside / MANIFEST).chmod(0o444)


def _discard(folder: Path) -> None:
    """Take a folder out of its place in one step, then delete it."""
    grave = folder.parent / f".aside-{uuid.uuid4().hex}"
    try:
        folder.rename(grave)
    except FileNotFoundError:
        return
    shutil.rmtree(grave, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove what killed processes left long ago, so that it does not fill the disk."""
    for aside in parent.glob(".aside-*"):
        try:
            if time.time() - aside.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                shutil.rmtree(aside, ignore_errors=True)
        except FileNotFoundError:
            continue
