"""Demonstrations read from a bucket and versions kept in one, against a real S3 server."""

from __future__ import annotations

import gzip
import io
import json
import random
import time
from pathlib import Path
from typing import Any

import boto3
import pyarrow
import pyarrow.parquet
import pytest

from understudy.config import DataConfig
from understudy.data.ingest import merge_shards
from understudy.data.shards import ingest_shard, plan_shards
from understudy.errors import ConfigError, IntegrityError, ServiceUnreachable
from understudy.platform import datasets, s3_sources
from understudy.platform.steps import ingest as step
from understudy.platform.steps import ingest_shards
from understudy.platform.storage import open_store

pytestmark = pytest.mark.integration

ROWS = [{"prompt": f"p{index}", "response": f"r{index}"} for index in range(90)]


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def config(source: str) -> DataConfig:
    return DataConfig(
        source=source,
        max_prompt_chars=100,
        max_response_chars=100,
        max_bad_fraction=0.05,
        near_duplicate_threshold=None,
        splits={"validation": 0.1, "test": 0.1},  # type: ignore[arg-type]
        unicode_form="keep",
        fields=None,
    )


@pytest.fixture
def filled(s3_bucket: str) -> str:
    """The rows over three kinds of files, beside a key that only begins alike."""
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS[60:]), table)
    objects = {
        "data/a.jsonl": jsonl(ROWS[:30]),
        "data/b.jsonl.gz": gzip.compress(jsonl(ROWS[30:60])),
        "data/c.parquet": table.getvalue(),
        "data/README.md": b"about",
        "database.jsonl": b"broken",
    }
    for key, body in objects.items():
        boto3.client("s3").put_object(Bucket=s3_bucket, Key=key, Body=body)
    return s3_bucket


def test_a_prefix_gives_the_version_that_one_local_file_gives(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_sources, "_RANGE_BYTES", 500)
    remote = f"s3://{filled}/dvc"
    (tmp_path / "one.jsonl").write_bytes(jsonl(ROWS))
    local = step.ingest_source(config(str(tmp_path / "one.jsonl")), tmp_path / "a", remote=remote)
    stored = step.ingest_source(config(f"s3://{filled}/data"), tmp_path / "b", remote=remote)
    assert stored.summary.ignored_files == ["data/README.md"]
    assert (stored.ref.md5, stored.ref.uri, stored.ref.rows) == (local.ref.md5, local.ref.uri, 90)
    assert (local.num_uploaded, stored.num_uploaded) == (5, 0)
    assert datasets.verify(stored.ref, tmp_path / "c") == stored.ref.splits


@pytest.mark.parametrize("key", ["lines/one.jsonl", "tables/one.parquet"])
def test_one_object_is_read_in_shards(
    key: str, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_sources, "_RANGE_BYTES", 500)
    rows = [{"prompt": f"p{index}", "response": random.Random(index).randbytes(40).hex()} for index in range(90)]
    rows[70]["response"] = ""
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table, row_group_size=10)
    body = table.getvalue() if key.endswith("parquet") else jsonl(rows).replace(b"\n", b"\r\n")[:-2]
    boto3.client("s3").put_object(Bucket=s3_bucket, Key=key, Body=body)
    settings, workdir = config(f"s3://{s3_bucket}/{key}"), tmp_path / "shards"
    alone = step.ingest_source(settings, tmp_path / "alone")
    listing = step.list_any(settings.source)
    for shard in plan_shards(listing, 4):
        report = ingest_shard(listing, shard, settings, workdir / f"{shard.index}")
        assert report.rows < 60
    with merge_shards(listing, list(workdir.iterdir()), settings, tmp_path / "w") as merged:
        found = step.publish_ingested(merged, settings, tmp_path / "w", "")
    assert found.ref.md5 == alone.ref.md5 and found.summary.to_json() == alone.summary.to_json()
    assert found.quarantine.read_bytes() == alone.quarantine.read_bytes()
    assert json.loads(found.quarantine.read_bytes())["line"] == 71


def test_a_merge_outlives_the_expiry_of_its_shards(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_STORAGE_URI", f"s3://{filled}/store")
    monkeypatch.setenv("UNDERSTUDY_DVC_REMOTE", f"s3://{filled}/dvc")
    settings = config(f"s3://{filled}/data")
    alone = step.ingest_source(settings, tmp_path / "alone")
    given = {"data": settings.model_dump()}

    def in_pod(name: str) -> None:
        monkeypatch.setenv("UNDERSTUDY_WORKDIR", str(tmp_path / name))

    refs = []
    for index in range(3):
        in_pod(f"shard-{index}")
        refs.append(ingest_shards.run_shard(given, index, 3))
    assert all(ref.uri == f"s3://{filled}/store/ingest-shards/{ref.sha256}" for ref in refs)
    texts = [json.dumps(ref.to_json()) for ref in refs]
    in_pod("merge")
    assert ingest_shards.run_merge(given, texts).md5 == alone.ref.md5
    time.sleep(3)
    store = open_store(f"s3://{filled}/store", tmp_path / "sweep")
    assert len(store.expire("ingest-shards", 1 / 24 / 3600)) == 3
    in_pod("retry")
    assert ingest_shards.run_merge(given, texts).md5 == alone.ref.md5
    # As a lifecycle rule does, object by object.
    in_pod("shard-again")
    assert ingest_shards.run_shard(given, 1, 3) == refs[1]
    boto3.client("s3").delete_object(Bucket=filled, Key=f"store/ingest-shards/{refs[1].sha256}/shard.json")
    in_pod("partly")
    assert ingest_shards.run_merge(given, texts).md5 == alone.ref.md5
    # What is there and is not what the record says is refused as ever.
    in_pod("shard-third")
    ingest_shards.run_shard(given, 1, 3)
    boto3.client("s3").put_object(Bucket=filled, Key=f"store/ingest-shards/{refs[1].sha256}/shard.json", Body=b"{}")
    in_pod("damaged")
    with pytest.raises(IntegrityError, match=r"shard\.json has sha256"):
        ingest_shards.run_merge(given, texts)


def test_what_does_not_exist_is_named(filled: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"Nothing is stored at s3://{filled}/nothing"):
        step.list_any(f"s3://{filled}/nothing")
    with pytest.raises(ConfigError, match="s3://no-such-bucket/x does not exist"):
        step.list_any("s3://no-such-bucket/x")
    (tmp_path / "one.jsonl").write_bytes(jsonl(ROWS))
    with pytest.raises(ServiceUnreachable, match="s3://no-such-bucket/dvc"):
        step.ingest_source(config(str(tmp_path / "one.jsonl")), tmp_path / "w", remote="s3://no-such-bucket/dvc")


def test_digest_and_reading_notice_a_changed_object(filled: str) -> None:
    uri = f"s3://{filled}/data"
    before = step.source_sha256(uri)
    (first, *_) = step.list_any(uri).files
    boto3.client("s3").put_object(Bucket=filled, Key="data/a.jsonl", Body=jsonl(ROWS[:29] + ROWS[:1]))
    assert step.source_sha256(uri) != before
    with pytest.raises(IntegrityError, match="a.jsonl changed while it was read"):
        first.open().read(10)
