"""Files that are there whole or not at all, folders that go away, and a full disk said in words."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from understudy.errors import UnderstudyError

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """Turn a full disk into an error for people."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL_DISK:
            raise
        raise UnderstudyError(
            f"The disk that holds {str(folder)!r} is full ({error.strerror or error}). Nothing half-written was "
            "left there. Free some space or choose another --workdir, then run the same command again."
        ) from error


@contextmanager
def temporary_folder(workdir: Path) -> Iterator[Path]:
    """Give a new folder on the disk of `workdir`, removed at the end whatever happens."""
    base = made(workdir / "tmp")
    folder = Path(tempfile.mkdtemp(prefix="ingest-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another ingest still has its folder there
            base.rmdir()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file aside, make it durable, and put it in place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def made(folder: Path) -> Path:
    """Return the folder, which now exists."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder
