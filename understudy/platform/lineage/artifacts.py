"""Where a walk finds what it verifies: in the stores that the records name, or in a folder that was copied from them.

FOLDER/version.json · registered/ · lineage/<sha256>/ · policy/<sha256>/ · base/<sha256>/ · report/<sha256>/ ·
provenance/<sha256>/ · dvc/files/md5/… · source/
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from understudy.data.files import made
from understudy.errors import ConfigError, DataRefused, IntegrityError
from understudy.platform.datasets import materialise
from understudy.platform.manifest import (
    MANIFEST,
    describe_folder,
    manifest_sha256,
    parse_manifest,
    verify_file,
    verify_folder,
)
from understudy.platform.storage import open_store
from understudy.records import DatasetRef

if TYPE_CHECKING:
    from understudy.platform.registry import Registry, Version

VERSION_FILE = "version.json"
_META = "registered_model_meta"  # MLflow adds it to what it downloads


@dataclass(frozen=True)
class Identity:
    """Name, number and tags of a registered version."""

    name: str
    version: str
    tags: dict[str, str]


class Artifacts(Protocol):
    """Content by kind and digest; everything returned was verified, what differs raises IntegrityError."""

    @property
    def identity(self) -> Identity:
        """The version that is walked."""

    def folder(self, kind: str, uri: str, sha256: str) -> Path:
        """Return a stored folder."""

    def registered(self, sha256: str) -> Path:
        """Return the files that the registry serves."""

    def dataset(self, ref: DatasetRef) -> Path:
        """Return a dataset version."""

    def source_sha256(self, ref: DatasetRef) -> str | None:
        """Return the digest of the raw source now, None where it is not kept."""

    def base(self, uri: str, sha256: str) -> bool:
        """Verify what training began with; False where it is not kept."""


class StoredArtifacts:
    """The registry and the stores themselves; nothing is taken from a cache of before."""

    def __init__(self, registry: Registry, version: Version, storage_uri: str | None, scratch: Path) -> None:
        metrics = {"metrics": json.dumps(version.metrics)}
        self._registry, self._version, self.scratch = registry, version, scratch
        self._store = open_store(storage_uri or str(scratch / "none"), scratch)
        self.identity = Identity(version.name, version.version, metrics | version.tags)

    def folder(self, kind: str, uri: str, sha256: str) -> Path:
        """Return a stored folder."""
        return self._store.fetch(uri, sha256)

    def registered(self, sha256: str) -> Path:
        """Return the files that the registry serves."""
        return _verified_registered(self._registered, sha256)

    @cached_property  # a walk and a copy ask for the same
    def _registered(self) -> Path:
        return self._registry.download(self._version, made(self.scratch / "registered")).parent

    def dataset(self, ref: DatasetRef) -> Path:
        """Return a dataset version, read from its remote."""
        return materialise(ref, self.scratch)

    def source_sha256(self, ref: DatasetRef) -> str | None:
        """Return the digest of the raw source now, None where it is not kept."""
        return _source_sha256(ref.source)

    def base(self, uri: str, sha256: str) -> bool:
        """Verify what training began with; False where it is not kept."""
        if uri.startswith("s3://") or (Path(uri) / MANIFEST).is_file():
            self._store.fetch(uri, sha256)
            return True
        return _verify_plain(Path(uri).expanduser(), sha256)


class CopiedArtifacts:
    """A folder of copies; needs no registry, no store and no network."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root, self.scratch = root, scratch
        self.identity = _read_identity(root / VERSION_FILE)

    def folder(self, kind: str, uri: str, sha256: str) -> Path:
        """Return a copied folder."""
        verify_folder(self.root / kind / sha256, sha256)
        return self.root / kind / sha256

    def registered(self, sha256: str) -> Path:
        """Return the copy of the files that the registry serves."""
        return _verified_registered(self.root / "registered", sha256)

    def dataset(self, ref: DatasetRef) -> Path:
        """Return a dataset version from the copy of its remote."""
        uri = f"{self.root.absolute()}/dvc/files/md5/{ref.md5[:2]}/{ref.md5[2:]}"
        return materialise(dataclasses.replace(ref, uri=uri), self.scratch)

    def source_sha256(self, ref: DatasetRef) -> str | None:
        """Return the digest of the copied source, None where it was not kept."""
        name = _source_name(ref.source)
        return _source_sha256(str(self.root / "source" / name)) if (self.root / "source").is_dir() else None

    def base(self, uri: str, sha256: str) -> bool:
        """Verify the copy of what training began with; False where it was not kept."""
        folder = self.root / "base" / sha256
        if (folder / MANIFEST).is_file():
            verify_folder(folder, sha256)
            return True
        return _verify_plain(folder, sha256)


def copy_artifacts(artifacts: StoredArtifacts, lineage: Any, target: Path) -> None:
    """Copy everything that a walk reads into a new folder, for verification elsewhere.

    Raises:
        ConfigError: the folder exists already.
        IntegrityError: something is damaged at its origin.
    """
    if target.exists():
        raise ConfigError(f"{target} exists already; copies only go into a new folder. Name another or remove it.")
    tags = artifacts.identity.tags
    kept = [("lineage", tags["lineage_uri"], tags["lineage_sha256"])]
    kept += [("policy", item.uri, item.sha256) for item in lineage.chain]
    kept.append(("report", lineage.report["uri"], lineage.report["sha256"]))
    if tags.get("provenance_sha256"):
        kept.append(("provenance", tags["provenance_uri"], tags["provenance_sha256"]))
    base = lineage.base
    if base["sha256"] and artifacts.base(base["uri"], base["sha256"]):
        kept.append(("base", base["uri"], base["sha256"]))
    for kind, uri, sha256 in kept:
        plain = kind == "base" and not uri.startswith("s3://") and not (Path(uri) / MANIFEST).is_file()
        folder = Path(uri).expanduser() if plain else artifacts.folder(kind, uri, sha256)
        shutil.copytree(folder, target / kind / sha256, copy_function=shutil.copyfile)
    registered = artifacts.registered(tags["registered_sha256"])
    ignored = shutil.ignore_patterns(_META)
    shutil.copytree(registered, target / "registered", copy_function=shutil.copyfile, ignore=ignored)
    for item in lineage.datasets:
        _copy_dataset(artifacts, DatasetRef.from_json(item), target)
    write_identity(artifacts.identity, target / VERSION_FILE)


def write_identity(identity: Identity, path: Path) -> None:
    """Write name, number and tags with their digest."""
    content = dataclasses.asdict(identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_sealed(content))


def _read_identity(path: Path) -> Identity:
    try:
        data = path.read_bytes()
        content = json.loads(data)
        identity = Identity(content["name"], content["version"], dict(content["tags"]))
    except FileNotFoundError as error:
        raise ConfigError(f"There is no {path}. `understudy model verify NAME --copy FOLDER` makes it.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{path} is damaged: {error!r}. Copy the version again.") from error
    if data != _sealed(dataclasses.asdict(identity)):
        raise IntegrityError(f"{path} was changed after it was written. Copy the version again.")
    return identity


def _sealed(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True)
    return (json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}, indent=1) + "\n").encode()


def _copy_dataset(artifacts: StoredArtifacts, ref: DatasetRef, target: Path) -> None:
    folder = artifacts.dataset(ref)
    objects = target / "dvc/files/md5"
    listing = json.loads((folder / ".dir").read_bytes())
    for name, md5 in [(".dir", ref.md5), *((item["relpath"], item["md5"]) for item in listing)]:
        (objects / md5[:2]).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, objects / md5[:2] / md5[2:])
    source = Path(ref.source).expanduser()
    copy = target / "source" / _source_name(ref.source)
    if source.is_dir():
        shutil.copytree(source, copy, copy_function=shutil.copyfile)
    elif source.is_file():
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, copy)


def _source_name(source: str) -> str:
    return Path(source.rstrip("/")).name


def _source_sha256(source: str) -> str | None:
    from understudy.platform.steps.ingest import source_sha256

    if not source.startswith("s3://") and not Path(source).expanduser().exists():
        return None
    try:
        return source_sha256(source)
    except (ConfigError, DataRefused) as error:
        raise IntegrityError(f"The source {source} cannot be read as it was: {error}") from error


def _verify_plain(folder: Path, sha256: str) -> bool:
    if not folder.is_dir():
        return False
    found = manifest_sha256(describe_folder(folder))
    if found != sha256:
        raise IntegrityError(f"{folder} has the digest {found}, the record names {sha256}. It was changed since.")
    return True


def _verified_registered(folder: Path, sha256: str) -> Path:
    """Verify the registry's files; what MLflow writes beside them when it hands them out does not count."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise IntegrityError(f"{folder} has no {MANIFEST}; the registry's copy is incomplete. Register it again.")
    entries = parse_manifest(manifest.read_bytes(), sha256, str(folder))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if extra := sorted(files - {entry.path for entry in entries} - {MANIFEST, _META}):
        raise IntegrityError(f"{folder} holds files that its manifest does not name: {extra}. Remove them.")
    for entry in entries:
        verify_file(folder / entry.path, entry)
    return folder
