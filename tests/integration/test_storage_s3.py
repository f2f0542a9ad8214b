"""Storage against a real S3 server."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ConnectionClosedError

from understudy.errors import ContentMissing, IntegrityError, ServiceUnreachable
from understudy.platform import object_storage
from understudy.platform.storage import open_store


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "model/sub").mkdir(parents=True)
    (tmp_path / "model/big.bin").write_bytes(bytes(range(256)) * 4 * 20 * 1024)  # 20 MiB: two parts
    (tmp_path / "model/sub/kleiner Name ü.txt").write_text("x")
    return tmp_path / "model"


def keys_and_times(bucket):
    listed = boto3.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])
    return {item["Key"]: item["LastModified"] for item in listed}


def test_round_trip_uploads_equal_content_once(s3_bucket, folder, tmp_path):
    store = open_store(f"s3://{s3_bucket}/prefix", tmp_path / "work")
    store.check()
    stored = store.put_folder(folder, "policy")
    before = keys_and_times(s3_bucket)
    time.sleep(1.1)
    assert store.put_folder(folder, "policy") == stored
    assert keys_and_times(s3_bucket) == before
    assert stored.uri == f"s3://{s3_bucket}/prefix/policy/{stored.sha256}"
    got = open_store(None, tmp_path / "other").fetch(stored.uri, stored.sha256)
    assert (got / "big.bin").read_bytes() == (folder / "big.bin").read_bytes()
    assert (got / "sub/kleiner Name ü.txt").read_text() == "x"


def test_a_folder_without_manifest_or_with_a_changed_file_is_refused(s3_bucket, folder, tmp_path):
    store = open_store(f"s3://{s3_bucket}", tmp_path / "work")
    stored = store.put_folder(folder, "policy")
    client = boto3.client("s3")
    client.put_object(Bucket=s3_bucket, Key=f"policy/{stored.sha256}/big.bin", Body=b"other")
    with pytest.raises(IntegrityError, match=r"big\.bin has sha256 [0-9a-f]{64}, its manifest names [0-9a-f]{64}"):
        store.fetch(stored.uri, stored.sha256)
    assert not list((tmp_path / "work/store/policy").iterdir())
    assert store.put_folder(folder, "policy") == stored  # digests differ, so the file is put again
    store.fetch(stored.uri, stored.sha256)
    client.delete_object(Bucket=s3_bucket, Key=f"policy/{stored.sha256}/manifest.json")
    with pytest.raises(IntegrityError, match="manifest.json does not exist"):
        open_store(None, tmp_path / "third").fetch(stored.uri, stored.sha256)


@pytest.mark.parametrize("name", ["big.bin", "sub/kleiner Name ü.txt", "manifest.json"])
def test_an_object_of_equal_size_and_other_bytes_is_put_again_and_no_other(s3_bucket, folder, tmp_path, calls, name):
    store = open_store(f"s3://{s3_bucket}", tmp_path / "work")
    stored = store.put_folder(folder, "policy")
    client, key = boto3.client("s3"), f"policy/{stored.sha256}/{name}"
    size = client.head_object(Bucket=s3_bucket, Key=key)["ContentLength"]
    client.put_object(Bucket=s3_bucket, Key=key, Body=b"?" * size)
    with pytest.raises(IntegrityError, match=f"{name} has sha256 [0-9a-f]{{64}}, its (manifest|record) names"):
        store.fetch(stored.uri, stored.sha256)
    calls.clear()
    assert store.put_folder(folder, "policy") == stored
    assert {given["Key"] for operation, given in calls if operation in ("PutObject", "UploadPart")} == {key}
    store.fetch(stored.uri, stored.sha256)


def test_a_damaged_cache_is_fetched_again(s3_bucket, folder, tmp_path):
    store = open_store(f"s3://{s3_bucket}", tmp_path / "work")
    stored = store.put_folder(folder, "policy")
    got = store.fetch(stored.uri, stored.sha256)
    (got / "big.bin").write_bytes(b"flipped")
    assert (store.fetch(stored.uri, stored.sha256) / "big.bin").stat().st_size == 20 << 20


def test_many_writers_of_the_same_content_agree(s3_bucket, folder, tmp_path):
    (folder / "big.bin").unlink()
    results, errors = [], []

    def put(number):
        try:
            results.append(open_store(f"s3://{s3_bucket}", tmp_path / f"w{number}").put_folder(folder, "policy"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(set(results)) == 1 and len(results) == 6


def test_a_missing_bucket_is_named(s3_bucket, tmp_path):
    with pytest.raises(ServiceUnreachable, match=r"s3://no-such-bucket/x at http://127.0.0.1:\d+ refused HeadBucket"):
        open_store("s3://no-such-bucket/x", tmp_path).check()


def put(store, folder, kind, text):
    (folder / "big.bin").write_text(text)
    return store.put_folder(folder, kind)


def test_pieces_expire_by_the_age_of_their_newest_object(s3_bucket, folder, tmp_path, monkeypatch):
    store, client = open_store(f"s3://{s3_bucket}/prefix", tmp_path / "work"), boto3.client("s3")
    old, again = (put(store, folder, "ingest-shards", text) for text in ("old", "again"))
    policy = put(store, folder, "policy", "old")
    client.put_object(Bucket=s3_bucket, Key="prefix/ingest-shards-of-another", Body=b"")
    store.fetch(old.uri, old.sha256)
    assert store.expire("ingest-shards", 1) == []
    time.sleep(2)
    between = time.time()
    time.sleep(6)  # whole seconds in listings, and what a busy machine takes until the bucket's clock is read
    young = put(store, folder, "ingest-shards", "young")
    assert put(store, folder, "ingest-shards", "again") == again
    days = (time.time() - between) / 24 / 3600
    listed = store.expire("ingest-shards", days, dry_run=True)
    cached = tmp_path / "work/store/ingest-shards" / old.sha256
    assert [item.uri for item in listed] == [old.uri, str(cached)] and cached.exists()
    size = sum(
        client.head_object(Bucket=s3_bucket, Key=key)["ContentLength"]
        for key in keys_and_times(s3_bucket)
        if f"ingest-shards/{old.sha256}" in key
    )
    assert listed[0].num_bytes == size and days < listed[0].age_days < 0.1
    days = (time.time() - between) / 24 / 3600
    assert [item.uri for item in store.expire("ingest-shards", days)] == [old.uri, str(cached)]
    assert not [key for key in keys_and_times(s3_bucket) if old.sha256 in key and "ingest-shards" in key]
    with pytest.raises(ContentMissing, match="was never completed or was deleted"):
        store.fetch(old.uri, old.sha256)
    for kept in (again, young, policy):
        store.fetch(kept.uri, kept.sha256)
    assert "prefix/ingest-shards-of-another" in keys_and_times(s3_bucket)


def test_the_lifecycle_rules_of_the_docs_are_taken_and_name_what_can_be_made_again_alone(s3_bucket, folder, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    (told,) = [block for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL) if "Expiration" in block]
    client = boto3.client("s3")
    client.put_bucket_lifecycle_configuration(Bucket=s3_bucket, LifecycleConfiguration=json.loads(told))
    rules = client.get_bucket_lifecycle_configuration(Bucket=s3_bucket)["Rules"]
    assert [(rule["Status"], rule["Expiration"]["Days"]) for rule in rules] == [("Enabled", 14)] * 2
    prefixes = tuple(rule["Filter"]["Prefix"] for rule in rules)
    store = open_store(f"s3://{s3_bucket}/store", tmp_path / "work")
    keys = []
    for kind in ("ingest-shards", "checkpoints", "policy"):
        put(store, folder, kind, "text")
        keys += [key.startswith(prefixes) for key in keys_and_times(s3_bucket) if f"/{kind}/" in key]
    assert keys == [True] * 6 + [False] * 3


def test_a_piece_that_is_put_while_it_is_about_to_be_deleted_stays(s3_bucket, folder, tmp_path, monkeypatch):
    store = open_store(f"s3://{s3_bucket}", tmp_path / "work")
    stored = put(store, folder, "ingest-shards", "text")
    listed = {stored.sha256: (1e9, 1)}
    monkeypatch.setattr(object_storage, "_ages_and_sizes", lambda *_: listed | {"0" * 64: (1e9, 1)})
    assert store.expire("ingest-shards", 1) == []
    store.fetch(stored.uri, stored.sha256)


def test_more_objects_than_one_request_deletes(s3_bucket, tmp_path, monkeypatch, calls):
    monkeypatch.setattr(object_storage, "_KEYS_A_REQUEST", 3)
    (tmp_path / "many").mkdir()
    for index in range(7):
        (tmp_path / "many" / f"{index}").write_text("x")
    store = open_store(f"s3://{s3_bucket}", tmp_path / "work")
    stored = store.put_folder(tmp_path / "many", "ingest-shards")
    time.sleep(3)
    assert [item.uri for item in store.expire("ingest-shards", 1 / 24 / 3600)] == [stored.uri]
    deletions = [(name, given) for name, given in calls if name.startswith("Delete")]
    assert [name for name, _ in deletions] == ["DeleteObject", "DeleteObjects", "DeleteObjects", "DeleteObjects"]
    assert deletions[0][1]["Key"].endswith("manifest.json") and keys_and_times(s3_bucket) == {}


def test_objects_that_may_not_be_deleted_are_named(s3_bucket, folder, tmp_path, monkeypatch):
    store = open_store(f"s3://{s3_bucket}", tmp_path / "work")
    put(store, folder, "ingest-shards", "text")
    time.sleep(3)
    send = BaseClient._make_api_call

    def denied(client, operation, parameters):
        if operation == "DeleteObjects":
            return {"Errors": [{"Key": parameters["Delete"]["Objects"][0]["Key"], "Code": "AccessDenied"}]}
        return send(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", denied)
    with pytest.raises(ServiceUnreachable, match=r"did not delete 1 objects .*big\.bin \(AccessDenied\).*may delete"):
        store.expire("ingest-shards", 1 / 24 / 3600)


@pytest.fixture
def calls(monkeypatch):
    """Operations that any client sends, with their parameters."""
    made, send = [], BaseClient._make_api_call

    def record(client, operation, parameters):
        made.append((operation, parameters))
        return send(client, operation, parameters)

    monkeypatch.setattr(BaseClient, "_make_api_call", record)
    return made


def test_a_large_file_goes_in_parts_each_with_its_digest(s3_bucket, folder, tmp_path, calls):
    stored = open_store(f"s3://{s3_bucket}", tmp_path / "work").put_folder(folder, "policy")
    parts = [given for operation, given in calls if operation == "UploadPart"]
    assert sorted((part["PartNumber"], part["ChecksumAlgorithm"]) for part in parts) == [(1, "SHA256"), (2, "SHA256")]
    assert [operation for operation, _ in calls].count("CompleteMultipartUpload") == 1
    head = boto3.client("s3").head_object(Bucket=s3_bucket, Key=f"policy/{stored.sha256}/big.bin")
    assert head["ContentLength"] == 20 << 20 and head["ETag"].strip('"').endswith("-2")
    small = [
        given["ChecksumAlgorithm"] for operation, given in calls if operation == "PutObject" and "ü" in given["Key"]
    ]
    assert small == ["SHA256"]


def test_an_upload_that_breaks_in_its_second_part_is_never_taken_for_content(s3_bucket, folder, tmp_path, monkeypatch):
    send = BaseClient._make_api_call

    def breaks(client, operation, parameters):
        if operation == "UploadPart" and parameters["PartNumber"] == 2:
            raise ConnectionClosedError(endpoint_url="http://storage.example")
        return send(client, operation, parameters)

    store = open_store(f"s3://{s3_bucket}", tmp_path / "work")
    with monkeypatch.context() as broken:
        broken.setattr(BaseClient, "_make_api_call", breaks)
        with pytest.raises(ServiceUnreachable, match="run the same command again"):
            store.put_folder(folder, "policy")
    assert not [key for key in keys_and_times(s3_bucket) if key.endswith(("manifest.json", "big.bin"))]
    assert not boto3.client("s3").list_multipart_uploads(Bucket=s3_bucket).get("Uploads")
    stored = store.put_folder(folder, "policy")
    got = open_store(None, tmp_path / "other").fetch(stored.uri, stored.sha256)
    assert (got / "big.bin").read_bytes() == (folder / "big.bin").read_bytes()
