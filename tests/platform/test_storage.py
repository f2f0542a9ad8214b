"""Content-addressed storage in a local folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from understudy.errors import ConfigError, ContentMissing, IntegrityError, ServiceUnreachable, UnderstudyError
from understudy.platform.manifest import Entry, manifest_bytes, parse_manifest
from understudy.platform.storage import first_line, open_store, without_secrets


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in/sub").mkdir(parents=True)
    (tmp_path / "in/a.txt").write_text("one")
    (tmp_path / "in/sub/b.txt").write_text("two")
    return tmp_path / "in"


@pytest.fixture
def store(tmp_path):
    return open_store(None, tmp_path / "work")


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_the_digest_of_the_manifest_names_the_place(store, folder, tmp_path):
    stored = store.put_folder(folder, "policy")
    manifest = Path(stored.uri) / "manifest.json"
    assert stored.uri == str(tmp_path / "work/store/policy" / stored.sha256)
    assert hashlib.sha256(manifest.read_bytes()).hexdigest() == stored.sha256
    assert json.loads(manifest.read_text())[1] == {
        "path": "sub/b.txt",
        "size": 3,
        "sha256": hashlib.sha256(b"two").hexdigest(),
    }


def test_equal_content_is_stored_once_and_not_written_again(store, folder, tmp_path):
    first = store.put_folder(folder, "policy")
    inode = (Path(first.uri) / "a.txt").stat().st_ino
    shutil.copytree(folder, tmp_path / "copy")
    assert store.put_folder(tmp_path / "copy", "policy") == first
    assert (Path(first.uri) / "a.txt").stat().st_ino == inode
    assert store.put_folder(Path(first.uri), "policy") == first


def age(folder: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then))


def test_pieces_expire_by_age_and_nothing_else_does(store, folder, tmp_path):
    old, young = (put(store, folder, "ingest-shards", text) for text in ("old", "young"))
    policy = put(store, folder, "policy", "old")
    (tmp_path / "work/store/ingest-shards/notes").mkdir()
    for path in (*(Path(item.uri) for item in (old, policy)), tmp_path / "work/store/ingest-shards/notes"):
        age(path, 15)
    age(Path(young.uri), 13.9)
    (found,) = store.expire("ingest-shards", 14, dry_run=True)
    assert (found.uri, found.num_bytes, round(found.age_days, 2)) == (
        old.uri,
        6 + Path(old.uri, "manifest.json").stat().st_size,
        15,
    )
    store.fetch(old.uri, old.sha256)
    assert [item.uri for item in store.expire("ingest-shards", 14)] == [old.uri]
    with pytest.raises(ContentMissing, match="missing or was never completed"):
        store.fetch(old.uri, old.sha256)
    assert everything(tmp_path / "work/store/ingest-shards") == sorted(
        ["notes", young.sha256, *(f"{young.sha256}/{name}" for name in ("a.txt", "manifest.json", "sub", "sub/b.txt"))]
    )
    store.fetch(policy.uri, policy.sha256)
    assert store.expire("ingest-shards", 14) == [] == open_store(None, tmp_path / "none").expire("ingest-shards", 14)
    for kind, days in (("policy", 14), ("ingest-shards", 0)):
        with pytest.raises(ValueError, match="does not expire"):
            store.expire(kind, days)


def test_a_piece_that_is_put_again_is_as_young_as_a_new_one(store, folder):
    stored = put(store, folder, "ingest-shards", "old")
    age(Path(stored.uri), 15)
    assert len(store.expire("ingest-shards", 14, dry_run=True)) == 1
    assert put(store, folder, "ingest-shards", "old") == stored
    assert store.expire("ingest-shards", 14) == []
    # One file that is new is enough.
    age(Path(stored.uri), 15)
    os.utime(Path(stored.uri) / "a.txt")
    assert store.expire("ingest-shards", 14) == []


def put(store, folder, kind, text):
    (folder / "a.txt").write_text(text)
    return store.put_folder(folder, kind)


def test_a_file_that_is_gone_is_told_from_one_that_changed(store, folder):
    stored = store.put_folder(folder, "policy")
    (Path(stored.uri) / "a.txt").unlink()
    with pytest.raises(ContentMissing, match=r"a\.txt has sha256 nothing \(no such file\)"):
        store.fetch(stored.uri, stored.sha256)
    (Path(stored.uri) / "a.txt").write_text("other")
    with pytest.raises(IntegrityError) as caught:
        store.fetch(stored.uri, stored.sha256)
    assert not isinstance(caught.value, ContentMissing)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda at: (at / "a.txt").write_text("onE"), r"a\.txt has sha256 [0-9a-f]{64}, its manifest names 7692c3ad"),
        (lambda at: (at / "a.txt").unlink(), r"a\.txt has sha256 nothing \(no such file\)"),
        (lambda at: (at / "extra.bin").touch(), r"files that its manifest does not name: \['extra.bin'\]"),
        (lambda at: (at / "manifest.json").unlink(), "has no manifest.json"),
        (lambda at: (at / "manifest.json").write_text("[]"), "manifest.json has sha256 4f53cda1"),
    ],
)
def test_damage_is_named_and_mended_by_storing_again(store, folder, damage, message):
    stored = store.put_folder(folder, "policy")
    for path in Path(stored.uri).rglob("*.*"):
        path.chmod(0o644)
    damage(Path(stored.uri))
    with pytest.raises(IntegrityError, match=message):
        store.fetch(stored.uri, stored.sha256)
    assert store.put_folder(folder, "policy") == stored
    assert store.fetch(stored.uri, stored.sha256) == Path(stored.uri)


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a//b", "./x", "", "a\\b", "a\nb", "manifest.json"])
def test_a_manifest_whose_paths_leave_the_folder_is_refused(path):
    data = manifest_bytes([Entry(path, 1, "0" * 64)])
    with pytest.raises(IntegrityError, match="unsafe or repeated paths"):
        parse_manifest(data, hashlib.sha256(data).hexdigest(), where="there")


def test_a_full_disk_leaves_nothing_behind(store, folder, tmp_path, monkeypatch):
    def full(source, target):
        Path(target).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(UnderstudyError, match="is full .No space left on device.* nothing was kept"):
        store.put_folder(folder, "policy")
    assert everything(tmp_path / "work/store/policy") == []


def test_what_cannot_be_stored_is_refused(store, folder, tmp_path):
    with pytest.raises(UnderstudyError, match="There is no folder"):
        store.put_folder(tmp_path / "nowhere", "policy")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnderstudyError, match="holds no files"):
        store.put_folder(tmp_path / "empty", "policy")
    (folder / "link").symlink_to("/etc")
    with pytest.raises(UnderstudyError, match=r"links to folders \['link'\]"):
        store.put_folder(folder, "policy")


def test_a_place_is_named_without_its_secrets():
    assert without_secrets("postgresql://me:secret@db:5432/mlflow?sslkey=x") == "postgresql://db:5432/mlflow"
    assert without_secrets("http://u:ge/heim@127.0.0.1:1") == "http://127.0.0.1:1"
    assert without_secrets("http://u:g?e#h@e/im@127.0.0.1:1/x?token=y") == "http://127.0.0.1:1/x"
    assert without_secrets("u:geheim@127.0.0.1:18301") == "127.0.0.1:18301"
    assert without_secrets("sqlite:////home/me@work/mlflow.db") == "sqlite:////home/me@work/mlflow.db"
    assert without_secrets("/data/me@work") == "/data/me@work"
    error = ValueError("Failed to parse: http://u:ge/heim@127.0.0.1:1, given\nby you")
    assert first_line(error) == "Failed to parse: http://127.0.0.1:1, given"
    assert first_line(ValueError()) == "ValueError"
    with pytest.raises(ConfigError, match="gs:// is not known"):
        open_store("gs://bucket/x", Path("."))
    with pytest.raises(ConfigError, match="'s3://bucket/x' is not of the form"):
        open_store("s3://key:secret@bucket/x", Path("."))


def test_an_unreachable_endpoint_is_named_within_seconds(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    store = open_store("s3://bucket/prefix", tmp_path)
    started = time.monotonic()
    with pytest.raises(
        ServiceUnreachable, match=r"s3://bucket/prefix.* at http://127.0.0.1:9 does not answer"
    ) as error:
        store.put_folder(folder, "policy")
    assert time.monotonic() - started < 20
    assert "secret" not in str(error.value) and "hidden" not in str(error.value)
