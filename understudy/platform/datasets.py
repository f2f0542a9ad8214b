"""Dataset versions in DVC: publish a folder to a remote, bring a version back, verify it, commit its pointer.

A remote is a folder or `s3://bucket/prefix` in DVC's own layout (`files/md5/ab/cdef…`), so `dvc pull` reads it too.
A version is its `.dir` object: a listing of names and digests whose own MD5 is the version's name. Each
publication has its own throw-away DVC workspace, because two processes must never share one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.data.demonstrations import SPLITS, iterate_split
from understudy.data.files import is_full_disk, temporary_folder, told_when_full, write_atomically
from understudy.errors import ConfigError, IntegrityError, ServiceUnreachable, UnderstudyError
from understudy.platform.git import git
from understudy.platform.object_storage import Location, reachable
from understudy.platform.workdir import prepare
from understudy.records import DatasetRef

RECORD_NAME = "dataset.json"
POINTER_NAME = "demonstrations.dvc"
_OUT_NAME = "demonstrations"


@dataclass(frozen=True)
class Published:
    """A version in the remote: its MD5 (ends in ".dir"), content-addressed URI, size, and DVC pointer file."""

    uri: str
    md5: str
    num_bytes: int
    num_files: int
    pointer: Path
    num_uploaded: int


def default_remote(workdir: Path) -> str:
    """Return UNDERSTUDY_DVC_REMOTE, else the folder `dvc-remote` in the working directory."""
    remote = os.environ.get("UNDERSTUDY_DVC_REMOTE") or str(workdir / "dvc-remote")
    return remote.rstrip("/") if remote.startswith("s3://") else str(Path(remote).expanduser().absolute())


def refuse_braces(workdir: Path, remote: str) -> None:
    """Raise ConfigError for a working directory or remote that DVC fails on: it takes braces for fields to fill in."""
    for place, setting in ((str(workdir), "--workdir DIR"), (remote, "storage.dvc_remote or UNDERSTUDY_DVC_REMOTE")):
        if "{" in place or "}" in place:
            raise ConfigError(f"DVC cannot work in {place!r}, whose name has a brace. Name another with {setting}.")


def publish(folder: Path, workdir: Path, remote: str | None = None) -> Published:
    """Add `folder` with DVC and push it; content that the remote has is not uploaded again.

    Raises:
        ConfigError: the remote is malformed or cannot be written, or DVC cannot work in it or in the working directory.
        ServiceUnreachable: the remote does not answer; names its URI.
        UnderstudyError: DVC refused, or the disk is full.
    """
    remote = remote or default_remote(workdir)
    refuse_braces(workdir, remote)
    if remote.startswith("s3://"):
        location = Location.parse(remote)
        with reachable(location) as client:
            client.head_bucket(Bucket=location.bucket)
    with told_when_full(workdir), temporary_folder(workdir) as scratch:
        output, num_uploaded, pointer = _add_and_push(folder, scratch, remote)
        md5 = str(output.hash_info.value)
        write_atomically(workdir / POINTER_NAME, pointer)
    uri = f"{remote}/files/md5/{md5[:2]}/{md5[2:]}"
    return Published(uri, md5, int(output.meta.size), int(output.meta.nfiles), workdir / POINTER_NAME, num_uploaded)


def _add_and_push(folder: Path, scratch: Path, remote: str) -> tuple[Any, int, bytes]:
    os.environ["DVC_NO_ANALYTICS"] = "1"
    os.environ["DVC_SITE_CACHE_DIR"] = str(scratch / "site")
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    settings = _workspace(scratch, remote)
    shutil.copytree(folder, scratch / _OUT_NAME)
    try:
        with Repo(str(scratch), config=settings) as repo:
            (stage,) = repo.add(str(scratch / _OUT_NAME))
            num_uploaded = int(repo.push())
    except (DvcException, OSError) as error:
        if is_full_disk(error):
            raise
        cause = error.__cause__ or error
        local = ConfigError if isinstance(error, OSError) else UnderstudyError
        kind = ServiceUnreachable if remote.startswith("s3://") else local
        raise kind(
            f"DVC could not push to {remote}: {cause}. Check the remote and your rights on it, then run it again."
        ) from error
    return stage.outs[0], num_uploaded, (scratch / POINTER_NAME).read_bytes()


def _workspace(folder: Path, remote: str) -> dict[str, dict[str, Any]]:
    """Make of `folder` what `dvc init --no-scm` would, and return the settings; neither prints nor asks Git.

    The settings never pass through DVC's file, whose comments, lists and interpolation have no escape for each name
    that a folder can have.
    """
    (folder / ".dvc" / "tmp").mkdir(parents=True)
    (folder / ".dvc" / "config").touch()
    store = {"url": remote}
    if remote.startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        store |= {"endpointurl": endpoint} if endpoint else {}
        store["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return {
        "core": {"no_scm": True, "analytics": False, "check_update": False, "remote": "store"},
        "cache": {"type": ["reflink", "hardlink", "copy"]},
        "remote": {"store": store},
    }


def materialise(ref: DatasetRef, workdir: Path) -> Path:
    """Return a local folder with the version's files, each checked against the version's listing.

    A folder that is there is checked and used; a damaged one is an error, not silently replaced.

    Raises:
        ConfigError: it has to be brought, and the working directory cannot be written.
        IntegrityError: a file or the listing does not have the digest it should have; names both.
        ServiceUnreachable: the remote does not answer.
    """
    folder = workdir / "datasets" / ref.md5.removesuffix(".dir")
    if folder.is_dir():
        try:
            listing = (folder / ".dir").read_bytes()
        except OSError as error:
            raise _not_as_pulled(folder / ".dir", error) from error
        _verify_folder(folder, _listing(listing, ref.md5, str(folder / ".dir")))
        return folder
    prepare(workdir)  # not before: what is there can be checked where nothing may be written
    with told_when_full(workdir), temporary_folder(workdir) as scratch:
        target = scratch / "dataset"
        target.mkdir()
        objects = ref.uri.removesuffix(f"/{ref.md5[:2]}/{ref.md5[2:]}")
        if objects == ref.uri:
            raise IntegrityError(f"The dataset's URI {ref.uri} does not end in its hash {ref.md5}. Run ingest again.")
        with _reader(objects) as fetch:
            fetch(ref.md5, target / ".dir")
            files = _listing((target / ".dir").read_bytes(), ref.md5, ref.uri)
            for name, md5 in files.items():
                fetch(md5, target / name)
        _verify_folder(target, files)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process brought the same version first
                raise
    return folder


@contextmanager
def _reader(objects: str) -> Iterator[Any]:
    """Give a function that brings the object with an MD5 from `<remote>/files/md5` into a file."""
    if not objects.startswith("s3://"):
        yield lambda md5, target: _copy(Path(objects) / md5[:2] / md5[2:], target)
        return
    from botocore.exceptions import ClientError

    location = Location.parse(objects)
    with reachable(location) as client:

        def download(md5: str, target: Path) -> None:
            try:
                client.download_file(location.bucket, location.key(f"{md5[:2]}/{md5[2:]}"), str(target))
            except ClientError as error:
                if str(error.response.get("Error", {}).get("Code")) not in ("404", "NoSuchKey"):
                    raise
                raise _lost(f"{objects}/{md5[:2]}/{md5[2:]}") from error

        yield download


def _copy(origin: Path, target: Path) -> None:
    try:
        shutil.copyfile(origin, target)
    except FileNotFoundError as error:
        raise _lost(str(origin)) from error


def _lost(place: str) -> IntegrityError:
    return IntegrityError(f"{place} is missing from the dataset's remote. Ingest the same source again to restore it.")


def _listing(data: bytes, md5: str, where: str) -> dict[str, str]:
    """Return file name to MD5 from a `.dir` object whose own digest is checked."""
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if found != md5.removesuffix(".dir"):
        raise IntegrityError(f"{where} has MD5 {found}, expected {md5.removesuffix('.dir')}. Fetch the version again.")
    try:
        files = {str(item["relpath"]): str(item["md5"]) for item in json.loads(data)}
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{where} lists no files: {error!r}. It was not written by ingest.") from error
    if unsafe := [name for name in files if "/" in name or name.startswith(".")]:
        raise IntegrityError(f"{where} lists {unsafe}, which no dataset version has. It was not written by ingest.")
    return files


def _verify_folder(folder: Path, files: dict[str, str]) -> None:
    for name, expected in files.items():
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        except OSError as error:
            raise _not_as_pulled(folder / name, error) from error
        if found != expected:
            raise IntegrityError(
                f"{folder / name} has MD5 {found}, its version lists {expected}. "
                f"Delete {folder} and run `understudy data pull`."
            )


def _not_as_pulled(path: Path, error: OSError) -> IntegrityError:
    return IntegrityError(
        f"{path} cannot be read: {error.strerror}. Delete {path.parent} and run `understudy data pull`."
    )


def read_record(workdir: Path) -> DatasetRef:
    """Return the record of the last dataset version ingested in this working directory.

    Raises:
        ConfigError: there is none yet.
        IntegrityError: it is damaged.
    """
    path = workdir / RECORD_NAME
    if not path.is_file():
        raise ConfigError(f"No dataset version in {str(workdir)!r} yet. Run `understudy data ingest SOURCE`.")
    return _record_in(path)


def _record_in(path: Path) -> DatasetRef:
    try:
        return DatasetRef.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, IntegrityError) as error:
        told = str(error).rstrip(".")
        raise IntegrityError(f"{path} is not a dataset record: {told}. Delete it and run ingest again.") from error


def write_record(ref: DatasetRef, workdir: Path) -> None:
    """Remember the version as the working directory's last one, and its own parent for when it comes again."""
    data = json.dumps(ref.to_json(), indent=1).encode() + b"\n"
    write_atomically(_version_record(workdir, ref.md5), data)
    write_atomically(workdir / RECORD_NAME, data)


def parent_of(md5: str, workdir: Path) -> str | None:
    """Return the version that `md5` followed when it was first ingested here, or follows now."""
    known = _version_record(workdir, md5)
    if known.is_file():
        return _record_in(known).parent
    return read_record(workdir).md5 if (workdir / RECORD_NAME).is_file() else None


def _version_record(workdir: Path, md5: str) -> Path:
    return workdir / "datasets" / f"{md5.removesuffix('.dir')}.json"


def verify(ref: DatasetRef, workdir: Path) -> dict[str, int]:
    """Check the digests of a version's files and count the rows of each split.

    Raises:
        IntegrityError: naming what differs and both values.
    """
    folder = materialise(ref, workdir)
    counts = {split: sum(1 for _ in iterate_split(folder, split)) for split in SPLITS}
    if counts != ref.splits:
        raise IntegrityError(f"{folder} holds {counts} rows, its record says {ref.splits}. Run ingest again.")
    return counts


def commit(ref: DatasetRef, workdir: Path, folder: Path) -> tuple[Path, str]:
    """Write the DVC pointer into `folder` and commit it, and nothing else, to the Git repository around it.

    Returns:
        The pointer file and the commit that holds it.

    Raises:
        ConfigError: no such folder, no Git repository, or Git refused.
        IntegrityError: the working directory has no pointer to this version.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"There is no folder {str(folder)!r} for the pointer. Make it, or name another with --folder."
        )
    pointer = (folder / POINTER_NAME).absolute()
    _git(folder, "rev-parse", "--show-toplevel")
    try:
        content = (workdir / POINTER_NAME).read_bytes()
    except OSError as error:
        raise IntegrityError(
            f"{workdir / POINTER_NAME} cannot be read: {error.strerror}. Run ingest again, which writes it."
        ) from error
    if ref.md5.encode() not in content:
        raise IntegrityError(f"{workdir / POINTER_NAME} does not name the version {ref.md5}. Run ingest again.")
    write_atomically(pointer, content)
    _git(folder, "add", "--", str(pointer))
    if _git(folder, "status", "--porcelain", "--", str(pointer)):
        message = f"Dataset {ref.md5.removesuffix('.dir')[:12]}: {ref.rows} demonstrations"
        _git(folder, "commit", "--quiet", "-m", message, "--", str(pointer))
    return pointer, _git(folder, "log", "-1", "--format=%H", "--", str(pointer))


def _git(folder: Path, *arguments: str) -> str:
    done = git(folder, *arguments)
    if done.returncode:
        raise ConfigError(
            f"`git {arguments[0]}` failed in {str(folder)!r}: {done.stderr.strip()}. "
            "Run inside a Git repository whose author name and e-mail are set."
        )
    return done.stdout.strip()
