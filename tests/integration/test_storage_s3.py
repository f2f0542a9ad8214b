"""Storage against a real S3 server."""

from __future__ import annotations

import threading
import time

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ConnectionClosedError

from understudy.errors import IntegrityError, ServiceUnreachable
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
    assert store.put_folder(folder, "policy") == stored  # sizes differ, so the file is put again
    store.fetch(stored.uri, stored.sha256)
    client.delete_object(Bucket=s3_bucket, Key=f"policy/{stored.sha256}/manifest.json")
    with pytest.raises(IntegrityError, match="manifest.json does not exist"):
        open_store(None, tmp_path / "third").fetch(stored.uri, stored.sha256)


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
