"""Files that are there whole or not at all, folders that go away, and a full disk said in words."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from understudy.errors import ConfigError, UnderstudyError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Over a quota or a limit SQLite knows only that a write failed.
_FULL_SQLITE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE}
_ABANDONED_AFTER_SECONDS = 24 * 3600


def is_full_disk(error: BaseException) -> bool:
    """Say whether the system or SQLite refused a write for lack of space, whoever passed that on."""
    return _refusal(error) is not None


def full_disk_words(error: BaseException) -> str:
    """Return in a few words what was refused on a full disk."""
    refusal = _refusal(error) or error
    if isinstance(refusal, shutil.Error) and isinstance(refusal.args[0], list):
        return str(refusal.args[0][0][-1])
    return (refusal.strerror if isinstance(refusal, OSError) else None) or str(refusal)


def _refusal(error: BaseException) -> BaseException | None:
    """Return what a full disk raised among the causes of an error; an error for people says itself what to say."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UnderstudyError):
        if isinstance(cause, shutil.Error):  # of copytree, which keeps the errors of all its files as text
            return cause if any(f"[Errno {number}]" in str(cause) for number in FULL_DISK) else None
        if isinstance(cause, OSError) and cause.errno in FULL_DISK:
            return cause
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", None) in _FULL_SQLITE:
            return cause
        cause = cause.__cause__
    return None


@contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """Turn a full disk into an error for people."""
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise UnderstudyError(
            f"The disk that holds {str(folder)!r} is full ({full_disk_words(error)}). Nothing half-written was "
            "left there. Free some space or choose another --workdir, then run the same command again."
        ) from error


@contextmanager
def told_when_unwritable(path: Path, option: str) -> Iterator[None]:
    """Turn what keeps a file that `option` names from being written into an error for people."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror or error}. Name another place with {option}."
        ) from error


@contextmanager
def temporary_folder(workdir: Path) -> Iterator[Path]:
    """Give a new folder on the disk of `workdir`, removed at the end whatever happens; old ones of the dead go, too."""
    base = made(workdir / "tmp")
    _remove_abandoned(base)
    folder = Path(tempfile.mkdtemp(prefix="work-", dir=base))
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another process still has its folder there
            base.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the kernel's lock of a folder, which ends with this process however that ends; give whether it is held."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except OSError:  # another's, or a file system without locks
            held = False
        yield held
    finally:
        os.close(descriptor)


def _remove_abandoned(base: Path) -> None:
    """Remove what killed processes left long ago, so that it does not fill the disk."""
    for folder in base.glob("work-*"):
        try:
            if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                # By age alone one that takes days would lose its own.
                with _locked(folder) as nobody_works_there:
                    if nobody_works_there:
                        shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # gone meanwhile, or not ours
            continue


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file aside, make it durable, and put it in place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # pods that share a folder may share process ids
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def made(folder: Path) -> Path:
    """Return the folder, which now exists."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
