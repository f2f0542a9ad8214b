"""The manifest of a stored folder: every file with its size and digest; its own digest names the content."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from understudy.data.files import file_sha256
from understudy.errors import ContentMissing, IntegrityError, UnderstudyError

MANIFEST = "manifest.json"


@dataclass(frozen=True, order=True)
class Entry:
    """One file: POSIX path relative to the folder, size in bytes, digest of its content."""

    path: str
    size: int
    sha256: str


def describe_folder(folder: Path) -> list[Entry]:
    """Return every file below `folder`, sorted by path; a file link counts as the file it leads to.

    Raises:
        UnderstudyError: when the folder is missing or empty, or holds what cannot be stored.
    """
    if not folder.is_dir():
        raise UnderstudyError(f"There is no folder {folder} to store. The step that should write it did not run here.")
    entries = sorted(_describe_file(folder, path) for path in _walk(folder))
    if not entries:
        raise UnderstudyError(f"Folder {folder} holds no files, so there is nothing to store.")
    own = folder / MANIFEST
    if own.exists() and own.read_bytes() != manifest_bytes(entries):
        raise UnderstudyError(f"{own} is a reserved name and does not describe its folder. Remove or rename it.")
    return entries


def manifest_bytes(entries: list[Entry]) -> bytes:
    """Return the canonical form, of which the digest is taken."""
    return (json.dumps([asdict(entry) for entry in sorted(entries)], indent=1) + "\n").encode()


def manifest_sha256(entries: list[Entry]) -> str:
    """Return the digest that names a folder's content."""
    return hashlib.sha256(manifest_bytes(entries)).hexdigest()


def parse_manifest(data: bytes, sha256: str, where: str) -> list[Entry]:
    """Return the entries of a manifest whose digest is `sha256`.

    Raises:
        IntegrityError: when the digest differs, or a path would leave its folder.
    """
    actual = hashlib.sha256(data).hexdigest()
    if actual != sha256:
        raise IntegrityError(
            f"{where}/{MANIFEST} has sha256 {actual}, its record names {sha256}. "
            "The content was changed after it was stored; remove it and run the step that writes it again."
        )
    try:
        entries = [
            Entry(path=str(item["path"]), size=int(item["size"]), sha256=str(item["sha256"]))
            for item in json.loads(data)
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{where}/{MANIFEST} is not a manifest: {error!r}. Run the step again.") from error
    bad = [entry.path for entry in entries if not _is_safe(entry.path)]
    if bad or len({entry.path for entry in entries}) < len(entries):
        raise IntegrityError(f"{where}/{MANIFEST} names unsafe or repeated paths {bad}; it is refused. Do not use it.")
    return entries


def verify_folder(folder: Path, sha256: str) -> list[Entry]:
    """Check a stored folder against the digest that names it: manifest, every file, and nothing besides.

    Raises:
        ContentMissing: the folder, or a file of it, is not there.
        IntegrityError: naming the file and both digests.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ContentMissing(
            f"{folder} has no {MANIFEST}, so it is missing or was never completed. Run the step that writes it again."
        )
    entries = parse_manifest(manifest.read_bytes(), sha256, where=str(folder))
    extra = sorted({_relative(folder, path) for path in _walk(folder)} - {entry.path for entry in entries})
    if extra:
        raise IntegrityError(f"{folder} holds files that its manifest does not name: {extra}. Remove them.")
    for entry in entries:
        verify_file(folder / entry.path, entry)
    return entries


def verify_file(path: Path, entry: Entry) -> None:
    """Check one file against its entry; raise IntegrityError naming it and both digests."""
    is_there = path.is_file() and not path.is_symlink()
    actual = file_sha256(path) if is_there else "nothing (no such file)"
    if actual != entry.sha256:
        raise (IntegrityError if is_there else ContentMissing)(
            f"{path} has sha256 {actual}, its manifest names {entry.sha256}. "
            "It was damaged or changed after it was stored; remove all of it and run the step that writes it again."
        )


def _describe_file(folder: Path, path: Path) -> Entry:
    relative = _relative(folder, path)
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnderstudyError(f"{path} is not a regular file and cannot be stored. Remove it.")
    if not _is_safe(relative):
        raise UnderstudyError(f"{path!r} has a name that cannot be stored everywhere. Rename it.")
    return Entry(path=relative, size=path.stat().st_size, sha256=file_sha256(path))


def _walk(folder: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        if links:
            raise UnderstudyError(f"{parent} holds links to folders {links}, which are not stored. Copy them instead.")
        found += [Path(parent) / name for name in files]
    return [path for path in found if path != folder / MANIFEST]


def _relative(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _is_safe(path: str) -> bool:
    """A path stays inside its folder, is the same on every system, and is not the manifest itself."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    parts = path.split("/")
    printable = all(character.isprintable() and character != "\\" for character in path)
    inside = all(part not in ("", ".", "..") for part in parts) and not PurePosixPath(path).is_absolute()
    return printable and inside and path != MANIFEST
