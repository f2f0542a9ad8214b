"""Storage against a real S3 server."""

from __future__ import annotations

import threading
import time

import boto3
import pytest

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
